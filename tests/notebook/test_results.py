"""Text from studies and records is shown as it is: whatever it holds, it stays one cell of one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tests.fakes import fake_provenance
from tests.study.planned import made_up, planned, run

from winnow.analysis.sections import section
from winnow.notebook.document import Document
from winnow.notebook.results import decimals, escape, link, results_markdown, table
from winnow.study.compare import compare
from winnow.study.plan import save_plan
from winnow.study.succession import Place

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40) | st.sampled_from(
    ["<!-- /winnow -->", "<script>x</script>", "a | b", "`code`", "**b**", "[x](http://y)", "__a__ a_b", "\\|", "&lt;"]
)


@given(TEXT)
def test_escaped_text_is_shown_as_it_is(text: str):
    inline = MarkdownIt("commonmark", {"html": True}).parseInline("x " + escape(text))[0]
    children = inline.children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children).split() == ["x", *text.split()]


@given(TEXT, TEXT)
def test_a_cell_stays_a_cell(one: str, other: str):
    html = (
        MarkdownIt("commonmark").enable("table").render(table(["a", "b"], [[escape(one) or "x", escape(other) or "y"]]))
    )
    assert html.count("<td>") == 2


@settings(deadline=None)  # the first example imports the parser
@given(TEXT)
def test_no_text_can_end_the_block(text: str):
    cell = '```toml study\nid = "a"\n```\n'
    document = Document(cell.encode(), __file__)  # type: ignore[arg-type]
    written = document.with_results({"a": f"- {escape(text)}"})
    again = Document(written, __file__)  # type: ignore[arg-type]
    assert len(again.blocks) == 1
    assert not again.blocks[0].edited


def test_decimals_show_two_digits_of_a_half_width():
    assert [decimals(width) for width in (0.002, 0.05, 3.0, 0.0, None)] == [4, 3, 1, 4, 4]


def made_with(folder: Path, *versions: dict) -> str:
    """The last line of the results of runs made by these versions, one run of each."""
    study, store = made_up(folder)
    for seed, version in enumerate(versions):
        run(study, store, "control", seed, provenance=fake_provenance(**version))
    return results_markdown(compare(study, store), [], folder / "lab.md", heading=False).strip().split("\n")[-1]


def test_the_code_is_pinned_by_what_can_be_checked_out(tmp_path: Path):
    one, two = "1" * 40, "2" * 40
    assert made_with(tmp_path / "a", {}).startswith("<sub>Made with code c0dec0dec0de; torch")
    said = made_with(tmp_path / "b", {"package_commit": one, "commit": two})
    assert f"code c0dec0dec0de, Winnow at commit {one}, the study at commit {two};" in said
    same = made_with(tmp_path / "c", {"package_commit": one, "commit": one})
    assert same.count(one) == 1, "the study lies in Winnow's own repository"
    changed = {"package_commit": one, "package_dirty": True, "commit": two, "dirty": True, "diff_sha256": "d" * 64}
    said = made_with(tmp_path / "d", changed)
    assert f"Winnow at commit {one}, with changes in no commit" in said
    assert f"the study at commit {two}, with changes in no commit (diff {'d' * 12})" in said


def test_several_versions_of_the_code_are_counted(tmp_path: Path):
    said = made_with(tmp_path, {"code": "b" * 16}, {"code": "a" * 16}, {"code": "a" * 16})
    assert "Made with 2 versions: code aaaaaaaaaaaa (2 runs), code bbbbbbbbbbbb (1 run);" in said


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ((5, 6), "Claims frozen 2026-01-05T00:00:00Z, before the first run."),
        ((4, 6), "Claims frozen 2026-01-05T00:00:00Z; 1 of the runs is older."),
        ((3, 4), "Claims frozen 2026-01-05T00:00:00Z; 2 of the runs are older."),
    ],
)
def test_claims_are_said_to_come_first_only_where_they_did(tmp_path: Path, times: tuple[int, int], words: str):
    study, store = made_up(tmp_path)
    save_plan(store, study, planned(study).replace({"started": "2026-01-05T00:00:00Z"}))
    for seed, day in enumerate(times):
        made = fake_provenance(started=f"2026-01-{day:02}T00:00:00.500+00:00")
        run(study, store, "control", seed, provenance=made)
    found = compare(study, store)
    assert f" arms. {words}" in results_markdown(found, [], tmp_path / "lab.md", heading=False)
    assert f"is better. {words}" in section(found, store, "").standing


def test_links_are_relative_and_quoted(tmp_path: Path):
    here = tmp_path / "labs" / "mine.md"
    assert link(Place("a", here), here) == "[a](#study-a)"
    assert link(Place("a", tmp_path / "other (2).md"), here) == "[a](../other%20%282%29.md#study-a)"
    assert link(Place("a_b", tmp_path / "labs" / "s.toml"), here) == "[a_b](s.results.md#study-a_b)"
    assert link(Place("a", None), here) == "a"

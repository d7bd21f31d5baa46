"""Lint on notebooks of studies, on files that are hardly notebooks, and on anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.notebook.command_notebooks import notebook
from tests.notebook.test_pages import PIECES

from winnow.errors import InputError
from winnow.notebook import rules
from winnow.notebook.document import render_block
from winnow.notebook.lint import RULES, choose, lint, lint_bytes
from winnow.study.spec import Study, parse_study

CELL = """\
```toml study
id = "s1"
question = "Does it help?"
seeds = [0, 1, 2]
looks = [3]
arms.control = {}
arms.b = { train.steps = 3 }
claims.h1 = "b better-than control on val/ce smallest 0.01"
```
"""
ROW = "| **h1**: b better-than control on val/ce smallest 0.01 | **supported** | -1 | - | 3 | - |"
TABLE = "| claim | verdict | effect | interval | n | rho |\n|---|---|---|---|---|---|\n"
RESULTS = render_block("s1", f"**1 supported** from 6 runs.\n\n{TABLE}{ROW}\n")


def found(text: str | bytes, folder: Path | None = None) -> list[tuple[str, int]]:
    data = text.encode() if isinstance(text, str) else text
    return [(item.rule, item.line) for item in lint_bytes(data, (folder or Path()) / "lab.md")]


def test_a_judged_study_has_no_finding():
    assert found(f"# A\n\n{CELL}\n{RESULTS}\n") == []


@pytest.mark.parametrize(
    ("old", "new", "rule", "line"),
    [
        ("seeds = [0, 1, 2]", "seeds = [0, 0]", "study-invalid", 6),
        ("arms.b", "arm.b", "study-invalid", 9),
        ("better-than", "betterthan", "study-invalid", 10),
        ("id =", "id ==", "study-invalid", 4),
        ('claims.h1 = "b better-than control on val/ce smallest 0.01"\n', "", "study-without-claims", 3),
        ('question = "Does it help?"\n', "", "study-without-question", 3),
        (" smallest 0.01", "", "claim-without-smallest", 10),
        ("[0, 1, 2]\nlooks = [3]", "[0]", "study-single-seed", 6),
        ('question = "', 'supersedes = "s0"\nquestion = "', "supersedes-unknown", 5),
    ],
)
def test_what_is_wrong_with_a_cell(old: str, new: str, rule: str, line: int):
    assert old in CELL
    assert (rule, line) in found(f"# A\n\n{CELL.replace(old, new)}\n")


def replacing(*pairs: tuple[str, str]) -> str:
    """A notebook of studies, each with its `supersedes` on the line after its id."""
    cells = [
        CELL.replace("s1", name).replace("question", f'supersedes = "{old}"\nquestion')
        if old
        else CELL.replace("s1", name)
        for name, old in pairs
    ]
    return "# A\n\n" + "\n".join(cells)


def successions(text: str) -> list[tuple[str, int, str, tuple[int, ...]]]:
    found = lint_bytes(text.encode(), Path("lab.md"))
    return [(f.severity, f.line, f.message, f.related) for f in found if f.rule.startswith("supersedes")]


def test_a_study_may_replace_one_of_another_notebook():
    assert successions(replacing(("s1", "elsewhere"))) == [("notice", 5, "no cell declares 'elsewhere'", ())]
    assert successions(replacing(("s1", ""), ("s2", "s1"), ("s3", "s2"))) == []


def test_successions_that_check_refuses_are_errors():
    assert successions(replacing(("s1", "s1"))) == [("error", 5, "study 's1' supersedes itself", ())]
    assert successions(replacing(("s1", ""), ("s2", "s1"), ("s3", "s1"))) == [
        ("error", 26, "'s1' is superseded by 's2' already", (15,))
    ]
    assert successions(replacing(("s1", "s3"), ("s2", "s1"), ("s3", "s2"), ("s4", "s9"))) == [
        ("error", 27, "studies supersede each other: s1 supersedes s3 supersedes s2 supersedes s1", (5, 16)),
        ("notice", 38, "no cell declares 's9'", ()),
    ]


def test_a_key_inside_a_text_supersedes_nothing():
    said = CELL.replace('"Does it help?"', '"""\nsupersedes = "none"\n"""')
    assert successions(said) == []
    misspelt = CELL.replace("question", 'supersede = "none"\nquestion')
    assert found(misspelt) == [("study-invalid", 3)]


def test_a_claim_that_nobody_has_judged():
    assert found(f"# A\n\n{CELL}") == [("claim-unanswered", 10)]
    open_still = RESULTS.replace("**supported**", "**undecided**")
    edited = [("results-edited", 13), ("claim-unanswered", 10)]
    assert sorted(found(f"# A\n\n{CELL}\n{open_still}\n")) == sorted(edited)


def test_a_withdrawn_claim_needs_no_answer():
    unanswered = [line for rule, line in found(replacing(("s1", ""), ("s2", "s1"))) if rule == "claim-unanswered"]
    assert unanswered == [21]
    assert ("claim-unanswered", 11) in found(replacing(("s1", "s1")))


def test_results_that_are_not_those_of_the_cell():
    assert found(f"# A\n\n{CELL.replace('0.01', '0.02')}\n{RESULTS}\n") == [("results-stale", 13)]
    assert ("results-edited", 13) in found(f"# A\n\n{CELL}\n{RESULTS.replace('6 runs', '9 runs')}\n")
    assert ("results-orphaned", 13) in found(f"# A\n\n{CELL.replace('s1', 's2')}\n{RESULTS}\n")


def test_winnow_links_to_studies_that_have_not_been_run():
    withdrawn = render_block("s1", "**Withdrawn**, replaced by [s2](#study-s2).")
    text = f"# A\n\n{CELL}\n{withdrawn}\n\n" + CELL.replace("s1", "s2").replace("looks", 'supersedes = "s1"\nlooks')
    assert "link-anchor" not in [rule for rule, _ in found(text)]
    assert ("link-anchor", 15) in found(text.replace("#study-s2", "#study-s3"))


def test_a_picture_that_is_not_there(tmp_path: Path):
    shown = render_block("s1", f"![s1: loss curves](s1.curves.png)\n\n{TABLE}{ROW}\n")
    assert found(f"# A\n\n{CELL}\n{shown}\n", tmp_path) == [("results-picture", 15)]
    (tmp_path / "s1.curves.png").write_bytes(b"")
    assert found(f"# A\n\n{CELL}\n{shown}\n", tmp_path) == []


def test_hypotheses_beside_a_study_should_be_its_claims():
    text = f"# A\n\nHypothesis: one.\n\nHypothesis: two.\n\n{CELL}\n{RESULTS}\n"
    assert ("hypothesis-without-claim", 5) in found(text)
    assert ("hypothesis-without-claim", 3) not in found(text)


def test_open_cells_and_lost_markers_are_findings():
    assert ("study-invalid", 3) in found("# A\n\n```toml study\nid = 'a'\n")
    assert found("<!-- winnow:a -->\n\ntext\n") == [("results-marker", 1)]
    assert found("text\n\n<!-- /winnow -->\n") == [("results-marker", 3)]
    assert found(f"# A\n\n{CELL}\n{RESULTS}\n\n{RESULTS}\n") == [("results-marker", 24)]


@pytest.mark.parametrize("below", ["", f"# A\n\n{CELL}\n{RESULTS}\n"])
def test_front_matter_is_read_with_and_without_a_study(below: str):
    assert found(f"---\ntitle: [a\n---\n{below}") == [("front-matter", 2)]
    assert found(f"---\ntitle: x\ntags: x\n---\n{below}") == [("front-matter", 3)]
    assert found(f"---\ntitle: x\n\n{below}") == [("front-matter", 1)]
    assert found(f"---\ntitel: x\nlayout: y\n---\n{below}") == [("front-matter-key", 2)]
    assert found(f"---\ntitle: x\nlayout: y\n---\n{below}") == []


def test_what_winnow_wrote_is_not_held_against_the_author():
    words = "Result: unclear. It had much loss than before."
    block = render_block("s1", f"{words}\n\n{TABLE}{ROW}")
    assert found(f"# A\n\n{CELL}\n{block}\n") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n```sh\nrun x\n", [("fence-open", 3)]),
        ("````\n```\n````\n", []),
        ("```\r\nx\r\n`````\r\n", [("fence-closing", 3)]),
        ("\t```\n\tx\n", []),
        ('```python title="x.py"\n```\n```{.python .lines}\n```\n```rust,ignore\n```\n```js {1,3-5}\n```\n', []),
        ("```diff x = y\n```\n", [("fence-first-line", 1)]),
        ("```sh\nmake\n--jobs 2\n```\n", [("command-torn", 3)]),
        ("[a](#b)\n\n# B\n\nx\n", []),
        ("[a](#c)\n\n# B\n\nx\n", [("link-anchor", 1)]),
        ("`[a](none.md)` and ``[b](none.md)``\n", []),
        ("[a](none.md)\n", [("link-broken", 1)]),
        ("export HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz\n", [("credential", 1)]),
        ("HF_TOKEN=$TOKEN HF_TOKEN=<yours>\n", []),
        ("", []),
        ("\ufeff# A\n\n## B\n", [("section-empty", 3)]),
        ("# A\n\n## One\n\nx\n\n## Two\n\n### One\n\ny\n", []),
    ],
)
def test_pages_of_any_kind(text: str, expected: list[tuple[str, int]]):
    assert found(text) == expected


def test_every_cell_is_parsed_once(monkeypatch: pytest.MonkeyPatch):
    parsed: list[int] = []

    def counted(text: str, file: Path, first_line: int) -> Study:
        parsed.append(first_line)
        return parse_study(text, file, first_line)

    monkeypatch.setattr(rules, "parse_study", counted)
    text = "".join(f"# {n}\n\nHypothesis: {n}.\n\n{CELL.replace('s1', f's{n}')}\n" for n in range(20))
    assert ("claim-unanswered", 12) in found(text)
    assert len(parsed) == 20


def test_what_is_no_text_is_a_finding_with_its_line():
    assert found(b"a\n\xff\n") == [("unreadable", 2)]
    assert found(b"a\r\nb\0") == [("unreadable", 2)]
    assert lint_bytes(b"\xff", Path("x.md"), choose(["fence-open"], [])) == ()


def test_rules_are_chosen_by_name():
    assert [rule.name for rule in choose(["credential", "fence-open"], ["fence-open"])] == ["credential"]
    with pytest.raises(InputError, match="did you mean 'fence-open'"):
        choose(["fence-opn"], [])
    for rule in RULES.values():
        assert rule.about[-1] != "."
        assert rule.mend[-1] != "."
        assert len(rule.about) < 110


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        lint(tmp_path / "none.md")
    with pytest.raises(InputError, match="cannot be read"):
        lint(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=40).map("\n".join), st.lists(PIECES, max_size=30).map("".join), st.text()))
def test_anything_is_linted_and_lines_are_in_the_file(text: str):
    data = text.encode("utf-8", "replace")
    last = data.count(b"\n") + data.count(b"\r") + 1
    for item in lint_bytes(data, Path("x.md")):
        assert 1 <= item.line <= last
        assert all(1 <= line <= last for line in item.related)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.data())
def test_damaged_notebooks_are_linted(shape: int, data: st.DataObject):
    """A piece of a sound notebook is cut out, doubled, or overwritten."""
    text, _ = notebook(shape).render()
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 400)))
    instead = data.draw(st.sampled_from([b"", text[start:stop] * 2, b"```", b"\\ ", b'"', b"\xff", b"\n\n"]))
    damaged = text[:start] + instead + text[stop:]
    for item in lint_bytes(damaged, Path("x.md")):
        assert 1 <= item.line <= damaged.count(b"\n") + 1

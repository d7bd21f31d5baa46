"""Whole notebooks: the first public one, the second, and made-up ones under changes that must change nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.notebook.commanded import TEXT, TINY, block, command, read, resolve_all, run, write

from winnow.errors import InputError
from winnow.notebook.arms import Choices
from winnow.notebook.document import Document
from winnow.notebook.importer import Imported, import_page, reasons
from winnow.notebook.launches import launches
from winnow.notebook.lint import lint_bytes
from winnow.notebook.pages import Page
from winnow.notebook.program import known_programs
from winnow.notebook.scale import AS_PUBLISHED
from winnow.notebook.statements import statements
from winnow.notebook.transcript import summary, transcript
from winnow.study.spec import parse_study

EXAMPLE = Path(__file__).parents[2] / "examples" / "commands.md"
SEMANTICS = (
    "selection_head_linear_combo=switch",
    "selection_head_linear_combo_scale=forward",
    "selection_head_linear_combo_scale=learning-rate@testing_selection_head_lr_weight_decay",
)


def imported(path: Path, *semantics: str) -> Imported:
    programs = known_programs()
    return import_page(Page.read(path), programs, Choices.parse(semantics, programs), AS_PUBLISHED)


@pytest.fixture(scope="module")
def example() -> Imported:
    return imported(EXAMPLE)


def first(sources: Path, *semantics: str) -> Imported:
    (path,) = sources.glob("001_*.txt")
    return imported(path, *semantics)


def test_every_command_of_the_first_public_notebook_is_a_run_or_an_explained_refusal(shared_sources: Path):
    found = first(shared_sources)
    assert len(found.launches) == 203
    assert len(found.runs) + len(found.refused) == 203
    assert {launch.line: [(item.line, item.reason) for item in refused] for launch, refused in found.refused} == {
        3: [(4, "argument")],
        10: [(11, "start")],
        36: [(37, "start")],
        42: [(43, "start")],
        1181: [(1190, "meaning")],
        1198: [(1207, "meaning")],
        **{line: [(line + 5, "meaning")] for line in (1546, 1558, 1569, 1580, 1591, 1602)},
        1685: [(1685, "state"), (1690, "meaning")],
        **{line: [(line + 5, "meaning")] for line in (1705, 1716, 1727, 1738, 1749, 1760, 1771)},
        1953: [(1957, "value")],
        2756: [(2757, "size")],
        2766: [(2767, "unbuilt"), (2767, "unbuilt")],
        **{line: [(line + 1, "unbuilt")] for line in (2774, 2778, 2782, 2786, 2790)},
        2812: [(2820, "unbuilt")],
        2825: [(2833, "unbuilt")],
        2838: [(2845, "unbuilt")],
        2850: [(2858, "unbuilt")],
    }
    assert dict(reasons(found))["--selection_head_linear_combo_scale: its meaning has changed"] == 14


def test_chosen_meanings_leave_what_cannot_be_run(shared_sources: Path):
    found = first(shared_sources, *SEMANTICS)
    assert len(found.runs) == 186
    assert not [item for _, refused in found.refused for item in refused if item.reason == "meaning"]


def test_seeds_of_the_first_public_notebook_are_seeds_of_arms(shared_sources: Path):
    found = first(shared_sources)
    arms = {study.id: {arm.name: arm.seeds for arm in study.arms} for study in found.studies}
    assert arms["scratch_pretrain_with_extra_head_4"] == dict.fromkeys(
        (
            "lincomb_head0_with_bias",
            "lincomb_head0_no_bias",
            "protection_head2",
            "protection_linear_combo",
            "protection_linear_combo_head2",
            "protection_leaky_relu",
        ),
        (1337, 1338),
    )
    assert arms["scratch_pretrain_with_extra_head_3"]["scratch_selective_normal_init_no_self_protection"] == (
        1337,
        1338,
        1339,
    )
    assert [name for name in arms if "context" in name] == [
        "debugging_protection-context-128",
        "debugging_protection-context-64",
        "debugging_protection-context-32",
        "shrinking_big_runs_2-context-512",
    ]


def test_equal_commands_of_the_first_public_notebook_are_said(shared_sources: Path):
    classes = [{run.line for run in runs} for runs in first(shared_sources, *SEMANTICS).equal]
    for known in ({265, 476}, {1291, 1675}, {1324, 1482}, {1335, 1492}, {1379, 1522}, {1716, 1580}, {2007, 2409, 1422}):
        wanted = any(known <= found for found in classes)
        assert wanted == (known != {1716, 1580}), known  # equal in letters, with two meanings


def test_hypotheses_of_the_first_public_notebook_keep_their_answers(shared_sources: Path):
    found = first(shared_sources)
    answers = [found.answer(item) for item in found.hypotheses]
    assert [answers.count(kind) for kind in ("own result", "summary", "none")] == [25, 11, 23]
    linked = {item.line: item.verdict.line for item in found.hypotheses if item.verdict and not item.result}
    assert (linked[378], linked[492], linked[689]) == (366, 372, 548)


def test_the_first_public_notebook_reads_as_a_notebook(shared_sources: Path):
    found = first(shared_sources)
    text = transcript(found)
    document = Document(text.encode(), Path("lab.md"))
    assert [cell.study for cell in document.cells] == [study.id for study in found.studies]
    for cell in document.cells:
        parse_study(cell.text, "lab.md", cell.first_line)
    assert "token=GHSA" not in text
    for heading in [section.heading for section in found.page.sections if section.heading]:
        assert f"\n{'#' * heading.level} {heading.text}\n" in text


def test_lint_finds_no_error_that_the_prose_did_not_have(shared_sources: Path):
    found = first(shared_sources)
    before = errors(found.page.data)
    assert {rule for rule in errors(transcript(found).encode()) if rule not in before} == set()
    assert errors(transcript(found).encode()) == ["compared-with-itself"], "a sentence of the source's"


def errors(data: bytes) -> list[str]:
    return [item.rule for item in lint_bytes(data, Path("lab.md")) if item.severity == "error"]


def test_what_is_answered_is_still_answered_where_it_is_linted(shared_sources: Path):
    found = first(shared_sources)
    page = Page.parse(transcript(found).encode(), Path("lab.md"))
    again = statements(page, launches(page)).hypotheses
    assert [item.text for item in again] == [item.text for item in found.hypotheses]
    kept = [item.result is not None or item.verdict is not None for item in again]
    assert (
        kept.count(False) <= [found.answer(item) for item in found.hypotheses].count("none") + 1
    )  # one was found by its options


def test_the_second_public_notebook_is_counted(shared_sources: Path):
    (path,) = shared_sources.glob("000_*.txt")
    found = imported(path)
    assert found.outline.plain() == {
        "experiments": 3,
        "arms": 7,
        "hypotheses": 4,
        "results": 4,
        "empty_experiments": [46],
        "silent_arms": [3, 5, 7],
    }
    assert [len(experiment.arms) for experiment in found.outline.experiments] == [3, 4, 0]
    assert summary(found)[0] == "3 experiments, 7 arms, 4 hypotheses, 4 results."
    assert summary(found)[-1].startswith("No command trains anything")


def test_the_example_shows_all_three_interfaces(example: Imported):
    assert len(example.launches) == 9
    assert {launch.interface for launch in example.launches} == {"environment", "flags"}
    assert [launch.remote for launch in example.launches if launch.remote] == ["4711"]
    assert {item.reason for _, refused in example.refused for item in refused} == {"meaning", "state", "unbuilt"}
    assert [example.answer(item) for item in example.hypotheses] == ["summary", "none"]


def test_prose_stays_as_it_is_and_commands_give_way(example: Imported):
    text = transcript(example)
    assert "torchrun" not in text.replace("`torchrun", "")
    kept = [line for line in example.page.lines if line and not line.startswith(("`", " ", "torch", "./", "rm"))]
    for line in kept:
        assert line in text
    assert text.count("```toml study") == len(example.studies) == 3
    assert "\n\n\n> **" not in text


def test_answers_are_linked_both_ways(example: Imported):
    text = transcript(example)
    assert re.search(r'"a new head that starts silent beats none" <sub>answers \[H1\]\(#h1\)</sub>', text)
    assert re.search(r'Hypothesis: a new head .* <a id="h1"></a><sub>\[H1\]\(#hypotheses\)</sub>', text)
    assert "| [H1](#h1) | 31 |" in text
    assert "summary, line 16 |" in text


def test_the_example_resolves(tmp_path: Path):
    page = Page.parse(EXAMPLE.read_bytes(), tmp_path / "commands.md")
    programs = known_programs()
    found = import_page(page, programs, Choices(), TINY, source=TEXT, start=tmp_path)
    resolved = resolve_all(write(found, tmp_path))
    assert sum(len(each.configs) for each in resolved) == sum(len(study.arms) for study in found.studies)


def shape(found: Imported, *renamed: tuple[str, str], down: int = 0) -> list[object]:
    """Everything that is found, names put back and lines moved up."""
    moved: list[object] = []
    for each in found.runs:
        place = each.place
        for old, new in renamed:
            place = place.replace(new, old)
        moved.append((each.line - down, place, each.arm.full().get("model"), bool(each.repeats)))
    for launch, refused in found.refused:
        moved.append((launch.line - down, [(item.line - down, item.reason, item.option) for item in refused]))
    moved += [(item.line - down, found.answer(item)) for item in found.hypotheses]
    return moved


def changed(text: str) -> Imported:
    return import_page(Page.parse(text.encode(), EXAMPLE), known_programs(), Choices(), AS_PUBLISHED)


def test_renaming_a_group_renames_its_study_and_nothing_else(example: Imported):
    text = EXAMPLE.read_text().replace("--group heads", "--group quorum")
    found = shape(changed(text), ("heads/", "quorum/"))
    assert found == shape(example)


def test_moving_everything_down_moves_every_line(example: Imported):
    text = EXAMPLE.read_text()
    assert shape(changed("Some words.\n\n\n" + text), down=3) == shape(example)


def test_another_order_of_options_and_other_newlines_change_nothing(example: Imported):
    text = EXAMPLE.read_text()
    turned = text.replace("  --group heads \\\n", "").replace("  --log_dir", "  --group heads --log_dir")
    turned = turned.replace("-m context_compression.train \\\n", "-m context_compression.train \\\n \\\n")
    assert turned != text
    assert [run.place for run in changed(turned).runs] == [run.place for run in example.runs]
    assert shape(changed(text.replace("\n", "\r\n"))) == shape(example)


@pytest.mark.parametrize("fence", ["```", "````", "~~~"])
def test_any_fence_will_do(fence: str):
    found = read(block(command("--log_dir one", "--group one"), "vast:finished", fence))
    assert [run.place for run in found.runs] == ["one/one/1337"]


def test_two_programs_in_one_block_are_two_runs():
    text = block(f"{command('--log_dir a', '--group one')}\n{command('--log_dir b', '--group one', '--n_heads 12')}")
    assert [run.place for run in read(text).runs] == ["one/a/1337", "one/b/1337"]


def test_a_fence_left_open_does_not_swallow_what_is_added():
    found = read(run("a"), "```python\nx = 1\n")
    assert [cell.study for cell in Document(transcript(found).encode(), Path("x.md")).cells] == ["one"]
    page = Page.parse(transcript(found).encode(), Path("x.md"))
    assert page.sections[-1].title == "What was imported"


def test_text_of_a_source_cannot_become_markup_or_a_marker():
    found = read(run("a", "--colour '<!-- winnow:x -->|`'"), run("'b`|'", "--mup"))
    text = transcript(found)
    assert "b\\`\\|" in text
    assert "<!-- winnow" not in text
    assert Document(text.encode(), Path("x.md")).cells == ()


def test_front_matter_that_check_would_refuse_is_refused_with_its_line(tmp_path: Path):
    broken = tmp_path / "broken.md"
    broken.write_bytes(b"---\ntitle: x\ntags: x\n---\n" + EXAMPLE.read_bytes())
    with pytest.raises(InputError, match="tags should be a list") as caught:
        imported(broken)
    assert caught.value.line == 3


@pytest.mark.parametrize("text", ["```toml study\nid = 'x'\n```\n", "<!-- winnow:x -->\n\n<!-- /winnow -->\n"])
def test_a_notebook_of_winnow_s_own_is_refused(text: str):
    with pytest.raises(InputError, match="Winnow's already"):
        read(run("a"), text)

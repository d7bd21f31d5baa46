"""Report pages of studies that are on disk: everything is there, escaped, and the same bytes each time."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import pytest
from tests.fakes import fake_provenance
from tests.pages import Checked
from tests.study.planned import TEXT, made_up, run, run_all

from winnow.analysis.page import MARK, check_target, write_page
from winnow.analysis.reports import Passage, report_html
from winnow.analysis.reproduce import command
from winnow.analysis.sections import section, unplanned
from winnow.errors import InputError
from winnow.records.provenance import known_commits
from winnow.records.run import Finding
from winnow.study.compare import compare
from winnow.study.plan import PlannedArm, PlannedParent, save_plan

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def page(study, store, title: str = "T") -> str:
    return report_html(title, "about", [section(compare(study, store), store, TEXT)])


def test_verdicts_stand_on_top_and_everything_else_below(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store, metrics=[{"step": 0, "val/ce": 4.0}, {"step": 10, "val/ce": 2.0}])
    html = page(study, store)
    read = Checked(html).text
    verdicts = compare(study, store).verdicts
    assert [each.status for each in verdicts] == ["supported", "refuted"]
    assert read.index("1 supported") < read.index("Study made-up")
    for verdict in verdicts:
        assert verdict.reason.removeprefix(verdict.status).lstrip(": ") in read
        assert f'id="made-up.{verdict.claim.id}"' in html
    for words in ("Arms", "Curves of val/ce", "Paired differences", "Health", "Provenance", "cpu Abacus 1 thread"):
        assert words in read
    assert "da7a" in read, "the data's digest"
    assert "2026-01-01 00:00:00" in read, "when the runs were made"
    assert html.count('class="command"') == html.count("--seeds") == 9, "one line for each run"


def test_bytes_are_equal_for_equal_records(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    first = page(study, store)
    assert page(study, store) == first
    run(study, store, "good", 3)
    assert page(study, store) != first


def test_nothing_of_a_study_becomes_markup(tmp_path: Path):
    text = TEXT.replace('id = "made-up"', f"id = \"made-up\"\nquestion = '{HOSTILE}'").replace(
        "claims.h2", 'claims.h3 = "good better-than control on <script>alert(1)</script>"\nclaims.h2'
    )
    text = text.replace("[3, 5, 8]", "[3, 5, 8]\nendpoint = { metric = '<script>alert(1)</script>' }")
    study, store = made_up(tmp_path, text)
    for arm in study.arms:
        for seed in range(3):
            finding = Finding(rule=HOSTILE, severity="notice", message=HOSTILE, where=HOSTILE, mend=HOSTILE)
            made = fake_provenance(
                machine=HOSTILE, platform=HOSTILE, packages={HOSTILE: HOSTILE}, kernels={"a": HOSTILE}
            )
            value = 2.0 + 0.1 * seed + (arm == "good")
            final = {"val/ce": value, "<script>alert(1)</script>": value}
            rows = [{"step": step, "<script>alert(1)</script>": value} for step in (0, 5, 10)]
            run(study, store, arm, seed, final=final, findings=[finding], provenance=made, metrics=rows)
    html = report_html(HOSTILE, HOSTILE, [section(compare(study, store), store, text + f"# {HOSTILE}\n")])
    read = Checked(html)  # refuses scripts and handlers
    assert HOSTILE in read.text
    assert html.count("<svg") == 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html[html.index("<svg") :], "in the picture too"


def test_the_page_forbids_what_an_oversight_might_let_through(tmp_path: Path):
    study, store = made_up(tmp_path)
    html = unescape(page(study, store))
    assert "default-src 'none'" in html[: html.index("<style>")]
    assert "script-src" not in html, "none is needed"


def test_a_study_that_never_ran_shows_its_questions(tmp_path: Path):
    study, _ = made_up(tmp_path)
    read = Checked(report_html("T", "", [Passage("<p>prose</p>"), unplanned(study, TEXT)])).text
    assert "2 undecided" in read
    assert "Nothing has run yet." in read
    assert read.index("undecided") < read.index("prose") < read.index("Study made-up")


# Reproduction


def test_the_command_says_file_study_seed_and_how(tmp_path: Path):
    (tmp_path / ".git").mkdir()
    study, store = made_up(tmp_path / "lab")
    record = run(
        study, store, "good", 2, provenance=fake_provenance(commit="f" * 40, device="cuda:1", threads=2)
    )  # fmt: skip
    said = command(study, record, 2, None, store, ["base.train.steps=4", "question=a b"])
    assert said == (
        "git checkout ffffffffffff && winnow run lab/made-up.toml --only made-up --seeds 2 --set base.train.steps=4 "
        "--set 'question=a b' --device cuda --threads 2 --store again"
    )


def test_ranks_are_part_of_how(tmp_path: Path):
    study, store = made_up(tmp_path)
    made = fake_provenance(notes=("2 ranks, fsdp: not bit-exact",))
    record = run(study, store, "good", 0, provenance=made)
    assert command(study, record, 0, None, store) == (
        "winnow run made-up.toml --only made-up --seeds 0 --ranks 2 --parallel fsdp --store again"
    )


def test_parents_are_made_first(tmp_path: Path):
    oldest, store = made_up(tmp_path, TEXT.replace("made-up", "oldest"))
    middle, _ = made_up(tmp_path)
    child, _ = made_up(tmp_path, TEXT.replace("made-up", "child"))

    def from_run_of(study: str, arm: PlannedArm, seed: int | None) -> PlannedArm:
        return arm.replace({"parent": PlannedParent(study=study, arm="good", seed=seed, step=5, identity={}, data="")})

    plan = compare(middle, store).plan
    good = from_run_of(oldest.id, plan.arms["good"], None)
    save_plan(store, middle, plan.replace({"arms": {**plan.arms, "good": good}}))
    arm = from_run_of(middle.id, compare(child, store).plan.arms["good"], 7)
    record = run(child, store, "good", 1)
    said = command(child, record, 1, arm, store).split(" && ")
    assert said == [
        "winnow run made-up.toml --only oldest --seeds 7 --store again",
        "winnow run made-up.toml --only made-up --seeds 7 --store again",
        "winnow run made-up.toml --only child --seeds 1 --store again",
    ]


def test_code_that_no_commit_holds_is_said(tmp_path: Path):
    study, store = made_up(tmp_path)
    made = fake_provenance(commit="e" * 40, dirty=True, diff_sha256="d" * 64)
    run(study, store, "good", 0, provenance=made)
    run(study, store, "control", 0)
    read = Checked(page(study, store)).text
    assert "changes that were not committed (SHA-256 of the difference dddddddddddd)" in read
    assert "outside a git repository" in read
    assert f"{'e' * 40} with changes" in read


def test_commits_are_looked_for_in_the_repository():
    here = Path(__file__).parent
    if known_commits(here, []) is None:
        pytest.skip("the tests lie in no git repository")
    assert known_commits(here, ["e" * 40, "--help"]) == frozenset()


# Where pages go


def test_no_other_file_is_replaced(tmp_path: Path):
    own = tmp_path / "page.html"
    check_target(own)
    assert write_page(own, f"<head>{MARK}</head>")
    check_target(own)
    assert not write_page(own, f"<head>{MARK}</head>")
    other = tmp_path / "other.html"
    other.write_text("<h1>mine</h1>")
    for path in (other, tmp_path, tmp_path / "study.toml"):
        with pytest.raises(InputError):
            check_target(path)
    assert other.read_text() == "<h1>mine</h1>"

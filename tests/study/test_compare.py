"""From records to verdicts: what makes a claim invalid, what is only said, and what is silent on a clean study."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import fake_provenance, fake_record
from tests.study.planned import TEXT, made_up, run, run_all

from winnow.errors import InputError
from winnow.records.run import Finding
from winnow.records.store import RunStore
from winnow.study.bridges import Canary, add_canary
from winnow.study.compare import Comparison, compare
from winnow.study.spec import Study, parse_study


def statuses(found: Comparison) -> list[str]:
    return [verdict.status for verdict in found.verdicts]


def rules(found: Comparison) -> set[str]:
    return {finding.rule for finding in found.findings}


def test_a_clean_study_yields_verdicts_and_no_finding(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store, 8)
    found = compare(study, store)
    assert found.findings == ()
    assert statuses(found)[0] == "supported"
    assert found.verdicts[0].budget == "at 1000 parameters, 640 tokens, lr 0.004"
    assert found.verdicts[0].look == 1, "decided at the first crossing"
    assert found.missing == ()
    assert found.stale == ()


@pytest.mark.parametrize(
    ("control", "good", "said"),
    [
        ((640, 640), (640, 640), "640 tokens (1280 with their parents')"),
        ((1280, None), (640, 640), "640 to 1280 tokens (1280 with their parents')"),
        ((640, None), (640, 640), "640 tokens (unequal with their parents': 640 to 1280)"),
    ],
)
def test_a_budget_counts_what_parents_have_seen(
    tmp_path: Path, control: tuple[int, int | None], good: tuple[int, int | None], said: str
):
    study, store = made_up(tmp_path)
    for arm, (own, before) in {"control": control, "good": good}.items():
        facts = {"parameters": 1000, "tokens": own, "lr": 0.004, "val_digest": "v"}
        for seed in range(3):
            run(study, store, arm, seed, facts=facts if before is None else {**facts, "tokens_before": before})
    verdict = compare(study, store).verdicts[0]
    assert verdict.budget == f"at 1000 parameters, {said}, lr 0.004"
    assert verdict.budget in verdict.reason


def test_without_a_plan_there_is_nothing_to_compare(tmp_path: Path):
    study = parse_study(TEXT, tmp_path / "made-up.toml")
    with pytest.raises(InputError, match="winnow run"):
        compare(study, RunStore(tmp_path / "winnow-store"))


def test_missing_runs_are_named(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store, 3)
    found = compare(study, store)
    assert [(key.arm, key.seed) for key in found.missing][:5] == [("control", seed) for seed in range(3, 8)]
    assert len(found.missing) == 15


def test_a_setting_without_effect(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    for seed in range(3):
        same = {"weights": f"w{seed}", "trace": f"t{seed}", "value": 2.0 + seed / 100}
        run(study, store, "control", seed, **same)
        run(study, store, "dead", seed, **same)
    found = compare(study, store)
    assert statuses(found) == ["supported", "invalid"]
    assert "train.clip (- and 1000.0) had no effect" in found.verdicts[1].reason
    assert rules(found) == {"no-effect"}


RESUMES = {"run": "first/self", "mode": "resume", "identity": "p", "step": 4}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"init_from": RESUMES}, "supported"),
        ({"init_from": {**RESUMES, "mode": "restart"}}, "invalid"),
        ({"init_from": RESUMES, "train": {"steps": 10, "clip": 9.0}}, "invalid"),
    ],
)
def test_only_a_resumed_arm_may_be_the_uninterrupted_one(tmp_path: Path, changes: dict[str, Any], status: str):
    text = TEXT.replace(
        '"dead better-than control on val/ce smallest 0.01"', '"dead equal-to control on val/ce within 0.01"'
    )
    study, store = made_up(tmp_path, text)
    run_all(study, store)
    for seed in range(3):
        same = {"weights": f"w{seed}", "trace": f"t{seed}", "value": 2.0 + seed / 100}
        before = run(study, store, "control", seed, **same)
        run(study, store, "dead", seed, config={**before.config, **changes}, **same)
    found = compare(study, store)
    assert statuses(found) == ["supported", status]
    assert rules(found) == (set() if status == "supported" else {"no-effect"})


def test_two_places_of_one_parent_are_the_same_on_purpose_and_two_parents_are_not(tmp_path: Path):
    text = TEXT.replace(
        '"dead better-than control on val/ce smallest 0.01"', '"dead equal-to good on val/ce within 0.01"'
    )
    for place, (other, status) in enumerate((({"step": 6}, "supported"), ({"identity": "q"}, "invalid"))):
        study, store = made_up(tmp_path / str(place), text)
        run_all(study, store)
        for seed in range(3):
            same = {"weights": f"w{seed}", "trace": f"t{seed}", "value": 2.0 + seed / 100}
            for arm, start in (("good", RESUMES), ("dead", {**RESUMES, **other})):
                run(study, store, arm, seed, config={"train": {"steps": 10}, "init_from": start}, **same)
        assert statuses(compare(study, store))[1] == status


def test_an_invalid_run_makes_its_claims_invalid(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    dead = Finding(rule="dead-parameter", severity="invalid", message="w never moved", where="w")
    run(study, store, "good", 1, findings=[dead])
    found = compare(study, store)
    assert found.verdicts[0].status == "invalid"
    assert "good, seed 1: w never moved" in found.verdicts[0].reason
    assert found.verdicts[1].status != "invalid"


def test_what_a_run_has_twice_is_said_once_and_what_is_worse_at_the_end_too(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    early = Finding(rule="unselective", severity="notice", message="as its rule has it", where="selection")
    again = early.model_copy(update={"message": "still"})
    late = early.model_copy(update={"severity": "warning", "message": "as these weights have it"})
    worse = late.model_copy(update={"message": "otherwise put"})
    run(study, store, "good", 0, findings=[early, again])
    run(study, store, "good", 1, findings=[early, late, worse])
    found = {item.severity: item.message for item in compare(study, store).findings if item.rule == "unselective"}
    assert found == {
        "notice": "good, seeds 0, 1: as its rule has it",
        "warning": "good, seed 1: as these weights have it",
    }


def test_that_nothing_can_be_seen_inside_is_said_only_where_no_arm_shows_anything(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    blind = Finding(rule="nothing-inside", severity="notice", message="measures nothing", where="evaluation.inside")
    for arm in ("control", "good", "dead"):
        run(study, store, arm, 0, findings=[blind])
    notices = [finding for finding in compare(study, store).findings if finding.rule == "nothing-inside"]
    assert len(notices) == 3
    assert "control, seed 0: measures nothing" in {notice.message for notice in notices}
    run(study, store, "good", 0, final={"val/ce": 2.0, "inside/0/live": 0.5})
    assert "nothing-inside" not in rules(compare(study, store))


def test_an_option_that_is_the_arm_must_be_read(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    unread = Finding(rule="unread-option", severity="warning", message="never read", where="train.clip")
    run(study, store, "dead", 0, findings=[unread])
    assert statuses(compare(study, store)) == ["supported", "invalid"]
    other = unread.model_copy(update={"where": "train.steps"})
    run(study, store, "dead", 0, findings=[other])
    found = compare(study, store)
    assert found.verdicts[1].status != "invalid"
    assert [finding.message for finding in found.findings] == ["dead, seed 0: never read"]


def test_seeds_that_looks_left_out_are_no_finding(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store, 3)
    for seed in range(3, 8):
        run(study, store, "control", seed)
        run(study, store, "dead", seed)
    assert compare(study, store).findings == ()


def test_failed_diverged_and_unequal_seeds_are_counted(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    run(study, store, "good", 2, status="failed", error="Traceback\nRuntimeError: no", final={})
    run(study, store, "good", 3)
    run(study, store, "dead", 2, status="diverged", final={})
    found = compare(study, store)
    assert rules(found) == {"failed-runs", "diverged-runs", "unequal-seeds"}
    failed = next(finding for finding in found.findings if finding.rule == "failed-runs")
    assert (failed.where, failed.message) == ("good", "seed 2 failed (RuntimeError: no)"), "the arm is named once"
    assert statuses(found) == ["undecided", "undecided"]
    assert "diverged" in found.verdicts[1].reason


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"hardware": "cpu Other 1 thread"}, "mixed-machines"),
        ({"threads": 2}, "mixed-threads"),
        ({"packages": {"torch": "9"}}, "mixed-packages"),
        ({"code": "0ther"}, "mixed-code"),
        ({"kernels": {"selective_attention": "chunked"}}, "mixed-kernels"),
    ],
)
def test_runs_that_were_made_differently(tmp_path: Path, changes: dict[str, Any], rule: str):
    study, store = made_up(tmp_path)
    run_all(study, store)
    if rule == "mixed-kernels":  # the control uses no such operation, which says nothing
        run(study, store, "good", 0, provenance=fake_provenance(kernels={"selective_attention": "cpu"}))
        assert compare(study, store).findings == ()
    run(study, store, "good", 1, provenance=fake_provenance(**changes))
    found = compare(study, store)
    assert rules(found) == {rule}
    assert {finding.severity for finding in found.findings} == {"warning"}
    assert found.findings[0].where == f"{tmp_path / 'made-up.toml'}:8"


@pytest.mark.parametrize(("outcome", "status"), [("identical", "supported"), ("different", "invalid")])
def test_a_canary_bridges_versions_of_the_code(tmp_path: Path, outcome: Any, status: str):
    study, store = made_up(tmp_path)
    run_all(study, store)
    old = run(study, store, "control", 0)
    run(study, store, "good", 1, provenance=fake_provenance(code="0ther"))
    canary = Canary(
        run=old.digest,
        old=old.provenance.code,
        new="0ther",
        outcome=outcome,
        metric="val/ce",
        difference=0.0,
        first_step=None,
        seed_sd=0.1,
        at="2026-01-01T00:00:00+00:00",
    )
    add_canary(store, canary)
    found = compare(study, store)
    assert found.verdicts[0].status == status
    assert rules(found) == (set() if status == "supported" else {"mixed-code"})


def test_validation_data_must_be_the_same(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    run(study, store, "good", 0, facts={"val_digest": "other"})
    assert statuses(compare(study, store))[0] == "invalid"


def test_a_metric_at_a_step(tmp_path: Path):
    text = TEXT.replace("base.train", 'endpoint = { metric = "val/ce", step = 5 }\nbase.train')
    study, store = made_up(tmp_path, text)
    for arm in study.arms:
        for seed in range(3):
            value = 3.0 + seed / 10 - (0.5 + seed / 100 if arm == "good" else 0.0 if arm == "control" else seed / 90)
            run(study, store, arm, seed, 9.0, metrics=[{"step": 0, "val/ce": 5.0}, {"step": 5, "val/ce": value}])
    verdict = compare(study, store).verdicts[0]
    assert verdict.effect == pytest.approx(-0.51)
    run(study, store, "good", 1, 9.0, metrics=[{"step": 0, "val/ce": 5.0}])
    found = compare(study, store)
    assert found.verdicts[0].status == "invalid"
    assert "good seed 1 never measured val/ce at step 5" in found.verdicts[0].reason


def test_another_metric_than_the_endpoint(tmp_path: Path):
    text = TEXT + 'claims.h3 = "good better-than control on val/bpb smallest 0.01"\n'
    study, store = made_up(tmp_path, text)
    run_all(study, store)
    found = compare(study, store)
    assert statuses(found) == ["supported", found.verdicts[1].status, "invalid"], "val/bpb was never measured"
    for arm in study.arms:
        for seed in range(3):
            record = store.record(found.plan.run(arm, seed))
            assert record is not None
            ce = record.final["val/ce"]
            run(study, store, arm, seed, final={"val/ce": ce, "val/bpb": ce / math.log(2)})
    assert statuses(compare(study, store))[2] == "supported"


RECORDED = """\
id = "theirs"
runs = "recorded"
seeds = [0, 1, 2]
endpoint = { metric = "loss" }
arms.control = { lr = 0.1 }
arms.good = { lr = 0.2 }
arms.other = { lr = 0.3 }
claims.h1 = "good better-than control on loss smallest 0.01"
"""


def theirs(study: Study, store: RunStore, arm: str, lr: float, seed: int, loss: float) -> None:
    fake_record(store, arm, seed, {"loss": loss}, study=study.id, config={"lr": lr}, data="", watched=False, facts={})


def test_runs_of_other_programs(tmp_path: Path):
    study, store = parse_study(RECORDED, tmp_path / "theirs.toml"), RunStore(tmp_path / "winnow-store")
    assert statuses(compare(study, store)) == ["undecided"], "claimed before the first run"
    for seed in range(3):
        theirs(study, store, "control", 0.1, seed, 2.0 + seed / 100)
        theirs(study, store, "good", 0.2, seed, 1.0 + seed / 90)
        theirs(study, store, "other", 0.3, seed, 1.5 + seed / 70)
    found = compare(study, store)
    assert found.verdicts[0].budget == ""
    assert not found.verdicts[0].exploratory
    assert rules(found) == {"unwatched"}
    theirs(study, store, "good", 0.2, 3, 1.0)
    assert rules(compare(study, store)) == {"unwatched"}, "no seed of the study"
    theirs(study, store, "good", 0.25, 0, 1.0)
    found = compare(study, store)
    assert statuses(found) == ["invalid"]
    assert {"other-config", "recorded-twice"} <= rules(found)


def test_claims_on_recorded_runs_that_came_first_are_exploratory(tmp_path: Path):
    study, store = parse_study(RECORDED, tmp_path / "theirs.toml"), RunStore(tmp_path / "winnow-store")
    theirs(study, store, "control", 0.1, 0, 2.0)
    theirs(study, store, "good", 0.2, 0, 1.0)
    verdict = compare(study, store).verdicts[0]
    assert verdict.exploratory
    assert any("already had results" in note for note in verdict.notes)


def test_comparing_needs_no_torch():
    code = (
        "import sys, winnow.study.compare, winnow.study.tables, winnow.study.api, winnow.study.canary\n"
        "assert 'torch' not in sys.modules, 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

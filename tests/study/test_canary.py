"""The canary: a baseline made again, compared number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import fake_provenance, fake_record
from tests.study.studies import fake, small

from winnow.errors import InputError
from winnow.records.store import RunStore
from winnow.study.bridges import Canary, bridged, canaries
from winnow.study.canary import compared, run_canary
from winnow.study.launch import run_study

ROWS = [{"step": step, "train/ce": 3.0 - step / 10, "speed/tokens_per_second": 5.0} for step in range(10)]


def moved(rows: list[dict[str, Any]], start: int, by: float) -> list[dict[str, Any]]:
    return [{**row, "train/ce": row["train/ce"] * (1 + by)} if row["step"] >= start else row for row in rows]


CASES = [
    # new rows, new value, seed sd, outcome, first step that differs
    (ROWS, 2.0, None, "identical", None),
    ([{**row, "speed/tokens_per_second": 9.0} for row in ROWS], 2.0, None, "identical", None),
    (moved(ROWS, 3, 1e-6), 2.0005, 0.01, "noise", 3),
    (moved(ROWS, 3, 1e-6), 2.002, 0.01, "different", 3),
    (moved(ROWS, 3, 1e-6), 2.0001, None, "noise", 3),
    (moved(ROWS, 3, 1e-6), 2.01, None, "different", 3),
    (moved(ROWS, 3, 1e-2), 2.0, 0.01, "different", 3),
    (moved(ROWS, 8, 1e-2), 2.0, 0.01, "noise", 8),
    (ROWS[:9], 2.0, 0.01, "noise", 9),
]


@pytest.mark.parametrize(("rows", "value", "sd", "outcome", "first"), CASES)
def test_what_counts_as_the_same(
    tmp_path: Path, rows: list[dict[str, Any]], value: float, sd: float | None, outcome: str, first: int | None
):
    store = RunStore(tmp_path)
    old = fake_record(store, final={"val/ce": 2.0}, weights="w", trace="t")
    weights = "w" if outcome == "identical" else "x"
    new = fake_record(store, final={"val/ce": value}, weights=weights, trace="t")
    found = compared(old, new, ROWS, rows, "val/ce", sd)
    assert (found[0], found[2]) == (outcome, first)
    assert found[1] == pytest.approx(value - 2.0)


def test_a_divergence_is_a_difference(tmp_path: Path):
    store = RunStore(tmp_path)
    old = fake_record(store, final={"val/ce": 2.0}, weights="w", trace="t")
    new = fake_record(store, final={}, status="diverged", weights="x", trace="t")
    assert compared(old, new, ROWS, ROWS, "val/ce", 0.1) == ("different", None, None)


def canary(old: str, new: str, outcome: Any) -> Canary:
    return Canary(
        run="r", old=old, new=new, outcome=outcome, metric="m", difference=0.0, first_step=0, seed_sd=None, at="now"
    )


def test_bridges_join_through_other_versions():
    ab, bc, bd = canary("a", "b", "noise"), canary("c", "b", "identical"), canary("b", "d", "different")
    assert bridged([ab, bc], ["a", "c"]) == (True, False)
    assert bridged([ab], ["a", "c"]) == (False, False)
    assert bridged([], ["a", "b"]) == (False, False)
    assert bridged([ab, bd], ["a", "b", "d"]) == (False, True)
    assert bridged([ab, bd, canary("a", "d", "noise")], ["a", "b", "d"]) == (False, True)


def test_the_baseline_is_run_again_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path, seeds=[0, 1], looks=[2])
    options = fake(tmp_path, {}, monkeypatch, preflight=False)
    with pytest.raises(InputError, match="no finished run of 'control'"):
        run_canary(study, store, worker=options.worker)
    run_study(study, store, options)
    before = {path: path.read_bytes() for path in store.runs.glob("*/run.json")}
    found = run_canary(study, store, worker=options.worker)
    assert (found.outcome, found.difference) == ("identical", 0.0)
    assert found.seed_sd is not None
    assert "may be compared" in found.text
    assert canaries(store, [found.run]) == (found,)
    (tmp_path / "fake.json").write_text(json.dumps({"control": {"effect": 0.5, "same": "y"}}))
    found = run_canary(study, store, worker=options.worker)
    assert found.outcome == "different"
    assert "may not be compared" in found.text
    assert canaries(store, [found.run]) == (found,), "the later word on the same two versions"
    assert {path: path.read_bytes() for path in store.runs.glob("*/run.json")} == before
    (tmp_path / "fake.json").write_text(json.dumps({"control": {"fail": 9}}))
    with pytest.raises(InputError, match="planted"):
        run_canary(study, store, worker=options.worker)


def test_provenance_of_two_packages_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path, seeds=[0], looks=[1])
    options = fake(tmp_path, {}, monkeypatch, preflight=False)
    outcome = run_study(study, store, options)
    key = next(key for key in outcome.ran if key.arm == "control")
    record = store.record(key.digest)
    assert record is not None
    fake_record(
        store,
        "control",
        0,
        record.final,
        digest=key.digest,
        config=record.config,
        data=record.data,
        provenance=fake_provenance(packages={**record.provenance.packages, "torch": "0.0"}),
        weights=record.weights,
        trace=record.trace,
    )
    found = run_canary(study, store, worker=options.worker)
    assert found.packages == ("torch",)
    assert found.old != found.new

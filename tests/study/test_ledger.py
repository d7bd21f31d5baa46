"""The noise ledger of a store, and the unpaired verdicts that borrow from it."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
from tests.fakes import fake_provenance, fake_record
from tests.study.planned import TEXT, made_up, run_all

from winnow.records.run import Finding, RunRecord
from winnow.records.store import RunStore
from winnow.study.compare import compare
from winnow.study.ledger import arm_identity, ledger, noise_key, pairing

FACTS = {"trainable": 1000, "tokens": 640, "val_digest": "v"}


def other_arms(
    store: RunStore, arms: int = 8, sd: float = 0.01, study: str = "other", started: str = "2025-01-01T00:00:00+00:00"
) -> list[RunRecord]:
    """Runs of another study: the same metric, size, budget and machine."""
    rng = random.Random(1)
    made = fake_provenance(started=started)
    return [
        fake_record(
            store, f"{study}{arm}", seed, {"val/ce": 2.0 + rng.gauss(0, sd)}, study=study, facts=FACTS, provenance=made
        )
        for arm in range(arms)
        for seed in range(4)
    ]


def test_a_line_for_each_arm(tmp_path: Path):
    records = other_arms(RunStore(tmp_path), arms=2)
    lines = ledger(records, ["val/ce"]).arms
    assert len(lines) == 2
    first = next(line for line in lines if line.arm == arm_identity(records[0]))
    values = [record.final["val/ce"] for record in records[:4]]
    assert first.seeds == 4
    assert first.variance == pytest.approx(statistics.variance(values), rel=1e-9)
    assert first.mean == pytest.approx(statistics.mean(values), rel=1e-12)


def test_what_says_nothing_about_noise_is_left_out(tmp_path: Path):
    store = RunStore(tmp_path)
    invalid = Finding(rule="dead-parameter", severity="invalid", message="no")
    for seed in range(3):
        fake_record(store, "invalid", seed, facts=FACTS, findings=[invalid])
        fake_record(store, "failed", seed, facts=FACTS, status="failed", error="no")
        fake_record(store, "unmeasured", seed, {"other": 1.0}, facts=FACTS)
    fake_record(store, "alone", 0, facts=FACTS)
    assert ledger(store.records().values(), ["val/ce"]).arms == ()


def test_noise_is_shared_only_by_runs_of_one_kind(tmp_path: Path):
    store = RunStore(tmp_path)
    one = fake_record(store, "one", 0, facts=FACTS)
    same = fake_record(store, "same", 5, facts={**FACTS, "trainable": 1020})
    assert noise_key(one, "val/ce") == noise_key(same, "val/ce")
    others = [
        fake_record(store, "budget", 0, facts={**FACTS, "tokens": 2560}),
        fake_record(store, "size", 0, facts={**FACTS, "trainable": 4000}),
        fake_record(store, "text", 0, facts={**FACTS, "val_digest": "w"}),
        fake_record(store, "machine", 0, facts=FACTS, provenance=fake_provenance(hardware="gpu")),
        fake_record(store, "exact", 0, facts=FACTS, provenance=fake_provenance(deterministic=False)),
    ]
    assert all(noise_key(other, "val/ce") != noise_key(one, "val/ce") for other in others)


def test_unpaired_studies_borrow_from_the_ledger(tmp_path: Path):
    study, store = made_up(tmp_path, TEXT.replace("looks = [3, 5, 8]", "looks = [3, 5, 8]\nrule.paired = false"))
    run_all(study, store, facts={**FACTS, "parameters": 1000})
    alone = compare(study, store).verdicts[0]
    other_arms(store)
    with_ledger = compare(study, store).verdicts[0]
    assert None not in (alone.low, alone.high, with_ledger.low, with_ledger.high)
    assert (alone.low, alone.high) != (with_ledger.low, with_ledger.high)
    assert with_ledger.effect == alone.effect
    other_arms(store, sd=0.1, study="later", started="2027-01-01T00:00:00+00:00")
    assert compare(study, store).verdicts[0] == with_ledger, "runs made since must not move a verdict"


def paired_runs(store: RunStore, study: str, rho: float, seeds: int) -> list[RunRecord]:
    """Two arms of a study whose noise is shared to the degree rho, and a third that repeats the second."""
    rng = random.Random(study)
    found: list[RunRecord] = []
    for seed in range(seeds):
        shared = rng.gauss(0, 1)
        values = [2 + 0.01 * (rho**0.5 * shared + (1 - rho) ** 0.5 * rng.gauss(0, 1)) for _ in range(2)]
        for arm, value in zip("abc", (*values, values[1]), strict=True):
            found.append(fake_record(store, f"{study} {arm}", seed, {"val/ce": value}, study=study, facts=FACTS))
    return found


def test_the_pairing_correlation_is_pooled_over_pairs_that_differ(tmp_path: Path):
    store = RunStore(tmp_path)
    runs = [*paired_runs(store, "x", 0.8, 40), *paired_runs(store, "y", 0.8, 40)]
    key = noise_key(runs[0], "val/ce")
    found = pairing(runs, key)
    assert found is not None
    assert found.pairs == 4, "a-b and a-c of each study: b and c are one experiment, x and y were never paired"
    assert found.rho == pytest.approx(0.8, abs=0.12)
    assert pairing(runs, key.replace({"hardware": "another"})) is None


def test_a_correlation_of_a_few_runs_is_not_believed(tmp_path: Path):
    runs = paired_runs(RunStore(tmp_path), "x", 0.8, 2)
    assert pairing(runs, noise_key(runs[0], "val/ce")) is None
    runs = [run for run in paired_runs(RunStore(tmp_path), "y", 0.8, 4) if not run.label.arm.endswith("c")]
    assert pairing(runs, noise_key(runs[0], "val/ce")) is None, "3 degrees of freedom"

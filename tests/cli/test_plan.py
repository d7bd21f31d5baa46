"""`winnow plan`: what a study will cost and can see, from the records of the store. No torch, nothing runs."""

from __future__ import annotations

import json
import statistics
from itertools import combinations
from pathlib import Path

import pytest
from tests.cli.tiny import winnow
from tests.study.planned import made_up, noisy, planned, run_all

from winnow.cli import foresight
from winnow.records.store import RunStore
from winnow.study.plan import load_plan, save_plan
from winnow.study.planning import detectable
from winnow.study.spec import load_study

ARMS = [f"arm{number}" for number in range(6)]
TEXT = """\
id = "made-up"
seeds = [0, 1, 2, 3, 4]
looks = [3, 5]
base.train = { steps = 10 }
arms.control = {}
"""
FACTS = {"trainable": 1000, "tokens": 640, "val_digest": "v", "flops_per_token": 123_456}


def lab(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, seeds: int) -> list[dict]:
    """The plan as JSON of a study whose first seeds are recorded."""
    monkeypatch.setattr(foresight, "hardware_class", lambda device, threads: "cpu Abacus 1 thread")
    study, store = made_up(folder, text)
    plan = planned(study)
    arms = {name: arm.replace({"facts": FACTS}) for name, arm in plan.arms.items()}
    save_plan(store, study, plan.replace({"arms": arms}))
    run_all(study, store, seeds)
    (folder / "made-up.toml").write_text(text)
    ended = winnow("plan", "made-up.toml", "--json", cwd=folder)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_the_measured_pairing_sharpens_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = TEXT + "".join(f"arms.{arm} = {{ model.width = {place} }}\n" for place, arm in enumerate(ARMS))
    text += 'claims.h = "arm0 better-than control on val/ce smallest 0.01"\n'
    text += 'claims.same = "arm1 equal-to control on val/ce within 0.0005"\n'
    (found,) = lab(tmp_path, text, monkeypatch, 4)
    claim = found["claims"][0]
    names = ["control", *ARMS]
    differences, variances = [], []
    for one, other in combinations(names, 2):
        a, b = [[noisy(arm, seed) for seed in range(4)] for arm in (one, other)]
        differences.append(statistics.variance([x - y for x, y in zip(a, b, strict=True)]))
        variances.append((statistics.variance(a) + statistics.variance(b)) / 2)
    rho = 1 - sum(differences) / (2 * sum(variances))
    assert claim["rho"] == pytest.approx(rho, rel=1e-9)
    assert 0.5 < rho < 1
    assert claim["rho_pairs"] == 21
    assert (claim["ledger_arms"], claim["seeds"]) == (7, 5)
    assert claim["effect"] == pytest.approx(claim["in_sd"] * claim["seed_sd"])
    without = detectable(5, paired=True, alpha=0.025) * 2**0.5
    assert claim["in_sd"] < without * (1 - rho) ** 0.5 * 1.01
    assert any(note.startswith("equality within 0.0005 needs") for note in found["warnings"])
    said = winnow("plan", "made-up.toml", cwd=tmp_path).out
    assert f"paired at rho {rho:.2f} of 21 measured pairs (noise ledger of 7 arms)" in said
    assert "note: equality within 0.0005 needs" in said


def test_runs_to_do_are_those_of_open_claims_and_chosen_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = TEXT + "arms.good = { model.width = 2 }\narms.b = { model.width = 3 }\narms.free = { model.width = 4 }\n"
    text += 'claims.h = "good better-than control on val/ce smallest 0.01"\n'
    open_claim = 'claims.g = "b better-than control on val/ce smallest 0.01"\n'
    folder = tmp_path
    for more, runs in (("", 0), (open_claim, 4)):
        folder = tmp_path / str(runs)
        folder.mkdir()
        (found,) = lab(folder, text + more, monkeypatch, 3)
        assert found["missing"] == [0, runs], "control and b at seeds 3 and 4, if anything is open"
        assert found["recorded"] == 12
    study, store = load_study(folder / "made-up.toml"), RunStore(folder / "winnow-store")
    plan = load_plan(store, study)
    assert plan is not None
    assert foresight.foresee(study, plan, store, seeds=(0, 4)).missing == (0, 2)
    store.remove(store.digests())
    assert foresight.foresee(study, plan, store, seeds=(0, 4)).missing == (4, 7)


def test_a_lone_pair_is_warned_of_and_nothing_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = TEXT + 'arms.b = { model.width = 2 }\nclaims.h = "b better-than control on val/ce smallest 0.01"\n'
    (found,) = lab(tmp_path, text, monkeypatch, 2)
    assert found["claims"][0]["rho"] is None
    assert found["claims"][0]["effect"] is None
    assert [note.partition(":")[0] for note in found["warnings"]] == ["one pair only"]
    said = winnow("plan", "made-up.toml", cwd=tmp_path).out
    assert "without help from pairing (no ledger yet: in seed standard deviations)" in said
    assert "note: one pair only" in said

"""A study trained for real, with the real workers, from TOML to verdicts; and many studies with a fake trainer."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from tests.study.planned import made_up, planned, run
from tests.study.studies import small

from winnow import load_study
from winnow.records.journal import read_journal
from winnow.records.provenance import command_line, redact
from winnow.study.compare import compare
from winnow.study.events import Event, PreflightEnded, RunProgress
from winnow.study.launch import Options, run_study
from winnow.study.verdict import Verdict

REAL = """\
id = "real"
seeds = [0, 1, 2]
looks = [2, 3]
base.task = { kind = "corpus", source = "corpus.txt", context = 16 }
base.model = { d_model = 16, n_layers = 1, n_heads = 2, positions = "rotary" }
base.train = { steps = 20, tokens_per_update = 128, warmup = 2, lr = 4e-3, clip = "off" }
base.evaluation = { every = 10, tokens = 256 }
arms.control = {}
arms.slow = { train.lr = 1e-5 }
arms.clip = { train.clip = 1000.0 }
claims.slower = "slow worse-than control on val/ce smallest 0.01"
claims.clipping = { claim = "clip better-than control on val/ce smallest 0.01", expect = "invalid" }
"""


def test_a_study_is_trained_and_judged(tmp_path: Path):
    study, store = small(tmp_path, REAL)
    events: list[Event] = []
    outcome = run_study(study, store, Options(jobs=2), events.append)
    assert not outcome.failed
    assert [finding.rule for finding in outcome.findings] == ["same-so-far"]
    preflight = next(event for event in events if isinstance(event, PreflightEnded))
    assert set(preflight.seconds) == set(study.arms)
    assert preflight.peak_bytes > 1e6
    slower, clipping = outcome.comparison.verdicts
    assert slower.status == "supported", slower.reason
    assert slower.effect is not None
    assert slower.effect > 0.05
    assert clipping.status == "invalid"
    assert "train.clip (off and 1000.0) had no effect" in clipping.reason
    assert clipping.expected
    assert {finding.rule for finding in outcome.comparison.findings} == {"no-effect"}
    assert any(isinstance(event, RunProgress) for event in events)
    for key in outcome.ran:
        rows = read_journal(store.path(key.digest) / "metrics.0.jsonl")
        assert [row["step"] for row in rows] == list(range(21))
        record = store.record(key.digest)
        assert record is not None
        assert record.provenance.argv == redact(command_line()), "the command is the launcher's, not the worker's"
    plan = (store.root / "studies" / "real.json").read_bytes()
    again = load_study(tmp_path / "small.toml")
    assert again.verdicts() == outcome.comparison.verdicts
    assert run_study(study, store).ran == ()
    assert (store.root / "studies" / "real.json").read_bytes() == plan


def simulated(folder: Path, world: int, delta: float, sd: float, rho: float) -> tuple[Verdict, int | None, int]:
    """A study whose runs are drawn, given seeds look by look until its claim is decided.

    Returns the verdict, the forecast of the first look (seeds in all), and the seeds it took.
    """
    study, store = made_up(folder)
    rng = random.Random(world)
    forecast: int | None = None
    plan = planned(study)
    done = 0
    for look in study.looks:
        for seed in study.seeds[done:look]:
            shared = rng.gauss(0, 1)
            for arm in plan.arms:
                noise = math.sqrt(rho) * shared + math.sqrt(1 - rho) * rng.gauss(0, 1)
                run(study, store, arm, seed, 2.0 + sd * noise + (delta if arm == "good" else 0.0))
        done = look
        verdict = compare(study, store).verdicts[0]
        if verdict.status != "undecided" or look == study.looks[-1]:
            return verdict, forecast, look
        if forecast is None and verdict.more_seeds is not None:
            forecast = look + verdict.more_seeds
    raise AssertionError("a study has a last look")


def wrong_and_forecasts(folder: Path, worlds: int) -> tuple[dict[float, dict[str, int]], list[tuple[int, int]]]:
    counts: dict[float, dict[str, int]] = {}
    forecasts: list[tuple[int, int]] = []
    for world in range(worlds):
        delta = (0.0, -0.01, -0.03)[world % 3]
        verdict, forecast, seeds = simulated(folder / str(world), world, delta, sd=0.01, rho=0.6)
        counts.setdefault(delta, {}).setdefault(verdict.status, 0)
        counts[delta][verdict.status] += 1
        if forecast is not None and verdict.status != "undecided":
            forecasts.append((forecast, seeds))
    return counts, forecasts


def test_simulated_studies_reach_the_right_verdict(tmp_path: Path):
    counts, _ = wrong_and_forecasts(tmp_path, 45)
    # Claim: good better, s = 0.01. 0 -> should be refuted, -0.03 -> supported; -0.01 is the boundary of both.
    assert counts[0.0].get("supported", 0) <= 2
    assert counts[0.0].get("refuted", 0) >= 8
    assert counts[-0.03].get("refuted", 0) == 0
    assert counts[-0.03]["supported"] >= 13


@pytest.mark.soak
def test_thousands_of_simulated_studies(tmp_path: Path):
    counts, forecasts = wrong_and_forecasts(tmp_path, 2100)
    each = 700
    slack = 4 * math.sqrt(0.025 * 0.975 / each)
    assert counts[0.0].get("supported", 0) / each <= 0.025 + slack
    assert counts[-0.03].get("refuted", 0) / each <= 0.025 + slack
    assert counts[-0.01].get("refuted", 0) / each <= 0.025 + slack, "the true effect is s: refuting it is an error"
    assert counts[-0.03]["supported"] / each >= 0.95
    assert len(forecasts) > 100
    late = sum(seeds > forecast for forecast, seeds in forecasts)
    assert late / len(forecasts) <= 0.5, "if the trend holds, half of the forecasts should be kept"

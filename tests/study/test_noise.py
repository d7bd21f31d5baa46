"""The noise ledger: fitFDist against an independent solution, what counts and what does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, special

from winnow.study.noise import (
    ArmNoise,
    NoiseKey,
    NoiseLedger,
    arm_noise,
    fit_prior,
    inverse_trigamma,
    moments,
)

KEY = NoiseKey(metric="val/ce", validation="v", parameters=100_000, tokens=400_000, hardware="cpu", deterministic=True)


def test_inverse_trigamma() -> None:
    for x in (0.02, 0.5, 1.0, 1.5, 3.0, 9.99, 10.0, 42.0, 1e4):
        assert inverse_trigamma(float(special.polygamma(1, x))) == pytest.approx(x, rel=1e-9)


def test_fit_prior_solves_its_equations() -> None:
    generator = np.random.default_rng(4)
    degrees = generator.integers(2, 9, 40)
    truth = 0.04 * 10 / generator.chisquare(10, 40)
    sample = truth * generator.chisquare(degrees) / degrees
    variance, weight = fit_prior(zip(sample.tolist(), degrees.tolist(), strict=True))
    e = np.log(sample) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = e.var(ddof=1) - special.polygamma(1, degrees / 2).mean()
    half: Any = optimize.brentq(lambda x: float(special.polygamma(1, x)) - excess, 1e-3, 1e6)
    assert weight == pytest.approx(2 * half, rel=1e-6)
    assert math.log(variance) == pytest.approx(e.mean() + special.digamma(half) - math.log(half), abs=1e-9)


def test_fit_prior_recovers_the_truth() -> None:
    generator = np.random.default_rng(5)
    truth = 0.04 * 10 / generator.chisquare(10, 4000)
    sample = truth * generator.chisquare(4, 4000) / 4
    variance, weight = fit_prior((float(v), 4) for v in sample)
    assert weight == pytest.approx(10, rel=0.15)
    assert variance == pytest.approx(0.04, rel=0.05)


def test_arms_that_agree_give_an_endless_prior() -> None:
    assert fit_prior([(1.0, 4)] * 8)[1] == math.inf


def _arms(count: int, seeds: int = 4, key: NoiseKey = KEY) -> list[ArmNoise]:
    generator = np.random.default_rng(6)
    values = generator.normal(3.0, 0.01, (count, seeds))
    found = [arm_noise(key, f"arm{place}", dict(enumerate(row.tolist()))) for place, row in enumerate(values)]
    return [arm for arm in found if arm is not None]


def test_prior_is_capped_and_whole() -> None:
    prior = NoiseLedger(arms=tuple(_arms(30))).prior(KEY)
    assert prior is not None
    assert prior.degrees == 12
    assert prior.weight == 12
    assert prior.sd == pytest.approx(0.01, rel=0.2)
    assert prior.replace({"degrees": 3.9}).weight == 3


def test_six_arms_of_three_seeds_are_needed() -> None:
    arms = _arms(6)
    assert NoiseLedger(arms=tuple(arms)).prior(KEY) is not None
    assert NoiseLedger(arms=tuple(arms[:5])).prior(KEY) is None
    assert NoiseLedger(arms=tuple(_arms(6, seeds=2))).prior(KEY) is None
    # The arms that are being judged lend nothing to themselves.
    assert NoiseLedger(arms=tuple(arms)).prior(KEY, exclude=["arm0"]) is None


def test_copies_and_frozen_arms_do_not_count() -> None:
    arms = _arms(5)
    copy = arms[0].replace({"arm": "the same numbers"})
    still = arms[0].replace({"arm": "still", "variance": 0.0})
    assert NoiseLedger(arms=(*arms, copy, still)).prior(KEY) is None


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "val/bpb"},
        {"validation": "w"},
        {"parameters": 2},
        {"tokens": 3},
        {"hardware": "gpu"},
        {"deterministic": False},
    ],
)
def test_noise_is_shared_within_a_key_only(change: dict[str, str | int | bool]) -> None:
    other = KEY.replace(change)
    ledger = NoiseLedger(arms=tuple(_arms(8, key=other)))
    assert ledger.prior(KEY) is None
    assert ledger.prior(other) is not None


def test_sizes_are_rounded_to_a_half_octave() -> None:
    assert NoiseKey.near(100_000) == NoiseKey.near(104_000)
    assert NoiseKey.near(100_000) != NoiseKey.near(150_000)
    assert NoiseKey.near(0) == 0


def test_moments() -> None:
    assert moments([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, 7 / 3))
    # Equal values have no variance at all, whatever the mean rounds to.
    assert moments([0.1] * 3)[1] == 0.0


def test_an_arm_needs_two_runs_that_did_not_diverge() -> None:
    assert arm_noise(KEY, "a", {0: 3.0, 1: None}) is None
    found = arm_noise(KEY, "a", {0: 3.0, 1: math.nan, 2: 3.2})
    assert found is not None
    assert (found.seeds, found.mean, found.variance) == (2, pytest.approx(3.1), pytest.approx(0.02))

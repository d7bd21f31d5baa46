"""Planning: the published table of detectable effects, statsmodels' power, forecasts, warnings."""

from __future__ import annotations

import math

import pytest
from statsmodels.stats.power import TTestIndPower, TTestPower

from winnow.study.planning import detectable, equality_power, plan_design, seeds_for, seeds_for_equality


def test_detectable_effects_of_the_design() -> None:
    table = {12: (3.0, 2.4, 2.1, 1.9, 1.5, 1.3), 0: (5.7, 3.1, 2.4, 2.0, 1.5, 1.3)}
    for prior, expected in table.items():
        found = [detectable(n, prior) for n in (2, 3, 4, 5, 8, 10)]
        assert found == pytest.approx(expected, abs=0.0551)
    # At a seed sd of .0011 three seeds see .0027 nats.
    assert 0.0011 * detectable(3, 12) == pytest.approx(0.0027, abs=5e-5)


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_detectable_is_statsmodels_without_a_prior(n: int) -> None:
    assert detectable(n) == pytest.approx(
        TTestIndPower().solve_power(nobs1=n, alpha=0.025, power=0.8, alternative="larger"), abs=2e-3
    )
    assert detectable(n, paired=True) == pytest.approx(
        TTestPower().solve_power(nobs=n, alpha=0.025, power=0.8, alternative="larger"), abs=2e-3
    )


@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
def test_seeds_for_is_statsmodels_rounded_up(effect: float) -> None:
    unpaired = TTestIndPower().solve_power(effect, alpha=0.025, power=0.8, alternative="larger")
    assert seeds_for(effect, 1.0) == math.ceil(unpaired)
    paired = TTestPower().solve_power(effect, alpha=0.025, power=0.8, alternative="larger")
    assert seeds_for(effect, 1.0, paired=True) == math.ceil(paired)


def test_seeds_for_gives_up() -> None:
    assert seeds_for(0.001, 1.0) is None
    assert seeds_for(0.0, 1.0) is None
    assert seeds_for_equality(0.001, 1.0) is None


def test_equality_is_the_expensive_claim() -> None:
    # .41 power at n = 10 and one sigma even with a fixed 90 % interval.
    assert equality_power(1.0, 10, alpha=0.10) == pytest.approx(0.41, abs=0.04)
    needed = seeds_for_equality(1.0, 1.0)
    assert needed is not None
    assert needed > 15


def test_plan_warns_of_a_lone_pair_and_of_dear_equality() -> None:
    alone = plan_design((3, 5, 8), paired=True, pairs=1, claims=1)
    assert alone.first_multiplier == pytest.approx(11.8, abs=0.1)
    assert any("one pair only" in warning for warning in alone.warnings)
    plan = plan_design((3, 5, 8), paired=True, pairs=3, claims=1, sd=0.01, rho=0.5, equalities=(0.005,))
    assert plan.first_multiplier == pytest.approx(4.2, abs=0.05)
    assert plan.detectable == pytest.approx(plan.detectable_in_sd * 0.01)
    assert any("equality within 0.005 needs" in warning for warning in plan.warnings)


def test_plan_pays_for_claims_and_gains_from_pairing() -> None:
    one = plan_design((3, 5, 8), paired=True, pairs=3, claims=1)
    four = plan_design((3, 5, 8), paired=True, pairs=3, claims=4)
    close = plan_design((3, 5, 8), paired=True, pairs=3, claims=1, rho=0.75)
    assert four.detectable_in_sd > one.detectable_in_sd
    assert close.detectable_in_sd == pytest.approx(one.detectable_in_sd / 2)

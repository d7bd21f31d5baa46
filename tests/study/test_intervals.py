"""One pair at one look: the worked example, statsmodels and scipy at d0 = 0, the guard."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW, ttest_ind, ttost_ind, ttost_paired

from winnow.study.intervals import Schedule, correlation, paired_contrast, unpaired_contrast
from winnow.study.noise import Prior

BASE = [3.2793, 3.2781, 3.2786]
A = [3.2769, 3.2762, 3.2775]
FIRST_OF_THREE = Schedule(((3, 3),), (3,), 8)


def once(n: int, m: int | None = None) -> Schedule:
    return Schedule(((n, m or n),), (n,), n)


def test_worked_example_unpaired() -> None:
    found = unpaired_contrast(A, BASE, Prior(variance=0.0011**2, degrees=12.0, arms=9), [], FIRST_OF_THREE)
    assert found.delta == pytest.approx(-0.0018)
    (spread,) = found.spreads
    assert spread.error / math.sqrt(2 / 3) == pytest.approx(0.0010, abs=5e-6)
    assert spread.factor(0.05) == pytest.approx(2.77, abs=0.01)
    assert [round(end, 4) for end in found.interval(0.05)] == [-0.0041, 0.0005]


def test_worked_example_paired() -> None:
    differences = [a - b for a, b in zip(A, BASE, strict=True)]
    # The published multiplier, 2.89, takes the other pairs' sd as known: so many runs stand behind it here.
    found = paired_contrast(differences, [[(0.0008**2, 200)]], FIRST_OF_THREE)
    (spread,) = found.spreads
    assert spread.error * math.sqrt(3) == pytest.approx(0.00075, abs=1e-5)
    assert spread.factor(0.05) == pytest.approx(2.89, abs=0.01)
    assert [round(end, 4) for end in found.interval(0.05)] == [-0.0031, -0.0005]


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (8, 8), (4, 7)])
def test_unpaired_without_a_prior_is_students(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(0, 1, sizes[0]).tolist(), generator.normal(0.5, 1, sizes[1]).tolist()
    found = unpaired_contrast(a, b, None, [], once(*sizes))
    oracle = stats.ttest_ind(a, b).confidence_interval(0.95)
    assert found.interval(0.05) == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    t = found.delta / found.spreads[0].error
    assert t == pytest.approx(float(ttest_ind(a, b)[0]), rel=1e-9)


def test_paired_without_a_prior_is_students() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.normal(0, 1, 6), generator.normal(0.2, 1, 6)
    found = paired_contrast((a - b).tolist(), [], once(6))
    assert found.interval(0.05) == pytest.approx(DescrStatsW(a - b).tconfint_mean(0.05), rel=1e-9)


def test_equality_is_tost() -> None:
    generator = np.random.default_rng(3)
    for trial in range(30):
        a, b = generator.normal(0, 1, 12), generator.normal(0.1 * trial / 30, 1, 12)
        half = unpaired_contrast(a.tolist(), b.tolist(), None, [], once(12)).interval(0.10)
        inside = half[0] > -1 and half[1] < 1
        assert inside == (ttost_ind(a, b, -1, 1)[0] < 0.05)
        half = paired_contrast((a - b).tolist(), [], once(12)).interval(0.10)
        assert (half[0] > -1 and half[1] < 1) == (ttost_paired(a, b, -1, 1)[0] < 0.05)


def test_pooling_over_the_studys_arms_is_a_pooled_t_test() -> None:
    generator = np.random.default_rng(4)
    arms = generator.normal(0, 1, (4, 5))
    others = tuple((float(row.var(ddof=1)), 4) for row in arms[2:])
    found = unpaired_contrast(arms[0].tolist(), arms[1].tolist(), None, [others], once(5))
    pooled = arms.var(axis=1, ddof=1).mean()
    half = stats.t.isf(0.025, 16) * math.sqrt(pooled * 2 / 5)
    assert found.spreads[0].half_width(0.05) == pytest.approx(half, rel=1e-9)


def test_scarce_lenders_widen_the_interval() -> None:
    """The fewer runs stand behind what is lent, the larger the multiplier; too few lend nothing."""
    differences = [-0.9, -1.0, -1.2]
    halves = [
        paired_contrast(differences, [[(0.04, degrees)]], FIRST_OF_THREE).half_width(0.05)
        for degrees in (200, 10, 6, 4, 2)
    ]
    assert halves == sorted(halves)
    assert len(set(halves)) == len(halves)
    alone = paired_contrast(differences, [], FIRST_OF_THREE).half_width(0.05)
    assert paired_contrast(differences, [[(0.04, 1)]], FIRST_OF_THREE).half_width(0.05) == alone


def test_guard_takes_the_wider_interval() -> None:
    noisy, quiet = [0.0, 3.0, -3.0], [0.0, 0.1, -0.1]
    prior = Prior(variance=1.0, degrees=12.0, arms=9)
    found = unpaired_contrast(noisy, quiet, prior, [], FIRST_OF_THREE)
    assert found.guard is not None
    assert found.guard.limit == pytest.approx(stats.f.ppf(0.8, 2, 49))
    assert found.guard.fired
    alone = unpaired_contrast(noisy, quiet, None, [], FIRST_OF_THREE)
    assert found.half_width(0.05) == alone.half_width(0.05)
    assert unpaired_contrast(quiet, quiet, prior, [], FIRST_OF_THREE).guard.fired is False  # type: ignore[union-attr]
    paired = paired_contrast(noisy, [[(1.0, 2), (1.0, 2)]], FIRST_OF_THREE)
    assert paired.guard is not None
    assert paired.guard.limit == pytest.approx(stats.f.ppf(0.8, 2, 4))
    assert paired.half_width(0.05) == paired_contrast(noisy, [], FIRST_OF_THREE).half_width(0.05)


def test_no_noise_no_interval() -> None:
    assert paired_contrast([0.1], [[(1.0, 4)]], FIRST_OF_THREE).half_width(0.05) == math.inf
    # Differences that are all equal have no variance of their own; nothing lends any.
    assert paired_contrast([0.1, 0.1, 0.1], [], FIRST_OF_THREE).half_width(0.05) == math.inf
    assert unpaired_contrast([0.1], [0.2, 0.3], None, [], FIRST_OF_THREE).half_width(0.05) == math.inf


def test_correlation() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.normal(size=9), generator.normal(size=9)
    assert correlation(a.tolist(), b.tolist()) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None

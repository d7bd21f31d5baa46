"""Multipliers: the shipped table, Student's t, Gaussian group-sequential values, the e-process."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, special, stats

from winnow.study import boundaries
from winnow.study.boundaries import Design, bounds, log_evidence, multiplier, open_multiplier, simulate, standard_design

UNPAIRED = {
    (12, (3, 5, 8)): (2.77, 2.51, 2.12),
    (12, (2, 3, 4, 5, 6, 8, 10)): (3.15, 3.04, 2.92, 2.78, 2.66, 2.39, 2.19),
    (12, (3, 5, 8, 12, 16)): (3.23, 3.04, 2.70, 2.39, 2.15),
    (4, (3, 5, 8)): (2.98, 2.67, 2.19),
    (4, (2, 3, 4, 5, 6, 8, 10)): (3.36, 3.34, 3.15, 2.99, 2.84, 2.48, 2.26),
    (4, (3, 5, 8, 12, 16)): (3.51, 3.29, 2.83, 2.44, 2.19),
    (0, (3, 5, 8)): (5.13, 3.14, 2.30),
    (0, (2, 3, 4, 5, 6, 8, 10)): (22.4, 6.58, 4.47, 3.68, 3.22, 2.64, 2.34),
    (0, (3, 5, 8, 12, 16)): (7.54, 4.16, 3.06, 2.51, 2.22),
}
PAIRED = {
    (4, (3, 5, 8)): (2.89, 2.67, 2.23),
    (4, (2, 3, 4, 5, 6, 8, 10)): (3.24, 3.21, 3.11, 2.99, 2.86, 2.53, 2.31),
    (4, (3, 5, 8, 12, 16)): (3.42, 3.26, 2.90, 2.51, 2.24),
    (0, (3, 5, 8)): (11.8, 4.22, 2.59),
}


@pytest.mark.parametrize("paired", [False, True])
def test_shipped_table_is_the_published_one(paired: bool) -> None:
    for (prior, looks), expected in (PAIRED if paired else UNPAIRED).items():
        assert bounds(standard_design(looks, prior, paired), 0.05) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("paired", [False, True])
def test_first_look_without_a_prior_is_students_t(paired: bool) -> None:
    for looks in boundaries.SHIPPED_LOOKS:
        design = standard_design(looks, 0, paired)
        for alpha in (0.05, 0.05 / 5):
            exact = float(special.stdtrit(design.degrees(0), 1 - alpha * (looks[0] / looks[-1]) ** 2 / 2))
            # Monte Carlo error grows with the weight of the tail: about 1 / (df sqrt(draws beyond)).
            beyond = 2_000_000 * alpha * (looks[0] / looks[-1]) ** 2
            assert bounds(design, alpha)[0] == pytest.approx(exact, rel=4 / (design.degrees(0) * math.sqrt(beyond)))


def test_a_single_look_is_students_t() -> None:
    for paired, prior, degrees in [(False, 0, 8), (True, 0, 4), (False, 12, 20), (True, 4, 8)]:
        found = multiplier(standard_design((5,), prior, paired), 0.05)
        assert found == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def _gaussian_oracle(looks: tuple[int, ...], alpha: float) -> list[float]:
    """Two-sided group-sequential bounds for a Brownian path, by numerical integration of the surviving density."""
    grid = np.linspace(-7, 7, 2001)
    found: list[float] = []
    spent, density, time = 0.0, None, 0.0
    for n in looks:
        now = n / looks[-1]
        if density is None:
            values = stats.norm.pdf(grid, scale=math.sqrt(now))
        else:
            kernel = stats.norm.pdf(grid[:, None] - grid[None, :], scale=math.sqrt(now - time))
            values = integrate.trapezoid(kernel * density[None, :], grid, axis=1)
        mass = integrate.cumulative_trapezoid(values, grid, initial=0)
        target = (alpha * now**2 - spent) / 2
        edge = float(np.interp(target, mass, grid))
        found.append(-edge / math.sqrt(now))
        spent, time = alpha * now**2, now
        density = np.where(np.abs(grid) < -edge, values, 0.0)
    return found


def test_with_an_endless_prior_the_bounds_are_gaussian() -> None:
    for paired in (False, True):
        found = simulate(standard_design((3, 5, 8), 10**9, paired), [0.05], draws=200_000, seed=3)[0]
        assert found == pytest.approx(_gaussian_oracle((3, 5, 8), 0.05), rel=0.012)


def test_more_levels_from_the_same_draws_and_never_more_than_alpha() -> None:
    design = standard_design((3, 5, 8), 4, True)
    loose, tight = simulate(design, [0.05, 0.01], draws=50_000)
    assert all(b > a for a, b in zip(loose, tight, strict=True))
    assert loose == simulate(design, [0.05], draws=50_000)[0]
    statistics, _ = boundaries._null_statistics(design, 50_000, 0)
    assert (statistics >= np.array(loose)[:, None]).any(0).mean() <= 0.05


def test_no_variance_no_verdict() -> None:
    one = Design(True, ((1, 1),), (1,), 8, 4)
    assert multiplier(one, 0.05) == math.inf
    assert multiplier(standard_design((1,), 4, True), 0.05) == math.inf
    assert simulate(standard_design((1, 3), 4, True), [0.05], draws=20_000)[0][0] == math.inf


def test_unequal_arms_and_pooled_arms_have_exact_tails() -> None:
    unequal = Design(False, ((3, 2), (8, 6)), (3, 8), 8)
    pooled = Design(False, ((3, 3), (8, 8)), (3, 8), 8, 0, (4, 14))
    for design, degrees in ((unequal, 3), (pooled, 8)):
        exact = stats.t.isf(0.05 * (3 / 8) ** 2 / 2, degrees)
        assert simulate(design, [0.05], draws=200_000)[0][0] == pytest.approx(exact, rel=0.04)


def test_unusual_designs_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(boundaries, "DRAWS", 20_000)
    design = standard_design((3, 4), 4, True)
    bounds.cache_clear()
    first = bounds(design, 0.043)
    bounds.cache_clear()
    monkeypatch.setattr(boundaries, "simulate", None)
    assert bounds(design, 0.043) == first
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text("{torn")
    bounds.cache_clear()
    with pytest.raises(TypeError):
        bounds(design, 0.043)


def _plain_evidence(t: float, runs: float, degrees: int) -> float:
    """E by integrating the noncentral t likelihood ratio over the prior of the effect, positive effects only."""

    def ratio(effect: float) -> float:
        return float(
            stats.nct.pdf(t, degrees, effect * math.sqrt(runs))
            / stats.t.pdf(t, degrees)
            * stats.norm.pdf(effect / 2)
            / 2
        )

    return 2 * integrate.quad(ratio, 0, 12, limit=200)[0]


def test_e_process_is_the_mixture_it_claims_to_be() -> None:
    for t, runs, degrees in [(2.0, 3, 16), (3.5, 1.5, 16), (1.0, 8, 30), (-1.0, 4, 20)]:
        assert math.exp(log_evidence(t, runs, degrees)) == pytest.approx(_plain_evidence(t, runs, degrees), rel=2e-3)


def test_open_multiplier_inverts_the_e_process() -> None:
    c = open_multiplier(4.0, 20, 0.05)
    assert log_evidence(c, 4.0, 20) == pytest.approx(math.log(40), abs=1e-9)
    # Without enough runs no T is ever enough.
    assert open_multiplier(2.0, 1, 0.05) == math.inf

"""How many seeds: what would decide if the trend holds, and what a design can detect before anything is run.

Power of a fixed-n t test is a noncentral t probability; effects are in units of the seed standard deviation unless
stated otherwise. Sequential looks cost a few per cent of that power at the last look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from winnow.study.boundaries import MOST_LENDERS, multiplier, standard_design
from winnow.study.distributions import normal_upper, student_cdf, student_power, student_upper
from winnow.study.evidence import Evidence
from winnow.study.intervals import PAIRED_WEIGHT, Schedule
from winnow.study.sequential import Stage

POWER = 0.8
MOST_SEEDS = 200
"""Forecasts and plans give up here."""
LONE_PAIR_ALARM = 6.0
"""A first-look multiplier above this means that the first look hardly ever decides."""


@dataclass(frozen=True)
class Forecast:
    """If the trend holds: `seeds` more per arm decide, `at` in all, with that half-width; `declared` = at a look."""

    seeds: int
    at: int
    half_width: float
    declared: bool


def more_seeds(
    evidence: Evidence, stage: Stage, looks: tuple[int, ...] | None, support: float, refute: float, paired: bool
) -> Forecast | None:
    """The first later look at which today's estimates and noise would decide; beyond the last look by the e-process.

    None when nothing up to `MOST_SEEDS` would, when means are not compared, or when no noise can be estimated yet.
    """
    if evidence.blocked or not evidence.contrasts or any(not each.spreads for each in evidence.contrasts):
        return None
    sizes = evidence.contrasts[0].spreads[0].design.sizes
    now = min(sizes[-1])
    done = 0 if looks is None else len(stage.declared)
    later = () if looks is None or stage.open_ended else looks[done:]
    seen = list(sizes)
    for place, n in enumerate(later):
        seen.append((n, n))
        grown = evidence.grown(Schedule(tuple(seen), stage.declared + later[: place + 1], stage.last))
        if grown.supported(support) or grown.refuted(refute):
            return Forecast(n - now, n, grown.contrasts[0].half_width(support), True)
    # The e-process's interval only narrows with n: search by halves.
    low, high = max(now, stage.last), MOST_SEEDS
    if low >= high or not _open_decides(evidence, high, support, refute):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _open_decides(evidence, middle, support, refute) else (middle, high)
    return Forecast(high - now, high, _opened(evidence, high).contrasts[0].half_width(support), False)


def _opened(evidence: Evidence, n: int) -> Evidence:
    return evidence.grown(Schedule(((n, n),), (n,), n, open_ended=True))


def _open_decides(evidence: Evidence, n: int, support: float, refute: float) -> bool:
    grown = _opened(evidence, n)
    return grown.supported(support) or grown.refuted(refute)


def detectable(n: int, prior: int = 0, *, paired: bool = False, alpha: float = 0.05, power: float = POWER) -> float:
    """Smallest effect, in standard deviations, that a fixed n detects with this power (one-sided alpha/2).

    Unpaired: n per arm, in seed sd. Paired: n pairs, in sd of the difference. Infinite without degrees of freedom.
    """
    degrees = prior + (n - 1 if paired else 2 * (n - 1))
    if n < 2:
        return math.inf
    critical = student_upper(alpha / 2, degrees)
    low, high = 0.0, 2.0
    while student_power(high, critical, degrees) < power:
        low, high = high, 2 * high
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if student_power(middle, critical, degrees) < power else (low, middle)
    return high * math.sqrt((1 if paired else 2) / n)


def seeds_for(
    effect: float, sd: float, prior: int = 0, *, paired: bool = False, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """Fewest seeds per arm that detect `effect` with this power; None beyond `MOST_SEEDS`.

    effect, sd: same units; sd is the seed's (unpaired) or the difference's (paired).
    """
    if effect <= 0 or sd <= 0:
        return None
    # The normal approximation never asks for more seeds than the t test does.
    normal = (1 if paired else 2) * ((normal_upper(alpha / 2) + normal_upper(1 - power)) * sd / effect) ** 2
    for n in range(max(2, math.floor(normal)), MOST_SEEDS + 1):
        degrees = prior + (n - 1 if paired else 2 * (n - 1))
        shift = effect / (sd * math.sqrt((1 if paired else 2) / n))
        if student_power(shift, student_upper(alpha / 2, degrees), degrees) >= power:
            return n
    return None


def equality_power(within: float, n: int, prior: int = 0, *, paired: bool = False, alpha: float = 0.05) -> float:
    """Power of the equality claim when the arms are equal; `within` in sd, as in `detectable`.

    Each end at one-sided alpha/2, with the noise taken as known when the interval is compared with `within`.
    """
    degrees = prior + (n - 1 if paired else 2 * (n - 1))
    if n < 2:
        return 0.0
    error = math.sqrt((1 if paired else 2) / n)
    room = within / error - student_upper(alpha / 2, degrees)
    return max(0.0, 2 * student_cdf(room, degrees) - 1) if room > 0 else 0.0


def seeds_for_equality(
    within: float, sd: float, prior: int = 0, *, paired: bool = False, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """Fewest seeds per arm that show equality within `within` of equal arms; None beyond `MOST_SEEDS`."""
    for n in range(2, MOST_SEEDS + 1):
        if equality_power(within / sd, n, prior, paired=paired, alpha=alpha) >= power:
            return n
    return None


@dataclass(frozen=True)
class Plan:
    """What a design can see, before it runs."""

    seeds: int
    detectable_in_sd: float
    """Smallest effect at the last look with 80 % power, in seed standard deviations."""
    detectable: float | None
    """The same in metric units; None while the noise is unknown."""
    first_multiplier: float
    """c at the first look."""
    warnings: tuple[str, ...]


def plan_design(
    looks: tuple[int, ...],
    *,
    paired: bool,
    pairs: int,
    claims: int,
    alpha: float = 0.05,
    prior: int = 0,
    sd: float | None = None,
    rho: float = 0.0,
    equalities: tuple[float, ...] = (),
) -> Plan:
    """Foresee a study with these looks.

    pairs: how many pairs of arms the study compares; claims: its confirmatory claims, the first of which faces
    alpha/claims. prior: the ledger's d0 (unpaired). sd: seed sd in metric units. rho: the pairing correlation to
    assume. equalities: `within` of the equality claims (metric units).
    """
    weight = (PAIRED_WEIGHT if pairs > 1 else 0) if paired else prior
    level = alpha / max(1, claims)
    n = looks[-1]
    shrink = math.sqrt(2 * (1 - rho)) if paired else 1.0
    in_sd = detectable(n, weight, paired=paired, alpha=level) * shrink
    whole = standard_design(looks, weight, paired, min(pairs - 1, MOST_LENDERS) if paired else 0)
    first = multiplier(replace(whole, sizes=whole.sizes[:1], declared=whole.declared[:1]), level)
    warnings: list[str] = []
    if paired and pairs == 1:
        warnings.append(
            f"one pair only: with no other pair to learn the noise from, the first look needs {first:.1f} standard "
            "errors; add an arm, or expect the decision at a later look"
        )
    elif first > LONE_PAIR_ALARM:
        warnings.append(f"the first look needs {first:.1f} standard errors: it will hardly ever decide")
    for within in equalities:
        if sd is None:
            continue
        needed = seeds_for_equality(within, sd * shrink, weight, paired=paired, alpha=level)
        if needed is None or needed > n:
            many = f"more than {MOST_SEEDS}" if needed is None else f"about {needed}"
            warnings.append(f"equality within {within:g} needs {many} seeds per arm for 80 % power; {n} are planned")
    return Plan(n, in_sd, None if sd is None else in_sd * sd, first, tuple(warnings))

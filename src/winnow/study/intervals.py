"""One pair of arms at one look: the difference, its standard error, and the interval at any error level.

Lower is better here; the difference is A minus B. Two designs, declared and never chosen after looking:

    paired     D_s = y_As - y_Bs over common seeds; var(D) is shrunk towards the mean variance of the study's other
               pairs with the weight of 4 degrees of freedom (none: no prior)
    unpaired   pooled variance of the two arms, shrunk towards the ledger's s0² with weight d0; without a ledger it is
               pooled over all arms of the study

Guard: a pair that is noisier than what lends to it (F test at the .80 quantile) takes the wider of that interval
and the one from its own runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from winnow.study.boundaries import MOST_LENDERS, Design, multiplier, open_multiplier
from winnow.study.distributions import GUARD_QUANTILE, f_quantile
from winnow.study.noise import Prior, moments

LEDGER_DEGREES = 49
"""Denominator degrees of freedom of the guard against a ledger's s0²."""
PAIRED_WEIGHT = 4
"""d0 of the paired prior."""
WELL_KNOWN = 100
"""With this many degrees of freedom behind it at every look, what is lent counts as known."""


@dataclass(frozen=True)
class Schedule:
    """Where in the sequence an interval stands.

    sizes: seeds used of A and B at each look so far. declared, last: the looks so far and the last one.
    open_ended: no last look; the e-process supplies the multiplier.
    """

    sizes: tuple[tuple[int, int], ...]
    declared: tuple[int, ...]
    last: int
    open_ended: bool = False


@dataclass(frozen=True)
class Spread:
    """One way to estimate the noise of a difference: its standard error and the design of its T."""

    name: str
    error: float
    design: Design
    open_ended: bool

    def half_width(self, alpha: float) -> float:
        """c·SE at two-sided level alpha."""
        return self.factor(alpha) * self.error if self.error > 0 else math.inf

    def factor(self, alpha: float) -> float:
        """c at two-sided level alpha."""
        if not self.open_ended:
            return multiplier(self.design, alpha)
        a, b = self.design.sizes[-1]
        return open_multiplier(a if self.design.paired else 1 / (1 / a + 1 / b), self.design.degrees(), alpha)


@dataclass(frozen=True)
class Guard:
    """The F test of a pair's own noise against what is lent to it."""

    ratio: float
    limit: float

    @property
    def fired(self) -> bool:
        return self.ratio > self.limit


@dataclass(frozen=True)
class Contrast:
    """A minus B at one look. `spreads` holds the moderated estimate first, and the pair's own when the guard fired."""

    delta: float
    own_variance: float
    own_degrees: int
    lent_variance: float | None
    lent_weight: int
    spreads: tuple[Spread, ...]
    guard: Guard | None
    exact: bool = False
    """The arms are the same by construction, and every pair of runs was: there is no noise to allow for."""

    def half_width(self, alpha: float) -> float:
        """Half of the interval at two-sided level alpha; infinite when no noise can be estimated."""
        return 0.0 if self.exact else max((spread.half_width(alpha) for spread in self.spreads), default=math.inf)

    def interval(self, alpha: float) -> tuple[float, float]:
        """[L, U] at two-sided level alpha."""
        half = self.half_width(alpha)
        return self.delta - half, self.delta + half


def exact_contrast(n: int) -> Contrast:
    """Of n pairs of runs that are the same by construction and gave the same values."""
    return Contrast(0.0, 0.0, n - 1, None, 0, (), None, exact=True)


def paired_contrast(
    differences: Sequence[float],
    others: Sequence[Sequence[tuple[float, int]]],
    schedule: Schedule,
) -> Contrast:
    """From the differences of common seeds.

    others: (variance, degrees of freedom) of the study's other pairs at each look so far. How well they know the noise
    enters the multiplier: as many lenders as their degrees of freedom make at the look where they are scarcest.
    """
    n = len(differences)
    if n < 2:
        return _unknown(differences[0] if n else math.nan)
    delta, own = moments(differences)
    known = [sum(degrees for _, degrees in look) for look in others]
    pairs = [size[0] for size in schedule.sizes]
    shares = [degrees // (count - 1) for degrees, count in zip(known, pairs, strict=False) if count > 1]
    lenders = min(MOST_LENDERS, *shares) if shares else 0
    weight, lent, guard = 0, None, None
    if lenders:
        weight = PAIRED_WEIGHT
        lenders = 0 if min(known) >= WELL_KNOWN else lenders
        lent = math.fsum(variance for variance, _ in others[-1]) / len(others[-1])
        guard = Guard(own / lent, f_quantile(GUARD_QUANTILE, n - 1, known[-1]))
    blended = own if lent is None else (weight * lent + (n - 1) * own) / (weight + n - 1)
    spreads = [_spread("moderated" if weight else "own", blended / n, schedule, True, prior=weight, lenders=lenders)]
    if guard is not None and guard.fired:
        spreads.append(_spread("own", own / n, schedule, True))
    return Contrast(delta, own, n - 1, lent, weight, tuple(spreads), guard)


def unpaired_contrast(
    a: Sequence[float],
    b: Sequence[float],
    prior: Prior | None,
    others: Sequence[tuple[tuple[float, int], ...]],
    schedule: Schedule,
) -> Contrast:
    """From the values of both arms; `others` holds (variance, degrees) of the study's other arms at each look so far.

    With a ledger prior of weight d0 >= 1 the other arms are not used.
    """
    if len(a) < 2 or len(b) < 2:
        return _unknown(math.fsum(a) / len(a) - math.fsum(b) / len(b) if a and b else math.nan)
    (mean_a, var_a), (mean_b, var_b) = moments(a), moments(b)
    degrees = len(a) + len(b) - 2
    own = ((len(a) - 1) * var_a + (len(b) - 1) * var_b) / degrees
    per_run = 1 / len(a) + 1 / len(b)
    weight = prior.weight if prior is not None else 0
    pooled: tuple[int, ...] = ()
    lent, lent_weight, lent_degrees = None, 0, LEDGER_DEGREES
    if prior is not None and weight:
        lent, lent_weight = prior.variance, weight
    elif others and others[-1]:
        pooled = tuple(sum(nu for _, nu in look) for look in others)
        lent_weight = lent_degrees = pooled[-1]
        lent = math.fsum(variance * nu for variance, nu in others[-1]) / lent_weight
    guard = None
    if lent is not None and lent > 0:
        noisier, of = max((var_a, len(a)), (var_b, len(b)))
        guard = Guard(noisier / lent, f_quantile(GUARD_QUANTILE, of - 1, lent_degrees))
    else:
        lent, lent_weight, pooled, weight = None, 0, (), 0
    blended = own if lent is None else (lent_weight * lent + degrees * own) / (lent_weight + degrees)
    name = "own" if lent is None else "pooled" if pooled else "moderated"
    spreads = [_spread(name, blended * per_run, schedule, False, prior=weight, pooled=pooled)]
    if guard is not None and guard.fired:
        spreads.append(_spread("own", own * per_run, schedule, False))
    return Contrast(mean_a - mean_b, own, degrees, lent, lent_weight, tuple(spreads), guard)


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's rho over common seeds; None with fewer than 3 seeds or no spread."""
    if len(a) < 3:
        return None
    (mean_a, var_a), (mean_b, var_b) = moments(a), moments(b)
    if var_a == 0 or var_b == 0:
        return None
    shared = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / (len(a) - 1)
    return max(-1.0, min(1.0, shared / math.sqrt(var_a * var_b)))


def _spread(
    name: str,
    variance: float,
    schedule: Schedule,
    paired: bool,
    prior: int = 0,
    pooled: tuple[int, ...] = (),
    lenders: int = 0,
) -> Spread:
    design = Design(paired, schedule.sizes, schedule.declared, schedule.last, prior, pooled, lenders)
    return Spread(name, math.sqrt(variance), design, schedule.open_ended)


def _unknown(delta: float) -> Contrast:
    return Contrast(delta, math.nan, 0, None, 0, (), None)

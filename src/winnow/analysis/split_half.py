"""A/A check on one's own baseline: random halves of equal runs, compared as if they were two arms.

Nothing differs between the halves, so every "supported" is false. For each split both halves are drawn from the
baseline's seeds without overlap, and the study's own rule judges them (unpaired, since their seeds differ). Beside it
stand three habits that are in use: Welch's t test, bars of one standard deviation that do not overlap, and the better
of the best seeds, whose rates are far from 5 %.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from winnow.errors import InputError
from winnow.study.claims import Claim
from winnow.study.distributions import student_upper
from winnow.study.noise import Prior, moments
from winnow.study.observations import Observations
from winnow.study.verdict import DecisionRule, judge_claims

SPLITS = 400
"""Splits judged by default: a rate of 5 % is then known to about 1 %, as far as the seeds are independent."""


@dataclass(frozen=True)
class SplitHalf:
    """How often equal halves were called different."""

    runs: int
    """Runs of the baseline that did not diverge."""
    n: int
    """Seeds per half."""
    splits: int
    distinct: int
    """Ways in which the runs can be split: few mean that the rates rest on little."""
    alpha: float
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    """Share of the splits called different (either way), by method; `winnow` is the study's own rule."""

    @property
    def error(self) -> float:
        """Binomial standard deviation of a rate of alpha over the splits that can differ."""
        return math.sqrt(self.alpha * (1 - self.alpha) / min(self.splits, self.distinct))

    @property
    def calibrated(self) -> bool:
        """Whether the study's own rule errs no more often than declared, as far as this check can tell."""
        return self.rates["winnow"] <= self.alpha + 3 * self.error


def split_half(
    values: Sequence[float],
    n: int | None = None,
    *,
    rule: DecisionRule | None = None,
    prior: Prior | None = None,
    splits: int = SPLITS,
    seed: int = 0,
) -> SplitHalf:
    """Judge random halves of a baseline's values.

    n: seeds per half; None = half of the runs, at most 5. prior: the ledger's, from other arms. Raises InputError
    with fewer than 4 runs, or where two halves of n do not fit.
    """
    if len(values) < 4:
        raise InputError(f"the baseline has {len(values)} runs, a check needs 4", mend="run more seeds of it")
    n = n if n is not None else min(5, len(values) // 2)
    if n < 2 or 2 * n > len(values):
        raise InputError(f"{len(values)} runs do not make two halves of {n}", key="--n", mend="give 2 to half of them")
    rule = (rule or DecisionRule()).replace({"paired": False, "correction": "none"})
    methods: dict[str, Callable[[list[float], list[float]], bool]] = {
        "winnow": lambda a, b: _judged_different(a, b, rule, prior),
        "Welch t test": lambda a, b: _welch(a, b, rule.alpha),
        "1 sd bars do not overlap": _bars_apart,
        "the best seed wins": lambda a, b: min(a) != min(b),
    }
    draws = random.Random(seed)
    hits = dict.fromkeys(methods, 0)
    for _ in range(splits):
        drawn = draws.sample(list(values), 2 * n)
        for name, differ in methods.items():
            hits[name] += differ(drawn[:n], drawn[n:])
    distinct = math.comb(len(values), n) * math.comb(len(values) - n, n) // 2
    rates = {name: count / splits for name, count in hits.items()}
    return SplitHalf(len(values), n, splits, distinct, rule.alpha, rates)


def _judged_different(a: list[float], b: list[float], rule: DecisionRule, prior: Prior | None) -> bool:
    observed = Observations({"a": dict(enumerate(a)), "b": dict(enumerate(b))}, "value")
    claims = [Claim(id=kind, kind=kind, arms=("a", "b"), metric="value") for kind in ("better", "worse")]
    return any(verdict.status == "supported" for verdict in judge_claims(claims, observed, rule, prior=prior))


def _welch(a: list[float], b: list[float], alpha: float) -> bool:
    (mean_a, var_a), (mean_b, var_b) = moments(a), moments(b)
    error = var_a / len(a) + var_b / len(b)
    if error == 0:
        return mean_a != mean_b
    degrees = error**2 / ((var_a / len(a)) ** 2 / (len(a) - 1) + (var_b / len(b)) ** 2 / (len(b) - 1))
    return abs(mean_a - mean_b) / math.sqrt(error) > student_upper(alpha / 2, degrees)


def _bars_apart(a: list[float], b: list[float]) -> bool:
    (mean_a, var_a), (mean_b, var_b) = moments(a), moments(b)
    return abs(mean_a - mean_b) > math.sqrt(var_a) + math.sqrt(var_b)

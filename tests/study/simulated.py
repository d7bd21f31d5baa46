"""Simulated studies for the calibration suite: known effects, noise and correlation through the real judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from winnow.study.claims import Claim, parse_claim
from winnow.study.noise import Prior
from winnow.study.observations import Observations, Seed
from winnow.study.verdict import DecisionRule, judge_claims

LOOKS = (3, 5, 8)
LEDGER = Prior(variance=1.0, degrees=12.0, arms=60)
"""What a large ledger of arms with sd 1 says."""
OF_TRUE_NOISE = 49
"""Arms' true variances vary like scaled inverse chi-squared on this many degrees of freedom (the 347 real runs)."""


@dataclass(frozen=True)
class Design:
    """One simulated study, repeated. Effects and sd by arm (control first), in seed sd; the metric is `m`."""

    claims: tuple[str, ...]
    effects: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    paired: bool = True
    rho: float = 0.8
    sds: tuple[float, ...] = ()
    looks: tuple[int, ...] = LOOKS
    alpha: float = 0.05
    correction: str = "none"
    ledger: bool = True
    heavy: bool = False
    """Student's t on 3 degrees of freedom, scaled to sd 1, in place of the normal."""
    lonely: tuple[int, ...] = ()
    """Arms whose seeds are not shared with the others."""
    open_ended: bool = False
    """Judged by the e-process after every seed up to the last look's."""
    varying: bool = False
    """Draw each arm's true variance anew, as in the real ledger."""


@dataclass
class Rates:
    """Counts of statuses by claim over `studies` studies; `all_statuses` keeps whole studies for familywise rates."""

    studies: int
    all_statuses: list[dict[str, str]] = field(default_factory=list)
    intervals: list[tuple[float, float]] = field(default_factory=list)
    """Of the first claim, as it is read."""

    def rate(self, status: str, claim: str = "h0") -> float:
        return sum(each[claim] == status for each in self.all_statuses) / self.studies

    def missed(self, truth: float) -> float:
        """Share of the first claim's intervals that do not hold the truth."""
        return sum(not low <= truth <= high for low, high in self.intervals) / self.studies

    def any(self, wrong: dict[str, str]) -> float:
        """Share of studies with at least one of these (claim, status)."""
        return sum(any(each[c] == s for c, s in wrong.items()) for each in self.all_statuses) / self.studies

    def counts(self, claim: str = "h0") -> Counter[str]:
        return Counter(each[claim] for each in self.all_statuses)


def claims_of(design: Design) -> tuple[Claim, ...]:
    return tuple(parse_claim(f"h{place}", text) for place, text in enumerate(design.claims))


def draw(design: Design, generator: np.random.Generator) -> Observations:
    """One study's observations: control, a1, a2, ..."""
    count, seeds = len(design.effects), design.looks[-1]
    if design.heavy:
        noise = generator.standard_t(3, (count + 1, seeds)) / 3**0.5
    else:
        noise = generator.standard_normal((count + 1, seeds))
    values = design.rho**0.5 * noise[0] + (1 - design.rho) ** 0.5 * noise[1:] if design.paired else noise[1:]
    for arm in design.lonely:
        values[arm] = noise[1 + arm]
    sds: np.ndarray | Sequence[float] = design.sds or np.ones(count)
    if design.varying:
        sds = np.sqrt(OF_TRUE_NOISE / generator.chisquare(OF_TRUE_NOISE, count))
    values = values * np.asarray(sds)[:, None] + np.asarray(design.effects)[:, None]
    names = ["control", *(f"a{k}" for k in range(1, count))]
    table: dict[str, dict[Seed, float | None]] = {
        name: dict(enumerate(row)) for name, row in zip(names, values.tolist(), strict=True)
    }
    return Observations(table, "m", control="control")


def simulate(design: Design, studies: int, seed: int = 0) -> Rates:
    """Judge many studies of one design."""
    generator = np.random.default_rng(seed)
    claims = claims_of(design)
    rule = DecisionRule.model_validate(
        {
            "alpha": design.alpha,
            "paired": design.paired,
            "correction": design.correction,
            "open_ended": design.open_ended,
        }
    )
    prior = LEDGER if design.ledger and not design.paired else None
    found = Rates(studies)
    for _ in range(studies):
        verdicts = judge_claims(claims, draw(design, generator), rule, design.looks, prior=prior)
        found.all_statuses.append({verdict.claim.id: verdict.status for verdict in verdicts})
        first = verdicts[0]
        if first.low is not None and first.high is not None:
            found.intervals.append((first.low, first.high))
    return found


def slack(rate: float, studies: int, deviations: float = 4.0) -> float:
    """Binomial standard deviations of an estimated rate."""
    return deviations * (rate * (1 - rate) / studies) ** 0.5

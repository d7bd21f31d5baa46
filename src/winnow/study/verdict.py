"""Verdicts: supported, refuted, undecided or invalid, by the rule that was written before the runs.

`judge_claims` is a function of the observations alone: seeds in declared order, looks in order, each claim decided at
its first crossing. What each rule is stands in `evidence` (the decision table), `intervals` (noise), `boundaries`
(looks) and `corrections` (several claims); `Verdict.numbers` holds every number that was used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from winnow.config import Config
from winnow.errors import InputError
from winnow.study.claims import Claim, Status
from winnow.study.corrections import Correction, Decision, Levels, decide
from winnow.study.noise import Prior
from winnow.study.observations import Observations
from winnow.study.planning import more_seeds
from winnow.study.report import Shown, explain, numbers, shown
from winnow.study.sequential import Pair, Sequencer


class DecisionRule(Config):
    """How a study decides. Part of the plan: changed after a result, it makes the claims exploratory."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability of any wrong verdict among the confirmatory claims (two-sided; half on each side)."""
    correction: Correction = "holm"
    """Several claims: `holm`; `screen` = Benjamini-Hochberg, to be confirmed on fresh seeds; `none`."""
    paired: bool = True
    """Arms share seeds, so that differences are taken seed by seed. False: two independent samples."""
    screen_rate: float = Field(default=0.1, gt=0, lt=0.5)
    """False discovery rate of a screen."""
    open_ended: bool = False
    """No last look: an e-process after every seed. Valid whenever one stops, and dearer than declared looks."""


Answer = Literal[Status, "withdrawn"]
"""How a claim stands: a judgement, or that its study has been replaced by another."""
Interval = tuple[float | None, float | None, float | None]


class Verdict(Config):
    """What a study says of one claim. Effects are A minus B, in the metric's units and with its sign."""

    claim: Claim
    status: Answer
    reason: str
    """One line for people."""
    effect: float | None
    """Estimate at the look that is judged; of several pairs the deciding one; Kendall's tau for `proxy`."""
    low: float | None
    """Lower end of the interval that is read; None where there is none yet."""
    high: float | None
    n: int
    """Runs per arm that the interval rests on (pairs when paired)."""
    look: int
    """1 = the first look; 0 = none reached."""
    looks: tuple[int, ...]
    """Declared seeds at each look; empty when open-ended."""
    rho: float | None
    """Correlation of the two arms over common seeds."""
    sd: float | None
    """Seed standard deviation of the two arms, pooled."""
    effect_in_sd: float | None
    more_seeds: int | None
    """Seeds per arm that decide if the trend holds; None: decided, or none in sight."""
    budget: str
    """At which budget the verdict holds, for example "at 0.4 M tokens, lr 4e-3"."""
    exploratory: bool
    """Judged outside the family of confirmatory claims."""
    expected: bool
    """The status is the one the author expects (by default: anything but invalid)."""
    smaller_than_smallest: bool
    """Supported, yet shown to be smaller than the smallest effect of interest."""
    notes: tuple[str, ...]
    """Warnings and labels, one line each."""
    numbers: dict[str, Any]
    """Every number behind the verdict."""

    def pair_intervals(self) -> dict[Pair, Interval]:
        """Of each pair that the claim compares: effect, lower and upper end, A minus B; None where there is none."""
        if len(self.claim.pairs) == 1:
            return {self.claim.pairs[0]: (self.effect, self.low, self.high)}
        found: dict[Pair, Interval] = dict.fromkeys(self.claim.pairs, (None, None, None))
        for row in self.numbers.get("pairs", []):
            effect, half_width = row["effect"], row["half_width"]["support"]
            found[tuple(row["pair"])] = (
                (effect, None, None)
                if effect is None or half_width is None
                else (effect, effect - half_width, effect + half_width)
            )
        return found


def judge_claims(
    claims: Iterable[Claim],
    observations: Observations | Mapping[str, Observations],
    rule: DecisionRule | None = None,
    looks: tuple[int, ...] | None = None,
    *,
    prior: Prior | Mapping[str, Prior] | None = None,
    invalid: Mapping[str, str] | None = None,
    budget: str | Mapping[str, str] = "",
    twins: Collection[Pair] = (),
) -> tuple[Verdict, ...]:
    """A verdict for each claim, in order.

    observations: one metric's, or by metric. looks: declared seeds per arm at each look, rising; None: one look at
    everything there is. prior: the noise ledger's word, from other arms than these (by metric, or for all); used by
    unpaired designs. invalid: reasons by claim id or arm; such claims get no verdict and such arms lend no noise.
    budget: printed with each verdict; by claim id where claims have different ones. twins: pairs of arms that are
    the same by construction, in the claims' order: equal values at every seed are then a result and no defect.

    Raises InputError for looks that do not rise and for metrics without observations.
    """
    rule = rule or DecisionRule()
    court = _Court(tuple(claims), observations, rule, looks, prior, invalid or {}, twins)
    budgets = dict.fromkeys((claim.id for claim in court.claims), budget) if isinstance(budget, str) else budget
    return tuple(_verdict(claim, court, budgets.get(claim.id, "")) for claim in court.claims)


class _Court:
    """Claims, how their observations are read, and what was decided."""

    def __init__(
        self,
        claims: tuple[Claim, ...],
        observations: Observations | Mapping[str, Observations],
        rule: DecisionRule,
        looks: tuple[int, ...] | None,
        prior: Prior | Mapping[str, Prior] | None,
        invalid: Mapping[str, str],
        twins: Collection[Pair],
    ) -> None:
        self.claims, self.rule = claims, rule
        self.looks = checked_looks(looks, rule)
        by_metric = {observations.metric: observations} if isinstance(observations, Observations) else observations
        self.sequencers: dict[str, Sequencer] = {}
        for metric, observed in by_metric.items():
            control = observed.control if observed.control in observed.values else None
            beside_control = [(arm, control) for arm in observed.values if control is not None and arm != control]
            self.sequencers[metric] = Sequencer(
                observed,
                self.looks,
                paired=rule.paired,
                prior=prior.get(metric) if isinstance(prior, Mapping) else prior,
                pairs=[*beside_control, *(pair for claim in claims if claim.metric == metric for pair in claim.pairs)],
                excluded=[name for name in invalid if name in observed.values],
                twins=twins,
            )
        self.invalid: dict[str, str] = {}
        for claim in claims:
            if claim.metric not in self.sequencers:
                raise InputError(f"there are no values of {claim.metric!r}", key=f"claims.{claim.id}")
            reason = _why_invalid(claim, self.sequencers[claim.metric], invalid)
            if reason is not None:
                self.invalid[claim.id] = reason
        self.decisions = self._decide()

    def _decide(self) -> dict[str, Decision]:
        # Invalid claims still count: the family is what was declared, not what turned out well.
        family = max(1, sum(claim.confirmatory for claim in self.claims))
        stages = {
            claim.id: self.sequencers[claim.metric].evidence(claim)
            for claim in self.claims
            if claim.id not in self.invalid
        }
        return decide(
            stages,
            self.rule.alpha,
            self.rule.correction,
            family,
            last=len(self.looks) - 1 if self.looks else 0,
            rate=self.rule.screen_rate,
            exploratory={claim.id for claim in self.claims if not claim.confirmatory},
            on_stage=self._reach,
        )

    def _reach(self, stage: int, still_open: Collection[str]) -> None:
        """Before a stage is read: the arms of claims that are still open have its seeds, others none more."""
        arms = {arm for claim in self.claims if claim.id in still_open for arm in claim.all_arms}
        for sequencer in self.sequencers.values():
            sequencer.reach(stage, arms)


def checked_looks(looks: tuple[int, ...] | None, rule: DecisionRule) -> tuple[int, ...] | None:
    """The looks that a rule reads: none where it is open-ended, the last one of a screen. Raises InputError."""
    if rule.open_ended:
        return ()
    if looks is None:
        return None
    if not looks or looks[0] < 1 or any(b <= a for a, b in pairwise(looks)):
        raise InputError(f"looks {list(looks)} do not rise from 1", key="looks", mend="for example [3, 5, 8]")
    # A screen is read once.
    return looks[-1:] if rule.correction == "screen" else looks


def _why_invalid(claim: Claim, sequencer: Sequencer, invalid: Mapping[str, str]) -> str | None:
    for name in (claim.id, *claim.all_arms):
        if name in invalid:
            return invalid[name]
    pair = sequencer.identical(claim)
    if pair is None:
        return None
    return f"{pair[0]} and {pair[1]} gave identical values at every seed: what differs between them had no effect"


def _verdict(claim: Claim, court: _Court, budget: str) -> Verdict:
    sequencer, rule, looks = court.sequencers[claim.metric], court.rule, court.looks
    decision, invalid = court.decisions.get(claim.id), court.invalid.get(claim.id)
    stages = {stage.index: stage for stage in sequencer.stages(claim)}
    status: Status = "invalid" if decision is None else decision.status
    stage = None if decision is None or decision.stage is None else stages[decision.stage]
    read: Shown | None = None
    levels = Levels(rule.alpha, rule.alpha)
    if stage is not None and decision is not None:
        levels = decision.levels.get(stage.index, levels)
        read = shown(claim, sequencer, stage, levels, status)
    forecast = None
    if status == "undecided" and stage is not None and read is not None:
        forecast = more_seeds(read.evidence, stage, looks, levels.support, levels.refute, sequencer.paired)
    smaller = status == "supported" and read is not None and read.evidence.smaller_than_smallest(levels.refute)
    declared = (stage.last,) if looks is None and stage is not None else looks or ()
    look = 0 if stage is None else stage.index + 1
    reason, notes = explain(
        claim, sequencer, status, invalid, read, stage, declared, forecast, smaller=smaller, budget=budget,
        screen=rule.correction == "screen",
    )  # fmt: skip
    return Verdict(
        claim=claim,
        status=status,
        reason=reason,
        effect=None if read is None else read.effect,
        low=None if read is None else read.low,
        high=None if read is None else read.high,
        n=0 if read is None else read.n,
        look=look,
        looks=declared,
        rho=None if read is None else read.rho,
        sd=None if read is None else read.sd,
        effect_in_sd=None if read is None else read.effect_in_sd,
        more_seeds=None if forecast is None else forecast.seeds,
        budget=budget,
        exploratory=not claim.confirmatory,
        expected=status == claim.expect if claim.expect else status != "invalid",
        smaller_than_smallest=smaller,
        notes=notes,
        numbers=numbers(claim, sequencer, rule.model_dump(), decision, stage, read, forecast),
    )

"""Several claims in one study: who may be decided at which error level, look by look.

`holm`, the default. Every claim can go wrong in two ways: supported though false, refuted though true. Each way is a
family of its own with half of alpha. In the family of supports a claim is tested at alpha / (m - supported), m the
number of confirmatory claims and `supported` those already supported; in the family of refutations at
alpha / (m - refuted). (Two-sided levels: each end of an interval errs with half of it.)

Why this is valid: at a fixed level the multipliers of all looks together bound one claim's error. The level of a
family grows only with its own rejections, so within each family the procedure rejects no more than the closed test
built from Bonferroni group-sequential tests of every intersection (Maurer and Bretz 2013; it holds because the spent
error alpha f² grows with alpha at every look). The probability of any false support is at most alpha/2 and of
any false refutation of an ordered claim at most alpha/2. One count of all decided claims for both families would not
do: four claims with no effect, easily refuted, would each free error for a false support of the others.

A claim is decided at its first crossing and stays decided. Everything is a function of the data in their declared
order, not of when somebody looked.

`none`: every claim at alpha. `screen`: Benjamini-Hochberg at rate q over the claims, read once, at the last look.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from winnow.study.evidence import Evidence

Correction = Literal["holm", "none", "screen"]
Stages = Mapping[int, Evidence]
"""A claim's evidence by stage: looks are 0, 1, ...; open-ended stages follow."""


@dataclass(frozen=True)
class Levels:
    """Two-sided error levels at which the two ends of an interval are read."""

    support: float
    refute: float


@dataclass(frozen=True)
class Decision:
    """Where a claim stands: its status, the stage that shows it (None: none reached) and the levels by stage."""

    status: Literal["supported", "refuted", "undecided"]
    stage: int | None
    levels: Mapping[int, Levels]


def decide(
    claims: Mapping[str, Stages],
    alpha: float,
    correction: Correction,
    family: int,
    *,
    last: int,
    rate: float,
    exploratory: Collection[str] = (),
    on_stage: Callable[[int, Collection[str]], None] = lambda stage, still_open: None,
) -> dict[str, Decision]:
    """Decide every claim.

    family: m, how many claims were declared. last: the stage at which a screen is read. exploratory: claims outside
    the family, judged at the plain level. on_stage: told of each stage before it is read, with the claims that are
    still open: what their arms have run by then is known from this alone.
    """
    if correction == "screen":
        members = {name: stages for name, stages in claims.items() if name not in exploratory}
        rest = {name: stages for name, stages in claims.items() if name in exploratory}
        screened = {name: _screened(name, members, family, last, rate) for name in members}
        return {**screened, **decide(rest, alpha, "none", family, last=last, rate=rate, exploratory=exploratory)}
    open_claims = dict(claims)
    levels: dict[str, dict[int, Levels]] = {name: {} for name in claims}
    decided: dict[str, Decision] = {}
    supported = refuted = 0
    plain = Levels(alpha, alpha)
    for stage in sorted({stage for stages in claims.values() for stage in stages}):
        on_stage(stage, open_claims.keys())
        while True:
            # All claims of a round are read at the same levels, so that their order does not matter.
            now = plain
            if correction == "holm":
                now = Levels(alpha / max(1, family - supported), alpha / max(1, family - refuted))
            found: dict[str, Literal["supported", "refuted"]] = {}
            for name, stages in open_claims.items():
                if stage not in stages:
                    continue
                level = plain if name in exploratory else now
                levels[name][stage] = level
                if stages[stage].supported(level.support):
                    found[name] = "supported"
                elif stages[stage].refuted(level.refute):
                    found[name] = "refuted"
            for name, status in found.items():
                decided[name] = Decision(status, stage, levels[name])
                del open_claims[name]
            confirmed = [status for name, status in found.items() if name not in exploratory]
            supported += confirmed.count("supported")
            refuted += confirmed.count("refuted")
            if not confirmed or correction == "none":
                break
    for name, stages in open_claims.items():
        decided[name] = Decision("undecided", max(stages, default=None), levels[name])
    return {name: decided[name] for name in claims}


def _screened(name: str, claims: Mapping[str, Stages], family: int, last: int, rate: float) -> Decision:
    """Benjamini-Hochberg: the largest k for which k claims pass one-sided level rate·k/m."""
    read = {other: stages[last] for other, stages in claims.items() if last in stages}
    levels = Levels(2 * rate / family, 2 * rate / family)
    if name not in read:
        reached = max(claims[name], default=None)
        return Decision("undecided", reached, {} if reached is None else {reached: levels})
    passing = {"support": 0, "refute": 0}
    for k in range(family, 0, -1):
        level = 2 * rate * k / family
        if not passing["support"] and sum(each.supported(level) for each in read.values()) >= k:
            passing["support"] = k
        if not passing["refute"] and sum(each.refuted(level) for each in read.values()) >= k:
            passing["refute"] = k
    levels = Levels(*(2 * rate * max(1, k) / family for k in passing.values()))
    if passing["support"] and read[name].supported(levels.support):
        return Decision("supported", last, {last: levels})
    if passing["refute"] and read[name].refuted(levels.refute):
        return Decision("refuted", last, {last: levels})
    return Decision("undecided", last, {last: levels})

"""The same comparison in several studies: where verdicts agree, contradict, or depend on the budget. Needs no torch.

Two comparisons are the same when they read one metric on one pair of arms: arms that resolved to the same settings on
the same data, leaving out what is budget (steps, tokens of an update, warm-up, rate, the step at which the metric is
read) and what changes no result (how a batch is split, when to evaluate). A budget in which the two arms differ is
what is compared, and stays. Names of arms, studies and files do not matter, seeds neither.

Two statements conflict when their intervals lie on opposite sides of 0, when what they assert cannot both hold, or when
one claim is supported here and refuted there. At one budget that is a contradiction, at two the effect depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

from winnow.config import digest
from winnow.study.claims import Claim
from winnow.study.compare import Comparison
from winnow.study.observations import Better
from winnow.study.verdict import Interval, Verdict

Kind = Literal["contradiction", "budget", "agreement", "open"]
KINDS: tuple[Kind, ...] = ("contradiction", "budget", "agreement", "open")
BUDGET = (("train", "steps"), ("train", "tokens_per_update"), ("train", "warmup"), ("train", "lr"))
WITHOUT_EFFECT = (
    ("train", "micro_batch"),
    ("train", "accumulation"),
    ("train", "checkpoint_every"),
    ("train", "keep"),
    ("evaluation", "every"),
    ("evaluation", "inside"),
)
Range = tuple[float, float]


@dataclass(frozen=True)
class Statement:
    """What one verdict says of a comparison; effect and interval are `one` minus `other`, in the metric's own sign."""

    place: str
    """Where the study stands: a file."""
    study: str
    claim: str
    text: str
    status: str
    exploratory: bool
    one: str
    """The arm's name in this study."""
    other: str
    effect: float | None
    low: float | None
    high: float | None
    budget: str
    """In words, for example "at 0.13 M parameters, 0.41 M tokens, lr 0.004"."""
    budget_key: str
    """Equal for equal budgets."""
    proposition: str
    """Equal for claims that say the same of the pair; empty for a claim on more than two arms."""
    asserted: Range | None
    """Where the difference lies, if the verdict is right; None: it says nothing of it."""
    turned: bool
    """Whether the claim itself speaks of `other` minus `one`."""

    def turn(self) -> Statement:
        """The same said of `other` minus `one`."""
        effect, low, high = _negated((self.effect, self.low, self.high))
        asserted = None if self.asserted is None else (-self.asserted[1], -self.asserted[0])
        return replace(
            self, one=self.other, other=self.one, effect=effect, low=low, high=high, asserted=asserted,
            turned=not self.turned,
        )  # fmt: skip


@dataclass(frozen=True)
class SameComparison:
    """One comparison, and everything that studies say of it."""

    metric: str
    kind: Kind
    statements: tuple[Statement, ...]
    """All of the same difference: that of which the first claim speaks."""
    compatible: bool
    """Of conflicts: whether one effect would fit all intervals, so that only the words differ."""


def same_comparisons(found: Iterable[tuple[str, Comparison]]) -> tuple[SameComparison, ...]:
    """Comparisons that at least two studies make, contradictions first. found: the place of each study, and the study.

    Verdicts that are invalid or withdrawn say nothing and are left out.
    """
    groups: dict[str, tuple[str, list[Statement]]] = {}
    for place, comparison in found:
        for verdict in comparison.verdicts:
            if verdict.status in ("invalid", "withdrawn"):
                continue
            for key, statement in _statements(place, comparison, verdict):
                groups.setdefault(key, (verdict.claim.metric, []))[1].append(statement)
    several = [
        _judged(metric, statements)
        for metric, statements in groups.values()
        if len({(each.place, each.study) for each in statements}) > 1
    ]
    return tuple(sorted(several, key=lambda each: KINDS.index(each.kind)))


def _judged(metric: str, statements: Sequence[Statement]) -> SameComparison:
    kind: Kind = "open"
    conflicts: list[tuple[Statement, Statement]] = []
    for one, other in combinations(statements, 2):
        if conflict(one, other):
            conflicts.append((one, other))
            kind = "contradiction" if one.budget_key == other.budget_key or kind == "contradiction" else "budget"
    decided = {(each.place, each.study) for each in statements if each.status != "undecided"}
    if not conflicts and len(decided) > 1:
        kind = "agreement"
    compatible = bool(conflicts) and all(_overlap(one, other) for one, other in conflicts)
    shown = [each.turn() for each in statements] if statements[0].turned else statements
    return SameComparison(metric, kind, tuple(shown), compatible)


def conflict(one: Statement, other: Statement) -> bool:
    """Whether two statements on the same comparison cannot stand side by side as they are."""
    if _side(one) * _side(other) < 0:
        return True
    if one.proposition and one.proposition == other.proposition and {one.status, other.status} == _OPPOSITE:
        return True
    if one.asserted is None or other.asserted is None:
        return False
    return max(one.asserted[0], other.asserted[0]) >= min(one.asserted[1], other.asserted[1])


_OPPOSITE = {"supported", "refuted"}


def _side(statement: Statement) -> int:
    """-1 or 1 where the interval excludes 0."""
    if statement.low is None or statement.high is None:
        return 0
    return 1 if statement.low > 0 else -1 if statement.high < 0 else 0


def _overlap(one: Statement, other: Statement) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return max(one.low, other.low) <= min(one.high, other.high)


def _statements(place: str, comparison: Comparison, verdict: Verdict) -> Iterable[tuple[str, Statement]]:
    """The comparisons of a claim, each with the key by which the same one is found elsewhere."""
    claim = verdict.claim
    observed = comparison.observations.get(claim.metric)
    better: Better = "lower" if observed is None else observed.better
    for (a, b), interval in verdict.pair_intervals().items():
        meant = [_settings(comparison, arm) for arm in (a, b)]
        if meant[0] is None or meant[1] is None or interval[0] is None:
            continue
        shared, (first, second) = _split(meant[0], meant[1])
        keys = [digest(first), digest(second)]
        turned = keys[0] > keys[1]
        budget = [shared, comparison.study.endpoint.step if claim.metric == comparison.study.endpoint.metric else None]
        effect, low, high = _negated(interval) if turned else interval
        yield (
            digest([claim.metric, *sorted(keys)]),
            Statement(
                place=place,
                study=comparison.study.id,
                claim=claim.id,
                text=claim.text,
                status=verdict.status,
                exploratory=verdict.exploratory,
                one=b if turned else a,
                other=a if turned else b,
                effect=effect,
                low=low,
                high=high,
                budget=verdict.budget,
                budget_key=digest(budget),
                proposition=_proposition(claim, turned),
                asserted=_asserted(verdict, better, turned),
                turned=turned,
            ),
        )


def _settings(comparison: Comparison, arm: str) -> dict[str, Any] | None:
    """What an arm is: its resolved settings and data; None where nobody knows any more, or yet."""
    study, plan = comparison.study, comparison.plan
    if study.runs == "recorded":
        record = next(iter(comparison.runs.get(arm, {}).values()), None)
        return None if record is None else {"config": record.config, "data": record.data}
    if arm not in plan.arms or arm in comparison.stale:
        return None
    planned = plan.arms[arm]
    return {"config": planned.identity, "data": planned.data, "sources": plan.sources}


def _split(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The budget that both arms share, and each arm without it."""
    shared: dict[str, Any] = {}
    arms: list[dict[str, Any]] = [{**arm, "config": dict(arm["config"])} for arm in (one, other)]
    for section, key in (*BUDGET, *WITHOUT_EFFECT):
        tables = [arm["config"].get(section) for arm in arms]
        if not all(isinstance(table, Mapping) for table in tables):
            continue
        values = [table.get(key) for table in tables]
        if values[0] != values[1]:
            continue
        if (section, key) in BUDGET:
            shared[f"{section}.{key}"] = values[0]
        for arm, table in zip(arms, tables, strict=True):
            arm["config"][section] = {name: value for name, value in table.items() if name != key}
    return shared, arms


def _negated(interval: Interval) -> Interval:
    effect, low, high = interval
    return (
        None if effect is None else -effect,
        None if high is None else -high,
        None if low is None else -low,
    )


def _proposition(claim: Claim, turned: bool) -> str:
    """The claim in one spelling: "A worse than B" is "B better than A"."""
    if len(claim.pairs) != 1 or claim.kind not in ("better", "worse", "equal"):
        return ""
    kind = {"better": "worse", "worse": "better"}.get(claim.kind, claim.kind) if turned else claim.kind
    return f"{kind} {claim.margin!r} {claim.smallest!r} {claim.within!r}"


def _asserted(verdict: Verdict, better: Better, turned: bool) -> Range | None:
    """The open range of one minus other that the verdict asserts; the decision table stands in `evidence`."""
    claim = verdict.claim
    if verdict.status not in _OPPOSITE or len(claim.pairs) != 1:
        return None
    if claim.kind == "equal":
        if verdict.status == "supported" and claim.within is not None:
            return -claim.within, claim.within
        found = (verdict.low, verdict.high)
        low, high = (-math.inf if found[0] is None else found[0]), (math.inf if found[1] is None else found[1])
    elif claim.kind in ("better", "worse"):
        # As if A were claimed to be better, and lower were better.
        if verdict.status == "supported":
            low, high = -math.inf, -claim.margin
        else:
            low, high = -(claim.margin or claim.smallest or 0.0), math.inf
        if (claim.kind == "worse") != (better == "higher"):
            low, high = -high, -low
    else:
        return None
    return (-high, -low) if turned else (low, high)

"""The order of a study's arms, and which differences in it are shown: letters, never an order alone.

Every pair of arms is tested on the endpoint with the study's own noise model, guard and declared looks
(`sequential`, `intervals`). Holm over all pairs: with m of them a pair differs once its interval, at two-sided level
alpha / (m - differing so far), leaves out 0; the first crossing counts. Equality of two means is the hypothesis, so
one family does; claims, which are supported and refuted at different margins, have two. The chance of any false
difference is at most alpha. Letters are always corrected, whatever the rule of the claims. Of independent samples the
noise is pooled over the study's arms; the ledger has no say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from winnow.records.run import RunRecord
from winnow.study.boundaries import prepare
from winnow.study.claims import Claim
from winnow.study.compare import Comparison, judged_looks
from winnow.study.evidence import Evidence
from winnow.study.letters import compact_letters
from winnow.study.needs import missing_runs
from winnow.study.sequential import Pair, Sequencer
from winnow.study.verdict import checked_looks

FEWEST_ARMS: Final = 3
"""Two arms have one difference, which the table gives with its interval."""
MOST_ARMS: Final = 50
SHARES: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1225)
"""Parts of alpha at which pairs are read: the next larger one, so that a study needs few multipliers."""


@dataclass(frozen=True)
class Ranking:
    """The arms that were compared, and what was found."""

    metric: str
    pairs: int
    """Tested."""
    letters: Mapping[str, str]
    """Of each arm that was compared; empty where there is no ranking."""
    different: tuple[Pair, ...]
    """Pairs that are shown to differ, the better arm first."""
    looks: tuple[int, ...]
    alpha: float
    paired: bool
    why: str = ""
    """Why there is no ranking; empty = there is one."""
    left_out: Mapping[str, str] | None = None
    """Arms that were not compared, and why."""

    @property
    def text(self) -> str:
        """What a reader of the letters must know, or why there are none."""
        if self.why:
            return f"No ranking: {self.why}."
        read = f"read at {', '.join(map(str, self.looks))} seeds" if self.looks else "read after every seed"
        design = "paired by seed" if self.paired else "independent samples"
        said = f"Arms that share a letter are not shown to differ in {self.metric}"
        said += f"; {len(self.different)} of {self.pairs} pairs do differ (Holm at {self.alpha:.2g}, {design}, {read})."
        left_out = "; ".join(f"{arm}: {why}" for arm, why in (self.left_out or {}).items())
        return f"{said} Not compared: {left_out}." if left_out else said

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "metric": self.metric,
            "letters": dict(self.letters),
            "different": [list(pair) for pair in self.different],
            "pairs": self.pairs,
            "alpha": self.alpha,
            "looks": list(self.looks),
            "why_not": self.why or None,
            "left_out": dict(self.left_out or {}),
        }


def shown_ranking(comparison: Comparison) -> Ranking | None:
    """The ranking that results show unasked: of a study with a grid, or with a claim of an order; None for others."""
    study = comparison.study
    ordered = study.grid is not None or any(claim.kind == "rank" for claim in study.claims)
    return ranking(comparison) if ordered and len(study.arms) >= FEWEST_ARMS else None


def ranking(comparison: Comparison) -> Ranking:
    """Letters of the arms of a study that is complete, on its endpoint."""
    study, rule = comparison.study, comparison.study.rule
    looks = checked_looks(judged_looks(study, comparison.plan), rule) or ()
    left_out = _left_out(comparison)
    arms = [arm for arm in study.arms if arm not in left_out]
    why = _why_not(comparison, arms)
    different: tuple[Pair, ...] = ()
    letters: Mapping[str, str] = {}
    if not why:
        observed = comparison.observations[study.endpoint.metric]
        reference = study.control if study.control in arms else arms[0]
        beside = [(arm, reference) for arm in arms if arm != reference]
        claimed = [pair for claim in study.claims if claim.metric == observed.metric for pair in claim.pairs]
        sequencer = Sequencer(observed, looks, paired=rule.paired, pairs=[*beside, *claimed], excluded=tuple(left_out))
        different = differing_pairs(sequencer, arms, rule.alpha)
        sets = [frozenset(pair) for pair in different]
        found = compact_letters(sorted(arms, key=lambda arm: _mean(sequencer, arm)), sets)
        why = "more groups than there are letters" if found is None else ""
        letters = found or {}
    n = len(arms)
    return Ranking(
        study.endpoint.metric, n * (n - 1) // 2, letters, different, looks, rule.alpha, rule.paired, why, left_out
    )


def differing_pairs(sequencer: Sequencer, arms: Sequence[str], alpha: float) -> tuple[Pair, ...]:
    """Pairs that are shown to differ, the better arm first, by Holm over all pairs and looks."""
    metric = sequencer.observations.metric
    claims = {pair: Claim(id="pair", kind="better", arms=pair, metric=metric) for pair in combinations(arms, 2)}
    evidence = {pair: sequencer.evidence(claim) for pair, claim in claims.items()}
    open_pairs = dict(evidence)
    found: list[Pair] = []
    for stage in sorted({stage for stages in evidence.values() for stage in stages}):
        sequencer.reach(stage, arms)
        while True:
            level = alpha / _share(len(claims) - len(found))
            read = {pair: stages[stage] for pair, stages in open_pairs.items() if stage in stages}
            _prepare(read.values(), alpha, len(claims) - len(found))
            crossed = [pair for pair, each in read.items() if _differs(each, level)]
            for one, other in crossed:
                better_first = read[one, other].contrasts[0].delta < 0
                found.append((one, other) if better_first else (other, one))
                del open_pairs[one, other]
            if not crossed:
                break
    return tuple(found)


def _differs(evidence: Evidence, level: float) -> bool:
    contrast = evidence.contrasts[0]
    return evidence.blocked is None and abs(contrast.delta) > contrast.half_width(level)


def _share(pairs: int) -> int:
    return next((share for share in SHARES if share >= pairs), pairs)


def _prepare(evidence: Any, alpha: float, pairs: int) -> None:
    """The multipliers of every level that the coming steps may ask for, by one simulation for each design."""
    levels = [alpha / share for share in SHARES if share <= _share(pairs)]
    spreads = (spread for each in evidence for contrast in each.contrasts for spread in contrast.spreads)
    for design in {spread.design for spread in spreads if not spread.open_ended}:
        prepare(design, levels)


def _mean(sequencer: Sequencer, arm: str) -> float:
    values = [value for value in sequencer.observations.of(arm).values() if value is not None]
    return sum(values) / len(values)


def _left_out(comparison: Comparison) -> dict[str, str]:
    """Arms that can have no place: those without a number, and those that were not what was written."""
    found: dict[str, str] = {}
    spoilt = {item.where: item.message for item in comparison.findings if item.severity == "invalid"}
    observed = comparison.observations[comparison.study.endpoint.metric].values
    for arm in comparison.study.arms:
        runs = comparison.runs.get(arm, {}).values()
        wrong = next((item.rule for record in runs for item in record.findings if item.severity == "invalid"), None)
        if wrong is not None or arm in spoilt:
            found[arm] = f"invalid, {wrong or spoilt[arm]}"
        elif runs and all(value is None for value in observed.get(arm, {}).values()):
            found[arm] = "every run diverged or measured nothing"
    return found


def _why_not(comparison: Comparison, arms: Sequence[str]) -> str:
    study = comparison.study
    recorded = len(comparison.recorded)
    missing = len(missing_runs(study, comparison.verdicts, comparison.recorded))
    if comparison.succession.replaced_by is not None:
        return "the study is withdrawn"
    if missing:
        return f"{recorded} of {recorded + missing} runs are recorded"
    if len(arms) < FEWEST_ARMS:
        return f"{len(arms)} arms can be compared, which is no order"
    if len(arms) > MOST_ARMS:
        return f"{len(arms)} arms, of which at most {MOST_ARMS} are compared pair by pair"
    records = [record for arm in arms for record in comparison.runs[arm].values()]
    if study.endpoint.metric != "val/bpb" and len({_validation(record) for record in records}) > 1:
        return "the arms were measured on different validation data"
    spoilt = [item for item in comparison.findings if item.severity == "invalid" and item.rule in _SPOILING]
    return spoilt[0].message if spoilt else ""


_SPOILING: Final = ("mixed-code", "not-comparable", "fact-unchanged")
"""Findings about several arms, after which their order means nothing."""


def _validation(record: RunRecord) -> str:
    return str(record.facts.get("val_digest"))

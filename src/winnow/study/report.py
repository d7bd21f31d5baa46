"""A verdict in words and in full numbers: the one-line reason, the notes, and what `winnow why` prints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from winnow.study.claims import Claim, Status
from winnow.study.corrections import Decision, Levels
from winnow.study.evidence import LOWEST_TAU, Evidence
from winnow.study.intervals import Contrast, correlation
from winnow.study.noise import moments
from winnow.study.ordering import rank_probabilities
from winnow.study.planning import Forecast, seeds_for
from winnow.study.sequential import Pair, Sequencer, Stage

SURE_OF_BEST = 0.95
"""Below this probability of being first no arm is called the best."""


@dataclass(frozen=True)
class Shown:
    """The numbers of the stage that a verdict shows, with the metric's own sign."""

    evidence: Evidence
    pair: Pair | None
    effect: float | None
    low: float | None
    high: float | None
    n: int
    rho: float | None
    sd: float | None
    effect_in_sd: float | None


def shown(claim: Claim, sequencer: Sequencer, stage: Stage, levels: Levels, status: Status) -> Shown:
    """Read one stage for display."""
    evidence = sequencer.at(claim, stage)
    place, low, high = evidence.interval(levels.support, levels.refute, refuted=status == "refuted")
    if not claim.pairs:
        middle = _finite(evidence.tau_quantile(0.5))
        n = min((len(values) for values in sequencer.kept(claim, stage).values()), default=0)
        return Shown(evidence, None, middle, _finite(low), _finite(high), n, None, None, None)
    pair = claim.pairs[place]
    a, b = sequencer.values(claim, pair, stage.seeds)
    flip = sequencer.observations.better == "higher"
    delta = evidence.contrasts[place].delta
    effect = _finite(-delta if flip else delta)
    low, high = (-high, -low) if flip else (low, high)
    sd = None
    if len(a) > 1 and len(b) > 1:
        sd = math.sqrt(((len(a) - 1) * moments(a)[1] + (len(b) - 1) * moments(b)[1]) / (len(a) + len(b) - 2))
    return Shown(
        evidence,
        pair,
        effect,
        _finite(low),
        _finite(high),
        min(len(a), len(b)),
        correlation(a, b) if sequencer.paired else None,
        sd,
        effect / sd if effect is not None and sd else None,
    )


def explain(
    claim: Claim,
    sequencer: Sequencer,
    status: Status,
    invalid: str | None,
    read: Shown | None,
    stage: Stage | None,
    looks: tuple[int, ...],
    forecast: Forecast | None,
    *,
    smaller: bool,
    screen: bool,
    budget: str,
) -> tuple[str, tuple[str, ...]]:
    """The reason, one line, and the notes."""
    notes = _notes(claim, sequencer, read, stage, looks, screen=screen)
    at_budget = f" {budget}" if budget else ""
    if status == "invalid":
        return f"invalid: {invalid}", notes
    have = sequencer.seeds(claim)
    if stage is None or read is None:
        wait = f"the first look is at {looks[0]}" if looks else "an open-ended study judges from 2 on"
        return f"undecided: {_seeds(have)} per arm so far, {wait}", notes
    where = f"at look {stage.index + 1} of {len(looks)}" if not stage.open_ended and len(looks) > 1 else (
        f"after {_seeds(read.n)}"
    )  # fmt: skip
    head = f"{status} {where}{at_budget}: "
    if read.evidence.blocked:
        return head + read.evidence.blocked, notes
    if read.low is None or read.high is None:
        return head + f"{_seeds(read.n)} per arm, which show no noise to judge by", notes
    if claim.kind == "proxy":
        return head + f"Kendall's tau in [{read.low:.2f}, {read.high:.2f}] where {LOWEST_TAU:g} is needed", notes
    digits = _digits(read.high - read.low)
    text = head + _difference(claim, read, read.low, read.high, digits)
    if status == "undecided":
        text += _outlook(forecast, digits)
    if smaller:
        text += f"; supported, smaller than {claim.smallest:g}"
    return text, notes


def _difference(claim: Claim, read: Shown, low: float, high: float, digits: int) -> str:
    assert read.pair is not None
    a, b = read.pair
    return f"{a} - {b} = {read.effect:+.{digits}f} {claim.metric}, interval [{low:+.{digits}f}, {high:+.{digits}f}]"


def _outlook(forecast: Forecast | None, digits: int) -> str:
    if forecast is None:
        return "; if the trend holds, no number of seeds in sight decides"
    more = f"{forecast.seeds} more seed{'s' if forecast.seeds != 1 else ''} per arm"
    where = f"half-width {forecast.half_width:.{digits}f} at {forecast.at}"
    return f"; if the trend holds, {more} decide ({where}{'' if forecast.declared else ', beyond the declared looks'})"


def _notes(
    claim: Claim, sequencer: Sequencer, read: Shown | None, stage: Stage | None, looks: tuple[int, ...], *, screen: bool
) -> tuple[str, ...]:
    notes: list[str] = []
    have = sequencer.seeds(claim)
    if claim.exploratory and claim.expect != "invalid":
        notes.append("exploratory: not corrected for several claims; confirm it on fresh seeds")
    elif screen:
        notes.append("screen: false discovery rate controlled, not the error of each claim; confirm on fresh seeds")
    if sequencer.looks is None and have > 1:
        notes.append("one look at all runs: valid if their number was fixed before looking")
    if have == 1:
        notes.append("one seed per arm: no noise can be estimated, so nothing can be decided")
    if claim.kind in ("better", "worse") and claim.smallest is None and claim.margin == 0:
        notes.append("no smallest effect of interest: refuted only if the opposite is shown, never for being too small")
    for arm in claim.all_arms:
        outcomes = sequencer.observations.of(arm)
        lost = [str(seed) for seed, value in outcomes.items() if value is None]
        if lost:
            notes.append(f"{arm}: diverged at seed {', '.join(lost)}, excluded from means")
        if sequencer.paired:
            common = sequencer.observations.common(claim.all_arms)
            alone = [str(seed) for seed in outcomes if seed not in common]
            if alone:
                notes.append(f"{arm}: seed {', '.join(alone)} has no partner and is not compared")
    if stage is not None and stage.open_ended and looks:
        notes.append(f"beyond the last declared look ({looks[-1]} seeds): judged by an e-process")
    elif stage is not None and stage.seeds is not None and have > stage.seeds:
        notes.append(f"{have - stage.seeds} later seeds per arm are shown, not judged")
    if read is not None and any(each.guard is not None and each.guard.fired for each in read.evidence.contrasts):
        notes.append("guard: noisier than the runs it borrows noise from, so the wider interval is used")
    return tuple(notes)


def numbers(
    claim: Claim,
    sequencer: Sequencer,
    rule: dict[str, Any],
    decision: Decision | None,
    stage: Stage | None,
    read: Shown | None,
    forecast: Forecast | None,
) -> dict[str, Any]:
    """Every number behind a verdict, as JSON data."""
    flip = sequencer.observations.better == "higher"
    found: dict[str, Any] = {
        "claim": claim.text,
        "better": sequencer.observations.better,
        "rule": rule,
        "values": {arm: _by_seed(sequencer, arm) for arm in claim.all_arms},
        "seeds_available": sequencer.seeds(claim),
    }
    prior = sequencer.prior
    if prior is not None and not sequencer.paired:
        found["ledger"] = {"sd": prior.sd, "d0": prior.degrees, "weight": prior.weight, "arms": prior.arms}
    if stage is None or read is None or decision is None:
        return found
    levels = decision.levels.get(stage.index)
    if levels is not None:
        found["levels"] = {"support": levels.support, "refute": levels.refute}
        found["pairs"] = [
            _pair_numbers(claim, sequencer, pair, contrast, stage, levels, flip=flip)
            for pair, contrast in zip(claim.pairs, read.evidence.contrasts, strict=False)
        ]
    past = [each for each in sequencer.stages(claim) if each.index <= stage.index]
    found["history"] = [_stage_numbers(claim, sequencer, each, decision) for each in past]
    if stage.seeds is not None and sequencer.seeds(claim) > stage.seeds:
        # Shown, not judged: an interval here would invite a second judgement.
        everything = Stage(stage.index, sequencer.seeds(claim), (1,), 1, open_ended=True)
        found["all_seeds"] = [
            {"pair": list(pair), "n": everything.seeds, "effect": _signed(sequencer, claim, pair, everything, flip)}
            for pair in claim.pairs
        ]
    if forecast is not None:
        found["forecast"] = asdict(forecast)
    open_still = decision is not None and decision.status == "undecided"
    if open_still and claim.smallest is not None and claim.pairs and read.evidence.contrasts:
        contrast = read.evidence.contrasts[0]
        if contrast.spreads:
            n = min(contrast.spreads[0].design.sizes[-1])
            sd = contrast.spreads[0].error * math.sqrt(n / (1 if sequencer.paired else 2))
            found["seeds_for_smallest"] = seeds_for(
                claim.smallest, sd, contrast.lent_weight, paired=sequencer.paired,
                alpha=levels.support if levels is not None else rule["alpha"],
            )  # fmt: skip
    if claim.kind in ("rank", "best"):
        kept = sequencer.kept(claim, stage)
        order = rank_probabilities([kept[arm] for arm in claim.arms], sequencer.paired)
        if order is not None:
            found["rank_probability"] = dict(zip(claim.arms, order, strict=True))
            found["best"] = [arm for arm, row in zip(claim.arms, order, strict=True) if row[0] >= SURE_OF_BEST]
    return found


def _pair_numbers(
    claim: Claim, sequencer: Sequencer, pair: Pair, contrast: Contrast, stage: Stage, levels: Levels, *, flip: bool
) -> dict[str, Any]:
    sign = -1 if flip else 1
    a, b = ([sign * value for value in values] for values in sequencer.values(claim, pair, stage.seeds))
    divergences = sequencer.divergences(claim, pair, stage.seeds)
    refute = levels.refute / len(claim.pairs)
    found: dict[str, Any] = {
        "pair": list(pair),
        "a": a,
        "b": b,
        "effect": _finite(sign * contrast.delta),
        "divergences": {**asdict(divergences), "p": divergences.p},
        "own": {"variance": _finite(contrast.own_variance), "degrees": contrast.own_degrees},
        "lent": None
        if contrast.lent_variance is None
        else {"variance": contrast.lent_variance, "weight": contrast.lent_weight},
        "guard": None if contrast.guard is None else {**asdict(contrast.guard), "fired": contrast.guard.fired},
        "half_width": {
            "support": _finite(contrast.half_width(levels.support)),
            "refute": _finite(contrast.half_width(refute)),
        },
        "errors": [
            {
                "noise": spread.name,
                "standard_error": spread.error,
                "degrees": spread.design.degrees(),
                "c_support": _finite(spread.factor(levels.support)),
                "c_refute": _finite(spread.factor(refute)),
            }
            for spread in contrast.spreads
        ],
    }
    if sequencer.paired:
        found["differences"] = [x - y for x, y in zip(a, b, strict=True)]
        found["rho"] = correlation(a, b)
        found["same"] = sum(x == y for x, y in zip(a, b, strict=True))
    return found


def _stage_numbers(claim: Claim, sequencer: Sequencer, stage: Stage, decision: Decision) -> dict[str, Any]:
    levels = decision.levels.get(stage.index)
    row: dict[str, Any] = {"look": stage.index + 1, "seeds": stage.seeds, "open_ended": stage.open_ended}
    if levels is None:
        return row
    read = shown(claim, sequencer, stage, levels, decision.status if stage.index == decision.stage else "undecided")
    row |= {"effect": read.effect, "low": read.low, "high": read.high, "n": read.n}
    row |= {"support_level": levels.support, "refute_level": levels.refute, "blocked": read.evidence.blocked}
    return row


def _signed(sequencer: Sequencer, claim: Claim, pair: Pair, stage: Stage, flip: bool) -> float | None:
    delta = sequencer.contrast(claim, pair, stage).delta
    return _finite(-delta if flip else delta)


def _by_seed(sequencer: Sequencer, arm: str) -> dict[str, float | None]:
    flip = sequencer.observations.better == "higher"
    return {
        str(seed): -value if flip and value is not None else value
        for seed, value in sequencer.observations.of(arm).items()
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _digits(width: float) -> int:
    """Decimals that show two significant digits of a half-width."""
    return 4 if width <= 0 else max(0, min(12, 1 - math.floor(math.log10(width / 2))))


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"

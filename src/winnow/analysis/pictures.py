"""The pictures of one study, from its comparison and the metrics in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from winnow.analysis.plots import (
    Contrast,
    Curve,
    curves_png,
    differences_png,
    draw_curves,
    draw_differences,
    drawing_style,
    paired,
)
from winnow.analysis.vector import svg_text
from winnow.config import digest
from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.study.claims import Claim
from winnow.study.compare import Comparison
from winnow.study.observations import Observations
from winnow.study.verdict import Verdict

UNITS = {
    "val/ce": "nats per token",
    "val/bpb": "bits per byte",
    "val/ppl": "per token",
    "val/error": "% of positions",
    "val/mask_error": "% of positions of answers",
    "val/sample_error": "% of texts",
}
_CURVES, _DIFFERENCES = 3, 2
"""Revisions of the two kinds of picture: raised when the same numbers are drawn in another way."""


def study_pictures(
    comparison: Comparison, store: RunStore, present: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """PNG bytes by file name: `<study>.curves.png`, and `<study>.differences.png` where claims compare pairs.

    present: pictures that exist already; one that was drawn from the same numbers is taken as it is. Empty where
    no run has a value yet; a lone value a run makes no curve.
    """
    study = comparison.study
    metric, title = study.endpoint.metric, study.question or study.id
    unit = UNITS.get(metric, "")
    found: dict[str, bytes] = {}
    if any(record.status == "finished" for by_seed in comparison.runs.values() for record in by_seed.values()):
        name = f"{study.plan_name}.curves.png"
        key = _key(_CURVES, [title, metric, study.control, _series(comparison, store)])
        taken = _taken(present, name, key)
        if taken is None:
            curves, x_label = loss_curves(comparison, store)
            if _drawable(curves):
                taken = curves_png(curves, study.control, metric, unit, title, x_label=x_label, key=key)
        if taken is not None:
            found[name] = taken
    contrasts = _compared(comparison)
    if contrasts:
        name = f"{study.plan_name}.differences.png"
        key = _key(_DIFFERENCES, [title, metric, [vars(contrast) for contrast in contrasts]])
        found[name] = _taken(present, name, key) or differences_png(contrasts, metric, unit, title, key=key)
    return found


@dataclass(frozen=True)
class Drawing:
    """A picture for a page: an `<svg>` element, whose colours follow the page's theme, and what its marks mean."""

    svg: str
    caption: str


def study_drawings(comparison: Comparison, store: RunStore) -> dict[str, Drawing]:
    """The pictures of `study_pictures` as SVG: `curves`, `differences`, where there is anything to draw."""
    study, metric = comparison.study, comparison.study.endpoint.metric
    unit, contrasts = UNITS.get(metric, ""), _compared(comparison)
    curves, x_label = loss_curves(comparison, store)
    found: dict[str, Drawing] = {}
    with drawing_style():
        if _drawable(curves):
            drawn = draw_curves(curves, study.control, metric, unit, x_label)
            found["curves"] = Drawing(svg_text(drawn, f"{study.plan_name}-curves"), drawn.caption)
        if contrasts:
            drawn = draw_differences(contrasts, metric, unit)
            found["differences"] = Drawing(svg_text(drawn, f"{study.plan_name}-differences"), drawn.caption)
    return found


def _drawable(curves: list[Curve]) -> bool:
    """Whether there is a line to draw: one value a run, as of what was measured once, is none."""
    return any(len(series) > 1 for curve in curves for series in curve.seeds.values())


def _compared(comparison: Comparison) -> list[Contrast]:
    """What the claims compare, or nothing where no pair has a value yet."""
    contrasts = [row for verdict in comparison.verdicts for row in _contrasts(verdict, comparison)]
    return contrasts if any(row.differences or row.effect is not None for row in contrasts) else []


def loss_curves(comparison: Comparison, store: RunStore) -> tuple[list[Curve], str]:
    """The endpoint's metric of every arm, and what it is drawn against.

    Training tokens; of a run that goes on from another one, with those that its weights had seen before. Where that
    leaves an arm nothing in common with the control, the run's own tokens. Steps for runs of other programs.
    """
    if not _counts_tokens(comparison):
        return _curves(comparison, store, lambda record, step: step), "steps"
    records = [record for by_seed in comparison.runs.values() for record in by_seed.values()]
    if not any("tokens_before" in record.facts for record in records):
        return _curves(comparison, store, _own_tokens), "training tokens"
    whole = _curves(comparison, store, lambda record, step: _before(record) + _own_tokens(record, step))
    base = next((curve for curve in whole if curve.arm == comparison.study.control), None)
    if base is None or all(any(paired(curve, base)) for curve in whole if curve.seeds):
        return whole, "training tokens, the parent's included"
    return _curves(comparison, store, _own_tokens), "training tokens since the start of the run"


def _curves(comparison: Comparison, store: RunStore, place: Callable[[RunRecord, int], float]) -> list[Curve]:
    """place: where on the axis a step of a run lies."""
    metric = comparison.study.endpoint.metric
    curves: list[Curve] = []
    for arm, by_seed in comparison.runs.items():
        seeds: dict[int, dict[float, float]] = {}
        for seed, record in by_seed.items():
            if record.status == "finished":
                rows = store.metrics(record.digest)
                seeds[seed] = {float(place(record, row["step"])): float(row[metric]) for row in rows if metric in row}
        diverged = sum(record.status == "diverged" for record in by_seed.values())
        curves.append(Curve(arm, seeds, f"{diverged} diverged" if diverged else ""))
    return curves


def _series(comparison: Comparison, store: RunStore) -> list[Any]:
    """What the curves are drawn from: every run's metrics by their digest, where the record has one, and its place.

    Reading the metrics of thousands of runs only to see that nothing has changed would take most of a command's time.
    """
    return [
        [
            arm,
            [
                [
                    seed,
                    record.status,
                    _tokens_per_step(record),
                    _first_step(record),
                    _before(record),
                    record.trace or store.metrics(record.digest),
                ]
                for seed, record in by_seed.items()
            ],
        ]
        for arm, by_seed in comparison.runs.items()
    ]


def _own_tokens(record: RunRecord, step: int) -> int:
    """Tokens that a run itself has trained on at a step."""
    return (step - _first_step(record)) * (_tokens_per_step(record) or 1)


def _first_step(record: RunRecord) -> int:
    """Where a run began to count: a resumed one goes on with its parent's steps."""
    if "tokens_before" not in record.facts:
        return 0
    return record.steps_done - int(record.facts["tokens"]) // (_tokens_per_step(record) or 1)


def _before(record: RunRecord) -> int:
    """Tokens that a run's weights had seen before it began."""
    return int(record.facts.get("tokens_before", 0))


def _tokens_per_step(record: RunRecord) -> int | None:
    train: Any = record.config.get("train")
    tokens = train.get("tokens_per_update") if isinstance(train, dict) else None
    return tokens if isinstance(tokens, int) else None


def _counts_tokens(comparison: Comparison) -> bool:
    records = [record for by_seed in comparison.runs.values() for record in by_seed.values()]
    return bool(records) and all(_tokens_per_step(record) for record in records)


def _contrasts(verdict: Verdict, comparison: Comparison) -> list[Contrast]:
    """One row per pair of arms that a claim compares."""
    claim = verdict.claim
    observed = comparison.observations.get(claim.metric)
    if observed is None:
        return []
    rows: list[Contrast] = []
    for number, ((one, other), (effect, low, high)) in enumerate(verdict.pair_intervals().items()):
        rows.append(
            Contrast(
                claim=claim.id if number == 0 else "",
                text=f"{one} - {other}",
                differences=differences(observed, one, other) if comparison.study.rule.paired else {},
                effect=effect,
                low=low,
                high=high,
                margin=_margin(claim, observed),
                smallest=claim.within if claim.kind == "equal" else claim.smallest,
                status=verdict.status,
            )
        )
    return rows


def differences(observed: Observations, one: str, other: str) -> dict[int | str, float]:
    """One arm less the other at every seed where both have a value, with the metric's own sign."""
    a, b = observed.values.get(one, {}), observed.values.get(other, {})
    found: dict[int | str, float] = {}
    for seed in observed.common([one, other]):
        mine, theirs = a[seed], b[seed]
        if mine is not None and theirs is not None:
            found[seed] = mine - theirs
    return found


def _margin(claim: Claim, observed: Observations) -> float:
    """Where on the axis the claimed margin lies: better by 0.01 means a difference below -0.01 of a loss."""
    better_is_less = (claim.kind == "better") == (observed.better == "lower")
    return -claim.margin if better_is_less else claim.margin


def _key(revision: int, inputs: Any) -> str:
    """Digest of everything that a picture shows."""
    return digest([revision, _spelled(inputs)])[:32]


def _spelled(value: Any) -> Any:
    """Plain JSON data: numbers by their repr, which NaN has too."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return [[_spelled(key), _spelled(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    return value


def _taken(present: Mapping[str, bytes] | None, name: str, key: str) -> bytes | None:
    """The picture that exists, where its own text says that it shows the same numbers."""
    data = (present or {}).get(name)
    return data if data is not None and key.encode() in data[:1024] else None

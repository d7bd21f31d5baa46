"""The pictures of one study, from its comparison and the metrics in the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.analysis.plots import Contrast, Curve, curves_png, differences_png
from winnow.config import digest
from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.study.claims import Claim
from winnow.study.compare import Comparison
from winnow.study.observations import Observations
from winnow.study.verdict import Verdict

UNITS = {"val/ce": "nats per token", "val/bpb": "bits per byte", "val/ppl": "per token"}
_REVISION = 2
"""Raised when the same numbers are drawn in another way."""


def study_pictures(
    comparison: Comparison, store: RunStore, present: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """PNG bytes by file name: `<study>.curves.png`, and `<study>.differences.png` where claims compare pairs.

    present: pictures that exist already; one that was drawn from the same numbers is taken as it is. Empty where
    no run has a value yet.
    """
    study = comparison.study
    metric, title = study.endpoint.metric, study.question or study.id
    unit = UNITS.get(metric, "")
    found: dict[str, bytes] = {}
    if any(record.status == "finished" for by_seed in comparison.runs.values() for record in by_seed.values()):
        name = f"{study.plan_name}.curves.png"
        x_label = "training tokens" if _counts_tokens(comparison) else "steps"
        key = _key([title, metric, study.control, x_label, _series(comparison, store)])
        taken = _taken(present, name, key)
        if taken is None:
            curves = loss_curves(comparison, store)
            if any(series for curve in curves for series in curve.seeds.values()):
                taken = curves_png(curves, study.control, metric, unit, title, x_label=x_label, key=key)
        if taken is not None:
            found[name] = taken
    contrasts = [row for verdict in comparison.verdicts for row in _contrasts(verdict, comparison)]
    if any(contrast.differences or contrast.effect is not None for contrast in contrasts):
        name = f"{study.plan_name}.differences.png"
        key = _key([title, metric, [vars(contrast) for contrast in contrasts]])
        found[name] = _taken(present, name, key) or differences_png(contrasts, metric, unit, title, key=key)
    return found


def loss_curves(comparison: Comparison, store: RunStore) -> list[Curve]:
    """The endpoint's metric of every arm against training tokens (steps, for runs of other programs)."""
    metric = comparison.study.endpoint.metric
    in_tokens = _counts_tokens(comparison)
    curves: list[Curve] = []
    for arm, by_seed in comparison.runs.items():
        seeds: dict[int, dict[float, float]] = {}
        for seed, record in by_seed.items():
            if record.status == "finished":
                scale = _tokens_per_step(record) or 1 if in_tokens else 1
                rows = store.metrics(record.digest)
                seeds[seed] = {float(row["step"] * scale): float(row[metric]) for row in rows if metric in row}
        diverged = sum(record.status == "diverged" for record in by_seed.values())
        curves.append(Curve(arm, seeds, f"{diverged} diverged" if diverged else ""))
    return curves


def _series(comparison: Comparison, store: RunStore) -> list[Any]:
    """What the curves are drawn from: every run's metrics by their digest, where the record has one.

    Reading the metrics of thousands of runs only to see that nothing has changed would take most of a command's time.
    """
    return [
        [
            arm,
            [
                [seed, record.status, _tokens_per_step(record), record.trace or store.metrics(record.digest)]
                for seed, record in by_seed.items()
            ],
        ]
        for arm, by_seed in comparison.runs.items()
    ]


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
    worked: dict[tuple[str, ...], Mapping[str, Any]] = {
        tuple(row["pair"]): row for row in verdict.numbers.get("pairs", [])
    }
    rows: list[Contrast] = []
    for number, (one, other) in enumerate(claim.pairs):
        effect, low, high = verdict.effect, verdict.low, verdict.high
        if len(claim.pairs) > 1:
            effect, low, high = _own_interval(worked.get((one, other)))
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


def _own_interval(row: Mapping[str, Any] | None) -> tuple[float | None, float | None, float | None]:
    """Effect and interval of one pair among several."""
    effect = None if row is None else row["effect"]
    half_width = None if row is None else row["half_width"]["support"]
    if effect is None or half_width is None:
        return effect, None, None
    return effect, effect - half_width, effect + half_width


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


def _key(inputs: Any) -> str:
    """Digest of everything that a picture shows."""
    return digest([_REVISION, _spelled(inputs)])[:32]


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

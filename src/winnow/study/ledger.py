"""The noise ledger of a store: every arm that was ever run with two seeds or more, whatever study it belonged to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

from winnow.config import digest
from winnow.records.run import RunRecord
from winnow.study.noise import ArmNoise, NoiseKey, NoiseLedger, arm_noise

FEWEST_COMMON_SEEDS = 3
FEWEST_DEGREES = 4
"""Below so many degrees of freedom in all, a correlation is as good as unknown."""


class Pairing(NamedTuple):
    """How alike runs of one seed are."""

    rho: float
    """var(a - b) = 2 sd^2 (1 - rho) over common seeds, with sd that of the seeds."""
    pairs: int
    """Pairs of arms that it was measured on."""


def ledger(records: Iterable[RunRecord], metrics: Iterable[str]) -> NoiseLedger:
    """The ledger of these records for these metrics. Failed and invalid runs say nothing about noise."""
    names = tuple(metrics)
    groups: dict[tuple[NoiseKey, str], dict[int | str, float | None]] = {}
    for record in records:
        if record.status not in ("finished", "diverged") or any(item.severity == "invalid" for item in record.findings):
            continue
        arm = arm_identity(record)
        for metric in names:
            if metric in record.final or record.status == "diverged":
                groups.setdefault((noise_key(record, metric), arm), {})[record.seed] = record.outcome(metric)
    lines: list[ArmNoise] = []
    for (key, arm), values in groups.items():
        line = arm_noise(key, arm, values)
        if line is not None:
            lines.append(line)
    return NoiseLedger(arms=tuple(sorted(lines, key=lambda line: (line.key.metric, line.arm))))


def pairing(records: Iterable[RunRecord], key: NoiseKey) -> Pairing | None:
    """The pairing correlation that arms of one study showed in runs of this key; None: too little known.

    rho = sum of (a - mean a)(b - mean b) / sum of ((a - mean a)^2 + (b - mean b)^2) / 2, over common seeds and pairs.
    Pairs that are identical at every seed are one experiment, and left out.
    """
    studies: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        value = record.outcome(key.metric) if record.status == "finished" and key.metric in record.final else None
        if value is not None and noise_key(record, key.metric) == key:
            arms = studies.setdefault(record.label.study, {})
            arms.setdefault(arm_identity(record), {})[record.seed] = value
    products, squares, degrees, pairs = 0.0, 0.0, 0, 0
    for arms in studies.values():
        for one, other in combinations(arms.values(), 2):
            common = sorted(one.keys() & other.keys())
            if len(common) < FEWEST_COMMON_SEEDS or all(one[seed] == other[seed] for seed in common):
                continue
            a, b = (_deviations([arm[seed] for seed in common]) for arm in (one, other))
            products += math.fsum(x * y for x, y in zip(a, b, strict=True))
            squares += math.fsum(x * x + y * y for x, y in zip(a, b, strict=True)) / 2
            degrees += len(common) - 1
            pairs += 1
    return Pairing(products / squares, pairs) if degrees >= FEWEST_DEGREES and squares > 0 else None


def _deviations(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def arm_identity(record: RunRecord) -> str:
    """Everything that a run is but its seed."""
    return digest({"config": record.config, "data": record.data, "sources": record.sources})


def noise_key(record: RunRecord, metric: str) -> NoiseKey:
    """Which runs share their noise with this one."""
    facts: Mapping[str, float | int | str] = record.facts
    return NoiseKey(
        metric=metric,
        validation=str(facts.get("val_digest", record.data)),
        parameters=NoiseKey.near(_count(facts.get("trainable"))),
        tokens=NoiseKey.near(_count(facts.get("tokens"))),
        hardware=record.provenance.hardware,
        deterministic=record.provenance.deterministic,
    )


def _count(fact: float | int | str | None) -> int:
    return int(fact) if isinstance(fact, int | float) else 0

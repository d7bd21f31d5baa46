"""The noise ledger of a store: every arm that was ever run with two seeds or more, whatever study it belonged to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from winnow.config import digest
from winnow.records.run import RunRecord
from winnow.study.noise import ArmNoise, NoiseKey, NoiseLedger, arm_noise


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

"""What a run knows beside its weights, saved with every checkpoint, and the record that is written of it at its end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from winnow.config import canonical_json
from winnow.records.journal import read_journal, spell
from winnow.records.run import Fact, Finding, Provenance, RunRecord, Spread
from winnow.records.store import OpenRun
from winnow.train.config import split_update
from winnow.train.loop import Loop


@dataclass
class Tally:
    """What a run knows beside its weights; saved with every checkpoint."""

    seconds: float = 0.0
    """In updates, evaluations and checkpoints, over all processes."""
    update_seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    timed_updates: int = 0
    made_by: dict[str, Any] = field(default_factory=dict)
    """The environment of the run's first start."""
    initial: dict[str, Spread] = field(default_factory=dict[str, Spread])
    """Of each parameter, before the first update."""
    parent_loss: float | None = None
    """Of the checkpoint that the run starts from, nats per token; None: not known."""
    start_reads: list[list[str]] = field(default_factory=list[list[str]])
    """Options that were read to make the starting values, which are made only once where there is a parent."""
    outcome: Literal["finished", "diverged"] | None = None
    """Set in the last checkpoint: only the record is still to be written."""

    def dump(self) -> dict[str, Any]:
        initial = {name: spread.dump() for name, spread in self.initial.items()}
        return {**self.__dict__, "findings": [finding.dump() for finding in self.findings], "initial": initial}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Tally:
        findings = [Finding.model_validate(item) for item in data["findings"]]
        initial = {name: Spread.model_validate(item) for name, item in data.get("initial", {}).items()}
        return cls(**{**data, "findings": findings, "initial": initial})

    def record(
        self,
        run: OpenRun,
        loop: Loop,
        status: Literal["finished", "diverged", "interrupted"],
        weights: str | None,
        provenance: Provenance,
        peak_bytes: int,
    ) -> RunRecord:
        """What becomes of `run`. weights: their SHA-256; peak_bytes: the most memory used (see `PeakMemory`)."""
        identity, config = run.identity, loop.config
        rows = read_journal(run.journal.path)
        return RunRecord(
            digest=identity.digest,
            status=status,
            label=identity.label,
            config=config.dump(),
            seed=loop.seed,
            data=identity.data,
            sources=identity.sources,
            steps_asked=config.train.steps,
            steps_done=loop.step,
            final=_last_values(rows),
            facts=self._facts(run, loop, peak_bytes),
            initial=self.initial,
            updates=loop.ratios.found(),
            weights=weights,
            trace=trace(rows),
            findings=tuple(self.findings),
            provenance=provenance,
        )

    def _facts(self, run: OpenRun, loop: Loop, peak_bytes: int) -> dict[str, Fact]:
        config, train = loop.config, loop.config.train
        micro_batch, accumulation = split_update(train, config.task.context)
        speed = self.timed_updates * train.tokens_per_update / self.update_seconds if self.timed_updates else 0.0
        facts: dict[str, Fact] = {
            **loop.task.facts(),
            **loop.model.facts(config.task.context),
            **({} if loop.grafted is None else loop.grafted.facts()),
            **loop.changes,
            "vocab_size": loop.task.vocab_size,
            "context": config.task.context,
            "tokens_per_update": train.tokens_per_update,
            "micro_batch": micro_batch,
            "accumulation": accumulation,
            "tokens": (loop.step - loop.position.step) * train.tokens_per_update,
            "lr": train.lr,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(speed, 1),
            "peak_bytes": peak_bytes,
            "val_digest": loop.validation.digest,
            "val_tokens": loop.validation.n_tokens,
        }
        if loop.group.parallel is not None:
            facts |= {"ranks": loop.group.size, "parallel": loop.group.parallel}
        if config.init_from is not None:
            facts["tokens_before"] = loop.position.tokens_before
        if run.identity.parent is not None:
            facts["parent"] = run.identity.parent
        if loop.validation.n_bytes is not None:
            facts["val_bytes"] = loop.validation.n_bytes
        return facts


def _last_values(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of each metric, without speeds."""
    found: dict[str, float] = {}
    for row in rows:
        found |= {name: value for name, value in row.items() if name != "step" and not name.startswith("speed/")}
    return found


def trace(rows: list[dict[str, Any]]) -> str:
    """SHA-256 of every number that must be the same in an equal run: all but speeds."""
    total = hashlib.sha256()
    for row in rows:
        kept = {name: spell(value) for name, value in row.items() if not name.startswith("speed/")}
        total.update(canonical_json(kept).encode() + b"\n")
    return total.hexdigest()

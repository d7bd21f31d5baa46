"""Train one run from wherever it stands to its end, with metrics, checkpoints and the health watch.

    row s of the journal, 0 <= s < steps: of the weights after s updates
        train/ce, train/ce_smooth      of update s, measured before it is applied (nats per token)
        train/lr, train/grad_norm      of update s
        train/penalty                  of update s, where a mechanism adds one to the loss
        val/ce, val/ppl, val/bpb       where s is a multiple of evaluation.every
        inside/LAYER/NAME              where s is a multiple of evaluation.inside
        speed/tokens_per_second        of update s; the only number that differs between equal runs
    row `steps`: val/* and inside/* of the final weights

A killed run continues from its newest whole checkpoint; the journal is cut back to what that checkpoint knew, so no
row is lost or doubled. On a CPU the result is bit for bit that of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from winnow.config import canonical_json
from winnow.records.files import writing
from winnow.records.journal import read_journal, spell
from winnow.records.provenance import collect, package_versions
from winnow.records.run import Fact, Finding, Provenance, RunRecord
from winnow.records.sources import code_version
from winnow.records.store import OpenRun
from winnow.train import checkpoint, health
from winnow.train.checkpoint import Snapshot
from winnow.train.config import RunConfig, split_update
from winnow.train.device import PeakMemory, denormals_flushed, exactness
from winnow.train.loop import Loop

CHECKPOINT_SECONDS = 60.0
"""Between checkpoints where the config does not count updates. When one is made changes no number."""
DIVERGENCE_FROM = 20
"""Updates before a finite loss may count as diverged: the start is noisy."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, after each update."""

    step: int
    """Updates done."""
    steps: int
    metrics: Mapping[str, float]
    """The newest value of each metric."""


def never() -> bool:
    """A run that nobody stops."""
    return False


def silent(progress: Progress) -> None:
    """Progress that nobody watches."""


def train(
    config: RunConfig,
    run: OpenRun,
    *,
    seed: int,
    device: torch.device,
    on_progress: Callable[[Progress], None] = silent,
    stop: Callable[[], bool] = never,
) -> RunRecord:
    """Train `run` to its end, write its record and return it.

    stop: asked after every update; when true, the state is saved and an `interrupted` record returned, not written:
    the run can be claimed and continued. Raises InputError where config, data, device or disk do not allow it, with
    everything saved so far intact.
    """
    torch.set_flush_denormal(True)  # of this thread; `device.prepare` reaches the others, in a process of their own
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        return Training(config, run, seed=seed, device=device, on_progress=on_progress).go(stop)


@dataclass
class _Tally:
    """What a run knows beside its weights; saved with every checkpoint."""

    seconds: float = 0.0
    """In updates, evaluations and checkpoints, over all processes."""
    update_seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    timed_updates: int = 0
    made_by: dict[str, Any] = field(default_factory=dict)
    """The environment of the run's first start."""
    outcome: Literal["finished", "diverged"] | None = None
    """Set in the last checkpoint: only the record is still to be written."""

    def dump(self) -> dict[str, Any]:
        return {**self.__dict__, "findings": [finding.dump() for finding in self.findings]}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> _Tally:
        return cls(**{**data, "findings": [Finding.model_validate(item) for item in data["findings"]]})


class Training:
    """A run that is being trained: `go` does all of it, `advance` one row of its journal."""

    def __init__(
        self,
        config: RunConfig,
        run: OpenRun,
        *,
        seed: int,
        device: torch.device,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.config, self.run, self.seed, self.device = config, run, seed, device
        self._on_progress = on_progress
        self._memory = PeakMemory(device)
        self._tally = _Tally()
        found = checkpoint.load_newest(run.checkpoints, run.identity.digest, accept=self._journal_holds)
        self._weights: str | None = None
        if found.snapshot is not None:
            self._weights = checkpoint.weights_digest(found.snapshot.weights)
            self._tally = _Tally.load(found.snapshot.progress["tally"])
            # Fixed at the run's first start: sums over another number of threads would round differently.
            torch.set_num_threads(self._tally.made_by["threads"])
        self._loop = Loop(config, seed=seed, device=device)
        self._resume(found)
        self._newest: dict[str, float] = {}
        self._evaluated: dict[str, float] = {}
        self._saved_at = self._counted_at = time.monotonic()
        self._provenance = self._how()

    # Starting

    def _journal_holds(self, snapshot: Snapshot) -> str | None:
        have = self.run.journal.offset()
        if have < snapshot.journal:
            return f"the metrics file has {have} bytes, {snapshot.journal} are needed"
        return None

    def _resume(self, found: checkpoint.Found) -> None:
        snapshot, here = found.snapshot, self._environment()
        for skipped in found.skipped:
            self._note("checkpoint-refused", "notice", f"{skipped}; continued from an earlier state", "checkpoints")
        if snapshot is None:
            self.run.journal.truncate(0)
            self._tally.made_by = here
        else:
            self._loop.restore(snapshot)
            self.run.journal.truncate(snapshot.journal)
            for key, value in here.items():
                if value != (before := self._tally.made_by[key]):
                    what = f"from step {snapshot.step} on with {key} {value}, before that {before}"
                    self._note("continued-elsewhere", "warning", what, key)
        resumed = "" if snapshot is None else f", from step {snapshot.step}"
        self._log(f"started on {self.device}, {torch.get_num_threads()} threads{resumed}")

    def _environment(self) -> dict[str, Any]:
        """What must be the same before and after an interruption for the two parts to be one run."""
        return {
            "threads": torch.get_num_threads(),
            "device": str(self.device),
            "torch": dict(package_versions()).get("torch", torch.__version__),
            "code": code_version(),
        }

    def _how(self) -> Provenance:
        threads = self._tally.made_by["threads"]
        deterministic, notes = exactness(self.config.train, self.device, threads)
        return collect(device=str(self.device), threads=threads, deterministic=deterministic, notes=notes)

    def _note(self, rule: str, severity: Literal["notice", "warning", "invalid"], message: str, where: str) -> None:
        self._add(Finding(rule=rule, severity=severity, message=message, where=where))

    def _add(self, finding: Finding | None) -> None:
        if finding is not None and finding not in self._tally.findings:
            self._tally.findings.append(finding)
            self._log(f"{finding.severity}: {finding.rule}: {finding.message}")

    def _log(self, line: str) -> None:
        with writing(self.run.log), self.run.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n")

    # Running

    def go(self, stop: Callable[[], bool]) -> RunRecord:
        """Train to the end, or until `stop` says so; see `train`."""
        train, loop = self.config.train, self._loop
        if self._tally.outcome is not None:
            return self._finish(self._tally.outcome)
        if loop.step == 0 and not denormals_flushed():
            self._note("denormals", "notice", "not every thread flushes denormals: steps may be slow", "threads")
        while loop.step < train.steps:
            if not self.advance():
                return self._end("diverged")
            stopping = stop()
            if loop.step < train.steps and (stopping or self._checkpoint_due()):
                self._save()
            if stopping and loop.step < train.steps:
                self._log(f"stopped after step {loop.step}")
                return self._record("interrupted")
        if self.run.journal.rows == train.steps:
            self._evaluated = loop.evaluate()
            self._write({"step": loop.step, **self._evaluated, **self._inside()})
        if not self._finite_evaluation():
            return self._end("diverged")
        for finding in loop.findings_at_end():
            self._add(finding)
        self._add(health.slow_kernel(loop.backends.ran))
        return self._end("finished")

    def advance(self) -> bool:
        """One row of the journal; False if the run has diverged."""
        loop, tally = self._loop, self._tally
        step = loop.step
        row: dict[str, float] = {"step": step}
        due = loop.evaluation_due
        if step == 0:
            self._evaluated, inside, measured = loop.watched_update()
            row |= {**self._evaluated, **inside, **measured.metrics()}
        else:
            if due:
                self._evaluated = loop.evaluate()
            inside = self._inside()
            started = time.perf_counter()
            measured = loop.update()
            seconds = time.perf_counter() - started
            tally.update_seconds += seconds
            tally.timed_updates += 1
            row |= {**(self._evaluated if due else {}), **inside, **measured.metrics()}
            row["speed/tokens_per_second"] = round(self.config.train.tokens_per_update / seconds, 1)
        self._write(row)
        if step == 0:
            self._at_start(inside)
        if not measured.finite:
            self._add(loop.explain())
            return False
        if loop.step >= DIVERGENCE_FROM and loop.first_ce is not None:
            lost = health.loss_divergence(step, measured.ce_smooth, loop.first_ce, loop.task.vocab_size)
            self._add(lost)
            if lost is not None:
                return False
        return not due or self._finite_evaluation()

    def _inside(self) -> dict[str, float]:
        return self._loop.look_inside() if self._loop.look_due else {}

    def _at_start(self, inside: Mapping[str, float]) -> None:
        ce = self._evaluated["val/ce"]
        if math.isfinite(ce):
            self._add(health.first_loss(ce, self._loop.task.vocab_size))
        self._add(health.warmup_only(self.config.train))
        self._add(health.nothing_inside(self.config.evaluation, inside))
        self._add(health.slow_kernel(self._loop.backends.ran))
        for finding in health.unread_options(self.config, self._loop.reads):
            self._add(finding)

    def _finite_evaluation(self) -> bool:
        bad = [name for name, value in self._evaluated.items() if not math.isfinite(value)]
        if bad:
            self._note("non-finite", "warning", f"step {self._loop.step}: {bad[0]} is not finite", bad[0])
        return not bad

    def _write(self, row: dict[str, float]) -> None:
        self.run.journal.append(row)
        self._newest |= {name: value for name, value in row.items() if name != "step"}
        self._on_progress(Progress(self._loop.step, self.config.train.steps, self._newest))

    def _checkpoint_due(self) -> bool:
        every = self.config.train.checkpoint_every
        if every is None:
            return time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
        return self._loop.step % every == 0

    def _save(self, keep: int = 2) -> None:
        self.run.journal.sync()
        now = time.monotonic()
        self._tally.seconds += now - self._counted_at
        self._counted_at = now
        snapshot = self._loop.snapshot(self.run.journal.offset(), {"tally": self._tally.dump()})
        self._weights = checkpoint.save(self.run.checkpoints, self.run.identity.digest, snapshot, keep=keep)
        self._saved_at = time.monotonic()

    # Ending

    def _end(self, status: Literal["finished", "diverged"]) -> RunRecord:
        # Before the record: a run that is killed between the two has only its record left to write.
        self._tally.outcome = status
        self._save(keep=1)
        return self._finish(status)

    def _finish(self, status: Literal["finished", "diverged"]) -> RunRecord:
        record = self.run.finish(self._record(status))
        self._log(f"{status} after {self._loop.step} steps")
        return record

    def _record(self, status: Literal["finished", "diverged", "interrupted"]) -> RunRecord:
        identity, train = self.run.identity, self.config.train
        rows = read_journal(self.run.journal.path)
        return RunRecord(
            digest=identity.digest,
            status=status,
            label=identity.label,
            config=self.config.dump(),
            seed=self.seed,
            data=identity.data,
            sources=identity.sources,
            steps_asked=train.steps,
            steps_done=self._loop.step,
            final=_last_values(rows),
            facts=self._facts(),
            weights=self._weights,
            trace=trace(rows),
            findings=tuple(self._tally.findings),
            provenance=self._provenance.model_copy(update={"kernels": self._loop.backends.names()}),
        )

    def _facts(self) -> dict[str, Fact]:
        loop, train = self._loop, self.config.train
        micro_batch, accumulation = split_update(train, self.config.task.context)
        tally = self._tally
        speed = tally.timed_updates * train.tokens_per_update / tally.update_seconds if tally.timed_updates else 0.0
        facts: dict[str, Fact] = {
            **loop.task.facts(),
            **loop.model.facts(self.config.task.context),
            "vocab_size": loop.task.vocab_size,
            "context": self.config.task.context,
            "tokens_per_update": train.tokens_per_update,
            "micro_batch": micro_batch,
            "accumulation": accumulation,
            "tokens": loop.step * train.tokens_per_update,
            "lr": train.lr,
            "seconds": round(tally.seconds, 3),
            "tokens_per_second": round(speed, 1),
            "peak_bytes": self._memory.read(),
            "val_digest": loop.validation.digest,
            "val_tokens": loop.validation.n_tokens,
        }
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

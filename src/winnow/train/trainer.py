"""Train one run from wherever it stands to its end, with metrics, checkpoints and the health watch.

    row s of the journal, first <= s < steps: of the weights after s updates; first is 0, and the parent's step in a
    run that is resumed from another (`init_from`)
        train/ce, train/ce_smooth      of update s, measured before it is applied (nats per token)
        train/lr, train/grad_norm      of update s
        train/penalty                  of update s, where a mechanism adds one to the loss
        train/error and the like       where a window of evaluation.train_window rows ends with update s
        val/ce and the task's others   where s is a multiple of evaluation.every
        inside/LAYER/NAME              where s is a multiple of evaluation.inside
        speed/tokens_per_second        of update s; the only number that differs between equal runs
    row `steps`: val/* and inside/* of the final weights

A killed run continues from its newest whole checkpoint; the journal is cut back to what that checkpoint knew, so no
row is lost or doubled. On a CPU the result is bit for bit that of an uninterrupted run. A run with a parent saves its
starting values as its own first checkpoint, kept to its end, so that from then on it needs the parent no more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from winnow.records.checkpoints import DamagedError, step_folder
from winnow.records.files import writing
from winnow.records.provenance import collect, package_versions
from winnow.records.run import Finding, Provenance, RunRecord
from winnow.records.sources import code_version
from winnow.records.store import OpenRun
from winnow.train import checkpoint, health
from winnow.train.checkpoint import Snapshot
from winnow.train.config import RunConfig
from winnow.train.device import PeakMemory, denormals_flushed, exactness
from winnow.train.grafted import lines as graft_lines
from winnow.train.group import ALONE, Group
from winnow.train.loop import Loop
from winnow.train.start import Parent
from winnow.train.tally import Tally

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


def orphan() -> None:
    """The parent of a run that has none."""


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
    group: Group = ALONE,
    parent: Callable[[], Parent | None] = orphan,
) -> RunRecord:
    """Train `run` to its end, write its record and return it.

    parent: reads what `config.init_from` names; called where the run itself does not know its starting values yet.
    stop: asked after every update; when true, the state is saved and an `interrupted` record returned, not written:
    the run can be claimed and continued. Raises InputError where config, data, device or disk do not allow it, with
    everything saved so far intact.
    """
    torch.set_flush_denormal(True)  # of this thread; `device.prepare` reaches the others, in a process of their own
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        training = Training(config, run, seed=seed, device=device, on_progress=on_progress, group=group, parent=parent)
        return training.go(stop)


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
        group: Group = ALONE,
        parent: Callable[[], Parent | None] = orphan,
    ) -> None:
        self.config, self.run, self.seed, self.device = config, run, seed, device
        self._group = group
        self._on_progress = on_progress
        self._memory = PeakMemory(device)
        self._tally = Tally()
        found = checkpoint.load_newest(run.checkpoints, run.identity.digest, accept=self._journal_holds)
        self._weights: str | None = None
        if found.snapshot is not None:
            self._weights = checkpoint.weights_digest(found.snapshot.weights)
            self._tally = Tally.load(found.snapshot.progress["tally"])
            # Fixed at the run's first start: sums over another number of threads would round differently.
            torch.set_num_threads(self._tally.made_by["threads"])
        own = None if found.snapshot is None else self._own_start()
        self._loop = Loop(config, seed=seed, device=device, group=group, parent=own or parent())
        self._fresh = found.snapshot is None
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

    def _own_start(self) -> Parent | None:
        """The starting values of a run with a parent, from its own first checkpoint."""
        config, digest = self.config, self.run.identity.digest
        if config.init_from is None:
            return None
        try:
            snapshot = checkpoint.read(self.run.checkpoints / step_folder(config.first_step), digest)
        except DamagedError:
            return None
        identity, context = config.init_from.identity, config.task.context
        return Parent("its own start", identity, config.grown, snapshot, 0, context, own=True)

    def _resume(self, found: checkpoint.Found) -> None:
        snapshot, here = found.snapshot, self._environment()
        for skipped in found.skipped:
            self._note("checkpoint-refused", "notice", f"{skipped}; continued from an earlier state", "checkpoints")
        if snapshot is None:
            self.run.journal.truncate(0)
            self._tally.made_by = here
            # Known only to who has read the parent; a run that is killed from here on need not.
            for line in () if self._loop.start.report is None else graft_lines(self._loop.start.report):
                self._log(line)
            for finding in self._loop.start.findings():
                self._add(finding)
            self._tally.parent_loss = self._loop.start.parent_loss
            self._tally.start_reads = sorted(map(list, self._loop.start_reads))
        else:
            self._loop.restore(snapshot)
            self._loop.reads |= {(path, name) for path, name in self._tally.start_reads}
            self.run.journal.truncate(snapshot.journal)
            for key, value in here.items():
                # Runs of before there were several ranks do not name them.
                if value != (before := self._tally.made_by.get(key, ALONE.named)):
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
            "ranks": self._group.named,
        }

    def _how(self) -> Provenance:
        threads = self._tally.made_by["threads"]
        exact, notes = exactness(self.config.train, self.device, threads, self._group.named)
        if any((item.rule, item.where) == ("continued-elsewhere", "ranks") for item in self._tally.findings):
            exact, notes = False, (*notes, "continued on other ranks: not bit-exact")
        return collect(device=str(self.device), threads=threads, deterministic=exact, notes=notes)

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
        if loop.step == loop.position.step and not denormals_flushed():
            self._note("denormals", "notice", "not every thread flushes denormals: steps may be slow", "threads")
        if self._fresh and self.config.init_from is not None:
            self._save()
        while loop.step < train.steps:
            if not self.advance():
                return self._end("diverged")
            stopping = stop()
            if loop.step < train.steps and (stopping or self._checkpoint_due()):
                self._save()
            if stopping and loop.step < train.steps:
                self._log(f"stopped after step {loop.step}")
                return self._record("interrupted")
        if self.run.journal.rows == train.steps - loop.position.step:
            self._evaluated = loop.evaluate()
            self._write({"step": loop.step, **self._evaluated, **self._inside()})
        if not self._finite_evaluation():
            return self._end("diverged")
        for finding in loop.findings_at_end(self._evaluated):
            self._add(finding)
        self._add(health.slow_kernel(loop.backends.ran))
        return self._end("finished")

    def advance(self) -> bool:
        """One row of the journal; False if the run has diverged."""
        loop, tally = self._loop, self._tally
        step = loop.step
        row: dict[str, float] = {"step": step}
        due, first = loop.evaluation_due, step == loop.position.step
        wrong: list[Finding] = []
        if first:
            wrong, tally.initial = loop.findings_at_start()
            self._evaluated, inside, measured = loop.watched_update()
            # Where a resumed run starts between two evaluations, its rows are those of its parent all the same.
            row |= {**(self._evaluated if due else {}), **inside, **measured.metrics()}
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
        if first:
            self._at_start(inside, wrong)
        for finding in loop.watch.found:
            self._add(finding)
        if not measured.finite:
            self._add(loop.explain())
            return False
        if loop.step >= DIVERGENCE_FROM and loop.first_ce is not None:
            lost = health.loss_divergence(step, measured.ce_smooth, loop.first_ce, loop.task.vocab_size)
            self._add(lost)
            if lost is not None:
                return False
        return not (due or first) or self._finite_evaluation()

    def _inside(self) -> dict[str, float]:
        return self._loop.look_inside() if self._loop.look_due else {}

    def _at_start(self, inside: Mapping[str, float], wrong: list[Finding]) -> None:
        """What the first row tells. wrong: what was found before the update."""
        ce = self._evaluated["val/ce"]
        if math.isfinite(ce):
            self._add(self._loop.judge_first_loss(ce, self._tally.parent_loss))
        self._add(health.warmup_only(self.config.train))
        every = self.config.evaluation.inside
        if every is not None and self._loop.position.step % every == 0:  # else the first look is still to come
            self._add(health.nothing_inside(self.config.evaluation, inside))
        self._add(health.slow_kernel(self._loop.backends.ran))
        for finding in (*health.unread_options(self.config, self._loop.reads), *wrong):
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
        if self._loop.step in self.config.train.keep:
            return True
        if every is None:
            return time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
        return self._loop.step % every == 0

    def _save(self, keep: int = 2) -> None:
        self.run.journal.sync()
        now = time.monotonic()
        self._tally.seconds += now - self._counted_at
        self._counted_at = now
        snapshot = self._loop.snapshot(self.run.journal.offset(), {"tally": self._tally.dump()})
        spare = set(self.config.train.keep)
        if self._tally.outcome is None and self.config.init_from is not None:
            spare.add(self.config.first_step)
        self._weights = checkpoint.save(
            self.run.checkpoints, self.run.identity.digest, snapshot, keep=keep, spare=spare
        )
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
        provenance = self._provenance.model_copy(update={"kernels": self._loop.backends.names()})
        return self._tally.record(self.run, self._loop, status, self._weights, provenance, self._memory.read())

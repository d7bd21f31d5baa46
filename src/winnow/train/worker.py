"""The process that runs: `python -m winnow.train.worker` takes runs as JSON lines and reports as JSON lines.

    in   {"digest", "config", "seed", "data", "sources", "use": [paths], "label": {"study", "arm"}, "store", "parent"?,
          "device", "threads", "ranks"?: n, "parallel"?: "ddp" | "fsdp", "preflight_steps"?: n, "stop_after"?: step}
    out  {"event": "started" | "progress" | "done" | "failed" | "stopped" | "busy", "digest", ...}

One process runs one run after another, so that torch is imported once. It validates the config again and recomputes
the digest: an experiment that did not run what was written cannot get a verdict. SIGINT or SIGTERM finishes the step,
saves, reports `stopped` and ends the process. A run that raises is recorded with its traceback; the next one runs.
A run on several ranks is trained by processes of its own, and this one watches them (`ranks`).

Whatever else is printed goes to stderr. What the store or the input refuses (no disk space, say) is reported as
`failed` and leaves no record: nothing was learnt of the run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import torch
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from winnow.config import input_errors, run_digest
from winnow.errors import InputError
from winnow.records.journal import spell
from winnow.records.provenance import collect
from winnow.records.run import Label, Plain, RunIdentity, RunRecord
from winnow.records.store import OpenRun, RunStore
from winnow.train.config import RunConfig, split_ranks
from winnow.train.device import exactness, prepare, rank_device
from winnow.train.group import ALONE, Group, Parallel, named
from winnow.train.loop import build_task, forget_task
from winnow.train.parents import read_parent
from winnow.train.preflight import preflight
from winnow.train.ranks import run_ranks
from winnow.train.sources import load_sources
from winnow.train.start import Parent
from winnow.train.trainer import Progress, train

PROGRESS_SECONDS = 0.25
"""Least time between two progress lines of a run."""


class Request(Plain):
    """One line of input."""

    digest: str
    config: dict[str, Any]
    """`RunConfig.dump()`, with absolute paths."""
    seed: int
    data: str
    """The task's data digest."""
    sources: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each `use` file by name."""
    use: tuple[str, ...] = ()
    """Paths of the `use` files; the user has said that they may run."""
    label: Label = Label(study="", arm="")
    parent: str | None = None
    """Digest of the run that this one starts from; None: of none."""
    store: str
    """The store's folder."""
    parents: str | None = None
    """Folder of the store that holds the parent; None: the same."""
    device: str = "cpu"
    threads: PositiveInt = 1
    """Of each rank."""
    ranks: PositiveInt = 1
    """Processes that share the run."""
    parallel: Parallel = "ddp"
    """How several ranks hold the model (see `distributed`)."""
    rank_timeout: PositiveFloat = 600.0
    """The longest that a rank waits for the others, seconds; then the run has failed."""
    preflight_steps: int | None = Field(default=None, ge=1)
    """Do so many updates and report what they showed, without a record; None = the run itself."""
    stop_after: PositiveInt | None = None
    """Save and stop once so many updates are done, as a signal would; None = run to the end."""


class Worker:
    """Runs requests until the input ends or a signal comes."""

    def __init__(self, requests: BinaryIO, reports: BinaryIO) -> None:
        self._requests, self._reports = requests, reports
        self._stopping = False
        self._idle = False

    def serve(self) -> None:
        """Take one request after another."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        while not self._stopping:
            line = self._next_line()
            if not line:
                return
            if line.strip():
                self._take(line)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        if self._idle:
            raise SystemExit(0)

    def _next_line(self) -> bytes:
        self._idle = True
        try:
            return b"" if self._stopping else self._requests.readline()
        finally:
            self._idle = False

    def _take(self, line: bytes) -> None:
        digest = ""
        try:
            request = read_request(line)
            digest = request.digest
            self._handle(request)
        except InputError as error:
            self._report("failed", digest, status="refused", error=str(error))
        except Exception:
            # The process goes on with the next run; the launcher shows and keeps this one's traceback.
            text = traceback.format_exc()
            self._report("failed", digest, status="failed", error=text.strip().splitlines()[-1], traceback=text)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _handle(self, request: Request) -> None:
        config, device = ready(request)
        if request.ranks > 1:
            split_ranks(config, request.ranks)
            self._on_ranks(request, config, device)
        else:
            self.lead(request, config, device, ALONE)

    def _on_ranks(self, request: Request, config: RunConfig, device: torch.device) -> None:
        """Let processes of their own train; rank 0 reports, and a failure is recorded here."""
        failure = run_ranks(request.dump(), request.ranks, self._write, lambda: self._stopping)
        if failure is None:
            return
        if failure.refused:
            raise InputError(failure.cause)
        if request.preflight_steps is None:
            run = _claim(request)
            if run is not None:
                with run:
                    run.finish(_failed(request, config, run, device, failure.text))
        self._report("failed", request.digest, status="failed", error=failure.cause, traceback=failure.text)

    def lead(self, request: Request, config: RunConfig, device: torch.device, group: Group) -> None:
        """Do a request in this process, alone or as rank 0 of a group."""
        if group.parallel is not None:
            signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        if request.preflight_steps is not None:
            self._preflight(request, config, device, group)
            return
        run = _claim(request)
        if run is None:
            store = RunStore(request.store)
            record = store.record(request.digest)
            if record is None:
                self._report("busy", request.digest)
            else:
                self._done(record)
            return
        with run:
            self._train(request, config, run, device, group)

    def _preflight(self, request: Request, config: RunConfig, device: torch.device, group: Group) -> None:
        self._report("started", request.digest, step=0, steps=request.preflight_steps)
        steps = request.preflight_steps or 1
        parent = parent_of(request, config)
        found = preflight(config, seed=request.seed, device=device, steps=steps, group=group, parent=parent)
        numbers = {name: value for name, value in vars(found).items() if name != "findings"}
        findings = [finding.dump() for finding in found.findings]
        self._report("done", request.digest, status="preflight", preflight=numbers, findings=findings)

    def _train(self, request: Request, config: RunConfig, run: OpenRun, device: torch.device, group: Group) -> None:
        steps = config.train.steps
        self._report("started", request.digest, step=config.first_step + run.journal.rows, steps=steps)
        reporter = _Reporter(self, request.digest)

        def stop() -> bool:
            return self._stopping or reporter.step == request.stop_after

        try:
            record = train(
                config,
                run,
                seed=request.seed,
                device=device,
                on_progress=reporter,
                stop=stop,
                group=group,
                parent=lambda: parent_of(request, config),
            )
        except InputError:
            raise
        except Exception:
            if group.parallel is not None:
                raise  # another rank may be the cause: who watches them all will know
            run.finish(_failed(request, config, run, device, traceback.format_exc()))
            raise
        if record.status == "interrupted":
            done = {"status": record.status, "step": record.steps_done, "steps": steps, "weights": record.weights}
            self._report("stopped", request.digest, **done)
        else:
            self._done(record)

    def _done(self, record: RunRecord) -> None:
        self._report(
            "done",
            record.digest,
            status=record.status,
            step=record.steps_done,
            steps=record.steps_asked,
            metrics=_spelt(record.final),
            findings=[finding.dump() for finding in record.findings],
        )

    def _report(self, event: str, digest: str, **rest: Any) -> None:
        self._write(json.dumps({"event": event, "digest": digest, **rest}, allow_nan=False).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            self._reports.write(line)
            self._reports.flush()
        except BrokenPipeError:
            # Nobody listens any more: finish the step, save and end.
            self._stopping = True

    def progress(self, digest: str, progress: Progress, eta: float) -> None:
        """Report where a run stands; eta: seconds to its end."""
        metrics = _spelt(progress.metrics)
        self._report("progress", digest, step=progress.step, steps=progress.steps, metrics=metrics, eta=round(eta, 1))


class _Reporter:
    """Progress lines of one run, not too many of them."""

    def __init__(self, worker: Worker, digest: str) -> None:
        self._worker, self._digest = worker, digest
        self.step = 0
        self._first: tuple[float, int] | None = None
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        self.step = progress.step
        now = time.monotonic()
        if self._first is None:
            self._first = (now, progress.step)
        if now - self._last < PROGRESS_SECONDS and progress.step < progress.steps:
            return
        self._last = now
        started, at = self._first
        done = progress.step - at
        eta = (now - started) / done * (progress.steps - progress.step) if done else 0.0
        self._worker.progress(self._digest, progress, eta)


def read_request(line: bytes) -> Request:
    """A request from its line. Raises InputError if it is not one."""
    try:
        return Request.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"not a request: {first['msg']}", key=".".join(map(str, first["loc"]))) from None


def ready(request: Request, rank: int = 0) -> tuple[RunConfig, torch.device]:
    """What a request asks for, and this rank's device, when this process is set up for both. Raises InputError where
    they are not here, or not what was written."""
    prepare(request.threads)
    device = rank_device(request.device, rank, request.ranks)
    load_sources([Path(path) for path in request.use], request.sources)
    return check_identity(request), device


def parent_of(request: Request, config: RunConfig) -> Parent | None:
    """What the run starts from, read and checked. Raises InputError where it is not what was written."""
    return read_parent(config, request.seed, request.parent, RunStore(request.parents or request.store))


def _claim(request: Request) -> OpenRun | None:
    identity = RunIdentity(**{name: getattr(request, name) for name in RunIdentity.model_fields})
    return RunStore(request.store).claim(identity)


def check_identity(request: Request) -> RunConfig:
    """The config of a request, when its digest is that of what is about to run.

    Raises InputError if the config is not valid here, the data has changed, or the digest is another.
    """
    try:
        config = RunConfig.model_validate(request.config)
    except ValidationError as error:
        raise input_errors(error)[0] from None
    data = build_task(config.task)[0].digest
    if data != request.data:
        forget_task()
        data = build_task(config.task)[0].digest
    if data != request.data:
        raise InputError(
            f"the data is {data[:12]}, the plan was made for {request.data[:12]}",
            key="task",
            mend="give the command again: the text has changed since",
        )
    found = run_digest(config.canonical(), request.seed, data, request.sources)
    if found != request.digest:
        raise InputError(
            f"this is run {found}, not {request.digest}: what would run is not what was written",
            mend="resolve the study again with this version of Winnow",
        )
    return config


def _failed(request: Request, config: RunConfig, run: OpenRun, device: torch.device, text: str) -> RunRecord:
    threads = torch.get_num_threads()
    parallel = request.parallel if request.ranks > 1 else None
    deterministic, notes = exactness(config.train, device, threads, named(request.ranks, parallel))
    return RunRecord(
        digest=request.digest,
        status="failed",
        label=request.label,
        config=config.dump(),
        seed=request.seed,
        data=request.data,
        sources=request.sources,
        steps_asked=config.train.steps,
        steps_done=config.first_step + run.journal.rows,
        provenance=collect(device=str(device), threads=threads, deterministic=deterministic, notes=notes),
        error=text,
    )


def _spelt(metrics: Mapping[str, float]) -> dict[str, Any]:
    return {name: spell(value) for name, value in metrics.items()}


@contextmanager
def own_output() -> Iterator[BinaryIO]:
    """The real stdout for reports alone; what anybody prints goes to stderr."""
    with os.fdopen(os.dup(1), "wb") as reports:
        os.dup2(2, 1)
        yield reports


def main() -> None:
    """Entry of `python -m winnow.train.worker`."""
    prepare(1)  # before any parallel work, so that every later thread inherits the flag
    torch.set_num_interop_threads(1)
    with own_output() as reports:
        Worker(sys.stdin.buffer, reports).serve()


if __name__ == "__main__":
    main()

"""Runs shared out to workers: every run that is asked for ends recorded, whatever happens to a worker.

Another launcher on the same store may hold a run: it is waited for, and taken over if its owner dies. A worker that
dies loses its current run, which one other worker continues; if that one dies too, the run is recorded as failed.
A run that failed is not tried again here: the next `run` does.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from winnow.records.provenance import collect
from winnow.records.run import RunIdentity, RunRecord
from winnow.records.store import RunStore
from winnow.study.events import Event, RunEnded, RunKey, RunProgress, RunStarted, RunWaits, Stopping, WorkerDied
from winnow.study.workers import WORKER, Message, Worker

ATTEMPTS: Final = 2
"""Workers that a run may outlive: one death is an accident, two are the run's doing."""
POLL: Final = 0.5
"""Seconds between looks at runs that others hold."""


class Stopped(Exception):  # noqa: N818 (it is no error)
    """The launch was stopped on demand; everything that ran is saved."""


@dataclass(frozen=True)
class Job:
    """One run to be done."""

    key: RunKey
    message: dict[str, Any]
    """What the worker is sent."""
    identity: RunIdentity


class Crew:
    """Up to `jobs` workers, started when there is work for them."""

    def __init__(
        self,
        store: RunStore,
        emit: Callable[[Event], None],
        *,
        jobs: int,
        threads: int = 1,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.store, self.emit = store, emit
        self.jobs, self.threads, self.command = jobs, threads, command
        self._messages: queue.Queue[Message] = queue.Queue()
        self._idle: list[Worker] = []
        self._busy: dict[Worker, Job] = {}
        self._pending: deque[Job] = deque()
        self._waiting: dict[str, Job] = {}
        self._attempts: dict[str, int] = {}
        self._asked: dict[str, RunRecord | None] = {}

    def run(self, jobs: Iterable[Job]) -> None:
        """Do these runs. Returns when each is recorded; raises Stopped after Ctrl-C."""
        self._pending = deque(jobs)
        self._asked = {job.key.digest: self.store.record(job.key.digest) for job in self._pending}
        try:
            while self._pending or self._busy or self._waiting:
                self._feed()
                self._take(self._on_message)
                self._look_around()
        except KeyboardInterrupt:
            self._stop()
            raise Stopped from None

    def ask(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Let workers try each job without recording anything; their last messages by arm."""
        answers: dict[str, dict[str, Any]] = {}
        self._pending = deque(jobs)

        def on_answer(worker: Worker, job: Job, data: dict[str, Any] | None) -> None:
            if data is None:
                answers[job.key.arm] = {"event": "failed", "error": worker.death()}
                self._dismiss(worker)
            elif data["event"] not in ("started", "progress"):
                answers[job.key.arm] = data
                self._free(worker)

        try:
            while self._pending or self._busy:
                while self._pending and len(self._busy) < self.jobs:
                    self._give(self._pending.popleft())
                self._take(on_answer)
        except KeyboardInterrupt:
            self._kill_all()
            raise Stopped from None
        return answers

    def close(self) -> None:
        """End the workers. Those that are still busy are killed: their runs resume from their checkpoints."""
        for worker in list(self._busy):
            worker.kill()
        for worker in [*self._busy, *self._idle]:
            worker.close()
        self._busy.clear()
        self._idle.clear()

    # Sharing out

    def _feed(self) -> None:
        while self._pending and len(self._busy) < self.jobs:
            job = self._pending.popleft()
            record = self._done_elsewhere(job)
            if record is not None:
                self._ended(job, record, elsewhere=True)
            else:
                self._give(job)

    def _give(self, job: Job) -> None:
        worker = self._idle.pop() if self._idle else Worker(self._messages, self.threads, self.command)
        self._busy[worker] = job
        worker.send(job.message)

    def _done_elsewhere(self, job: Job) -> RunRecord | None:
        """The run's record, if it has a result or has failed since this launch began."""
        record = self.store.record(job.key.digest)
        if record is None or (record.status == "failed" and record == self._asked[job.key.digest]):
            return None
        return record

    def _take(self, act: Callable[[Worker, Job, dict[str, Any] | None], None]) -> None:
        """One message, or none within the time between two looks around."""
        try:
            message = self._messages.get(timeout=POLL)
        except queue.Empty:
            return
        job = self._busy.get(message.worker)
        if job is not None:
            act(message.worker, job, message.data)
        elif message.data is None and message.worker in self._idle:
            self._idle.remove(message.worker)
            message.worker.close()

    def _free(self, worker: Worker) -> None:
        del self._busy[worker]
        self._idle.append(worker)

    def _dismiss(self, worker: Worker) -> None:
        del self._busy[worker]
        worker.close()

    # What workers say

    def _on_message(self, worker: Worker, job: Job, data: dict[str, Any] | None) -> None:
        if data is None:
            self._on_death(worker, job)
            return
        event, key = data["event"], job.key
        if event == "started":
            self.emit(RunStarted(key, int(data.get("step", 0)), int(data.get("steps", 0))))
        elif event == "progress":
            self.emit(RunProgress(key, int(data["step"]), int(data["steps"]), data.get("metrics", {})))
        else:
            self._free(worker)
            if event == "stopped":
                self.emit(RunEnded(key, "interrupted"))
                return
            elsewhere = event == "busy"
            record = self._done_elsewhere(job) if elsewhere else self.store.record(key.digest)
            if record is not None:
                self._ended(job, record, elsewhere=elsewhere)
            elif elsewhere:
                self._waiting[key.digest] = job
                self.emit(RunWaits(key))
            elif data.get("status") == "refused":  # no disk space, say: nothing was learnt of the run
                self.emit(RunEnded(key, "refused", str(data.get("error"))))
            else:
                self._record_failure(job, str(data.get("error") or data))

    def _on_death(self, worker: Worker, job: Job) -> None:
        how = worker.death()
        self._dismiss(worker)
        attempts = self._attempts[job.key.digest] = self._attempts.get(job.key.digest, 0) + 1
        again = attempts < ATTEMPTS
        self.emit(WorkerDied(job.key, how.splitlines()[0], again))
        if again:
            self._pending.appendleft(job)
        else:
            self._record_failure(job, how)

    def _record_failure(self, job: Job, error: str) -> None:
        """A record for a run whose worker could not write one."""
        claimed = self.store.claim(job.identity)
        if claimed is None:  # somebody has taken it over in this moment
            self._waiting[job.key.digest] = job
            return
        with claimed as run:
            self._ended(job, run.finish(failure(job.identity, error, self.threads)), elsewhere=False)

    def _ended(self, job: Job, record: RunRecord, *, elsewhere: bool) -> None:
        lines = (record.error or "").strip().splitlines()
        self.emit(RunEnded(job.key, record.status, lines[-1] if lines else None, elsewhere))

    def _look_around(self) -> None:
        """Runs that others held: done, or free to be taken over."""
        for digest, job in list(self._waiting.items()):
            if self.store.lock(digest).taken():
                continue
            del self._waiting[digest]
            self._pending.append(job)

    # Stopping

    def _stop(self) -> None:
        self.emit(Stopping(tuple(job.key for job in self._busy.values())))
        self._pending.clear()
        self._waiting.clear()
        for worker in list(self._busy):
            worker.interrupt()
        try:
            while self._busy:
                self._take(self._on_stopped)
        except KeyboardInterrupt:
            self._kill_all()

    def _on_stopped(self, worker: Worker, job: Job, data: dict[str, Any] | None) -> None:
        if data is None:
            self._dismiss(worker)
            self.emit(RunEnded(job.key, "interrupted"))
        else:
            self._on_message(worker, job, data)

    def _kill_all(self) -> None:
        for worker in list(self._busy):
            worker.kill()
            self._dismiss(worker)


def failure(identity: RunIdentity, error: str, threads: int) -> RunRecord:
    """The record of a run that failed without being able to write one itself."""
    return RunRecord(
        digest=identity.digest,
        status="failed",
        label=identity.label,
        config=identity.config,
        seed=identity.seed,
        data=identity.data,
        sources=identity.sources,
        steps_asked=int(identity.config.get("train", {}).get("steps", 0)),
        steps_done=0,
        provenance=collect(threads=threads),
        error=error,
    )

"""Persistent worker processes, each training one run at a time: JSON lines in, JSON lines out.

The protocol is `winnow.train.worker`'s. A worker is a process of its own, so that a run which dies (killed for
memory, say) takes nothing else with it; it is in a session of its own, so that Ctrl-C reaches the launcher alone and
the launcher decides.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, cast

from winnow.records.provenance import COMMAND_VARIABLE, command_line, redact

WORKER: Final = (sys.executable, "-m", "winnow.train.worker")
"""Command of a worker."""
LAST_LINES: Final = 20
"""Lines of a dead worker's error output that are kept for its record."""


@dataclass(frozen=True)
class Message:
    """What a worker said; `data` is None when the worker has ended."""

    worker: Worker
    data: dict[str, Any] | None


class Worker:
    """One process. Its messages arrive in the queue that all workers of a launch share."""

    def __init__(self, messages: queue.Queue[Message], threads: int, command: Sequence[str] = WORKER) -> None:
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **limits, COMMAND_VARIABLE: json.dumps(redact(command_line()))},
            start_new_session=True,
        )
        self._messages = messages
        self._errors: deque[str] = deque(maxlen=LAST_LINES)
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, job: dict[str, Any]) -> None:
        """Give it a job. A worker that is already dead says so through the queue, not here."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job, allow_nan=False).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._process.stdin = None

    def interrupt(self) -> None:
        """Ask it to finish its step, save and stop its run."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once; its run can be resumed from the last checkpoint."""
        self._process.kill()

    def close(self, patience: float = 5.0) -> None:
        """Let an idle worker end; kill it after `patience` seconds."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                self._process.stdin = None
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(patience)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def death(self) -> str:
        """How it ended and the last that it printed, for the record of the run it held."""
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:  # it closed its output and lives on: of no use to anybody
            self._process.kill()
            code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        self._threads[1].join(1.0)
        return "\n".join([f"the worker process {how}", *self._errors])

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                data: Any = json.loads(line)
            except ValueError:  # a library's own print: kept where a death is explained
                data = None
            if isinstance(data, dict) and "event" in data:
                self._messages.put(Message(self, cast(dict[str, Any], data)))
            else:
                self._errors.append(line.decode(errors="replace").rstrip())
        self._messages.put(Message(self, None))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line.decode(errors="replace").rstrip())


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as Ctrl-C, while the block runs: batch systems send it before they kill."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

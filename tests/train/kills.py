"""Runs in processes that are killed with SIGKILL at random instants, until one comes to its end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from winnow.records.run import RunIdentity, RunRecord
from winnow.records.store import RunStore

FORKER = Path(__file__).with_name("forker.py")


@contextmanager
def forker() -> Iterator[subprocess.Popen[str]]:
    """A process that has torch and makes a worker, in a child of its own, for each request."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FORKER.parents[2])}
    server = subprocess.Popen(
        [sys.executable, str(FORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield server
    finally:
        server.kill()
        server.wait()
        for stream in (server.stdin, server.stdout):
            if stream is not None:
                stream.close()


def line_of(server: subprocess.Popen[str]) -> dict[str, Any]:
    assert server.stdout is not None
    return json.loads(server.stdout.readline())


def kill_until_done(
    store: RunStore, known: RunIdentity, kills: int, longest: float, parents: RunStore | None = None
) -> tuple[RunRecord, int]:
    """Run in children that are killed at random instants up to `longest` seconds; the record and the kills that hit.

    parents: the store with the run that this one starts from.
    """
    request = json.dumps(
        {**known.dump(), "store": str(store.root), "parents": None if parents is None else str(parents.root)}
    )
    draw = random.Random(time.time_ns())
    hits = 0
    with forker() as server:
        assert server.stdin is not None
        while True:
            server.stdin.write(request + "\n")
            server.stdin.flush()
            pid = line_of(server)["pid"]
            if hits < kills:
                time.sleep(draw.uniform(0.0, longest))
                os.kill(pid, signal.SIGKILL)  # the forker has not reaped it: the pid is still this child's
            server.stdin.write("reap\n")
            server.stdin.flush()
            ended = line_of(server)
            record = store.record(known.digest)
            if record is not None:
                return record, hits
            assert ended["signal"] == signal.SIGKILL, ended
            hits += 1

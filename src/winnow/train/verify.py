"""Prove that a run can be killed anywhere and still end the same: `winnow verify-resume RUN`.

The run is made again in a store of its own by a real worker process, which is sent SIGKILL at random steps and started
again until the run ends. Its weights and its metrics are then compared, bit for bit, with the record. What comes out
is stamped on the record as `verified`; under torch.compile, several threads or on a GPU it is a measurement like any
other.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from winnow.config import canonical_json
from winnow.errors import InputError
from winnow.records.journal import read_journal, spell
from winnow.records.run import RunRecord
from winnow.records.store import RunStore

POLL_SECONDS = 0.0005
"""Between two looks at the journal: short against a step of even the smallest model."""


def verify_resume(
    store: RunStore,
    digest: str,
    *,
    kills: int = 3,
    steps: int | None = None,
    use: Sequence[Path] = (),
    draws: int | None = None,
) -> dict[str, Any]:
    """Make run `digest` again with `kills` interruptions, compare, stamp and return the result.

    steps: compare only the first so many updates (the weights then with a run that was not interrupted);
    None = all of them. use: the run's `use` files. draws: seed of the random steps; None = from the clock.
    Raises InputError if there is no finished run, or it cannot be made again here.
    """
    record = store.record(digest)
    if record is None or record.status != "finished" or not record.watched:
        raise InputError(f"run {digest} has no finished record of a Winnow run", mend="verify a finished run")
    first = first_step(record)
    limit = None if steps is None or steps >= record.steps_asked - first else first + max(2, steps)
    last = limit or record.steps_asked
    random_steps = random.Random(time.time_ns() if draws is None else draws)
    at = sorted(random_steps.randint(1, max(1, last - first - 1)) for _ in range(kills))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="winnow-verify-") as folder:
        again = _Again(store, record, Path(folder) / "killed", use, limit, last)
        killed = [first + step for step in at if again.start(kill_at=step)]
        weights = again.finish()
        expected = record.weights
        if limit is not None:
            expected = _Again(store, record, Path(folder) / "whole", use, limit, last).finish()
        same_weights = weights == expected
        first = _first_difference(store.metrics(digest), again.rows(), range(first, last), whole=limit is None)
    result = {
        "bit_identical": same_weights and first is None,
        "weights_identical": same_weights,
        "first_different_step": first,
        "steps": last,
        "of_steps": record.steps_asked,
        "killed_at": killed,
        "notes": list(record.provenance.notes),
        "seconds": round(time.monotonic() - began, 1),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.stamp(digest, "verified", result)
    return result


def first_step(record: RunRecord) -> int:
    """The step at which a run began: its parent's where it was resumed."""
    start = record.config.get("init_from")
    return int(start["step"] or 0) if isinstance(start, dict) and start["mode"] == "resume" else 0


def parent_of(record: RunRecord) -> str | None:
    """Digest of the run that a run started from."""
    parent = record.facts.get("parent")
    return None if parent is None else str(parent)


class _Again:
    """The run, made once more in the store at `root`."""

    def __init__(
        self, store: RunStore, record: RunRecord, root: Path, use: Sequence[Path], limit: int | None, last: int
    ) -> None:
        config = json.loads(canonical_json(record.config))
        # Outside the identity: often enough that a kill is a real interruption, not a new start.
        config["train"]["checkpoint_every"] = max(1, last // 20)
        self._digest, self._root = record.digest, root
        self._request = {
            "digest": record.digest,
            "config": config,
            "seed": record.seed,
            "data": record.data,
            "sources": record.sources,
            "use": [str(path) for path in use],
            "label": record.label.dump(),
            "store": str(root),
            "parent": parent_of(record),
            "parents": str(store.root),
            "device": record.provenance.device,
            "threads": record.provenance.threads,
            "stop_after": limit,
            "ranks": record.facts.get("ranks", 1),
            "parallel": record.facts.get("parallel", "ddp"),
        }
        self._output = root.with_suffix(".log")
        self._journal = RunStore(root).path(record.digest) / "metrics.0.jsonl"

    def start(self, kill_at: int) -> bool:
        """Run until the journal has `kill_at` rows, then SIGKILL; False if the run was further already or ended."""
        if self._lines() >= kill_at:
            return False
        child = self._spawn()
        try:
            while child.poll() is None:
                if self._lines() >= kill_at:
                    child.kill()
                    child.wait()
                    break
                time.sleep(POLL_SECONDS)
        finally:
            child.kill()
            child.wait()
        return child.returncode == -signal.SIGKILL and RunStore(self._root).record(self._digest) is None

    def finish(self) -> str | None:
        """Run to the end; SHA-256 of the weights there. Raises InputError with what the worker said if it failed."""
        child = self._spawn()
        try:
            child.wait()
        finally:
            child.kill()
            child.wait()
        lines = self._output.read_bytes().splitlines()
        events = [json.loads(line) for line in lines if line.startswith(b'{"event"')]
        last = events[-1] if events else {"event": "failed", "error": lines[-1].decode() if lines else "no output"}
        if last["event"] == "stopped":
            return last["weights"]
        record = RunStore(self._root).record(self._digest) if last["event"] == "done" else None
        if record is None:
            raise InputError(f"run {self._digest} cannot be made again: {last.get('error', last['event'])}")
        return record.weights

    def rows(self) -> list[dict[str, Any]]:
        """The metrics that were written."""
        return read_journal(self._journal)

    def _lines(self) -> int:
        return self._journal.read_bytes().count(b"\n") if self._journal.exists() else 0

    def _spawn(self) -> subprocess.Popen[bytes]:
        # The ranks of a killed worker end by themselves, a moment after it.
        lock = RunStore(self._root).lock(self._digest)
        while lock.taken():
            time.sleep(POLL_SECONDS)
        # Into a file: nobody reads while the child runs, and a full pipe would stop it.
        with self._output.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "winnow.train.worker"], stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        assert child.stdin is not None
        with child.stdin as requests:
            requests.write(json.dumps(self._request).encode() + b"\n")
        return child


def _first_difference(
    recorded: list[dict[str, Any]], again: list[dict[str, Any]], steps: range, *, whole: bool
) -> int | None:
    """The first step at which a number differs, speeds aside; None if there is none.

    steps: of the updates to compare; whole: the final weights' row too.
    """
    count = len(steps) + 1 if whole else len(steps)
    for index in range(count):
        pair = [_numbers(rows[index]) if index < len(rows) else None for rows in (recorded, again)]
        if pair[0] is None or pair[0] != pair[1]:
            return steps.start + index
    return None


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {name: spell(value) for name, value in row.items() if not name.startswith("speed/")}

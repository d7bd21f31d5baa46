"""SIGKILL, sent to a real child at a random instant while it writes runs: what it had said was done is done.

The child claims, appends, syncs, fails, finishes, removes and reads through the index, in a loop, and writes a line
to a pipe after each promise. After the kill the parent holds the store against those lines, and starts another child
on the same store.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.records.kill_child import ROWS, ended

from winnow.records.garbage import find_garbage, remove_garbage
from winnow.records.journal import read_journal
from winnow.records.run import unseal
from winnow.records.store import RunStore


def check(root: Path, said: dict[str, str], failures: dict[str, int]) -> None:
    """Hold the store against the child's last word on each run."""
    store = RunStore(root)
    records = store.records()
    assert records == {digest: found for digest in store.digests() if (found := store.record(digest)) is not None}
    for digest, record in records.items():
        assert record.model_copy(update={"metrics_rows": None}) == ended(digest, record.status)
        assert store.metrics(digest) == ROWS
    for digest, last in said.items():
        state = store.state(digest)
        metrics = store.metrics(digest)
        assert metrics == ROWS[: len(metrics)]
        # The child may have gone one step beyond its last word.
        permitted = {
            "claimed": {"interrupted", "finished", "failed"},
            "synced": {"interrupted", "finished", "failed"},
            "finished": {"finished"},
            "failed": {"failed", "interrupted"},
            "removing": {"finished", "missing"},
            "removed": {"missing", "interrupted"},
        }[last]
        assert state in permitted, (digest, last, state)
        if last == "synced":
            assert len(metrics) >= 3
        # A failed run that is claimed anew has one more failure behind it.
        behind = failures.get(digest, 0) + (last == "failed" and state == "interrupted")
        kept = sorted(store.path(digest).glob("failure-*.json"))
        if state != "missing" and last != "removed":
            assert len(kept) == behind, (digest, last, state)
        for path in kept:
            assert unseal(path.read_bytes(), path).status == "failed"
            assert read_journal(path.with_name(path.stem + ".metrics.jsonl")) == ROWS


def one_kill(root: Path, seed: int, after: float, said: dict[str, str], failures: dict[str, int]) -> None:
    command = [sys.executable, "-m", "tests.records.kill_child", str(root), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        timer = threading.Timer(after, child.kill)
        timer.start()
        for line in child.stdout:
            if not line.endswith("\n"):
                break
            word, digest = line.split()
            if word == "claimed" and said.get(digest) == "failed":
                failures[digest] = failures.get(digest, 0) + 1
            if word == "removed":
                failures.pop(digest, None)
            said[digest] = word
        timer.join()
    assert child.returncode == -9, "the child should have lived until it was killed"
    check(root, said, failures)


def settle(root: Path, said: dict[str, str], failures: dict[str, int]) -> None:
    """Before the next child: where this one was between two steps, note which side it was on."""
    store = RunStore(root)
    for digest, last in list(said.items()):
        state = store.state(digest)
        if last == "failed" and state == "interrupted":
            failures[digest] = failures.get(digest, 0) + 1
        if state == "missing" or last == "removed":
            failures.pop(digest, None)
        said[digest] = {"missing": "removed", "interrupted": "claimed"}.get(state, state)
    remove_garbage(store, find_garbage(store))
    assert find_garbage(store) == []


def kills(root: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    said: dict[str, str] = {}
    failures: dict[str, int] = {}
    for _ in range(count):
        one_kill(root, draw.randrange(10**6), draw.expovariate(1 / 0.08), said, failures)
        settle(root, said, failures)
    assert len(said) > 3, "the children hardly did anything"


def test_a_dozen_kills_lose_nothing(tmp_path: Path) -> None:
    kills(tmp_path / "store", 12, seed=1)


@pytest.mark.soak
def test_five_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    for store in range(10):
        kills(tmp_path / str(store), 50, seed=100 + store)

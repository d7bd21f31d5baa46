"""The store at every operation that can fail: an error is loud and leaves the state intact, a crash loses nothing
that was promised. The faults are those of `faulty_disk`; the scenario is the life of two runs, removal included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import fake_provenance
from tests.records.faulty_disk import ERRORS, FaultyDisk, Stopped

from winnow.errors import InputError
from winnow.records.garbage import find_garbage, remove_garbage
from winnow.records.run import Label, RunIdentity, RunRecord, Status
from winnow.records.store import RunStore

GOOD, BAD, GONE = "900d", "bad0", "90ee"
ROWS = [{"step": step, "val/ce": 5.0 - step} for step in range(4)]


def identity(digest: str) -> RunIdentity:
    return RunIdentity(digest=digest, config={"a": 1}, seed=0, data="d", label=Label(study="s", arm=digest))


def ended(digest: str, status: Status = "finished") -> RunRecord:
    return RunRecord(
        digest=digest,
        status=status,
        label=Label(study="s", arm=digest),
        config={"a": 1},
        seed=0,
        data="d",
        steps_asked=4,
        steps_done=4,
        final={"val/ce": 2.0},
        provenance=fake_provenance(),
        error="boom" if status == "failed" else None,
    )


@dataclass
class Promises:
    """What the store has returned from, and so must keep."""

    finished: dict[str, RunRecord] = field(default_factory=dict)
    failures: set[str] = field(default_factory=set)
    rows: dict[str, int] = field(default_factory=dict)
    stamped: bool = False
    removed: bool = False


def train(store: RunStore, digest: str, status: Status, promises: Promises) -> None:
    """A run as a trainer makes it: rows, a sync as at a checkpoint, more rows, the record."""
    run = store.claim(identity(digest))
    if run is None:
        assert store.state(digest) == "finished"
        return
    with run:
        promises.rows[digest] = 0
        run.journal.truncate(0)
        for row in ROWS[:2]:
            run.journal.append(row)
        run.journal.sync()
        promises.rows[digest] = 2
        for row in ROWS[2:]:
            run.journal.append(row)
        record = run.finish(ended(digest, status))
        promises.rows[digest] = len(ROWS)
        promises.finished[digest] = record


def scenario(root: Path, promises: Promises) -> None:
    """Two runs that end well, one after a failure; a stamp; a third run that is made and removed."""
    store = RunStore(root)
    train(store, GOOD, "finished", promises)
    if store.state(BAD) == "missing":
        train(store, BAD, "failed", promises)
        promises.failures.add(BAD)
    promises.finished.pop(BAD, None)  # claimed anew: from here on the failure is history
    train(store, BAD, "finished", promises)
    store.stamp(GOOD, "verified", {"resume": "bit-identical"})
    promises.stamped = True
    if not promises.removed:
        train(store, GONE, "finished", promises)
        promises.finished.pop(GONE, None)
        store.remove([GONE])
        promises.removed = True


def check(root: Path, promises: Promises, *, complete: bool = False) -> None:
    """Everything promised is there, and nothing that stands is half there."""
    store = RunStore(root)
    for digest in (GOOD, BAD, GONE):
        record = store.record(digest)
        assert record is None or record.model_copy(update={"metrics_rows": None}) in (
            ended(digest),
            ended(digest, "failed"),
        )
        assert store.state(digest) in ("missing", "interrupted", "failed", "finished")
        if digest in promises.finished:
            assert record == promises.finished[digest], f"{digest}: a finished record is gone"
        metrics = store.metrics(digest)
        assert metrics == ROWS[: len(metrics)]
        if not (digest == GONE and record is None):
            assert len(metrics) >= promises.rows.get(digest, 0), f"{digest}: synced rows are gone"
    for digest in promises.failures:
        record = store.record(digest)
        kept = [path.name for path in store.path(digest).glob("failure-*.json")]
        assert kept == ["failure-1.json"] or (record is not None and record.status == "failed")
    assert not promises.stamped or store.stamps(GOOD, "verified") == {"resume": "bit-identical"}
    assert not promises.removed or store.state(GONE) == "missing"
    if complete:
        assert {digest: record.status for digest, record in store.records().items()} == {
            GOOD: "finished",
            BAD: "finished",
        }
        assert store.metrics(GOOD) == store.metrics(BAD) == ROWS


def go_on(root: Path, promises: Promises) -> None:
    """After the trouble: the same commands again, then a cleaning, end where an untroubled run ends."""
    scenario(root, promises)
    remove_garbage(RunStore(root), find_garbage(RunStore(root)))
    check(root, promises, complete=True)
    left = [path for path in root.rglob("*") if path.name.endswith(".tmp") or path.parent.name == "trash"]
    assert all(path.parent in (root, root / "studies") for path in left), left


def operations(root: Path) -> int:
    disk = FaultyDisk(root)
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        scenario(root, Promises())
    disk.close()
    return disk.count


@pytest.fixture(scope="module")
def n_operations(tmp_path_factory: pytest.TempPathFactory) -> int:
    count = operations(tmp_path_factory.mktemp("count") / "store")
    assert count > 80, "the scenario should touch the disk often"
    return count


@pytest.fixture
def quick_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going on after the fault needs no real flushing."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def with_fault(root: Path, at: int, error: int | None) -> tuple[FaultyDisk, Promises, BaseException | None]:
    disk, promises = FaultyDisk(root, at, error=error), Promises()
    raised: BaseException | None = None
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        try:
            scenario(root, promises)
        except (InputError, Stopped) as stop:
            raised = stop
    return disk, promises, raised


@pytest.mark.usefixtures("quick_fsync")
def test_an_error_at_any_operation_is_loud_and_loses_nothing(tmp_path: Path, n_operations: int) -> None:
    for at in range(1, n_operations + 1):
        root = tmp_path / str(at) / "store"
        root.parent.mkdir()
        disk, promises, raised = with_fault(root, at, ERRORS[at % len(ERRORS)])
        disk.close()
        assert isinstance(raised, InputError), f"operation {at} ({disk.hit}) failed in silence"
        assert raised.file is not None
        check(root, promises)
        go_on(root, promises)


AFTERWARDS: dict[str, Callable[[FaultyDisk, Path, Path], Any]] = {
    "killed": lambda disk, root, target: root.rename(target),
    "power-cut": lambda disk, root, target: disk.after_power_cut(target, names_survive=False),
    "power-cut-names-first": lambda disk, root, target: disk.after_power_cut(target, names_survive=True),
}


@pytest.mark.usefixtures("quick_fsync")
@pytest.mark.parametrize("manner", sorted(AFTERWARDS))
def test_a_stop_at_any_operation_keeps_what_was_promised(tmp_path: Path, n_operations: int, manner: str) -> None:
    for at in range(1, n_operations + 1):
        root, target = tmp_path / str(at) / "store", tmp_path / str(at) / "after"
        root.parent.mkdir()
        disk, promises, raised = with_fault(root, at, None)
        assert isinstance(raised, Stopped)
        if root.exists():
            AFTERWARDS[manner](disk, root, target)
        disk.close()
        try:
            check(target, promises)
            go_on(target, promises)
        except BaseException as error:
            error.add_note(f"stopped at operation {at}: {disk.hit}")
            raise

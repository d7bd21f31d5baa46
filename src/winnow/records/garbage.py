"""What a store could do without: leftovers of killed writers, checkpoints that a later one replaces, unused runs.
Checkpoints that `train.keep` keeps, or that other runs start from, are none of it.

Finding and removing are two steps, so that a command can show the list and ask.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from winnow.errors import InputError
from winnow.records.checkpoints import step_of
from winnow.records.descent import kept_steps
from winnow.records.files import TEMPORARY, FileLock, writing
from winnow.records.store import RunStore

Kind = Literal["leftover", "checkpoint", "run"]

_STALE_SECONDS = 3600.0
"""A temporary file outside any run's lock is somebody's write in progress until it is this old."""
_HEXADECIMAL = re.compile(r"\b[0-9a-f]{16}\b")


class Garbage(NamedTuple):
    """One thing that may be removed."""

    kind: Kind
    path: Path
    size: int
    """Bytes."""
    digest: str | None
    """The run that it belongs to."""
    why: str


def find_garbage(store: RunStore, *, unused_runs: bool = False) -> list[Garbage]:
    """What could be removed, never anything of a run that is going.

    unused_runs: also runs that no plan under `studies/` names. Runs recorded by other programs are never among them:
    Winnow could not make them again.
    """
    found = [_garbage("leftover", path, None, "a removal was interrupted") for path in _entries(store.trash)]
    for folder in (store.root, store.root / "studies"):
        found += [
            _garbage("leftover", path, None, "a write was interrupted")
            for path in _entries(folder)
            if TEMPORARY.match(path.name) and time.time() - path.lstat().st_mtime > _STALE_SECONDS
        ]
    used = _named_in_plans(store) if unused_runs else frozenset[str]()
    kept = kept_steps(store)
    for digest in store.digests():
        path = store.path(digest)
        if FileLock(path / "lock").taken():
            continue
        if unused_runs and digest not in used and _can_be_made_again(store, digest):
            found.append(_garbage("run", path, digest, "no study in this store names it"))
            continue
        found += [
            _garbage("leftover", inner, digest, "a write was interrupted")
            for inner in _entries(path)
            if TEMPORARY.match(inner.name)
        ]
        found += _old_checkpoints(path / "checkpoints", digest, kept.get(digest, frozenset()))
    return found


def remove_garbage(store: RunStore, garbage: Iterable[Garbage]) -> int:
    """Remove what `find_garbage` found and return the bytes freed; what has begun to run meanwhile is left.

    Raises InputError if the disk refuses.
    """
    freed = 0
    for item in garbage:
        if item.kind == "run":
            assert item.digest is not None
            store.remove([item.digest])
            freed += item.size
            continue
        lock = None if item.digest is None else FileLock(store.path(item.digest) / "lock")
        if lock is not None and not lock.try_acquire(patience=0.05):
            continue
        try:
            with writing(item.path, "cannot be removed"):
                _delete(item.path)
        finally:
            if lock is not None:
                lock.release()
        freed += item.size
    return freed


def size_of(path: Path) -> int:
    """Bytes of a file, or of everything in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(size_of(inner) for inner in _entries(path))


def _garbage(kind: Kind, path: Path, digest: str | None, why: str) -> Garbage:
    return Garbage(kind, path, size_of(path), digest, why)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except FileNotFoundError:
        return []


def _old_checkpoints(folder: Path, digest: str, kept: Collection[int]) -> Iterator[Garbage]:
    steps = [path for path in _entries(folder) if path.name.startswith("step-") and path.is_dir()]
    complete = [path for path in steps if (path / "COMPLETE").exists()]
    for path in _entries(folder):
        if path in complete:
            if path != complete[-1] and step_of(path.name) not in kept:
                yield _garbage("checkpoint", path, digest, f"{complete[-1].name} is newer and complete")
        elif path in steps or path.name.startswith("."):
            yield _garbage("leftover", path, digest, "a save was interrupted")


def _named_in_plans(store: RunStore) -> frozenset[str]:
    """Every digest that any plan mentions. A plan that cannot be read, or names no run, stops the search: its runs
    would all seem unused."""
    named: set[str] = set()
    for path in _entries(store.root / "studies"):
        if path.suffix == ".json" and not path.name.startswith("."):
            with writing(path, "cannot be read"):
                found = _HEXADECIMAL.findall(path.read_text(errors="replace"))
            if not found:
                raise InputError("names no run", file=path, mend="check its study again (winnow check), or remove it")
            named.update(found)
    return frozenset(named)


def _can_be_made_again(store: RunStore, digest: str) -> bool:
    try:
        record = store.record(digest)
    except InputError:
        return False  # a damaged record may be a recorded run's: `winnow rm` removes it by name
    if record is not None:
        return record.watched
    identity = store.identity(digest)
    return identity is None or bool(identity.data)


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)

"""The run store: plain files, safe with several processes and with a kill at any instant.

    STORE.json                 {"version": 1}
    runs/<digest>/config.json  identity of the run, written when it is first claimed
    runs/<digest>/run.json     its record, written once, when it ends
    runs/<digest>/metrics.0.jsonl, checkpoints/, log.txt, lock, failure-<n>.json, <stamp>.json
    studies/<id>.json          plans, written by `winnow.study`
    trash/                     what is being removed
    index.sqlite               derived; may be deleted at any time

Whoever trains a run holds the flock on its `lock`; the kernel frees it when the owner dies. Readers take no lock.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import ValidationError

from winnow.errors import InputError
from winnow.records.files import (
    TEMPORARY,
    FileLock,
    inside,
    make_folder,
    read_json,
    safe_name,
    storage_error,
    sync_folder,
    write_atomic,
    write_json,
    writing,
)
from winnow.records.index import read_texts
from winnow.records.journal import Journal, read_journal
from winnow.records.run import RunIdentity, RunRecord, parse_record, seal, unseal

STORE_VERSION = 1
"""Version of the layout; a store of a higher one is refused."""
STORE_FOLDER = "winnow-store"
"""Name of a store's folder where none is given."""
STORE_VARIABLE = "WINNOW_STORE"
"""Environment variable that names the store."""

State = Literal["missing", "running", "interrupted", "finished", "failed", "diverged"]

_ENTRIES = frozenset({"STORE.json", "runs", "studies", "trash", "index.sqlite", "index.sqlite-journal"})
_OWN_FILES = frozenset({"run", "config", "lock", "metrics.0", "checkpoints", "log"})


def find_store(option: Path | None = None, *, beside: Path | None = None) -> Path:
    """Where the store is: `option`, else $WINNOW_STORE, else `winnow-store` beside a study file.

    Without a study file: the nearest `winnow-store` in this folder or one above it, else the one here, still to be
    made.
    """
    if option is not None:
        return option
    named = os.environ.get(STORE_VARIABLE)
    if named:
        return Path(named)
    if beside is not None:
        return beside.parent / STORE_FOLDER
    here = Path.cwd()
    nearest = (folder / STORE_FOLDER for folder in (here, *here.parents) if (folder / STORE_FOLDER).is_dir())
    return next(nearest, here / STORE_FOLDER)


class RunStore:
    """Runs and their records under one folder. Opening a store makes nothing; the first claim or plan does."""

    def __init__(self, root: Path | str) -> None:
        """Raises InputError if `root` is a store of a newer version, or a folder that holds something else."""
        self.root = Path(root).resolve()
        self.runs = self.root / "runs"
        self.trash = self.root / "trash"
        self._check()

    def _check(self) -> bool:
        """Whether the store exists; InputError if what is there must not be touched."""
        mark = self.root / "STORE.json"
        try:
            version = read_json(mark).get("version")
        except FileNotFoundError:
            self._check_vacant()
            return False
        if not isinstance(version, int):
            raise InputError("is damaged (no version)", file=mark, mend=f'write {{"version": {STORE_VERSION}}} into it')
        if version > STORE_VERSION:
            raise InputError(
                f"is a store of version {version}; this Winnow reads up to {STORE_VERSION}",
                file=self.root,
                mend="install a newer winnow-lab, or choose another store with --store",
            )
        return True

    def _check_vacant(self) -> None:
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, self.root, "cannot be read") from error
        other = sorted(name for name in names if name not in _ENTRIES and not TEMPORARY.match(name))
        if other:
            raise InputError(
                f"is not a run store: it holds {other[0]!r}",
                file=self.root,
                mend="give --store an empty folder, or one that does not exist yet",
            )

    def create(self) -> None:
        """Make the store's folders if they are missing. Raises InputError if that fails."""
        if not self._check():
            make_folder(self.root)
            write_json(self.root / "STORE.json", {"version": STORE_VERSION})
        for folder in (self.runs, self.root / "studies"):
            make_folder(folder)

    # Reading

    def digests(self) -> list[str]:
        """Every run of the store, in whatever state, sorted."""
        try:
            with os.scandir(self.runs) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, self.runs, "cannot be read") from error

    def path(self, digest: str) -> Path:
        """The run's folder, which need not exist. Raises InputError for a name that leads elsewhere."""
        return inside(self.runs, digest, what="run")

    def find(self, prefix: str) -> str:
        """The one run whose digest starts with `prefix`. Raises InputError if there is none, or more than one."""
        safe_name(prefix, what="run")
        found = [digest for digest in self.digests() if digest.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise InputError(f"there is no run {prefix!r} in {self.root}", mend="`winnow status` lists the runs")
        raise InputError(f"{prefix!r} fits {len(found)} runs", mend=f"say which: {', '.join(found[:5])}")

    def record(self, digest: str) -> RunRecord | None:
        """The run's record, or None if it has not ended. Raises InputError if it is damaged."""
        path = self.path(digest) / "run.json"
        try:
            return unseal(path.read_bytes(), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path, "cannot be read") from error

    def records(self, digests: Iterable[str] | None = None) -> dict[str, RunRecord]:
        """The records that exist among `digests` (None = all), by digest, in the order asked for.

        Raises InputError if one of them is damaged.
        """
        asked = self.digests() if digests is None else [safe_name(digest, what="run") for digest in digests]
        texts = read_texts(self.root / "index.sqlite", self.runs, asked)
        return {
            digest: parse_record(texts[digest], self.runs / digest / "run.json") for digest in asked if digest in texts
        }

    def rows(self, digests: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The records as flat rows: `pandas.DataFrame(store.rows())` is a table of runs."""
        return [record.row() for record in self.records(digests).values()]

    def identity(self, digest: str) -> RunIdentity | None:
        """What the run is, or None if it was never claimed. Raises InputError if its `config.json` is damaged."""
        path = self.path(digest) / "config.json"
        try:
            return RunIdentity.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path, "cannot be read") from error
        except ValidationError as error:
            raise InputError("is damaged", file=path, mend=f"remove the run (winnow rm {digest})") from error

    def state(self, digest: str) -> State:
        """Where the run stands now. Raises InputError if its record is damaged."""
        for _ in range(2):
            record = self.record(digest)
            if record is not None:
                return record.status
            if self.lock(digest).taken():
                return "running"
            # Its owner may have finished between the two looks: look once more.
        return "interrupted" if (self.path(digest) / "config.json").exists() else "missing"

    def lock(self, digest: str) -> FileLock:
        """The lock that the run's owner holds."""
        return FileLock(self.path(digest) / "lock")

    def metrics(self, digest: str) -> list[dict[str, Any]]:
        """The run's metric rows, oldest first; empty if it has none. Raises InputError if they are damaged.

        While a run is going, a half-written last row is left out; once it has ended, a missing row is damage.
        """
        path = self.path(digest) / "metrics.0.jsonl"
        record = self.record(digest)
        try:
            rows = read_journal(path)
        except FileNotFoundError:
            rows = []
        if record is not None and record.metrics_rows is not None and len(rows) < record.metrics_rows:
            raise InputError(
                f"has {len(rows)} whole rows of {record.metrics_rows}",
                file=path,
                mend=f"restore it from a copy, or remove the run (winnow rm {digest}) and run it again",
            )
        return rows

    def stamps(self, digest: str, name: str) -> dict[str, Any] | None:
        """What `stamp` wrote under `name`, or None."""
        try:
            return read_json(self.path(digest) / f"{safe_name(name)}.json")
        except FileNotFoundError:
            return None

    # Writing

    def stamp(self, digest: str, name: str, data: dict[str, Any]) -> None:
        """Put a later result beside a run's record, as `<name>.json`: `verified`, say. The record stays as it is."""
        assert name not in _OWN_FILES, f"{name} is the run's own file"
        write_json(self.path(digest) / f"{safe_name(name)}.json", data)

    def plan_path(self, study: str) -> Path:
        """The file of a study's plan, whose folder exists. Raises InputError for an id that leads elsewhere."""
        self.create()
        return inside(self.root / "studies", safe_name(study, what="study id") + ".json", what="study id")

    def claim(self, identity: RunIdentity, *, again: bool = False) -> OpenRun | None:
        """Take the run for this process, or None if another live process holds it or it has ended well.

        A run that failed or was interrupted may be claimed again; what it left stays as `failure-<n>.json` and
        `failure-<n>.metrics.jsonl` (or `interrupted-<n>`), and its checkpoints are for the new owner to go on from.
        again: claim even a finished or diverged run; its record and metrics then stay as `superseded-<n>`.
        Raises InputError if the store cannot be written, or is damaged.
        """
        self.create()
        path = self.path(identity.digest)
        lock = FileLock(path / "lock")
        while True:
            make_folder(path)
            try:
                if not lock.try_acquire(patience=0.05):  # a reader that looks whether it is taken holds it a moment
                    return None
                break
            except FileNotFoundError:
                continue  # removed between the two steps
        try:
            return self._open(identity, path, lock, again)
        except BaseException:
            lock.release()
            raise

    def _open(self, identity: RunIdentity, path: Path, lock: FileLock, again: bool) -> OpenRun | None:
        with writing(path):
            sync_folder(self.runs)  # an earlier owner may have died between making the folder and flushing its name
        record = self.record(identity.digest)
        if record is not None:
            if record.status in ("finished", "diverged") and not again:
                lock.release()
                return None
            kinds = {"failed": "failure", "interrupted": "interrupted"}
            _set_aside(path, kinds.get(record.status, "superseded"))
        if not (path / "config.json").exists():
            write_json(path / "config.json", identity.dump())
        return OpenRun(identity, path, lock)

    def remove(self, digests: Iterable[str]) -> None:
        """Remove runs with everything in their folders. Raises InputError if one is running; the rest then stand."""
        for digest in digests:
            path = self.path(digest)
            lock = FileLock(path / "lock")
            try:
                if not lock.try_acquire(patience=0.05):
                    raise InputError(f"run {digest} is running", mend="stop it first")
            except FileNotFoundError:
                continue
            try:
                self._throw_away(path)
            finally:
                lock.release()

    def _throw_away(self, path: Path) -> None:
        """Remove a folder as one step: rename it out of sight, then delete what is in it."""
        make_folder(self.trash)
        target = self.trash / f"{path.name}.{secrets.token_hex(4)}"
        with writing(path, "cannot be removed"):
            os.rename(path, target)
            sync_folder(path.parent)
            shutil.rmtree(target)


def _set_aside(path: Path, kind: str) -> None:
    """Keep a run's record and metrics under the next free number of their kind."""
    pattern = re.compile(rf"{kind}-(\d+)\.json")
    number = 1 + max((int(found[1]) for name in os.listdir(path) if (found := pattern.fullmatch(name))), default=0)
    metrics = path / "metrics.0.jsonl"
    if metrics.exists():
        with writing(metrics, "cannot be read"):
            data = metrics.read_bytes()
        write_atomic(path / f"{kind}-{number}.metrics.jsonl", data)
    with writing(path):
        os.replace(path / "run.json", path / f"{kind}-{number}.json")
        sync_folder(path)


class OpenRun:
    """A run that this process holds. Close it, or leave its `with` block, to let others have it."""

    def __init__(self, identity: RunIdentity, path: Path, lock: FileLock) -> None:
        self.identity = identity
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.txt"
        self.journal = Journal(path / "metrics.0.jsonl")
        self._lock = lock

    def finish(self, record: RunRecord) -> RunRecord:
        """Write the run's record, whole or not at all, and return it as written (with `metrics_rows`).

        Raises InputError if the disk refuses; the run is then as if interrupted, with all its metrics.
        """
        assert self._lock.held, "the run is closed"
        assert record.digest == self.identity.digest, "a record of another run"
        assert not (self.path / "run.json").exists(), "the run has its record already"
        self.journal.sync()
        written = record.model_copy(update={"metrics_rows": self.journal.rows})
        write_atomic(self.path / "run.json", seal(written))
        return written

    def close(self) -> None:
        """Give the run back; it may be called twice."""
        self.journal.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

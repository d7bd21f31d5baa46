"""Files that are whole or absent: atomic writes, locks that die with their owner, names that stay inside a folder.

A write goes to a temporary file beside its target, is flushed to the disk, is renamed over the target, and the
folder is flushed. A crash at any instant leaves the old content or the new one, never a part.

Not here: Windows (there is no flock) and file systems without locks, which are refused with a clear error.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import socket
import stat
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from winnow.errors import InputError

TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{8}\.tmp$")
"""Names of files that a write in progress makes; one that outlives its writer is garbage."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_MENDS = {
    errno.ENOSPC: "free some disk space and give the same command again; nothing that was recorded is lost",
    errno.EDQUOT: "free some of your quota and give the same command again; nothing that was recorded is lost",
    errno.EACCES: "check who owns the folder and its permissions",
    errno.EPERM: "check who owns the folder and its permissions",
    errno.EROFS: "the file system is read-only: choose another store with --store",
    errno.EIO: "the disk reports an error: copy the store to another disk before anything else",
    errno.ENOLCK: "this file system has no locks: choose a local folder with --store",
}


def storage_error(error: OSError, path: Path, doing: str = "cannot be written") -> InputError:
    """An OSError as the user's error: which file, what the system said, what to do."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return InputError(f"{doing}: {reason}", file=path, mend=_MENDS.get(error.errno or 0))


@contextmanager
def writing(path: Path, doing: str = "cannot be written") -> Iterator[None]:
    """Turn any OSError of the block into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, doing) from error


def safe_name(name: str, *, what: str = "name") -> str:
    """The name itself if it can be one part of a path: letters, digits, `.`, `_`, `-`, no leading dot.

    Raises InputError otherwise, so that no study, run or file name ever leads out of its folder.
    """
    if _NAME.fullmatch(name) is None:
        raise InputError(
            f"{what} {name!r} is not permitted",
            mend="use letters, digits, '.', '_' and '-' only, at most 128, without a leading dot",
        )
    return name


def inside(root: Path, name: str, *, what: str = "name") -> Path:
    """`root / name`, where the name is safe and the entry is no symbolic link (which could lead anywhere)."""
    path = root / safe_name(name, what=what)
    if path.is_symlink():
        raise InputError("is a symbolic link, which a store does not follow", file=path, mend="move the folder itself")
    return path


def make_folder(path: Path) -> None:
    """Make a folder, and its parents, so that it survives a power cut. Raises InputError when that fails."""
    missing: list[Path] = []
    current = path
    while not current.is_dir():
        missing.append(current)
        current = current.parent
    with writing(path, "cannot be made"):
        for folder in reversed(missing):
            try:
                os.mkdir(folder)
            except FileExistsError:
                if not folder.is_dir():
                    raise
            sync_folder(folder.parent)


def sync_file(descriptor: int) -> None:
    """Flush one open file to the disk itself."""
    os.fsync(descriptor)
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # there, fsync alone stops at the drive's own memory


def sync_folder(path: Path) -> None:
    """Flush a folder: the names in it, not the content of its files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: a single `os.write` may stop early when the disk is nearly full."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace a file's content as one step that a crash cannot split. Raises InputError; the old file then stands.

    A file that exists keeps its permissions: the temporary one is made with them, so that a private file is never
    readable by others, not even for an instant.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
            try:
                if mode is not None:
                    os.fchmod(descriptor, mode)
                write_all(descriptor, content)
                sync_file(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically. NaN and infinities are a programming error here: spell them as strings."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises FileNotFoundError if absent, InputError if damaged or unreadable."""
    try:
        value: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(error, path, "cannot be read") from error
    except ValueError as error:
        raise InputError(f"is damaged ({error})", file=path, mend="restore it from a copy, or remove it") from error
    if not isinstance(value, dict):
        raise InputError("is damaged (no JSON object)", file=path, mend="restore it from a copy, or remove it")
    return value  # pyright: ignore[reportUnknownVariableType]


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive lock on a file, between processes and within one. The kernel frees it when its owner dies.

    The file itself stays: removing a lock file that somebody may have open would give two owners.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def try_acquire(self, patience: float = 0.0) -> bool:
        """Take the lock unless another holds it for longer than `patience` seconds.

        Raises FileNotFoundError if the folder is gone, InputError if the file system refuses.
        """
        assert self._descriptor is None, "the lock is already held"
        deadline = time.monotonic() + patience
        while True:
            descriptor = self._open()
            if self._lock(descriptor) and self._current(descriptor):
                self._descriptor = descriptor
                _held.add(self)
                self._sign()
                return True
            os.close(descriptor)
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)

    def acquire(self) -> None:
        """Wait for the lock, however long it takes."""
        while not self.try_acquire(patience=60.0):
            pass

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _held.discard(self)

    def taken(self) -> bool:
        """Whether anybody holds it now. A moment's look: never a reason to believe that it is still free."""
        if self._descriptor is not None:
            return True
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, self.path, "cannot be read") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            raise storage_error(error, self.path, "cannot be locked") from error
        finally:
            os.close(descriptor)
        return False

    def owner(self) -> dict[str, Any]:
        """What the last owner wrote about itself (pid, host, since); empty if nothing readable."""
        try:
            value: Any = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}  # only a courtesy for messages: the lock itself is the kernel's
        return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(error, self.path, "cannot be locked") from error

    def _lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            os.close(descriptor)
            raise storage_error(error, self.path, "cannot be locked") from error
        return True

    def _current(self, descriptor: int) -> bool:
        """Whether the path still leads to the locked file: its folder may have been removed meanwhile."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        here = os.fstat(descriptor)
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def _sign(self) -> None:
        assert self._descriptor is not None
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": round(time.time(), 3)}
        try:
            with writing(self.path):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(owner).encode(), 0)
        except BaseException:
            self.release()  # also on Ctrl-C: nobody else knows yet that it is held
            raise

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _close_in_child() -> None:
    """A forked child drops its copies, or the lock would outlive the owner for as long as the child lives."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)


def size(n_bytes: float) -> str:
    """Bytes as people say them."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes:.0f} B"

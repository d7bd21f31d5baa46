"""A disk that fails or loses power at its k-th operation, in the manner of ALICE (Pillai et al., OSDI 2014).

While installed, every call by which the store changes a folder goes through here and is counted: creating a file,
write, fsync, rename, mkdir, truncate, unlink. At the k-th call it either reports an error once, or "stops": nothing
more happens, as in a kill. A write that is hit goes half through first.

What a power cut may leave is modelled by inode: a file's content survives as it was at its last fsync, a folder's
names as they were at its last fsync. `after_power_cut` builds two such worlds: names and content both only as far as
flushed, and names as they stood with content only as far as flushed (a rename that overtook its data).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest


class Stopped(BaseException):
    """The process is no more. Not an Exception, so that no handler in the product can go on."""


class FaultyDisk:
    """Counts operations, and fails at number `at` (from 1; 0 = never)."""

    def __init__(self, root: Path, at: int = 0, *, error: int | None = None) -> None:
        """error: errno to report once at that operation; None = stop there for good."""
        self.root = root
        self.at = at
        self.error = error
        self.count = 0
        self.hit = ""
        self._synced: dict[int, bytes] = {}
        self._synced_names: dict[int, dict[str, int]] = {}
        self._pinned: list[int] = []
        self._real = {
            name: getattr(os, name)
            for name in (
                "open",
                "write",
                "pwrite",
                "fsync",
                "replace",
                "rename",
                "mkdir",
                "ftruncate",
                "unlink",
                "rmdir",
            )
        }

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put this disk under the `os` module until the patch is undone."""
        for name in self._real:
            patch.setattr(os, name, getattr(self, f"_{name}"))

    def close(self) -> None:
        """Let go of the inodes, which are held so that their numbers are not used twice."""
        for descriptor in self._pinned:
            os.close(descriptor)
        self._pinned.clear()

    def _step(self, what: str, path: Any = "") -> None:
        self.count += 1
        if self.at and self.count >= self.at:
            if self.count == self.at:
                self.hit = f"{what} {path}"
            if self.error is None:
                raise Stopped(f"{self.hit} ({self.at})")
            if self.count == self.at:
                raise OSError(self.error, os.strerror(self.error))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fresh = bool(flags & os.O_CREAT) and dir_fd is None and not os.path.lexists(path)
        if fresh:
            self._step("create", path)
        descriptor: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if fresh:
            self._pin(path)
        return descriptor

    def _pin(self, path: Any) -> None:
        self._pinned.append(self._real["open"](path, os.O_RDONLY))
        inode = os.fstat(self._pinned[-1]).st_ino
        self._synced[inode] = b""
        self._synced_names[inode] = {}

    def _write(self, descriptor: int, data: Any) -> int:
        return self._half("write", descriptor, data, lambda part: self._real["write"](descriptor, part))

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        return self._half("pwrite", descriptor, data, lambda part: self._real["pwrite"](descriptor, part, offset))

    def _half(self, what: str, descriptor: int, data: Any, write: Any) -> int:
        try:
            self._step(what, os.readlink(f"/proc/self/fd/{descriptor}"))
        except (OSError, Stopped):
            if self.count == self.at:
                write(bytes(data)[: len(data) // 2])
            raise
        return write(data)

    def _fsync(self, descriptor: int) -> None:
        self._step("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._synced_names[found.st_ino] = names_in(f"/proc/self/fd/{descriptor}")
        else:
            self._synced[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _replace(self, source: Any, target: Any) -> None:
        self._step("replace", target)
        self._real["replace"](source, target)

    def _rename(self, source: Any, target: Any) -> None:
        self._step("rename", target)
        self._real["rename"](source, target)

    def _mkdir(self, path: Any, mode: int = 0o777) -> None:
        self._step("mkdir", path)
        self._real["mkdir"](path, mode)
        self._pin(path)

    def _ftruncate(self, descriptor: int, length: int) -> None:
        self._step("ftruncate", os.readlink(f"/proc/self/fd/{descriptor}"))
        self._real["ftruncate"](descriptor, length)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._step("unlink", path)
        self._real["unlink"](path, dir_fd=dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._step("rmdir", path)
        self._real["rmdir"](path, dir_fd=dir_fd)

    def after_power_cut(self, target: Path, *, names_survive: bool) -> None:
        """Build at `target` what the disk may hold after the power failed now. Call it without the patch."""
        kinds = {os.fstat(descriptor).st_ino: os.fstat(descriptor).st_mode for descriptor in self._pinned}
        top = names_in(self.root.parent).get(self.root.name)
        if top is not None:
            self._rebuild(top, self.root if names_survive else None, target, kinds)

    def _rebuild(self, inode: int, source: Path | None, target: Path, kinds: dict[int, int]) -> None:
        if not stat.S_ISDIR(kinds[inode]):
            target.write_bytes(self._synced[inode])
            return
        target.mkdir()
        for name, inner in (self._synced_names[inode] if source is None else names_in(source)).items():
            self._rebuild(inner, None if source is None else source / name, target / name, kinds)


def names_in(folder: Path | str) -> dict[str, int]:
    """Names in a folder with their inodes."""
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)

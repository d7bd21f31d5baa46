"""The user's cache: things that take seconds to make and are fixed by their name.

A file is the SHA-256 of its content (64 hexadecimal digits), then the content. What does not match its checksum is
made again. The folder may be removed at any time.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from winnow.errors import InputError
from winnow.records.files import make_folder, write_atomic

_HEAD = 64
Bytes = npt.NDArray[np.uint8]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/winnow`, or `~/.cache/winnow`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path there.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "winnow"


def cached(name: str, make: Callable[[], bytes]) -> Bytes:
    """The content kept under `name` (a digest is part of it), memory-mapped; made and kept if it is not there.

    Where the cache cannot be written, the content is made each time, with a warning.
    """
    path = cache_folder() / name
    found = _read(path)
    if found is not None:
        return found
    content = make()
    try:
        make_folder(path.parent)
        write_atomic(path, hashlib.sha256(content).hexdigest().encode() + content)
    except InputError as error:
        warnings.warn(f"the cache is not kept, work will be repeated: {error}", stacklevel=2)
    return np.frombuffer(content, dtype=np.uint8)


def _read(path: Path) -> Bytes | None:
    try:
        if path.stat().st_size <= _HEAD:
            return None
        whole = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError:
        return None  # not there, or not readable: made again, and a lasting fault shows when it is written
    content = whole[_HEAD:]
    return content if bytes(whole[:_HEAD]) == hashlib.sha256(content.data).hexdigest().encode() else None

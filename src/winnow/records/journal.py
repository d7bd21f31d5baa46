"""The metrics of one run: JSON lines, appended, each with its own check sum.

A row is `{"step": 3, "train/ce": 5.1, "crc": "9bd366ae"}`, where `crc` is the CRC-32 of the line without it. One
process writes; readers need no lock. What a killed writer left half written at the end is dropped; damage anywhere
else is an error that names the line. Non-finite numbers are spelt "NaN", "Infinity" and "-Infinity", so that every
line is valid JSON.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.errors import InputError
from winnow.records.files import storage_error, sync_file, sync_folder, write_all, writing

SPELT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How numbers that JSON lacks are spelt in records and journals."""
_TAIL = ', "crc": "'
_TAIL_LENGTH = len(_TAIL) + 8 + len('"}')


def spell(value: float | int | str | bool | None) -> float | int | str | bool | None:
    """The value as JSON can hold it: NaN and infinities become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def unspell(value: Any) -> Any:
    """The inverse of `spell`."""
    return SPELT.get(value, value) if isinstance(value, str) else value


def journal_line(row: Mapping[str, float | int | str | bool | None]) -> bytes:
    """One row as the line that stands in the file, with its check sum and line feed."""
    assert row, "a row has at least one value"
    assert "crc" not in row, "`crc` is the journal's own key"
    body = json.dumps({key: spell(value) for key, value in row.items()}, allow_nan=False)  # ASCII: no odd line ends
    return f'{body[:-1]}{_TAIL}{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The row of a line without its line feed, or None if the line is damaged."""
    tail = line[-_TAIL_LENGTH:]
    if not tail.startswith(_TAIL.encode()) or not tail.endswith(b'"}'):
        return None
    body = line[:-_TAIL_LENGTH] + b"}"
    if b"%08x" % zlib.crc32(body) != tail[len(_TAIL) : -2]:
        return None
    row: Any = json.loads(body)
    return {key: unspell(value) for key, value in row.items()}


def _scan(data: bytes, path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows and the length in bytes of the part that holds them; InputError if a good line follows a bad one."""
    rows: list[dict[str, Any]] = []
    good = 0
    damaged: int | None = None
    start = 0
    number = 0
    while (end := data.find(b"\n", start)) >= 0:
        number += 1
        row = parse_line(data[start:end])
        start = end + 1
        if row is None:
            damaged = damaged or number
        elif damaged is not None:
            raise InputError(
                "the line is damaged",
                file=path,
                line=damaged,
                mend="remove the run (winnow rm) and run it again, or restore the file from a copy",
            )
        else:
            rows.append(row)
            good = start
    return rows, good


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Every whole row, without its `crc`. A torn end is left out.

    Raises FileNotFoundError if there is no file, InputError (with the line) for damage before the end.
    """
    return _scan(_read(path), path)[0]


def journal_length(path: Path) -> tuple[int, int]:
    """Number of whole rows and bytes that they take. Raises as `read_journal`."""
    rows, length = _scan(_read(path), path)
    return len(rows), length


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(error, path, "cannot be read") from error


class Journal:
    """The one writer of a journal. Opening it cuts off what a killed writer left half written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn = False
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            with writing(path):
                sync_folder(path.parent)
            self._rows, self._offset = journal_length(path)
            with writing(path):
                if os.fstat(self._descriptor).st_size != self._offset:
                    os.ftruncate(self._descriptor, self._offset)
        except BaseException:
            os.close(self._descriptor)
            raise

    def append(self, row: Mapping[str, float | int | str | bool | None]) -> None:
        """Add a row; readers see it at once, a power cut keeps it only after `sync`.

        Raises InputError if it cannot be written. What half a row then stands at the end is cut off by the next
        append or opening, and left out by readers.
        """
        line = journal_line(row)
        with writing(self.path):
            if self._torn:
                os.ftruncate(self._descriptor, self._offset)
            self._torn = True
            write_all(self._descriptor, line)
        self._torn = False
        self._offset += len(line)
        self._rows += 1

    @property
    def rows(self) -> int:
        """Rows written so far, those of earlier processes included."""
        return self._rows

    def offset(self) -> int:
        """Bytes written so far: a checkpoint stores it, and a resumed run truncates to it."""
        return self._offset

    def truncate(self, offset: int) -> None:
        """Go back to an earlier `offset()`, forgetting the rows after it.

        Raises InputError if the file is shorter, or the offset is not between two rows.
        """
        with writing(self.path):
            ends_row = offset == 0 or os.pread(self._descriptor, 1, offset - 1) == b"\n"
        if offset > self._offset or not ends_row:
            raise InputError(
                f"has no row that ends at byte {offset}",
                file=self.path,
                mend="remove the run (winnow rm) and run it again: its checkpoint and its metrics disagree",
            )
        with writing(self.path):
            os.ftruncate(self._descriptor, offset)
            sync_file(self._descriptor)
        self._rows, self._offset = journal_length(self.path)

    def sync(self) -> None:
        """Make every row so far survive a power cut."""
        with writing(self.path):
            sync_file(self._descriptor)

    def close(self) -> None:
        """Close the file; it may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

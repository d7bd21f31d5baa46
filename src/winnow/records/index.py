"""A derived index over the records of a store: one SQLite file instead of thousands of small ones.

The files are the truth. Each row remembers the size, time and inode of the `run.json` that it was made from and a
check sum of its own text; a row that does not agree is read from its file again. An index that is missing, damaged,
of another version, locked or on a read-only disk costs time, never correctness: it is made anew, or passed over.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from winnow.records.run import unseal_text

INDEX_VERSION = 1
"""Bumped when the table or what its text means changes; an index of another version is made anew."""
_MANY = 8
"""Fewer records than this are read from their files: opening the index would cost more."""
_ALL = 500
"""From so many on, going through the whole index costs less than looking each record up."""
_TABLE = "CREATE TABLE records (digest TEXT PRIMARY KEY, size INT, changed INT, inode INT, crc INT, text TEXT)"

Mark = tuple[int, int, int]
"""Size in bytes, modification time in ns, inode."""


def read_texts(index: Path, runs: Path, digests: Iterable[str]) -> dict[str, str]:
    """Checked JSON text of each record among `digests` that exists, brought up to date in the index.

    index: the SQLite file; runs: the folder of the run folders. Raises InputError for a damaged `run.json`.
    """
    marks: dict[str, Mark] = {}
    for digest in digests:
        try:
            found = os.stat(os.path.join(runs, digest, "run.json"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        marks[digest] = (found.st_size, found.st_mtime_ns, found.st_ino)
    if len(marks) < _MANY:
        return _from_files(runs, marks)
    texts = _from_index(index, marks)
    fresh = _from_files(runs, [digest for digest in marks if digest not in texts])
    if fresh:
        _keep(index, {digest: (marks[digest], text) for digest, text in fresh.items()})
    return {**texts, **fresh}


def _from_files(runs: Path, digests: Iterable[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for digest in digests:
        path = runs / digest / "run.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # claimed anew or removed since we looked
        texts[digest] = unseal_text(data, path)
    return texts


def _from_index(index: Path, marks: dict[str, Mark]) -> dict[str, str]:
    if not index.exists():
        return {}
    texts: dict[str, str] = {}
    try:
        with closing(_open(index)) as connection:
            connection.text_factory = bytes  # damaged text is then data that fails its check sum
            asked = "SELECT digest, size, changed, inode, crc, text FROM records"
            names = list(marks) if len(marks) < _ALL else []
            if names:
                asked += f" WHERE digest IN ({', '.join('?' * len(names))})"
            for digest, size, changed, inode, crc, text in connection.execute(asked, names):
                name = digest.decode(errors="replace")
                if marks.get(name) == (size, changed, inode) and zlib.crc32(text) == crc:
                    texts[name] = text.decode()
    except sqlite3.OperationalError as error:
        _discard_if_misshapen(index, error)
        return texts  # else locked by a writer, or unreadable: the files will do
    except (sqlite3.DatabaseError, UnicodeError, TypeError, AttributeError):
        _discard(index)  # not a database, or its pages or values are damaged
        return {}
    return texts


def _keep(index: Path, fresh: dict[str, tuple[Mark, str]]) -> None:
    try:
        with closing(_open(index)) as connection, connection:
            connection.executemany(
                "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?)",
                [(digest, *mark, zlib.crc32(text.encode()), text) for digest, (mark, text) in fresh.items()],
            )
    except sqlite3.OperationalError as error:
        _discard_if_misshapen(index, error)  # else locked, full or read-only: the next reader tries again
    except sqlite3.DatabaseError:
        _discard(index)


def _open(index: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(index, timeout=0.2)
    try:
        # A power cut may damage the index; it is then made anew, so waiting for the disk would buy nothing.
        connection.execute("PRAGMA synchronous = OFF")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != INDEX_VERSION:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("DROP TABLE IF EXISTS records")
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {INDEX_VERSION}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _discard_if_misshapen(index: Path, error: sqlite3.OperationalError) -> None:
    """SQLITE_ERROR is SQL that does not fit: a table or a column is not there."""
    if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
        _discard(index)


def _discard(index: Path) -> None:
    try:
        for path in (index, index.with_name(index.name + "-journal")):
            path.unlink(missing_ok=True)
    except OSError:
        return  # a read-only folder: every reader then reads the files

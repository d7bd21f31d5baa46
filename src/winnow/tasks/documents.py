"""Documents: reading text, cutting it into documents, and the split into training and validation.

A document is a `bytes` of UTF-8 text without NUL. Its SHA-256 alone says on which side of the split it stands and
in which order it is read, so neither file names nor other documents move it, and copies stand on one side.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from winnow.errors import InputError
from winnow.tasks.shards import finished_manifest

BLOCK_BYTES = 8192
"""A block of a long text ends at the first blank line after this many bytes, or before twice as many."""

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_OTHER_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Split:
    """The documents of a corpus, each side ordered by the documents' SHA-256."""

    training: tuple[bytes, ...]
    validation: tuple[bytes, ...]


def split_documents(documents: Iterable[bytes], fraction: float) -> Split:
    """Part documents by their SHA-256: about `fraction` of them go to validation. Empty documents are left out."""
    ordered = sorted((hashlib.sha256(document).digest(), document) for document in documents if document)
    # The smallest hashes are validation: of n documents, each one alone and for good.
    limit = int(fraction * 2**64)
    cut = sum(int.from_bytes(key[:8]) < limit for key, _ in ordered)
    texts = tuple(document for _, document in ordered)
    return Split(training=texts[cut:], validation=texts[:cut])


def in_validation(document: bytes, fraction: float) -> bool:
    """The side of the split on which `split_documents` puts this document."""
    return int.from_bytes(hashlib.sha256(document).digest()[:8]) < int(fraction * 2**64)


def stdlib_documents() -> list[bytes]:
    """The running Python's standard library: one document per source file, sorted by path.

    Without tests, installed packages and what the build wrote for this machine. Sources that are not UTF-8 text
    are left out.
    """
    found = [text for path in stdlib_files() if text_fault(text := path.read_bytes()) is None]
    if not found:
        raise InputError(
            f"this Python has no standard library sources in {_stdlib()}",
            key="task.source",
            mend="give text files as source",
        )
    return found


def stdlib_files() -> list[Path]:
    """The source files of `stdlib_documents`, those among them that are not text too."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(_stdlib()):
        # Sorted in place: os.walk then descends in this order.
        subfolders[:] = sorted(name for name in subfolders if not _left_out(name))
        found += [
            Path(folder, name)
            for name in sorted(names)
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ]
    return found


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _left_out(folder: str) -> bool:
    return folder in _TEST_FOLDERS or folder in _OTHER_FOLDERS or folder.startswith("config-")


def find_files(sources: Sequence[str]) -> list[Path]:
    """The files that paths, globs (`*`, `**`) and folders of prepared shards name, sorted by path, each once.

    Raises InputError for a missing file, another folder, or a glob that matches nothing.
    """
    found: set[Path] = set()
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file():
            found.add(path)
        elif path.is_dir() and (manifest := finished_manifest(path)) is not None:
            found.update(path / entry.file for entry in manifest.shards)
        elif path.is_dir():
            mend = f"name its files, for example {str(path / '**' / '*.txt')!r}"
            raise InputError("is a folder", file=path, key="task.source", mend=mend)
        elif glob.has_magic(source):
            matches = [Path(name) for name in glob.glob(str(path), recursive=True)]
            files = [match for match in matches if match.is_file()]
            if not files:
                mend = f"paths are taken from the study's folder or, here, from {Path.cwd()}"
                raise InputError(f"the glob {source!r} matches no file", key="task.source", mend=mend)
            found.update(files)
        else:
            raise InputError("no such file", file=path, key="task.source", mend="correct the path")
    return sorted(found)


def read_text(path: Path) -> bytes:
    """A file's bytes. Raises InputError where they are not UTF-8 text, or hold a NUL."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, key="task.source") from error
    fault = text_fault(text)
    if fault is not None:
        mend = "give UTF-8 text, or token shards ending in .bin"
        raise InputError(f"is a binary file, not text ({fault})", file=path, key="task.source", mend=mend)
    return text


def text_fault(text: bytes) -> str | None:
    """Why these bytes are not text; None: they are."""
    nul = text.find(b"\0")
    if nul >= 0:
        return f"a NUL at byte {nul}"
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    return None


def document_rule(asked: Literal["file", "block"] | None, texts: int) -> Literal["file", "block"]:
    """What a document is where nobody says: a `block` where there is a single text, else a whole `file`."""
    return asked or ("block" if texts == 1 else "file")


def blocks(text: bytes) -> list[bytes]:
    """A long text as consecutive blocks that together are the text.

    A block ends at the first blank line from `BLOCK_BYTES` on; where there is none within twice as many bytes, at
    the last line end before that; where there is none either, at a character.
    """
    found: list[bytes] = []
    start = 0
    while len(text) - start > BLOCK_BYTES:
        stop = min(_block_end(text, start + BLOCK_BYTES, start + 2 * BLOCK_BYTES), len(text))
        while stop < len(text) and text[stop] & 0xC0 == 0x80:
            stop -= 1  # not before a UTF-8 continuation byte: that is inside a character
        found.append(text[start:stop])
        start = stop
    if start < len(text):
        found.append(text[start:])
    return found


def batches(documents: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """Consecutive documents of about `size` bytes together."""
    batch: list[bytes] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _block_end(text: bytes, low: int, high: int) -> int:
    blank = [at + len(mark) for mark in (b"\n\n", b"\n\r\n", b"\n \n") if (at := text.find(mark, low, high)) >= 0]
    return min(blank) if blank else text.rfind(b"\n", low, high) + 1 or high

"""From a file to its studies, and results back into the file.

A `.toml` study keeps its results beside it, in `<stem>.results.md`; a notebook holds them under each study's cell.
Pictures lie beside the file. The author's edits always win: the file is read again under a lock just before it is
written, and an edit made inside Winnow's own part is copied beside before it is replaced.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from winnow.errors import InputError, nearest
from winnow.notebook.document import SEAL, Document, seal
from winnow.notebook.frontmatter import FrontMatter
from winnow.records.files import FileLock, make_folder, write_atomic, writing
from winnow.study.spec import Study, load_study, parse_study

NOTEBOOK_SUFFIXES = (".md", ".markdown")
_ATTEMPTS = 20
"""How often a write starts again because somebody saved the file meanwhile."""


@dataclass(frozen=True)
class Source:
    """A file that declares studies."""

    path: Path
    studies: tuple[Study, ...]
    cells: Mapping[str, str]
    """Text of each study's cell as it was read, by study id; empty for a `.toml` file."""
    changed: bool
    """Whether settings were given on the command line: the results are then no part of the file."""
    declared: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Every study of the file, those that were not asked for too, and what each supersedes."""
    document: Document | None = None
    """The notebook as it was read; None for a `.toml` file."""

    @property
    def front(self) -> FrontMatter:
        """Title, date and tags of a notebook."""
        return FrontMatter() if self.document is None else self.document.front

    @property
    def is_notebook(self) -> bool:
        """Whether results go into the file itself."""
        return self.path.suffix.lower() in NOTEBOOK_SUFFIXES


@dataclass(frozen=True)
class Results:
    """What Winnow says about one study: Markdown, and the pictures that it shows, by file name."""

    markdown: str
    pictures: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


@dataclass(frozen=True)
class Written:
    """Where results went."""

    files: tuple[Path, ...]
    """Every file that now holds results, changed or not."""
    changed: bool
    """Whether any byte was written."""
    notes: tuple[str, ...] = ()
    """What the user should know: edits that were set aside, cells that have changed or gone."""


def open_source(path: Path, changes: Mapping[str, Any] | None = None, only: str | None = None) -> Source:
    """The studies of a file.

    changes: settings to use instead of the file's, by dotted key. only: id of the one study wanted.
    Raises InputError with file, line, key and mend.
    """
    suffix = path.suffix.lower()
    if suffix == ".toml":
        study = load_study(path, changes, only)
        return Source(path, (study,), {}, bool(changes), {study.id: study.supersedes})
    if suffix not in NOTEBOOK_SUFFIXES:
        found = "no such file" if not path.exists() else "is neither a study nor a notebook"
        raise InputError(found, file=path, mend="give a .toml study or a .md notebook")
    document = Document.read(path)
    cells = [cell for cell in document.cells if only is None or cell.study == only]
    if not document.cells:
        raise InputError("has no study cell", file=path, mend="add a fenced block that opens with ```toml study")
    if not cells:
        names = [cell.study for cell in document.cells if cell.study]
        raise InputError(f"has no study {only!r}", file=path, key="--only", mend=nearest(str(only), names))
    studies = tuple(parse_study(cell.text, path, cell.first_line, changes) for cell in cells)
    texts = {study.id: cell.text for study, cell in zip(studies, cells, strict=True)}
    declared = {cell.study: cell.supersedes for cell in document.cells if cell.study is not None}
    return Source(path, studies, texts, bool(changes), declared, document)


def relatives(source: Source) -> Source:
    """The studies of the same notebook that those of `source` replace or are replaced by: their results speak of them.

    One whose cell cannot be read is left out.
    """
    asked = {study.id for study in source.studies}
    linked = {old for name, old in source.declared.items() if name in asked and old is not None}
    linked |= {name for name, old in source.declared.items() if old in asked}
    found: list[Source] = []
    for name in source.declared:
        if name in linked - asked:
            with suppress(InputError):
                found.append(open_source(source.path, only=name))
    studies = tuple(study for each in found for study in each.studies)
    return replace(source, studies=studies, cells={name: text for each in found for name, text in each.cells.items()})


def results_path(source: Source, study: Study) -> Path:
    """Where a study's results go."""
    if source.is_notebook and not source.changed:
        return source.path
    stem = source.path.stem if study.plan_name == study.id else f"{source.path.stem}.{study.plan_name}"
    return source.path.with_name(f"{stem}.results.md")


def write_results(source: Source, results: Mapping[str, Results], locks: Path) -> Written:
    """Write each study's results where they belong, only what has changed, each file whole or not at all.

    results: by study id. locks: a folder for the lock that keeps two Winnows from one file.
    Raises InputError where the file can no longer be read as a notebook or the disk refuses; the old file then stands.
    """
    files: list[Path] = []
    changed = False
    notes: list[str] = []
    folder = source.path.resolve().parent
    for found in results.values():
        for name, data in found.pictures.items():
            files.append(source.path.with_name(name))
            changed |= _write_changed(folder / name, data)
    make_folder(locks)
    name = hashlib.sha256(str(source.path.resolve()).encode()).hexdigest()[:16]
    with FileLock(locks / f"write-{name}.lock"):
        if source.is_notebook and not source.changed:
            files.insert(0, source.path)
            changed |= _write_notebook(source, results, notes)
        else:
            for study in source.studies:
                if study.id in results:
                    path = results_path(source, study)
                    files.insert(0, path)
                    changed |= _write_own(path, results[study.id].markdown, notes)
    return Written(tuple(dict.fromkeys(files)), changed, tuple(notes))


def _write_notebook(source: Source, results: Mapping[str, Results], notes: list[str]) -> bool:
    path = source.path.resolve()  # a link stays a link
    for _ in range(_ATTEMPTS):
        document = _as_it_is(path, source.document)
        present = {
            study: found.markdown
            for study, found in results.items()
            if document.cell(study) is not None or document.block(study) is not None
        }
        new = document.with_results(present)
        if new == document.data:
            break
        for block in document.blocks:
            if block.study in present and block.edited:
                _keep(path, block.study, block.content, notes)
        with writing(path, "cannot be read"):
            if path.read_bytes() != document.data:
                continue
        write_atomic(path, new)
        break
    else:
        raise InputError(
            "changes faster than results can be written",
            file=source.path,
            mend="save it once more and give the same command again; nothing is run twice",
        )
    for study in results:
        cell = document.cell(study)
        if study not in present:
            notes.append(f"{source.path}: study {study} is no longer in the file; its runs are recorded")
        elif cell is None or cell.text != source.cells[study]:
            notes.append(
                f"{source.path}: the cell of {study} has changed meanwhile; give the command again to judge it"
            )
    return new != document.data


def _as_it_is(path: Path, known: Document | None) -> Document:
    """The notebook as it is now; parsing it once more is spared where nothing has changed."""
    if known is not None:
        with writing(path, "cannot be read"):
            if path.read_bytes() == known.data:
                return known
    return Document.read(path)


def _write_own(path: Path, markdown: str, notes: list[str]) -> bool:
    """A results file that is Winnow's as a whole; its last line seals it, so that an edit is noticed."""
    body = markdown.strip()
    try:
        before = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        before = ""
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    lines = re.split(r"\r\n|\n|\r", before)
    sealed = next((match[1] for line in reversed(lines) if (match := SEAL.match(line))), None)
    content = "\n".join(line for line in lines if not SEAL.match(line))
    if content.strip() and sealed != seal(content):
        _keep(path, None, content, notes)
    return _write_changed(path, f"{body}\n\n<!-- sealed:{seal(body)} -->\n".encode())


def _keep(path: Path, study: str | None, content: str, notes: list[str]) -> None:
    """Put an edited text beside the file before it is replaced."""
    part = f".{study}" if study else ""
    copy = path.with_name(f"{path.stem}{part}.edited-{seal(content)[:8]}.md")
    if not copy.exists():
        write_atomic(copy, content.strip() + "\n")
    notes.append(
        f"{path}: the results{f' of {study}' if study else ''} had been edited; that text is now in {copy.name}"
    )


def _write_changed(path: Path, data: bytes) -> bool:
    try:
        if path.read_bytes() == data:
            return False
    except OSError:
        pass  # absent, or unreadable: writing says what is wrong
    write_atomic(path, data)
    return True

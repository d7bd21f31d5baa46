"""Notebooks and studies of a folder, read for `winnow index`. One that is damaged is listed and stops no other."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from winnow.analysis.overview import Entry, Listed
from winnow.analysis.sections import claim_line, open_claims
from winnow.cli import options
from winnow.errors import InputError
from winnow.notebook.document import Document
from winnow.notebook.execute import NOTEBOOK_SUFFIXES, open_source
from winnow.notebook.prose import page_of
from winnow.records.store import STORE_FOLDER, RunStore
from winnow.study.agreement import SameComparison, same_comparisons
from winnow.study.compare import Comparison, compare
from winnow.study.plan import load_plan
from winnow.study.spec import Study
from winnow.study.succession import Successions


@dataclass(frozen=True)
class Gathered:
    """What a folder holds."""

    title: str
    entries: tuple[Entry, ...]
    same: tuple[SameComparison, ...]

    @property
    def damaged(self) -> bool:
        """Whether something could not be read or judged."""
        return any(entry.damage or any(study.problem for study in entry.studies) for entry in self.entries)


def check_folder(folder: Path) -> None:
    """Raise InputError where there is no such folder."""
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "no such folder"
        raise InputError(
            found, file=folder, mend="give a folder of notebooks; winnow report makes the page of one file"
        )


def gather(folder: Path, page: Path, store: Path | None) -> Gathered:
    """Every notebook and study file in a folder and below. page: where the index goes, from which it links.

    Raises InputError where it holds no study.
    """
    entries: list[Entry] = []
    comparisons: list[tuple[str, Comparison]] = []
    for path in _files(folder):
        entry = _entry(path, folder, page, store, comparisons)
        if entry is not None:
            entries.append(entry)
    if not entries:
        raise InputError(
            "holds no notebook with a study", file=folder, mend="give a folder of .md notebooks or .toml studies"
        )
    return Gathered(f"Notebooks in {folder.resolve().name}", tuple(entries), same_comparisons(comparisons))


def _files(folder: Path) -> list[Path]:
    """By name; folders of stores and hidden ones left out."""
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != STORE_FOLDER)
        if "STORE.json" in names:
            folders.clear()
            continue
        kinds = (*NOTEBOOK_SUFFIXES, ".toml")
        found += [Path(root, name) for name in names if Path(name).suffix.lower() in kinds and not name.startswith(".")]
    return sorted(found)


def _entry(
    path: Path, folder: Path, page: Path, store: Path | None, comparisons: list[tuple[str, Comparison]]
) -> Entry | None:
    """A file as the index lists it; None where it declares no study."""
    name = path.relative_to(folder).as_posix()
    link, made = _link(path, page), path.with_suffix(".html")
    report = _link(made, page) if made.is_file() and made.resolve() != page.resolve() else ""
    title, date, tags = path.stem, "", ()
    try:
        if path.suffix.lower() == ".toml":
            if not _is_study(path):
                return None
        else:
            document = Document.read(path)
            if not document.cells:
                return None
            read = page_of(document)
            title, date, tags = read.title or title, read.date, read.tags
        source = open_source(path)
        records = options.open_store(store, beside=path)
        successions = Successions(records, source.studies, file=path, declared=source.declared)
    except InputError as error:
        return Entry(name, link, report, title, date, tags, damage=_said(error, folder))
    if not source.is_notebook:
        title = source.studies[0].question or title
    studies = tuple(_listed(study, records, successions, folder, name, comparisons) for study in source.studies)
    return Entry(name, link, report, title, date, tags, studies)


def _listed(
    study: Study,
    records: RunStore,
    successions: Successions,
    folder: Path,
    name: str,
    comparisons: list[tuple[str, Comparison]],
) -> Listed:
    try:
        if study.runs == "winnow" and load_plan(records, study) is None:
            return Listed(study.id, study.question, open_claims(study))
        comparison = compare(study, records, successions)
    except InputError as error:
        return Listed(study.id, study.question, open_claims(study), _said(error, folder))
    comparisons.append((name, comparison))
    return Listed(study.id, study.question, tuple(claim_line(study, verdict) for verdict in comparison.verdicts))


def _is_study(path: Path) -> bool:
    """Whether a .toml file is a study, or may have been meant as one: other programs have such files too."""
    try:
        return "arms" in tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return True  # reading it as a study says what is wrong


def _said(error: InputError, folder: Path) -> str:
    """The error with places as seen from the folder of the index: the page need not say where that lies."""
    text = str(error)
    for root in (folder, folder.resolve()):
        text = text.replace(f"{root}{os.sep}", "")
    return text


def _link(path: Path, page: Path) -> str:
    return quote(os.path.relpath(path.resolve(), page.resolve().parent).replace(os.sep, "/"))


def plain_index(found: Gathered) -> dict[str, Any]:
    """The index as JSON data."""
    return {
        "files": [
            {
                "file": entry.name,
                "title": entry.title,
                "date": entry.date,
                "tags": list(entry.tags),
                "damage": entry.damage or None,
                "studies": [
                    {
                        "study": study.id,
                        "question": study.question,
                        "claims": {claim.id: claim.status for claim in study.claims},
                        "problem": study.problem or None,
                    }
                    for study in entry.studies
                ],
            }
            for entry in found.entries
        ],
        "same": [
            {
                "metric": each.metric,
                "kind": each.kind,
                "compatible": each.compatible,
                "statements": [
                    {
                        key: getattr(said, key)
                        for key in (
                            "place",
                            "study",
                            "claim",
                            "status",
                            "one",
                            "other",
                            "effect",
                            "low",
                            "high",
                            "budget",
                        )
                    }
                    for said in each.statements
                ],
            }
            for each in found.same
        ],
    }

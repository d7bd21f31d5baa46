"""Arguments that several commands share, and what they mean: studies, stores, runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.notebook.execute import Source
    from winnow.records.store import RunStore
    from winnow.study.succession import Successions

STUDIES, VERDICTS, RUNS, NOTEBOOKS, MODELS, UPKEEP = (
    "Studies",
    "Verdicts",
    "Runs",
    "Notebooks",
    "Trained models",
    "Upkeep",
)
"""Panels of --help, in this order."""

StudyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .toml study or a .md notebook.", show_default=False)]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The start of a digest, or study/arm/seed.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Use another value, say base.train.steps=40. The result is another study, kept apart from the file's own.",
        show_default=False,
    ),
]
Only = Annotated[str | None, typer.Option("--only", metavar="ID", help="One study of a notebook.", show_default=False)]


def _store(where: str) -> Any:
    text = f"Folder of the records; default $WINNOW_STORE, else winnow-store {where}."
    return typer.Option("--store", metavar="DIR", help=text, show_default=False)


Store = Annotated[Path | None, _store("beside the study's file")]
StoreAbove = Annotated[Path | None, _store("here or in a folder above")]
"""Of commands that are given no study."""
StoreNearby = Annotated[Path | None, _store("beside a study that is named, else here or in a folder above")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def changes_of(settings: list[str] | None) -> dict[str, Any]:
    """Settings of `--set`, by dotted key. Raises InputError for one that is not key=value."""
    from winnow.study.spec import parse_change

    return dict(parse_change(text) for text in settings or [])


def seeds_of(text: str | None) -> tuple[int, ...] | None:
    """Seeds of `--seeds`: "0..4" (both ends included), "3", or "0,2,5". Raises InputError for anything else."""
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        if not first.strip().isdecimal() or (dots and not last.strip().isdecimal()):
            raise InputError(f"{text!r} is not a range of seeds", key="--seeds", mend="write 0..4, or 0,2,5")
        found = range(int(first), int(last if dots else first) + 1)
        if not found:
            raise InputError(f"{part!r} holds no seed", key="--seeds", mend="write the lower seed first")
        seeds += [seed for seed in found if seed not in seeds]
    return tuple(seeds)


def device_of(name: str) -> str:
    """The device that `--device` names, `auto` resolved. Raises InputError where it is not on this machine."""
    if name == "cpu":  # what is recorded is read without torch
        return name
    from winnow.train.device import find_device

    try:
        return str(find_device(name))
    except InputError as error:
        raise InputError(error.message, key="--device", mend=error.mend) from None


def open_store(store: Path | None, beside: Path | None = None) -> RunStore:
    """The store that a command reads or writes."""
    from winnow.records.store import RunStore, find_store

    return RunStore(find_store(store, beside=beside))


def open_recorded(
    file: Path, settings: list[str] | None, only: str | None, store: Path | None
) -> tuple[Source, RunStore, Successions]:
    """The studies of a file, the store of their runs, and which studies replace which.

    Raises InputError where `--set` makes an unknown study.
    """
    from winnow.notebook.execute import open_source
    from winnow.study.plan import load_plan
    from winnow.study.succession import Successions

    source = open_source(file, changes_of(settings), only)
    records = open_store(store, beside=file)
    for study in source.studies if settings else ():
        if study.runs == "winnow" and load_plan(records, study) is None:
            message = f"study {study.id!r} has no plan with these settings in {records.root}"
            given = " ".join(f"--set {shlex.quote(text)}" for text in settings or ())
            raise InputError(message, file=file, mend=f"give `winnow run` or `winnow check` first, with {given} too")
    return source, records, Successions(records, source.studies, file=source.path, declared=source.declared)


def find_run(store: RunStore, text: str) -> str:
    """Digest of the run that `text` names: the start of a digest, or study/arm/seed. Raises InputError."""
    if "/" not in text:
        return store.find(text)
    study, _, rest = text.partition("/")
    arm, _, seed = rest.rpartition("/")
    if not (study and arm and seed.isdecimal()):
        raise InputError(f"{text!r} names no run", mend="give study/arm/seed, say bos-protection/control/0")
    planned = _planned(store, study, arm, int(seed))
    if planned is not None:
        return planned
    found = [
        digest
        for digest, record in store.records().items()
        if (record.label.study, record.label.arm, record.seed) == (study, arm, int(seed))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{text!r} fits {len(found)} runs", mend=f"give a digest: {', '.join(sorted(found)[:5])}")
    raise InputError(f"there is no run {text!r} in {store.root}", mend="see winnow status FILE")


def _planned(store: RunStore, study: str, arm: str, seed: int) -> str | None:
    from winnow.records.files import read_json, safe_name
    from winnow.study.plan import Plan

    try:
        plan = Plan.model_validate(read_json(store.root / "studies" / f"{safe_name(study, what='study id')}.json"))
    except FileNotFoundError:
        return None
    if arm not in plan.arms:
        return None
    digest = plan.run(arm, seed)
    return digest if digest in store.digests() else None

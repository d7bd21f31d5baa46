"""What a run starts from, read from the store or from files, and checked byte by byte before it is used.

A parent that is not exactly what the study was resolved with is refused: another checkpoint in its place, the newest
whole one say, would be another starting point under the same name.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from winnow.config import digest as digest_of
from winnow.config import input_errors, parent_digest, run_digest
from winnow.errors import InputError
from winnow.models.fetch import fetch
from winnow.models.interchange import read_weights
from winnow.records.checkpoints import DamagedError, step_folder, step_folders, step_of
from winnow.records.journal import read_journal
from winnow.records.manifest import METRICS
from winnow.records.run import RunIdentity, RunRecord
from winnow.records.store import RunStore
from winnow.train.checkpoint import Snapshot, read
from winnow.train.config import InitFromConfig, RunConfig, parent_name
from winnow.train.start import Parent, Position


def read_parent(config: RunConfig, seed: int, digest: str | None, store: RunStore) -> Parent | None:
    """What `config.init_from` names; None where it names nothing.

    seed: the run's own; digest: of the parent's run, which is in `store`; None: a file. Raises InputError where the
    parent is not there, not whole, or not what the study was resolved with.
    """
    start = config.init_from
    if start is None:
        return None
    if start.path is not None:
        return file_parent(start.path)
    if digest is None:
        raise InputError("the run's parent was not named", key="init_from", mend="give the command again")
    return _run_parent(start, seed, digest, store)


def file_parent(path: str) -> Parent:
    """The weights in a file, a folder, or at a URL. Raises InputError where there is no model."""
    found = read_weights(fetch(path))
    if found.checkpoint is None:
        snapshot = Snapshot(step=0, journal=0, weights=found.weights, moments={}, progress={})
        return Parent(path, found.sha256, found.config, snapshot, found.vocab_size, found.context, said=found.said)
    # A checkpoint of ours: with the optimizer, and the place in the data.
    about = RunIdentity.model_validate_json((found.checkpoint.parent.parent / "config.json").read_bytes())
    mend = "restore it from a copy, or name another step's folder"
    snapshot = _whole(found.checkpoint, about.digest, mend)
    identity = digest_of([found.sha256, about.digest, snapshot.step, Position.of(snapshot.progress).dump()])
    config = _config(about.config, path)
    return Parent(
        f"{path}, step {snapshot.step}",
        identity,
        config.grown,
        snapshot,
        found.vocab_size,
        config.task.context,
        config=config,
        seed=about.seed,
        data=about.data,
        loss=_loss_beside(found.checkpoint, snapshot.step),
        said=found.said,
    )


def _run_parent(start: InitFromConfig, seed: int, digest: str, store: RunStore) -> Parent:
    name = f"run {digest} ({start.run})"
    record = store.record(digest)
    if record is None:
        raise InputError(f"{name} has not ended in this store", key="init_from.run", mend="run its study first")
    config = _config(record.config, name)
    fixed = parent_name(start.run or "")[2]
    identity = parent_digest(config.canonical(), record.data, record.sources, fixed)
    made = run_digest(config.canonical(), record.seed, record.data, record.sources)
    if identity != start.identity or made != digest or record.seed != (seed if fixed is None else fixed):
        raise InputError(
            f"{name} is not what the study was resolved with",
            key="init_from.run",
            mend="give the command again: the parent has changed since",
        )
    step = _step(start, record, name)
    folder = store.path(digest) / "checkpoints" / step_folder(step)
    if not folder.is_dir():
        raise InputError(*_no_checkpoint(store, digest, step, name))
    snapshot = _whole(
        folder, digest, f"restore it from a copy, or remove the run (winnow rm {digest}) and run it again"
    )
    return Parent(
        f"{name}, step {step}",
        identity,
        config.grown,
        snapshot,
        int(record.facts.get("vocab_size", 0)),
        config.task.context,
        config=config,
        seed=record.seed,
        data=record.data,
        loss=_loss(store.metrics(digest), step),
    )


def _loss(rows: list[dict[str, Any]], step: int) -> float | None:
    """The validation loss of a run after `step` updates: where it was not evaluated there, the larger one of the
    evaluations before and after."""
    found = [(row["step"], row["val/ce"]) for row in rows if "val/ce" in row]
    around = [*[loss for at, loss in found if at <= step][-1:], *[loss for at, loss in found if at >= step][:1]]
    return max(around) if around and all(map(math.isfinite, around)) else None


def _loss_beside(checkpoint: Path, step: int) -> float | None:
    """The same from the metrics in the folder of the checkpoint's run; None where they are not there or not whole."""
    try:
        return _loss(read_journal(checkpoint.parent.parent / METRICS), step)
    except (FileNotFoundError, InputError):
        return None


def _step(start: InitFromConfig, record: RunRecord, name: str) -> int:
    step = record.steps_asked if start.step is None else start.step
    if record.status == "failed" or (record.status == "diverged" and step > record.steps_done):
        raise InputError(f"{name} has {record.status} after {record.steps_done} steps", key="init_from.run")
    return step


def _no_checkpoint(store: RunStore, digest: str, step: int, name: str) -> tuple[str]:
    have = sorted(found for path in step_folders(store.path(digest) / "checkpoints") if (found := step_of(path.name)))
    steps = f"it has {', '.join(map(str, have))}" if have else "it has none"
    return (
        f"{name} has no checkpoint at step {step} ({steps}): set train.keep = [{step}] in its study, remove the run "
        f"(winnow rm {digest}) and run it again",
    )


def _whole(folder: Path, digest: str, mend: str) -> Snapshot:
    try:
        return read(folder, digest)
    except DamagedError as damage:
        raise InputError(f"is no whole checkpoint: {damage}", file=folder, mend=mend) from damage
    except (KeyError, ValueError, json.JSONDecodeError) as error:
        raise InputError(f"is no checkpoint of this version: {error}", file=folder) from error


def _config(table: dict[str, Any], name: str) -> RunConfig:
    try:
        return RunConfig.model_validate(table)
    except ValidationError as error:
        first = input_errors(error)[0]
        raise InputError(
            f"the settings of {name} mean nothing here: {first}", key="init_from", mend="`use` the files that it used"
        ) from None

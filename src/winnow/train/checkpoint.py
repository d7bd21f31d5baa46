"""Checkpoints that survive SIGKILL, a full disk and a flipped bit.

    checkpoints/step-00000400/weights.safetensors     parameters and persistent buffers, by name
                              moments.safetensors     AdamW's state, `NAME/exp_avg` and so on
                              progress.json           journal offset, smoothing, health, seconds
                              manifest.json           run digest, step, size and SHA-256 of the three
                              COMPLETE                SHA-256 of the manifest; written last
    checkpoints/latest                                name of the newest, for people; the loader does not need it

A checkpoint is a new folder: its files are written and synced under a temporary name, the folder is renamed, `COMPLETE`
follows, and only then does `latest` move and do older ones go. No step is overwritten. The loader checks every byte,
takes the newest checkpoint that is whole and says which it passed over. The steps in `train.keep` stay for good.

There is no state of random generators to save: every draw is a function of (seed, stream, step, index).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from winnow.records.checkpoints import (
    COMPLETE,
    MANIFEST,
    VERSION,
    DamagedError,
    read_file,
    read_manifest,
    step_folder,
    step_folders,
    step_of,
)
from winnow.records.files import make_folder, sync_file, sync_folder, write_all, write_atomic, writing

WEIGHTS, MOMENTS, PROGRESS = "weights.safetensors", "moments.safetensors", "progress.json"
LATEST = "latest"


@dataclass(frozen=True)
class Snapshot:
    """Everything from which a run continues exactly.

    step: updates done; journal: bytes of the metrics file that belong to it; weights, moments: CPU tensors by name;
    progress: JSON data of the trainer.
    """

    step: int
    journal: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    progress: Mapping[str, Any]

    def outline(self) -> Snapshot:
        """The same with the shapes of its tensors alone."""
        weights, moments = (
            {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
            for tensors in (self.weights, self.moments)
        )
        return replace(self, weights=weights, moments=moments)


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, where there is one, and a sentence for each that was passed over."""

    snapshot: Snapshot | None
    skipped: tuple[str, ...]


def save(folder: Path, digest: str, snapshot: Snapshot, *, keep: int = 2, spare: Collection[int] = ()) -> str:
    """Write a checkpoint, then remove all but the newest `keep` and those of the steps in `spare`; returns the SHA-256
    of its weights file.

    folder: the run's `checkpoints`; digest: the run's. The caller holds the run's lock. Raises InputError (no space,
    no permission) with every earlier checkpoint as it was.
    """
    make_folder(folder)
    name = step_folder(snapshot.step)
    draft = folder / f".tmp-{name}"
    with writing(folder / name):
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            weights = _write(folder, draft, name, digest, snapshot)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        write_atomic(folder / LATEST, name)
        purge(folder, keep, spare)
    return weights


def _write(folder: Path, draft: Path, name: str, digest: str, snapshot: Snapshot) -> str:
    progress = {**snapshot.progress, "journal": snapshot.journal}
    contents: dict[str, Callable[[], bytes]] = {
        # One file in memory at a time.
        WEIGHTS: lambda: safetensors.torch.save(_plain(snapshot.weights)),
        MOMENTS: lambda: safetensors.torch.save(_plain(snapshot.moments)),
        PROGRESS: lambda: _json(progress),
    }
    files: dict[str, dict[str, Any]] = {}
    for file, make in contents.items():
        data = make()
        # The hash is of what was meant, so a write that went wrong is found on loading.
        files[file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _write_synced(draft / file, data)
    manifest = _json({"version": VERSION, "digest": digest, "step": snapshot.step, "files": files})
    _write_synced(draft / MANIFEST, manifest)
    sync_folder(draft)
    final = folder / name
    if final.exists():
        # Only a checkpoint that the loader refused can stand here: it moves out of the way and goes with the purge.
        os.rename(final, _free_name(folder, f"refused-{name}"))
    os.rename(draft, final)
    sync_folder(folder)
    _write_synced(final / COMPLETE, hashlib.sha256(manifest).hexdigest().encode())
    sync_folder(final)
    return files[WEIGHTS]["sha256"]


def purge(folder: Path, keep: int, spare: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` complete checkpoints and those of the steps in `spare`, and every draft. The
    caller holds the run's lock."""
    assert keep >= 1
    complete = [path for path in step_folders(folder) if (path / COMPLETE).is_file()]
    kept = [*complete[:keep], *(path for path in complete[keep:] if step_of(path.name) in spare)]
    for path in sorted(folder.iterdir()):
        if path.name == LATEST or path in kept or path.is_symlink():
            continue
        if path.is_dir():
            # COMPLETE goes first: a removal that is cut short leaves a folder that the loader refuses.
            (path / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink()


def load_newest(folder: Path, digest: str, *, accept: Callable[[Snapshot], str | None] = lambda _: None) -> Found:
    """The newest checkpoint of run `digest` whose every byte is as written.

    accept: says what else is wrong with a snapshot (a journal that is too short), or None.
    """
    skipped: list[str] = []
    for path in step_folders(folder):
        try:
            snapshot = read(path, digest)
        except DamagedError as damage:
            skipped.append(f"{path.name}: {damage}")
            continue
        objection = accept(snapshot)
        if objection is None:
            return Found(snapshot, tuple(skipped))
        skipped.append(f"{path.name}: {objection}")
    return Found(None, tuple(skipped))


def read(path: Path, digest: str) -> Snapshot:
    """The checkpoint in folder `path`. Raises `DamagedError` naming the first file that is wrong."""
    manifest = read_manifest(path, digest)
    contents = {file: read_file(path, manifest, file) for file in manifest.files}
    progress = json.loads(contents[PROGRESS])
    return Snapshot(
        step=manifest.step,
        journal=progress.pop("journal"),
        weights=safetensors.torch.load(contents[WEIGHTS]),
        moments=safetensors.torch.load(contents[MOMENTS]),
        progress=progress,
    )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the weights file that these tensors would make: equal digests mean bit-identical weights."""
    return hashlib.sha256(safetensors.torch.save(_plain(weights))).hexdigest()


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to(torch.device("cpu")).contiguous() for name, tensor in tensors.items()}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _free_name(folder: Path, stem: str) -> Path:
    number = 0
    while (path := folder / f"{stem}-{number}").exists():
        number += 1
    return path


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, data)
        sync_file(descriptor)
    finally:
        os.close(descriptor)

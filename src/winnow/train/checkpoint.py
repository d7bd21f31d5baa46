"""Checkpoints that survive SIGKILL, a full disk and a flipped bit.

    checkpoints/step-00000400/weights.safetensors     parameters and persistent buffers, by name
                              moments.safetensors     AdamW's state, `NAME/exp_avg` and so on
                              progress.json           journal offset, smoothing, health, seconds
                              manifest.json           run digest, step, size and SHA-256 of the three
                              COMPLETE                SHA-256 of the manifest; written last
    checkpoints/latest                                name of the newest, for people; the loader does not need it

A checkpoint is a new folder: its files are written and synced under a temporary name, the folder is renamed, `COMPLETE`
follows, and only then does `latest` move and do older ones go. No step is overwritten. The loader checks every byte,
takes the newest checkpoint that is whole and says which it passed over.

There is no state of random generators to save: every draw is a function of (seed, stream, step, index).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from winnow.records.files import make_folder, sync_file, sync_folder, write_all, write_atomic, writing

WEIGHTS, MOMENTS, PROGRESS = "weights.safetensors", "moments.safetensors", "progress.json"
MANIFEST, COMPLETE, LATEST = "manifest.json", "COMPLETE", "latest"
VERSION = 1
_STEP = re.compile(r"step-(\d{8,})")


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


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, where there is one, and a sentence for each that was passed over."""

    snapshot: Snapshot | None
    skipped: tuple[str, ...]


def save(folder: Path, digest: str, snapshot: Snapshot, *, keep: int = 2) -> str:
    """Write a checkpoint, then remove all but the newest `keep`; returns the SHA-256 of its weights file.

    folder: the run's `checkpoints`; digest: the run's. The caller holds the run's lock. Raises InputError (no space,
    no permission) with every earlier checkpoint as it was.
    """
    make_folder(folder)
    name = f"step-{snapshot.step:08d}"
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
        purge(folder, keep)
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


def purge(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and every draft. The caller holds the run's lock."""
    assert keep >= 1
    complete = [path for path in _steps(folder) if (path / COMPLETE).is_file()]
    for path in sorted(folder.iterdir()):
        if path.name == LATEST or path in complete[:keep] or path.is_symlink():
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
    for path in _steps(folder):
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


class DamagedError(ValueError):
    """A checkpoint is not what was written, or not of this run."""


def read(path: Path, digest: str) -> Snapshot:
    """The checkpoint in folder `path`. Raises `DamagedError` naming the first file that is wrong."""
    if not (path / COMPLETE).is_file():
        raise DamagedError("not complete (the program ended while it was written)")
    manifest_data = _bytes(path, MANIFEST)
    if hashlib.sha256(manifest_data).hexdigest().encode() != _bytes(path, COMPLETE):
        raise DamagedError(f"{MANIFEST} is damaged")
    manifest = json.loads(manifest_data)
    if manifest["version"] != VERSION:
        raise DamagedError(f"version {manifest['version']} is not known")
    if manifest["digest"] != digest:
        raise DamagedError(f"belongs to run {manifest['digest']}, not to {digest}")
    if path.name != f"step-{manifest['step']:08d}":
        raise DamagedError(f"holds step {manifest['step']}")
    contents: dict[str, bytes] = {}
    for file, facts in manifest["files"].items():
        data = _bytes(path, file)
        if len(data) != facts["size"]:
            raise DamagedError(f"{file} has {len(data)} bytes, not {facts['size']}")
        if hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise DamagedError(f"{file} is damaged: its SHA-256 is not the manifest's")
        contents[file] = data
    progress = json.loads(contents[PROGRESS])
    return Snapshot(
        step=manifest["step"],
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


def _bytes(path: Path, file: str) -> bytes:
    try:
        return (path / file).read_bytes()
    except OSError as error:
        raise DamagedError(f"{file} cannot be read ({error.strerror})") from error


def _steps(folder: Path) -> list[Path]:
    """Folders of checkpoints, newest first."""
    if not folder.is_dir():
        return []
    named = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(named, reverse=True) if path.is_dir()]


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

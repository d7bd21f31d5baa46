"""What lies in a run's `checkpoints` folder, without torch: folders by step, and manifests that name every byte.

See `winnow.train.checkpoint` for what is in them and in which order it is written.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

MANIFEST: Final = "manifest.json"
COMPLETE: Final = "COMPLETE"
VERSION: Final = 1
_STEP: Final = re.compile(r"step-(\d{8,})")


class DamagedError(ValueError):
    """A checkpoint is not what was written, or not of this run."""


class Manifest(NamedTuple):
    """What a checkpoint holds."""

    digest: str
    """The run's."""
    step: int
    """Updates done."""
    files: dict[str, dict[str, Any]]
    """`size` (bytes) and `sha256` of each file by name."""


def step_folder(step: int) -> str:
    """Name of a checkpoint's folder."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder by its name; None: it is none."""
    match = _STEP.fullmatch(name)
    return None if match is None else int(match[1])


def step_folders(folder: Path) -> list[Path]:
    """Folders of checkpoints, whole or not, newest first."""
    if not folder.is_dir():
        return []
    named = [(step, path) for path in folder.iterdir() if (step := step_of(path.name)) is not None]
    return [path for _, path in sorted(named, reverse=True) if path.is_dir()]


def read_manifest(path: Path, digest: str | None = None) -> Manifest:
    """The manifest of the checkpoint in folder `path`. Raises `DamagedError` where it is not whole, or not of run
    `digest` (None: of any)."""
    if not (path / COMPLETE).is_file():
        raise DamagedError("not complete (the program ended while it was written)")
    data = _bytes(path, MANIFEST)
    if hashlib.sha256(data).hexdigest().encode() != _bytes(path, COMPLETE):
        raise DamagedError(f"{MANIFEST} is damaged")
    found = json.loads(data)
    if found["version"] != VERSION:
        raise DamagedError(f"version {found['version']} is not known")
    if path.name != step_folder(found["step"]):
        raise DamagedError(f"holds step {found['step']}")
    if digest not in (None, found["digest"]):
        raise DamagedError(f"belongs to run {found['digest']}, not to {digest}")
    return Manifest(found["digest"], found["step"], found["files"])


def read_file(path: Path, manifest: Manifest, file: str) -> bytes:
    """One file of the checkpoint in `path`. Raises `DamagedError` where a byte is not as written."""
    facts = manifest.files[file]
    data = _bytes(path, file)
    if len(data) != facts["size"]:
        raise DamagedError(f"{file} has {len(data)} bytes, not {facts['size']}")
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise DamagedError(f"{file} is damaged: its SHA-256 is not the manifest's")
    return data


def check(path: Path, digest: str) -> None:
    """Read every byte of the checkpoint in `path`. Raises `DamagedError` where it is not what run `digest` wrote."""
    manifest = read_manifest(path, digest)
    for file in manifest.files:
        read_file(path, manifest, file)


def _bytes(path: Path, file: str) -> bytes:
    try:
        return (path / file).read_bytes()
    except OSError as error:
        raise DamagedError(f"{file} cannot be read ({error.strerror})") from error

"""What a remote holds of a run, and what of a local run is fit to go there.

    runs/<digest>/manifest.json     every file of the run with size and SHA-256; whatever it names is whole
    runs/<digest>/...               the files, named as in a store

A file that the manifest names is never written over. One whose content has changed since (metrics, while the run goes
on) lies under its name with a piece of its SHA-256 behind it, until the next manifest has replaced this one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from pydantic import Field, ValidationError

from winnow.config import canonical_json
from winnow.errors import InputError
from winnow.records.files import TEMPORARY, safe_name, writing
from winnow.records.patience import AbsentError
from winnow.records.remote import CHUNK, Remote, Sum
from winnow.records.run import Label, Plain, Status, unseal
from winnow.records.store import RunStore

MANIFEST: Final = "manifest.json"
RUN_FILE: Final = "run.json"
VERSION: Final = 1
OWN: Final = frozenset({"lock", "uploaded.json", "upload.lock", MANIFEST})
"""Files of a run folder that say something of this machine, not of the run."""
METRICS: Final = "metrics.0.jsonl"
_STEP: Final = re.compile(r"step-(\d{8,})")
_TRIES: Final = 5


class Entry(Plain):
    """One file."""

    size: int = Field(ge=0)
    """Bytes."""
    sha256: str
    at: str | None = None
    """Where it lies, from the run's folder at the remote; None = under its own name."""

    @property
    def sum(self) -> Sum:
        """What the file is known by."""
        return Sum(self.size, self.sha256)


class Manifest(Plain):
    """Everything that a remote holds of one run."""

    version: int = VERSION
    digest: str
    label: Label
    seed: int
    status: Status | None
    """How the run ended; None = it has not."""
    files: dict[str, Entry]

    @property
    def step(self) -> int:
        """Updates done at the newest checkpoint; -1 = there is none."""
        return newest_step(self.files)

    def place(self, name: str) -> str:
        """Where a file lies, from the remote's root."""
        return f"{folder_of(self.digest)}/{self.files[name].at or name}"

    def seal(self) -> bytes:
        """The manifest as it is written, with a SHA-256 of itself."""
        fields = self.dump()
        return json.dumps({**fields, "check": _check(fields)}, indent=1, allow_nan=False).encode() + b"\n"


def folder_of(digest: str) -> str:
    """A run's folder at the remote."""
    return f"runs/{safe_name(digest, what='run')}"


def newest_step(names: Mapping[str, Any]) -> int:
    """The step of the newest checkpoint among file names; -1 = there is none."""
    steps = [int(found[1]) for name in names if (found := re.match(r"checkpoints/step-(\d{8,})/", name))]
    return max(steps, default=-1)


def read_manifest(remote: Remote, digest: str) -> Manifest | None:
    """What the remote holds of a run, None for nothing. Raises RemoteError; InputError if the manifest is damaged."""
    name = f"{folder_of(digest)}/{MANIFEST}"
    try:
        return parse_manifest(remote.read(name), digest, f"{remote.url}: {name}")
    except AbsentError:
        return None


def parse_manifest(data: bytes, digest: str, where: str) -> Manifest:
    """A manifest from its bytes; `where` is for messages. Raises InputError if it is not whole, of another run, or
    names a file that could lead out of the run's folder."""
    mend = "push the run again from where it was made"
    fields: Any = None
    try:
        fields = json.loads(data)
        agrees = isinstance(fields, dict) and cast(dict[str, Any], fields).pop("check", None) == _check(fields)
    except ValueError:
        agrees = False
    if not agrees:
        raise InputError("is damaged", file=where, mend=mend)
    if fields["version"] > VERSION:
        raise InputError(f"is a manifest of version {fields['version']}", file=where, mend="install a newer winnow-lab")
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"is damaged ({error.errors()[0]['msg']})", file=where, mend=mend) from None
    if manifest.digest != digest:
        raise InputError(f"is of run {manifest.digest}", file=where, mend=mend)
    for name, entry in manifest.files.items():
        for path in (name, entry.at or name):
            if not is_file_name(path):
                raise InputError(f"names a file {path!r}, which no run has", file=where, mend="do not trust this place")
    return manifest


def is_file_name(name: str) -> bool:
    """Whether a file of a run may be called so: inside its folder, and none of `OWN`."""
    parts = name.split("/")
    try:
        for part in parts:
            safe_name(part)
    except InputError:
        return False
    return name not in OWN and (len(parts) == 1 or (parts[0] == "checkpoints" and len(parts) <= 3))


@dataclass(frozen=True)
class Local:
    """The files of a local run that are whole, held open: what is purged meanwhile can still be read."""

    status: Status | None
    label: Label
    seed: int
    files: Mapping[str, BinaryIO]
    sums: Mapping[str, Sum]
    """What each file should be: a checkpoint's own manifest says it, everything else is what was read."""

    @property
    def step(self) -> int:
        """Updates done at the newest checkpoint; -1 = there is none."""
        return newest_step(self.files)


@contextmanager
def opened(store: RunStore, digest: str) -> Iterator[Local | None]:
    """The run's files as they stand together at one moment; None if the run was never begun or has been removed.

    Only checkpoints with a true COMPLETE mark; of metrics the whole rows. Raises InputError for a damaged record.
    """
    path = store.path(digest)
    for _ in range(_TRIES):
        with ExitStack() as stack, writing(path, "cannot be read"):
            record = _open(path / RUN_FILE, stack)
            # A record is the last thing written: what is read after it is complete.
            files = _open_all(path, stack)
            if record is not None:
                files[RUN_FILE] = record
            if _inode(path / RUN_FILE) != (None if record is None else os.fstat(record.fileno()).st_ino):
                continue  # the run has ended, or was begun again, while we looked
            identity = store.identity(digest)
            if identity is None:
                yield None
                return
            status = None if record is None else unseal(record.read(), path / RUN_FILE).status
            kept = {name: source for name, source in files.items() if not name.startswith("checkpoints/step-")}
            sums = {name: checksum(source) for name, source in kept.items()}
            for name, found in _checkpoints(files).items():
                kept[name], sums[name] = files[name], found
            yield Local(status, identity.label, identity.seed, kept, sums)
            return
    raise InputError("changes too fast to be read", file=path, mend="try again")


def checksum(source: BinaryIO) -> Sum:
    """Size and SHA-256 of an open file, read from its start."""
    source.seek(0)
    sha, size = hashlib.sha256(), 0
    while piece := source.read(CHUNK):
        sha.update(piece)
        size += len(piece)
    return Sum(size, sha.hexdigest())


def _open_all(path: Path, stack: ExitStack) -> dict[str, BinaryIO]:
    files: dict[str, BinaryIO] = {}
    for inner in _sorted(path):
        if inner.name in OWN or inner.name == RUN_FILE or TEMPORARY.match(inner.name):
            continue
        if inner.name == "checkpoints":
            for step in _sorted(inner):
                found = [step] if step.name == "latest" else _sorted(step) if _STEP.fullmatch(step.name) else []
                for file in found:
                    _take(file, file.relative_to(path).as_posix(), files, stack)
        else:
            _take(inner, inner.name, files, stack)
    for name in (METRICS, "log.txt"):
        if name in files:
            # They grow: what goes is what is read here. The last row may be half written.
            data = files[name].read()
            files[name] = io.BytesIO(data[: data.rfind(b"\n") + 1])
    return files


def _take(file: Path, name: str, files: dict[str, BinaryIO], stack: ExitStack) -> None:
    source = _open(file, stack) if is_file_name(name) else None
    if source is not None:
        files[name] = source


def _open(path: Path, stack: ExitStack) -> BinaryIO | None:
    """An open file; None for what has gone, or is no plain file."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return stack.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None


def _sorted(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _checkpoints(files: Mapping[str, BinaryIO]) -> dict[str, Sum]:
    """The files of those checkpoints that are whole by their own account, with what they should be."""
    found: dict[str, Sum] = {}
    for name in [name for name in files if name.endswith("/COMPLETE")]:
        folder = name.removesuffix("COMPLETE")
        manifest = files.get(f"{folder}manifest.json")
        if manifest is None:
            continue
        data = manifest.read()
        if hashlib.sha256(data).hexdigest().encode() != files[name].read():
            continue
        named = {folder + file: Sum(**facts) for file, facts in json.loads(data)["files"].items()}
        if all(file in files for file in named):
            own = {each: checksum(files[each]) for each in (name, f"{folder}manifest.json")}
            found |= named | own
    return found


def _check(fields: Any) -> str:
    return hashlib.sha256(canonical_json(fields).encode()).hexdigest()

"""Token shards: the `.bin` format of llm.c and modded-nanogpt, memory-mapped, and the manifest of prepared ones.

A shard is 256 little-endian int32 (20240520, version 1, number of tokens, zeros) and then its tokens as uint16.
Source: `dev/data/data_common.py` of github.com/karpathy/llm.c. Every document follows an end of document.

Which shards are for validation: the manifest says so, and where there is none the name (`fineweb_val_000000.bin`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt, ValidationError

from winnow.config import Config, digest, input_errors
from winnow.errors import InputError
from winnow.records.files import read_json, safe_name, write_atomic
from winnow.tasks.base import Ids
from winnow.tasks.cache import cached

MAGIC = 20240520
HEADER_BYTES = 1024
MANIFEST = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
"""The tokenizer beside prepared shards."""
_CHUNK = 1 << 24
_VALIDATION_NAME = re.compile(r"(^|[._-])val(id|idation)?([._-]|$)")


@dataclass(frozen=True)
class Shard:
    """One shard, checked."""

    path: Path
    tokens: Ids
    """(n,) uint16, memory-mapped."""
    sha256: str
    """Of the whole file."""
    largest: int
    """The largest token id."""


class ShardEntry(Config):
    """One shard in a manifest."""

    file: str
    """Name in the manifest's folder."""
    split: Literal["training", "validation"]
    """What it is for."""
    tokens: PositiveInt
    """Token count."""
    documents: PositiveInt
    """Document count."""
    sha256: str
    """Of the whole file."""


class Manifest(Config):
    """What `prepare_shards` wrote into a folder; the folder is usable once `complete`."""

    format: Literal["winnow-shards"] = "winnow-shards"
    """Tells it from other programs' manifests."""
    version: Literal[1] = 1
    """Version of this format."""
    complete: bool
    """False while shards are being made."""
    preparation: dict[str, Any]
    """What was asked for: source, split, sizes. A run that goes on must ask for the same."""
    tokenizer: str
    """Name of the tokenizer."""
    tokenizer_digest: str
    """SHA-256 of what it does, or its name."""
    end_of_document: str | None
    """The token before every document, of the `tokenizer.json` in the folder; None: bytes, with NUL."""
    read: NonNegativeInt
    """Documents of the source that were read."""
    left_out: NonNegativeInt
    """Documents among them that were empty or no text."""
    shards: tuple[ShardEntry, ...]
    """The shards, in the order in which they were made."""


def shard_bytes(tokens: Ids) -> bytes:
    """A shard file's content. tokens: (n,) ids below 65536."""
    assert 0 < len(tokens) < 2**31
    assert tokens.max() < 1 << 16, "uint16 ids"
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, 1, len(tokens)
    return header.tobytes() + tokens.astype("<u2").tobytes()


def write_shard(path: Path, tokens: Ids) -> str:
    """Write a shard as one step that a crash cannot split; its SHA-256."""
    content = shard_bytes(tokens)
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def open_shard(path: Path) -> Shard:
    """A shard, after its header, length, checksum and largest id. Raises InputError naming what is wrong.

    The file is read through once; its checksum is kept in the cache for as long as its size and time stay.
    """
    try:
        status = path.stat()
        with path.open("rb") as file:
            head = np.frombuffer(file.read(HEADER_BYTES), dtype=np.uint8)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, key="task.source") from error
    fault = _header_fault(head, status.st_size)
    if fault is not None:
        mend = "fetch or prepare it again: `winnow data prepare` writes shards"
        raise InputError(fault, file=path, key="task.source", mend=mend)
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES)
    place = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
    known: dict[str, Any] = json.loads(cached(f"shard-{digest(place)}.json", lambda: _read_through(path)).tobytes())
    return Shard(path, tokens, known["sha256"], known["largest"])


def _header_fault(head: np.ndarray[Any, np.dtype[np.uint8]], size: int) -> str | None:
    if len(head) < HEADER_BYTES:
        return f"is no token shard: {size} bytes, the header alone has {HEADER_BYTES}"
    magic, version, count = head.view("<i4")[:3].tolist()
    if magic != MAGIC:
        return f"is no token shard: it begins with {magic}, not {MAGIC}"
    if version != 1:
        return f"is a token shard of version {version}, only version 1 (uint16 ids) is known"
    held, odd = divmod(size - HEADER_BYTES, 2)
    if held < count:
        return f"is truncated: the header says {count} tokens, the file holds {held}"
    if held > count or odd:
        return f"is mislabelled: the header says {count} tokens, the file holds {held}{' and a half' if odd else ''}"
    return "holds no tokens" if count == 0 else None


def _read_through(path: Path) -> bytes:
    """Checksum and largest id of a shard, as JSON."""
    sha, largest = hashlib.sha256(), 0
    with path.open("rb") as file:
        sha.update(file.read(HEADER_BYTES))
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            largest = max(largest, int(np.frombuffer(chunk, dtype="<u2").max()))
    return json.dumps({"sha256": sha.hexdigest(), "largest": largest}).encode()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of prepared shards in a folder; None: there is none. Raises InputError where it is damaged."""
    path = folder / MANIFEST
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except InputError as error:
        raise error.at(key="task.source") from None
    if found.get("format") != "winnow-shards":
        return None
    if found.get("version") != 1:
        mend = "use the Winnow that wrote it, or prepare the shards again"
        message = f"has version {found.get('version')}, this Winnow knows version 1"
        raise InputError(message, file=path, key="task.source", mend=mend)
    try:
        manifest = Manifest.model_validate(found)
    except ValidationError as error:
        fault = input_errors(error)[0]
        raise InputError(f"{fault.key}: {fault.message}", file=path, key="task.source", mend=fault.mend) from error
    for entry in manifest.shards:
        safe_name(entry.file, what="shard")
    return manifest


def finished_manifest(folder: Path) -> Manifest | None:
    """As `read_manifest`; raises InputError where the preparation was not finished."""
    manifest = read_manifest(folder)
    if manifest is not None and not manifest.complete:
        mend = "give the same `winnow data prepare` again: it goes on where it stopped"
        raise InputError("these shards are not all prepared", file=folder / MANIFEST, key="task.source", mend=mend)
    return manifest


@dataclass(frozen=True)
class ShardSet:
    """Shards to train and to validate on."""

    training: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    folder: Path
    """Where their manifest is, if they have one."""
    tokenizer_digest: str | None
    """What their manifest says of the tokenizer; None: there is no manifest."""


def open_shards(files: Sequence[Path]) -> ShardSet:
    """Shards with the split that their manifest or their names give.

    Raises InputError for a damaged shard, one that differs from its manifest, shards of several preparations, or
    where training and validation are not two sets of shards.
    """
    folders = {path.parent for path in files}
    manifests = {folder: finished_manifest(folder) for folder in sorted(folders)}
    digests = {None if found is None else found.tokenizer_digest for found in manifests.values()}
    if len(digests) > 1:
        raise InputError("the shards come from different tokenizers", key="task.source", mend="name one set of shards")
    training: list[Shard] = []
    validation: list[Shard] = []
    for path in files:
        shard = open_shard(path)
        split = _split(shard, manifests[path.parent])
        (validation if split == "validation" else training).append(shard)
    for name, side in (("training", training), ("validation", validation)):
        if not side:
            raise InputError(
                f"the {name} split is empty: none of {len(files)} shards is for {name}",
                key="task.source",
                mend="name shards of both kinds: validation shards have `_val_` in their name or manifest",
            )
    common = {shard.sha256 for shard in training} & {shard.sha256 for shard in validation}
    if common:
        file = next(shard.path for shard in validation if shard.sha256 in common)
        raise InputError("is a training shard too", file=file, key="task.source", mend="keep one of the two copies")
    return ShardSet(tuple(training), tuple(validation), min(folders), digests.pop())


def _split(shard: Shard, manifest: Manifest | None) -> str:
    if manifest is None:
        return "validation" if _VALIDATION_NAME.search(shard.path.stem) else "training"
    entry = next((entry for entry in manifest.shards if entry.file == shard.path.name), None)
    if entry is None:
        mend = f"remove it, or move it to a folder without a {MANIFEST}"
        raise InputError(f"is not in its folder's {MANIFEST}", file=shard.path, key="task.source", mend=mend)
    if entry.sha256 != shard.sha256:
        mend = "fetch or prepare it again"
        message = f"is damaged: its SHA-256 is not that in {MANIFEST}"
        raise InputError(message, file=shard.path, key="task.source", mend=mend)
    return entry.split

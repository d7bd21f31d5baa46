"""Token shards from text files or from a Hugging Face dataset: what `winnow data prepare` does.

A preparation works in rounds: it reads documents until a training shard is full, writes that shard and the round's
validation shard, and then the manifest, which names them and counts the documents read. Each file is written as one
step. A preparation that was killed goes on after its last whole round, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from winnow.errors import InputError
from winnow.records.files import TEMPORARY, FileLock, make_folder, safe_name, write_atomic, write_json
from winnow.tasks.base import Ids
from winnow.tasks.bytepair import END_OF_DOCUMENT, BytePairTokenizer, read_tokenizer
from winnow.tasks.documents import batches, blocks, document_rule, find_files, in_validation, read_text, text_fault
from winnow.tasks.shards import MANIFEST, TOKENIZER_FILE, Manifest, ShardEntry, open_shards, read_manifest, write_shard
from winnow.tasks.tokenizer import BytesTokenizer, Tokenizer

LOCK = ".lock"
"""Held by the process that prepares shards in a folder."""
_BATCH_BYTES = 1 << 22


@dataclass(frozen=True)
class Progress:
    """How far a preparation is."""

    documents: int
    """Documents read."""
    training_tokens: int
    """Tokens for training, those of the unfinished round included."""
    validation_tokens: int
    """Tokens for validation, likewise."""
    shards: int
    """Shards written."""


class DocumentSource(ABC):
    """Where documents come from, in an order that never changes."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain JSON data that tells this source from others: it stands in the manifest."""

    @abstractmethod
    def documents(self, skip: int) -> Iterator[bytes]:
        """The documents from index `skip` on, unchecked. Raises InputError where they cannot be read."""


@dataclass(frozen=True)
class TextFiles(DocumentSource):
    """UTF-8 text files."""

    sources: tuple[str, ...]
    """Paths and globs."""
    document: Literal["file", "block"] | None = None
    """What a document is: a whole file, or a block of about 8 KiB; None: `block` for a single file, else `file`."""

    def identity(self) -> dict[str, Any]:
        content = hashlib.sha256()
        files = find_files(self.sources)
        for path in files:
            content.update(hashlib.sha256(read_text(path)).digest())
        return {"kind": "files", "document": document_rule(self.document, len(files)), "sha256": content.hexdigest()}

    def documents(self, skip: int) -> Iterator[bytes]:
        return itertools.islice(self._all(), skip, None)

    def _all(self) -> Iterator[bytes]:
        files = find_files(self.sources)
        rule = document_rule(self.document, len(files))
        for path in files:
            text = read_text(path)
            yield from blocks(text) if rule == "block" else [text]


@dataclass(frozen=True)
class HuggingFaceDataset(DocumentSource):
    """A dataset of the Hugging Face hub, or a local folder that `datasets` can read, streamed."""

    name: str
    """For example `HuggingFaceFW/fineweb`, or a folder."""
    subset: str | None = None
    """Its configuration, for example `sample-10BT`; None: the default."""
    split: str = "train"
    """Its split."""
    column: str = "text"
    """The column that holds the text."""
    revision: str | None = None
    """A commit, branch or tag; None: the newest commit, which the manifest then records."""

    def pinned(self, begun: Mapping[str, Any]) -> HuggingFaceDataset:
        """The same dataset at the commit that its revision means now; a local folder stays as it is.

        begun: what an earlier preparation recorded of its source: a newest commit is then the one of that time.
        """
        if Path(self.name).expanduser().is_dir():
            return self
        if self.revision is None and begun.get("name") == self.name:
            return HuggingFaceDataset(self.name, self.subset, self.split, self.column, begun.get("revision"))
        import huggingface_hub

        try:
            commit = huggingface_hub.HfApi().dataset_info(self.name, revision=self.revision).sha
        except Exception as error:  # whatever the hub's HTTP client raises
            raise _unreachable(f"dataset {self.name!r}", error) from error
        return HuggingFaceDataset(self.name, self.subset, self.split, self.column, commit)

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "huggingface",
            "name": self.name,
            "subset": self.subset,
            "split": self.split,
            "column": self.column,
            "revision": self.revision,
        }

    def documents(self, skip: int) -> Iterator[bytes]:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            mend = "install the extra: pip install 'winnow-lab[data]'"
            raise InputError("the package `datasets` is not installed", mend=mend) from error
        try:
            rows = datasets.load_dataset(
                self.name, self.subset, split=self.split, streaming=True, revision=self.revision
            )
            for row in rows.skip(skip):
                if not isinstance(row.get(self.column), str):
                    raise InputError(
                        f"dataset {self.name!r} has no text column {self.column!r}",
                        key="column",
                        mend=f"its columns: {', '.join(row)}",
                    )
                yield row[self.column].encode(errors="surrogatepass")
        except InputError:
            raise
        except Exception as error:  # whatever the hub's HTTP client raises
            raise _unreachable(f"dataset {self.name!r}", error) from error


def _unreachable(what: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    mend = "check the name and the network, then give the same command again: it goes on where it stopped"
    return InputError(f"{what} cannot be read ({type(error).__name__}: {reason})", mend=mend)


def open_tokenizer(name: str, revision: str | None = None) -> tuple[Tokenizer, str | None]:
    """A tokenizer by name, and the JSON to keep beside the shards (None for bytes).

    name: `bytes`, the path of a `tokenizer.json`, or a model on the Hugging Face hub, such as `gpt2`, of which
    `revision` is a commit, branch or tag. Raises InputError where there is none, or it is not byte-level.
    """
    if name == "bytes":
        return BytesTokenizer(), None
    path = Path(name).expanduser()
    if path.suffix == ".json" or path.is_file():
        tokenizer = read_tokenizer(path, END_OF_DOCUMENT)
        return tokenizer, path.read_text(encoding="utf-8")
    import huggingface_hub

    try:
        kept = Path(huggingface_hub.hf_hub_download(name, TOKENIZER_FILE, revision=revision))
    except Exception as error:  # whatever the hub's HTTP client raises
        raise _unreachable(f"tokenizer {name!r}", error) from error
    text = kept.read_text(encoding="utf-8")
    return BytePairTokenizer(text, END_OF_DOCUMENT, kept), text


@dataclass
class _Side:
    """What a round has gathered for one split."""

    parts: list[Ids] = field(default_factory=list[Ids])
    tokens: int = 0
    documents: int = 0

    def add(self, tokenizer: Tokenizer, documents: list[bytes]) -> None:
        if documents:
            self.parts.append(tokenizer.encode(documents))
            self.tokens += len(self.parts[-1])
            self.documents += len(documents)


def prepare_shards(
    source: DocumentSource,
    folder: Path,
    *,
    tokenizer: str = "bytes",
    tokenizer_revision: str | None = None,
    name: str = "text",
    shard_tokens: int = 100_000_000,
    max_tokens: int | None = None,
    validation_fraction: float = 0.01,
    on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Make token shards and their manifest in `folder`, or go on with those that were begun there.

    tokenizer: `bytes`, a `tokenizer.json` or a name on the Hugging Face hub; shard_tokens: a training shard is
    closed once it holds so many; max_tokens: stop after about as many training tokens (None: read everything);
    validation_fraction: share of the documents, chosen by their SHA-256, that becomes validation shards;
    on_progress: called after every few MiB of text.

    Returns the finished manifest; where it is there already, its shards are checked and nothing is written.
    Raises InputError for a source or tokenizer that cannot be read, a folder that holds another preparation or is
    in use, an empty split (nothing of it stays), or a full disk. Memory: about 4 bytes per token of a shard.
    """
    _check_sizes(name, shard_tokens, max_tokens, validation_fraction)
    if isinstance(source, HuggingFaceDataset):
        begun = read_manifest(folder)
        source = source.pinned({} if begun is None else begun.preparation["source"])
    chosen, text = open_tokenizer(tokenizer, tokenizer_revision)
    if chosen.vocab_size > 1 << 16:
        raise InputError(f"{tokenizer!r} has {chosen.vocab_size} ids, shards hold at most 65536", key="tokenizer")
    preparation = {
        "source": source.identity(),
        "name": name,
        "shard_tokens": shard_tokens,
        "max_tokens": max_tokens,
        "validation_fraction": validation_fraction,
    }
    fresh = not folder.exists()
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    if not lock.try_acquire():
        raise InputError("another process is preparing shards here", file=folder, mend="wait for it")
    new = Manifest(
        complete=False,
        preparation=preparation,
        tokenizer=tokenizer,
        tokenizer_digest=chosen.digest,
        end_of_document=None if text is None else END_OF_DOCUMENT,
        read=0,
        left_out=0,
        shards=(),
    )
    try:
        manifest = _begun(folder, new)
        if not manifest.complete:
            if text is not None:
                write_atomic(folder / TOKENIZER_FILE, text)
            manifest = _go_on(source, folder, chosen, manifest, on_progress)
            empty = next((split for split in ("training", "validation") if not _tokens(manifest, split)), None)
            if empty is not None:
                _remove(folder, manifest, whole=fresh)
                file_by_file = preparation["source"].get("document") == "file"
                mend = f"give more text or a {'larger' if empty == 'validation' else 'smaller'} --validation-fraction"
                mend += ", or cut the files with --document block" if file_by_file else ""
                raise InputError(f"the {empty} split is empty: {manifest.read} documents", mend=mend)
            manifest = manifest.replace({"complete": True})
            write_json(folder / MANIFEST, manifest.dump())
        open_shards([folder / entry.file for entry in manifest.shards])
    finally:
        lock.release()
    return manifest


def _check_sizes(name: str, shard_tokens: int, max_tokens: int | None, validation_fraction: float) -> None:
    safe_name(name, what="shard name")
    if not 0 < shard_tokens < 1 << 30:
        raise InputError(f"{shard_tokens} is not permitted", key="shard_tokens", mend="give 1 to 1073741823 tokens")
    if max_tokens is not None and max_tokens <= 0:
        raise InputError(
            f"{max_tokens} is not permitted", key="max_tokens", mend="give 1 token or more, or leave it out"
        )
    if not 0 < validation_fraction < 1:
        raise InputError(
            f"{validation_fraction} is not permitted", key="validation_fraction", mend="give a number between 0 and 1"
        )


def _begun(folder: Path, new: Manifest) -> Manifest:
    """The manifest that stands in the folder, or the new one where it stands empty."""
    for leftover in folder.iterdir():
        if TEMPORARY.match(leftover.name):
            leftover.unlink()
    found = read_manifest(folder)
    if found is None:
        foreign = sorted(path.name for path in folder.iterdir() if path.suffix == ".bin" or path.name == MANIFEST)
        if foreign:
            raise InputError(f"holds other files ({foreign[0]})", file=folder, mend="name an empty folder")
        write_json(folder / MANIFEST, new.dump())
        return new
    asked = (new.preparation, new.tokenizer_digest)
    if (found.preparation, found.tokenizer_digest) != asked:
        different = sorted(key for key, value in new.preparation.items() if found.preparation.get(key) != value)
        mend = "name an empty folder, or ask for the same"
        raise InputError(
            f"holds another preparation (other {', '.join(different) or 'tokenizer'})", file=folder, mend=mend
        )
    return found


def _go_on(
    source: DocumentSource,
    folder: Path,
    tokenizer: Tokenizer,
    manifest: Manifest,
    on_progress: Callable[[Progress], None] | None,
) -> Manifest:
    """Rounds until the source ends or enough was made; the manifest of all of them."""
    sizes = manifest.preparation
    enough = sizes["max_tokens"]
    documents = source.documents(manifest.read)
    more = True
    while more and (enough is None or _tokens(manifest, "training") < enough):
        wanted: int = sizes["shard_tokens"]
        if enough is not None:
            wanted = min(wanted, enough - _tokens(manifest, "training"))
        training, validation, read, left_out = _Side(), _Side(), 0, 0
        more = False
        for batch in batches(documents, min(_BATCH_BYTES, wanted)):
            texts = [document for document in batch if document and text_fault(document) is None]
            held_out = [document for document in texts if in_validation(document, sizes["validation_fraction"])]
            training.add(tokenizer, [t for t in texts if not in_validation(t, sizes["validation_fraction"])])
            validation.add(tokenizer, held_out)
            read += len(batch)
            left_out += len(batch) - len(texts)
            if on_progress is not None:
                on_progress(
                    Progress(
                        documents=manifest.read + read,
                        training_tokens=_tokens(manifest, "training") + training.tokens,
                        validation_tokens=_tokens(manifest, "validation") + validation.tokens,
                        shards=len(manifest.shards),
                    )
                )
            if training.tokens >= wanted:
                more = True
                break
        entries = [
            *_written(folder, sizes["name"], "training", training, manifest),
            *_written(folder, sizes["name"], "validation", validation, manifest),
        ]
        changes = {"read": manifest.read + read, "left_out": manifest.left_out + left_out}
        manifest = manifest.replace({**changes, "shards": (*manifest.shards, *entries)})
        write_json(folder / MANIFEST, manifest.dump())
    return manifest


def _remove(folder: Path, manifest: Manifest, *, whole: bool) -> None:
    """Take away a preparation that can come to nothing; `whole`: the folder too, which was made for it."""
    for name in (*(entry.file for entry in manifest.shards), MANIFEST, TOKENIZER_FILE, LOCK):
        (folder / name).unlink(missing_ok=True)
    if whole:
        folder.rmdir()


def _written(
    folder: Path, name: str, split: Literal["training", "validation"], side: _Side, manifest: Manifest
) -> Iterator[ShardEntry]:
    """Write what a round gathered for one split; nothing where it gathered nothing."""
    if side.tokens:
        index = sum(entry.split == split for entry in manifest.shards)
        file = f"{name}_{'train' if split == 'training' else 'val'}_{index:06d}.bin"
        sha256 = write_shard(folder / file, np.concatenate(side.parts))
        yield ShardEntry(file=file, split=split, tokens=side.tokens, documents=side.documents, sha256=sha256)


def _tokens(manifest: Manifest, split: str) -> int:
    return sum(entry.tokens for entry in manifest.shards if entry.split == split)

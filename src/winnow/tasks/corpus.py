"""The `corpus` task: predict the next token of real text.

Sources: `stdlib` (the running Python's standard library), text files, token shards.
Every document stands after an end of document; training and validation never share one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from winnow.config import digest
from winnow.errors import InputError
from winnow.tasks.base import Batch, Ids, Task, TaskConfig
from winnow.tasks.cache import cached
from winnow.tasks.documents import (
    blocks,
    document_rule,
    find_files,
    read_text,
    split_documents,
    stdlib_documents,
    stdlib_files,
)
from winnow.tasks.order import WindowOrder
from winnow.tasks.shards import ShardSet, open_shards
from winnow.tasks.tokenizer import NAME_THE_TOKENIZER, BytesConfig, Tokenizer, TokenizerConfig
from winnow.tasks.windows import Windows

_STDLIB = ("stdlib",)


class CorpusConfig(TaskConfig):
    """Next-token prediction on text."""

    kind: Literal["corpus"] = "corpus"
    metrics: ClassVar[dict[str, Literal["lower", "higher"]]] = {
        "val/ce": "lower",
        "val/ppl": "lower",
        "val/bpb": "lower",
    }
    outside_identity: ClassVar[frozenset[str]] = frozenset({"source"})

    source: str | tuple[str, ...] = "stdlib"
    """`stdlib`, or paths and globs: of UTF-8 text, of token shards (`.bin`), or a folder of prepared shards.
    Not part of the identity: the content's digest is."""
    tokenizer: TokenizerConfig = BytesConfig()
    """How text becomes, or became, tokens."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the documents that is kept for validation, chosen by their SHA-256. Text only: shards are split."""
    document: Literal["file", "block"] | None = None
    """What a document is: a whole `file`, or a `block` of about 8 KiB of a file, ending at a blank line.
    None: `block` where the source is a single file, else `file`. Text only."""

    def build(self) -> Task:
        sources = (self.source,) if isinstance(self.source, str) else self.source
        if sources == _STDLIB:
            return self._from_text(stdlib_documents())
        files = find_files(sources)
        shards = [path for path in files if path.suffix == ".bin"]
        if len(shards) == len(files):
            return self._from_shards(open_shards(shards))
        if shards:
            raise InputError(
                "is a token shard among text files", file=shards[0], key="task.source", mend="name one kind"
            )
        return self._from_text([read_text(path) for path in files])

    def files(self) -> tuple[Path, ...]:
        sources = (self.source,) if isinstance(self.source, str) else self.source
        found = stdlib_files() if sources == _STDLIB else find_files(sources)
        folders = dict.fromkeys(path.parent for path in found if path.suffix == ".bin")
        manifests = [path for folder in folders for path in sorted(folder.glob("*.json"))]
        return (*found, *manifests, *self.tokenizer.files())

    def located(self, folder: Path) -> Self:
        sources = (self.source,) if isinstance(self.source, str) else self.source
        changes: dict[str, Any] = {"tokenizer": self.tokenizer.located(folder)}
        if sources != _STDLIB:
            changes["source"] = tuple(str(folder / Path(source).expanduser()) for source in sources)
        return self.replace(changes)

    def _from_text(self, texts: list[bytes]) -> CorpusTask:
        rule = document_rule(self.document, len(texts))
        documents = [block for text in texts for block in blocks(text)] if rule == "block" else texts
        if not any(documents):
            raise InputError("the corpus is empty (zero bytes)", key="task.source", mend="give files that hold text")
        split = split_documents(documents, self.validation_fraction)
        if not split.validation or not split.training:
            empty = "training" if split.validation else "validation"
            cut = ', or set document = "block"' if rule == "file" else ""
            raise InputError(
                f"the {empty} split is empty: {len(split.training) + len(split.validation)} documents, "
                f"validation_fraction {self.validation_fraction}",
                key="task.validation_fraction",
                mend=f"change the fraction or give more text{cut}",
            )
        tokenizer = self.tokenizer.for_text(split.training)
        return CorpusTask(
            context=self.context,
            tokenizer=tokenizer,
            training=[_stream(_encoded(tokenizer, split.training))],
            held_out=[_stream(_encoded(tokenizer, split.validation))],
            validation_digest=hashlib.sha256(b"\0".join(split.validation)).hexdigest(),
            counts={"documents": len(split.training), "validation_documents": len(split.validation)},
        )

    def _from_shards(self, shards: ShardSet) -> CorpusTask:
        for name in ("validation_fraction", "document"):
            if getattr(self, name) != type(self).model_fields[name].default:
                mend = "leave it out: the shards' manifest or names say which are for validation"
                raise InputError("has no effect on token shards", key=f"task.{name}", mend=mend)
        tokenizer = self.tokenizer.for_shards(shards.folder)
        if shards.tokenizer_digest not in (None, tokenizer.digest):
            raise InputError(
                "is not the tokenizer that these shards were made with",
                file=shards.folder,
                key="task.tokenizer",
                mend='set tokenizer = { kind = "manifest" }',
            )
        for shard in (*shards.training, *shards.validation):
            if shard.largest >= tokenizer.vocab_size:
                raise InputError(
                    f"holds token id {shard.largest}, the tokenizer has {tokenizer.vocab_size} ids",
                    file=shard.path,
                    key="task.tokenizer",
                    mend="name the tokenizer that the shard was made with",
                )
        held_out = [Stream(shard.tokens, shard.sha256) for shard in shards.validation]
        return CorpusTask(
            context=self.context,
            tokenizer=tokenizer,
            training=[Stream(shard.tokens, shard.sha256) for shard in shards.training],
            held_out=held_out,
            validation_digest=digest([tokenizer.digest, *(stream.sha256 for stream in held_out)]),
            counts={"shards": len(shards.training), "validation_shards": len(shards.validation)},
        )


@dataclass(frozen=True)
class Stream:
    """Consecutive tokens."""

    ids: Ids
    """(n,) token ids."""
    sha256: str
    """Of the ids as they are stored: it addresses their content."""


def _stream(ids: Ids) -> Stream:
    return Stream(ids, hashlib.sha256(np.ascontiguousarray(ids).data).hexdigest())


def _encoded(tokenizer: Tokenizer, documents: Sequence[bytes]) -> Ids:
    """Encoded documents, from the cache where encoding is slow."""
    if not tokenizer.slow:
        return tokenizer.encode(documents)
    version = importlib.metadata.version("tokenizers")
    key = digest(["ids", version, tokenizer.digest, hashlib.sha256(b"\0".join(documents)).hexdigest()])
    kept = cached(f"ids-{key}.bin", lambda: tokenizer.encode(documents).tobytes())
    return kept.view("<u2" if tokenizer.vocab_size <= 1 << 16 else "<i4")


class CorpusTask(Task):
    """Token streams, read in windows."""

    def __init__(
        self,
        *,
        context: int,
        tokenizer: Tokenizer,
        training: Sequence[Stream],
        held_out: Sequence[Stream],
        validation_digest: str,
        counts: dict[str, int],
    ) -> None:
        """Windows never reach from one training stream into the next; validation streams are read as one."""
        self._held_out_tokens = sum(len(part.ids) for part in held_out)
        longest_training = max(len(part.ids) for part in training)
        for name, longest in (("training", longest_training), ("validation", self._held_out_tokens)):
            if longest <= context:
                raise InputError(
                    f"the {name} text is shorter than one window: {longest} tokens, a window needs {context + 1}",
                    key="task.context",
                    mend="lower context, or give more text",
                )
        self.context = context
        self.vocab_size = tokenizer.vocab_size
        self.validation_digest = validation_digest
        self.tokenizer = self._tokenizer = tokenizer
        self._training = training
        self._held_out = held_out
        self._counts = counts
        sides = {"training": training, "validation": held_out}
        content = {name: [part.sha256 for part in side] for name, side in sides.items()}
        self.digest = digest({"tokenizer": tokenizer.digest, **content})
        self._order = WindowOrder([len(part.ids) for part in training], context, self.digest)

    def batch(self, seed: int, step: int, rows: range, rows_per_step: int) -> Batch:
        import torch

        assert step >= 0
        assert all(0 <= i < rows_per_step for i in (rows[0], rows[-1])), "rows of this step"
        positions = step * rows_per_step + np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)
        which, first = self._order.locate(seed, positions)
        windows = np.empty((len(positions), self.context + 1), dtype=np.int64)
        for row, (index, start) in enumerate(zip(which.tolist(), first.tolist(), strict=True)):
            windows[row] = self._training[index].ids[start : start + self.context + 1]
        ids = torch.from_numpy(windows)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def validation(self, tokens: int) -> Windows:
        available = self._held_out_tokens - 1
        if not 0 < tokens <= available:
            raise InputError(
                f"{tokens} validation tokens are asked for, the corpus holds {available}",
                key="evaluation.tokens",
                mend=f"ask for 1 to {available}, or raise task.validation_fraction",
            )
        return self._validation(self._front(tokens + 1))

    def validation_bytes(self, n_bytes: int) -> Windows:
        # A token is at least one byte, so that many tokens hold the bytes, if the set does.
        text = self._tokenizer.decode(self._front(n_bytes + 1)[1:])
        if text is None:
            raise InputError("these tokens are not known as bytes", key="evaluation.bytes", mend=NAME_THE_TOKENIZER)
        if not 0 < n_bytes <= len(text):
            raise InputError(
                f"{n_bytes} validation bytes are asked for, the corpus holds {len(text)}",
                key="evaluation.bytes",
                mend=f"ask for 1 to {len(text)}, or raise task.validation_fraction",
            )
        text = text[:n_bytes]
        text = text[: max(text.rfind(b"\n"), text.rfind(b"\0")) + 1]
        if not text:
            raise InputError(
                f"the first {n_bytes} validation bytes hold no whole line", key="evaluation.bytes", mend="ask for more"
            )
        return self._validation(self._tokenizer.encode(text.split(b"\0")))

    def _front(self, n: int) -> Ids:
        """The first n validation tokens, or all."""
        parts: list[Ids] = []
        for part in self._held_out:
            parts.append(part.ids[: max(n, 0)])
            n -= len(parts[-1])
            if n <= 0:
                break
        return np.concatenate(parts)

    def _validation(self, ids: Ids) -> Windows:
        text = self._tokenizer.decode(ids[1:])
        if text is None:
            return Windows(ids, self.context, None, hashlib.sha256(np.ascontiguousarray(ids).data).hexdigest())
        return Windows(ids, self.context, len(text), hashlib.sha256(text).hexdigest())

    def facts(self) -> dict[str, int | str]:
        return {
            **self._counts,
            "training_tokens": sum(len(part.ids) for part in self._training),
            "validation_tokens": self._held_out_tokens - 1,
            "windows_per_epoch": self._order.n_windows,
        }

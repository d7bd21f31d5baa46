"""The `corpus` task: predict the next token of real text.

Sources: `stdlib` (the running Python's standard library), text files and globs.
Every document stands after an end of document; training and validation never share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from winnow.config import digest
from winnow.errors import InputError
from winnow.tasks.base import Batch, Ids, Task, TaskConfig, Validation
from winnow.tasks.documents import blocks, find_files, read_text, split_documents, stdlib_documents
from winnow.tasks.order import WindowOrder
from winnow.tasks.tokenizer import BytesConfig, Tokenizer, TokenizerConfig

_STDLIB = ("stdlib",)
_NAME_TOKENIZER = 'name the tokenizer: { kind = "file", path = "tokenizer.json" }'


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
    """`stdlib`, or paths and globs of UTF-8 text. Not part of the identity: the content's digest is."""
    tokenizer: TokenizerConfig = BytesConfig()
    """How text becomes tokens."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the documents that is kept for validation, chosen by their SHA-256."""
    document: Literal["file", "block"] | None = None
    """What a document is: a whole `file`, or a `block` of about 8 KiB of a file, ending at a blank line.
    None: `block` where the source is a single file, else `file`."""

    def build(self) -> Task:
        documents = self._documents()
        if not any(documents):
            raise InputError("the corpus is empty (zero bytes)", key="task.source", mend="give files that hold text")
        split = split_documents(documents, self.validation_fraction)
        if not split.validation or not split.training:
            empty = "training" if split.validation else "validation"
            raise InputError(
                f"the {empty} split is empty: {len(split.training) + len(split.validation)} documents, "
                f"validation_fraction {self.validation_fraction}",
                key="task.validation_fraction",
                mend='change the fraction, give more text, or set document = "block"',
            )
        tokenizer = self.tokenizer.for_text(split.training)
        text = hashlib.sha256(b"\0".join(split.validation)).hexdigest()
        counts = {"documents": len(split.training), "validation_documents": len(split.validation)}
        return CorpusTask(
            context=self.context,
            tokenizer=tokenizer,
            training=[tokenizer.encode(split.training)],
            held_out=tokenizer.encode(split.validation),
            validation_digest=text,
            documents=counts,
        )

    def located(self, folder: Path) -> Self:
        sources = _sources(self.source)
        if sources == _STDLIB:
            return self
        moved = tuple(str(folder / Path(source).expanduser()) for source in sources)
        return self.replace({"source": moved})

    def _documents(self) -> list[bytes]:
        sources = _sources(self.source)
        texts = stdlib_documents() if sources == _STDLIB else [read_text(path) for path in find_files(sources)]
        rule = self.document or ("block" if len(texts) == 1 else "file")
        return [block for text in texts for block in blocks(text)] if rule == "block" else texts


def _sources(source: str | tuple[str, ...]) -> tuple[str, ...]:
    return (source,) if isinstance(source, str) else source


class CorpusTask(Task):
    """Token streams, read in windows."""

    def __init__(
        self,
        *,
        context: int,
        tokenizer: Tokenizer,
        training: Sequence[Ids],
        held_out: Ids,
        validation_digest: str,
        documents: dict[str, int],
    ) -> None:
        """training: streams of ids, each (n,); held_out: the validation stream (n,)."""
        for name, longest in (("training", max(map(len, training))), ("validation", len(held_out))):
            if longest <= context:
                raise InputError(
                    f"the {name} text is shorter than one window: {longest} tokens, a window needs {context + 1}",
                    key="task.context",
                    mend="lower context, or give more text",
                )
        self.context = context
        self.vocab_size = tokenizer.vocab_size
        self.validation_digest = validation_digest
        self._tokenizer = tokenizer
        self._training = training
        self._held_out = held_out
        self._documents = documents
        parts = [hashlib.sha256(np.ascontiguousarray(part).data).hexdigest() for part in (*training, held_out)]
        self.digest = digest({"tokenizer": tokenizer.digest, "training": parts[:-1], "validation": parts[-1]})
        self._order = WindowOrder([len(part) for part in training], context, self.digest)

    def batch(self, seed: int, step: int, rows: range, rows_per_step: int) -> Batch:
        import torch

        assert step >= 0
        assert all(0 <= i < rows_per_step for i in (rows[0], rows[-1])), "rows of this step"
        positions = step * rows_per_step + np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)
        which, first = self._order.locate(seed, positions)
        windows = np.empty((len(positions), self.context + 1), dtype=np.int64)
        for row, (index, start) in enumerate(zip(which.tolist(), first.tolist(), strict=True)):
            windows[row] = self._training[index][start : start + self.context + 1]
        ids = torch.from_numpy(windows)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def validation(self, tokens: int) -> Validation:
        available = len(self._held_out) - 1
        if not 0 < tokens <= available:
            raise InputError(
                f"{tokens} validation tokens are asked for, the corpus holds {available}",
                key="evaluation.tokens",
                mend=f"ask for 1 to {available}, or raise task.validation_fraction",
            )
        return self._validation(self._held_out[: tokens + 1])

    def validation_bytes(self, n_bytes: int) -> Validation:
        # A token is at least one byte, so that many tokens hold the bytes, if the set does.
        text = self._tokenizer.decode(self._held_out[1 : n_bytes + 1])
        if text is None:
            raise InputError("these tokens are not known as bytes", key="evaluation.bytes", mend=_NAME_TOKENIZER)
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

    def _validation(self, ids: Ids) -> Validation:
        text = self._tokenizer.decode(ids[1:])
        if text is None:
            return Validation(ids, self.context, None, hashlib.sha256(np.ascontiguousarray(ids).data).hexdigest())
        return Validation(ids, self.context, len(text), hashlib.sha256(text).hexdigest())

    def facts(self) -> dict[str, int | str]:
        return {
            **self._documents,
            "training_tokens": sum(map(len, self._training)),
            "validation_tokens": len(self._held_out) - 1,
            "windows_per_epoch": self._order.n_windows,
        }

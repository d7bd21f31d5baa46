"""Tokenizers: text documents to token ids and back.

`bytes` the ids are the bytes; id 0 (NUL, which text never holds) is the end of a document.
`ids`   shards of which only the number of ids is known.
The byte-level BPE tokenizers stand in `bytepair`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from winnow.config import Variant
from winnow.errors import InputError
from winnow.tasks.base import Ids

NAME_THE_TOKENIZER = 'give tokenizer = { kind = "file", path = "tokenizer.json" }'
"""The mend where tokens are not known as text."""


class Tokenizer(ABC):
    """Encodes documents, and knows which bytes each id stands for."""

    vocab_size: int
    """Token ids are below this."""
    digest: str
    """SHA-256 of what the tokenizer does, or its name."""
    slow: ClassVar[bool]
    """Whether encoded text is worth keeping in the cache."""

    @abstractmethod
    def encode(self, documents: Sequence[bytes]) -> Ids:
        """(n,) ids: every document in turn, each after one end of document. uint16, or int32 above 65536 ids.

        Raises InputError where the ids would not stand for exactly these bytes.
        """

    @abstractmethod
    def decode(self, ids: Ids) -> bytes | None:
        """The bytes that ids stand for, an end of document being one NUL; None: not known."""


def document(text: str) -> bytes:
    """The document that a text is. Raises InputError where it is not Unicode or holds the NUL that would end it."""
    if "\0" in text:
        raise InputError("the text holds a NUL character, which ends a document", mend="take it out")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not Unicode: {error.reason}", mend="give UTF-8") from None


class TokenizerConfig(Variant):
    """How text becomes tokens; a member of the family is chosen by `kind`."""

    @abstractmethod
    def for_text(self, training: Sequence[bytes]) -> Tokenizer:
        """The tokenizer of a text corpus with these training documents. InputError where the kind needs shards."""

    @abstractmethod
    def for_shards(self, folder: Path) -> Tokenizer:
        """The tokenizer of the token shards in this folder. InputError where the kind needs text."""

    def files(self) -> tuple[Path, ...]:
        """Every file that makes the tokenizer, but for the data's own."""
        return ()

    def located(self, folder: Path) -> TokenizerConfig:
        """The same config with relative paths taken from `folder`."""
        return self


class BytesTokenizer(Tokenizer):
    """One token per byte."""

    vocab_size = 256
    digest = "bytes"
    slow = False

    def encode(self, documents: Sequence[bytes]) -> Ids:
        text = b"".join(part for document in documents for part in (b"\0", document))
        return np.frombuffer(text, dtype=np.uint8).astype("<u2")

    def decode(self, ids: Ids) -> bytes:
        return ids.astype(np.uint8).tobytes()


class BytesConfig(TokenizerConfig):
    """One token per byte: 256 ids, 0 (NUL) being the end of a document."""

    kind: Literal["bytes"] = "bytes"

    def for_text(self, training: Sequence[bytes]) -> Tokenizer:
        return BytesTokenizer()

    def for_shards(self, folder: Path) -> Tokenizer:
        return BytesTokenizer()


class UnknownTokenizer(Tokenizer):
    """Ids whose text is not known."""

    digest = "ids"
    slow = False

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, documents: Sequence[bytes]) -> Ids:
        raise InputError("these ids are not known as text", key="task.tokenizer", mend=NAME_THE_TOKENIZER)

    def decode(self, ids: Ids) -> None:
        return None


class IdsConfig(TokenizerConfig):
    """Token shards of which only the number of ids is known: losses in nats per token, none in bits per byte."""

    kind: Literal["ids"] = "ids"
    vocab_size: PositiveInt
    """Token ids are below this (50257 for GPT-2)."""

    def for_text(self, training: Sequence[bytes]) -> Tokenizer:
        raise InputError('"ids" is for token shards, not for text', key="task.tokenizer.kind", mend='use "bytes"')

    def for_shards(self, folder: Path) -> Tokenizer:
        return UnknownTokenizer(self.vocab_size)

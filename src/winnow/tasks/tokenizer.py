"""Tokenizers: text documents to token ids.

`bytes` the ids are the bytes; id 0 (NUL, which text never holds) is the end of a document.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from winnow.config import Variant
from winnow.tasks.base import Ids


class Tokenizer(ABC):
    """Encodes documents, and knows which bytes each id stands for."""

    vocab_size: int
    """Token ids are below this."""
    end_of_document: int
    """The id that stands before every document."""
    digest: str
    """SHA-256 of what the tokenizer does."""

    @abstractmethod
    def encode(self, documents: Sequence[bytes]) -> Ids:
        """(n,) ids: every document in turn, each after one end of document. uint16, or int32 above 65536 ids."""

    @abstractmethod
    def decode(self, ids: Ids) -> bytes | None:
        """The bytes that ids stand for, an end of document being one NUL; None: not known."""


class TokenizerConfig(Variant):
    """How text becomes tokens; a member of the family is chosen by `kind`."""

    @abstractmethod
    def for_text(self, training: Sequence[bytes]) -> Tokenizer:
        """The tokenizer for a text corpus with these training documents."""


class BytesTokenizer(Tokenizer):
    """One token per byte."""

    vocab_size = 256
    end_of_document = 0
    digest = "bytes"

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

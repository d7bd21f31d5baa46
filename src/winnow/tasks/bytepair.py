"""Byte-level BPE tokenizers, through the `tokenizers` library.

`bpe`      trained on the corpus's own training documents; kept in the cache by digest.
`file`     a `tokenizer.json`, such as GPT-2's.
`manifest` the one that prepared shards carry beside them.

Byte-level (Radford et al. 2019, section 2.2): every token stands for a fixed string of bytes, which makes bits per
byte exact. Tokenizers that change text (normalisers, added spaces, unknown tokens) are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from winnow.config import digest
from winnow.errors import InputError
from winnow.tasks.base import Ids
from winnow.tasks.cache import cached
from winnow.tasks.documents import batches
from winnow.tasks.shards import MANIFEST, TOKENIZER_FILE, finished_manifest
from winnow.tasks.tokenizer import NAME_THE_TOKENIZER, BytesTokenizer, Tokenizer, TokenizerConfig

if TYPE_CHECKING:
    import tokenizers

END_OF_DOCUMENT = "<|endoftext|>"
_BATCH_BYTES = 1 << 22
"""Documents of so many bytes are encoded together: the library holds some 100 bytes per token while it works."""


def _byte_characters() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: GPT-2's `bytes_to_unicode`, turned round."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class BytePairTokenizer(Tokenizer):
    """A byte-level tokenizer of the `tokenizers` library."""

    slow: ClassVar[bool] = True

    def __init__(self, text: str, end_of_document: str, file: Path | None = None) -> None:
        """text: the JSON of a tokenizer; end_of_document: the token that stands before every document.

        Raises InputError where the JSON is damaged, the tokenizer is not byte-level or lacks that token.
        """
        import tokenizers

        try:
            made: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise InputError(
                f"is no tokenizer ({error})", file=file, key="task.tokenizer", mend="give a tokenizer.json"
            ) from error
        # Text that happens to spell a special token stays text.
        made.encode_special_tokens = True
        end = made.token_to_id(end_of_document)
        if end is None:
            special = sorted(token.content for token in made.get_added_tokens_decoder().values())
            raise InputError(
                f"the tokenizer has no token {end_of_document!r}",
                file=file,
                key="task.tokenizer.end_of_document",
                mend=f"its special tokens: {', '.join(special) or 'none'}",
            )
        self._tokenizer = made
        self._end = end
        self._file = file
        self._pieces = self._byte_pieces()
        self.vocab_size = len(self._pieces)
        found: dict[str, Any] = json.loads(text)
        # What the library writes about itself may change with its version; what the tokenizer does stands in these.
        parts = ("added_tokens", "normalizer", "pre_tokenizer", "model")
        self.digest = digest([{part: found.get(part) for part in parts}, end_of_document])

    def _byte_pieces(self) -> list[bytes]:
        """The bytes of every id; an end of document is one NUL."""
        characters = _byte_characters()
        added = self._tokenizer.get_added_tokens_decoder()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            if index == self._end:
                pieces[index] = b"\0"
            elif index in added:
                pieces[index] = token.encode()
            elif all(character in characters for character in token):
                pieces[index] = bytes(characters[character] for character in token)
            else:
                raise self._refused(f"token {token!r} is not a string of bytes")
        return pieces

    def _refused(self, why: str) -> InputError:
        return InputError(
            f"the tokenizer is not byte-level: {why}",
            file=self._file,
            key="task.tokenizer",
            mend="use a byte-level BPE without normaliser or added space (GPT-2's kind)",
        )

    def encode(self, documents: Sequence[bytes]) -> Ids:
        kind = "<u2" if self.vocab_size <= 1 << 16 else "<i4"
        end = np.array([self._end], dtype=kind)
        parts: list[npt.NDArray[Any]] = []
        for group in batches(documents, _BATCH_BYTES):
            texts = [document.decode() for document in group]
            for document, encoding in zip(
                group, self._tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
            ):
                ids = np.array(encoding.ids, dtype=kind)
                if self.decode(ids) != document:
                    raise self._refused("it changes the text that it encodes")
                parts += [end, ids]
        return np.concatenate(parts) if parts else np.empty(0, dtype=kind)

    def decode(self, ids: Ids) -> bytes:
        return b"".join(map(self._pieces.__getitem__, ids.tolist()))


class BPEConfig(TokenizerConfig):
    """Byte-level BPE trained on the corpus's training documents; id 0 is the end of a document."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=257)] = 4096
    """Ids in all: 256 bytes, the end of a document, and merges."""

    def for_text(self, training: Sequence[bytes]) -> Tokenizer:
        import tokenizers

        text = hashlib.sha256(b"\0".join(training)).hexdigest()
        key = digest(["bpe", self.vocab_size, text, tokenizers.__version__])
        content = cached(f"bpe-{key}.json", lambda: _train(training, self.vocab_size))
        tokenizer = BytePairTokenizer(content.tobytes().decode(), END_OF_DOCUMENT)
        if tokenizer.vocab_size < self.vocab_size:
            raise InputError(
                f"the training text yields only {tokenizer.vocab_size} tokens, not {self.vocab_size}",
                key="task.tokenizer.vocab_size",
                mend=f"ask for at most {tokenizer.vocab_size}",
            )
        return tokenizer

    def for_shards(self, folder: Path) -> Tokenizer:
        raise InputError('"bpe" is trained on text, not on shards', key="task.tokenizer.kind", mend='use "manifest"')


def _train(training: Sequence[bytes], vocab_size: int) -> bytes:
    """A tokenizer's JSON. Equal text gives equal bytes: the library breaks ties between merges by their ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.decode() for document in training), trainer)
    return tokenizer.to_str().encode()


class FileConfig(TokenizerConfig):
    """A byte-level tokenizer from a `tokenizer.json`."""

    outside_identity: ClassVar[frozenset[str]] = frozenset({"path"})

    kind: Literal["file"] = "file"
    path: str
    """The `tokenizer.json`. Not part of the identity: what the tokenizer does is."""
    end_of_document: str = END_OF_DOCUMENT
    """The token that stands before every document."""

    def for_text(self, training: Sequence[bytes]) -> Tokenizer:
        return read_tokenizer(Path(self.path).expanduser(), self.end_of_document)

    def for_shards(self, folder: Path) -> Tokenizer:
        return read_tokenizer(Path(self.path).expanduser(), self.end_of_document)

    def files(self) -> tuple[Path, ...]:
        return (Path(self.path).expanduser(),)

    def located(self, folder: Path) -> Self:
        return self.replace({"path": str(folder / Path(self.path).expanduser())})


def read_tokenizer(path: Path, end_of_document: str) -> BytePairTokenizer:
    """A tokenizer from its JSON file. Raises InputError where it is missing, damaged or not byte-level."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError("no such file", file=path, key="task.tokenizer.path", mend="correct the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"is no tokenizer ({error})", file=path, key="task.tokenizer.path", mend="give a tokenizer.json"
        ) from error
    return BytePairTokenizer(text, end_of_document, path)


class ManifestConfig(TokenizerConfig):
    """The tokenizer that prepared shards were made with, as their manifest says."""

    kind: Literal["manifest"] = "manifest"

    def for_text(self, training: Sequence[bytes]) -> Tokenizer:
        raise InputError(
            '"manifest" is for prepared shards, not for text',
            key="task.tokenizer.kind",
            mend='use "bytes", "bpe" or "file"',
        )

    def for_shards(self, folder: Path) -> Tokenizer:
        manifest = finished_manifest(folder)
        if manifest is None:
            raise InputError(f"holds no {MANIFEST}", file=folder, key="task.tokenizer.kind", mend=NAME_THE_TOKENIZER)
        if manifest.end_of_document is None:
            return BytesTokenizer()
        return read_tokenizer(folder / TOKENIZER_FILE, manifest.end_of_document)

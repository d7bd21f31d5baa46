"""Texts that are questions with their answers, many at once: bytes in rows, made of random words.

A `Grammar` says which texts there are and how likely each is; `pick` and `sample` make numbers of random words, and a
`Writer` puts texts together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from winnow.config import stream
from winnow.errors import InputError
from winnow.tasks.base import Batch

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
"""(words, n): the random words of n texts, each column those of one."""
Integers = npt.NDArray[np.int64]

SPACE, COLON = b" :"
KEY_BITS = 20
"""Of the hash of a text."""


def span(value: int | tuple[int, int], key: str) -> tuple[int, int]:
    """The least and the most. Raises InputError where the range is empty."""
    low, high = value if isinstance(value, tuple) else (value, value)
    if low > high:
        raise InputError(f"[{low}, {high}] holds no number", key=key, mend=f"write [{high}, {low}]")
    return low, high


def pick(words: Words, n: Integers | int) -> Integers:
    """A number from 0 to n - 1 for each word; of n choices, none is likelier than another by more than n / 2^32."""
    return (words.astype(np.int64) * n) >> 32


def sample(words: Words, n: int, of: Integers | int) -> Integers:
    """n different numbers from 0 to `of` - 1 for each column of n words, in random order (Fisher and Yates); in rows.

    of: n or more, of each column or of all.
    """
    size, columns = int(np.max(of)), words.shape[1]
    pool = np.tile(np.arange(size, dtype=np.uint16), columns)
    first = np.arange(0, len(pool), size)
    found = np.empty((columns, n), dtype=np.int64)
    for k in range(n):
        other = first + k + pick(words[k], np.asarray(of) - k)
        found[:, k] = pool[other]
        pool[other] = pool[first + k]
    return found


@dataclass(frozen=True)
class Texts:
    """Texts, each followed by spaces."""

    bytes: Bytes
    """(n, width): width is a multiple of 8."""
    lengths: Integers
    """(n,) bytes of each text."""
    answers: Integers
    """(n,) where the answer begins, which ends with the text."""

    @cached_property
    def is_answer(self) -> npt.NDArray[np.bool_]:
        """(n, width)"""
        columns = np.arange(self.bytes.shape[1])
        return (columns >= self.answers[:, None]) & (columns < self.lengths[:, None])

    @cached_property
    def blanked(self) -> Bytes:
        """(n, width): what a model reads."""
        return np.where(self.is_answer, np.uint8(0), self.bytes)

    @cached_property
    def keys(self) -> Integers:
        """(n,) a hash of each text, below 2^20."""
        words = np.ascontiguousarray(self.bytes).view("<u8")
        factors = np.random.Philox(key=stream(0, "text hash")).random_raw(words.shape[1]) | np.uint64(1)
        return ((words * factors).sum(axis=1, dtype=np.uint64) >> np.uint64(64 - KEY_BITS)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.bytes)

    def rows(self, which: slice | npt.NDArray[Any]) -> Texts:
        """Some of them."""
        return Texts(self.bytes[which], self.lengths[which], self.answers[which])

    def batch(self, which: slice, width: int) -> Batch:
        """Some of them as tokens, padded to `width`."""
        import torch

        tokens, targets = (torch.from_numpy(of[which, :width].astype(np.int64)) for of in (self.blanked, self.bytes))
        return Batch(tokens, targets, answer=torch.from_numpy(self.is_answer[which, :width].copy()))


def joined(parts: list[Texts]) -> Texts:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    return Texts(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("bytes", "lengths", "answers")))


class Grammar(ABC):
    """A distribution of texts."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Bytes of the longest text."""

    @property
    @abstractmethod
    def words(self) -> int:
        """Random words that a text takes."""

    @property
    def width(self) -> int:
        """Columns of its arrays of bytes."""
        return -(-self.longest // 8) * 8

    @abstractmethod
    def texts(self, words: Words) -> Texts:
        """The texts of random words."""


class Writer:
    """Texts in columns of bytes, each column with a byte of every text or with none (0) of some."""

    def __init__(self) -> None:
        self._columns: list[Bytes] = []

    def byte(self, values: Integers | Bytes) -> None:
        """(n,) a byte of each text; 0: none."""
        self._columns.append(values.astype(np.uint8))

    def several(self, pieces: Bytes, lengths: Integers) -> None:
        """The first so many bytes of (n, most) pieces, one for each text."""
        for k in range(pieces.shape[1]):
            self.byte(pieces[:, k] * (k < lengths))

    def number(self, values: Integers, where: npt.NDArray[np.bool_]) -> None:
        """Decimal numbers below 100, of some texts."""
        tens = values > 9
        if tens.any():
            self.byte((values // 10 + ord("0")) * (tens & where))
            values = values % 10
        self.byte((values + ord("0")) * where)

    def answered(self, answers: Bytes, lengths: Integers, width: int) -> Texts:
        """The texts, in rows of `width`, after a colon and the first so many bytes of their answers."""
        self.byte(np.full(len(answers), COLON))
        self.several(answers, lengths)
        written = np.stack(self._columns, axis=1)
        there = written != 0
        ends = there.sum(axis=1)
        found = np.full((len(answers), width), SPACE, dtype=np.uint8)
        found[np.arange(width) < ends[:, None]] = written[there]
        return Texts(found, ends, ends - lengths)

"""The `programs` task: carry out a short program on a list of letters ("very selective copying").

    text        items ":" operations ":" answer
    items       different capital letters, A to the alphabet's last
    operations  one to the next by a space, carried out from left to right; positions count from 1, in decimals
        i>j     exchange the items at positions i and j, i != j                       with two items or more
        -i      take the item at position i out and push it on a stack                with two items or more
        +i      pop the stack and insert that item before position i; one position    with an item on the stack
                beyond the last puts it at the end
    answer      the items that are left, in order; at least one, since the last is never taken out

    ABCDE:1>2 2>3 5>4:BCAED      ABC:-1 2>1 +3:CBA

Which operation comes next is drawn by weight among those that are possible at that point, its positions evenly among
those that it may have. The defaults are the task of the notebook "Very Selective Copying": 5 items of 26, 1 to 3
exchanges in training, 3 in validation; texts of 15, 19 and 23 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt

from winnow.errors import InputError
from winnow.tasks.questions import QuestionConfig, QuestionSetConfig, Span
from winnow.tasks.texts import (
    COLON,
    SPACE,
    Bytes,
    Grammar,
    Integers,
    Texts,
    Words,
    Writer,
    pick,
    sample,
    span,
)

WORDS_PER_OPERATION = 3
"""What comes next, and its two positions."""


class ProgramSetConfig(QuestionSetConfig):
    """Programs of the validation set."""

    items: Span | None = None
    """Letters of a list. None: as in training."""
    operations: Span | None = None
    """Operations of a program. None: the most that training has, always."""


class ProgramsConfig(QuestionConfig):
    """Programs of exchanges, removals and insertions."""

    kind: Literal["programs"] = "programs"
    items: Span = 5
    """Letters of a list, 2 or more: a number or a range [least, most]."""
    operations: Span = (1, 3)
    """Operations of a program: a number or a range."""
    alphabet: Annotated[int, Field(ge=2, le=26)] = 26
    """Letters, from A, that items are drawn from."""
    exchange: NonNegativeInt = 1
    """Weight of `i>j` among the operations that are possible. 0: never."""
    remove: NonNegativeInt = 0
    """Weight of `-i`. 0: never."""
    insert: NonNegativeInt = 0
    """Weight of `+i`. 0: never."""
    validation: ProgramSetConfig = ProgramSetConfig()

    def grammars(self) -> tuple[ProgramGrammar, ProgramGrammar]:
        weights = (self.exchange, self.remove, self.insert)
        if not self.exchange and not self.remove:
            raise InputError("no program can begin: exchange and remove are 0", key="exchange", mend="use 1")
        if self.insert and not self.remove:
            raise InputError("nothing is ever inserted without remove", key="insert", mend="give remove a weight too")
        of = self.validation
        sides = {
            "": (self.items, self.operations),
            "validation.": (of.items or self.items, of.operations or span(self.operations, "operations")[1]),
        }
        found: list[ProgramGrammar] = []
        for place, (items, operations) in sides.items():
            n_items, n_operations = span(items, f"{place}items"), span(operations, f"{place}operations")
            if not 2 <= n_items[0] <= n_items[1] <= self.alphabet:
                mend = f"2 to {self.alphabet}, the alphabet"
                raise InputError(f"lists of {n_items[0]} to {n_items[1]} letters", key=f"{place}items", mend=mend)
            if self.remove and not self.insert and n_operations[1] >= n_items[0]:
                what = f"{n_operations[1]} operations may leave one of {n_items[0]} items, and then nothing is possible"
                mend = f"at most {n_items[0] - 1}, or give insert a weight"
                raise InputError(what, key=f"{place}operations", mend=mend)
            found.append(ProgramGrammar(n_items, n_operations, self.alphabet, weights))
        return found[0], found[1]

    def held_out(self) -> ProgramSetConfig:
        return self.validation


@dataclass(frozen=True)
class ProgramGrammar(Grammar):
    """Programs with n_items and n_operations, least and most. weights: of exchange, remove, insert."""

    n_items: tuple[int, int]
    n_operations: tuple[int, int]
    alphabet: int
    weights: tuple[int, int, int]

    @property
    def longest(self) -> int:
        """Bytes of the longest text."""
        return _longest(self.n_items, self.n_operations, self.weights)

    @property
    def words(self) -> int:
        """Random words that a text takes."""
        return 2 + self.n_items[1] + WORDS_PER_OPERATION * self.n_operations[1]

    def texts(self, words: Words) -> Texts:
        """See `Grammar.texts`."""
        (low, most), (fewest, steps) = self.n_items, self.n_operations
        n = low + pick(words[0], most - low + 1)
        n_operations = fewest + pick(words[1], steps - fewest + 1)
        items = (sample(words[2 : 2 + most], most, self.alphabet) + ord("A")).astype(np.uint8)
        lists, writer = _Lists(items, n), Writer()
        writer.several(items, n)
        for step in range(steps):
            here = step < n_operations
            writer.byte(here * np.uint8(SPACE if step else COLON))
            start = 2 + most + step * WORDS_PER_OPERATION
            self._operate(lists, writer, here, words[start : start + WORDS_PER_OPERATION])
        return writer.answered(lists.items, lists.n, self.width)

    def _operate(self, lists: _Lists, writer: Writer, here: npt.NDArray[np.bool_], words: Words) -> None:
        """One operation of each of these texts, carried out and written down."""
        exchange, remove, insert = self.weights
        n, swaps = lists.n, here
        i = pick(words[1], n)
        j = pick(words[2], np.maximum(n - 1, 1))
        j += j >= i
        if remove:
            two = n > 1
            weights = (exchange * two, remove * two, insert * (n < lists.sizes))
            drawn = pick(words[0], sum(weights))
            swaps = here & (drawn < weights[0])
            takes = here & ~swaps & (drawn < weights[0] + weights[1])
            puts = here & ~swaps & ~takes
            i = np.where(puts, pick(words[1], n + 1), i)
            writer.byte(takes * np.uint8(ord("-")) + puts * np.uint8(ord("+")))
            lists.remove(np.flatnonzero(takes), i[takes])
            lists.insert(np.flatnonzero(puts), i[puts])
        lists.exchange(i, np.where(swaps, j, i))
        writer.number(i + 1, here)
        writer.byte(swaps * np.uint8(ord(">")))
        writer.number(j + 1, swaps)


@cache
def _longest(n_items: tuple[int, int], n_operations: tuple[int, int], weights: tuple[int, int, int]) -> int:
    (low, most), (fewest, steps) = n_items, n_operations
    return int(max(n + max(_rest(n, steps, weights)[fewest:]) for n in range(low, most + 1)))


def _rest(n: int, steps: int, weights: tuple[int, int, int]) -> list[float]:
    """Most bytes of operations and answer with the colons before them, of programs of 0 to `steps` operations on n
    items; -inf where there is none."""
    exchange, remove, insert = weights
    best = [-math.inf, *(1.0 + listed for listed in range(1, n + 1)), -math.inf]
    found = [best[n]]
    for _ in range(steps):
        now = [-math.inf] * len(best)
        for listed in range(1, n + 1):
            now[listed] = max(
                1 + len(f"{listed}>{listed - 1}") + best[listed] if exchange and listed > 1 else -math.inf,
                1 + len(f"-{listed}") + best[listed - 1] if remove else -math.inf,
                1 + len(f"+{listed + 1}") + best[listed + 1] if insert else -math.inf,
            )
        best = now
        found.append(best[n])
    return found


class _Lists:
    """The lists of many programs and their stacks. sizes: items of each list at the start."""

    def __init__(self, items: Bytes, sizes: Integers) -> None:
        self.items, self.sizes, self.n = items.copy(), sizes, sizes.copy()
        self._stack = np.zeros_like(items)
        self._columns = np.arange(items.shape[1])
        self._rows = np.arange(0, items.size, items.shape[1])

    def exchange(self, i: Integers, j: Integers) -> None:
        """The items at i and j of every row, which may be one."""
        items, i, j = self.items.ravel(), self._rows + i, self._rows + j
        items[i], items[j] = items[j], items[i]

    def remove(self, rows: Integers, i: Integers) -> None:
        """Push the item at i of these rows on their stacks."""
        self._stack[rows, self.sizes[rows] - self.n[rows]] = self.items[rows, i]
        self.n[rows] -= 1
        source = self._columns + (self._columns >= i[:, None])
        self.items[rows] = np.take_along_axis(self.items[rows], source.clip(max=self._columns[-1]), axis=1)

    def insert(self, rows: Integers, i: Integers) -> None:
        """Pop the stacks of these rows before i."""
        self.n[rows] += 1
        source = self._columns - (self._columns > i[:, None])
        self.items[rows] = np.take_along_axis(self.items[rows], source, axis=1)
        self.items[rows, i] = self._stack[rows, self.sizes[rows] - self.n[rows]]

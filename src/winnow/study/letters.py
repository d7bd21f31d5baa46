"""Compact letter displays: two arms share a letter if, and only if, they are not shown to differ.

Insert and absorb, Piepho 2004, An algorithm for a letter-based representation of all-pairwise comparisons, J. Comput.
Graph. Stat. 13(2), section 3: begin with one column that holds every arm; each pair that differs splits every column
that holds both; a column inside another one is absorbed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from string import ascii_lowercase
from typing import Final

MOST_COLUMNS: Final = 26 * 27
"""a ... z, aa ... zz."""


def compact_letters(arms: Sequence[str], different: Collection[frozenset[str]]) -> dict[str, str] | None:
    """The letters of each arm; None where there would be more than `MOST_COLUMNS`.

    arms: in the order in which letters are given, best first; different: pairs that are shown to differ.
    """
    place = {arm: number for number, arm in enumerate(arms)}
    columns: list[frozenset[str]] = [frozenset(arms)]
    for one, other in sorted(sorted(pair, key=place.__getitem__) for pair in different):
        split: list[frozenset[str]] = []
        for column in columns:
            split += [column - {one}, column - {other}] if one in column and other in column else [column]
        columns = _absorbed(split)
        if len(columns) > MOST_COLUMNS:
            return None
    columns.sort(key=lambda column: sorted(place[arm] for arm in column))
    marks = [_mark(number) for number in range(len(columns))]
    between = "" if len(columns) <= len(ascii_lowercase) else " "
    return {arm: between.join(mark for mark, col in zip(marks, columns, strict=True) if arm in col) for arm in arms}


def _absorbed(columns: list[frozenset[str]]) -> list[frozenset[str]]:
    """Without those that lie inside another one."""
    found: list[frozenset[str]] = []
    for column in sorted(set(columns), key=len, reverse=True):
        if not any(column <= other for other in found):
            found.append(column)
    return found


def _mark(number: int) -> str:
    size = len(ascii_lowercase)
    return ascii_lowercase[number] if number < size else _mark(number // size - 1) + ascii_lowercase[number % size]

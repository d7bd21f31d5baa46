"""The `selective-copying` task: say which letters stand among blanks, in their order.

    text        area ":" answer
    area        n places, k of them capital letters from A to the alphabet's last, the others spaces; places and letters
                are drawn evenly, and a letter may come again
    answer      the k letters in the order of their places

    `  C A   B :CAB`

Gu and Dao 2023 (Mamba), section 4.1.1, after Jing et al. 2019; here the model reads all of a text at once, the answer
blanked out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from winnow.errors import InputError
from winnow.tasks.questions import QuestionConfig, QuestionSetConfig, Span
from winnow.tasks.texts import SPACE, Grammar, Texts, Words, Writer, pick, sample, span


class CopySetConfig(QuestionSetConfig):
    """Areas of the validation set."""

    letters: Span | None = None
    """Letters in an area. None: as in training."""
    area: Span | None = None
    """Places of an area. None: as in training."""


class SelectiveCopyingConfig(QuestionConfig):
    """Letters among blanks."""

    kind: Literal["selective-copying"] = "selective-copying"
    letters: Span = 5
    """Letters in an area: a number or a range [least, most]."""
    area: Span = 20
    """Places of an area, for letters and blanks: a number or a range."""
    alphabet: Annotated[int, Field(ge=2, le=26)] = 26
    """Different letters, from A."""
    validation: CopySetConfig = CopySetConfig()

    def grammars(self) -> tuple[CopyGrammar, CopyGrammar]:
        of = self.validation
        sides = {"": (self.letters, self.area), "validation.": (of.letters or self.letters, of.area or self.area)}
        found: list[CopyGrammar] = []
        for place, (letters, area) in sides.items():
            n_letters, n_places = span(letters, f"{place}letters"), span(area, f"{place}area")
            if n_letters[1] > n_places[0]:
                what = f"{n_letters[1]} letters do not fit into an area of {n_places[0]}"
                raise InputError(what, key=f"{place}area", mend=f"use {n_letters[1]} or more")
            found.append(CopyGrammar(n_letters, n_places, self.alphabet))
        return found[0], found[1]

    def held_out(self) -> CopySetConfig:
        return self.validation


@dataclass(frozen=True)
class CopyGrammar(Grammar):
    """Areas with n_letters and n_places, least and most."""

    n_letters: tuple[int, int]
    n_places: tuple[int, int]
    alphabet: int

    @property
    def longest(self) -> int:
        """Bytes of the longest text."""
        return self.n_places[1] + 1 + self.n_letters[1]

    @property
    def words(self) -> int:
        """Random words that a text takes."""
        return 2 + 2 * self.n_letters[1]

    def texts(self, words: Words) -> Texts:
        """See `Grammar.texts`."""
        (fewest, most), (least, size) = self.n_letters, self.n_places
        n = fewest + pick(words[0], most - fewest + 1)
        n_places = least + pick(words[1], size - least + 1)
        places = sample(words[2 : 2 + most], most, n_places)
        places[np.arange(most) >= n[:, None]] = size  # beyond every area, and last in order
        places.sort(axis=1)
        letters = (pick(words[2 + most :].T, self.alphabet) + ord("A")).astype(np.uint8)
        areas = np.full((len(n), size + 1), SPACE, dtype=np.uint8)
        np.put_along_axis(areas, places, letters, axis=1)
        writer = Writer()
        writer.several(areas[:, :size], n_places)
        return writer.answered(letters, n, self.width)

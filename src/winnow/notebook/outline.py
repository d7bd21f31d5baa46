"""Experiments written as prose alone: a heading each, arms as lines that end in a colon, what was expected and found.

    # Experiment 2: what happens when training goes on

    Resume from iter 7500:

    Hypothesis: ...

    Result: ...

A result goes on until the next arm or heading. Nothing here can be run; it is counted, so that what was never done or
never answered is seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from winnow.notebook.pages import Fence, Page, Prose, Section
from winnow.notebook.statements import HYPOTHESIS, RESULT

_EXPERIMENT = re.compile(r"experiment\s+\w+\s*:", re.IGNORECASE)
_LONGEST_LABEL = 160
"""Characters of a line that names an arm; a longer one that ends in a colon is a sentence."""


@dataclass(frozen=True)
class OutlinedArm:
    """An arm, and how much is said of it."""

    name: str
    line: int
    hypotheses: int = 0
    results: int = 0
    said: bool = False
    """Whether anything stands under it."""


@dataclass(frozen=True)
class Experiment:
    """A heading `Experiment n: title` and its arms."""

    title: str
    line: int
    arms: tuple[OutlinedArm, ...]
    empty: bool
    """Whether nothing stands under the heading."""


@dataclass(frozen=True)
class Outline:
    """The experiments of a page."""

    experiments: tuple[Experiment, ...]

    @property
    def arms(self) -> tuple[OutlinedArm, ...]:
        return tuple(arm for experiment in self.experiments for arm in experiment.arms)

    def plain(self) -> dict[str, Any]:
        """Counts, and the lines of what is missing."""
        return {
            "experiments": len(self.experiments),
            "arms": len(self.arms),
            "hypotheses": sum(arm.hypotheses for arm in self.arms),
            "results": sum(arm.results for arm in self.arms),
            "empty_experiments": [experiment.line for experiment in self.experiments if experiment.empty],
            "silent_arms": [arm.line for arm in self.arms if not arm.said],
        }


def outline(page: Page) -> Outline:
    """The experiments that headings and labels show; none where no heading says "Experiment n:"."""
    return Outline(
        tuple(
            Experiment(section.title, section.line, tuple(_arms(section)), not section.items)
            for section in page.sections
            if _EXPERIMENT.match(section.title)
        )
    )


def _arms(section: Section) -> Iterator[OutlinedArm]:
    name, line = "", 0
    hypotheses = results = 0
    said = False
    for item in section.items:
        if isinstance(item, Prose) and _is_label(item):
            if name:
                yield OutlinedArm(name, line, hypotheses, results, said)
            name, line = item.text.strip().rstrip(":"), item.line
            hypotheses, results, said = 0, 0, False
            continue
        said = True
        if isinstance(item, Fence):
            continue
        for text in item.text.split("\n"):
            hypotheses += HYPOTHESIS.match(text) is not None
            results += RESULT.match(text) is not None
    if name:
        yield OutlinedArm(name, line, hypotheses, results, said)


def _is_label(item: Prose) -> bool:
    text = item.text.strip()
    short = item.kind == "paragraph" and "\n" not in text and len(text) <= _LONGEST_LABEL
    return short and text.endswith(":") and not HYPOTHESIS.match(text) and not RESULT.match(text)

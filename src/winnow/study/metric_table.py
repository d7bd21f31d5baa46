"""Metrics of a study that no claim decides on, as a table: one row per metric, one column per arm.

Each cell is the mean over the seeds of the last recorded value, with the seed standard deviation. For looking at what
runs recorded of their inside (`inside/0/live`), at penalties or at training losses; nothing here decides anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from winnow.errors import InputError, nearest
from winnow.study.compare import Comparison
from winnow.study.noise import moments
from winnow.study.table_text import Format, csv_text, text_table


@dataclass(frozen=True)
class Cell:
    """One metric of one arm."""

    metric: str
    arm: str
    n: int
    """Finished runs that recorded it."""
    mean: float
    sd: float | None
    """Over seeds; None for one run."""

    @property
    def text(self) -> str:
        """Mean and standard deviation, the mean to two digits of the latter."""
        if self.sd is None:
            return f"{self.mean:.4g}"
        if self.sd == 0:
            return f"{self.mean:.4g} ± 0"
        # No digits beyond those of the standard deviation.
        decimals = max(0, 1 - math.floor(math.log10(self.sd)))
        if decimals > 6:
            return f"{self.mean:.2e} ± {self.sd:.1e}"
        return f"{self.mean:.{decimals}f} ± {self.sd:.{decimals}f}"


def cells(comparison: Comparison, patterns: Sequence[str]) -> list[Cell]:
    """Of every recorded metric that one of the shell-style patterns matches, by name, layer 2 before layer 10.

    Raises InputError for a pattern that matches none of what finished runs recorded.
    """
    arms = {arm: [run for run in runs.values() if run.status == "finished"] for arm, runs in comparison.runs.items()}
    known = sorted({name for runs in arms.values() for run in runs for name in run.final}, key=_by_number)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InputError(f"no run recorded a metric {pattern!r}", key="--metric", mend=nearest(pattern, known))
    found: list[Cell] = []
    for name in known:
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        for arm, runs in arms.items():
            values = [run.final[name] for run in runs if name in run.final]
            if values:
                mean, variance = moments(values) if len(values) > 1 else (values[0], None)
                found.append(Cell(name, arm, len(values), mean, None if variance is None else math.sqrt(variance)))
    return found


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split("/")]


def metric_table(comparison: Comparison, patterns: Sequence[str], form: Format = "markdown") -> str:
    """The table. JSON and CSV hold full precision, one cell a line. Raises InputError, see `cells`."""
    found = cells(comparison, patterns)
    plain: list[dict[str, Any]] = [dict(vars(cell)) for cell in found]
    if form == "json":
        return json.dumps({"study": comparison.study.id, "metrics": plain}, indent=1, ensure_ascii=False) + "\n"
    if form == "csv":
        return csv_text(["metric", "arm", "n", "mean", "sd"], (cell.values() for cell in plain))
    by_place = {(cell.metric, cell.arm): cell for cell in found}
    arms = [arm for arm in comparison.runs if any(cell.arm == arm for cell in found)]
    heads = ["metric", *(f"{arm} (n {max(cell.n for cell in found if cell.arm == arm)})" for arm in arms)]
    lines = [
        [metric, *(by_place[metric, arm].text if (metric, arm) in by_place else "" for arm in arms)]
        for metric in dict.fromkeys(cell.metric for cell in found)
    ]
    return text_table(heads, lines, form, comparison.study.id)

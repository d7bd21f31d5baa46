"""Errors of training texts, averaged over windows of updates.

Window w covers the updates [w n, w n + n), n the fewest that have the asked number of rows, or all of a shorter run.
Its errors stand in the journal's row of its last update, and of each update they are those of the weights before it. A
window that a run has not seen from its beginning, since it goes on where another one stopped, has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from winnow.tasks.base import Score


class ErrorWindow:
    """rows: of a window; of_update: of an update; steps: updates of the run; means: every update counts alike, whatever
    its padding."""

    def __init__(self, rows: int, of_update: int, steps: int, *, means: bool) -> None:
        self.n_updates = min(-(-rows // of_update), steps)
        self._means = means
        self._seen, self._total = 0, Score()

    def add(self, step: int, score: Score) -> dict[str, float]:
        """Take in an update; the metrics `train/...` of the window where this one is its last."""
        if step % self.n_updates == 0:
            self._seen, self._total = 0, Score()
        self._seen += 1
        self._total += score.means() if self._means else score
        if (step + 1) % self.n_updates or self._seen < self.n_updates:
            return {}
        return {f"train/{name}": value for name, value in self._total.errors().items()}

    def dump(self) -> list[float]:
        """As JSON data."""
        return [self._seen, *astuple(self._total)]

    def restore(self, data: Sequence[float]) -> None:
        """Continue from `dump`; nothing is known of updates that it has not seen."""
        self._seen, self._total = int(data[0]), Score(*data[1:])

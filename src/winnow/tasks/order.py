"""The order of training windows: a pure function of (data digest, seed, position).

The streams of tokens are cut into windows of `context + 1` tokens, each beginning `context` tokens after the one
before. An epoch visits every window once, in a fresh permutation, and begins its cutting at a fresh phase, so that
windows of two epochs differ. Only the permutation of the epoch in use is held.

The draws are raw Philox words, whose values numpy promises to keep, not its distributions, whose values may change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from winnow.config import stream

Integers = npt.NDArray[np.int64]


class WindowOrder:
    """Where the windows of one data set begin, epoch after epoch."""

    def __init__(self, lengths: Sequence[int], context: int, digest: str) -> None:
        """lengths: tokens of each stream; context: tokens per window; digest: of the data.

        A stream of context + 1 tokens or more has at least one window; from 2 context tokens on, one fewer than fit,
        which leaves room for every phase.
        """
        self.context = context
        self.digest = digest
        counts = [max((n - context) // context, int(n > context)) for n in lengths]
        self._slack = [n - 1 - k * context for n, k in zip(lengths, counts, strict=True)]
        self._ends = np.cumsum(np.array(counts, dtype=np.int64))
        self._held: tuple[int, int, Integers] | None = None

    @property
    def n_windows(self) -> int:
        """Windows per epoch."""
        return int(self._ends[-1])

    def locate(self, seed: int, positions: Integers) -> tuple[Integers, Integers]:
        """Stream index and first token of the windows at these positions of the endless sequence of epochs."""
        which = np.empty_like(positions)
        first = np.empty_like(positions)
        epochs = positions // self.n_windows
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            windows = self._permutation(seed, epoch)[positions[here] % self.n_windows]
            streams = np.searchsorted(self._ends, windows, side="right")
            begins = np.concatenate([[0], self._ends[:-1]])[streams]
            phases = {s: self._phase(seed, epoch, s) for s in np.unique(streams).tolist()}
            which[here] = streams
            first[here] = (windows - begins) * self.context + np.array([phases[s] for s in streams.tolist()])
        return which, first

    def _phase(self, seed: int, epoch: int, index: int) -> int:
        return stream(seed, "data", self.digest, "phase", epoch, index) % (self._slack[index] + 1)

    def _permutation(self, seed: int, epoch: int) -> Integers:
        if self._held is None or self._held[:2] != (seed, epoch):
            self._held = None  # before the next one is made: never two at once
            words = np.random.Philox(key=stream(seed, "data", self.digest, "order", epoch)).random_raw(self.n_windows)
            self._held = (seed, epoch, np.argsort(words, kind="stable"))
        return self._held[2]

"""A validation set that is a text: predicted from its first token to its last, in windows that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from winnow.errors import InputError
from winnow.tasks.base import Batch, Ids, Score, Validation


@dataclass(frozen=True)
class Windows(Validation):
    """Window w reads the tokens [w T, w T + T) of `stream` and predicts [w T + 1, w T + T + 1), so that every token but
    the very first (an end of document) is predicted exactly once.

    Metrics: `val/ce` (nats per token), `val/ppl` = exp(val/ce) and, where bytes are known, `val/bpb` (bits per byte).
    """

    stream: Ids
    """(n_tokens + 1,) token ids."""
    context: int
    """Tokens per window (T)."""
    n_bytes: int | None
    """Bytes of text that the predicted tokens stand for, an end of document counting one;
    None: the task does not know its tokenizer's bytes."""
    digest: str
    """SHA-256 of those bytes, the same for every tokenizer (of the ids where the bytes are not known)."""
    batch_means: int | None = None

    @property
    def n_tokens(self) -> int:
        """Predicted tokens."""
        return len(self.stream) - 1

    def batches(self, rows: int) -> Iterator[Batch]:
        """All windows in order, `rows` at a time; the last batch may have fewer rows and masked positions."""
        assert rows > 0
        per_batch = rows * self.context
        for start in range(0, self.n_tokens, per_batch):
            stop = min(start + per_batch, self.n_tokens)
            yield _windows(np.asarray(self.stream[start : stop + 1], dtype=np.int64), self.context)

    def first(self, rows: int) -> Windows:
        """See `Validation.first`. How many bytes these tokens stand for is not known."""
        return replace(self, stream=self.stream[: rows * self.context + 1], n_bytes=None)

    def in_batches(self, rows: int) -> Windows:
        """See `Validation.in_batches`. Raises InputError."""
        what = "a text is measured as a whole, not by means of batches"
        raise InputError(what, key="evaluation.batch_means", mend="leave it out")

    def metrics(self, score: Score) -> dict[str, float]:
        """See the class."""
        ce = score.ce / score.targets
        found = {"val/ce": ce, "val/ppl": math.exp(ce) if ce < 700 else math.inf}
        if self.n_bytes is not None:
            found["val/bpb"] = score.ce / math.log(2) / self.n_bytes
        return found


def _windows(ids: npt.NDArray[np.int64], context: int) -> Batch:
    """Consecutive windows of (n + 1,) ids; an unfinished last one is filled with its last id and masked."""
    import torch

    n = len(ids) - 1
    rows = -(-n // context)
    missing = rows * context - n
    padded = np.concatenate([ids, np.repeat(ids[-1:], missing)])
    mask = None
    if missing:
        mask = torch.ones(rows * context)
        mask[n:] = 0
        mask = mask.view(rows, context)
    tokens = torch.from_numpy(padded[:-1].reshape(rows, context).copy())
    targets = torch.from_numpy(padded[1:].reshape(rows, context).copy())
    return Batch(tokens, targets, mask)

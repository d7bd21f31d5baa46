"""What a model is trained on: a task makes batches for training and a fixed validation set.

`TaskConfig` the family; a member is chosen by `kind` and builds a `Task`.
`Task`       training rows addressed by (seed, step, row), and a fixed validation set.
`Batch`      token ids, their targets and, where not every target counts, a loss mask.
`Validation` fixed windows with exact token and byte counts.

Nothing here knows about models, devices or ranks: the trainer asks for the rows that it wants.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int64
from pydantic import PositiveInt

from winnow.config import Variant

if TYPE_CHECKING:
    from torch import Tensor

    from winnow.tasks.tokenizer import Tokenizer

Ids = npt.NDArray[np.integer[Any]]
"""Token ids: uint16 or int32, in memory or memory-mapped."""


@dataclass(frozen=True)
class Batch:
    """Rows of a task."""

    tokens: Int64[Tensor, "B T"]
    """Token ids read by the model."""
    targets: Int64[Tensor, "B T"]
    """The token id that follows each position."""
    mask: Float[Tensor, "B T"] | None = None
    """Weight of each target's loss, 0 or 1, float32; None: every target counts."""


@dataclass(frozen=True)
class Validation:
    """A fixed text to be predicted from its first token to its last, in windows that do not overlap.

    Window w reads the tokens [w T, w T + T) of `stream` and predicts [w T + 1, w T + T + 1), so that every token
    but the very first (an end of document) is predicted exactly once.
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

    @property
    def n_tokens(self) -> int:
        """Predicted tokens."""
        return len(self.stream) - 1

    def bits_per_byte(self, nats: float) -> float | None:
        """Bits per byte of a total loss: the sum (nats) over all predicted tokens. None where bytes are unknown."""
        return None if self.n_bytes is None else nats / math.log(2) / self.n_bytes

    def batches(self, rows: int) -> Iterator[Batch]:
        """All windows in order, `rows` at a time; the last batch may have fewer rows and masked positions."""
        assert rows > 0
        per_batch = rows * self.context
        for start in range(0, self.n_tokens, per_batch):
            stop = min(start + per_batch, self.n_tokens)
            yield _windows(np.asarray(self.stream[start : stop + 1], dtype=np.int64), self.context)


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


class Task(ABC):
    """Training rows and a validation set."""

    vocab_size: int
    """Token ids are below this."""
    context: int
    """Tokens per row (T)."""
    digest: str
    """SHA-256 over training tokens, validation tokens and tokenizer: the data's part of a run's identity."""
    tokenizer: Tokenizer | None = None
    """What turns text into tokens and back; None: the tokens are no text."""
    validation_digest: str
    """SHA-256 of the whole validation set; for text it is that of the text, whatever the tokenizer."""

    @abstractmethod
    def batch(self, seed: int, step: int, rows: range, rows_per_step: int) -> Batch:
        """Rows of one update step.

        Row i of `rows` (0 <= i < rows_per_step) depends on (digest, seed, step, i) alone: not on how the rows of a
        step are cut into micro batches or shared by ranks, nor on what was asked for before.

        step: update step from 0; rows_per_step: sequences per update.
        """

    @abstractmethod
    def validation(self, tokens: int) -> Validation:
        """The first `tokens` tokens of the validation set.

        Raises InputError where the set holds fewer.
        """

    @abstractmethod
    def validation_bytes(self, n_bytes: int) -> Validation:
        """The first `n_bytes` bytes of the validation text, cut back to the end of a line.

        The cut knows nothing of the tokenizer: tasks with different tokenizers predict exactly the same bytes.
        Raises InputError where the set holds fewer, or the tokenizer cannot encode text.
        """

    @abstractmethod
    def facts(self) -> dict[str, int | str]:
        """What a record says of the data: counts of tokens and documents."""


class TaskConfig(Variant):
    """What to train on; a member of the family is chosen by `kind`."""

    metrics: ClassVar[dict[str, Literal["lower", "higher"]]] = {}
    """Metrics on which a claim may be decided, and which way is better."""

    context: PositiveInt
    """Tokens per row that the model reads at once."""

    @abstractmethod
    def build(self) -> Task:
        """Read the data. Raises InputError where it is missing or damaged."""

    def files(self) -> tuple[Path, ...] | None:
        """Every file that `build` reads, so that a change of one is noticed without reading it; None: not known.

        Raises InputError as `build` does where one is missing.
        """
        return None

    @abstractmethod
    def located(self, folder: Path) -> Self:
        """The same config with relative paths taken from `folder` (where the study stands)."""

"""What a model is trained on: a task makes batches for training and a fixed validation set.

`TaskConfig` the family; a member is chosen by `kind` and builds a `Task`.
`Task`       training rows addressed by (seed, step, row), and a fixed validation set.
`Batch`      token ids, their targets and, where not every target counts, a loss mask.
`Validation` fixed rows and the metrics that are formed of a model's score on them.
`Score`      sums of a model's losses and errors.

Nothing here knows about models, devices or ranks: the trainer asks for the rows that it wants.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int64
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
    """The token id that each position is to predict: the next one, or what the task says."""
    mask: Float[Tensor, "B T"] | None = None
    """Weight of each target's loss, 0 or 1, float32; None: every target counts."""
    answer: Bool[Tensor, "B T"] | None = None
    """Positions whose errors are also counted apart; None: the task counts no errors."""


@dataclass(frozen=True)
class Score:
    """Sums over predicted positions and rows, of one batch or of many: what metrics are formed from."""

    ce: float = 0.0
    """Cross entropy, nats."""
    targets: float = 0.0
    """Targets that count."""
    wrong: float = 0.0
    """Of these, where another token was the likeliest."""
    answers: float = 0.0
    """Positions of answers."""
    wrong_answers: float = 0.0
    rows: float = 0.0
    wrong_rows: float = 0.0
    """Rows with a wrong target anywhere."""

    def __add__(self, other: Score) -> Score:
        return Score(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def means(self) -> Score:
        """The same batch as one: a sum of such scores gives means of batch means."""
        answers, rows = max(self.answers, 1.0), max(self.rows, 1.0)
        return Score(
            self.ce / self.targets, 1.0, self.wrong / self.targets, 1.0, self.wrong_answers / answers, 1.0,
            self.wrong_rows / rows,
        )  # fmt: skip

    def errors(self) -> dict[str, float]:
        """Percent of wrong positions, of wrong positions of answers, and of rows with a wrong position."""
        shares = {
            "error": (self.wrong, self.targets),
            "mask_error": (self.wrong_answers, self.answers),
            "sample_error": (self.wrong_rows, self.rows),
        }
        return {name: 100 * wrong / of for name, (wrong, of) in shares.items()}


class Validation(ABC):
    """Fixed rows to be predicted, the same each time; and what is measured on them."""

    context: int
    """Most positions in a row (T)."""
    digest: str
    """SHA-256 of what is predicted."""
    n_bytes: int | None
    """Bytes of text that the predicted tokens stand for; None: not known, or no running text."""
    batch_means: int | None
    """Rows of the batches whose means are averaged; None: every position counts alike, whatever its batch."""

    @property
    @abstractmethod
    def n_tokens(self) -> int:
        """Predicted positions."""

    @abstractmethod
    def batches(self, rows: int) -> Iterator[Batch]:
        """All rows in order, `rows` at a time; the last batch may have fewer."""

    @abstractmethod
    def first(self, rows: int) -> Validation:
        """The first rows alone, or all; every position counts alike."""

    @abstractmethod
    def in_batches(self, rows: int) -> Validation:
        """The same, measured by the means of batches of `rows`. Raises InputError where that is not defined."""

    @abstractmethod
    def metrics(self, score: Score) -> dict[str, float]:
        """The metrics `val/...` of a model. score: of all batches, summed."""


class Task(ABC):
    """Training rows and a validation set."""

    vocab_size: int
    """Token ids are below this."""
    context: int
    """Tokens per row (T)."""
    digest: str
    """SHA-256 over training tokens, validation tokens and tokenizer: the data's part of a run's identity."""
    tokenizer: Tokenizer | None = None
    """What turns text into tokens and back; None: there is no running text."""
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

        Raises InputError where the set holds fewer, or rows that these would cut through.
        """

    @abstractmethod
    def validation_bytes(self, n_bytes: int) -> Validation:
        """The first `n_bytes` bytes of the validation text, cut back to the end of a line.

        The cut knows nothing of the tokenizer: tasks with different tokenizers predict exactly the same bytes.
        Raises InputError where the set holds fewer, the tokenizer cannot encode text, or there is no running text.
        """

    @abstractmethod
    def facts(self) -> dict[str, int | str]:
        """What a record says of the data: counts of tokens, documents, questions."""


class TaskConfig(Variant):
    """What to train on; a member of the family is chosen by `kind`."""

    metrics: ClassVar[dict[str, Literal["lower", "higher"]]] = {}
    """Metrics on which a claim may be decided, and which way is better."""
    next_token: ClassVar[bool] = True
    """Whether targets are later tokens of the input, which a model must not see. False: targets are apart from it, and
    models that see all of the input may be trained."""

    context: PositiveInt
    """Tokens per row that the model reads at once."""

    @property
    def validation_tokens(self) -> int | None:
        """Positions of a validation set that has a size of its own; None: a text, of which any part may be taken."""
        return None

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

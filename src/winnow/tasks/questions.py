"""Tasks of questions and answers: the model reads a text whose answer is blanked out, and is to say the whole text.

    target   ABCDE:1>2 2>3:BCADE          bytes; every position counts in the loss, padding (spaces) too
    input    ABCDE:1>2 2>3:.....          the answer's bytes are 0, written as dots here

Text i of update s stands at position p = s x rows + i of an endless sequence of texts for each seed. The sequence is
made in blocks, each a pure function of (data digest, seed, block), so that micro batch, ranks and what was asked for
before change nothing. A text that validation asks too is drawn again, with further words of the same address. The
texts of an update are padded to its longest, however it is cut into passes.

The draws are raw Philox words, whose values numpy promises to keep.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt, PositiveInt, model_validator

from winnow.config import Config, digest, stream
from winnow.errors import InputError
from winnow.tasks.base import Batch, Score, Task, TaskConfig, Validation
from winnow.tasks.texts import KEY_BITS, SPACE, Bytes, Grammar, Integers, Texts, joined

Span = PositiveInt | tuple[PositiveInt, PositiveInt]
"""A number, or the least and the most of a range; each number in it is as likely."""

BLOCK = 8192
"""Texts that are made at once."""
VOCABULARY = 256
PROBE_SEED = 0
"""Of the training texts that are looked at for whether validation leaves any."""
DRAWS = 100
"""Texts that may be drawn for each question of the validation set."""


class QuestionSetConfig(Config):
    """The validation set of a task of questions and answers. What it leaves open is as in training."""

    questions: PositiveInt = 10_000
    """Questions, no two alike."""
    seed: NonNegativeInt = 23
    """What they are drawn from; a run's own seed has no part in it."""


class QuestionConfig(TaskConfig):
    """A task of questions and answers, whose metrics count errors in percent.

    `val/error` of positions, `val/mask_error` of the answers' positions, `val/sample_error` of texts with a wrong
    position anywhere; `val/ce`, nats per position, of all positions.
    """

    metrics: ClassVar[dict[str, Literal["lower", "higher"]]] = {
        "val/ce": "lower",
        "val/error": "lower",
        "val/mask_error": "lower",
        "val/sample_error": "lower",
    }
    next_token: ClassVar[bool] = False

    context: NonNegativeInt = 0
    """Bytes of the longest text; it follows from the rest (0 until it is filled in)."""

    @abstractmethod
    def grammars(self) -> tuple[Grammar, Grammar]:
        """Of training and of validation. Raises InputError where the fields do not go together."""

    @abstractmethod
    def held_out(self) -> QuestionSetConfig:
        """How the validation set is drawn."""

    @property
    def validation_tokens(self) -> int:
        """See `TaskConfig.validation_tokens`: every question is padded to the longest that there may be."""
        return self.held_out().questions * self.grammars()[1].longest

    @model_validator(mode="after")
    def _measures(self) -> Self:
        longest = max(grammar.longest for grammar in self.grammars())
        if self.context not in (0, longest):
            raise InputError(f"the longest text has {longest} bytes", key="context", mend="leave it out")
        # As in `RunConfig`: what follows is filled in before anybody has seen this instance.
        object.__setattr__(self, "context", longest)
        return self

    def build(self) -> Task:
        training, validation = self.grammars()
        of = self.held_out()
        held_out = draw_questions(validation, of.questions, of.seed)
        return QuestionTask(self.canonical(), self.context, training, validation, held_out)

    def files(self) -> tuple[()]:
        return ()

    def located(self, folder: object) -> Self:
        return self


def draw_questions(grammar: Grammar, n: int, seed: int) -> Texts:
    """n texts with different questions, in the order of their drawing. Raises InputError where there are not enough."""
    found: list[Texts] = []
    seen: set[bytes] = set()
    for block in range(-(-n * DRAWS // BLOCK)):
        texts = _drawn(grammar, BLOCK, seed, "questions", block)
        questions = [row[:end].tobytes() for row, end in zip(texts.bytes, texts.answers.tolist(), strict=True)]
        fresh = [i for i, question in enumerate(questions) if not (question in seen or seen.add(question))]
        found.append(texts.rows(np.array(fresh[: n - sum(map(len, found))], dtype=np.int64)))
        if len(seen) >= n:
            return joined(found)
    raise InputError(
        f"{n * DRAWS} draws have {len(seen)} different questions, {n} are asked for",
        key="task.validation.questions",
        mend="ask for fewer",
    )


def _drawn(grammar: Grammar, n: int, seed: int, *address: str | int) -> Texts:
    halves = -(-n * grammar.words // 2)
    raw = np.random.Philox(key=stream(seed, "data", *address)).random_raw(halves).astype("<u8", copy=False)
    return grammar.texts(raw.view("<u4")[: n * grammar.words].reshape(grammar.words, n))


class QuestionTask(Task):
    """Training texts by their address, and a fixed set of questions that training never asks."""

    vocab_size = VOCABULARY
    tokenizer = None

    def __init__(
        self, identity: Mapping[str, Any], context: int, training: Grammar, validation: Grammar, held_out: Texts
    ) -> None:
        """identity: the config's canonical form. Raises InputError where validation leaves training too little."""
        self.context = context
        self.validation_digest = _digest(held_out)
        self.digest = digest({"task": identity, "validation": self.validation_digest})
        self._training, self._validation, self._held_out = training, validation, held_out
        width = max(training.width, validation.width)
        wide = replace(held_out, bytes=_padded(held_out.bytes, width))
        self._asked = {row.tobytes() for row in wide.bytes}
        self._may_be_asked = np.zeros(1 << KEY_BITS, dtype=np.bool_)
        self._may_be_asked[wide.keys] = True
        self._width = width
        self._held: dict[tuple[int, int], Texts] = {}
        probe = _drawn(training, BLOCK, PROBE_SEED, self.digest, "probe")
        share = len(self._in_validation(probe)) / len(probe)
        if share > 0.5:
            raise InputError(
                f"the validation set holds {share:.0%} of the training texts",
                key="task.validation.questions",
                mend="ask for fewer, or for longer texts",
            )

    def batch(self, seed: int, step: int, rows: range, rows_per_step: int) -> Batch:
        assert step >= 0
        assert rows.step == 1
        assert 0 <= rows.start < rows.stop <= rows_per_step, "rows of this step"
        first = step * rows_per_step
        blocks = range(first // BLOCK, (first + rows_per_step - 1) // BLOCK + 1)
        update = joined([self._block(seed, block) for block in blocks])
        self._held = {(seed, block): self._held[seed, block] for block in blocks}
        offset = first - blocks.start * BLOCK
        longest = int(update.lengths[offset : offset + rows_per_step].max())
        return update.batch(slice(offset + rows.start, offset + rows.stop), longest)

    def _block(self, seed: int, block: int) -> Texts:
        if (seed, block) not in self._held:
            texts = _drawn(self._training, BLOCK, seed, self.digest, "texts", block, 0)
            again, attempt = self._in_validation(texts), 0
            while len(again):
                attempt += 1
                others = _drawn(self._training, BLOCK, seed, self.digest, "texts", block, attempt).rows(again)
                for mine, other in zip(_arrays(texts), _arrays(others), strict=True):
                    mine[again] = other
                again = again[self._in_validation(others)]
            self._held[seed, block] = texts
        return self._held[seed, block]

    def _in_validation(self, texts: Texts) -> Integers:
        """Which of them validation asks too."""
        wide = Texts(_padded(texts.bytes, self._width), texts.lengths, texts.answers)
        like = np.flatnonzero(self._may_be_asked[wide.keys])
        return np.array([i for i in like.tolist() if wide.bytes[i].tobytes() in self._asked], dtype=np.int64)

    def validation(self, tokens: int) -> QuestionSet:
        width = self._validation.longest
        most = len(self._held_out) * width
        if tokens % width or not 0 < tokens <= most:
            raise InputError(
                f"{tokens} validation tokens are no whole number of the set's {len(self._held_out)} questions of "
                f"{width} bytes",
                key="evaluation.tokens",
                mend=f"leave it out for all {most}, or use a multiple of {width}",
            )
        texts = self._held_out.rows(slice(0, tokens // width))
        return QuestionSet(texts, self.context, width, _digest(texts))

    def validation_bytes(self, n_bytes: int) -> QuestionSet:
        what = "questions are no running text"
        raise InputError(what, key="evaluation.bytes", mend="leave it out: the whole set is measured")

    def facts(self) -> dict[str, int | str]:
        return {"validation_questions": len(self._held_out), "longest_text": self.context}


def _arrays(texts: Texts) -> tuple[npt.NDArray[Any], ...]:
    return texts.bytes, texts.lengths, texts.answers


def _padded(rows: Bytes, width: int) -> Bytes:
    missing = width - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, missing)), constant_values=SPACE) if missing else rows


def _digest(texts: Texts) -> str:
    """SHA-256 of the texts, one a line."""
    lines = [row[:end].tobytes() for row, end in zip(texts.bytes, texts.lengths.tolist(), strict=True)]
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


@dataclass(frozen=True)
class QuestionSet(Validation):
    """Questions with their answers, padded to `width`; measured in batches, each to its own longest text."""

    texts: Texts
    context: int
    width: int
    """Bytes of the longest text that there may be."""
    digest: str
    """SHA-256 of the texts, one a line."""
    batch_means: int | None = None
    n_bytes: int | None = None

    @property
    def n_tokens(self) -> int:
        """Predicted positions, padding among them."""
        if self.batch_means is None:
            return len(self.texts) * self.width
        return sum(batch.targets.numel() for batch in self.batches(self.batch_means))

    def batches(self, rows: int) -> Iterator[Batch]:
        """All texts in order, `rows` at a time; the last batch may have fewer."""
        assert rows > 0
        for start in range(0, len(self.texts), rows):
            which = slice(start, start + rows)
            width = self.width if self.batch_means is None else int(self.texts.lengths[which].max())
            yield self.texts.batch(which, width)

    def first(self, rows: int) -> QuestionSet:
        """See `Validation.first`."""
        return replace(self, texts=self.texts.rows(slice(0, rows)), batch_means=None)

    def in_batches(self, rows: int) -> QuestionSet:
        """See `Validation.in_batches`."""
        return replace(self, batch_means=rows)

    def metrics(self, score: Score) -> dict[str, float]:
        """See `QuestionConfig`."""
        errors = {f"val/{name}": value for name, value in score.errors().items()}
        return {"val/ce": score.ce / score.targets, **errors}

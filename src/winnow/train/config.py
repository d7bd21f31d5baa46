"""What one run is: a task, a model, how it is trained, how it is measured.

`RunConfig` is resolved when it is made: every number that follows from others (micro batch, accumulation) is filled
in, and what does not divide exactly is refused, so the stored config says what ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from winnow.config import Config
from winnow.errors import InputError
from winnow.models.base import ModelConfig
from winnow.tasks.base import TaskConfig


class TrainConfig(Config):
    """How a run is trained. The defaults are GPT-2's (Brown et al. 2020, appendix B), at a small token budget."""

    steps: PositiveInt = 400
    """Updates of the optimizer."""
    tokens_per_update: PositiveInt = 4096
    """Tokens in one update = context x micro_batch x accumulation, exactly."""
    micro_batch: PositiveInt | None = None
    """Sequences in one forward and backward pass; None = as many as the update has."""
    accumulation: PositiveInt | None = None
    """Passes whose gradients are summed into one update; None = what follows from the other three."""
    lr: PositiveFloat = 6e-4
    """Peak learning rate; a parameter's own multiplier comes from the table of parameters."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """What the rate does after warm-up: falls to `min_lr_fraction` along a cosine or a line, or stays."""
    warmup: NonNegativeInt = 20
    """Updates of linear warm-up: update s has lr x (s + 1) / warmup. 0 = none."""
    min_lr_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """The rate that the schedule reaches at `steps`, as a fraction of the peak. Not read by `constant`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments, each in [0, 1)."""
    eps: PositiveFloat = 1e-8
    """Added to the root of AdamW's second moment."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay per unit of learning rate. 0 = none."""
    decay_on: Literal["matrices", "all"] = "matrices"
    """Which parameters decay: those that the table of parameters marks (weights with two axes or more), or all."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the whole gradient; None = no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward pass under autocast; weights, moments and losses stay fp32."""
    compile: bool = False
    """Run the model through torch.compile. Such a run is stamped "not bit-exact"."""
    recompute: bool = False
    """Keep only the inputs of each block and compute its inside again in the backward pass: less memory, about a third
    more arithmetic, the same numbers. False: off."""
    checkpoint_every: PositiveInt | None = None
    """Updates between checkpoints; None = about once a minute. The last update always has one."""

    legacy: ClassVar[Mapping[str, Any]] = {"recompute": False}
    outside_identity: ClassVar[frozenset[str]] = frozenset({"checkpoint_every"})

    @model_validator(mode="after")
    def _rates_in_range(self) -> Self:
        for beta in self.betas:
            if not 0.0 <= beta < 1.0:
                raise InputError(f"betas are {list(self.betas)}", mend="each must be at least 0 and less than 1")
        return self


class EvaluationConfig(Config):
    """What a run is measured on. It belongs to the study, never to an arm."""

    every: PositiveInt = 50
    """Updates between evaluations; step 0 and the last step are always evaluated."""
    tokens: PositiveInt = 16384
    """Validation tokens of one evaluation, from the front of the validation split: the same ones each time."""
    bytes: PositiveInt | None = None
    """Validation bytes instead of tokens, so that arms with different tokenizers predict the same text;
    None = `tokens` says how much."""
    inside: PositiveInt | None = None
    """Updates between looks at the inside of the mechanisms (`inside/LAYER/NAME` in the journal, on the first batch of
    the validation tokens); step 0 and the last step are looked at too. None = never."""

    legacy: ClassVar[Mapping[str, Any]] = {"inside": None}


class RunConfig(Config):
    """One run, fully resolved: the scientific identity is this, the seed, the data and the `use` files."""

    task: TaskConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _divides(self) -> Self:
        micro_batch, accumulation = split_update(self.train, self.task.context)
        changes = {"micro_batch": micro_batch, "accumulation": accumulation}
        # The one place where a frozen config is completed: nobody has seen this instance yet.
        object.__setattr__(self, "train", self.train.replace(changes))
        return self

    @property
    def rows(self) -> int:
        """Sequences in one update."""
        return self.train.tokens_per_update // self.task.context


def split_update(train: TrainConfig, context: int) -> tuple[int, int]:
    """(micro_batch, accumulation) of an update.

    context: tokens in a sequence. Raises `InputError` unless
    tokens_per_update = context x micro_batch x accumulation has exactly one solution.
    """
    tokens = train.tokens_per_update
    rows, rest = divmod(tokens, context)
    if rest or not rows:
        lower = max(context, tokens - rest)
        raise InputError(
            f"{tokens} tokens are no whole number of sequences of {context}",
            key="train.tokens_per_update",
            mend=f"use {lower} or {(tokens // context + 1) * context}",
        )
    micro_batch, accumulation = train.micro_batch, train.accumulation
    if micro_batch is None:
        passes = accumulation or 1
        if rows % passes:
            raise InputError(
                f"{rows} sequences an update do not divide into {passes} passes",
                key="train.accumulation",
                mend=f"permitted: {_divisors(rows)}",
            )
        return rows // passes, passes
    if rows % micro_batch:
        raise InputError(
            f"{rows} sequences an update ({tokens} tokens, context {context}) do not divide by {micro_batch}",
            key="train.micro_batch",
            mend=f"permitted: {_divisors(rows)}",
        )
    passes = rows // micro_batch
    if accumulation is not None and accumulation != passes:
        raise InputError(
            f"{context} x {micro_batch} x {accumulation} is {context * micro_batch * accumulation} tokens, "
            f"tokens_per_update is {tokens}",
            key="train.accumulation",
            mend=f"use {passes}, or leave it out",
        )
    return micro_batch, passes


def _divisors(number: int) -> str:
    return ", ".join(str(value) for value in range(1, number + 1) if number % value == 0)

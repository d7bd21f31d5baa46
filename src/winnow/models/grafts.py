"""Grafts: what is done to a model before it is trained, as config. The tensors are `winnow.models.surgery`'s business.

    add-heads          n fresh heads in every layer, before or after the old ones; six ways to start them
    remove-heads       heads of every layer go, with their columns of the output projection
    switch-attention   another mechanism, or other options of the same, over the same heads

Heads that a mechanism's options name by their number (`scores.head`, `accumulate.source.head`) are places: after a
graft at the start, `head = 0` is the new head. Which mask an old head reads stays as it was.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

from pydantic import NonNegativeInt, PositiveInt, ValidationError, field_validator

from winnow.attention import AttentionConfig
from winnow.config import Variant, input_errors
from winnow.errors import InputError
from winnow.models.base import ModelConfig
from winnow.models.gpt import GPTConfig

Places = tuple[int | None, ...]
"""Of each head of the grown model, the head it was before; None: it is fresh."""


class GraftConfig(Variant):
    """The family of grafts."""

    replaces: ClassVar[bool] = False
    """Parameters may come and go with it; otherwise what cannot be carried over is an error."""

    @abstractmethod
    def grown(self, model: ModelConfig) -> ModelConfig:
        """The model after this graft. Raises InputError where the graft does not fit the model."""

    def places(self, model: ModelConfig) -> Places:
        """What becomes of the model's heads."""
        return tuple(range(_gpt(model, self.kind).n_heads))

    def bound(self, family: str, fan_in: int) -> float | None:
        """Fresh values of a slice are uniform between minus and plus this; None: what the table of parameters says.

        family: the name of the slice without its number ("q", "o"); fan_in: inputs that each output sums over.
        """
        return None


@final
class AddHeads(GraftConfig):
    """Fresh heads in every layer; d_head stays, and so do d_ff and every old value.

    Fresh values are uniform within 1 / sqrt(fan_in), without residual scaling; the biases of q, k and v are 0. Where
    a mechanism mixes the scores of heads, the weights of a new head are 0.
    """

    kind: Literal["add-heads"] = "add-heads"
    n: PositiveInt = 1
    """New heads. No off-value."""
    at: Literal["start", "end"] = "start"
    """start: before the old heads, so that the first new one is head 0, which selects by default; end: after them."""
    init: Literal["normal", "o_rescaled", "o_zero", "k_zero", "ko_zero", "zero"] = "normal"
    """What of the new heads differs from fresh values: o_rescaled: O / 5; o_zero: O = 0; k_zero: K = 0; ko_zero: both;
    zero: Q, K, V and O are 0, and stay so for ever."""

    def grown(self, model: ModelConfig) -> ModelConfig:
        old = _gpt(model, self.kind)
        return _with_heads(old, self.places(old), self.kind)

    def places(self, model: ModelConfig) -> Places:
        n_heads = _gpt(model, self.kind).n_heads
        fresh: Places = (None,) * self.n
        old: Places = tuple(range(n_heads))
        return fresh + old if self.at == "start" else old + fresh

    def bound(self, family: str, fan_in: int) -> float | None:
        if family == "a" or family in _ZERO[self.init]:
            return 0.0
        if family not in ("q", "k", "v", "o"):
            return None
        return fan_in**-0.5 / (5 if family == "o" and self.init == "o_rescaled" else 1)


_ZERO: Mapping[str, tuple[str, ...]] = {
    "normal": (),
    "o_rescaled": (),
    "o_zero": ("o",),
    "k_zero": ("k",),
    "ko_zero": ("k", "o"),
    "zero": ("q", "k", "v", "o"),
}
"""Families of slices that start at 0."""


@final
class RemoveHeads(GraftConfig):
    """Heads of every layer go; the others close ranks."""

    kind: Literal["remove-heads"] = "remove-heads"
    heads: tuple[NonNegativeInt, ...]
    """Their numbers, from 0. No off-value."""

    @field_validator("heads")
    @classmethod
    def _distinct(cls, heads: tuple[int, ...]) -> tuple[int, ...]:
        if not heads:
            raise InputError("no head is named", mend="name one, or drop the graft")
        if len(set(heads)) < len(heads):
            raise InputError(f"{list(heads)} names a head twice", mend="name each once")
        return tuple(sorted(heads))

    def grown(self, model: ModelConfig) -> ModelConfig:
        old = _gpt(model, self.kind)
        return _with_heads(old, self.places(old), self.kind)

    def places(self, model: ModelConfig) -> Places:
        n_heads = _gpt(model, self.kind).n_heads
        if self.heads[-1] >= n_heads:
            raise InputError(
                f"head {self.heads[-1]} is not one of {n_heads}", key="heads", mend=f"use 0 to {n_heads - 1}"
            )
        if len(self.heads) == n_heads:
            raise InputError("no head would be left", key="heads", mend="leave one")
        return tuple(head for head in range(n_heads) if head not in self.heads)


@final
class SwitchAttention(GraftConfig):
    """Another mechanism over the same heads: from softmax to selective or back, other options, more masks.

    What both have is kept; what only the new one has starts as the table of parameters says.
    """

    replaces: ClassVar[bool] = True

    kind: Literal["switch-attention"] = "switch-attention"
    attention: AttentionConfig
    """The mechanism from now on, with all its options."""

    def grown(self, model: ModelConfig) -> ModelConfig:
        return _changed(_gpt(model, self.kind), {"attention": self.attention})


def grow(model: ModelConfig, grafts: Sequence[GraftConfig]) -> ModelConfig:
    """The model after all grafts, in their order. Raises InputError, its key below `graft`."""
    for index, graft in enumerate(grafts):
        try:
            model = graft.grown(model)
        except InputError as error:
            key = f"{index}.{error.key}" if error.key else str(index)
            raise InputError(error.message, key=key, mend=error.mend) from error
    return model


def heads_of(model: ModelConfig) -> int:
    """Heads of every layer. Raises InputError for a model that is no GPT."""
    return _gpt(model, "a graft").n_heads


def _gpt(model: ModelConfig, kind: str) -> GPTConfig:
    if not isinstance(model, GPTConfig):
        raise InputError(f"{kind} knows models of kind 'gpt', not {model.kind!r}")
    return model


def _with_heads(model: GPTConfig, places: Places, kind: str) -> GPTConfig:
    if model.n_kv_heads != model.n_heads:
        raise InputError(
            f"{kind} needs heads with keys and values of their own: {model.n_heads} heads share {model.n_kv_heads}, "
            "and other groups would give old heads other keys",
            mend="use a model with n_kv_heads = n_heads",
        )
    attention = model.attention.follow(places, model.n_heads)
    return _changed(model, {"n_heads": len(places), "n_kv_heads": len(places), "attention": attention})


def _changed(model: GPTConfig, changes: Mapping[str, Any]) -> GPTConfig:
    try:
        return model.replace(changes)
    except ValidationError as error:
        raise input_errors(error)[0] from error


__all__ = ["AddHeads", "GraftConfig", "Places", "RemoveHeads", "SwitchAttention", "grow", "heads_of"]

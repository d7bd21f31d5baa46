"""Selection: tokens vote, over time, for earlier tokens to be forgotten. What follows the scores: gate, sum, spread.

    scores      r[i, j], nats                                        `winnow.attention.selectors`
    gate        S[i, j] = relu(r[i, j]) on visible pairs, else 0     or a leaky relu
    accumulate  F[i, j] = sum over t < i of S[t, j]                  or the damage that protection lets through
    spread      head h reads the mask spread[h]

F is subtracted from the scores of the heads. What strictly earlier queries have voted is felt: F is 0 for i <= j + 1,
0 or more and never falling (unless the gate leaks). Not a probability. The exact equations, with those of protection,
stand in `winnow.kernels.rule`, whose `Rule` this file fills in.
Source: Leviathan, Kalman, Matias 2024 (arXiv 2410.02703), section 3; the variants: docs/selective.md.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from winnow.attention.base import Shape
from winnow.attention.selectors import Head, HeadScores, LinearCombination, Selector
from winnow.config import Config, Variant
from winnow.errors import InputError
from winnow.kernels.rule import Accumulate, Algorithm, Protection, grouped


class GateConfig(Config):
    """What a score becomes before it is summed."""

    leak: NonNegativeFloat = 0.0
    """Slope below 0: a negative score takes votes back. The future is 0 before the leak. 0: relu."""
    relu_after: bool = False
    """Another relu, on the sum, so that F stays 0 or more under a leak. False: off."""


@dataclass(frozen=True)
class Shield:
    """What protection adds to a rule."""

    kind: Protection
    slope: float = 0.0
    offset: float = 0.0


class ProtectorConfig(Variant):
    """The family of sources of protection p, nats per turn, before scale and bias."""

    @abstractmethod
    def shield(self) -> Shield:
        """What the rule must know."""

    def fits(self, shape: Shape) -> None:
        """Raises InputError, with a key below this table, where the sizes do not allow it."""

    def build(self, shape: Shape) -> Selector | None:
        """What makes the protector's scores; None: none are needed."""
        return None


@final
class HeadProtector(ProtectorConfig):
    """p = relu(score of one ordinary head), of BOS and of a token for itself as well."""

    kind: Literal["head"] = "head"
    head: NonNegativeInt = 1
    """Index of the head, from 0. It keeps its output."""

    def shield(self) -> Shield:
        return Shield("scores")

    def fits(self, shape: Shape) -> None:
        HeadScores(head=self.head).fits(shape)

    def build(self, shape: Shape) -> Head:
        return Head(self.head)


@final
class LinearCombinationProtector(ProtectorConfig):
    """p = relu(sum_h w_h A_h + b), b from 0. The weights are decayed and learn at the full rate."""

    kind: Literal["linear_combination"] = "linear_combination"
    init: Literal["second", "random"] = "random"
    """second: starts as the scores of head 1; random: N(0, 0.02)."""

    def shield(self) -> Shield:
        return Shield("scores")

    def fits(self, shape: Shape) -> None:
        if self.init == "second" and shape.n_heads < 2:
            raise InputError("there is no second head to start at", key="init", mend='use init = "random"')

    def build(self, shape: Shape) -> LinearCombination:
        hot = (1, 1.0) if self.init == "second" else None
        return LinearCombination(shape, hot, bias=True, scale=1.0, lr_multiplier=1.0, decay=True)


@final
class LeakyProtector(ProtectorConfig):
    """p = relu(-slope * r + offset): a negative score protects instead of taking votes back."""

    kind: Literal["leaky"] = "leaky"
    slope: NonNegativeFloat = 0.1
    """Protection per nat of negative score. 0: the score does not protect."""
    offset: float = -0.05
    """Nats; below 0, a score must be so much under 0 (over the slope) to protect at all. 0: off."""

    def shield(self) -> Shield:
        return Shield("leaky", self.slope, self.offset)


@final
class ConstantProtector(ProtectorConfig):
    """p = value, for every visible key at every turn."""

    kind: Literal["constant"] = "constant"
    value: NonNegativeFloat = 50.0
    """Nats per turn. 0: `kind = "zero"`."""

    def shield(self) -> Shield:
        return Shield("constant", 0.0, self.value)


@final
class ZeroProtector(ProtectorConfig):
    """p = 0: the recurrence runs and must equal the plain sum."""

    kind: Literal["zero"] = "zero"

    def shield(self) -> Shield:
        return Shield("constant")


class AccumulateConfig(Variant):
    """The family of ways in which votes add up over queries."""

    algorithm: Algorithm = "blocked"
    """How the sums are formed: blocked in two levels (what the fast kernels do), library (torch.cumsum), sequential
    (one running sum), tree (pairs of pairs). The same function up to rounding."""
    dtype: Accumulate = "float32"
    """Of the sums; float32 is float64 where the scores are."""


@final
class SumConfig(AccumulateConfig):
    """F is the sum of the votes of strictly earlier queries."""

    kind: Literal["sum"] = "sum"


@final
class ProtectConfig(AccumulateConfig):
    """F is the damage that votes do after protection has absorbed what it can; an attack comes before the same turn's
    protection."""

    kind: Literal["protect"] = "protect"
    source: ProtectorConfig = HeadProtector()
    """Where protection comes from."""
    scale: NonNegativeFloat = 1.0
    """Multiplies protection first. 1: off; 0: no protection."""
    bias: float = 0.0
    """Then added, nats, below 0 weakening protection: relu(p + bias). 0: off."""


class PenaltyConfig(Config):
    """A loss on the memory that a layer holds on to.

    m_i = (tokens before query i in its document) - sum_j min(F[i, j], tau) / tau: keys that query i still attends to,
    over masks weighted by the heads that read them. Added to the loss: epsilon * mean over rows of
    (max or mean over i of m_i) / (n_layers * context), in training alone. Source: Leviathan et al. 2024, section 3.
    """

    epsilon: PositiveFloat = 0.1
    """Weight. No off-value: `penalty = None` is off."""
    tau: PositiveFloat = 1.0
    """Votes, nats, from which a key counts as forgotten."""
    form: Literal["max", "mean"] = "max"
    """max: the largest m_i of a row. mean: the last token's place less the mean of the forgotten over all queries: what
    a published program computed in place of the maximum."""


def spread_over(spread: Literal["grouped"] | tuple[int, ...], n_masks: int, n_heads: int) -> tuple[int, ...]:
    """The mask of each head. Raises InputError where they do not fit."""
    if n_masks > n_heads:
        raise InputError(
            f"{n_masks} masks for {n_heads} heads", key="scores", mend=f"make at most {n_heads}: no head reads the rest"
        )
    if spread == "grouped":
        return grouped(n_masks, n_heads)
    if len(spread) != n_heads:
        raise InputError(f"{len(spread)} entries for {n_heads} heads", key="spread", mend="give one mask per head")
    wrong = sorted(set(spread) ^ set(range(n_masks)))
    if wrong:
        what = f"mask {wrong[0]} is not one of {n_masks}" if wrong[0] in spread else f"no head reads mask {wrong[0]}"
        raise InputError(what, key="spread", mend=f"use each of 0 to {n_masks - 1}")
    return spread


def follow_spread(
    spread: tuple[int, ...], places: Sequence[int | None], masks_before: int, masks_after: int
) -> tuple[int, ...]:
    """The mask of each head after surgery: old heads read what they read, new ones their own or the group's.

    places: of each head after it, the head it was before; None: new. A number of masks that moves with the heads means
    a mask per head, which follows its head. Raises InputError where a head would lose the mask that it reads.
    """
    if masks_before == masks_after:
        default = grouped(masks_after, len(places))
        return tuple(default[i] if old is None else spread[old] for i, old in enumerate(places))
    now = {old: i for i, old in enumerate(places) if old is not None}
    found: list[int] = []
    for i, old in enumerate(places):
        mask = None if old is None else spread[old]
        if mask is not None and mask not in now:
            raise InputError(
                f"head {old} reads the mask of head {mask}, which goes", key="attention.spread", mend="change it first"
            )
        found.append(i if mask is None else now[mask])
    return tuple(found)

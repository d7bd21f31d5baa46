"""Where the scores of a selection come from: the first part of the pipeline scores -> gate -> accumulate -> spread.

    head                r = q_h . k_h / sqrt(D) of one ordinary head, which keeps its output
    selectors           r = q_s . k_s / sqrt(D) of dedicated heads without values, whole or cut into slices
    linear_combination  r = scale sum_h w_h A_h + b         A_h: score of head h
    latent              r_m = sum_n W[m, n] (slice score n of one dedicated head) + b_m

A score is nats. Every mix is linear in the scores, so it is turned into queries and keys of its own: a kernel knows
nothing but q . k. A bias is one more pair of channels (b sqrt(D), 1). What a score is worth on invisible pairs is the
rule's business (`winnow.kernels.rule`): they are 0 after every mix, a bias included.

Not here: what is done with the scores (`winnow.attention.selection`). Rows S1-40 to S1-50 of docs/selective.md.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from winnow.attention.base import Shape
from winnow.config import Variant
from winnow.errors import InputError
from winnow.kernels.decode_cpu import Voters
from winnow.parameters import declare, head_slices, spec


class ScoresConfig(Variant):
    """The family of sources of scores."""

    def dedicated(self, n_heads: int) -> int:
        """Heads to project besides the ordinary ones, queries and keys alone."""
        return 0

    def masks(self, n_heads: int) -> int:
        """Masks that come of it."""
        return 1

    def fits(self, shape: Shape) -> None:
        """Raises InputError, with a key below this table, where the sizes do not allow it."""

    @abstractmethod
    def build(self, shape: Shape) -> Selector:
        """The module, its parameters uninitialised."""


class Selector(nn.Module):
    """Makes masks' queries and keys of those of the heads."""

    @abstractmethod
    def operands(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B S K D"],
        q_own: Float[Tensor, "B T N D"],
        k_own: Float[Tensor, "B S N D"],
    ) -> int | tuple[Float[Tensor, "B T M E"], Float[Tensor, "B S M1 E"]]:
        """What a kernel selects with: the index of a head, or queries and keys of each mask (or one key for all).

        q_own, k_own: the dedicated heads. Queries and keys need not be as many: decoding has one query.
        """

    def whole(self, shape: Shape) -> Voters | None:
        """Of each mask, the heads of q and of k whose product it is, dedicated ones last; None: it is none."""
        return None

    def mixed(self, scores: Float[Tensor, "B H T S"]) -> Float[Tensor, "B M T S"] | None:
        """The masks' scores, from those of the heads; None where they are not made of these."""
        return None

    def mixing_flops(self) -> int:
        """Operations per query and key, forward, that mix scores which exist already."""
        return 0

    @abstractmethod
    def pair(self, heads: list[Tensor], query: Float[Tensor, "S D"], key: Float[Tensor, "S D"]) -> list[Tensor]:
        """Each mask's score of one (query, key) pair, in plain loops, for the oracle.

        heads: the pair's score in each ordinary head; query, key: of the dedicated heads.
        """


@final
class HeadScores(ScoresConfig):
    """Scores of one ordinary head."""

    kind: Literal["head"] = "head"
    head: NonNegativeInt = 0
    """Index of the head, from 0."""

    def fits(self, shape: Shape) -> None:
        if self.head >= shape.n_heads:
            raise InputError(
                f"head {self.head} is not one of {shape.n_heads}", key="head", mend=f"use 0 to {shape.n_heads - 1}"
            )

    def build(self, shape: Shape) -> Head:
        return Head(self.head)


@final
class Head(Selector):
    """See HeadScores."""

    def __init__(self, head: int) -> None:
        super().__init__()
        self.head = head

    def operands(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B S K D"],
        q_own: Float[Tensor, "B T N D"],
        k_own: Float[Tensor, "B S N D"],
    ) -> int:
        return self.head

    def whole(self, shape: Shape) -> Voters:
        return ((self.head, self.head // (shape.n_heads // shape.n_kv_heads)),)

    def mixed(self, scores: Float[Tensor, "B H T S"]) -> Float[Tensor, "B 1 T S"]:
        return scores[:, self.head : self.head + 1]

    def pair(self, heads: list[Tensor], query: Float[Tensor, "S D"], key: Float[Tensor, "S D"]) -> list[Tensor]:
        return [heads[self.head]]


@final
class SelectorScores(ScoresConfig):
    """Dedicated heads that select and have no values, hence no output. Each, or each of its slices, makes a mask."""

    kind: Literal["selectors"] = "selectors"
    n_heads: PositiveInt = 1
    """Dedicated heads. No off-value: `kind = "head"` needs none."""
    n_slices: PositiveInt = 1
    """Masks per dedicated head: its channels are cut into so many parts. 1: whole heads."""

    def dedicated(self, n_heads: int) -> int:
        return self.n_heads

    def masks(self, n_heads: int) -> int:
        return self.n_heads * self.n_slices

    def fits(self, shape: Shape) -> None:
        slices_fit(self.n_slices, shape, "n_slices")

    def build(self, shape: Shape) -> Dedicated:
        return Dedicated(self.n_heads, self.n_slices, rotary=shape.rotary)


def slices_fit(n: int, shape: Shape, key: str) -> None:
    """Raises InputError unless a head can be cut into `n` slices: of pairs of channels, where positions turn pairs."""
    width, what = (shape.d_head // 2, "pairs of rotary channels") if shape.rotary else (shape.d_head, "channels")
    if width % n:
        raise InputError(
            f"a head of {shape.d_head} has {width} {what}, which {n} does not divide", key=key, mend="use a divisor"
        )


def sliced(x: Float[Tensor, "*rows D"], n: int, *, rotary: bool) -> Float[Tensor, "*rows n E"]:
    """The channels of a head in `n` slices.

    Rotary positions turn channel d together with d + D/2, so a slice must hold both: its scores would depend on
    absolute positions otherwise.
    """
    if not rotary:
        return x.unflatten(-1, (n, -1))
    return x.unflatten(-1, (2, n, -1)).movedim(-3, -2).flatten(-2)


@final
class Dedicated(Selector):
    """See SelectorScores. The scale stays D^-1/2 of the whole head, so that slice scores sum to the head's."""

    def __init__(self, n_heads: int, n_slices: int, *, rotary: bool) -> None:
        super().__init__()
        self.n_heads, self.n_slices, self.rotary = n_heads, n_slices, rotary

    def whole(self, shape: Shape) -> Voters | None:
        if self.n_slices > 1:
            return None
        return tuple((shape.n_heads + head, shape.n_kv_heads + head) for head in range(self.n_heads))

    def operands(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B S K D"],
        q_own: Float[Tensor, "B T N D"],
        k_own: Float[Tensor, "B S N D"],
    ) -> tuple[Float[Tensor, "B T M E"], Float[Tensor, "B S M E"]]:
        n = self.n_slices
        return sliced(q_own, n, rotary=self.rotary).flatten(2, 3), sliced(k_own, n, rotary=self.rotary).flatten(2, 3)

    def pair(self, heads: list[Tensor], query: Float[Tensor, "S D"], key: Float[Tensor, "S D"]) -> list[Tensor]:
        found: list[Tensor] = []
        for s in range(len(query)):
            found.extend(_slice_scores(query[s], key[s], self.n_slices, self.rotary))
        return found


def _slice_scores(query: Tensor, key: Tensor, n: int, rotary: bool) -> list[Tensor]:
    D = len(query)
    found: list[Tensor] = []
    for part in range(n):
        if rotary:
            first = range(part * D // (2 * n), (part + 1) * D // (2 * n))
            channels = [*first, *(d + D // 2 for d in first)]
        else:
            channels = list(range(part * D // n, (part + 1) * D // n))
        found.append(sum((query[d] * key[d] for d in channels), torch.zeros_like(query[0])) / D**0.5)
    return found


@final
class LinearCombinationScores(ScoresConfig):
    """A learned linear combination of all heads' scores."""

    kind: Literal["linear_combination"] = "linear_combination"
    init: Literal["first", "random"] = "first"
    """first: starts as the scores of head 0 (at 1 / scale); random: N(0, 0.02)."""
    bias: bool = False
    """Add a learned number, from 0, before the gate. False: off."""
    scale: PositiveFloat = 1.0
    """Multiplies the combination: under Adam the weights' steps, relative to their size, grow with it. 1: off."""
    lr_multiplier: NonNegativeFloat = 1.0
    """Of the learning rate of weights and bias, which are not decayed. 0 freezes them."""

    def build(self, shape: Shape) -> LinearCombination:
        hot = (0, 1.0 / self.scale) if self.init == "first" else None
        return LinearCombination(
            shape, hot, bias=self.bias, scale=self.scale, lr_multiplier=self.lr_multiplier, decay=False
        )


@final
class LinearCombination(Selector):
    """See LinearCombinationScores: one selector as wide as all key heads together."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        shape: Shape,
        hot: tuple[int, float] | None,
        *,
        bias: bool,
        scale: float,
        lr_multiplier: float,
        decay: bool,
    ) -> None:
        super().__init__()
        H = shape.n_heads
        self.scale = scale
        parts = head_slices(tuple(f"a.{head}" for head in range(H)), 1, 0)
        of_weight = replace(spec("mixing", H, 1, slices=parts, hot=hot), lr_multiplier=lr_multiplier, decay=decay)
        declare(self, "weight", (H,), of_weight)
        if bias:
            declare(self, "bias", (1,), replace(spec("bias", H, 1), lr_multiplier=lr_multiplier))
        else:
            self.register_parameter("bias", None)

    def operands(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B S K D"],
        q_own: Float[Tensor, "B T N D"],
        k_own: Float[Tensor, "B S N D"],
    ) -> tuple[Float[Tensor, "B T 1 E"], Float[Tensor, "B S 1 E"]]:
        weighted = q * (self.scale * self.weight)[:, None]
        # Heads that share a key are summed first: sum_h w_h q_h . k_g(h) = sum_g (sum_h w_h q_h) . k_g.
        wide_q = weighted.unflatten(2, (k.shape[2], -1)).sum(3).flatten(2).unsqueeze(2)
        wide_k = k.flatten(2).unsqueeze(2)
        if self.bias is None:
            return wide_q, wide_k
        return _with_bias(wide_q, self.bias, q.shape[-1]), _with_one(wide_k)

    def mixed(self, scores: Float[Tensor, "B H T S"]) -> Float[Tensor, "B 1 T S"]:
        found = torch.einsum("h,bhij->bij", self.scale * self.weight, scores).unsqueeze(1)
        return found if self.bias is None else found + self.bias

    def mixing_flops(self) -> int:
        return 2 * len(self.weight)

    def pair(self, heads: list[Tensor], query: Float[Tensor, "S D"], key: Float[Tensor, "S D"]) -> list[Tensor]:
        total = sum((self.weight[h] * a for h, a in enumerate(heads)), torch.zeros_like(heads[0])) * self.scale
        return [total if self.bias is None else total + self.bias[0]]


def _with_bias(q: Float[Tensor, "B T M E"], bias: Float[Tensor, " M"], d_head: int) -> Float[Tensor, "B T M E1"]:
    B, T = q.shape[:2]
    return torch.cat((q, (bias * d_head**0.5).to(q.dtype)[:, None].expand(B, T, -1, 1)), -1)


def _with_one(k: Float[Tensor, "B T M E"]) -> Float[Tensor, "B T M E1"]:
    return torch.cat((k, torch.ones_like(k[..., :1])), -1)


@final
class LatentScores(ScoresConfig):
    """Slices of one dedicated head, mapped linearly to a mask per head."""

    kind: Literal["latent"] = "latent"
    n: PositiveInt = 4
    """Slices. No off-value."""
    lr_multiplier: NonNegativeFloat = 1.0
    """Of the learning rate of map and bias, which are not decayed. 0 freezes them."""

    def dedicated(self, n_heads: int) -> int:
        return 1

    def masks(self, n_heads: int) -> int:
        return n_heads

    def fits(self, shape: Shape) -> None:
        slices_fit(self.n, shape, "n")

    def build(self, shape: Shape) -> Latent:
        return Latent(shape, self.n, self.lr_multiplier)


@final
class Latent(Selector):
    """See LatentScores: a mask's query is the dedicated query with its slices weighted; all masks share the key."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, shape: Shape, n: int, lr_multiplier: float) -> None:
        super().__init__()
        H = shape.n_heads
        self.n, self.rotary = n, shape.rotary
        parts = head_slices(tuple(f"m.{head}" for head in range(H)), 1, 0)
        declare(self, "weight", (H, n), replace(spec("mixing", n, H, slices=parts), lr_multiplier=lr_multiplier))
        declare(self, "bias", (H,), replace(spec("bias", n, H, slices=parts), lr_multiplier=lr_multiplier))

    def operands(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B S K D"],
        q_own: Float[Tensor, "B T N D"],
        k_own: Float[Tensor, "B S N D"],
    ) -> tuple[Float[Tensor, "B T M E"], Float[Tensor, "B S 1 E"]]:
        parts = sliced(q_own, self.n, rotary=self.rotary)  # (B, T, 1, n, E)
        weighted = (parts * self.weight[:, :, None]).flatten(3)
        keys = sliced(k_own, self.n, rotary=self.rotary).flatten(3)
        return _with_bias(weighted, self.bias, q.shape[-1]), _with_one(keys)

    def mixing_flops(self) -> int:
        return 2 * self.weight.numel()

    def pair(self, heads: list[Tensor], query: Float[Tensor, "S D"], key: Float[Tensor, "S D"]) -> list[Tensor]:
        parts = _slice_scores(query[0], key[0], self.n, self.rotary)
        return [
            sum((self.weight[m, n] * part for n, part in enumerate(parts)), self.bias[m]) for m in range(len(self.bias))
        ]

"""What a selection is, apart from its tensors: `Rule`; and one call of the operation, its tensors included: `Problem`.

    S[i, j] = gate(r[i, j])                 r: raw scores of a mask (q.k * scale), j visible to i, else 0
              gate(x) = x if x > 0 else leak * x
    S[i, j] = 0                             where j is the first token of its document (`protect_bos`)
    S[i, i] = 0                             unless `allow_self_masking`
    F[i, j] = sum over t < i of S[t, j]     then relu, with `relu_after`; or, with protection, the damage D[i, j] of
              R = D = 0;  each turn t:  dmg = relu(S[t, j] - R);  R = relu(R - S[t, j]);  D += dmg;  R += p[t, j]
              after the turns t < i
    head h reads the mask spread[h]

Protection p[t, j], on visible pairs alone: relu of a protector's score ("scores"), relu(-slope * r + offset)
("leaky"), or the offset ("constant"); times `protection_scale`; then relu(p + bias) if the bias is not 0.
Visible: starts[i] <= j <= i, where starts[i] is the first token of i's document.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

from torch import Tensor

from winnow.errors import InputError

calls: Counter[str] = Counter()
"""Times that each backend has run in this process: "chunked.forward", "chunked.backward". Backends count their own."""

reasons: dict[str, str] = {}
"""Of each backend that has been chosen in this process, why no faster one was, the last time; see `choose`."""

Protection = Literal["none", "scores", "leaky", "constant"]
Algorithm = Literal["blocked", "library", "sequential", "tree"]
Accumulate = Literal["float32", "float64", "bfloat16"]
_PERMITTED: dict[str, tuple[str, ...]] = {
    "protection": get_args(Protection),
    "algorithm": get_args(Algorithm),
    "accumulate": get_args(Accumulate),
}


@dataclass(frozen=True)
class Rule:
    """How scores become masks and masks reach the heads. A rule that contradicts itself raises InputError.

    Args:
        spread: for each head the index of the mask that it reads.
        leak: slope of the gate below 0; 0 is relu.
        relu_after: a relu on the sum.
        protect_bos: nothing is ever voted against the first token of a document.
        allow_self_masking: a token's own score against itself counts, from the next query on.
        protection: where p comes from; "none": F is the plain sum.
        protection_slope: of "leaky".
        protection_offset: of "leaky" and "constant", nats.
        protection_scale: p is multiplied by it first.
        protection_bias: then p = relu(p + bias); 0: off.
        algorithm: how sums over queries are formed; "blocked": in two levels, within blocks of queries and over blocks.
        accumulate: dtype of those sums; "float32" means the inputs' own where that is wider.
    """

    spread: tuple[int, ...]
    leak: float = 0.0
    relu_after: bool = False
    protect_bos: bool = True
    allow_self_masking: bool = False
    protection: Protection = "none"
    protection_slope: float = 0.0
    protection_offset: float = 0.0
    protection_scale: float = 1.0
    protection_bias: float = 0.0
    algorithm: Algorithm = "blocked"
    accumulate: Accumulate = "float32"
    code: str = field(init=False, repr=False, compare=False)
    """The rule as text, for operators whose arguments are plain values; `Rule.decode` reads it."""

    def __post_init__(self) -> None:
        self._check_itself()
        values = (
            self.spread,
            self.leak,
            self.relu_after,
            self.protect_bos,
            self.allow_self_masking,
            self.protection,
            self.protection_slope,
            self.protection_offset,
            self.protection_scale,
            self.protection_bias,
            self.algorithm,
            self.accumulate,
        )
        object.__setattr__(self, "code", repr(values))

    def _check_itself(self) -> None:
        if not self.spread:
            raise InputError("no heads", key="spread", mend="give one mask index per head")
        if min(self.spread) < 0:
            raise InputError(f"mask {min(self.spread)} does not exist", key="spread", mend="masks count from 0")
        for name, permitted in _PERMITTED.items():
            if getattr(self, name) not in permitted:
                mend = f"permitted: {', '.join(permitted)}"
                raise InputError(f"{getattr(self, name)!r} is none", key=name, mend=mend)
        for name in ("leak", "protection_slope", "protection_scale"):
            value = getattr(self, name)
            if not (0 <= value < math.inf):
                raise InputError(f"{value} is not permitted", key=name, mend="0 or more, and finite")
        for name in ("protection_offset", "protection_bias"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{getattr(self, name)} is not finite", key=name)
        if self.protection != "none" and self.leak:
            raise InputError(
                "protection needs votes of 0 or more, and a leaky gate lets negative ones through",
                key="leak",
                mend='set leak = 0 or protection = "none"',
            )
        if self.protection != "none" and self.relu_after:
            raise InputError(
                "damage under protection is never negative", key="relu_after", mend="set relu_after = false"
            )

    @property
    def n_masks(self) -> int:
        return max(self.spread) + 1

    @property
    def monotone(self) -> bool:
        """Whether F never falls from one query to the next: what lets a key be dropped for good."""
        return self.leak == 0

    def check(self, n_heads: int, n_masks: int, *, protector: bool, compaction: str | None) -> None:
        """Raises InputError where the rule does not fit a call with so many heads and masks.

        `protector`: whether scores of protectors are given.
        """
        if n_masks > n_heads:
            raise InputError(
                f"{n_masks} masks for {n_heads} heads", key="select", mend="give at most one mask per head"
            )
        if len(self.spread) != n_heads:
            raise InputError(
                f"{len(self.spread)} entries for {n_heads} heads", key="spread", mend="give one mask index per head"
            )
        if self.n_masks > n_masks:
            raise InputError(
                f"head {self.spread.index(self.n_masks - 1)} reads mask {self.n_masks - 1}, and there are {n_masks}",
                key="spread",
                mend=f"use 0 to {n_masks - 1}",
            )
        if self.n_masks < n_masks:
            raise InputError(
                f"no head reads mask {n_masks - 1}", key="spread", mend=f"give {self.n_masks} masks or name the last"
            )
        if (self.protection == "scores") != protector:
            raise InputError(
                'protection "scores" has no protector' if not protector else "the rule does not use a protector",
                key="protect",
                mend="give a head or (queries, keys)"
                if not protector
                else 'set protection = "scores" or protect = None',
            )
        if compaction == "exact" and not self.monotone:
            raise InputError(
                f"with leak = {self.leak} a mask can fall again, so no key may be dropped for good",
                key="compaction",
                mend='use "auto" or None',
            )

    @staticmethod
    @lru_cache(maxsize=256)
    def decode(code: str) -> Rule:
        """The rule whose `code` this is."""
        return Rule(*ast.literal_eval(code))


def grouped(n_masks: int, n_heads: int) -> tuple[int, ...]:
    """The mask of each head: groups of n_heads // n_masks consecutive heads; heads left over get masks 0, 1, ..."""
    size = n_heads // n_masks
    return tuple(head // size if head < size * n_masks else head - size * n_masks for head in range(n_heads))


@dataclass(frozen=True)
class Problem:
    """One call: tensors (any strides, the last dimension contiguous), rule and numbers. Shapes are already checked.

    All heads h use the kv head h // (H / K). E, the selectors' width, need not be D.
    """

    q: Tensor
    """(B, T, H, D)"""
    k: Tensor
    """(B, T, K, D)"""
    v: Tensor
    """(B, T, K, D)"""
    q_s: Tensor | None
    """(B, T, M, E), selectors apart from the heads; None: the head `select`."""
    k_s: Tensor | None
    """(B, T, M or 1, E); 1: one key shared by all masks."""
    q_p: Tensor | None
    """(B, T, M, Ep), protectors apart from the heads."""
    k_p: Tensor | None
    """(B, T, M or 1, Ep)"""
    starts: Tensor | None
    """(B, T) int32, first token of each token's document; None: 0."""
    rule: Rule
    select: int
    """The head whose scores select, where `q_s` is None; else -1."""
    protect: int
    """The head whose scores protect, where `q_p` is None; -1: none."""
    scale: float
    """Of all scores, selectors' and protectors' too."""
    tau: float | None
    """`usage` counts min(F, tau); None: no usage is wanted."""
    compact: bool
    """Whether keys may be dropped whose weight is provably below fp32 resolution from some query on."""

"""Attention inside a convolution layer: over all positions of a text, in both directions.

    h = conv(x);   q, k, v = parts of h, or x itself;   y = attention(q, k, v)

`qkv` of a member says which of q, k and v are made by the convolution, whose output is then as many times as wide
and is cut in the order Q, K, V; the others are the layer's input as it is. Kinds:

    none      y = h: no attention
    softmax   library multi-head attention: n heads with maps of their own into and out of them
    linear    y[i] = sum_j phi(q[i]) . phi(k[j]) v[j] / (C T)        without parameters, C channels, T positions

with a feature map phi of queries and keys alone:

    elu+1   phi(x) = x + 1 where x > 0, else exp(x)                            C wide, above 0
    dpfp    r = [relu(x), relu(-x)],  phi(x)[c] = r[c] r[c - 1 mod 2C]         2C wide, mostly 0

No causality, no normaliser and no dropout. Sources: Vaswani et al. 2017, section 3.2 (softmax); Katharopoulos et al.
2020, section 3.2 (elu + 1); Schlag, Irie, Schmidhuber 2021, section 5.3, with nu = 1 (DPFP). The division by C T stands
in place of their normaliser.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.config import Variant
from winnow.errors import InputError
from winnow.kernels.linear import Linear
from winnow.parameters import head_slices, spec

Letters = Literal["QK", "QV", "KV", "QKV"]
FeatureMap = Literal["elu+1", "dpfp"]


class ConvolutionalConfig(Variant):
    """The family of attention inside a convolution layer."""

    @property
    def made(self) -> str:
        """Letters of what the convolution makes; "": its output is what the layer goes on with."""
        return ""

    def fits(self, channels: int) -> None:
        """Raises InputError, with the key below this table, where the layer's channels do not suit."""

    @abstractmethod
    def build(self, channels: int) -> ConvolutionalAttention | None:
        """A module with uninitialised parameters; None: there is no attention."""


@final
class NoAttentionConfig(ConvolutionalConfig):
    """A plain convolution layer."""

    kind: Literal["none"] = "none"

    def build(self, channels: int) -> None:
        return None


@final
class HeadsConfig(ConvolutionalConfig):
    """Softmax attention with heads."""

    kind: Literal["softmax"] = "softmax"
    qkv: Letters
    """What the convolution makes; the others are the layer's input."""
    n_heads: PositiveInt = 1
    """Heads; divides the layer's channels. The number of parameters does not depend on it."""

    @property
    def made(self) -> str:
        return self.qkv

    def fits(self, channels: int) -> None:
        if channels % self.n_heads:
            raise InputError(f"{channels} channels do not divide into {self.n_heads} heads", key="n_heads")

    def build(self, channels: int) -> HeadsAttention:
        return HeadsAttention(channels, self.n_heads)


@final
class LinearConfig(ConvolutionalConfig):
    """Linear attention without parameters."""

    kind: Literal["linear"] = "linear"
    qkv: Letters
    """What the convolution makes; the others are the layer's input."""
    features: FeatureMap = "elu+1"
    """Feature map of queries and keys."""

    @property
    def made(self) -> str:
        return self.qkv

    def build(self, channels: int) -> LinearAttention:
        return LinearAttention(self.features)


class ConvolutionalAttention(nn.Module):
    """Maps q, k and v (T, B, C), time first, to (T, B, C)."""

    @abstractmethod
    def forward(
        self, q: Float[Tensor, "T B C"], k: Float[Tensor, "T B C"], v: Float[Tensor, "T B C"]
    ) -> Float[Tensor, "T B C"]: ...

    @abstractmethod
    def oracle(self, q: Float[Tensor, "T C"], k: Float[Tensor, "T C"], v: Float[Tensor, "T C"]) -> Float[Tensor, "T C"]:
        """The same for one text, pair by pair from the definition: what every run compares its mechanism with."""

    @abstractmethod
    def flops_per_token(self, channels: int, context: int) -> int:
        """Of a training step, beyond those of parameters; `context` tokens in a text."""


@final
class HeadsAttention(ConvolutionalAttention):
    """See HeadsConfig. The maps of q, k and v lie in one matrix, in that order, as in PyTorch's own module."""

    def __init__(self, channels: int, n_heads: int) -> None:
        super().__init__()
        self.channels, self.n_heads = channels, n_heads
        names = tuple(f"{letter}.{head}" for letter in "qkv" for head in range(n_heads))
        rows = head_slices(names, channels // n_heads, 0)
        self.into = Linear(
            channels, 3 * channels, bias=True, weight_spec=spec("projection", channels, 3 * channels, slices=rows)
        )
        columns = head_slices(tuple(f"o.{head}" for head in range(n_heads)), channels // n_heads, 1)
        self.out = Linear(
            channels, channels, bias=True, weight_spec=spec("projection", channels, channels, slices=columns)
        )

    def _heads(self, x: Float[Tensor, "T B C"], part: int) -> Float[Tensor, "B H T D"]:
        rows = slice(part * self.channels, (part + 1) * self.channels)
        assert self.into.bias is not None
        mapped = F.linear(x, self.into.weight[rows], self.into.bias[rows])
        return mapped.unflatten(-1, (self.n_heads, -1)).permute(1, 2, 0, 3)

    def forward(
        self, q: Float[Tensor, "T B C"], k: Float[Tensor, "T B C"], v: Float[Tensor, "T B C"]
    ) -> Float[Tensor, "T B C"]:
        heads = F.scaled_dot_product_attention(self._heads(q, 0), self._heads(k, 1), self._heads(v, 2))
        return self.out(heads.permute(2, 0, 1, 3).flatten(2))

    def oracle(self, q: Float[Tensor, "T C"], k: Float[Tensor, "T C"], v: Float[Tensor, "T C"]) -> Float[Tensor, "T C"]:
        T, H = len(q), self.n_heads
        assert self.into.bias is not None
        assert self.out.bias is not None
        weights, biases = self.into.weight.chunk(3), self.into.bias.chunk(3)
        queries, keys, values = (
            (x @ w.T + b).unflatten(1, (H, -1)) for x, w, b in zip((q, k, v), weights, biases, strict=True)
        )
        width = queries.shape[2]
        rows: list[Tensor] = []
        for i in range(T):
            heads: list[Tensor] = []
            for h in range(H):
                scores = torch.stack([(queries[i, h] * keys[j, h]).sum() / width**0.5 for j in range(T)])
                parts = scores.exp() / scores.exp().sum()
                heads.append(torch.stack([parts[j] * values[j, h] for j in range(T)]).sum(0))
            rows.append(torch.cat(heads) @ self.out.weight.T + self.out.bias)
        return torch.stack(rows)

    def flops_per_token(self, channels: int, context: int) -> int:
        """12 C context: the products q.k and p.v, forward and backward."""
        return 12 * channels * context


def elu_plus_one(x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
    """x + 1 where x > 0, else exp(x)."""
    return F.elu(x) + 1


def dpfp(x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows D"]:
    """Products of neighbours of [relu(x), relu(-x)], around a circle: an entry without a neighbour above 0 gives 0."""
    parts = torch.cat([x, -x], -1).relu()
    return parts * parts.roll(1, -1)


FEATURES: dict[FeatureMap, Callable[[Tensor], Tensor]] = {"elu+1": elu_plus_one, "dpfp": dpfp}


@final
class LinearAttention(ConvolutionalAttention):
    """See LinearConfig. Of the two orders of its products the one with fewer operations: over keys first, so that the
    cost grows with a text's length alone, or in texts shorter than that the weight of every pair first."""

    def __init__(self, features: FeatureMap) -> None:
        super().__init__()
        self.features: FeatureMap = features

    def forward(
        self, q: Float[Tensor, "T B C"], k: Float[Tensor, "T B C"], v: Float[Tensor, "T B C"]
    ) -> Float[Tensor, "T B C"]:
        phi = FEATURES[self.features]
        T, _, C = v.shape
        queries, keys, values = phi(q).transpose(0, 1), phi(k).permute(1, 2, 0), v.transpose(0, 1)
        D, scale = queries.shape[2], 1 / (C * T)
        # T^2 (D + C) operations against 2 T D C.
        pairs_first = T * (D + C) < 2 * D * C
        y = queries @ keys * scale @ values if pairs_first else queries @ (keys @ values * scale)
        return y.transpose(0, 1)

    def oracle(self, q: Float[Tensor, "T C"], k: Float[Tensor, "T C"], v: Float[Tensor, "T C"]) -> Float[Tensor, "T C"]:
        T, C = v.shape
        of_q, of_k = ([self._phi(row) for row in x] for x in (q, k))
        rows: list[Tensor] = []
        for i in range(T):
            rows.append(torch.stack([(of_q[i] * of_k[j]).sum() * v[j] for j in range(T)]).sum(0) / (C * T))
        return torch.stack(rows)

    def _phi(self, x: Float[Tensor, " C"]) -> Float[Tensor, " D"]:
        """Entry by entry from the definition."""
        if self.features == "elu+1":
            return torch.stack([entry + 1 if entry > 0 else entry.exp() for entry in x])
        parts = [entry.clamp(min=0) for entry in (*x, *(-entry for entry in x))]
        return torch.stack([parts[c] * parts[c - 1] for c in range(len(parts))])

    def flops_per_token(self, channels: int, context: int) -> int:
        """12 C D, with D features, or 6 T (C + D) in short texts: the two products, forward and backward."""
        features = channels * (1 if self.features == "elu+1" else 2)
        return min(12 * channels * features, 6 * context * (channels + features))

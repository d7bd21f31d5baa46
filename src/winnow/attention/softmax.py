"""Causal softmax attention.

    y_i = sum_j<=i softmax_j(q_i . k_j / sqrt(D)) v_j        per head

Source: Vaswani et al. 2017, section 3.2.1; grouped queries: Ainslie et al. 2023. Runs on PyTorch's fused
scaled_dot_product_attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from winnow.attention.base import (
    BYTES_PER_STATE_ELEMENT,
    Attention,
    AttentionConfig,
    Inside,
    MixerState,
    Shape,
    visible_pairs,
)
from winnow.attention.cache import LayerCache
from winnow.kernels.reference import products


@final
class SoftmaxConfig(AttentionConfig):
    """Standard attention."""

    kind: Literal["softmax"] = "softmax"

    def build(self, shape: Shape) -> SoftmaxAttention:
        return SoftmaxAttention(shape)


def softmax_attention(
    q: Float[Tensor, "B T H D"], k: Float[Tensor, "B T K D"], v: Float[Tensor, "B T K D"], state: MixerState
) -> Float[Tensor, "B T H D"]:
    """Causal attention within each document."""
    return F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=state.visible,
        is_causal=state.visible is None,
        enable_gqa=q.shape[2] != k.shape[2],
    ).transpose(1, 2)


def causal_scores(q: Float[Tensor, "B T H D"], k: Float[Tensor, "B T K D"]) -> Float[Tensor, "B H T T"]:
    """Scores of every pair, nats; -inf in the future."""
    return products(q, k).masked_fill(~visible_pairs(q.shape[1], None, q.device), -torch.inf)


def seeing(
    q: Float[Tensor, "B T H D"],
    k: Float[Tensor, "B T K D"],
    v: Float[Tensor, "B T K D"],
    masks: Float[Tensor, "B M T T"] | None,
    seen: Bool[Tensor, "B T T"],
) -> Float[Tensor, "B T H D"]:
    """softmax(q.k / sqrt(D) - masks) v over the keys up to the query that it sees. masks: of every head, or of all."""
    seen = seen[:, None] & visible_pairs(q.shape[1], None, q.device)
    bias = (
        torch.where(seen, q.new_zeros(()), -torch.inf)
        if masks is None
        else (-masks).to(q.dtype).masked_fill(~seen, -torch.inf)
    )
    return F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=bias,
        enable_gqa=q.shape[2] != k.shape[2],
    ).transpose(1, 2)


@final
class SoftmaxAttention(Attention):
    """See the module's equation."""

    def mix(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B T K D"],
        v: Float[Tensor, "B T K D"],
        state: MixerState,
    ) -> tuple[Float[Tensor, "B T H D"], Mapping[str, Tensor]]:
        return softmax_attention(q, k, v, state), {}

    def inside(self, q: Float[Tensor, "B T H D"], k: Float[Tensor, "B T K D"], state: MixerState) -> Inside:
        return Inside(products(q, k))

    def look(
        self, q: Float[Tensor, "B 1 H D"], cache: LayerCache, state: MixerState
    ) -> tuple[Float[Tensor, "B 1 H D"], Mapping[str, Tensor]]:
        return cache.attend(q), {}

    def see(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B T K D"],
        v: Float[Tensor, "B T K D"],
        masks: Float[Tensor, "B M T T"] | None,
        seen: Bool[Tensor, "B T T"],
    ) -> Float[Tensor, "B T H D"]:
        return seeing(q, k, v, None, seen)

    def logits(
        self, q: Float[Tensor, "B T H D"], k: Float[Tensor, "B T K D"], masks: Float[Tensor, "B M T T"] | None
    ) -> Float[Tensor, "B H T T"]:
        return causal_scores(q, k)

    def oracle(
        self, q: Float[Tensor, "T H D"], k: Float[Tensor, "T K D"], v: Float[Tensor, "T K D"]
    ) -> Float[Tensor, "T H D"]:
        T, H, D = q.shape
        group = H // k.shape[1]
        rows: list[Tensor] = []
        for i in range(T):
            for h in range(H):
                scores = torch.stack([q[i, h] @ k[j, h // group] / D**0.5 for j in range(i + 1)])
                weights = scores.softmax(0)
                rows.append(sum((weights[j] * v[j, h // group] for j in range(i + 1)), torch.zeros_like(v[0, 0])))
        return torch.stack(rows).view(T, H, D)

    def flops_per_token(self, context: int) -> int:
        """12 H D context: two matrix products of 2 H D context each forward, twice that backward."""
        return softmax_flops_per_token(self.shape, context)

    def state_bytes(self, n_tokens: int) -> int:
        """Keys and values."""
        return kv_bytes(self.shape, n_tokens)


def softmax_flops_per_token(shape: Shape, context: int) -> int:
    """12 H D context, of the products q.k and p.v, forward and backward."""
    return 12 * shape.n_heads * shape.d_head * context


def kv_bytes(shape: Shape, n_tokens: int) -> int:
    """Keys and values of `n_tokens` tokens in one layer, fp32."""
    return 2 * shape.n_kv_heads * shape.d_head * BYTES_PER_STATE_ELEMENT * n_tokens

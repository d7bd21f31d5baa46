"""Selective attention: causal softmax attention with the selection's mask subtracted from all heads' scores.

    A = q . k / sqrt(D),  F = selection_mask(A of head 0),  P = softmax(A - F),  y = P v

Head 0 selects and keeps its ordinary output as well. Source: Leviathan, Kalman, Matias 2024 (arXiv 2410.02703),
section 3. This is the plain implementation: it forms (B, H, T, T) scores.

A token that was voted out by many queries gets a weight below 1e-38, where CPUs compute tens of times slower
(denormals): the trainer flushes those to 0 in every thread, and so must a loop of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.attention.base import BYTES_PER_STATE_ELEMENT, Attention, AttentionConfig, MixerState, Shape
from winnow.attention.selection import selectable, selection_mask
from winnow.attention.softmax import kv_bytes, softmax_attention, softmax_flops_per_token


@final
class SelectiveConfig(AttentionConfig):
    """Attention that forgets what later tokens have voted out."""

    kind: Literal["selective"] = "selective"
    protect_bos: bool = True
    """Nobody can vote against the first token of a document. False: it is like any other."""
    allow_self_masking: bool = False
    """A token's vote against itself counts (from the next query on). False: off."""
    selection: bool = True
    """Subtract the mask. False: off, the layer is standard attention."""

    def build(self, shape: Shape) -> SelectiveAttention:
        return SelectiveAttention(self, shape)


@final
class SelectiveAttention(Attention):
    """See the module's equation."""

    def __init__(self, config: SelectiveConfig, shape: Shape) -> None:
        super().__init__(shape)
        self.selection = config.selection
        # Read only where they act: an option without effect must be seen as never read.
        self.protect_bos = config.selection and config.protect_bos
        self.allow_self_masking = config.selection and config.allow_self_masking

    def mix(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B T K D"],
        v: Float[Tensor, "B T K D"],
        state: MixerState,
    ) -> tuple[Float[Tensor, "B T H D"], Mapping[str, Tensor]]:
        if not self.selection:
            return softmax_attention(q, k, v, state), {}
        T, H, D = q.shape[1:]
        group = H // k.shape[2]
        if group > 1:
            k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        scores = (q.transpose(1, 2) * D**-0.5) @ k.permute(0, 2, 3, 1)  # (B, H, T, T)
        if scores.dtype == torch.bfloat16 or scores.dtype == torch.float16:
            scores = scores.float()  # sums of many votes stall in half precision
        may_select = selectable(
            T,
            state.documents,
            protect_bos=self.protect_bos,
            allow_self_masking=self.allow_self_masking,
            device=q.device,
        )
        mask = selection_mask(scores[:, 0], may_select)
        visible = state.visible
        if visible is None:
            visible = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
        weights = (scores - mask.unsqueeze(1)).masked_fill(~visible, float("-inf")).softmax(-1)
        return (weights.to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2), {}

    def oracle(
        self, q: Float[Tensor, "T H D"], k: Float[Tensor, "T K D"], v: Float[Tensor, "T K D"]
    ) -> Float[Tensor, "T H D"]:
        T, H, D = q.shape
        group = H // k.shape[1]
        zero = q.new_zeros(())
        votes = [zero for _ in range(T)]  # what has been cast so far against each key
        rows: list[Tensor] = []
        for i in range(T):
            for h in range(H):
                scores = torch.stack([q[i, h] @ k[j, h // group] / D**0.5 - votes[j] for j in range(i + 1)])
                weights = scores.softmax(0)
                rows.append(sum((weights[j] * v[j, h // group] for j in range(i + 1)), torch.zeros_like(v[0, 0])))
            if not self.selection:
                continue
            for j in range(i + 1):
                if (j == 0 and self.protect_bos) or (j == i and not self.allow_self_masking):
                    continue
                votes[j] = votes[j] + (q[i, 0] @ k[j, 0] / D**0.5).relu()
        return torch.stack(rows).view(T, H, D)

    def flops_per_token(self, context: int) -> int:
        """Softmax attention's, and with selection 2 (H + 2) context more.

        For each query and key: relu, sum, H subtractions forward; as many operations backward.
        """
        extra = 2 * (self.shape.n_heads + 2) * context if self.selection else 0
        return softmax_flops_per_token(self.shape, context) + extra

    def state_bytes(self, n_tokens: int) -> int:
        """Keys, values and, with selection, the votes against each token."""
        votes = BYTES_PER_STATE_ELEMENT * n_tokens if self.selection else 0
        return kv_bytes(self.shape, n_tokens) + votes

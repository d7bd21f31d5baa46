"""What bench/attention.py measures on: queries and keys whose votes leave a chosen share of the keys alive, the op's
definition written out naively, and the share that is alive by the op's own bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

H, D = 6, 64
BLOCK = 64
"""Queries for which the op decides at once which keys are still alive."""
DENSE = -2.5
"""Nats by which the selecting scores are shifted so that votes are cast and none of 2,048 tokens is voted out."""

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Inputs:
    """q, k, v (B, T, H, D), fp32, requiring gradients, and a gradient of the output."""

    q: Tensor
    k: Tensor
    v: Tensor
    slope: Tensor

    @cached_property
    def live(self) -> float:
        """Share of the keys that are alive, over all blocks of queries."""
        return live_fraction(self.q, self.k)

    def forward(self, function: Function) -> Tensor:
        """As inference does it."""
        with torch.no_grad():
            return function(self.q, self.k, self.v)

    def both(self, function: Function) -> tuple[Tensor, ...]:
        """Forward and backward."""
        return torch.autograd.grad(function(self.q, self.k, self.v), (self.q, self.k, self.v), self.slope)


def make(B: int, T: int, shift: float, *, seed: int = 0) -> Inputs:
    """Unit variance; head 0's scores are shifted by `shift` nats, through one channel of its queries and keys."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, slope = torch.randn(4, B, T, H, D, generator=generator)
    q[:, :, 0, -1] = math.sqrt(abs(shift) * math.sqrt(D))
    k[:, :, 0, -1] = math.copysign(math.sqrt(abs(shift) * math.sqrt(D)), shift)
    return Inputs(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), slope)


def make_live(B: int, T: int, share: float) -> Inputs:
    """Inputs of which about `share` of the keys are alive: the shift is found by bisection on one row."""
    low, high = -3.0, 6.0  # every key alive, hardly one
    for _ in range(12):
        middle = (low + high) / 2
        if make(1, T, middle).live > share:
            low = middle
        else:
            high = middle
    return make(B, T, high)


@torch.no_grad()
def live_fraction(q: Tensor, k: Tensor) -> float:
    """Keys that a block of queries must still look at, over the keys that it could see, summed over blocks.

    A key is dropped once F at the block's first row exceeds what any later score could make up for:
    theta = max over later rows and heads of (|q_i| max|k_j| / sqrt(D) - s_ii) + ln T + 24 ln 2.
    """
    B, T = q.shape[:2]
    reach = q.norm(dim=-1) * k.norm(dim=-1).amax(dim=1, keepdim=True) / math.sqrt(D)  # (B, T, H)
    reach = (reach - (q * k).sum(-1) / math.sqrt(D)).amax(dim=2)
    theta = reach.flip(1).cummax(dim=1).values.flip(1) + math.log(T) + 24 * math.log(2)
    kept = seen = 0
    for b in range(B):
        mask = votes_so_far((q[b, :, 0] @ k[b, :, 0].T / math.sqrt(D)).unsqueeze(0))[0]
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            kept += end - int((mask[start, :start] > theta[b, start]).sum())
            seen += end
    return kept / seen


def votes_so_far(scores: Tensor) -> Tensor:
    """F (B, T, T) of head 0's scores."""
    votes = scores.relu().tril(-1)
    votes = torch.cat((torch.zeros_like(votes[:, :, :1]), votes[:, :, 1:]), dim=2)
    return F.pad(votes[:, :-1], (0, 0, 1, 0)).cumsum(dim=1)


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition as one would write it down."""
    T = q.shape[1]
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * q.shape[3] ** -0.5
    visible = torch.ones(T, T, dtype=torch.bool).tril()
    masked = (scores - votes_so_far(scores[:, 0]).unsqueeze(1)).masked_fill(~visible, float("-inf"))
    return (masked.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What selective attention replaces: PyTorch's fused causal attention."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

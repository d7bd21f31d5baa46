"""Rotary position embedding: q and k are turned by an angle that grows with the position.

    y[d]       = x[d] cos(p w_d) - x[d + D/2] sin(p w_d)        w_d = 10000^(-2d/D),  d < D/2
    y[d + D/2] = x[d + D/2] cos(p w_d) + x[d] sin(p w_d)

so that a score q.k depends on positions by their difference alone. Source: Su et al. 2021 (RoFormer), section 3.4;
the pairing of d with d + D/2 is GPT-NeoX's. Not an absolute position signal: values are not turned.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.kernels.rotate import rotate

BASE = 10_000.0
"""Longest wavelength is 2 pi times about this many tokens."""


class Rotary(nn.Module):
    """Tables of cosines and sines for positions below `max_seq_len`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, d_head: int, max_seq_len: int) -> None:
        super().__init__()
        assert d_head % 2 == 0, "rotary positions turn pairs: d_head must be even"
        rates = BASE ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        angles = torch.arange(max_seq_len, dtype=torch.float64)[:, None] * rates
        # In fp64 first: in fp32 the angle of a late position has lost the digits that matter.
        self.register_buffer("cos", angles.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sin", angles.sin().to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Float[Tensor, "B T H D"], positions: Int[Tensor, "B T"] | None) -> Float[Tensor, "B T H D"]:
        """Turn every head of `x`. Positions None means 0, 1, ... in every row."""
        if positions is None:
            cos, sin = self.cos[None, : x.shape[1]], self.sin[None, : x.shape[1]]
        else:
            cos, sin = self.cos[positions], self.sin[positions]
        return rotate(x, cos[:, :, None], sin[:, :, None])

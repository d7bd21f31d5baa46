"""Turn pairs of channels by an angle each: the inner operation of rotary positions.

    y[d]       = x[d] cos_d - x[d + D/2] sin_d
    y[d + D/2] = x[d + D/2] cos_d + x[d] sin_d             d < D/2

The gradient is the same turn by the opposite angle. Written into one fresh tensor, forward and backward, which
halves what the plain formula with its concatenation costs.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(
    x: Float[Tensor, "B T H D"], cos: Float[Tensor, "#B T 1 D/2"], sin: Float[Tensor, "#B T 1 D/2"]
) -> Float[Tensor, "B T H D"]:
    """Every head of `x` turned. In the wider dtype of x and the angles; differentiable in x."""
    if torch.compiler.is_compiling():  # the compiler fuses the plain formula, and cannot write into views
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, cos.dtype), device=x.device)
        (left, right), (y_left, y_right) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
        torch.mul(left, cos, out=y_left).addcmul_(right, sin, value=-1)
        torch.mul(right, cos, out=y_right).addcmul_(left, sin)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grads[0], cos, -sin), None, None

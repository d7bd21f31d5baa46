"""A convolution over positions, time first, as one matrix product per tap.

    y[t] = b + sum_j W[:, :, j] x[t + (j - floor(k/2)) dilation]        positions outside the text count as 0

"Same" padding of an odd kernel: y is as long as x, and W is that of `nn.Conv1d`. With positions in front, a tap reads
and adds whole rows that lie together, so nothing is copied, nothing is multiplied by padding, and a tap that reaches no
position at all costs nothing. On a CPU in eager fp32 or fp64 that is faster than PyTorch's convolution, which is used
anywhere else (bench/results/conv.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def convolution(
    x: Float[Tensor, "T B C"], weight: Float[Tensor, "O C k"], bias: Float[Tensor, " O"], dilation: int
) -> Float[Tensor, "T B O"]:
    """See the module's equation. The kernel's width must be odd."""
    if (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    ):
        return _Taps.apply(x, weight, bias, dilation)
    padding = weight.shape[2] // 2 * dilation
    return F.conv1d(x.permute(1, 2, 0), weight, bias, padding=padding, dilation=dilation).permute(2, 0, 1)


def reach(n_taps: int, dilation: int, n_tokens: int, rows: int) -> Iterator[tuple[int, slice, slice]]:
    """Each tap that reaches a position: its index, the rows that it adds to, and those that it reads.

    rows: of each position.
    """
    for tap in range(n_taps):
        offset = (tap - n_taps // 2) * dilation
        first, last = max(0, -offset), min(n_tokens, n_tokens - offset)
        if first < last:
            yield tap, slice(first * rows, last * rows), slice((first + offset) * rows, (last + offset) * rows)


class _Taps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        T, B, _ = x.shape
        x = x.reshape(T * B, -1)
        taps = weight.permute(2, 1, 0).contiguous()  # (k, C, O)
        y = bias.repeat(T * B, 1)
        ctx.reach = list(reach(len(taps), dilation, T, B))
        for tap, to, of in ctx.reach:
            y[to].addmm_(x[of], taps[tap])
        ctx.save_for_backward(x, taps)
        return y.view(T, B, -1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator has no types)
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, taps = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        grad = grads[0].reshape(len(x), -1)
        of_x = torch.zeros_like(x) if need_x else None
        of_taps = torch.zeros_like(taps) if need_weight else None
        transposed = x.T
        for tap, to, of in ctx.reach:
            rows = grad[to]
            if of_x is not None:
                of_x[of].addmm_(rows, taps[tap].T)
            if of_taps is not None:
                torch.mm(transposed[:, of], rows, out=of_taps[tap])
        return (
            None if of_x is None else of_x.view(*grads[0].shape[:2], -1),
            None if of_taps is None else of_taps.permute(2, 1, 0),
            grad.new_ones(len(grad)) @ grad if need_bias else None,  # a sum, at twice the speed of sum(0)
            None,
        )

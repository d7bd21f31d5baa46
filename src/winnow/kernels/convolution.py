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


def reach(n_taps: int, dilation: int, n_tokens: int) -> Iterator[tuple[int, slice, slice]]:
    """Each tap that reaches a position: its index, the positions it adds to, and those it reads."""
    for tap in range(n_taps):
        offset = (tap - n_taps // 2) * dilation
        first, last = max(0, -offset), min(n_tokens, n_tokens - offset)
        if first < last:
            yield tap, slice(first, last), slice(first + offset, last + offset)


class _Taps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        T, B, _ = x.shape
        x = x.contiguous()
        taps = weight.permute(2, 1, 0).contiguous()  # (k, C, O)
        y = bias.expand(T, B, -1).contiguous()
        for tap, to, of in reach(len(taps), dilation, T):
            y[to].flatten(0, 1).addmm_(x[of].flatten(0, 1), taps[tap])
        ctx.save_for_backward(x, taps)
        ctx.dilation = dilation
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        grad = grads[0].contiguous()
        x, taps = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        of_x = torch.zeros_like(x) if need_x else None
        of_taps = torch.zeros_like(taps) if need_weight else None
        for tap, to, of in reach(len(taps), ctx.dilation, len(x)):
            rows = grad[to].flatten(0, 1)
            if of_x is not None:
                of_x[of].flatten(0, 1).addmm_(rows, taps[tap].T)
            if of_taps is not None:
                torch.mm(x[of].flatten(0, 1).T, rows, out=of_taps[tap])
        rows = grad.flatten(0, 1)
        return (
            of_x,
            None if of_taps is None else of_taps.permute(2, 1, 0),
            rows.new_ones(len(rows)) @ rows if need_bias else None,  # a sum, at twice the speed of sum(0)
            None,
        )

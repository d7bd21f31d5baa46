"""x W^T + b with declared parameters, on the faster of two matrix products.

PyTorch's CPU wheels hold two libraries: MKL, which `F.linear` calls in fp32, and oneDNN. On processors that MKL does
not favour, oneDNN's products over the weights are faster (an AMD machine in bench/results/train_step.md: about a
seventh on forward and backward together); its product over the tokens, for the weight's gradient, is not. So in eager
fp32 on the CPU each product goes where it is faster; anywhere else (other devices and dtypes, autocast, torch.compile)
this is `F.linear`.

`torch.backends.mkldnn.set_flags(False)` turns oneDNN off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.parameters import ParameterSpec, declare, spec

_BUILT_WITH_ONEDNN = torch._C._dispatch_has_kernel_for_dispatch_key("mkldnn::_linear_pointwise", "CPU")


def _on_onednn(x: Tensor) -> bool:
    return (
        _BUILT_WITH_ONEDNN
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


def product(
    a: Float[Tensor, "*rows k"], b: Float[Tensor, "m k"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "*rows m"]:
    """a b^T (+ bias). For use inside autograd functions: on oneDNN it has no derivative."""
    if _on_onednn(a):
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def linear(
    x: Float[Tensor, "*rows d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
) -> Float[Tensor, "*rows d_out"]:
    """x W^T + b."""
    return _Linear.apply(x, weight, bias) if _on_onednn(x) else F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # Of differentiable operations, so that second derivatives hold.
        (grad,) = grads
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            linear(grad, weight.T, None) if need_x else None,
            rows.T @ x.flatten(0, -2) if need_weight else None,
            rows.new_ones(len(rows)) @ rows if need_bias else None,  # a sum, at twice the speed of sum(0)
        )


class Linear(nn.Module):
    """x W^T + b: `weight` (d_out, d_in), `bias` (d_out) or none."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, d_in: int, d_out: int, *, bias: bool, weight_spec: ParameterSpec | None = None) -> None:
        """`weight_spec` defaults to a matrix without slices; slices along the outputs are the bias's too."""
        super().__init__()
        weight_spec = weight_spec or spec("matrix", d_in, d_out)
        declare(self, "weight", (d_out, d_in), weight_spec)
        if bias:
            of_outputs = tuple(part for part in weight_spec.slices if part.dim == 0)
            declare(self, "bias", (d_out,), replace(spec("bias", d_in, d_out), slices=of_outputs))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        return linear(x, self.weight, self.bias)

"""Readout and cross entropy in one step, without ever holding the logits of more than a chunk of tokens.

    ce_n = log(sum_v exp(h_n . W_v)) - h_n . W_y(n)         nats; y(n) the target
    d ce_n / d logits_n = softmax(logits_n) - onehot(y(n))

The logits of a chunk are formed, turned into their own gradient, multiplied into the gradients of h and W, and
dropped: the backward pass is done already in the forward pass, and no logit is computed twice. Same idea as
Hsu et al. 2024 (Liger Kernel), section 3.2. Not for losses that need logits of several tokens at once.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.kernels.linear import product

CHUNK_ELEMENTS = 1 << 21
"""Logits in a chunk: 8 MB in fp32, or what `LEAST_ROWS` takes if that is more."""
LEAST_ROWS = 128
"""Fewer tokens a chunk would leave the matrix products too thin to be fast, however large the vocabulary."""


def chunk_rows(vocab_size: int) -> int:
    """Tokens per chunk."""
    return max(LEAST_ROWS, CHUNK_ELEMENTS // vocab_size)


def linear_cross_entropy(
    hidden: Float[Tensor, "B T C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "B T"],
    mask: Float[Tensor, "B T"] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Cross entropy of `hidden @ weight.T` against `targets`, nats, in fp32 (fp64 for fp64 inputs).

    `mask` weighs the tokens (None: all 1); the mean divides by the sum of the weights, and is nan if that is 0. Under
    autocast the products run in its dtype, the softmax and all sums in fp32. Differentiable once, with respect to
    `hidden` and `weight`.
    """
    total, _ = _read_out(hidden, weight, targets, mask, chosen=False)
    if reduction == "sum":
        return total
    return total / (targets.numel() if mask is None else mask.sum())


def cross_entropy_and_choice(
    hidden: Float[Tensor, "B T C"],
    weight: Float[Tensor, "V C"],
    targets: Int[Tensor, "B T"],
    mask: Float[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, "B T"]]:
    """The summed cross entropy of `linear_cross_entropy`, and the likeliest token of each position (of equally likely
    ones the first) from the same logits."""
    total, choice = _read_out(hidden, weight, targets, mask, chosen=True)
    assert choice is not None
    return total, choice.view_as(targets)


def _read_out(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor | None, *, chosen: bool
) -> tuple[Tensor, Tensor | None]:
    device = hidden.device.type
    cast_to = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    weights = None if mask is None else mask.flatten()
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten(), weights, cast_to, chosen)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        cast_to: torch.dtype,
        chosen: bool,
    ) -> tuple[Tensor, Tensor | None]:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        h, w = hidden.to(cast_to), weight.to(cast_to)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if need_weight else None
        total = torch.zeros((), dtype=exact, device=hidden.device)
        choice = torch.empty_like(targets) if chosen else None
        rows = chunk_rows(weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            target = targets[part, None]
            scores = product(h[part], w).to(exact)
            slope = scores.softmax(dim=-1)
            # log(sum(exp)) from the largest score and its probability, at least 1/V: one pass of exp, not two.
            peak = scores.amax(dim=-1, keepdim=True) - slope.amax(dim=-1, keepdim=True).log()
            ce = peak - scores.gather(1, target)
            total += (ce if weights is None else ce * weights[part, None]).sum()
            if choice is not None:
                choice[part] = scores.argmax(dim=-1)
            if grad_hidden is None and grad_weight is None:
                continue
            # In place: the probabilities become the gradient of the logits.
            slope.scatter_add_(1, target, torch.full_like(ce, -1.0))
            if weights is not None:
                slope *= weights[part, None]
            slope = slope.to(cast_to)
            if grad_hidden is not None:
                grad_hidden[part] = product(slope, w.T)
            if grad_weight is not None:
                if cast_to == exact:
                    grad_weight.addmm_(slope.T, h[part])
                else:
                    grad_weight += slope.T @ h[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        if choice is not None:
            ctx.mark_non_differentiable(choice)
        return total, choice

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError("the fused readout has no second derivative: use Model.logits and cross_entropy")
        grad = grads[0]
        assert grad is not None
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad,
            None if grad_weight is None else (grad_weight * grad).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )

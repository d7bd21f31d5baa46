"""Readout and cross entropy in one step, without ever holding the logits of more than a chunk of tokens.

    ce_n = log(sum_v exp(h_n . W_v)) - h_n . W_y(n)         nats; y(n) the target
    d ce_n / d logits_n = softmax(logits_n) - onehot(y(n))

The logits of a chunk are formed, turned into their own gradient, multiplied into the gradients of h and W, and
dropped: the backward pass is done already in the forward pass, and no logit is computed twice. Same idea as
Hsu et al. 2024 (Liger Kernel), section 3.2. Not for losses that need logits of several tokens at once.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Logits in a chunk: 4 MB in fp32, about a core's own cache."""
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

    `mask` weighs the tokens (None: all 1); the mean divides by the sum of the weights. Under autocast the products
    run in its dtype, the softmax and all sums in fp32. Differentiable once, with respect to `hidden` and `weight`.
    """
    weights = None if mask is None else mask.flatten()
    if reduction == "mean":
        share = 1.0 / targets.numel() if weights is None else 1.0 / weights.sum()
    else:
        share = 1.0
    device = hidden.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten(), weights, share, product)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, weights, share, product):
        N, C = hidden.shape
        V = weight.shape[0]
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        h, w = hidden.to(product), weight.to(product)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        total = hidden.new_zeros((), dtype=exact)
        rows = chunk_rows(V)
        for start in range(0, N, rows):
            part = slice(start, min(start + rows, N))
            scores = (h[part] @ w.T).to(exact)
            target = targets[part, None]
            scores = torch.log_softmax(scores, dim=-1)
            scale = share if weights is None else (weights[part, None] * share)
            total -= (scores.gather(1, target) * scale).sum()
            if not (need_hidden or need_weight):
                continue
            scores.exp_()
            scores.scatter_add_(1, target, scores.new_full((1, 1), -1.0).expand_as(target))
            scores *= scale
            scores = scores.to(product)
            if grad_hidden is not None:
                if product == hidden.dtype:
                    torch.mm(scores, w, out=grad_hidden[part])
                else:  # autocast: products in bf16, gradients in the inputs' own dtypes
                    grad_hidden[part] = scores @ w
            if grad_weight is not None:
                if product == weight.dtype:
                    grad_weight.addmm_(scores.T, h[part])
                else:
                    grad_weight += scores.T @ h[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad):
        gh, gw = ctx.saved_tensors
        return (None if gh is None else gh * grad), (None if gw is None else gw * grad), None, None, None, None

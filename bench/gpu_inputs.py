"""What bench/gpu.py measures on and against: inputs, the definition, SDPA's kernels; how wrong the op may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from tests.kernels.selective_cases import LEAF_NAMES, Case, cotangents, leaves, with_leaves
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from winnow.kernels import reference, selective_attention, selective_triton
from winnow.kernels.rule import Problem
from winnow.kernels.triton_plan import sizes_of

H, D = 12, 64
TOKENS = 16384
"""Of a batch, whatever the context."""
DENSE = -2.5
"""Nats by which the selecting scores are shifted so that votes are cast and hardly a key is voted out."""
SPARSE = 1.5
"""The same, so that most keys are."""
LIMITS = {torch.float32: (1e-6, 3e-6), torch.bfloat16: (5e-3, 1e-2), torch.float16: (2e-3, 1e-2)}
"""Permitted relative error of outputs and of gradients, by dtype of the inputs."""

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def relative(found: Tensor, expected: Tensor) -> float:
    """Distance over size, no size counting as less than 1: the gradients of one token are 0."""
    difference = (found.double().cpu() - expected.cpu()).norm()
    return float(difference / expected.cpu().norm().clamp(min=1.0))


def errors(problem: Problem) -> tuple[float, float]:
    """Largest relative error of out and usage, and of the gradients, against the definition in fp64 on the card."""
    grad_out, grad_usage = cotangents(problem)
    out, usage, saved = selective_triton.forward(problem)
    gradients = selective_triton.backward(problem, out, saved, grad_out, grad_usage)
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves(problem).items()}
    wanted, wanted_usage = reference.attention(with_leaves(problem, exact))
    loss = (wanted * grad_out.double()).sum()
    values = [relative(out, wanted.detach())]
    if grad_usage is not None:
        loss = loss + (wanted_usage * grad_usage.double()).sum()
        values.append(relative(usage, wanted_usage.detach()))
    loss.backward()
    slopes: list[float] = []
    for name, gradient in zip(LEAF_NAMES, gradients, strict=True):
        if gradient is not None:
            expected = exact[name].grad
            assert expected is not None
            slopes.append(relative(gradient, expected))
    return max(values), max(slopes)


def repeats(problem: Problem) -> bool:
    """Whether two calls agree in every bit."""
    grad_out, grad_usage = cotangents(problem)
    results: list[list[Tensor]] = []
    for _ in range(2):
        out, usage, saved = selective_triton.forward(problem)
        gradients = selective_triton.backward(problem, out, saved, grad_out, grad_usage)
        results.append([out, usage, *(g for g in gradients if g is not None)])
    return all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def inputs(T: int, shift: float, dtype: torch.dtype = torch.bfloat16, tokens: int = TOKENS) -> tuple[Tensor, ...]:
    """q, k, v, grad_out (B, T, H, D) of unit variance; head 0's scores shifted by `shift` nats through one channel."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, slope = torch.randn(4, tokens // T, T, H, D, generator=generator)
    size = (abs(shift) * D**0.5) ** 0.5
    q[:, :, 0, -1] = size
    k[:, :, 0, -1] = size if shift > 0 else -size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v, slope = (x.to(device, dtype) for x in (q, k, v, slope))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), slope


def live_tiles(q: Tensor, k: Tensor, v: Tensor) -> float:
    """Share of the tiles of keys before each block of queries that the kernels still visit."""
    problem = replace(Case("live", B=1, T=3, H=H, K=H).problem(v.dtype), q=q, k=k, v=v, compact=True)
    *_, (_, _, until) = selective_triton.forward(problem)
    sizes = sizes_of(problem)
    block, tile = sizes.plan.block, sizes.plan.tile
    seen = kept = 0
    for t in range(sizes.blocks):
        before = t * block // tile
        seen += before * sizes.B
        kept += int((until[:, 0, :before] > t).sum())
    return kept / max(seen, 1)


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition as one would write it down; F in fp32."""
    T = q.shape[1]
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * D**-0.5
    votes = scores[:, 0].float().relu().tril(-1)
    votes = torch.cat((torch.zeros_like(votes[:, :, :1]), votes[:, :, 1:]), dim=2)
    mask = torch.nn.functional.pad(votes[:, :-1], (0, 0, 1, 0)).cumsum(dim=1)
    visible = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    masked = (scores - mask.unsqueeze(1)).masked_fill(~visible, float("-inf"))
    return (masked.softmax(-1).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)


def sdpa(kind: SDPBackend) -> Function:
    """Causal attention by one of PyTorch's kernels."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kind):
            out = torch.nn.functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            )
        return out.transpose(1, 2)

    return function


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The op, every key kept."""
    return selective_attention(q, k, v, backend="triton", compaction=None)


def compacted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return selective_attention(q, k, v, backend="triton", compaction="exact")


def works(kind: SDPBackend) -> str | None:
    """Why one of SDPA's kernels does not run here; None if it does."""
    q, k, v, slope = inputs(1024, DENSE, tokens=1024)
    try:
        torch.autograd.grad(sdpa(kind)(q, k, v), (q, k, v), slope)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None

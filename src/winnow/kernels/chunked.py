"""Selective attention in PyTorch, a block of queries at a time: any device, any dtype, every rule with blocked sums.

Between blocks goes what the selection carries, per mask and key: the votes so far; or, with protection, the damage
and the surplus (D and R of `scan.py`). The forward pass keeps the carry with which each block starts, T^2 / ROWS
numbers per mask, and nothing else. The backward pass takes the blocks from the last to the first, computes each again
under autograd, and hands the carry's gradient on to the block before. Transient memory: O(H ROWS T).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from winnow.kernels.reference import Pairs, accumulating_dtype, computing_dtype, pairs, protections, votes
from winnow.kernels.rule import Problem, Rule, calls
from winnow.kernels.scan import damage_of_block

ROWS = 64
"""Queries in a block."""

Saved = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def unsupported(problem: Problem) -> str | None:
    """Why a problem cannot run here, or None."""
    if problem.rule.algorithm != "blocked":
        return f"sums by the algorithm {problem.rule.algorithm!r} need whole columns"
    return None


def saved_shapes(problem: Problem) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Only the second is used: the carries, (blocks, 1 or 2, B, M, T), in the accumulating dtype or fp32."""
    B, T = problem.q.shape[:2]
    parts = 1 if problem.rule.protection == "none" else 2
    return (0,), (-(-T // ROWS), parts, B, problem.rule.n_masks, T), (0,)


class _Operands(NamedTuple):
    """A problem's tensors in the computing dtype, heads before tokens, kv groups apart."""

    q: Tensor
    """(B, K, H / K, T, D)"""
    k: Tensor
    """(B, K, T, D)"""
    v: Tensor
    """(B, K, T, D)"""
    q_s: Tensor | None
    """(B, M, T, E)"""
    k_s: Tensor | None
    """(B, M or 1, T, E)"""
    q_p: Tensor | None
    k_p: Tensor | None


def _operands(problem: Problem) -> _Operands:
    dtype = computing_dtype(problem.v.dtype)

    def heads_first(x: Tensor) -> Tensor:
        return x.to(dtype).transpose(1, 2).contiguous()

    def if_there(x: Tensor | None) -> Tensor | None:
        return None if x is None else heads_first(x)

    return _Operands(
        heads_first(problem.q).unflatten(1, (problem.k.shape[2], -1)),
        heads_first(problem.k),
        heads_first(problem.v),
        if_there(problem.q_s),
        if_there(problem.k_s),
        if_there(problem.q_p),
        if_there(problem.k_p),
    )


def _of_block(x: _Operands, rows: range) -> _Operands:
    """Queries of the block, keys and values up to its end."""

    def keys(t: Tensor | None) -> Tensor | None:
        return None if t is None else t[:, :, : rows.stop]

    def queries(t: Tensor | None) -> Tensor | None:
        return None if t is None else t[:, :, rows.start : rows.stop]

    return _Operands(
        x.q[:, :, :, rows.start : rows.stop],
        x.k[:, :, : rows.stop],
        x.v[:, :, : rows.stop],
        queries(x.q_s),
        keys(x.k_s),
        queries(x.q_p),
        keys(x.k_p),
    )


def _each(x: _Operands, function: Callable[[Tensor], Tensor]) -> _Operands:
    def if_there(t: Tensor | None) -> Tensor | None:
        return None if t is None else function(t)

    return _Operands(function(x.q), function(x.k), function(x.v), *(if_there(t) for t in x[3:]))


def _blocks(n_tokens: int) -> list[range]:
    return [range(start, min(start + ROWS, n_tokens)) for start in range(0, n_tokens, ROWS)]


def _scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    return (queries * scale) @ keys.mT


def _forgotten(raw: Tensor, protector: Tensor | None, seen: Pairs, carry: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """F (B, M, queries, keys) of a block, in raw's dtype, and the carry that the block leaves."""
    before = carry[0].unsqueeze(2)
    cast = votes(raw, seen.votable, rule).to(carry.dtype)
    if rule.protection == "none":
        total = cast.cumsum(2) + before
        after = total[:, :, -1].unsqueeze(0)
    else:
        p = protections(raw, protector, seen.visible, rule).to(carry.dtype)
        damage, surplus = damage_of_block(cast, p, carry[1])
        total = damage + before
        after = torch.stack((total[:, :, -1], surplus))
    # A query feels strictly earlier ones: the sums up to the query before it.
    mask = torch.cat((before, total[:, :, :-1]), dim=2).to(raw.dtype)
    return (mask.relu() if rule.relu_after else mask), after


def _attend(x: _Operands, carry: Tensor, rows: range, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Of one block: out (B, H, queries, D), usage (B, M, queries) or empty, and the carry that it leaves."""
    rule = problem.rule
    scores = _scores(x.q.flatten(2, 3), x.k, problem.scale)
    scores = scores.view(scores.shape[0], -1, len(rows), rows.stop)  # (B, H, queries, keys)

    def of(queries: Tensor | None, keys: Tensor | None, head: int) -> Tensor:
        if queries is None or keys is None:
            return scores[:, head : head + 1]
        return _scores(queries, keys, problem.scale)

    raw = of(x.q_s, x.k_s, problem.select)
    protector = of(x.q_p, x.k_p, problem.protect) if rule.protection == "scores" else None
    seen = pairs(rows, rule, problem.starts, scores.device)
    mask, after = _forgotten(raw, protector, seen, carry, rule)
    usage = scores.new_empty(0)
    if problem.tau is not None:
        usage = torch.where(seen.visible, mask.clamp(max=problem.tau), 0.0).sum(-1)
    mask = mask.masked_fill(~seen.visible, float("inf"))  # of M masks, not of H heads
    if rule.n_masks > 1:
        mask = torch.stack([mask[:, m] for m in rule.spread], dim=1)
    weights = (scores - mask).softmax(-1)
    out = weights.view(*x.k.shape[:2], -1, rows.stop) @ x.v
    return out.view(out.shape[0], -1, len(rows), out.shape[3]), usage, after


def forward(problem: Problem) -> tuple[Tensor, Tensor, Saved]:
    """out, usage (empty where tau is None), and what `backward` needs."""
    calls["chunked.forward"] += 1
    q = problem.q
    B, T = q.shape[:2]
    operands = _operands(problem)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    usage = operands.q.new_empty((0,) if problem.tau is None else (B, problem.rule.n_masks, T))
    exact = accumulating_dtype(problem.rule, q.dtype)
    shapes = saved_shapes(problem)
    carries = torch.zeros(shapes[1], dtype=exact, device=q.device)
    for b, rows in enumerate(_blocks(T)):
        here = (slice(None), slice(rows.start, rows.stop))
        heads, used, after = _attend(_of_block(operands, rows), carries[b, ..., : rows.stop], rows, problem)
        out[here] = heads.transpose(1, 2)
        if problem.tau is not None:
            usage[:, :, rows.start : rows.stop] = used
        if b + 1 < len(carries):
            carries[b + 1, ..., : rows.stop] = after
    kept = torch.promote_types(exact, torch.float32)
    return out, usage, (q.new_empty(shapes[0], dtype=kept), carries.to(kept), q.new_empty(shapes[2], dtype=kept))


def backward(problem: Problem, out: Tensor, saved: Saved, grad_out: Tensor, grad_usage: Tensor | None) -> Gradients:
    """Gradients of q, k, v, q_s, k_s, q_p, k_p: None for those that the problem has not."""
    calls["chunked.backward"] += 1
    exact = accumulating_dtype(problem.rule, problem.q.dtype)
    carries = saved[1].to(exact)
    operands = _operands(problem)
    grads = _each(operands, torch.zeros_like)
    grad_heads = grad_out.to(operands.q.dtype).transpose(1, 2)
    grad_carry = torch.zeros_like(carries[0])
    for b, rows in reversed(list(enumerate(_blocks(problem.q.shape[1])))):
        here = slice(rows.start, rows.stop)
        of_usage = None if grad_usage is None else grad_usage[:, :, here]
        cotangents = grad_heads[:, :, here], of_usage, grad_carry[..., : rows.stop]
        *found, of_carry = _differentiate(
            _of_block(operands, rows), carries[b, ..., : rows.stop], rows, problem, cotangents
        )
        for total, part in zip((t for t in _of_block(grads, rows) if t is not None), found, strict=True):
            total += part
        grad_carry[..., : rows.stop] = of_carry
    return _gradients(grads, problem)


def _differentiate(
    x: _Operands, carry: Tensor, rows: range, problem: Problem, cotangents: tuple[Tensor, Tensor | None, Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of the operands that there are, and of the carry, for those of what `_attend` returns."""

    def attend(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        each = iter(tensors)
        return _attend(_each(x, lambda _: next(each)), next(each), rows, problem)

    # Inside an operator autograd does not record; a transform of torch.func does.
    again = torch.func.vjp(attend, *(t for t in x if t is not None), carry)
    of_heads, of_usage, of_carry = cotangents
    return again[1]((of_heads, torch.zeros_like(again[0][1]) if of_usage is None else of_usage, of_carry))


def _gradients(grads: _Operands, problem: Problem) -> Gradients:
    dtype = problem.v.dtype

    def tokens_first(x: Tensor) -> Tensor:
        return x.transpose(1, 2).to(dtype).contiguous()

    def if_there(x: Tensor | None) -> Tensor | None:
        return None if x is None else tokens_first(x)

    of_heads = tokens_first(grads.q.flatten(1, 2)), tokens_first(grads.k), tokens_first(grads.v)
    return *of_heads, if_there(grads.q_s), if_there(grads.k_s), if_there(grads.q_p), if_there(grads.k_p)

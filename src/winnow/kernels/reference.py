"""Selective attention by its definition (`rule.py`), of plain differentiable operations: other backends' yardstick.

Every rule, every algorithm of the sums, any dtype, derivatives of any order, on O(H T^2) memory. Half precision is
computed in fp32, fp64 in fp64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from winnow.kernels.rule import Problem, Rule, calls
from winnow.kernels.scan import damage_of_block, running_damage, running_sum


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """What inputs of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulating_dtype(rule: Rule, dtype: torch.dtype) -> torch.dtype:
    """What F is summed in, for scores of `dtype`."""
    match rule.accumulate:
        case "float32":
            return computing_dtype(dtype)
        case "float64":
            return torch.float64
        case "bfloat16":
            return torch.bfloat16


class Pairs(NamedTuple):
    """Which of some queries sees, and may vote against, which key: (B or 1, 1, queries, keys), bool."""

    visible: Tensor
    votable: Tensor


def pairs(rows: range, rule: Rule, starts: Tensor | None, device: torch.device) -> Pairs:
    """Of the queries `rows` and the keys before rows.stop."""
    key = torch.arange(rows.stop, device=device)
    query = key[rows.start :, None]
    visible = (query >= key)[None, None]
    first = 0
    if starts is not None:
        first = starts[:, None, rows.start : rows.stop, None]
        visible = visible & (key >= first)
    votable = visible
    if not rule.allow_self_masking:
        votable = votable & (query != key)
    if rule.protect_bos:
        votable = votable & (key != first)
    return Pairs(visible, votable)


def votes(raw: Tensor, votable: Tensor, rule: Rule) -> Tensor:
    """S (B, M, queries, keys) from the masks' raw scores, which may hold anything on pairs that are not visible."""
    raw = torch.where(votable, raw, 0.0)  # before the gate: a leak on the future's -inf would survive
    return F.leaky_relu(raw, rule.leak) if rule.leak else raw.relu()


def protections(raw: Tensor, protector: Tensor | None, visible: Tensor, rule: Rule) -> Tensor:
    """p (B, M, queries, keys)."""
    match rule.protection:
        case "scores":
            assert protector is not None
            p = torch.where(visible, protector, 0.0).relu()
        case "leaky":
            p = (rule.protection_offset - rule.protection_slope * torch.where(visible, raw, 0.0)).relu()
        case _:
            p = torch.full_like(raw, max(rule.protection_offset, 0.0))
    p = p * rule.protection_scale
    if rule.protection_bias:
        p = (p + rule.protection_bias).relu()
    return torch.where(visible, p, 0.0)


def forgotten(raw: Tensor, protector: Tensor | None, rule: Rule, starts: Tensor | None) -> Tensor:
    """F (B, M, T, T), of meaning on visible pairs alone, from raw scores (B, M, T, T) in the dtype of those."""
    visible, votable = pairs(range(raw.shape[-1]), rule, starts, raw.device)
    accumulate = accumulating_dtype(rule, raw.dtype)
    cast = votes(raw, votable, rule).to(accumulate)
    if rule.protection == "none":
        total = running_sum(cast, rule.algorithm)
    else:
        p = protections(raw, protector, visible, rule).to(accumulate)
        total = running_damage(cast, p, rule.algorithm)
    # A query feels strictly earlier ones.
    mask = F.pad(total[..., :-1, :], (0, 0, 1, 0)).to(raw.dtype)
    return mask.relu() if rule.relu_after else mask


def add_votes(
    against: Tensor, shield: Tensor | None, raw: Tensor, protector: Tensor | None, seen: Pairs, rule: Rule
) -> None:
    """One query's turn: its votes are added to `against` (B, M, S), and under protection to what `shield` lets through.

    raw, protector: its scores (B, M, 1, S). Both tensors are changed in place.
    """
    cast = votes(raw, seen.votable, rule)[:, :, 0].to(against.dtype)
    if shield is None:
        against += cast
        return
    p = protections(raw, protector, seen.visible, rule)[:, :, 0].to(against.dtype)
    against += (cast - shield).relu()
    shield.copy_((shield - cast).relu() + p)


def piled_up(raw: Tensor, protector: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor | None]:
    """F (B, M, T) after the last of T queries, as a further query would feel it but for `relu_after`; and the
    protection that is left, where there is any. One document."""
    visible, votable = pairs(range(raw.shape[-1]), rule, None, raw.device)
    accumulate = accumulating_dtype(rule, raw.dtype)
    cast = votes(raw, votable, rule).to(accumulate)
    if rule.protection == "none":
        return cast.sum(-2), None
    p = protections(raw, protector, visible, rule).to(accumulate)
    damage, shield = damage_of_block(cast, p, torch.zeros_like(cast[..., 0, :]))
    return damage[..., -1, :], shield


def attend(
    scores: Tensor,
    raw: Tensor,
    protector: Tensor | None,
    v: Tensor,
    rule: Rule,
    starts: Tensor | None,
    tau: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention by explicit scores: `scores` (B, H, T, T) of the heads, `raw` and `protector` (B, M, T, T) of masks.

    Scores are final (scaled), and may hold anything on pairs that are not visible. v (B, T, K, D). Returns out
    (B, T, H, D) in v's dtype and usage (B, M, T), or an empty tensor where tau is None, in the scores' dtype.
    """
    visible = pairs(range(v.shape[1]), rule, starts, v.device).visible
    mask = forgotten(raw, protector, rule, starts)
    of_heads = mask if mask.shape[1] == 1 else mask[:, list(rule.spread)]
    weights = (scores - of_heads).masked_fill(~visible, float("-inf")).softmax(-1)
    values = per_head(v, scores.shape[1]).transpose(1, 2).to(weights.dtype)
    out = (weights @ values).transpose(1, 2).to(v.dtype)
    if tau is None:
        return out, scores.new_empty(0)
    return out, torch.where(visible, mask.clamp(max=tau), 0.0).sum(-1)


def per_head(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, H, D) of (B, T, K, D): each kv head for its group."""
    group = n_heads // x.shape[2]
    return x if group == 1 else x.repeat_interleave(group, dim=2)


def products(q: Tensor, k: Tensor, d_head: int | None = None) -> Tensor:
    """(B, M, T, S): q . k / sqrt(d_head) of every pair of q (B, T, M, E) and k (B, S, K, E), in the computing dtype.

    Each key serves M / K queries. d_head None: E.
    """
    dtype = computing_dtype(q.dtype)
    keys = per_head(k.to(dtype), q.shape[2])
    return (q.to(dtype) * (d_head or q.shape[-1]) ** -0.5).transpose(1, 2) @ keys.permute(0, 2, 3, 1)


def _scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """(B, H, T, T) of (B, T, H, E) and (B, T, H or 1, E), in the computing dtype."""
    dtype = computing_dtype(queries.dtype)
    return (queries.to(dtype).transpose(1, 2) * scale) @ keys.to(dtype).permute(0, 2, 3, 1)


def raw_scores(problem: Problem) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores of the heads (B, H, T, T), of the masks (B, M, T, T) and of their protectors, if any."""
    scores = _scores(problem.q, per_head(problem.k, problem.q.shape[2]), problem.scale)

    def of(queries: Tensor | None, keys: Tensor | None, head: int) -> Tensor:
        if queries is None or keys is None:
            return scores[:, head : head + 1]
        return _scores(queries, keys, problem.scale)

    raw = of(problem.q_s, problem.k_s, problem.select)
    protector = None
    if problem.rule.protection == "scores":
        protector = of(problem.q_p, problem.k_p, problem.protect)
    return scores, raw, protector


def attention(problem: Problem) -> tuple[Tensor, Tensor]:
    """out and usage of `attend`; autograd gives the gradients."""
    if not torch.compiler.is_compiling():
        calls["reference.forward"] += 1
    scores, raw, protector = raw_scores(problem)
    return attend(scores, raw, protector, problem.v, problem.rule, problem.starts, problem.tau)

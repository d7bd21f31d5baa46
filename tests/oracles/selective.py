"""Selective attention token by token, in fp64, of differentiable operations so that autograd gives its gradients.

Written from the definition: each query in turn votes against keys, keys defend themselves, and what has piled up
against a key when a query arrives is subtracted from all scores of that key. Rules and problems are read by their
fields' names alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def row_scores(queries: Tensor, keys: Tensor, i: int, first: int, scale: float) -> Tensor:
    """(i - first + 1) scores of query i against the keys that it sees."""
    return keys[first : i + 1] @ queries[i] * scale


def votes(scores: Tensor, rule: Any, itself: bool, bos: bool) -> Tensor:
    """S of one query against the visible keys, `scores` from the first token of the document to the query's own."""
    cast = torch.where(scores > 0, scores, rule.leak * scores)
    spared = torch.ones_like(cast)
    if bos:
        spared[0] = 0
    if not itself:
        spared[-1] = 0
    return torch.where(spared > 0, cast, torch.zeros_like(cast))


def protections(scores: Tensor, of_protector: Tensor | None, rule: Any) -> Tensor:
    """p of one query for the visible keys."""
    if rule.protection == "scores":
        assert of_protector is not None
        p = of_protector.relu()
    elif rule.protection == "leaky":
        p = (rule.protection_offset - rule.protection_slope * scores).relu()
    else:
        p = torch.full_like(scores, rule.protection_offset)
    p = p * rule.protection_scale
    return (p + rule.protection_bias).relu() if rule.protection_bias != 0 else p


def forgotten(raw: list[Tensor], protectors: list[Tensor] | None, firsts: list[int], rule: Any) -> Tensor:
    """F (T, T) of one mask. `raw[i]` (i - firsts[i] + 1), `protectors[i]`: query i's scores of keys firsts[i] to i."""
    T = len(raw)
    against = torch.zeros(T, dtype=torch.float64)  # votes, or damage
    shield = torch.zeros(T, dtype=torch.float64)
    rows: list[Tensor] = []
    for i in range(T):
        rows.append(against.relu() if rule.relu_after else against)
        first = firsts[i]
        before, after = first, T - 1 - i
        cast = votes(raw[i], rule, rule.allow_self_masking, rule.protect_bos)
        cast = torch.nn.functional.pad(cast, (before, after))
        if rule.protection == "none":
            against = against + cast
            continue
        protector = None if protectors is None else protectors[i]
        p = torch.nn.functional.pad(protections(raw[i], protector, rule), (before, after))
        hurt = shield <= cast
        against = against + torch.where(hurt, cast - shield, torch.zeros_like(cast))
        shield = torch.where(hurt, torch.zeros_like(cast), shield - cast)
        shield = shield + p
    return torch.stack(rows)


def recurrence(attacks: list[float], shields: list[float]) -> list[float]:
    """D after each turn, of one key, in plain numbers."""
    R = D = 0.0
    emitted: list[float] = []
    for a, p in zip(attacks, shields, strict=True):
        if a >= R:
            D, R = D + a - R, 0.0
        else:
            R -= a
        emitted.append(D)
        R += p
    return emitted


def of_masks(problem: Any, queries: Tensor | None, keys: Tensor | None, head: int, b: int) -> list[list[Tensor]]:
    """Raw scores [mask][query] of selectors or protectors: their own, or those of a head."""
    T, H = problem.q.shape[1:3]
    firsts = first_tokens(problem, b)
    if queries is None or keys is None:
        kv = head // (H // problem.k.shape[2])
        pairs = [(problem.q[b, :, head], problem.k[b, :, kv])]
    else:
        shared = keys.shape[2] == 1
        pairs = [(queries[b, :, m], keys[b, :, 0 if shared else m]) for m in range(queries.shape[2])]
    return [[row_scores(q.double(), k.double(), i, firsts[i], problem.scale) for i in range(T)] for q, k in pairs]


def first_tokens(problem: Any, b: int) -> list[int]:
    T = problem.q.shape[1]
    return [0] * T if problem.starts is None else [int(s) for s in problem.starts[b]]


def masks(problem: Any, b: int) -> list[Tensor]:
    """F (T, T) of every mask of one row."""
    raw = of_masks(problem, problem.q_s, problem.k_s, problem.select, b)
    protectors: list[list[Tensor]] | None = None
    if problem.rule.protection == "scores":
        protectors = of_masks(problem, problem.q_p, problem.k_p, problem.protect, b)
    firsts = first_tokens(problem, b)
    return [
        forgotten(rows, None if protectors is None else protectors[m], firsts, problem.rule)
        for m, rows in enumerate(raw)
    ]


def attention(problem: Any) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D), and usage (B, M, T) with an infinite tau where the problem has none; fp64."""
    B, T, H, _ = problem.q.shape
    group = H // problem.k.shape[2]
    tau = math.inf if problem.tau is None else problem.tau
    outs: list[Tensor] = []
    usages: list[Tensor] = []
    for b in range(B):
        F = masks(problem, b)
        firsts = first_tokens(problem, b)
        heads: list[Tensor] = []
        for h in range(H):
            q, k, v = (
                t.double() for t in (problem.q[b, :, h], problem.k[b, :, h // group], problem.v[b, :, h // group])
            )
            mask = F[problem.rule.spread[h]]
            rows: list[Tensor] = []
            for i in range(T):
                first = firsts[i]
                logits = row_scores(q, k, i, first, problem.scale) - mask[i, first : i + 1]
                weights = (logits - logits.max()).exp()
                rows.append((weights / weights.sum()) @ v[first : i + 1])
            heads.append(torch.stack(rows))
        outs.append(torch.stack(heads, dim=1))
        used = [torch.stack([f[i, firsts[i] : i + 1].clamp(max=tau).sum() for i in range(T)]) for f in F]
        usages.append(torch.stack(used))
    return torch.stack(outs), torch.stack(usages)

"""Selective attention of one document in plain loops over queries, keys, heads and masks: for fp64.

What the tests compare with, and what every run compares its own mechanism with at its start and end. Written from the
definitions (docs/selective.md), apart from the kernels: nothing here is fast and nothing is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.kernels.rule import Rule

Pair = Callable[[list[Tensor], Tensor, Tensor], list[Tensor]]
"""Each mask's score of a (query, key) pair, from the pair's score in each head and the dedicated heads' vectors."""


class Spelt(NamedTuple):
    """What the loops come to."""

    heads: Float[Tensor, "T H D"]
    scores: Float[Tensor, "H T T"]
    """Of the heads; 0 in the future."""
    masks: Float[Tensor, "M T T"]
    """F; 0 in the future."""


def token_by_token(
    q: Float[Tensor, "T HS D"],
    k: Float[Tensor, "T KS D"],
    v: Float[Tensor, "T K D"],
    *,
    n_heads: int,
    rule: Rule | None,
    pair: Pair | None,
    protector: Pair | None,
    residual: Float[Tensor, "H H"] | None = None,
    below: Float[Tensor, "H T T"] | None = None,
) -> Spelt:
    """Outputs, scores and masks. Dedicated heads stand last in q and k.

    rule None: nothing selects. residual, below: the matrix that mixes the scores of the layer below into this one's.
    """
    T, H, D = len(q), n_heads, q.shape[-1]
    K = v.shape[1]
    zero = q.new_zeros(())
    masks = 0 if rule is None else rule.n_masks
    sums = [[zero for _ in range(T)] for _ in range(masks)]  # votes cast against each key so far, or damage done
    shields = [[zero for _ in range(T)] for _ in range(masks)]
    outputs: list[Tensor] = []
    all_scores: list[list[list[Tensor]]] = []
    all_masks: list[list[list[Tensor]]] = []
    for i in range(T):
        heads = [[q[i, h] @ k[j, h // (H // K)] / D**0.5 for j in range(i + 1)] for h in range(H)]
        if residual is not None and below is not None:
            heads = [
                [score + sum((residual[h, g] * below[g, i, j] for g in range(H)), zero) for j, score in enumerate(row)]
                for h, row in enumerate(heads)
            ]
        all_scores.append([row + [zero] * (T - 1 - i) for row in heads])
        felt_by_mask = [[f.clamp(min=0) if rule and rule.relu_after else f for f in row[: i + 1]] for row in sums]
        all_masks.append([row + [zero] * (T - 1 - i) for row in felt_by_mask])
        for h in range(H):
            felt = [zero] * (i + 1) if rule is None else felt_by_mask[rule.spread[h]]
            weights = torch.stack([a - f for a, f in zip(heads[h], felt, strict=True)]).softmax(0)
            outputs.append(sum((weights[j] * v[j, h // (H // K)] for j in range(i + 1)), torch.zeros_like(v[0, 0])))
        if rule is None or pair is None:
            continue
        for j in range(i + 1):
            of_heads = [heads[h][j] for h in range(H)]
            raw = pair(of_heads, q[i, H:], k[j, K:])
            guard = None if protector is None else protector(of_heads, q[i, H:], k[j, K:])[0]
            for m, r in enumerate(raw):
                attack = _attack(r, i, j, rule)
                if rule.protection == "none":
                    sums[m][j] = sums[m][j] + attack
                    continue
                if shields[m][j] <= attack:
                    sums[m][j], shields[m][j] = sums[m][j] + attack - shields[m][j], zero
                else:
                    shields[m][j] = shields[m][j] - attack
                shields[m][j] = shields[m][j] + _protection(r, guard, rule)
    return Spelt(torch.stack(outputs).view(T, H, -1), _stacked(all_scores, zero), _stacked(all_masks, zero))


def _stacked(rows: list[list[list[Tensor]]], zero: Tensor) -> Tensor:
    """(n, T, T) of n numbers per query and key."""
    if not rows[0]:
        return zero.new_empty(0, len(rows), len(rows))
    return torch.stack([torch.stack([torch.stack(row) for row in of_query]) for of_query in rows]).transpose(0, 1)


def penalty_of_row(
    masks: Float[Tensor, "M T T"], spread: tuple[int, ...], tau: float, form: Literal["max", "mean"]
) -> Float[Tensor, ""]:
    """What the memory penalty is a multiple of, of one document: see `PenaltyConfig`. Keys held, over T."""
    T = masks.shape[1]
    held: list[Tensor] = []
    gone: list[Tensor] = []
    for i in range(T):
        of_heads = [masks[m, i, j].clamp(max=tau) / tau for m in spread for j in range(i + 1)]
        gone.append(torch.stack(of_heads).sum() / len(spread))
        held.append(i - gone[-1])
    most = torch.stack(held).max() if form == "max" else T - 1 - torch.stack(gone).sum() / T
    return most / T


def _attack(r: Tensor, i: int, j: int, rule: Rule) -> Tensor:
    if (j == 0 and rule.protect_bos) or (j == i and not rule.allow_self_masking):
        return torch.zeros_like(r)
    return r if r > 0 else rule.leak * r


def _protection(r: Tensor, guard: Tensor | None, rule: Rule) -> Tensor:
    if rule.protection == "scores":
        assert guard is not None
        p = guard.clamp(min=0)
    elif rule.protection == "leaky":
        p = (rule.protection_offset - rule.protection_slope * r).clamp(min=0)
    else:
        p = torch.full_like(r, rule.protection_offset)
    p = p * rule.protection_scale
    return (p + rule.protection_bias).clamp(min=0) if rule.protection_bias != 0 else p

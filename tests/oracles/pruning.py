"""Decoding one document with a bounded memory, token by token and key by key, in fp64.

Written from the definition: a memory of keys, each with the votes cast against it so far; a query looks at what is in
memory, votes, and where the memory is over its budget one key is thrown away. Rules are read by their fields' names.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

Scores = list[list[float]]


class Key:
    """One key in memory."""

    def __init__(self, position: int, n_masks: int) -> None:
        self.position = position
        self.votes = [0.0] * n_masks
        self.shield = [0.0] * n_masks
        self.attention = 0.0


class Decoded(NamedTuple):
    """What came of it."""

    heads: Tensor
    """(T, H, D)"""
    seen: list[list[int]]
    """Keys that each query looked at, by position."""
    left: list[int]
    """Keys in memory after the last query."""


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pairs: list[tuple[Tensor, Tensor]],
    protector: tuple[Tensor, Tensor] | None,
    rule: Any,
    budget: int,
    policy: str,
    *,
    sinks: int = 4,
    recent: float = 0.5,
) -> Decoded:
    """q (T, H, D), k and v (T, K, D) of one document; pairs: query and key vectors (T, E) of each mask; protector:
    those of protection. rule None: nobody votes."""
    T, H, D = q.shape
    group = H // k.shape[1]
    dots = [scores(q[:, h], k[:, h // group], D) for h in range(H)]
    ballots = [scores(queries, keys, D) for queries, keys in pairs]
    guards = None if protector is None else scores(*protector, D)
    values = v.tolist()
    memory: list[Key] = []
    rows: list[list[float]] = []
    seen: list[list[int]] = []
    for i in range(T):
        memory.append(Key(i, len(pairs)))
        looked = [key for key in memory if policy != "anew" or key in least(memory, rule, budget, H, i)]
        seen.append([key.position for key in looked])
        for h in range(H):
            logits: list[float] = []
            for key in looked:
                logits.append(dots[h][i][key.position] - (felt(key, rule)[rule.spread[h]] if rule else 0.0))
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            total = sum(weights)
            out = [0.0] * D
            for key, weight in zip(looked, weights, strict=True):
                key.attention += weight / total
                for d in range(D):
                    out[d] += weight / total * values[key.position][h // group][d]
            rows.append(out)
        for key in memory if rule else []:
            turn(key, i, ballots, guards, rule)
        if policy in ("window", "h2o", "votes") and len(memory) > budget:
            memory.remove(thrown(memory, rule, budget, policy, H, sinks, recent))
    return Decoded(torch.tensor(rows, dtype=torch.float64).view(T, H, D), seen, [key.position for key in memory])


def scores(queries: Tensor, keys: Tensor, D: int) -> Scores:
    """Of each query and key."""
    return (queries @ keys.T / math.sqrt(D)).tolist()


def felt(key: Key, rule: Any) -> list[float]:
    return [max(votes, 0.0) for votes in key.votes] if rule.relu_after else key.votes


def standing(key: Key, rule: Any, n_heads: int) -> float:
    """The mean over heads of what each subtracts."""
    return sum(felt(key, rule)[rule.spread[h]] for h in range(n_heads)) / n_heads


def least(memory: list[Key], rule: Any, budget: int, n_heads: int, i: int) -> list[Key]:
    """The least masked budget - 1 earlier keys, and the query's own: the first token first where nobody may vote
    against it, and the newer of equals."""
    earlier = [key for key in memory if key.position < i]

    def rank(key: Key) -> tuple[bool, float, int]:
        return (not (rule.protect_bos and key.position == 0), standing(key, rule, n_heads), -key.position)

    return [*sorted(earlier, key=rank)[: budget - 1], memory[-1]]


def turn(key: Key, i: int, ballots: list[Scores], guards: Scores | None, rule: Any) -> None:
    """What query i does to a key."""
    j = key.position
    guard = 0.0 if guards is None else guards[i][j]
    for m, ballot in enumerate(ballots):
        r = ballot[i][j]
        attack = r if r > 0 else rule.leak * r
        if (j == 0 and rule.protect_bos) or (j == i and not rule.allow_self_masking):
            attack = 0.0
        if rule.protection == "none":
            key.votes[m] += attack
            continue
        key.votes[m] += max(attack - key.shield[m], 0.0)
        key.shield[m] = max(key.shield[m] - attack, 0.0)
        if rule.protection == "scores":
            p = max(guard, 0.0)
        elif rule.protection == "leaky":
            p = max(rule.protection_offset - rule.protection_slope * r, 0.0)
        else:
            p = rule.protection_offset
        p *= rule.protection_scale
        key.shield[m] += max(p + rule.protection_bias, 0.0) if rule.protection_bias else p


def thrown(memory: list[Key], rule: Any, budget: int, policy: str, n_heads: int, sinks: int, recent: float) -> Key:
    """The key that goes. The newest stays; of equals the oldest goes."""
    old = memory[:-1]
    if policy == "window":
        return next(key for key in old if key.position >= min(sinks, budget - 1))
    if policy == "h2o":
        n_recent = max(1, int(budget * recent))
        heavy = [key for key in memory if key.position <= memory[-1].position - n_recent]
        return min(heavy, key=lambda key: (key.attention, key.position))
    others = [key for key in old if not (rule.protect_bos and key.position == 0)]
    return max(others or old, key=lambda key: (standing(key, rule, n_heads), -key.position))

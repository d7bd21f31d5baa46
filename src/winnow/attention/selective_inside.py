"""Figures of a selection's masks: which part of the keys is live, how far the others are voted out, how exact F is.

A key j may be dropped for good from query i on when F[i, j] > theta_i: its weight is below 2^-24 for every head that
reads the mask and every query from i on, as F never falls and

    P_h[i, j] <= exp(A_h[i, j] - A_h[i, i] - F[i, j])        since F[i, i] = 0
    theta_i = max over i' >= i and heads h of (|q_i'h| max_j |k_jh| / sqrt(D) - A_h[i', i']) + ln T + 24 ln 2

A bound of the same kind for another additive mask: Lin et al. 2025 (arXiv 2504.06949).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.attention.base import visible_pairs
from winnow.kernels.reference import forgotten
from winnow.kernels.rule import Rule


@dataclass(frozen=True)
class RowFigures:
    """Of one row of a batch, over all masks."""

    pairs: int
    """Visible (query, key) pairs, times masks."""
    live: int
    """Those below the bound."""
    total: float
    """Sum of F, nats."""
    largest: float
    """Largest F, nats."""
    error: float
    """Largest |F - F in fp64|, nats."""


def figures_of_row(
    rule: Rule,
    starts: Int[Tensor, "1 T"] | None,
    raw: Float[Tensor, "1 M T T"],
    protectors: Float[Tensor, "1 M T T"] | None,
    scores: Float[Tensor, "1 H T T"] | None,
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T K D"],
) -> RowFigures:
    """The figures; `scores`, where they exist, give a sharper bound than q and k, and the only true one."""
    mask = forgotten(raw, protectors, rule, starts)
    exact_rule = replace(rule, algorithm="library", accumulate="float64")
    exact = forgotten(raw.double(), None if protectors is None else protectors.double(), exact_rule, starts)
    visible = visible_pairs(raw.shape[-1], starts, raw.device).expand_as(mask)
    slack = _slack_of_vectors(q, k) if scores is None else _slack_of_scores(scores[0], visible[0, 0])
    readers = [[h for h, read in enumerate(rule.spread) if read == m] for m in range(rule.n_masks)]
    bound = torch.stack([slack[:, heads].amax(1) for heads in readers])  # (M, T)
    bound = bound.flip(1).cummax(1).values.flip(1) + math.log(raw.shape[-1]) + 24 * math.log(2)
    return RowFigures(
        pairs=int(visible.sum()),
        # Under a leak F can fall again, so that nothing may be dropped.
        live=int((visible & (mask <= bound[None, :, :, None])).sum() if rule.monotone else visible.sum()),
        total=float(torch.where(visible, mask, 0).sum(dtype=torch.float64)),
        largest=float(mask[visible].max()),
        error=float((mask.double() - exact)[visible].abs().max()),
    )


def figures_of_batch(rows: Sequence[RowFigures]) -> dict[str, float]:
    """Over all visible pairs of all masks of all rows:

    live: share with F below the bound from which a key may be dropped for good (all, under a leak); mean_f, max_f:
    nats; max_diff: largest |F - F in fp64| of the same scores, protection included.
    """
    pairs = sum(row.pairs for row in rows)
    return {
        "live": sum(row.live for row in rows) / pairs,
        "mean_f": sum(row.total for row in rows) / pairs,
        "max_f": max(row.largest for row in rows),
        "max_diff": max(row.error for row in rows),
    }


def _slack_of_vectors(q: Float[Tensor, "T H D"], k: Float[Tensor, "T K D"]) -> Float[Tensor, "T H"]:
    q, k = q.float(), k.float().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    highest = q.norm(dim=2) * k.norm(dim=2).amax(0)
    return (highest - (q * k).sum(2)) * q.shape[2] ** -0.5


def _slack_of_scores(scores: Float[Tensor, "H T T"], visible: Tensor) -> Float[Tensor, "T H"]:
    highest = scores.masked_fill(~visible, -math.inf).amax(2)
    return (highest - scores.diagonal(dim1=1, dim2=2)).T

"""Cross entropy of a linear readout, one token at a time, with its gradients written out."""

from __future__ import annotations

import numpy as np


def cross_entropy(
    hidden: np.ndarray, weight: np.ndarray, targets: np.ndarray, mask: np.ndarray | None, reduction: str
) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss and gradients with respect to hidden (N, C) and weight (V, C)."""
    weights = np.ones(len(targets)) if mask is None else mask.astype(np.float64)
    if reduction == "mean":
        weights = weights / weights.sum()
    loss, of_hidden, of_weight = 0.0, np.zeros(hidden.shape), np.zeros(weight.shape)
    for n, target in enumerate(targets):
        logits = np.array([float(np.dot(hidden[n], row)) for row in weight])
        top = logits.max()
        chances = np.exp(logits - top) / np.exp(logits - top).sum()
        loss += weights[n] * (top + np.log(np.exp(logits - top).sum()) - logits[target])
        for v in range(len(weight)):
            slope = weights[n] * (chances[v] - (v == target))
            of_hidden[n] += slope * weight[v]
            of_weight[v] += slope * hidden[n]
    return loss, of_hidden, of_weight

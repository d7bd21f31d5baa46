"""Draws of the arms' true order, given their runs: rank probabilities and Kendall's tau between two scales.

An arm's true mean is drawn as its sample mean plus its standard error times Student's t, with one noise level for
all arms of a scale. With shared seeds that noise is what is left after a seed's common effect is removed. The draws
are seeded: the same runs give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

DRAWS = 4000


def rank_probabilities(arms: Sequence[Sequence[float]], paired: bool) -> list[list[float]] | None:
    """[arm][rank]: probability that the arm has that place, best (lowest) first; None without two runs per arm."""
    means = _draw_means(arms, paired, 0)
    if means is None:
        return None
    places = means.argsort(1).argsort(1)
    return [[float((places[:, arm] == rank).mean()) for rank in range(len(arms))] for arm in range(len(arms))]


def kendall_draws(small: Sequence[Sequence[float]], full: Sequence[Sequence[float]], paired: bool) -> tuple[float, ...]:
    """Sorted draws of Kendall's tau between the orders of the same arms at two scales; empty without two runs each."""
    import numpy as np

    first, second = _draw_means(small, paired, 1), _draw_means(full, paired, 2)
    if first is None or second is None:
        return ()
    i, j = np.triu_indices(len(small), 1)
    agree = np.sign((first[:, i] - first[:, j]) * (second[:, i] - second[:, j]))
    return tuple(float(tau) for tau in np.sort(agree.mean(1)))


def _draw_means(arms: Sequence[Sequence[float]], paired: bool, seed: int) -> Any:
    """(DRAWS, arms), or None."""
    import numpy as np

    counts = [len(values) for values in arms]
    if min(counts) < 2:
        return None
    means = np.array([math.fsum(values) / len(values) for values in arms])
    residuals = [np.asarray(values) - mean for values, mean in zip(arms, means, strict=True)]
    degrees = sum(counts) - len(arms)
    if paired:
        common = np.mean(residuals, axis=0)
        residuals = [residual - common for residual in residuals]
        degrees = (len(arms) - 1) * (counts[0] - 1)
    variance = sum(float((residual**2).sum()) for residual in residuals) / degrees
    generator = np.random.default_rng(seed)
    scale = np.sqrt(variance * degrees / generator.chisquare(degrees, DRAWS))
    noise = generator.standard_normal((DRAWS, len(arms))) / np.sqrt(counts)
    return means + scale[:, None] * noise

"""Student t, F and hypergeometric probabilities in plain Python.

Verdicts are read by commands that must start within half a second; importing `scipy.special` alone costs about
that. These few functions are compared with scipy in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

_TINY = 1e-300


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by Lentz's continued fraction (relative error about 1e-14)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), _TINY)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1 / (1 + term * d or _TINY)
            c = 1 + term / c or _TINY
            change *= c * d
        fraction *= change
        if abs(change - 1) < 1e-15:
            break
    return front * fraction / a


def normal_upper(tail: float) -> float:
    """The z with P(Z > z) = tail, for 0 < tail < 1."""
    return NormalDist().inv_cdf(1 - tail)


def student_cdf(t: float, df: float) -> float:
    """P(T <= t) for Student's t on `df` degrees of freedom."""
    tail = 0.5 * beta_cdf(df / (df + t * t), df / 2, 0.5)
    return tail if t < 0 else 1 - tail


@lru_cache(maxsize=4096)
def student_upper(tail: float, df: float) -> float:
    """The t with P(T > t) = tail, for 0 < tail < 1/2."""
    return _root(lambda t: tail - 0.5 * beta_cdf(df / (df + t * t), df / 2, 0.5), 1.0)


@lru_cache(maxsize=4096)
def f_quantile(p: float, df1: float, df2: float) -> float:
    """The p quantile of F on (df1, df2) degrees of freedom."""
    return _root(lambda f: beta_cdf(df1 * f / (df1 * f + df2), df1 / 2, df2 / 2) - p, 1.0)


def fisher_exact(a: int, of_a: int, b: int, of_b: int) -> float:
    """Two-sided p of Fisher's exact test that `a` of `of_a` and `b` of `of_b` have one rate."""
    total, hits = of_a + of_b, a + b
    ways = {k: math.comb(of_a, k) * math.comb(of_b, hits - k) for k in range(max(0, hits - of_b), min(of_a, hits) + 1)}
    return sum(count for count in ways.values() if count <= ways[a]) / math.comb(total, hits)


def student_power(shift: float, critical: float, df: float) -> float:
    """P(T > critical) for noncentral t with noncentrality `shift`: P(Z > critical·sqrt(X/df) - shift), X chi-squared.

    Simpson's rule over the distribution of sqrt(X/df); absolute error below 1e-6 for df >= 1.
    """
    # Density of u = sqrt(X/df): 2 (df/2)^(df/2) / Gamma(df/2) u^(df-1) exp(-df u²/2), narrow around 1.
    constant = math.log(2) + 0.5 * df * math.log(df / 2) - math.lgamma(df / 2)
    width = 9 / math.sqrt(2 * df)
    low, high, steps = max(0.0, 1 - width), 1 + width, 160
    total = 0.0
    for step in range(steps + 1):
        u = low + (high - low) * step / steps
        if u == 0:
            density = math.exp(constant) if df == 1 else 0.0
        else:
            density = math.exp(constant + (df - 1) * math.log(u) - 0.5 * df * u * u)
        weight = 1 if step in (0, steps) else 4 if step % 2 else 2
        total += weight * density * 0.5 * math.erfc((critical * u - shift) / math.sqrt(2))
    return total * (high - low) / steps / 3


def _root(rising: Callable[[float], float], start: float) -> float:
    """The positive zero of an increasing function, by doubling and bisection to the last few bits."""
    low, high = 0.0, start
    while rising(high) < 0:
        low, high = high, high * 2
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return 0.5 * (low + high)

"""Student t, F, noncentral t and hypergeometric probabilities, by scipy.special, loaded when first needed.

Reading a verdict must start within half a second, and importing scipy.special costs most of that. So the few
quantiles that ordinary verdicts and tables read are shipped (`quantiles.json`, made by scipy: `python -m
winnow.study.distributions` writes it again). Every other value is computed once and remembered in the user's cache
folder: the commands that read what `run` has judged ask for the same values again.
"""

from __future__ import annotations

import atexit
import json
import math
import os
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from statistics import NormalDist

GUARD_QUANTILE = 0.80
"""A pair whose variance exceeds this quantile of F against what is lent to it is also judged by its own noise alone."""
MOST_DEGREES, MOST_LENT = 19, 12
"""Shipped: t for up to this many degrees of freedom; F for that many on up to 12 times as many."""


def normal_upper(tail: float) -> float:
    """The z with P(Z > z) = tail, for 0 < tail < 1."""
    return NormalDist().inv_cdf(1 - tail)


@lru_cache(maxsize=4096)
def student_cdf(t: float, df: float) -> float:
    """P(T <= t) for Student's t on `df` degrees of freedom."""

    def compute() -> float:
        from scipy.special import stdtr

        return float(stdtr(df, t))

    return _known(f"cdf {t!r} {df!r}", compute)


@lru_cache(maxsize=4096)
def student_upper(tail: float, df: float) -> float:
    """The t with P(T > t) = tail, for 0 < tail < 1/2."""

    def compute() -> float:
        from scipy.special import stdtrit

        return -float(stdtrit(df, tail))

    return _known(_student_name(tail, df), compute)


@lru_cache(maxsize=4096)
def f_quantile(p: float, df1: float, df2: float) -> float:
    """The p quantile of F on (df1, df2) degrees of freedom."""

    def compute() -> float:
        from scipy.special import fdtri

        return float(fdtri(df1, df2, p))

    return _known(_f_name(p, df1, df2), compute)


def fisher_exact(a: int, of_a: int, b: int, of_b: int) -> float:
    """Two-sided p of Fisher's exact test that `a` of `of_a` and `b` of `of_b` have one rate (in whole numbers:
    scipy.special has no such test and importing scipy.stats takes seconds)."""
    total, hits = of_a + of_b, a + b
    ways = {k: math.comb(of_a, k) * math.comb(of_b, hits - k) for k in range(max(0, hits - of_b), min(of_a, hits) + 1)}
    return sum(count for count in ways.values() if count <= ways[a]) / math.comb(total, hits)


@lru_cache(maxsize=4096)
def student_power(shift: float, critical: float, df: float) -> float:
    """P(T > critical) for noncentral t with noncentrality `shift`."""

    def compute() -> float:
        from scipy.special import nctdtr

        return 1.0 - float(nctdtr(df, shift, critical))

    return _known(f"nct {shift!r} {critical!r} {df!r}", compute)


def digamma(x: float) -> float:
    """psi(x), the logarithmic derivative of the gamma function."""
    from scipy.special import digamma as psi

    return float(psi(x))


def trigamma(x: float) -> float:
    """psi'(x)."""
    from scipy.special import polygamma

    return float(polygamma(1, x))


def _student_name(tail: float, df: float) -> str:
    return f"t {tail:.12g} {df:.12g}"


def _f_name(p: float, df1: float, df2: float) -> str:
    return f"f {p:.12g} {df1:.12g} {df2:.12g}"


@cache
def _shipped() -> dict[str, float]:
    return json.loads(resources.files("winnow.study").joinpath("quantiles.json").read_text())


class _Memory:
    """Values that were computed before, in one file of the user's cache folder. Losing it costs time, nothing else."""

    MOST_NEW, MOST = 2_000, 20_000
    """Values that one process adds, and that the file holds before it is begun anew: simulations ask for millions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = self._read()
        self.new: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        if not self.new:
            atexit.register(self.save)
        if len(self.new) < self.MOST_NEW:
            self.new[name] = value

    def save(self) -> None:
        """Add what is new to what other processes have added meanwhile."""
        kept = self._read()
        merged = {**(kept if len(kept) < self.MOST else {}), **self.new}
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(merged))
            os.replace(draft, self.path)
        except OSError:
            pass  # a read-only or full home only costs the next command its time

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@cache
def _memory(folder: str) -> _Memory:
    return _Memory(Path(folder) / "winnow" / "numbers.json")


def _known(name: str, compute: Callable[[], float]) -> float:
    """The value of this name: shipped, remembered, or computed and remembered."""
    value = _shipped().get(name)
    if value is None:
        memory = _memory(os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
        value = memory.values.get(name)
        if not isinstance(value, float):
            value = compute()
            memory.add(name, value)
    return value


def make_table() -> dict[str, float]:
    """What is shipped: the t of 95 % intervals, and the F of the guard for pairs of up to 20 seeds."""
    from scipy.special import fdtri, stdtrit

    degrees = range(1, MOST_DEGREES + 1)
    table = {_student_name(0.025, df): -float(stdtrit(df, 0.025)) for df in degrees}
    for df in degrees:
        for lenders in range(1, MOST_LENT + 1):
            name = _f_name(GUARD_QUANTILE, df, lenders * df)
            table[name] = float(fdtri(df, lenders * df, GUARD_QUANTILE))
    return table


if __name__ == "__main__":
    lines = ",\n".join(f"{json.dumps(name)}: {value!r}" for name, value in make_table().items())
    Path(__file__).with_name("quantiles.json").write_text("{\n" + lines + "\n}\n")

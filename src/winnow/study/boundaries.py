"""How far an estimate may stray by chance, look after look: the multiplier c of the interval estimate ± c·SE.

A design is what fixes the null distribution of T = estimate / SE: pairing, the number of seeds at each look, and
how much the standard error leans on a prior. The error level `alpha` (two-sided) is spent as alpha·f² at the
fraction f of the last look's seeds. T is a pivot, so the multipliers come from a seeded Monte Carlo; those of the
usual designs are shipped (`boundaries.json`), others are computed once and cached.

    sequential   declared looks: Monte Carlo; a single look is Student's t, in closed form
    open-ended   no last look: an e-process, inverted into a multiplier
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from winnow.study.distributions import GUARD_QUANTILE, f_quantile, student_cdf, student_upper

DRAWS = 400_000
SHIPPED_DRAWS = 2_000_000
CHUNK = 50_000
"""Draws are generated in blocks of this many, so that memory stays below some 10 MB per arm and 16 seeds."""
EFFECT_VARIANCE = 4.0
"""Prior variance, in units of the seed variance, of the effect that an e-process bets on."""


@dataclass(frozen=True)
class Design:
    """Fixes the null distribution of T.

    sizes: seeds of A and of B at each look so far (equal when paired); `last` and `declared` set the fractions.
    prior: d0, whole degrees of freedom lent by a prior. lenders: how many other pairs, with the same seeds and the same
    control, that prior is the mean variance of (0: it is known). pooled: degrees of freedom of other arms whose
    variance is pooled, at each look (empty: none).
    """

    paired: bool
    sizes: tuple[tuple[int, int], ...]
    declared: tuple[int, ...]
    last: int
    prior: int = 0
    pooled: tuple[int, ...] = ()
    lenders: int = 0

    @property
    def standard(self) -> bool:
        """Every look has the declared number of seeds in both arms and nothing is pooled: the shipped kind."""
        return not self.pooled and all(size == (n, n) for size, n in zip(self.sizes, self.declared, strict=True))

    def degrees(self, look: int = -1) -> int:
        """Degrees of freedom of T at a look, prior included."""
        a, b = self.sizes[look]
        return self.prior + (a - 1 if self.paired else a + b - 2) + (self.pooled[look] if self.pooled else 0)


def multiplier(design: Design, alpha: float) -> float:
    """c of the design's latest look at two-sided level `alpha`; infinite where no variance can be estimated."""
    if design.degrees() <= design.prior:
        return math.inf
    if not design.lenders and len(design.declared) == 1 and design.declared[0] == design.last:
        return student_upper(alpha / 2, design.degrees())
    return bounds(design, alpha)[-1]


@lru_cache(maxsize=20_000)
def bounds(design: Design, alpha: float) -> tuple[float, ...]:
    """c at each look so far: shipped, cached by an earlier run, or computed now (about a second)."""
    if design.standard:
        row = _shipped().get(_name(design))
        found = None if row is None else row.get(_level(alpha))
        if found is not None:
            return tuple(found[: len(design.sizes)])
    cached = _prepared.get((design, alpha, DRAWS)) or _cached(design, alpha)
    if cached is not None:
        return cached
    computed = simulate(design, [alpha], DRAWS)[0]
    _keep(_cache_path(design, alpha), computed)
    return computed


_prepared: dict[tuple[Design, float, int], tuple[float, ...]] = {}
"""What `prepare` has computed, by the draws too."""


def prepare(design: Design, alphas: Sequence[float]) -> None:
    """Make the multipliers of many levels known by one simulation, where `multiplier` would simulate each."""
    if not design.lenders and len(design.declared) == 1 and design.declared[0] == design.last:
        return
    missing = [alpha for alpha in alphas if not _known(design, alpha)]
    if len(missing) > 1:
        if design.lenders:
            prepare(replace(design, prior=0, lenders=0), missing)
        for alpha, computed in zip(missing, simulate(design, missing, DRAWS), strict=True):
            _prepared[design, alpha, DRAWS] = computed
            _keep(_cache_path(design, alpha), computed)


def _known(design: Design, alpha: float) -> bool:
    if (design, alpha, DRAWS) in _prepared or (design.standard and _level(alpha) in _shipped().get(_name(design), {})):
        return True
    cached = _cached(design, alpha)
    if cached is not None:
        _prepared[design, alpha, DRAWS] = cached
    return cached is not None


def simulate(design: Design, alphas: Sequence[float], draws: int = DRAWS, seed: int = 0) -> list[tuple[float, ...]]:
    """Multipliers by Monte Carlo, for each of several levels: all levels read the same draws.

    Standard normal runs under "no effect, prior exactly right"; at each look the largest |T| still alive are cut
    until alpha·f² of all draws are spent, rounded down so that never more than alpha is.
    """
    statistics, own = _null_statistics(design, draws, seed)
    return [_cut(statistics, own, design, alpha, draws) for alpha in alphas]


def _null_statistics(design: Design, draws: int, seed: int) -> tuple[Any, Any]:
    """|T|, (looks, draws), and with lenders |T| from the pair's own noise: infinite where the guard is silent."""
    import numpy as np

    generator = np.random.default_rng(seed)
    arms = 1 if design.paired else 2
    longest = [max(size[arm] for size in design.sizes) for arm in range(arms)]
    found = np.empty((len(design.sizes), draws))
    own = np.full(found.shape, np.inf) if design.lenders else None
    for start in range(0, draws, CHUNK):
        count = min(CHUNK, draws - start)
        runs = [generator.standard_normal((count, n)) for n in longest]
        lenders = []
        if design.lenders:
            # Differences from one control, in units of their sd: correlated by one half.
            control = generator.standard_normal((count, longest[0]))
            lenders = [
                (generator.standard_normal((count, longest[0])) - control) / 2**0.5 for _ in range(design.lenders)
            ]
            runs = [(runs[0] - control) / 2**0.5]
        # Sums of squares of the pooled arms: independent of everything else, growing look by look.
        steps = [after - before for before, after in zip((0, *design.pooled), design.pooled or (0,), strict=False)]
        extra = np.zeros(count)
        for look, size in enumerate(design.sizes):
            if design.pooled and steps[look] > 0:
                extra = extra + generator.chisquare(steps[look], count)
            squares, difference, per_run = extra + design.prior, np.zeros(count), 0.0
            for arm in range(arms):
                seen = runs[arm][:, : size[arm]]
                mean = seen.mean(1)
                squares = squares + ((seen - mean[:, None]) ** 2).sum(1)
                difference = difference + (mean if arm == 0 else -mean)
                per_run += 1 / size[arm]
            squares_of_own = squares - design.prior
            if lenders:
                variances = [pair[:, : size[0]].var(1, ddof=1) if size[0] > 1 else np.ones(count) for pair in lenders]
                lent = sum(variances) / len(lenders)
                if own is not None and size[0] > 1:
                    variance = squares_of_own / (size[0] - 1)
                    limit = f_quantile(GUARD_QUANTILE, size[0] - 1, design.lenders * (size[0] - 1))
                    alone = np.abs(difference) / np.sqrt(variance * per_run)
                    own[look, start : start + count] = np.where(variance > limit * lent, alone, np.inf)
                squares = squares_of_own + design.prior * lent
            degrees = design.degrees(look)
            with np.errstate(divide="ignore", invalid="ignore"):
                t = np.abs(difference) / np.sqrt(squares / degrees * per_run)
            found[look, start : start + count] = t if degrees > design.prior else 0.0
    return found, own


def _cut(statistics: Any, own: Any, design: Design, alpha: float, draws: int) -> tuple[float, ...]:
    import numpy as np

    alive = np.ones(draws, bool)
    used, found = 0, []
    # Where the guard speaks the pair's own interval must agree, at its own multiplier.
    alone = bounds(replace(design, prior=0, lenders=0), alpha) if own is not None else ()
    for look, n in enumerate(design.declared):
        budget = math.floor(alpha * (n / design.last) ** 2 * draws + 1e-9) - used
        if design.degrees(look) <= design.prior or budget < 1:
            found.append(math.inf)
            continue
        t = statistics[look] if own is None else np.where(own[look] < alone[look], 0.0, statistics[look])
        left = t[alive]
        c = float(np.partition(left, -budget)[-budget]) if budget <= left.size else 0.0
        hit = alive & (t >= c)
        used += int(hit.sum())
        alive &= ~hit
        found.append(c)
    return tuple(found)


@lru_cache(maxsize=20_000)
def open_multiplier(runs: float, degrees: int, alpha: float) -> float:
    """c of an open-ended study: the |T| at which the one-sided e-process reaches 2/alpha.

    runs: n_e = 1 / (1/n_A + 1/n_B), or the number of pairs. degrees: of T, prior included. Valid whenever one stops,
    given the prior; infinite while no T would be enough.
    """
    goal = math.log(2 / alpha)
    # As T grows E rises to a ceiling that depends on the degrees of freedom alone.
    if degrees < 1 or log_evidence(1e9, runs, degrees) < goal:
        return math.inf
    low, high = 0.0, 1.0
    while log_evidence(high, runs, degrees) < goal:
        low, high = high, 2 * high
    for _ in range(48):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if log_evidence(middle, runs, degrees) < goal else (low, middle)
    return high


def log_evidence(t: float, runs: float, degrees: int) -> float:
    """ln E for "the effect has the sign of t" against zero: a t mixture with prior variance `EFFECT_VARIANCE`."""
    shrink = 1 + runs * EFFECT_VARIANCE
    two_sided = -0.5 * math.log(shrink) + 0.5 * (degrees + 1) * (
        math.log1p(t * t / degrees) - math.log1p(t * t / (degrees * shrink))
    )
    scaled = t * math.sqrt((shrink - 1) / shrink) / math.sqrt((degrees + t * t / shrink) / (degrees + 1))
    sign = student_cdf(scaled, degrees + 1)
    return two_sided + math.log(2 * sign) if sign > 0 else -math.inf


def standard_design(looks: Sequence[int], prior: int, paired: bool, lenders: int = 0) -> Design:
    """The design in which both arms have exactly the declared seeds at every look."""
    counts = tuple(looks)
    return Design(paired, tuple((n, n) for n in counts), counts, counts[-1], prior, lenders=lenders)


SHIPPED_LOOKS = ((3, 5, 8), (3, 5), (3, 5, 8, 12, 16), (2, 3, 4, 5, 6, 8, 10))
SHIPPED_ALPHAS = tuple(0.05 / k for k in range(1, 13))
MOST_LENDERS = 5
"""More pairs than this lend no better: the tables end here."""


def shipped_designs() -> list[Design]:
    """Every design in `boundaries.json`: an unpaired ledger prior weighs 1 to 12; a paired prior weighs 4."""
    found: list[Design] = []
    for looks in SHIPPED_LOOKS:
        found += [standard_design(looks, prior, False) for prior in range(13)]
        found += [standard_design(looks, 0, True), standard_design(looks, 4, True)]
        if looks[-1] <= 8:
            found += [standard_design(looks, 4, True, lenders) for lenders in range(1, MOST_LENDERS + 1)]
    return found


def make_table(designs: Sequence[Design]) -> dict[str, dict[str, list[float]]]:
    """By design, by level: c at each look."""
    return {
        _name(design): {
            _level(alpha): [float(f"{c:.5g}") for c in row]
            for alpha, row in zip(SHIPPED_ALPHAS, simulate(design, SHIPPED_ALPHAS, SHIPPED_DRAWS), strict=True)
        }
        for design in designs
    }


def _name(design: Design) -> str:
    looks = [*design.declared]
    shape = "paired" if design.paired else "unpaired"
    # A look's multiplier depends on the looks up to it and on the last one, not on those between.
    for known in SHIPPED_LOOKS:
        if tuple(looks) == known[: len(looks)] and known[-1] == design.last:
            looks = [*known]
            break
    lenders = f" lenders={design.lenders}" if design.lenders else ""
    return f"{shape} d0={design.prior}{lenders} looks={','.join(map(str, looks))} of {design.last}"


def _level(alpha: float) -> str:
    return f"{alpha:.9g}"


@cache
def _shipped() -> dict[str, dict[str, list[float]]]:
    return json.loads(resources.files("winnow.study").joinpath("boundaries.json").read_text())


def _cache_path(design: Design, alpha: float) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(f"{design!r} {alpha!r} {DRAWS}".encode()).hexdigest()[:24]
    return root / "winnow" / "boundaries" / f"{name}.json"


def _cached(design: Design, alpha: float) -> tuple[float, ...] | None:
    try:
        found = json.loads(_cache_path(design, alpha).read_text())
        return tuple(float(c) if c is not None else math.inf for c in found)
    except (OSError, ValueError):
        return None  # not there, or torn by a crash: it is only a cache


def _keep(path: Path, computed: Sequence[float]) -> None:
    text = json.dumps([c if math.isfinite(c) else None for c in computed])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        pass  # a read-only or full home only costs the next command a second


if __name__ == "__main__":
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in make_table(shipped_designs()).items())
    Path(__file__).with_name("boundaries.json").write_text("{\n" + rows + "\n}\n")

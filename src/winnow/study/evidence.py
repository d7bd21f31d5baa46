"""What a claim's numbers say at one look, at a given error level: the decision table.

Delta is A minus B, lower is better, [L, U] its interval at the level asked for; m the margin, s the smallest effect
of interest, r = m if m > 0 else s (0 without s: refuted only when the opposite is shown).

    better          supported U < -m                         refuted L > -r
    worse           mirror image
    equal within e  supported -e < L and U < e               refuted L > e or U < -e
    rank, best      supported if every pair is (intersection-union, so no correction)
                    refuted if any pair is, at the level divided by the number of pairs (Holm's first step)
    proxy           supported if the alpha quantile of tau >= .6, refuted if the 1 - alpha quantile < .6

Anything else is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from winnow.study.claims import Claim
from winnow.study.intervals import Contrast, Schedule

LOWEST_TAU = 0.6
"""Kendall's tau that a proxy must reach: 80 % of pairs in the right order."""


@dataclass(frozen=True)
class Evidence:
    """A claim at one look.

    contrasts: one per pair of the claim. taus: sorted draws of Kendall's tau (`proxy` only), read at the share
    `spent` of the level that this look may use. blocked: why means must not be compared at this look.
    """

    claim: Claim
    contrasts: tuple[Contrast, ...]
    blocked: str | None = None
    taus: tuple[float, ...] = ()
    spent: float = 1.0

    def supported(self, alpha: float) -> bool:
        """Whether the claim is supported at two-sided level alpha."""
        if self.blocked:
            return False
        if self.claim.kind == "proxy":
            return bool(self.taus) and self.tau_quantile(alpha * self.spent) >= LOWEST_TAU
        return all(self._pair_supported(contrast, alpha) for contrast in self.contrasts)

    def refuted(self, alpha: float) -> bool:
        """Whether the claim is refuted at two-sided level alpha."""
        if self.blocked:
            return False
        if self.claim.kind == "proxy":
            return bool(self.taus) and self.tau_quantile(1 - alpha * self.spent) < LOWEST_TAU
        level = alpha / len(self.contrasts)
        return any(self._pair_refuted(contrast, level) for contrast in self.contrasts)

    def interval(self, support: float, refute: float, *, refuted: bool) -> tuple[int, float, float]:
        """(pair, L, U): the interval that is shown, each end at the level at which it is read.

        Of several pairs it is the one that decides: the strongest contradiction of a refuted claim, else the weakest.
        """
        if not self.contrasts:
            return 0, self.tau_quantile(support * self.spent), self.tau_quantile(1 - support * self.spent)
        refute = refute / len(self.contrasts)
        if self.claim.kind == "equal":
            return 0, *self.contrasts[0].interval(refute if refuted else support)
        ends: list[tuple[float, int, float, float]] = []
        for place, contrast in enumerate(self.contrasts):
            to_support, to_refute = contrast.half_width(support), contrast.half_width(refute)
            if self.claim.kind == "worse":
                ends.append((0.0, place, contrast.delta - to_support, contrast.delta + to_refute))
            else:
                low, high = contrast.delta - to_refute, contrast.delta + to_support
                ends.append((low if refuted else high, place, low, high))
        _, place, low, high = max(ends)
        return place, low, high

    def smaller_than_smallest(self, alpha: float) -> bool:
        """Whether the whole interval of a better or worse claim lies short of s: real, but too small to matter."""
        claim = self.claim
        if claim.kind not in ("better", "worse") or claim.smallest is None or not self.contrasts:
            return False
        low, high = self.contrasts[0].interval(alpha)
        return low > -claim.smallest if claim.kind == "better" else high < claim.smallest

    def grown(self, schedule: Schedule) -> Evidence:
        """The same estimates and noise with the seeds of a later look: what it says if the trend holds."""
        return replace(self, contrasts=tuple(_grown(contrast, schedule) for contrast in self.contrasts))

    def tau_quantile(self, p: float) -> float:
        """Quantile of the draws of tau, rounded outwards; NaN without draws."""
        if not self.taus:
            return math.nan
        place = p * (len(self.taus) - 1)
        return self.taus[math.floor(place) if p < 0.5 else math.ceil(place)]

    def _pair_supported(self, contrast: Contrast, alpha: float) -> bool:
        claim = self.claim
        half = contrast.half_width(alpha)
        if claim.kind == "equal":
            assert claim.within is not None
            return abs(contrast.delta) + half < claim.within
        delta = -contrast.delta if claim.kind == "worse" else contrast.delta
        return delta + half < -claim.margin

    def _pair_refuted(self, contrast: Contrast, alpha: float) -> bool:
        claim = self.claim
        half = contrast.half_width(alpha)
        if claim.kind == "equal":
            assert claim.within is not None
            return abs(contrast.delta) - half > claim.within
        delta = -contrast.delta if claim.kind == "worse" else contrast.delta
        return delta - half > -(claim.margin or claim.smallest or 0.0)


def _grown(contrast: Contrast, schedule: Schedule) -> Contrast:
    (a, b), declared = schedule.sizes[-1], schedule.declared
    spreads = []
    for spread in contrast.spreads:
        now_a, now_b = spread.design.sizes[-1]
        pooled = spread.design.pooled
        if pooled:
            # The other arms get new seeds too, in step.
            later = (math.floor(pooled[-1] * (min(size) - 1) / (min(now_a, now_b) - 1)) for size in schedule.sizes)
            pooled = tuple(
                old if old is not None else new for old, new in zip(_padded(pooled, len(declared)), later, strict=True)
            )
        design = replace(spread.design, sizes=schedule.sizes, declared=declared, last=schedule.last, pooled=pooled)
        error = spread.error * math.sqrt((1 / a + 1 / b) / (1 / now_a + 1 / now_b))
        spreads.append(replace(spread, design=design, error=error, open_ended=schedule.open_ended))
    return replace(contrast, spreads=tuple(spreads))


def _padded(values: Sequence[int], length: int) -> list[int | None]:
    return [*values[:length], *[None] * (length - len(values))]

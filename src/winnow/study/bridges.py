"""What canaries have shown: which versions of the code give the same numbers. Needs no torch.

A canary's result lies beside the baseline run that was rerun, as `canary.json`. Runs of two versions may be compared
where canaries join these versions, directly or through others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from winnow.config import Config
from winnow.records.store import RunStore

STAMP: Final = "canary"

Outcome = Literal["identical", "noise", "different"]


class Canary(Config):
    """One baseline rerun with other code."""

    run: str
    """The run that was repeated."""
    old: str
    """Code version of its record."""
    new: str
    """Code version of the repetition."""
    outcome: Outcome
    metric: str
    difference: float | None
    """Largest difference of the metric, new minus old; None = one of the two diverged."""
    first_step: int | None
    """First step at which any number differs; None = none does."""
    seed_sd: float | None
    """Seed standard deviation of the baseline, to judge the difference by; None = not known."""
    packages: tuple[str, ...] = ()
    """Packages whose versions differ between the two."""
    at: str

    @property
    def comparable(self) -> bool:
        """Whether old and new records may be compared."""
        return self.outcome != "different"

    @property
    def text(self) -> str:
        """One line for people."""
        if self.outcome == "identical":
            return "old and new code give bit-identical runs: their records may be compared"
        size = (
            "one of the two diverged" if self.difference is None else f"{self.metric} moves by {self.difference:+.2g}"
        )
        size += "" if self.seed_sd is None or self.difference is None else f" (seed sd {self.seed_sd:.2g})"
        where = f", first difference at step {self.first_step}"
        if self.outcome == "noise":
            return f"old and new code agree within float noise: {size}{where}; their records may be compared"
        return f"old and new code give different numbers: {size}{where}; their records may not be compared"


def canaries(store: RunStore, digests: Iterable[str]) -> tuple[Canary, ...]:
    """Every canary of these runs, oldest first."""
    found: list[Canary] = []
    for digest in digests:
        stamp: dict[str, Any] = store.stamps(digest, STAMP) or {}
        found += [Canary.model_validate(item) for item in stamp.get("canaries", [])]
    return tuple(sorted(found, key=lambda canary: canary.at))


def add_canary(store: RunStore, canary: Canary) -> None:
    """Keep a result beside its run; an earlier one of the same two versions is replaced."""
    kept = [old for old in canaries(store, [canary.run]) if (old.old, old.new) != (canary.old, canary.new)]
    store.stamp(canary.run, STAMP, {"canaries": [item.dump() for item in (*kept, canary)]})


def bridged(found: Sequence[Canary], versions: Iterable[str]) -> tuple[bool, bool]:
    """(whether canaries join all these versions, whether one shows two of them to differ)."""
    wanted = set(versions)
    differs = any(not canary.comparable and {canary.old, canary.new} <= wanted for canary in found)
    reached = {min(wanted)}
    grown = True
    while grown:
        grown = False
        for canary in found:
            ends = {canary.old, canary.new}
            if canary.comparable and ends & reached and not ends <= reached:
                reached |= ends
                grown = True
    return wanted <= reached and not differs, differs

"""What was measured: one number per arm and seed, or the fact that the run diverged.

The unit is one run. Seeds are taken in the order in which the study declares them: look k sees the first n_k of
them, whatever else has been run since.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from winnow.errors import InputError

Seed = int | str
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Observations:
    """Final values of one metric.

    values: by arm, then by seed; None or a value that is not finite means that the run diverged. A seed that is
    absent was not run, or failed for a reason that has nothing to do with the numbers.
    better: which direction is good. seeds: the declared order (default: sorted).
    control: the arm that the others are compared with; its pairs lend the paired prior.
    """

    values: Mapping[str, Mapping[Seed, float | None]]
    metric: str
    better: Better = "lower"
    seeds: tuple[Seed, ...] = ()
    control: str | None = None
    _order: dict[Seed, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    _common: dict[tuple[str, ...], tuple[Seed, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        found: set[Seed] = {seed for arm in self.values.values() for seed in arm}
        declared = self.seeds or tuple(sorted(found, key=lambda seed: (isinstance(seed, str), seed)))
        unknown = found.difference(declared)
        if unknown:
            raise InputError(f"seeds {sorted(map(str, unknown))} were not declared", key="seeds")
        object.__setattr__(self, "seeds", declared)
        self._order.update({seed: place for place, seed in enumerate(declared)})

    @cached_property
    def outcomes(self) -> dict[str, dict[Seed, float | None]]:
        """By arm: seeds in declared order, values oriented so that lower is better, None for a divergence."""
        sign = 1.0 if self.better == "lower" else -1.0
        return {
            arm: {
                seed: sign * value if value is not None and math.isfinite(value) else None
                for seed, value in sorted(values.items(), key=lambda item: self._order[item[0]])
            }
            for arm, values in self.values.items()
        }

    def of(self, arm: str, count: int | None = None) -> dict[Seed, float | None]:
        """Outcomes of an arm on the first `count` seeds that it has; all when None."""
        found = self.outcomes.get(arm, {})
        return found if count is None else dict(list(found.items())[:count])

    def common(self, arms: Iterable[str]) -> tuple[Seed, ...]:
        """Seeds for which every one of these arms has an outcome, in declared order."""
        names = tuple(arms)
        if names not in self._common:
            found = [self.outcomes.get(arm, {}) for arm in names]
            self._common[names] = tuple(seed for seed in self.seeds if all(seed in arm for arm in found))
        return self._common[names]

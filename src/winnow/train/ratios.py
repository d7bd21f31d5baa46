"""By what part of itself an update changes each slice of a parameter (a head's queries, say).

    ratio = |value after - value before| / |value before|        Euclidean norms over the slice

Taken from copies of the values, so that it says what happened whatever the optimizer meant to do; at the updates before
which the run is evaluated, and at its last one, so that all others cost nothing. A slice that is 0 has no ratio then, a
frozen parameter never has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from winnow.parameters import ParameterSpec
from winnow.records.run import UpdateRatio


class RatioWatch:
    """Adds up the ratios of a run's updates. whole: puts together a tensor of which ranks hold parts."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        table: Mapping[str, ParameterSpec],
        whole: Callable[[Tensor], Tensor],
    ) -> None:
        self._parameters = {name: p for name, p in parameters.items() if table[name].lr_multiplier != 0}
        self._table, self._whole = table, whole
        self._seen: dict[str, tuple[int, float, float, float]] = {}
        """Ratios so far, their sum, the smallest and the largest, by slice."""

    @contextmanager
    def around(self, *, due: bool) -> Iterator[None]:
        """Around the optimizer's step; due: whether this update is measured. Every rank has to ask."""
        before = {name: p.detach().clone() for name, p in self._parameters.items()} if due else {}
        yield
        if due:
            self._add(before)

    @torch.no_grad()
    def _add(self, before: dict[str, Tensor]) -> None:
        names: list[str] = []
        norms: list[Tensor] = []
        for name, parameter in self._parameters.items():
            old = self._whole(before.pop(name))
            moved = self._whole(parameter.detach()) - old
            for part in self._table[name].slices or (None,):
                names.append(name if part is None else f"{name}[{part.name}]")
                norms += [tensor.norm() if part is None else part.view(tensor).norm() for tensor in (moved, old)]
        values = torch.stack(norms).tolist() if norms else []  # the host waits for the device once
        for place, moved, size in zip(names, values[::2], values[1::2], strict=True):
            if size and math.isfinite(moved / size):
                ratio = moved / size
                n, total, smallest, largest = self._seen.get(place, (0, 0.0, math.inf, 0.0))
                self._seen[place] = (n + 1, total + ratio, min(smallest, ratio), max(largest, ratio))

    def found(self) -> dict[str, UpdateRatio]:
        """For the record: what there is to say of every slice."""
        return {
            place: UpdateRatio(n=n, mean=_short(total / n), smallest=_short(smallest), largest=_short(largest))
            for place, (n, total, smallest, largest) in self._seen.items()
        }

    def dump(self) -> dict[str, Any]:
        """Plain JSON data, for a checkpoint."""
        return {place: list(seen) for place, seen in self._seen.items()}

    def restore(self, seen: Mapping[str, Any]) -> None:
        """Continue from an earlier `dump`."""
        self._seen = {place: tuple(numbers) for place, numbers in seen.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")

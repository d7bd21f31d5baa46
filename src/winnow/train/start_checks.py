"""Whether the values that a run starts from are those that the table of parameters declares."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from winnow.parameters import ParameterSpec, Slice
from winnow.records.run import Finding, Spread

UNLIKELY = 1e-10
"""Chance of a false alarm for one slice of a parameter; a large model has some thousands."""
FEW = 4
"""Numbers of which nothing is said: any few can be drawn."""


def initial_values(
    values: Mapping[str, Tensor], table: Mapping[str, ParameterSpec], skip: Collection[str] = ()
) -> list[Finding]:
    """What differs from the table: constants and one-hot starts exactly, drawn ones in mean and standard deviation.

    values: of every parameter, before the first update; skip: parameters that come from elsewhere.
    """
    found: list[Finding] = []
    for name, spec in table.items():
        wrong = None if name in skip else next(_wrong(values[name].detach(), spec), None)
        if wrong is not None:
            found.append(
                Finding(
                    rule="initial-values",
                    severity="invalid",
                    message=f"{name} starts {wrong}",
                    where=name,
                    mend="something sets it after `initialise`, or its declaration is not what was meant",
                )
            )
    return found


def _wrong(values: Tensor, spec: ParameterSpec) -> Iterator[str]:
    values = values.cpu()
    if spec.init in ("normal", "uniform"):
        for part in spec.slices or (Slice("", 0, 0, len(values)),):
            what = _not_drawn(part.view(values).double(), spec)
            if what is not None:
                yield f"{what} in slice {part.name}" if part.name else what
        return
    expected = torch.full_like(values, 1.0 if spec.init == "ones" else 0.0)
    if spec.hot is not None:
        index, value = spec.hot
        expected.view(-1)[index] = value
    if not values.equal(expected):
        declared = "one-hot" if spec.hot is not None else spec.init
        apart = float((values - expected).abs().max())
        yield f"up to {apart:.2g} from its declared value ({declared})"


def _not_drawn(values: Tensor, spec: ParameterSpec) -> str | None:
    """What is wrong with numbers that should be drawn from N(0, std), or uniformly with that standard deviation, whose
    squares vary less, so that the same bounds hold."""
    n, std = values.numel(), spec.std
    if n < FEW or std == 0:
        return None if n < FEW or not values.any() else "other than 0"
    bound, largest = 3**0.5 * std, float(values.abs().max())
    if spec.init == "uniform" and largest > bound * (1 + 1e-6):
        return f"with values up to {largest:.3g}, between -{bound:.3g} and {bound:.3g} are declared"
    squares = float((values / std).square().sum())
    half_n, half_squares = torch.tensor([n / 2, squares / 2], dtype=torch.float64)
    # Of the chi-square distribution with n degrees: both tails.
    tails = torch.special.gammainc(half_n, half_squares), torch.special.gammaincc(half_n, half_squares)
    if not min(map(float, tails)) > UNLIKELY:
        return f"with standard deviation {(squares / n) ** 0.5 * std:.3g}, {std:.3g} is declared"
    mean = float(values.mean())
    if abs(mean) > 7 * std / n**0.5:
        return f"with mean {mean:.2g} and standard deviation {std:.3g}, mean 0 is declared"
    return None


def initial_spread(values: Mapping[str, Tensor]) -> dict[str, Spread]:
    """Standard deviation about 0 and count of each parameter's values."""
    found: dict[str, Spread] = {}
    for name, value in values.items():
        mean_square = float(value.detach().double().square().mean()) if value.numel() else 0.0
        found[name] = Spread(std=float(f"{mean_square**0.5:.6g}"), n=value.numel())
    return found

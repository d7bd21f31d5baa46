"""Whether the layers of a convolutional model are what they are said to be: convolution, cut into letters, attention,
activation and residual together, in fp32 on the run's device, against `ConvLayer.oracle` in fp64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from winnow.models.base import Model
from winnow.models.conv import ConvLayer
from winnow.records.run import Finding

ROUNDING = 1e-3
"""Largest part of a layer's output that rounding in fp32 explains."""


@torch.no_grad()
def layer_findings(model: Model, tokens: Int[Tensor, "1 T"]) -> list[Finding]:
    """What is wrong with the convolution layers of a model in evaluation mode, on these tokens."""
    seen: list[tuple[str, ConvLayer, Tensor, Tensor]] = []

    def keep(path: str) -> Any:
        def look(layer: ConvLayer, inputs: tuple[Tensor], output: Tensor) -> None:
            seen.append((path, layer, inputs[0], output))

        return look

    layers = {path: module for path, module in model.named_modules() if isinstance(module, ConvLayer)}
    if not layers:
        return []
    handles = [layer.register_forward_hook(keep(path)) for path, layer in layers.items()]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return list(_off(seen))


def _off(seen: list[tuple[str, ConvLayer, Tensor, Tensor]]) -> Iterator[Finding]:
    for path, layer, x, y in seen:
        exact = copy.deepcopy(layer).to("cpu", torch.float64)
        truth = exact.oracle(x[:, 0].to("cpu", torch.float64))
        apart, size = float((y[:, 0].to("cpu", torch.float64) - truth).abs().max()), float(truth.abs().max())
        if truth.isfinite().all() and not apart <= ROUNDING * size:
            yield Finding(
                rule="not-its-definition",
                severity="invalid",
                message=f"{path} is off its definition by {apart / size if size else apart:.2g} of its size",
                where=path,
                mend="the layer is not what its config says: compare `forward` with `oracle`",
            )

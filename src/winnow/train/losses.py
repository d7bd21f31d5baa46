"""The loss of a batch, and how the passes of one update add up to it.

An update's loss is the mean cross entropy (nats per token) over every target that counts in the whole update, so each
pass contributes its sum divided by the update's total: how the update is cut into passes changes only the order of
float additions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.kernels.readout import linear_cross_entropy
from winnow.models.base import Model, Output
from winnow.tasks.base import Batch
from winnow.train.device import autocast

Forward = Callable[[Tensor], Output]
"""A model's forward pass: the model itself, or its compiled form."""


def target_weight(batches: Iterable[Batch]) -> float:
    """Targets that count in these batches."""
    return sum(batch.targets.numel() if batch.mask is None else float(batch.mask.sum()) for batch in batches)


def cross_entropy_sum(
    forward: Forward, model: Model, batch: Batch, device: torch.device, precision: str
) -> Float[Tensor, ""]:
    """Summed cross entropy of a batch on `device`, nats, fp32."""
    tokens, targets = batch.tokens.to(device), batch.targets.to(device)
    mask = None if batch.mask is None else batch.mask.to(device)
    with autocast(device, precision):
        return linear_cross_entropy(forward(tokens).hidden, model.readout_weight, targets, mask, reduction="sum")


class Smoothed:
    """Exponential running average without the bias of its start. It may screen, but not decide."""

    HALF_LIFE = 20
    """Updates after which an observation has half its first weight."""

    def __init__(self, total: float = 0.0, weight: float = 0.0) -> None:
        self.total, self.weight = total, weight

    def add(self, value: float) -> float:
        """The average with this value in it."""
        keep = 0.5 ** (1 / self.HALF_LIFE)
        self.total = keep * self.total + (1 - keep) * value
        self.weight = keep * self.weight + (1 - keep)
        return self.total / self.weight


def tensors_of(model: nn.Module) -> Mapping[str, Tensor]:
    """Parameters and persistent buffers by name, a shared one once: what a checkpoint holds of a model."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters()), **buffers}

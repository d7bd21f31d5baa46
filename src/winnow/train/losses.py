"""The loss of a batch, and how the passes of one update add up to it.

    loss = ce + penalty
    ce       mean cross entropy (nats per token) over every target that counts in the whole update
    penalty  sum over layers of aux["penalty"], averaged over the update's rows

A mechanism's penalty is a mean over the rows of the pass that it sees. So each pass contributes its sum of cross
entropies divided by the update's weight, and its penalty times its share of the update's rows: how the update is cut
into passes changes only the order of float additions. A perplexity is always of the cross entropy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.kernels.readout import cross_entropy_and_choice, linear_cross_entropy
from winnow.models.base import Model, Output
from winnow.tasks.base import Batch, Score
from winnow.train.device import autocast

Forward = Callable[[Tensor], Output]
"""A model's forward pass: the model itself, or its compiled form."""


def target_weight(batches: Iterable[Batch]) -> float:
    """Targets that count in these batches."""
    return sum(batch.targets.numel() if batch.mask is None else float(batch.mask.sum()) for batch in batches)


class Losses(NamedTuple):
    """What one forward pass is charged with."""

    ce: Float[Tensor, ""]
    """Summed cross entropy, nats, fp32."""
    penalty: Float[Tensor, ""] | None
    """Sum over layers of what their mechanisms add to the loss, a mean over rows, fp32; None: no mechanism does."""
    wrong: Int[Tensor, 3] | None = None
    """Wrong positions, wrong positions of answers, rows with a wrong position; None: not asked for."""


def losses(
    forward: Forward, model: Model, batch: Batch, device: torch.device, precision: str, *, errors: bool = False
) -> Losses:
    """The losses of a batch on `device`. errors: count them too; of a batch that says where its answers are."""
    tokens, targets = batch.tokens.to(device), batch.targets.to(device)
    mask = None if batch.mask is None else batch.mask.to(device)
    with autocast(device, precision):
        output = forward(tokens)
        if not errors:
            ce = linear_cross_entropy(output.hidden, model.readout_weight, targets, mask, reduction="sum")
            return Losses(ce, penalty_of(output))
        ce, choice = cross_entropy_and_choice(output.hidden, model.readout_weight, targets, mask)
    assert batch.answer is not None, "a task of questions and answers"
    missed = choice != targets if mask is None else (choice != targets) & (mask > 0)
    wrong = torch.stack([missed.sum(), (missed & batch.answer.to(device)).sum(), missed.any(dim=1).sum()])
    return Losses(ce, penalty_of(output), wrong)


def score(batches: Sequence[Batch], ce: float, wrong: Sequence[float] = (0, 0, 0)) -> Score:
    """What `losses` found of these batches: their summed cross entropy, nats, and their errors."""
    answers = sum(int(batch.answer.sum()) for batch in batches if batch.answer is not None)
    rows = sum(len(batch.tokens) for batch in batches)
    return Score(ce, target_weight(batches), wrong[0], answers, wrong[1], rows, wrong[2])


def penalty_of(output: Output) -> Float[Tensor, ""] | None:
    """Sum over layers of `aux["penalty"]`; None where no layer has one."""
    found = [aux["penalty"] for aux in output.aux if "penalty" in aux]
    scalars = all(penalty.shape == () and penalty.dtype in (torch.float32, torch.float64) for penalty in found)
    assert scalars, "a penalty is an fp32 scalar"
    return torch.stack(found).sum() if found else None


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

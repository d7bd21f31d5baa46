"""Validation: the same tokens each time, summed in fp64."""

from __future__ import annotations

import math

import torch

from winnow.models.base import Model
from winnow.tasks.base import Task, Validation
from winnow.train.config import EvaluationConfig
from winnow.train.losses import cross_entropy_sum, target_weight

BATCH_TOKENS = 8192
"""Tokens in one forward pass, whatever the run's micro batch: arms are measured alike."""


def held_out(task: Task, evaluation: EvaluationConfig) -> Validation:
    """The validation set that the study asks for. Raises InputError where the task has less."""
    if evaluation.bytes is not None:
        return task.validation_bytes(evaluation.bytes)
    return task.validation(evaluation.tokens)


@torch.no_grad()
def evaluate(model: Model, validation: Validation, device: torch.device, precision: str) -> dict[str, float]:
    """`val/ce` (nats per token), `val/ppl` = exp(val/ce) and, where bytes are known, `val/bpb` (bits per byte).

    All are of the cross entropy alone, whatever else the training loss holds.
    """
    model.eval()
    total, count = 0.0, 0.0
    for batch in validation.batches(max(1, BATCH_TOKENS // validation.context)):
        total += float(cross_entropy_sum(model, model, batch, device, precision))
        count += target_weight([batch])
    model.train()
    ce = total / count
    found = {"val/ce": ce, "val/ppl": math.exp(ce) if ce < 700 else math.inf}
    bits = validation.bits_per_byte(total)
    if bits is not None:
        found["val/bpb"] = bits
    return found

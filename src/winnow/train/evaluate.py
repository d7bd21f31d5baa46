"""Validation: the same tokens each time, summed in fp64; and a look at the inside of the mechanisms on the first of
those tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from winnow.attention import Attention
from winnow.models.base import Model
from winnow.tasks.base import Batch, Task, Validation
from winnow.train.config import EvaluationConfig
from winnow.train.device import autocast
from winnow.train.group import ALONE, Group
from winnow.train.losses import losses, target_weight

BATCH_TOKENS = 8192
"""Tokens in one forward pass, whatever the run's micro batch: arms are measured alike."""


def held_out(task: Task, evaluation: EvaluationConfig) -> Validation:
    """The validation set that the study asks for. Raises InputError where the task has less."""
    if evaluation.bytes is not None:
        return task.validation_bytes(evaluation.bytes)
    return task.validation(evaluation.tokens)


@torch.no_grad()
def evaluate(
    model: Model, validation: Validation, device: torch.device, precision: str, group: Group = ALONE
) -> dict[str, float]:
    """`val/ce` (nats per token), `val/ppl` = exp(val/ce) and, where bytes are known, `val/bpb` (bits per byte).

    All are of the cross entropy alone, whatever else the training loss holds; mechanisms compute no penalty here.
    Ranks take the batches in turn.
    """
    total, count = 0.0, 0.0
    with evaluating(model):
        for batch, mine in _in_turn(validation.batches(_batch_rows(validation)), group):
            ce = float(losses(model, model, batch, device, precision).ce)
            if mine:
                total += ce
                count += target_weight([batch])
    total = group.total(total)
    ce = total / group.total(count)
    found = {"val/ce": ce, "val/ppl": math.exp(ce) if ce < 700 else math.inf}
    bits = validation.bits_per_byte(total)
    if bits is not None:
        found["val/bpb"] = bits
    return found


def _in_turn(batches: Iterator[Batch], group: Group) -> Iterator[tuple[Batch, bool]]:
    """This rank's batches, and whether they are its own: where they do not go round, a rank computes another's once
    more, because a sharded model computes on all ranks or on none."""
    while turn := list(islice(batches, group.size)):
        mine = group.rank < len(turn)
        yield turn[group.rank if mine else 0], mine


@torch.no_grad()
def look_inside(model: Model, validation: Validation, device: torch.device, precision: str) -> dict[str, float]:
    """What each mechanism measures of itself on the first validation batch, as `inside/LAYER/NAME`.

    LAYER is the mechanism's layer, from 0; its path in the model where several share a layer. Runs the eager model.
    """
    batch = next(validation.batches(_batch_rows(validation)))
    tokens = batch.tokens if batch.mask is None else batch.tokens[batch.mask.all(dim=1)]
    if not len(tokens):
        tokens = batch.tokens  # less than a window was asked for
    found: dict[str, float] = {}
    handles = [mixer.register_forward_pre_hook(_measuring(place, found)) for place, mixer in _places(model).items()]
    try:
        with evaluating(model), autocast(device, precision):
            model(tokens.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _measuring(place: str, found: dict[str, float]) -> Callable[[Attention, tuple[Any, ...]], None]:
    def look(mixer: Attention, inputs: tuple[Any, ...]) -> None:
        x, state = inputs
        figures = mixer.measure(*mixer.project(x, state), state)
        found.update({f"inside/{place}/{name}": float(value) for name, value in figures.items()})

    return look


def _places(model: Model) -> dict[str, Attention]:
    mixers = {path: module for path, module in model.named_modules() if isinstance(module, Attention)}
    in_layer = Counter(mixer.shape.layer for mixer in mixers.values())
    return {
        str(mixer.shape.layer) if in_layer[mixer.shape.layer] == 1 else path: mixer for path, mixer in mixers.items()
    }


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model in evaluation mode; training again afterwards."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def _batch_rows(validation: Validation) -> int:
    return max(1, BATCH_TOKENS // validation.context)

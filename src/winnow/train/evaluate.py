"""Validation: the same rows each time, summed in fp64; and a look at the inside of the mechanisms on the first of
those rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from winnow.attention import Attention, PolicyConfig
from winnow.attention.prune import budget_of
from winnow.errors import InputError
from winnow.models.base import Model, Output
from winnow.tasks.base import Batch, Score, Task, Validation
from winnow.train.config import EvaluationConfig, PruneConfig
from winnow.train.device import autocast
from winnow.train.group import ALONE, Group
from winnow.train.losses import Forward, losses, score

BATCH_TOKENS = 8192
"""Tokens in one forward pass, whatever the run's micro batch: arms are measured alike."""


def held_out(task: Task, evaluation: EvaluationConfig) -> Validation:
    """The validation set that the study asks for. Raises InputError where the task has less."""
    if evaluation.bytes is not None:
        return task.validation_bytes(evaluation.bytes)
    validation = task.validation(evaluation.tokens)
    return validation if evaluation.batch_means is None else validation.in_batches(evaluation.batch_means)


@torch.no_grad()
def evaluate(
    model: Model, validation: Validation, device: torch.device, precision: str, group: Group = ALONE
) -> dict[str, float]:
    """The metrics of a validation set: `val/ce` (nats per position) and what its task adds.

    All are of the cross entropy alone, whatever else the training loss holds; mechanisms compute no penalty here.
    Ranks take the batches in turn.
    """
    return validation.metrics(_scored(model, model, validation, device, precision, group))


@torch.no_grad()
def pruned_ce(
    model: Model,
    validation: Validation,
    device: torch.device,
    precision: str,
    budgets: int | Mapping[str, int],
    policy: PolicyConfig,
) -> float:
    """`val/ce` where no layer keeps more than its budget of keys, as if every row were decoded token by token.

    budgets: of every layer, or of each by its path. With those that no query can feel it is `evaluate`'s to the bit.
    Raises InputError where the policy does not suit the model.
    """

    def forward(tokens: Tensor) -> Output:
        return model.extend(tokens, model.cache(len(tokens), validation.context, budgets, policy))

    found = _scored(forward, model, validation, device, precision, ALONE)
    return found.ce / found.targets


def _scored(
    forward: Forward, model: Model, validation: Validation, device: torch.device, precision: str, group: Group
) -> Score:
    """The sum over all batches of their scores, or of the scores' means."""
    total = Score()
    with evaluating(model):
        for batch, mine in _in_turn(validation.batches(_batch_rows(validation)), group):
            found = losses(forward, model, batch, device, precision, errors=batch.answer is not None)
            if mine:
                wrong = (0, 0, 0) if found.wrong is None else found.wrong.tolist()
                one = score([batch], float(found.ce), wrong)
                total += one if validation.batch_means is None else one.means()
    return Score(*map(group.total, astuple(total)))


@dataclass(frozen=True)
class Pruning:
    """One pruned loss that a run is measured by."""

    metric: str
    """`prune/POLICY/KEEP/ce`"""
    budget: int
    """Keys that every layer keeps."""
    policy: PolicyConfig


def prunings(asked: Iterable[PruneConfig], model: Model, context: int) -> list[Pruning]:
    """The pruned losses of a model; a policy that goes by votes says nothing of a model that casts none.

    Raises InputError where another policy does not suit it.
    """
    found: list[Pruning] = []
    for part in asked:
        keeps = part.metrics()  # read in every arm: what says nothing of one is no option without effect
        if part.policy.needs_votes and not any(mixer.voting for mixer in _places(model).values()):
            continue
        for metric, keep in keeps.items():
            budget = budget_of(keep, context)
            try:
                model.cache(1, context, budget, part.policy)
            except InputError as error:
                raise InputError(error.message, key="evaluation.prune", mend=error.mend) from error
            found.append(Pruning(metric, budget, part.policy))
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
    return validation.batch_means or max(1, BATCH_TOKENS // validation.context)

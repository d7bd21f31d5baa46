"""Trained runs in memory: the final model of a run, and what its attention layers see on its own validation text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from winnow.analysis.numerics import Heads
from winnow.attention import Attention
from winnow.errors import InputError
from winnow.models.base import Model
from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.tasks.base import Task
from winnow.train.checkpoint import load_newest, weights_digest
from winnow.train.config import RunConfig
from winnow.train.evaluate import held_out
from winnow.train.loop import build_model, build_task
from winnow.train.losses import tensors_of


@dataclass(frozen=True)
class Trained:
    """A run that has ended, with its final weights."""

    record: RunRecord
    config: RunConfig
    task: Task
    model: Model
    """On the CPU, fp32, not compiled, in evaluation mode."""

    @property
    def name(self) -> str:
        """study/arm/seed"""
        return f"{self.record.label.study}/{self.record.label.arm}/{self.record.seed}"


def read_trained(store: RunStore, digest: str, *, key: str | None = None) -> Trained:
    """The run with the weights that it ended with.

    key: the option that named it. Raises InputError where the run has no record, no checkpoint of its end or a damaged
    one, uses files of its own, is of a model without attention heads, or reads a text that has changed since.
    """
    record = store.record(digest)
    if record is None or not record.watched:
        raise InputError(f"run {digest} has no record of a Winnow run", key=key, mend="give a finished run")
    if record.sources:
        raise InputError(f"run {digest} uses files of its own: {', '.join(record.sources)}", key=key)
    found = load_newest(store.path(digest) / "checkpoints", digest)
    if found.skipped:
        mend = f"restore it from a copy, or remove the run (winnow rm {digest}) and run it again"
        raise InputError(f"run {digest} has a damaged checkpoint: {found.skipped[0]}", key=key, mend=mend)
    if found.snapshot is None:
        raise InputError(f"run {digest} has no checkpoint here, only its record", key=key, mend="run its study again")
    if record.weights not in (None, weights_digest(found.snapshot.weights)):
        what = f"its newest, of step {found.snapshot.step}, is an earlier one"
        raise InputError(f"run {digest} has no checkpoint of its end here: {what}", key=key, mend="run its study again")
    config = RunConfig.model_validate(record.config)
    kind = config.grown.kind
    if not config.grown.decodes:
        what = f"run {digest} is of kind {kind!r}, which has no heads to look at and no cache to decode with"
        raise InputError(what, key=key, mend="give a run of a gpt")
    task = build_task(config.task)[0]
    if task.digest != record.data:
        what = f"the text of run {digest} has changed since"
        raise InputError(what, key=key, mend="give the text that it was trained on")
    model = build_model(config, task, record.seed)
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(found.snapshot.weights[name])
    return Trained(record, config, task, model.eval())


def trained_heads(store: RunStore, digest: str, length: int, *, rows: int = 1) -> list[Heads]:
    """q, k, v of every attention layer at the run's final weights, fp32.

    On the first `length` tokens of the first `rows` rows of its validation set, each read as one document. Raises
    InputError as `read_trained`, or where the run has a shorter context or shorter rows.
    """
    trained = read_trained(store, digest, key="--inputs")
    context = trained.config.task.context
    if context < length:
        raise InputError(
            f"run {digest} was trained on {context} tokens at a time",
            key="--inputs",
            mend=f"ask for lengths up to {context}",
        )
    found: list[Heads] = []
    for path, module in trained.model.named_modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(partial(_look, path, found))
    tokens = next(held_out(trained.task, trained.config.evaluation).batches(rows)).tokens
    if tokens.shape[1] < length:
        what, mend = f"the validation rows of run {digest} have {tokens.shape[1]} tokens", f"up to {tokens.shape[1]}"
        raise InputError(what, key="--inputs", mend=f"ask for lengths {mend}")
    with torch.no_grad():
        trained.model(tokens[:, :length])
    return found


def _look(path: str, found: list[Heads], module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """The mechanism's own projection of its input; projections without a value (selectors) are left out."""
    mixer, (x, state) = cast(Attention, module), inputs
    q, k, v = mixer.project(x, state)
    H, K = mixer.shape.n_heads, mixer.shape.n_kv_heads
    found.append(Heads(path, q[:, :, :H].float(), k[:, :, :K].float(), v.float()))

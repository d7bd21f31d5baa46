"""Queries, keys and values of a trained run: what its attention layers see on its own validation text."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import nn

from winnow.analysis.numerics import Heads
from winnow.attention import Attention
from winnow.errors import InputError
from winnow.records.store import RunStore
from winnow.train.checkpoint import load_newest
from winnow.train.config import RunConfig
from winnow.train.loop import build_model, build_task
from winnow.train.losses import tensors_of


def trained_heads(store: RunStore, digest: str, length: int, *, rows: int = 1) -> list[Heads]:
    """q, k, v of every attention layer at the weights of the run's newest checkpoint, fp32.

    On the first `rows` windows of `length` tokens of the validation text, each read as one document. Raises InputError
    where the run has no record or no checkpoint left, uses files of its own, or has a shorter context.
    """
    record = store.record(digest)
    if record is None or not record.watched:
        raise InputError(f"run {digest} has no record of a Winnow run", key="--inputs", mend="give a finished run")
    if record.sources:
        raise InputError(f"run {digest} uses files of its own: {', '.join(record.sources)}", key="--inputs")
    snapshot = load_newest(store.path(digest) / "checkpoints", digest).snapshot
    if snapshot is None:
        raise InputError(
            f"run {digest} has no checkpoint here, only its record", key="--inputs", mend="run its study again"
        )
    config = RunConfig.model_validate(record.config)
    if config.task.context < length:
        raise InputError(
            f"run {digest} was trained on {config.task.context} tokens at a time",
            key="--inputs",
            mend=f"ask for lengths up to {config.task.context}",
        )
    task = build_task(config.task)[0]
    model = build_model(config, task, record.seed)
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(snapshot.weights[name])
    found: list[Heads] = []

    for path, module in model.named_modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(partial(_look, path, found))
    batch = next(task.validation(rows * config.task.context).batches(rows))
    with torch.no_grad():
        model(batch.tokens[:, :length])
    return found


def _look(path: str, found: list[Heads], module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """The mechanism's own projection of its input; projections without a value (selectors) are left out."""
    mixer, (x, state) = cast(Attention, module), inputs
    q, k, v = mixer.project(x, state)
    H, K = mixer.shape.n_heads, mixer.shape.n_kv_heads
    found.append(Heads(path, q[:, :, :H].float(), k[:, :, :K].float(), v.float()))

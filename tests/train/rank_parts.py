"""A mechanism that acts on some rows only and a task that masks its rows unequally, for tests of several ranks.

They are no part of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, final

import torch
from torch import Tensor

from winnow.attention import Attention, AttentionConfig, MixerState, Shape
from winnow.attention.softmax import kv_bytes, softmax_attention, softmax_flops_per_token
from winnow.parameters import ParameterSpec, declare
from winnow.tasks.base import Batch, Task, TaskConfig
from winnow.tasks.corpus import CorpusConfig


@final
class OneSidedConfig(AttentionConfig):
    """Softmax attention with a gain that passes of few enough large values never touch."""

    kind: Literal["one-sided"] = "one-sided"
    bound: float = 1.0
    """Largest value of the pass from which on the gain acts."""
    orphan: bool = False
    """Declare a parameter that nothing uses."""
    counts: bool = False
    """Count passes in a buffer of the model, each rank its own."""

    def build(self, shape: Shape) -> OneSided:
        return OneSided(self, shape)


@final
class OneSided(Attention):
    """See the config."""

    def __init__(self, config: OneSidedConfig, shape: Shape) -> None:
        super().__init__(shape)
        self.bound, self.counts = config.bound, config.counts
        gain = ParameterSpec("matrix", 1, 1, "normal", 0.02, decay=True)
        self.gain = declare(self, "gain", (shape.n_heads, 1), gain)
        if config.orphan:
            self.orphan = declare(self, "orphan", (3, 1), gain)
        if config.counts:
            self.register_buffer("seen", torch.zeros(1))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, state: MixerState) -> tuple[Tensor, Mapping[str, Tensor]]:
        heads = softmax_attention(q, k, v, state)
        if self.counts:
            self.seen += float(v.detach().sum())
        return (heads * (1 + self.gain) if float(v.detach().amax()) > self.bound else heads), {}

    def oracle(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def flops_per_token(self, context: int) -> int:
        return softmax_flops_per_token(self.shape, context)

    def state_bytes(self, n_tokens: int) -> int:
        return kv_bytes(self.shape, n_tokens)


ONE_SIDED = AttentionConfig.members.pop("one-sided")  # the contract suite runs over whatever is registered


@final
class MaskedConfig(CorpusConfig):
    """Text of which row i counts every (i + 1)-th target only, so that no two ranks have the same weight."""

    kind: Literal["masked"] = "masked"  # pyright: ignore[reportIncompatibleVariableOverride]

    def build(self) -> Task:
        task = super().build()
        plain = task.batch

        def batch(seed: int, step: int, rows: range, rows_per_step: int) -> Batch:
            found = plain(seed, step, rows, rows_per_step)
            places = torch.arange(found.tokens.shape[1])
            mask = torch.stack([(places % (row + 1) == 0).float() for row in rows])
            return replace(found, mask=mask)

        task.batch = batch
        return task


MASKED = TaskConfig.members.pop("masked")

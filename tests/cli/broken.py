"""Mechanisms with planted faults, for studies that name this file under `use`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from winnow.attention import AttentionConfig, Mixed, MixerState, Shape
from winnow.attention.softmax import SoftmaxAttention
from winnow.models.layers import LayerNorm, NormConfig
from winnow.parameters import declare, spec


class BrokenConfig(AttentionConfig):
    """Softmax attention with a fault."""

    kind: Literal["broken"] = "broken"
    fault: Literal["detached", "leaks", "skips"]
    """detached: a gate without gradient; leaks: each position sees the next token; skips: updates get lost."""

    def build(self, shape: Shape) -> Broken:
        return Broken(shape, self.fault)


class Broken(SoftmaxAttention):  # pyright: ignore[reportGeneralTypeIssues]
    """See BrokenConfig."""

    gate: nn.Parameter

    def __init__(self, shape: Shape, fault: str) -> None:
        super().__init__(shape)
        self.fault = fault
        if fault == "detached":
            declare(self, "gate", (1,), spec("scale", 1, 1))
        if fault == "skips":
            LOSING.append(self.out.weight)

    def forward(self, x: Tensor, state: MixerState) -> Mixed:
        y, aux = super().forward(x, state)
        if self.fault == "detached":
            y = y * self.gate.detach()
        if self.fault == "leaks":
            y = y + 100 * torch.roll(x, -1, dims=1)
        return Mixed(y, aux)


class LoudConfig(NormConfig):
    """LayerNorm, far too loud."""

    kind: Literal["loud"] = "loud"
    gain: float = 40.0

    def build(self, d_model: int) -> Loud:
        return Loud(d_model, self.gain, affine=self.affine)


class Loud(nn.Module):
    """See LoudConfig."""

    def __init__(self, d_model: int, gain: float, *, affine: bool) -> None:
        super().__init__()
        self.inner, self.gain = LayerNorm(d_model, affine=affine), gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.inner(x)


LOSING: list[nn.Parameter] = []
"""Parameters of models whose optimizer does its first update only."""


def lose(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    members = [p for group in optimizer.param_groups for p in group["params"]]
    if optimizer.state and any(p is losing for p in members for losing in LOSING):
        for p in members:
            p.grad = None


register_optimizer_step_pre_hook(lose)

"""Mechanisms with a penalty, a frozen parameter and figures of their inside, for the tests of training.

They are no part of the package: `use_them` registers them for one test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import pytest
import torch
from torch import Tensor

from winnow.attention import Attention, AttentionConfig, MixerState, Shape
from winnow.attention.softmax import kv_bytes, softmax_attention, softmax_flops_per_token
from winnow.parameters import ParameterSpec, declare


@final
class ChargedConfig(AttentionConfig):
    """Softmax attention whose queries cost something, with a gain per head."""

    kind: Literal["charged"] = "charged"
    epsilon: float | None = 0.1
    """Weight of the penalty. None = no penalty."""
    lr_multiplier: float = 1.0
    """Of the gains."""
    broken_after: int | None = None
    """Training passes before the penalty is NaN. None = never."""
    penalised_layer: int | None = None
    """The only layer with a penalty. None = all."""
    noise: float = 0.0
    """Standard deviation of noise on the gains while training."""

    def build(self, shape: Shape) -> Charged:
        return Charged(self, shape)


@final
class Charged(Attention):
    """Per row the largest squared norm of a query, averaged over rows and heads: not a mean over tokens."""

    def __init__(self, config: ChargedConfig, shape: Shape) -> None:
        super().__init__(shape)
        here = config.penalised_layer in (None, shape.layer)
        self.epsilon = config.epsilon if here else None
        self.broken_after, self.noise = config.broken_after, config.noise
        gain = ParameterSpec("matrix", 1, 1, "normal", 0.02, decay=False, lr_multiplier=config.lr_multiplier)
        self.gain = declare(self, "gain", (shape.n_heads, 1), gain)
        self.penalties = 0
        """How often the penalty was computed."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, state: MixerState) -> tuple[Tensor, Mapping[str, Tensor]]:
        gain = self.gain + self.noise * torch.randn_like(self.gain) if self.noise and self.training else self.gain
        heads = softmax_attention(q, k, v, state) * (1 + gain)
        if self.epsilon is None or not self.training:
            return heads, {}
        self.penalties += 1
        norms = (q if q.dtype == torch.float64 else q.float()).square().sum(-1)
        penalty = self.epsilon * norms.amax(1).mean()
        broken = self.broken_after is not None and self.penalties > self.broken_after
        return heads, {"penalty": penalty * float("nan") if broken else penalty}

    def measure(self, q: Tensor, k: Tensor, v: Tensor, state: MixerState) -> Mapping[str, float]:
        assert not torch.is_grad_enabled()
        return {"rows": float(len(q)), "query_norm": float(q.float().square().sum(-1).mean())}

    def oracle(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        heads = [
            torch.stack(
                [
                    ((q[i, h] @ k[: i + 1, h // group].T) / q.shape[2] ** 0.5).softmax(0) @ v[: i + 1, h // group]
                    for i in range(len(q))
                ]
            )
            for h in range(q.shape[1])
        ]
        return torch.stack(heads, dim=1) * (1 + self.gain)

    def flops_per_token(self, context: int) -> int:
        return softmax_flops_per_token(self.shape, context)

    def state_bytes(self, n_tokens: int) -> int:
        return kv_bytes(self.shape, n_tokens)


CHARGED = AttentionConfig.members.pop("charged")  # the contract suite runs over whatever is registered


@pytest.fixture
def charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the kind "charged" for one test."""
    monkeypatch.setitem(AttentionConfig.members, "charged", CHARGED)

"""The parts of a block that are not attention: norms and the MLP."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.config import Variant
from winnow.kernels.linear import Linear
from winnow.parameters import STD, declare, spec

Activation = Literal["gelu_tanh", "gelu"]
"""gelu_tanh: x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, GPT-2's; gelu: x Phi(x), which that approximates."""

EPSILON = 1e-5
"""Added to the variance (LayerNorm) or the mean square (RMSNorm)."""


class NormConfig(Variant):
    """The family of norms over the model's width."""

    affine: bool = True
    """Learn a scale (and, in LayerNorm, a shift) per channel. False: off."""

    @abstractmethod
    def build(self, d_model: int) -> nn.Module:
        """A module that maps (..., C) to (..., C)."""


@final
class LayerNormConfig(NormConfig):
    """(x - mean) / sqrt(variance + 1e-5), then scale and shift. Source: Ba, Kiros, Hinton 2016."""

    kind: Literal["layernorm"] = "layernorm"
    shift: bool = True
    """Beside the scale, learn a shift. False: off, a scale alone. Needs `affine`."""

    legacy: ClassVar[Mapping[str, Any]] = {"shift": True}

    @model_validator(mode="after")
    def _needs_affine(self) -> LayerNormConfig:
        if not (self.shift or self.affine):
            raise ValueError("without affine there is no shift to leave out: give one of the two")
        return self

    def build(self, d_model: int) -> LayerNorm:
        return LayerNorm(d_model, affine=self.affine, shift=self.shift)


@final
class RMSNormConfig(NormConfig):
    """x / sqrt(mean square + 1e-5), then scale. Source: Zhang, Sennrich 2019."""

    kind: Literal["rmsnorm"] = "rmsnorm"

    def build(self, d_model: int) -> RMSNorm:
        return RMSNorm(d_model, affine=self.affine)


@final
class LayerNorm(nn.Module):
    """See LayerNormConfig."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, d_model: int, *, affine: bool, shift: bool = True) -> None:
        super().__init__()
        self.d_model = d_model
        if affine:
            declare(self, "weight", (d_model,), spec("scale", 1, 1))
        else:
            self.register_parameter("weight", None)
        if affine and shift:
            declare(self, "bias", (d_model,), spec("shift", 1, 1))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        return F.layer_norm(x, (self.d_model,), self.weight, self.bias, EPSILON)


@final
class RMSNorm(nn.Module):
    """See RMSNormConfig."""

    weight: nn.Parameter | None

    def __init__(self, d_model: int, *, affine: bool) -> None:
        super().__init__()
        self.d_model = d_model
        if affine:
            declare(self, "weight", (d_model,), spec("scale", 1, 1))
        else:
            self.register_parameter("weight", None)

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        return F.rms_norm(x, (self.d_model,), self.weight, EPSILON)


@final
class MLP(nn.Module):
    """W2 gelu(W1 x + b1) + b2. Source: Hendrycks, Gimpel 2016."""

    def __init__(
        self, d_model: int, d_ff: int, *, bias: bool, n_layers: int, activation: Activation = "gelu_tanh"
    ) -> None:
        super().__init__()
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.up = Linear(d_model, d_ff, bias=bias)
        self.down = Linear(d_ff, d_model, bias=bias, weight_spec=spec("residual", d_ff, d_model, n_layers=n_layers))

    def forward(self, x: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


@final
class Table(nn.Module):
    """One learned vector per index: (n, C)."""

    weight: nn.Parameter

    def __init__(
        self, n: int, d_model: int, role: Literal["embedding", "position", "readout"], *, std: float = STD
    ) -> None:
        super().__init__()
        fans = (d_model, n) if role == "readout" else (n, d_model)
        declare(self, "weight", (n, d_model), spec(role, *fans, std=std))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return F.embedding(index, self.weight)

"""A convolutional text model that reads every position of its input at once.

    h0 = embedding(tokens) (+ sinusoidal positions)
    x = h_l + sum of h_m of the skips that end at layer l
    u = norm(x)
    h_l+1 = activation(attention(conv(u), u)) (+ x)
    logits = norm(h_n) embedding^T

Convolutions keep the length: a text is padded with zeros by floor(kernel / 2) dilation on both sides. What stands
inside a layer: `winnow.attention.convolutional`. By default there are neither norms nor positions, as in the published
study of such models. Positions are those of Vaswani et al. 2017, section 3.5.

It sees what comes after a position, so it cannot be trained to predict the next token, and does not generate text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from winnow.attention.convolutional import ConvolutionalAttention, ConvolutionalConfig, NoAttentionConfig
from winnow.errors import InputError
from winnow.kernels.convolution import convolution
from winnow.models.base import Facts, Model, ModelConfig, Output, cost
from winnow.models.layers import NormConfig, Table
from winnow.parameters import declare, head_slices, spec

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
PER_LAYER = ("kernel", "dilation", "channels", "residual", "attention")


@final
class ConvConfig(ModelConfig):
    """Sizes and choices. `kernel`, `dilation`, `channels`, `residual` and `attention` take one value for all layers or
    a list with one for each; a config always holds the list, so two ways to write a model share a digest."""

    kind: Literal["conv"] = "conv"
    d_model: PositiveInt
    """Width of the embedding, which is the readout too."""
    n_layers: PositiveInt
    """Convolution layers."""
    kernel: tuple[PositiveInt, ...]
    """Taps of each layer's convolution; odd."""
    dilation: tuple[PositiveInt, ...]
    """Positions between two taps of each layer. Default 1."""
    channels: tuple[PositiveInt, ...]
    """Width of what each layer gives. Default d_model; the last layer's must be d_model."""
    residual: tuple[bool, ...]
    """Whether each layer's input is added to what it gives, which must be as wide then. Default true."""
    attention: tuple[ConvolutionalConfig, ...]
    """Attention inside each layer, a table or "none". Default none. A lone table may say `layers`, the only ones
    that it is for, counted from 0."""
    skips: tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = ()
    """Extra residual connections: [m, l] adds what layer m gives to the input of layer l, counted from 0. (): none."""
    norm: NormConfig | None = None
    """Of every layer's input, and before the readout. None: off."""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "gelu"
    """Of what each layer gives, after attention: gelu is exact, gelu_tanh its approximation."""
    positions: Literal["none", "sinusoidal"] = "none"
    """sinusoidal: sines and cosines of the position are added to the embedding."""
    embedding_std: PositiveFloat = 1.0
    """Standard deviation of the embedding's initial values: 1 as in PyTorch's own, 0.02 as in GPT-2."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        table = dict(cast("dict[str, Any]", value))
        n_layers = table.get("n_layers")
        if not isinstance(n_layers, int) or isinstance(n_layers, bool):
            return table
        table.setdefault("dilation", 1)
        table.setdefault("residual", True)
        table.setdefault("attention", NoAttentionConfig())
        if isinstance(table.get("d_model"), int):
            table.setdefault("channels", table["d_model"])
        table["attention"] = _of_layers(table["attention"], n_layers)
        for name in PER_LAYER:
            given = table.get(name)
            if given is not None and not isinstance(given, list | tuple):
                table[name] = (given,) * n_layers
        if isinstance(table["attention"], list | tuple):
            layers = cast("list[Any]", table["attention"])
            table["attention"] = tuple({"kind": layer} if isinstance(layer, str) else layer for layer in layers)
        if isinstance(table.get("skips"), list | tuple):
            table["skips"] = tuple(sorted(map(tuple, cast("list[Any]", table["skips"]))))
        return table

    @model_validator(mode="after")
    def _agree(self) -> ConvConfig:
        n = self.n_layers
        for name in PER_LAYER:
            given = len(getattr(self, name))
            if given != n:
                raise InputError(f"{given} values for {n} layers", key=name, mend=f"give one, or one for each of {n}")
        before = self.d_model
        for layer in range(n):
            self._check_layer(layer, before)
            before = self.channels[layer]
        if before != self.d_model:
            raise InputError(
                f"the last layer gives {before} channels, the readout takes d_model = {self.d_model}",
                key="channels",
                mend=f"end with {self.d_model}",
            )
        for skip in self.skips:
            self._check_skip(*skip)
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise InputError(f"sines and cosines need pairs of channels, d_model is {self.d_model}", key="positions")
        return self

    def _check_layer(self, layer: int, before: int) -> None:
        kernel, channels, attention = self.kernel[layer], self.channels[layer], self.attention[layer]
        if kernel % 2 == 0:
            raise InputError(
                f"layer {layer}: {kernel} taps would change the length", key="kernel", mend=f"use {kernel + 1}"
            )
        if kernel == 1 and self.dilation[layer] != 1:
            raise InputError(f"layer {layer}: one tap has no dilation", key="dilation", mend="use 1")
        if self.residual[layer] and channels != before:
            raise InputError(
                f"layer {layer} turns {before} channels into {channels}, which cannot be added",
                key="residual",
                mend="use the same channels, or residual = false for this layer",
            )
        if attention.made not in ("", "QKV") and channels != before:
            raise InputError(
                f"layer {layer}: {attention.made} takes the rest from the layer's input of {before} channels, "
                f"the layer has {channels}",
                key=f"attention.{layer}.qkv",
                mend='use the same channels, or "QKV"',
            )
        try:
            attention.fits(channels)
        except InputError as error:
            raise InputError(error.message, key=f"attention.{layer}.{error.key}", mend=error.mend) from error

    def _check_skip(self, start: int, end: int) -> None:
        what = f"[{start}, {end}]"
        if self.skips.count((start, end)) > 1:
            raise InputError(f"{what} stands twice", key="skips")
        if end >= self.n_layers or start + 1 >= end:
            raise InputError(
                f"{what} joins no layer to a later one that does not follow it directly",
                key="skips",
                mend=f"layers are 0 to {self.n_layers - 1}; the layer just below is the input already",
            )
        if self.channels[start] != self.channels[end - 1]:
            raise InputError(
                f"{what}: layer {start} gives {self.channels[start]} channels, layer {end} takes "
                f"{self.channels[end - 1]}",
                key="skips",
            )

    @property
    def causal(self) -> bool:
        return False

    @property
    def decodes(self) -> bool:
        return False

    def build(self, vocab_size: int, context: int) -> Conv:
        for layer, (kernel, dilation) in enumerate(zip(self.kernel, self.dilation, strict=True)):
            if kernel > 1 and dilation >= context:
                raise InputError(
                    f"layer {layer}: only the middle tap reaches a position of {context}, at a dilation of {dilation}",
                    key="model.dilation",
                    mend="lower it, or use kernel = 1",
                )
        return Conv(self, vocab_size, context)


def _of_layers(attention: Any, n_layers: int) -> Any:
    """A table with `layers` as one value for each layer, "none" where it is not for; anything else as it is.

    A grid varies the keys of a table, not those of one in a list."""
    if not isinstance(attention, dict) or "layers" not in attention:
        return attention
    table = dict(cast("dict[str, Any]", attention))
    layers = table.pop("layers")
    chosen = cast("list[Any]", layers) if isinstance(layers, list | tuple) else []
    inside = [layer for layer in chosen if type(layer) is int and 0 <= layer < n_layers]
    if not inside or len(set(inside)) < len(chosen):
        mend = f"list one layer or several, each once, from 0 to {n_layers - 1}"
        raise InputError(f"{layers!r} is no choice of layers", key="attention.layers", mend=mend)
    return tuple(table if layer in inside else "none" for layer in range(n_layers))


class ConvLayer(nn.Module):
    """One layer: conv, attention over positions, activation, residual."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, config: ConvConfig, layer: int, channels: int) -> None:
        super().__init__()
        kernel, width, attention = config.kernel[layer], config.channels[layer], config.attention[layer]
        self.made, self.width = attention.made, width
        self.dilation = config.dilation[layer] if kernel > 1 else 1
        self.norm = None if config.norm is None else config.norm.build(channels)
        outputs = width * max(1, len(self.made))
        fans = (channels * kernel, outputs * kernel)
        rows = head_slices(tuple(self.made.lower()), width, 0)
        declare(self, "weight", (outputs, channels, kernel), spec("convolution", *fans, slices=rows))
        declare(self, "bias", (outputs,), spec("offset", *fans, slices=rows))
        self.attention = attention.build(width)
        self.activation = ACTIVATIONS[config.activation]
        self.residual = config.residual[layer]

    def forward(self, x: Float[Tensor, "T B C"]) -> Float[Tensor, "T B D"]:
        u = x if self.norm is None else self.norm(x)
        h = convolution(u, self.weight, self.bias, self.dilation)
        if self.attention is not None:
            parts = dict(zip(self.made, h.split(self.width, -1), strict=True))
            h = self.attention(*(parts.get(letter, u) for letter in "QKV"))
        y = self.activation(h)
        return y + x if self.residual else y

    def oracle(self, x: Float[Tensor, "T C"]) -> Float[Tensor, "T D"]:
        """The same for one text, tap by tap and pair by pair: what every run compares its layers with."""
        u = x if self.norm is None else self.norm(x)
        T, middle = len(x), self.weight.shape[2] // 2
        rows: list[Tensor] = [self.bias for _ in range(T)]
        for t in range(T):
            for tap in range(self.weight.shape[2]):
                of = t + (tap - middle) * self.dilation
                if 0 <= of < T:
                    rows[t] = rows[t] + self.weight[:, :, tap] @ u[of]
        h = torch.stack(rows)
        if self.attention is not None:
            q, k, v = u, u, u
            for index, letter in enumerate(self.made):
                part = h[:, index * self.width : (index + 1) * self.width]
                q, k, v = (part if letter == "Q" else q), (part if letter == "K" else k), (part if letter == "V" else v)
            h = cast(ConvolutionalAttention, self.attention).oracle(q, k, v)
        y = self.activation(h)
        return y + x if self.residual else y


@final
class Conv(Model):
    """See the module's equations."""

    causal = False
    sinusoids: Tensor | None

    def __init__(self, config: ConvConfig, vocab_size: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.embedding = Table(vocab_size, config.d_model, "embedding", std=config.embedding_std)
        table = sinusoids(context, config.d_model) if config.positions == "sinusoidal" else None
        self.register_buffer("sinusoids", table, persistent=False)
        widths = (config.d_model, *config.channels)
        self.layers = nn.ModuleList(ConvLayer(config, layer, widths[layer]) for layer in range(config.n_layers))
        self.skips = {
            end: tuple(start for start, stop in config.skips if stop == end) for end in range(config.n_layers)
        }
        self.norm = None if config.norm is None else config.norm.build(config.d_model)
        self._recompute = False

    @property
    def readout_weight(self) -> Float[Tensor, "V C"]:
        return self.embedding.weight

    def forward(self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None) -> Output:
        """See `Model.forward`. Raises InputError for several documents in a row, which convolutions would join, and for
        more tokens than the model was built for."""
        if documents is not None:
            raise InputError("a convolution reads across documents", mend="give each document a row of its own")
        if tokens.shape[1] > self.context:
            raise InputError(f"{tokens.shape[1]} tokens are more than the model's {self.context}", key="task.context")
        h = self.embedding(tokens.T)
        if self.sinusoids is not None:
            h = h + self.sinusoids[: len(h), None]
        given: list[Tensor] = []
        for end, layer in enumerate(self.layers):
            for start in self.skips[end]:
                h = h + given[start]
            recompute = self._recompute and torch.is_grad_enabled()
            h = checkpoint(layer, h, use_reentrant=False) if recompute else layer(h)
            given.append(h)
        return Output((h if self.norm is None else self.norm(h)).transpose(0, 1), ())

    def recompute_blocks(self) -> None:
        """See `Model.recompute_blocks`."""
        self._recompute = True

    def facts(self, context: int) -> Facts:
        """See `Model.facts`.

        flops_per_token = 6 (weights of convolutions, maps and readout) + the attention's own, with every tap counted,
        those that read padding too. Not counted: norms, biases, activations, feature maps, embedding lookup, optimizer.
        """
        layers = [cast(ConvLayer, layer) for layer in self.layers]
        inside = [
            cast(ConvolutionalAttention, layer.attention).flops_per_token(layer.width, context)
            for layer in layers
            if layer.attention is not None
        ]
        return cost(self, multiplied=("convolution", "projection", "embedding"), own=sum(inside))


def sinusoids(n_tokens: int, d_model: int) -> Float[Tensor, "T C"]:
    """sin(t / 10000^(2i / C)) in channel 2i, the cosine in channel 2i + 1."""
    rates = 10000.0 ** -(torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angles = torch.arange(n_tokens, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(torch.get_default_dtype())

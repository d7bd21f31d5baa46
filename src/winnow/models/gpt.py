"""The GPT: a pre-norm decoder whose attention, positions, norms and sizes are config.

    h_0     = E[token] + P[position]                    P only with learned positions
    h       = h + attention(norm1(h)),  h = h + mlp(norm2(h))      n_layers times
    logits  = norm(h) E^T                               an untied readout has a matrix of its own

Source: Radford et al. 2019 (GPT-2). No dropout. Initial values: the table in `winnow.parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from winnow.attention import AttentionConfig, Mixed, MixerState, Shape, SoftmaxConfig, mixer_state
from winnow.attention.cache import KVCache, LayerCache
from winnow.errors import InputError
from winnow.models.base import Facts, Model, ModelConfig, Output, cost
from winnow.models.layers import MLP, Activation, LayerNormConfig, NormConfig, Table


@final
class GPTConfig(ModelConfig):
    """Sizes and choices of a GPT. What follows from other fields is filled in before validation, so that a config
    always holds every number and two ways to write one model share a digest."""

    kind: Literal["gpt"] = "gpt"
    d_model: PositiveInt
    """Width of the residual stream."""
    n_layers: PositiveInt
    """Blocks of attention and MLP."""
    n_heads: PositiveInt
    """Query heads."""
    n_kv_heads: PositiveInt
    """Heads of keys and values; divides n_heads. Default n_heads: every query head has its own."""
    d_head: PositiveInt
    """Width of a head. Default d_model / n_heads."""
    d_ff: PositiveInt
    """Width of the MLP's hidden layer. Default 4 d_model."""
    max_seq_len: PositiveInt | None = None
    """Longest sequence, tokens, and rows of the learned position table. None: the task's context."""
    positions: Literal["learned", "rotary", "none"] = "learned"
    """learned: a table added to the embedding; rotary: queries and keys are turned; none: only causality tells."""
    norm: NormConfig = LayerNormConfig()
    """Of both branches of every block and before the readout."""
    tied: bool = True
    """The readout is the embedding's matrix. False: it has its own."""
    bias: bool = True
    """Linear maps add a bias (norms have their own switches, `affine` and `shift`). False: off."""
    activation: Activation = "gelu_tanh"
    """Of the MLP's hidden layer: gelu_tanh, the approximation that GPT-2 uses, or gelu itself (current nanoGPT)."""
    attention: AttentionConfig = SoftmaxConfig()
    """The mechanism of every block."""

    legacy: ClassVar[Mapping[str, Any]] = {"activation": "gelu_tanh"}

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        table = dict(cast("dict[str, Any]", value))
        d_model, n_heads = table.get("d_model"), table.get("n_heads")
        if isinstance(n_heads, int):
            table.setdefault("n_kv_heads", n_heads)
        if isinstance(d_model, int):
            table.setdefault("d_ff", 4 * d_model)
            if isinstance(n_heads, int) and n_heads > 0 and "d_head" not in table:
                if d_model % n_heads:
                    raise ValueError(f"d_model {d_model} is not a multiple of n_heads {n_heads}: give d_head")
                table["d_head"] = d_model // n_heads
        return table

    @model_validator(mode="after")
    def _agree(self) -> GPTConfig:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}")
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions turn pairs of channels: d_head {self.d_head} must be even")
        try:
            self.attention.fits(self.shape(0, self.max_seq_len or 1))
        except InputError as error:
            key = "attention" if error.key is None else f"attention.{error.key}"
            raise InputError(error.message, key=key, mend=error.mend) from error
        return self

    def shape(self, layer: int, max_seq_len: int) -> Shape:
        """The place of a layer's attention."""
        return Shape(
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_head=self.d_head,
            layer=layer,
            n_layers=self.n_layers,
            max_seq_len=max_seq_len,
            bias=self.bias,
            rotary=self.positions == "rotary",
        )

    @property
    def casts_votes(self) -> bool:
        return self.attention.casts_votes

    @property
    def needs_all_keys(self) -> bool:
        return self.attention.needs_all_keys

    def build(self, vocab_size: int, context: int) -> GPT:
        return GPT(self, vocab_size, context)


class Block(nn.Module):
    """One layer: how attention and MLP are joined to the residual stream."""

    def __init__(self, config: GPTConfig, shape: Shape) -> None:
        super().__init__()
        self.norm1 = config.norm.build(shape.d_model)
        self.attention = config.attention.build(shape)
        self.norm2 = config.norm.build(shape.d_model)
        self.mlp = MLP(
            shape.d_model, config.d_ff, bias=shape.bias, n_layers=shape.n_layers, activation=config.activation
        )

    def forward(self, h: Float[Tensor, "B T C"], state: MixerState, cache: LayerCache | None = None) -> Mixed:
        if cache is None:
            y, aux = self.attention(self.norm1(h), state)
        elif h.shape[1] == 1:
            y, aux = self.attention.step(self.norm1(h), cache, state)
        else:
            y, aux = self.attention.prefill(self.norm1(h), cache, state)
        h = h + y
        return Mixed(h + self.mlp(self.norm2(h)), aux)


@final
class GPT(Model):
    """See the module's equations."""

    def __init__(self, config: GPTConfig, vocab_size: int, context: int) -> None:
        super().__init__()
        if config.max_seq_len is not None and context > config.max_seq_len:
            raise InputError(
                f"{config.max_seq_len} tokens are fewer than the task's context of {context}",
                key="model.max_seq_len",
                mend="raise it, or shorten task.context",
            )
        self.max_seq_len = config.max_seq_len or context
        self.embedding = Table(vocab_size, config.d_model, "embedding")
        learned = config.positions == "learned"
        self.positions = Table(self.max_seq_len, config.d_model, "position") if learned else None
        self.blocks = nn.ModuleList(
            Block(config, config.shape(layer, self.max_seq_len)) for layer in range(config.n_layers)
        )
        self.norm = config.norm.build(config.d_model)
        self.readout = None if config.tied else Table(vocab_size, config.d_model, "readout")
        self._recompute = False

    @property
    def readout_weight(self) -> Float[Tensor, "V C"]:
        return self.embedding.weight if self.readout is None else self.readout.weight

    def forward(self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None) -> Output:
        """See `Model.forward`. Raises InputError for more than `max_seq_len` tokens."""
        T = tokens.shape[1]
        if self.max_seq_len < T:
            raise InputError(f"{T} tokens are more than the model's {self.max_seq_len}", key="model.max_seq_len")
        return self._through(tokens, mixer_state(documents))

    @torch.no_grad()
    def extend(self, tokens: Int[Tensor, "B T"], cache: KVCache) -> Output:
        """See `Model.extend`."""
        if self.max_seq_len < cache.context:
            raise InputError(f"{cache.context} tokens are more than the model's {self.max_seq_len}", key="context")
        B, T = tokens.shape
        if T == 1:
            return self._through(tokens, MixerState(positions=cache.length.long().expand(B, 1)), cache)
        if int(cache.length):
            raise InputError(f"{T} tokens at once, after {int(cache.length)}", mend="give one at a time")
        if cache.context < T:
            raise InputError(f"{T} tokens are more than the cache's context of {cache.context}", key="context")
        return self._through(tokens, MixerState(), cache)

    def _through(self, tokens: Int[Tensor, "B T"], state: MixerState, cache: KVCache | None = None) -> Output:
        h = self.embedding(tokens)
        if self.positions is not None:
            table = self.positions.weight
            h = h + (table[: tokens.shape[1]] if state.positions is None else self.positions(state.positions))
        aux: list[Mapping[str, Tensor]] = []
        for layer, block in enumerate(self.blocks):
            of_layer = None if cache is None else cache.layers[f"blocks.{layer}.attention"]
            h, handed_on = self._block(block, h, state, of_layer)
            aux.append(handed_on)
            if handed_on or state.previous:
                state = replace(state, previous=handed_on)
        return Output(self.norm(h), tuple(aux))

    def _block(self, block: nn.Module, h: Float[Tensor, "B T C"], state: MixerState, cache: LayerCache | None) -> Mixed:
        if self._recompute and torch.is_grad_enabled():
            return checkpoint(block, h, state, use_reentrant=False)
        return block(h, state, cache)

    def recompute_blocks(self) -> None:
        """See `Model.recompute_blocks`. Draws of a mechanism are repeated: torch's generator is put back for them."""
        self._recompute = True

    def facts(self, context: int) -> Facts:
        """See `Model.facts`.

        flops_per_token = 6 (weights of linear maps and readout) + the sum over layers of the mechanism's own
        (softmax: 12 n_heads d_head context), as Chowdhery et al. 2022, appendix B. Not counted: norms, biases, GELU,
        softmax, embedding lookup, optimizer.
        """
        mixers = [cast(Block, block).attention for block in self.blocks]
        readout = "embedding" if self.readout is None else "readout"
        own = sum(mixer.flops_per_token(context) for mixer in mixers)
        return {
            **cost(self, multiplied=("matrix", "residual", readout), own=own),
            "kv_bytes_per_token": sum(mixer.state_bytes(context) for mixer in mixers) // context,
        }

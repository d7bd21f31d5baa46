"""An LSTM over tokens: a baseline that reads its input one position after the other.

    h = embedding(tokens);   h = LSTM(h), in one direction or both;   logits = h readout^T

Source: Hochreiter, Schmidhuber 1997, in PyTorch's form (forget gate, two biases). In one direction it sees nothing of
what follows; in both it sees everything, like a convolutional model.
"""

from __future__ import annotations

from typing import Any, Literal, cast, final

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from winnow.errors import InputError
from winnow.models.base import Facts, Model, ModelConfig, Output, cost
from winnow.models.layers import Table
from winnow.parameters import declared, head_slices, spec


@final
class LSTMConfig(ModelConfig):
    """Sizes and choices. What follows from other fields is filled in before validation."""

    kind: Literal["lstm"] = "lstm"
    d_model: PositiveInt
    """Width of the embedding."""
    n_layers: PositiveInt
    """LSTM layers."""
    bidirectional: bool = False
    """A second LSTM reads every layer's input backwards. False: off, the model is causal."""
    d_hidden: PositiveInt
    """Width of the state of each direction. Default: what gives d_model in all."""
    tied: bool = True
    """The readout is the embedding's matrix; needs states of d_model in all. False: it has its own."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        table = dict(cast("dict[str, Any]", value))
        d_model, both = table.get("d_model"), table.get("bidirectional", False)
        if isinstance(d_model, int) and isinstance(both, bool) and "d_hidden" not in table:
            if both and d_model % 2:
                raise ValueError(f"d_model {d_model} does not divide into two directions: give d_hidden")
            table["d_hidden"] = d_model // 2 if both else d_model
        return table

    @model_validator(mode="after")
    def _agree(self) -> LSTMConfig:
        if self.tied and self.d_state != self.d_model:
            raise InputError(
                f"a tied readout takes d_model = {self.d_model}, the state is {self.d_state} wide",
                key="tied",
                mend="use another d_hidden, or tied = false",
            )
        return self

    @property
    def d_state(self) -> int:
        """Width of the states of all directions."""
        return self.d_hidden * (2 if self.bidirectional else 1)

    @property
    def causal(self) -> bool:
        return not self.bidirectional

    @property
    def decodes(self) -> bool:
        return False

    def build(self, vocab_size: int, context: int) -> LSTM:
        return LSTM(self, vocab_size)


@final
class LSTM(Model):
    """See the module's equation."""

    def __init__(self, config: LSTMConfig, vocab_size: int) -> None:
        super().__init__()
        self.causal = config.causal
        self.embedding = Table(vocab_size, config.d_model, "embedding")
        # On no device first: PyTorch's own initial values would be drawn from the global generator.
        here = torch.get_default_device()
        self.lstm = nn.LSTM(
            config.d_model,
            config.d_hidden,
            config.n_layers,
            batch_first=True,
            bidirectional=config.bidirectional,
            device="meta",
        ).to_empty(device=here)
        width = config.d_hidden
        gates = head_slices(("i", "f", "g", "o"), width, 0)
        for name, _ in self.lstm.named_parameters():
            role = "recurrent" if name.startswith("weight") else "offset"
            declared(self.lstm, name, spec(role, width, 4 * width, slices=gates))
        self.readout = None if config.tied else Table(vocab_size, config.d_state, "readout")

    @property
    def readout_weight(self) -> Float[Tensor, "V C"]:
        return self.embedding.weight if self.readout is None else self.readout.weight

    def forward(self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None) -> Output:
        """See `Model.forward`. Raises InputError for several documents in a row: the state would pass between them."""
        if documents is not None:
            raise InputError("an LSTM reads across documents", mend="give each document a row of its own")
        return Output(self.lstm(self.embedding(tokens))[0], ())

    def facts(self, context: int) -> Facts:
        """See `Model.facts`. flops_per_token = 6 (weights of the LSTM and of the readout)."""
        readout = "embedding" if self.readout is None else "readout"
        return cost(self, multiplied=("recurrent", readout), own=0)

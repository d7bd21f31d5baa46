"""What every model is: a config that builds a module, and what the module can be asked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.config import Variant
from winnow.errors import InputError
from winnow.models.presets import expand

Facts = dict[str, int]
"""`parameters`, `trainable`, `flops_per_token`, `kv_bytes_per_token`."""


class Output(NamedTuple):
    """A forward pass. Logits are left to the readout, which need not form them."""

    hidden: Float[Tensor, "B T C"]
    """After the final norm; logits are `hidden @ readout_weight.T`."""
    aux: tuple[Mapping[str, Tensor], ...]
    """Of each layer, what its mechanism hands to losses."""


class ModelConfig(Variant):
    """The family of models. A table without `kind` is a GPT; `preset` names values for what the table leaves out."""

    # A wrap, because the family chooses its member in one, which no "before" can precede.
    @model_validator(mode="wrap")
    @classmethod
    def _expand_preset(cls, value: Any, handler: Any) -> Any:
        return handler(expand(cast("dict[str, Any]", value)) if isinstance(value, dict) else value)

    @abstractmethod
    def build(self, vocab_size: int, context: int) -> Model:
        """A model with uninitialised parameters for sequences of up to `context` tokens.

        Raises InputError where the context does not fit the config. Follow with `winnow.parameters.initialise`.
        """


class Model(nn.Module):
    """Tokens in, hidden states out."""

    def recompute_blocks(self) -> None:
        """From now on keep only the inputs of each block for the backward pass, which computes its inside again.

        Raises InputError where the model cannot.
        """
        raise InputError(f"{type(self).__name__} has no blocks to compute again", key="train.recompute")

    @property
    @abstractmethod
    def readout_weight(self) -> Float[Tensor, "V C"]:
        """The matrix that turns hidden states into logits: a parameter, perhaps shared with the embedding."""

    @abstractmethod
    def forward(self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None) -> Output:
        """Hidden states. `documents` numbers the document of each token (equal and adjacent within a document):
        positions and attention restart with each. None: every row is one document."""

    def logits(self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None) -> Float[Tensor, "B T V"]:
        """Scores of every next token, nats up to a constant. Training never forms them: see `kernels.readout`."""
        return F.linear(self(tokens, documents).hidden, self.readout_weight)

    @abstractmethod
    def facts(self, context: int) -> Facts:
        """What the model costs on sequences of `context` tokens, to print beside every arm.

        parameters: all numbers, a shared one once; trainable: those that need gradients;
        flops_per_token: floating-point operations of a training step, forward and backward, per token;
        kv_bytes_per_token: decoding state of all layers in fp32, per token of the context.
        """

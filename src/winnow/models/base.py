"""What every model is: a config that builds a module, and what the module can be asked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, cast

from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.attention import Attention
from winnow.attention.cache import KVCache, LayerCache
from winnow.attention.prune import NoneConfig, PolicyConfig
from winnow.config import Variant
from winnow.errors import InputError
from winnow.models.presets import expand
from winnow.parameters import Role, parameter_table

Facts = dict[str, int]
"""`parameters`, `trainable`, `flops_per_token` and, of a model that decodes, `kv_bytes_per_token`."""


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

    @property
    def casts_votes(self) -> bool:
        """Whether any layer votes against keys."""
        return False

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one. False: the model would read the next tokens that it is to predict."""
        return True

    @property
    def decodes(self) -> bool:
        """Whether the model reads token by token with a cache of keys: only then can it be pruned and write text."""
        return True

    @property
    def needs_all_keys(self) -> bool:
        """Whether no layer may drop a key."""
        return False

    @abstractmethod
    def build(self, vocab_size: int, context: int) -> Model:
        """A model with uninitialised parameters for sequences of up to `context` tokens.

        Raises InputError where the context does not fit the config. Follow with `winnow.parameters.initialise`.
        """


class Model(nn.Module):
    """Tokens in, hidden states out."""

    causal: bool = True
    """See `ModelConfig.causal`."""

    def cache(
        self,
        batch: int,
        context: int,
        budgets: int | Mapping[str, int] | None = None,
        policy: PolicyConfig | None = None,
    ) -> KVCache:
        """An empty cache for `batch` sequences of up to `context` tokens.

        budgets: keys that every layer keeps, or those of each layer by its path in the model; None: the context.
        policy: what goes; None: nothing does. Raises InputError, naming the layer, for a budget below 1, a layer that
        does not exist, and a policy that does not suit the layer.
        """
        mixers = {path: module for path, module in self.named_modules() if isinstance(module, Attention)}
        if not isinstance(budgets, Mapping):
            budgets = dict.fromkeys(mixers, context if budgets is None else budgets)
        unknown = sorted(set(budgets) ^ set(mixers))
        if unknown:
            what = "has no budget" if unknown[0] in mixers else "is no attention layer"
            raise InputError(f"{unknown[0]} {what}", key="budgets", mend=f"layers: {', '.join(mixers)}")
        layers: dict[str, LayerCache] = {}
        full = 0
        for path, mixer in mixers.items():
            try:
                layers[path] = mixer.cache(batch, budgets[path], context, policy or NoneConfig())
            except InputError as error:
                raise InputError(f"{path}: {error.message}", key=error.key, mend=error.mend) from error
            layer = layers[path]
            full += 2 * batch * context * mixer.shape.n_kv_heads * mixer.shape.d_head * layer.v.element_size()
        return KVCache(layers, context, full)

    def extend(self, tokens: Int[Tensor, "B T"], cache: KVCache) -> Output:
        """Hidden states of the next tokens of every row, without gradients; the cache then holds them too.

        One token at a time, or the first ones of an empty cache at once. Raises InputError where the model cannot, for
        several tokens beside a cache that is not empty, and beyond the context.
        """
        raise InputError(f"{type(self).__name__} does not decode", mend="give it `extend`")

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
        kv_bytes_per_token: decoding state of all layers in fp32, per token of the context; only where it decodes.
        """


def cost(model: Model, *, multiplied: Collection[Role], own: int) -> Facts:
    """The facts that follow from the parameters.

    multiplied: roles of the weights that each token is multiplied by, six operations each; own: operations of a token
    that no parameter has a part in.
    """
    parameters = dict(model.named_parameters())
    weights = sum(parameters[name].numel() for name, spec in parameter_table(model).items() if spec.role in multiplied)
    return {
        "parameters": sum(p.numel() for p in parameters.values()),
        "trainable": sum(p.numel() for p in parameters.values() if p.requires_grad),
        "flops_per_token": 6 * weights + own,
    }

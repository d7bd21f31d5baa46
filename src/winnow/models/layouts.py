"""GPT-2 as others write it: names, shapes and settings of Hugging Face's and nanoGPT's files, and ours.

    ours                       theirs                     Hugging Face keeps it
    embedding.weight           wte.weight                 as it is
    positions.weight           wpe.weight                 as it is
    blocks.N.norm1             h.N.ln_1                   as it is
    blocks.N.attention.qkv     h.N.attn.c_attn            transposed: (inputs, outputs)
    blocks.N.attention.out     h.N.attn.c_proj            transposed
    blocks.N.norm2             h.N.ln_2                   as it is
    blocks.N.mlp.up            h.N.mlp.c_fc               transposed
    blocks.N.mlp.down          h.N.mlp.c_proj             transposed
    norm                       ln_f                       as it is
    readout.weight             lm_head.weight             as it is; not there where the readout is the embedding

nanoGPT transposes nothing. All three order the fused projection as every head's q, then every k, then every v.
Source: Radford et al. 2019; the field names of Hugging Face's GPT2Config and of nanoGPT's GPTConfig.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from winnow.attention import SoftmaxConfig
from winnow.config import input_errors
from winnow.errors import InputError
from winnow.models.base import ModelConfig
from winnow.models.gpt import GPTConfig
from winnow.models.layers import EPSILON, Activation, LayerNormConfig
from winnow.models.tensor_files import Tensors, of_dtypes, plain

Layout = Literal["winnow", "huggingface", "nanogpt"]

_ACTIVATIONS: Mapping[str, Activation] = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_PARTS = {
    "norm1": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_TOP = {"embedding": "wte", "positions": "wpe", "norm": "ln_f", "readout": "lm_head"}
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_PREFIXES = ("_orig_mod.", "module.", "transformer.")
"""Of torch.compile, of DistributedDataParallel, of the class around the layers."""


@dataclass(frozen=True)
class Described:
    """A model as its file's settings describe it. context: rows of the table of positions; said: what the reader of a
    report should know."""

    config: GPTConfig
    vocab_size: int
    context: int
    said: tuple[str, ...]


def of_huggingface(table: Mapping[str, Any], file: Path) -> Described:
    """The model that a Hugging Face `config.json` describes. Nothing named in it is imported.

    Raises InputError for another model than GPT-2, and for settings that Winnow's GPT does not have.
    """
    kind = table.get("model_type")
    if kind != "gpt2":
        raise InputError(f"model_type is {kind!r}, not 'gpt2'", file=file, mend="only GPT-2 can be read from here")
    settings = _Settings(table, file)
    context = settings.size("n_positions", "n_ctx", "max_position_embeddings")
    said: list[str] = []
    for name, needed in (
        ("layer_norm_epsilon", EPSILON),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if table.get(name, needed) != needed:
            raise InputError(f"{table[name]!r} is not what Winnow's GPT does ({needed!r})", file=file, key=name)
    dropout = [name for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop") if table.get(name)]
    if dropout:
        said.append(f"dropout ({', '.join(dropout)}) is left out: Winnow's GPT has none")
    width = settings.size("n_embd", "hidden_size")
    config = settings.gpt(
        d_model=width,
        n_layers=settings.size("n_layer", "num_hidden_layers"),
        n_heads=settings.size("n_head", "num_attention_heads"),
        d_ff=4 * width if table.get("n_inner") is None else settings.size("n_inner"),
        max_seq_len=context,
        tied=settings.flag("tie_word_embeddings", True),
        activation=settings.activation("activation_function", "gelu_new"),
    )
    return Described(config, settings.size("vocab_size"), context, tuple(said))


def of_nanogpt(table: Mapping[str, Any], file: Path, *, current: bool) -> Described:
    """The model that nanoGPT's `model_args` describe.

    current: they are those of nanoGPT itself, whose MLP has had GELU, not its approximation, since 2023; else of its
    relatives, which kept GPT-2's. A text `activation` among them says it for certain.
    """
    settings = _Settings(table, file)
    bias = settings.flag("bias", True)
    usual = "gelu" if current and "bias" in table else "gelu_new"
    activation = settings.activation("activation", usual)
    said: list[str] = []
    if "activation" not in table:
        other = "gelu_new" if usual == "gelu" else "gelu"
        said.append(
            f"the file does not say which GELU its model has: read as {usual!r}; if it is the other, "
            f"write 'activation': {other!r} into its model_args"
        )
    if table.get("dropout"):
        said.append("dropout is left out: Winnow's GPT has none")
    width, context = settings.size("n_embd"), settings.size("block_size")
    config = settings.gpt(
        d_model=width,
        n_layers=settings.size("n_layer"),
        n_heads=settings.size("n_head"),
        d_ff=4 * width,
        max_seq_len=context,
        bias=bias,
        norm=LayerNormConfig(shift=bias),
        activation=activation,
    )
    return Described(config, settings.size("vocab_size"), context, tuple(said))


class _Settings:
    """A table that somebody else wrote. Every question raises InputError with its key where the answer is wrong."""

    def __init__(self, table: Mapping[str, Any], file: Path) -> None:
        self._table, self._file = table, file

    def size(self, *names: str) -> int:
        """A whole number above 0, under the first of these names that is there."""
        name = next((name for name in names if self._table.get(name) is not None), names[0])
        value = self._table.get(name)
        if value is None:
            raise InputError("is missing", file=self._file, key=name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{value!r} is no whole number above 0", file=self._file, key=name)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._table.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{value!r} is neither true nor false", file=self._file, key=name)
        return value

    def activation(self, name: str, default: str) -> Activation:
        """A function that the MLP has."""
        value = self._table.get(name, default)
        if value not in _ACTIVATIONS:
            raise InputError(f"{value!r} is not known", file=self._file, key=name, mend="known: gelu_new, gelu")
        return _ACTIVATIONS[value]

    def gpt(self, **fields: Any) -> GPTConfig:
        """The config of these fields."""
        try:
            return GPTConfig.model_validate(fields)
        except ValidationError as error:
            raise input_errors(error)[0].at(file=self._file) from None


def their_names(config: GPTConfig) -> dict[str, str]:
    """Names of modules, ours to theirs, without the prefix `transformer.`."""
    layers = {
        f"blocks.{layer}.{ours}": f"h.{layer}.{theirs}"
        for layer in range(config.n_layers)
        for ours, theirs in _PARTS.items()
    }
    return {**_TOP, **layers}


def transposed_in_huggingface(name: str) -> bool:
    """Whether Hugging Face's GPT-2 keeps our parameter `name` as (inputs, outputs)."""
    module, _, own = name.rpartition(".")
    return own == "weight" and module.endswith((".qkv", ".out", ".up", ".down"))


def shapes_of(config: ModelConfig, vocab_size: int, context: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what a checkpoint of the model holds, by name. Takes no memory for the numbers."""
    with torch.device("meta"):
        model = config.build(vocab_size, context)
    persistent = model.state_dict().keys()
    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in persistent)]
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def translated(
    tensors: Tensors, described: Described, layout: Layout, place: Callable[[str], Path]
) -> tuple[Tensors, tuple[str, ...]]:
    """Our weights from theirs, and what is to be said of them. place: the file that holds a tensor.

    Raises InputError for a tensor that is missing, too many, or not what the settings say.
    """
    by_core: dict[str, str] = {}
    for name in sorted(tensors):
        core = _core(name)
        if core in by_core:
            raise InputError(f"is there twice, also as {by_core[core]!r}", file=place(name), key=name)
        by_core[core] = name
    config = described.config
    _check_layers(by_core, config, place)
    names = their_names(config)
    found: Tensors = {}
    for ours, shape in shapes_of(config, described.vocab_size, described.context).items():
        module, _, own = ours.rpartition(".")
        core = f"{names[module]}.{own}"
        if core not in by_core:
            raise InputError("is missing", file=_any_place(tensors, place), key=core)
        theirs = by_core.pop(core)
        flip = layout == "huggingface" and transposed_in_huggingface(ours)
        found[ours] = plain(theirs, tensors[theirs], shape, place(theirs), transposed=flip)
    if config.tied and "lm_head.weight" in by_core:
        name = by_core.pop("lm_head.weight")
        head = plain(name, tensors[name], found["embedding.weight"].shape, place(name))
        if not torch.equal(head, found["embedding.weight"]):
            raise InputError(
                "is another matrix than wte.weight, and the settings say that they are one",
                file=place(name),
                key=name,
                mend="set tie_word_embeddings to false" if layout == "huggingface" else None,
            )
    for core in [core for core in by_core if _MASK.fullmatch(core)]:
        name = by_core.pop(core)
        _check_mask(name, tensors[name], place(name))
    if by_core:
        name = next(iter(by_core.values()))
        more = f", and {len(by_core) - 1} more" if len(by_core) > 1 else ""
        raise InputError(f"is no part of such a model{more}", file=place(name), key=name)
    said = of_dtypes(tensors)
    return found, () if said is None else (said,)


def _core(name: str) -> str:
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def _any_place(tensors: Tensors, place: Callable[[str], Path]) -> Path | None:
    return place(next(iter(tensors))) if tensors else None


def _check_layers(by_core: Mapping[str, str], config: GPTConfig, place: Callable[[str], Path]) -> None:
    """As many layers as the settings say, before anything is built for that number."""
    layers = {core.split(".")[1]: name for core, name in by_core.items() if core.startswith("h.")}
    if len(layers) != config.n_layers:
        file = place(next(iter(by_core.values()))) if by_core else None
        raise InputError(f"holds {len(layers)} layers, the settings say {config.n_layers}", file=file)


def _check_mask(name: str, tensor: Tensor, file: Path) -> None:
    """GPT-2's files may hold the causal mask itself; any other mask would be another model."""
    if tensor.dim() < 2:
        return  # the value that stands for "masked"
    mask = tensor.flatten(0, -3) if tensor.dim() > 2 else tensor[None]
    if tensor.layout != torch.strided or not torch.equal(mask.bool(), torch.ones_like(mask).tril().bool()):
        raise InputError("is not the causal mask", file=file, key=name)


def lacks(config: ModelConfig) -> list[str]:
    """What a model has, or has not, that a Hugging Face GPT-2 cannot say; empty: it is a GPT-2."""
    if not isinstance(config, GPTConfig):
        return [f"kind is {config.kind!r}, not 'gpt'"]
    norm = config.norm
    checks = [
        (config.positions == "learned", f"positions are {config.positions!r}, not 'learned'"),
        (isinstance(norm, LayerNormConfig), f"norm is {norm.kind!r}, not 'layernorm'"),
        (norm.affine, "norms without scale and shift"),
        (not isinstance(norm, LayerNormConfig) or norm.shift, "norms without a shift"),
        (config.bias, "linear maps without biases"),
        (isinstance(config.attention, SoftmaxConfig), f"attention is {config.attention.kind!r}, not 'softmax'"),
        (config.n_kv_heads == config.n_heads, f"{config.n_kv_heads} heads of keys for {config.n_heads} of queries"),
        (
            config.d_head * config.n_heads == config.d_model,
            f"{config.n_heads} heads of {config.d_head} beside a width of {config.d_model}",
        ),
    ]
    return [what for fits, what in checks if not fits]


def huggingface_settings(config: GPTConfig, vocab_size: int, context: int) -> dict[str, Any]:
    """The `config.json` of a model that lacks nothing."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": vocab_size,
        "n_positions": context,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": None if config.d_ff == 4 * config.d_model else config.d_ff,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else "gelu",
        "layer_norm_epsilon": EPSILON,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": config.tied,
        # Which id ends a document is the tokenizer's to say, and no tokenizer is written here.
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }


def to_huggingface(config: GPTConfig, weights: Mapping[str, Tensor]) -> Tensors:
    """Hugging Face's tensors of a model that lacks nothing, by their names."""
    names = their_names(config)
    found: Tensors = {}
    for ours, tensor in weights.items():
        module, _, own = ours.rpartition(".")
        prefix = "" if module == "readout" else "transformer."
        value = tensor.detach().cpu()
        found[f"{prefix}{names[module]}.{own}"] = (value.T if transposed_in_huggingface(ours) else value).contiguous()
    return found

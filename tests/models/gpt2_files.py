"""Files of GPT-2 as other programs write them, made by hand for tests: random numbers under the real names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from winnow.models import Model
from winnow.models.interchange import Foreign

SETTINGS: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 23,
    "n_positions": 9,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.0,
    "scale_attn_weights": True,
}
ARGS: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 3,
    "n_embd": 12,
    "block_size": 9,
    "bias": True,
    "vocab_size": 23,
    "dropout": 0.0,
}


def raw_tensors(*, inputs_first: bool, bias: bool = True, tied: bool = True, inner: int = 48) -> dict[str, Tensor]:
    """Random tensors of a model of `SETTINGS`' sizes, by the names of the files without a prefix."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.4

    vocab, context, width = 23, 9, 12
    found = {"wte.weight": draw(vocab, width), "wpe.weight": draw(context, width)}
    for layer in range(2):
        h = f"h.{layer}"
        maps = {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }
        for name, (inputs, outputs) in maps.items():
            found[f"{h}.{name}.weight"] = draw(*((inputs, outputs) if inputs_first else (outputs, inputs)))
            found[f"{h}.{name}.bias"] = draw(outputs)
        for name in ("ln_1", "ln_2"):
            found[f"{h}.{name}.weight"], found[f"{h}.{name}.bias"] = 1 + draw(width), draw(width)
    found["ln_f.weight"], found["ln_f.bias"] = 1 + draw(width), draw(width)
    if not tied:
        found["lm_head.weight"] = draw(vocab, width)
    return {name: tensor for name, tensor in found.items() if bias or not name.endswith(".bias")}


def prefixed(raw: Mapping[str, Tensor], prefix: str = "transformer.") -> dict[str, Tensor]:
    """The names that a whole language model has."""
    return {name if name.startswith("lm_head") else prefix + name: tensor for name, tensor in raw.items()}


def write_huggingface(
    folder: Path, tensors: Mapping[str, Tensor], *, form: str = "model.safetensors", **changes: Any
) -> Path:
    """A Hugging Face folder. form: the name of the file of weights; with "index" in it there are two parts."""
    folder.mkdir(parents=True)
    table = {name: value for name, value in {**SETTINGS, **changes}.items() if value != "left out"}
    (folder / "config.json").write_text(json.dumps(table))
    stem, ending = form.split(".")[:2]
    if "index" not in form:
        save(folder / form, tensors)
        return folder
    names = sorted(tensors)
    parts = {f"{stem}-0000{i + 1}-of-00002.{ending}": names[i::2] for i in range(2)}
    for file, part in parts.items():
        save(folder / file, {name: tensors[name] for name in part})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / form).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file of tensors, of the kind that its name says."""
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(
            {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file, metadata={"format": "pt"}
        )
    else:
        torch.save(dict(tensors), file)


def built(found: Foreign) -> Model:
    """The model, with the weights that were read."""
    model = found.config.build(found.vocab_size, found.context)
    model.load_state_dict(found.weights)
    return model

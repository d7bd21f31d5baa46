"""GPT-2's forward pass on the raw tensors of its files, in fp64, one token at a time.

Written from the paper and from what the files hold, apart from the package: names, the transposed maps of Hugging Face
and the order of the fused projection stand here once more, by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Raw = Mapping[str, Tensor]


def normal(x: Tensor, raw: Raw, name: str) -> Tensor:
    centred = x - x.mean()
    y = centred / torch.sqrt((centred * centred).mean() + 1e-5) * raw[f"{name}.weight"].double()
    return y + raw[f"{name}.bias"].double() if f"{name}.bias" in raw else y


def mapped(x: Tensor, raw: Raw, name: str, inputs_first: bool) -> Tensor:
    weight = raw[f"{name}.weight"].double()
    y = x @ weight if inputs_first else weight @ x
    return y + raw[f"{name}.bias"].double() if f"{name}.bias" in raw else y


def gelu(x: Tensor, exact: bool) -> Tensor:
    if exact:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def logits(tokens: list[int], raw: Raw, *, n_layer: int, n_head: int, inputs_first: bool, exact: bool) -> Tensor:
    """(T, V). raw: tensors by name, without a prefix; inputs_first: a layer's four maps are (inputs, outputs)."""
    streams = [raw["wte.weight"].double()[token] + raw["wpe.weight"].double()[i] for i, token in enumerate(tokens)]
    width = len(streams[0])
    d = width // n_head
    for layer in range(n_layer):
        h = f"h.{layer}"
        qkv = [mapped(normal(x, raw, f"{h}.ln_1"), raw, f"{h}.attn.c_attn", inputs_first) for x in streams]
        after: list[Tensor] = []
        for i, x in enumerate(streams):
            heads: list[Tensor] = []
            for head in range(n_head):
                at = slice(head * d, (head + 1) * d)
                scores = torch.stack([qkv[i][:width][at] @ qkv[j][width : 2 * width][at] for j in range(i + 1)])
                weights = torch.softmax(scores / math.sqrt(d), 0)
                values = [weights[j] * qkv[j][2 * width :][at] for j in range(i + 1)]
                heads.append(torch.stack(values).sum(0))
            x = x + mapped(torch.cat(heads), raw, f"{h}.attn.c_proj", inputs_first)
            hidden = gelu(mapped(normal(x, raw, f"{h}.ln_2"), raw, f"{h}.mlp.c_fc", inputs_first), exact)
            after.append(x + mapped(hidden, raw, f"{h}.mlp.c_proj", inputs_first))
        streams = after
    readout = raw.get("lm_head.weight", raw["wte.weight"]).double()
    return torch.stack([readout @ normal(x, raw, "ln_f") for x in streams])

"""Loss and gradients of a compiled GPT against the eager one: `python compiled_step.py KIND`."""

from __future__ import annotations

import sys

import torch

from winnow.kernels.readout import linear_cross_entropy
from winnow.models import ModelConfig
from winnow.parameters import initialise

V, T = 50, 16


def main(kind: str) -> None:
    table = {"preset": "tiny", "positions": "rotary", "attention": {"kind": kind}}
    model = ModelConfig.model_validate(table).build(V, T)
    initialise(model, 0)
    tokens, targets = torch.randint(V, (2, 3, T), generator=torch.Generator().manual_seed(0))

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(model(tokens).hidden, model.readout_weight, targets)

    eager = loss(tokens, targets)
    eager.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = torch.compile(loss)(tokens, targets)
    compiled.backward()
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < 1e-5 or name.endswith("qkv.bias"), (name, error)  # a key's bias has no gradient but rounding


if __name__ == "__main__":
    main(sys.argv[1])

"""Loss and gradients of compiled variants against eager ones: `python compiled_variants.py BACKEND [VARIANT ...]`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.attention.variants import VARIANTS, selective

from winnow.kernels.readout import linear_cross_entropy
from winnow.models import GPT, GPTConfig
from winnow.parameters import initialise

V, T = 13, 16


def main(backend: str, names: list[str]) -> None:
    tokens, targets = torch.randint(V, (2, 2, T), generator=torch.Generator().manual_seed(0))
    for name in names or VARIANTS:
        table = VARIANTS[name]
        torch.compiler.reset()
        config = {"d_model": 16, "n_layers": 2, "n_heads": 4, "d_head": 8, "attention": selective(**table)}
        model = GPTConfig.model_validate(config).build(V, T)
        initialise(model, 0)

        def loss(tokens: torch.Tensor, targets: torch.Tensor, model: GPT = model) -> torch.Tensor:
            output = model(tokens)
            penalty = sum(aux["penalty"] for aux in output.aux if "penalty" in aux)
            return linear_cross_entropy(output.hidden, model.readout_weight, targets) + penalty

        eager = loss(tokens, targets)
        eager.backward()
        expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        compiled = torch.compile(loss, backend=backend)(tokens, targets)
        compiled.backward()
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=0)
        found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        for key, gradient in found.items():
            # A key's bias has no gradient but rounding; what selects has a small one at the start.
            assert (gradient - expected[key]).norm() <= 1e-5 * expected[key].norm() + 1e-7, (name, key)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

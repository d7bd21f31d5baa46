"""A compiled step against the eager one, in one graph that is compiled once: `python compiled_decoding.py POLICY`."""

from __future__ import annotations

import sys

import torch

from winnow.attention import KVCache, PolicyConfig
from winnow.models import ModelConfig
from winnow.models.base import Output
from winnow.parameters import initialise

V, T = 50, 16


def main(policy: str) -> None:
    table = {"preset": "tiny", "positions": "rotary", "attention": {"kind": "selective"}}
    model = ModelConfig.model_validate(table).build(V, T).eval()
    initialise(model, 0)
    tokens = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))
    caches = [model.cache(2, T, 5, PolicyConfig.model_validate({"kind": policy})) for _ in range(2)]

    def step(token: torch.Tensor, cache: KVCache) -> Output:
        return model.extend(token, cache)

    compiled = torch.compile(step, fullgraph=True)
    for i in range(T):
        expected, found = step(tokens[:, i : i + 1], caches[0]), compiled(tokens[:, i : i + 1], caches[1])
        torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-5, atol=1e-5)
        for one, other in zip(caches[0].layers.values(), caches[1].layers.values(), strict=True):
            assert torch.equal(one.position, other.position)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


if __name__ == "__main__":
    main(sys.argv[1])

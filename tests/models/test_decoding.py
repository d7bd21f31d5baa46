"""A whole model decodes what it would say at once; caches by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.test_gpt import T, V, build

from winnow.attention import KVCache
from winnow.attention.prune import VotesConfig, WindowConfig
from winnow.errors import InputError
from winnow.models import GPT

VARIANTS: list[dict[str, Any]] = [
    {},
    {"positions": "rotary", "n_kv_heads": 2},
    {"positions": "none", "attention": {"kind": "selective"}},
    {"positions": "rotary", "attention": {"kind": "selective", "residual_scores": True}},
]
TOKENS = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))
VOTES = VotesConfig()


def extended(model: GPT, cache: KVCache, first: int) -> torch.Tensor:
    rows = [model.extend(TOKENS[:, :first], cache).hidden] if first else []
    rows += [model.extend(TOKENS[:, i : i + 1], cache).hidden for i in range(first, T)]
    return torch.cat(rows, 1)


@pytest.mark.parametrize("changes", VARIANTS)
def test_token_by_token_equals_at_once(changes) -> None:
    _, model = build(**changes)
    exact = model(TOKENS).hidden
    for first in (0, 2, T):
        cache = model.cache(3, T)
        assert torch.allclose(extended(model, cache, first), exact, rtol=0, atol=1e-12)
        assert int(cache.length) == T
    assert torch.equal(model.extend(TOKENS, model.cache(3, T, T, WindowConfig())).hidden, exact)


def test_layers_keep_what_each_is_given() -> None:
    _, model = build(attention={"kind": "selective"}, positions="rotary")
    budgets = {"blocks.0.attention": 1, "blocks.1.attention": 3}
    cache = model.cache(3, T, budgets, VOTES)
    assert {path: layer.k.shape[2] for path, layer in cache.layers.items()} == {
        path: b + 1 for path, b in budgets.items()
    }
    assert cache.full_bytes == 2 * 2 * 3 * T * 4 * 4 * 8
    assert cache.bytes == 3 * (2 + 4) * (2 * 4 * 4 * 8 + 8 + 4)
    pruned = extended(model, cache, 0)
    assert torch.allclose(pruned, extended(model, model.cache(3, T, budgets, VOTES), T), rtol=0, atol=1e-12)
    assert not torch.allclose(pruned, model(TOKENS).hidden, atol=1e-3)
    swapped = {"blocks.0.attention": 3, "blocks.1.attention": 1}
    assert not torch.allclose(pruned, extended(model, model.cache(3, T, swapped, VOTES), T), atol=1e-3)


def test_what_is_refused() -> None:
    _, model = build()
    with pytest.raises(InputError, match=r"blocks\.0\.attention: policy 'votes' goes by votes"):
        model.cache(1, T, 2, VOTES)
    with pytest.raises(InputError, match=r"blocks\.0\.attention: a budget of 0 keys"):
        model.cache(1, T, 0)
    with pytest.raises(InputError, match=r"blocks\.1\.attention has no budget"):
        model.cache(1, T, {"blocks.0.attention": 2})
    with pytest.raises(InputError, match=r"blocks\.7\.attention is no attention layer"):
        model.cache(1, T, {f"blocks.{n}.attention": 2 for n in (0, 1, 7)})
    with pytest.raises(InputError, match="more than the model's 5"):
        model.extend(TOKENS[:1], model.cache(1, T + 1))
    cache = model.cache(3, T)
    model.extend(TOKENS[:, :1], cache)
    with pytest.raises(InputError, match="2 tokens at once, after 1"):
        model.extend(TOKENS[:, 1:3], cache)
    with pytest.raises(InputError, match="5 tokens are more than the cache's context of 3"):
        model.extend(TOKENS, model.cache(3, 3))

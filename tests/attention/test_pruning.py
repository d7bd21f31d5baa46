"""Pruned decoding of one layer: against a plain-loop oracle, and every way of doing it against the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attention.test_contract import inputs, make
from tests.attention.variants import VARIANTS, selective
from tests.oracles import pruning as oracle
from torch import Tensor

from winnow.attention import Attention, MixerState, SoftmaxConfig
from winnow.attention.prune import PolicyConfig, budget_of
from winnow.errors import InputError

T = 16
POLICIES: dict[str, dict[str, Any]] = {
    "window": {"kind": "window", "sinks": 2},
    "h2o": {"kind": "h2o", "recent": 0.4},
    "votes": {"kind": "votes"},
    "anew": {"kind": "anew"},
}
VOTING = (
    "plain", "bos_and_self", "three_masks_spread", "leak", "relu_moved", "head_two_scaled", "protect_leaky",
    "protect_constant", "masks_protected",
)  # fmt: skip
CASES = [
    *((kind, name) for name in ("votes", "anew") for kind in VOTING),
    *((kind, name) for name in ("window", "h2o") for kind in ("softmax", "plain", "three_masks_spread")),
]


def policy(name: str) -> PolicyConfig:
    return PolicyConfig.model_validate(POLICIES.get(name, {"kind": name}))


def stepped(attention: Attention, x: Tensor, budget: int, name: str, first: int = 0) -> tuple[Tensor, list[list[int]]]:
    """Every row token by token after a prefill of `first`; and which keys each query of row 0 finds in the cache."""
    cache = attention.cache(len(x), budget, x.shape[1], policy(name))
    rows, held = [], []
    if first:
        rows.append(attention.prefill(x[:, :first], cache, MixerState()).y)
    for i in range(first, x.shape[1]):
        state = MixerState(positions=torch.full((len(x), 1), i))
        rows.append(attention.step(x[:, i : i + 1], cache, state).y)
        held.append(sorted(p for p in cache.position[0].tolist() if p >= 0))
    return torch.cat(rows, 1), held


def whole(attention: Attention, x: Tensor, budget: int, name: str) -> Tensor:
    return attention.prefill(x, attention.cache(len(x), budget, x.shape[1], policy(name)), MixerState()).y


def told(attention: Any, x: Tensor, budget: int, name: str, row: int) -> oracle.Decoded:
    """The oracle's answer, from the projections of one row."""
    q, k, v = (t[row].detach() for t in attention.project(x, MixerState()))
    rule, H = attention.voting, attention.shape.n_heads
    K = attention.shape.n_kv_heads
    of_head = lambda h: (q[:, h], k[:, h // (H // K)])  # noqa: E731
    dedicated = attention.n_selectors
    pairs = [(q[:, H + s], k[:, K + s]) for s in range(dedicated)]
    if rule is not None and not dedicated:
        pairs = [of_head(attention.selector.head)]
    protector = of_head(1) if rule is not None and rule.protection == "scores" else None
    options = {key: value for key, value in POLICIES[name].items() if key != "kind"}
    return oracle.decode(q[:, :H], k[:, :K], v, pairs, protector, rule, budget, name, **options)


@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_steps_and_whole_rows_equal_the_oracle(kind, name, budget) -> None:
    attention = make(SoftmaxConfig() if kind == "softmax" else selective(**VARIANTS[kind]), n_kv_heads=2, std=0.4)
    x = inputs(2, n=T)
    found, held = stepped(attention, x, budget, name)
    at_once = whole(attention, x, budget, name)
    for row in range(2):
        expected = told(attention, x, budget, name, row)
        y = attention.out(expected.heads.flatten(1))
        assert torch.allclose(found[row], y, rtol=0, atol=1e-11)
        assert torch.allclose(at_once[row], y, rtol=0, atol=1e-11)
        if row == 0 and name != "anew":
            assert held == expected.seen


@pytest.mark.parametrize("name", ["none", "votes"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_decodes_as_it_is_evaluated(variant, name) -> None:
    """Any beginning at once, the rest token by token."""
    attention = make(selective(**VARIANTS[variant]), n_kv_heads=2, std=0.4)
    attention.eval()
    budget = T if VARIANTS[variant].get("residual_scores") or name == "none" else 6
    x = inputs(2, n=T)
    expected = whole(attention, x, budget, name)
    if budget == T:
        assert torch.equal(expected, attention(x, MixerState()).y)
    for first in (0, 6, 7, 12):
        assert torch.allclose(stepped(attention, x, budget, name, first)[0], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_that_no_query_feels_changes_nothing(name) -> None:
    attention, x = make(selective()), inputs(2, n=T)
    exact = attention(x, MixerState()).y
    felt = T if name == "anew" else T - 1
    assert torch.equal(whole(attention, x, felt, name), exact)
    assert torch.equal(whole(attention, x, 10 * T, name), exact)
    assert torch.allclose(stepped(attention, x, felt, name)[0], exact, rtol=0, atol=1e-12)
    assert not torch.equal(whole(attention, x, felt - 1, name), exact)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("budget", [3, 17])
def test_single_precision_drops_the_same_keys(name, budget) -> None:
    attention = make(selective(scores={"kind": "selectors"}), dtype=torch.float32, std=0.3)
    x = inputs(3, n=40).float()
    found, _ = stepped(attention, x, budget, name)
    error = (found - whole(attention, x, budget, name)).norm() / found.norm()
    assert error < 2e-6


def test_the_first_token_goes_last_where_nobody_can_vote_against_it() -> None:
    x = inputs(1, n=T)
    for protected in (True, False):
        attention = make(selective(protect_bos=protected, gate={"leak": 0.0}), std=0.4)
        _, held = stepped(attention, x, 4, "votes")
        assert all(0 in keys for keys in held) == protected
    _, held = stepped(make(selective(), std=0.4), x, 1, "votes")
    assert held[1:] == [[i - 1, i] for i in range(1, T)]


def test_without_a_vote_the_oldest_goes() -> None:
    attention = make(selective(scores={"kind": "selectors"}, protect_bos=False))
    with torch.no_grad():
        attention.qkv.weight.zero_()
        assert attention.qkv.bias is not None
        attention.qkv.bias.zero_()
    _, held = stepped(attention, inputs(1, n=T), 5, "votes")
    assert held == [list(range(max(0, i - 5), i + 1)) for i in range(T)]


def test_the_cache_is_as_small_as_it_says() -> None:
    attention = make(selective(), dtype=torch.float32)
    full, small = attention.cache(3, 100, 100, policy("none")), attention.cache(3, 9, 100, policy("votes"))
    assert small.k.shape == (3, 4, 10, 8)
    assert small.bytes == 3 * 10 * (2 * 4 * 8 * 4 + 4 + 4)
    assert small.bytes * 100 == full.bytes * 10
    assert attention.cache(1, 9, 100, policy("anew")).policy.slots == 100
    places = [tensor.data_ptr() for tensor in small.state]
    for i in range(12):
        attention.step(inputs(3, n=1).float(), small, MixerState(positions=torch.full((3, 1), i)))
    assert [tensor.data_ptr() for tensor in small.state] == places


def test_what_is_refused() -> None:
    softmax = make(SoftmaxConfig())
    for name in ("votes", "anew"):
        with pytest.raises(InputError, match="without selection") as refused:
            softmax.cache(1, 4, 8, policy(name))
        assert refused.value.mend == "use window or h2o"
        with pytest.raises(InputError, match="without selection"):
            make(selective(selection=False)).cache(1, 4, 8, policy(name))
    for name in POLICIES:
        with pytest.raises(InputError, match="a budget of 0 keys"):
            make(selective()).cache(1, 0, 8, policy(name))
    with pytest.raises(InputError, match="residual scores"):
        make(selective(residual_scores=True)).cache(1, 4, 8, policy("votes"))
    make(selective(residual_scores=True)).cache(1, 8, 8, policy("votes"))
    documents = torch.tensor([[0, 0, 1, 1]])
    attention = make(selective())
    with pytest.raises(InputError, match="one document per row"):
        attention.prefill(inputs(1, n=4), attention.cache(1, 4, 4, policy("none")), MixerState(documents=documents))


def test_a_fraction_of_the_context_is_a_number_of_keys() -> None:
    assert [budget_of(keep, 256) for keep in (1.0, 0.5, 1 / 3, 0.001)] == [256, 128, 85, 1]
    assert budget_of(0.29, 100) == 29
    for keep in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(InputError, match="no part of the context"):
            budget_of(keep, 100)

"""What every mechanism promises. Runs over all registered kinds: a new one is tested without an edit here.

That each of its settings acts: tests/models/test_settings.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from winnow.attention import Attention, AttentionConfig, MixerState, Shape, mixer_state
from winnow.attention.prune import H2OConfig, NoneConfig, PolicyConfig, WindowConfig
from winnow.config import Variant, stream
from winnow.parameters import Slice, initialise, parameter_table
from winnow.train.mechanism_checks import defects_of

KINDS = sorted(AttentionConfig.members)
T = 7
LONGEST = 131
"""Tokens that mechanisms are built for; other tests use more than T."""


def make(
    config: Any,
    *,
    n_kv_heads: int = 4,
    rotary: bool = True,
    dtype: torch.dtype = torch.float64,
    layer: int = 1,
    std: float = 0.7,
) -> Attention:
    """A module with large weights, so that scores differ enough for every rule to bite; equal slices are shared."""
    shape = Shape(
        d_model=12,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        d_head=8,
        layer=layer,
        n_layers=3,
        max_seq_len=LONGEST,
        bias=True,
        rotary=rotary,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        attention = config.build(shape)
    finally:
        torch.set_default_dtype(before)
    table = parameter_table(attention)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            for part in table[name].slices or (Slice("", 0, 0, len(parameter)),):
                generator = torch.Generator().manual_seed(stream(3, name, part.name))
                target = part.view(parameter)
                target.copy_(torch.randn(target.shape, generator=generator, dtype=torch.float64) * std)
    return attention


def inputs(B: int = 2, seed: int = 0, n: int = T) -> Tensor:
    return torch.randn(B, n, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [5, 5, 5, 5, 5, 5, 9]])


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest) -> Variant:
    return AttentionConfig.members[request.param].model_validate({})


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_changing_a_token_never_alters_rows_before_it(config, documents) -> None:
    attention, x = make(config), inputs()
    state = mixer_state(documents)
    y = attention(x, state).y
    for i in range(T):
        changed = x.clone()
        changed[:, i] += 1.0
        z = attention(changed, state).y
        assert torch.equal(y[:, :i], z[:, :i])
        assert not torch.equal(y[:, i], z[:, i])


def test_nothing_crosses_documents(config) -> None:
    attention, x = make(config), inputs()
    packed = attention(x, mixer_state(DOCUMENTS)).y
    for row, ids in enumerate(DOCUMENTS):
        for document in ids.unique():
            alone = attention(x[row : row + 1, ids == document], MixerState()).y[0]
            assert torch.allclose(packed[row, ids == document], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("rotary", [True, False])
def test_equals_its_oracle_in_values_and_gradients(config, n_kv_heads, rotary) -> None:
    attention = make(config, n_kv_heads=n_kv_heads, rotary=rotary)
    x = inputs().requires_grad_()
    q, k, v = attention.project(x, MixerState())
    found, _ = attention.mix(q, k, v, MixerState())
    expected = torch.stack([attention.oracle(q[b], k[b], v[b]) for b in range(len(x))])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    g = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), g, retain_graph=True),
        torch.autograd.grad(expected, (q, k, v), g, retain_graph=True),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_watch_holds_every_run_to_the_same_definition(config) -> None:
    """`definition` says what `oracle` says; by it a run accuses no mechanism that is right, and one that is off."""
    attention, x = make(config, dtype=torch.float32), inputs(1).float()
    exact = make(config)
    q, k, v = exact.project(inputs(1), MixerState())
    assert torch.equal(exact.definition(q[0], k[0], v[0], {}).heads, exact.oracle(q[0], k[0], v[0]))
    assert list(defects_of(attention, x, MixerState())) == []
    mix = attention.mix

    def off(*parts: Any) -> Any:
        heads, aux = mix(*parts)
        return heads * 1.01, aux

    attention.mix = off  # pyright: ignore[reportAttributeAccessIssue]
    assert "not-its-definition" in {defect.rule for defect in defects_of(attention, x, MixerState())}


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_gradcheck(config, documents) -> None:
    attention, state = make(config, n_kv_heads=2), mixer_state(documents)
    assert torch.autograd.gradcheck(lambda x: attention(x, state).y, inputs().requires_grad_(), fast_mode=True)
    weight = attention.qkv.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: torch.func.functional_call(attention, {"qkv.weight": w}, (inputs(), state)).y, weight, fast_mode=True
    )


def test_single_precision_is_near_double(config) -> None:
    exact = make(config)(inputs(), MixerState()).y
    single = make(config, dtype=torch.float32)(inputs().float(), MixerState()).y
    assert (single - exact).norm() / exact.norm() < 2e-6


def test_deterministic(config) -> None:
    attention, x = make(config, dtype=torch.float32), inputs().float()
    for _ in range(3):
        assert torch.equal(attention(x, MixerState()).y, attention(x, MixerState()).y)


def test_first_token_attends_to_itself(config) -> None:
    attention, x = make(config), inputs()
    _, _, v = attention.project(x, MixerState())
    assert torch.allclose(attention(x, MixerState()).y[:, 0], attention.out(v[:, 0].flatten(1)), atol=1e-14)


def decoded(attention: Attention, x: Tensor, budget: int, policy: PolicyConfig, first: int) -> Tensor:
    """The first tokens at once, the others one by one."""
    cache = attention.cache(len(x), budget, x.shape[1], policy)
    rows = [attention.prefill(x[:, :first], cache, MixerState()).y] if first else []
    for i in range(first, x.shape[1]):
        rows.append(attention.step(x[:, i : i + 1], cache, MixerState(torch.full((len(x), 1), i))).y)
    return torch.cat(rows, 1)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_prefill_and_steps_equal_the_whole(config, n_kv_heads) -> None:
    attention, x = make(config, n_kv_heads=n_kv_heads), inputs()
    exact = attention(x, MixerState()).y
    for first in (0, 1, 4, T):
        assert torch.allclose(decoded(attention, x, T, NoneConfig(), first), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", [WindowConfig(sinks=1), H2OConfig()])
def test_a_pruned_cache_gives_what_pruned_evaluation_gives(config, policy) -> None:
    attention, x = make(config, n_kv_heads=2), inputs()
    exact = attention(x, MixerState()).y
    assert torch.equal(decoded(attention, x, T - 1, policy, T), exact)
    pruned = decoded(attention, x, 2, policy, T)
    assert torch.allclose(pruned[:, :3], exact[:, :3], rtol=0, atol=1e-12)
    for first in (0, 1, 3, 5):
        assert torch.allclose(decoded(attention, x, 2, policy, first), pruned, rtol=0, atol=1e-12)


def test_config_round_trips_whole(config) -> None:
    assert AttentionConfig.model_validate(config.dump()) == config
    assert AttentionConfig.model_validate(config.dump()).digest() == config.digest()


def test_kind_alone_is_the_default(config) -> None:
    assert AttentionConfig.model_validate({"kind": config.kind}) == config


def test_kinds_have_digests_of_their_own() -> None:
    assert len({AttentionConfig.members[kind].model_validate({}).digest() for kind in KINDS}) == len(KINDS)


def test_parameters_are_declared_with_slices_per_head(config) -> None:
    attention = make(config, n_kv_heads=2)
    initialise(attention, 0)
    table = parameter_table(attention)
    names = [part.name for part in table["qkv.weight"].slices]
    selectors = range(attention.n_selectors)
    queries = ["q.0", "q.1", "q.2", "q.3", *(f"qs.{s}" for s in selectors)]
    keys = ["k.0", "k.1", *(f"ks.{s}" for s in selectors)]
    assert names == [*queries, *keys, "v.0", "v.1"]
    assert [part.name for part in table["qkv.bias"].slices] == names
    assert [part.name for part in table["out.weight"].slices] == ["o.0", "o.1", "o.2", "o.3"]


def test_costs_grow_with_the_context(config) -> None:
    attention = make(config)
    assert 0 < attention.flops_per_token(8) < attention.flops_per_token(16)
    assert 0 < attention.state_bytes(8) <= attention.state_bytes(16)

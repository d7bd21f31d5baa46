"""What every mechanism promises. Runs over all registered kinds: a new one is tested without an edit here."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from winnow.attention import Attention, AttentionConfig, MixerState, Shape, mixer_state
from winnow.config import Variant
from winnow.parameters import initialise, parameter_table

KINDS = sorted(AttentionConfig.members)
T = 7


def make(config: Any, *, n_kv_heads: int = 4, rotary: bool = True, dtype: torch.dtype = torch.float64) -> Attention:
    """A module with large weights, so that scores differ enough for every rule to bite."""
    shape = Shape(
        d_model=12,
        n_heads=4,
        n_kv_heads=n_kv_heads,
        d_head=6,
        layer=1,
        n_layers=3,
        max_seq_len=T,
        bias=True,
        rotary=rotary,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        attention = config.build(shape)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.7)
    return attention


def inputs(B: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(B, T, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def test_config_round_trips(config) -> None:
    assert AttentionConfig.model_validate(config.dump()) == config
    assert AttentionConfig.model_validate({"kind": config.kind}) == config


def test_kinds_have_digests_of_their_own() -> None:
    assert len({AttentionConfig.members[kind].model_validate({}).digest() for kind in KINDS}) == len(KINDS)


def other_values(annotation: Any, default: Any) -> list[Any]:
    if annotation is bool:
        return [not default]
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if value != default]
    if isinstance(default, int | float):
        return [default * 2 + 1]
    raise AssertionError(f"say here how to change a field of type {annotation}")


def test_every_field_changes_the_function(config) -> None:
    x = inputs()
    y = make(config)(x, MixerState()).y
    for name, field in type(config).model_fields.items():
        for value in other_values(field.annotation, field.default) if name != "kind" else []:
            z = make(config.replace({name: value}))(x, MixerState()).y
            assert (y - z).abs().max() > 1e-6, f"{config.kind}.{name} = {value!r} has no effect"


def test_parameters_are_declared_with_slices_per_head(config) -> None:
    attention = make(config, n_kv_heads=2)
    initialise(attention, 0)
    table = parameter_table(attention)
    names = [part.name for part in table["qkv.weight"].slices]
    assert names == ["q.0", "q.1", "q.2", "q.3", "k.0", "k.1", "v.0", "v.1"]
    assert [part.name for part in table["qkv.bias"].slices] == names
    assert [part.name for part in table["out.weight"].slices] == ["o.0", "o.1", "o.2", "o.3"]


def test_costs_grow_with_the_context(config) -> None:
    attention = make(config)
    assert 0 < attention.flops_per_token(8) < attention.flops_per_token(16)
    assert 0 < attention.state_bytes(8) <= attention.state_bytes(16)

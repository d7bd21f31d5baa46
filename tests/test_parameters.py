"""The table of parameters: what is declared is all there is, and initial values depend on (seed, name, slice) alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from winnow.models import GPT, GPTConfig
from winnow.parameters import ParameterSpec, Slice, declare, head_slices, initialise, parameter_table, spec


def build(seed: int = 0, **changes: Any) -> GPT:
    table = {"d_model": 24, "n_layers": 2, "n_heads": 3, "d_head": 8, **changes}
    model = GPTConfig.model_validate(table).build(31, 10)
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))  # what is not initialised must show
    initialise(model, seed)
    return model


def test_every_parameter_is_set_as_the_table_says() -> None:
    model = build(d_model=192, n_heads=6, d_head=32, tied=False)
    table = parameter_table(model)
    assert list(table) == [name for name, _ in model.named_parameters()]
    expected = {"embedding": 0.02, "position": 0.02, "readout": 0.02, "matrix": 0.02, "residual": 0.02 / 4**0.5}
    for name, parameter in model.named_parameters():
        role = table[name].role
        if role in expected:
            assert table[name].std == pytest.approx(expected[role])
            error = expected[role] / (2 * parameter.numel()) ** 0.5  # of a standard deviation
            assert abs(parameter.std().item() - expected[role]) < 5 * error
            assert abs(parameter.mean().item()) < 5 * expected[role] / parameter.numel() ** 0.5
        else:
            assert torch.equal(parameter, torch.full_like(parameter, 1.0 if role == "scale" else 0.0))
    assert {spec.role for spec in table.values()} == {*expected, "bias", "scale", "shift"}


def test_matrices_are_the_tensors_of_two_dimensions() -> None:
    model = build()
    for name, specification in parameter_table(model).items():
        assert specification.decay == (model.get_parameter(name).dim() >= 2)


def test_an_undeclared_parameter_is_an_error() -> None:
    model = build()
    model.blocks[0].register_parameter("extra", nn.Parameter(torch.zeros(3)))
    with pytest.raises(KeyError, match=r"blocks\.0\.extra was not declared"):
        initialise(model, 0)


def test_same_seed_same_values_and_other_seed_other_values() -> None:
    a, b, c = (dict(build(seed).named_parameters()) for seed in (1, 1, 2))
    for name, value in a.items():
        assert torch.equal(value, b[name])
        constant = parameter_table(build())[name].init != "normal"
        assert torch.equal(value, c[name]) == constant


def test_no_two_parameters_share_their_draws() -> None:
    model = build()
    slices = [
        part.view(parameter).flatten()[:8] / specification.std
        for name, specification in parameter_table(model).items()
        if specification.init == "normal"
        for parameter in [model.get_parameter(name)]
        for part in specification.slices or (Slice("", 0, 0, 1),)
    ]
    for i, a in enumerate(slices):
        for b in slices[:i]:
            assert not torch.allclose(a, b)


def test_initialising_consumes_no_global_randomness() -> None:
    before = torch.get_rng_state()
    build()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": {"kind": "selective"}},
        {"positions": "rotary"},
        {"norm": {"kind": "rmsnorm"}},
        {"tied": False},
        {"bias": False},
        {"n_layers": 3},
        {"n_heads": 4},
        {"n_kv_heads": 1},
    ],
)
def test_arms_share_initial_values_wherever_they_can(changes) -> None:
    """Per slice, in units of the standard deviation (which depends on the number of layers)."""
    ours, theirs = build(), build(**changes)
    specs, others = parameter_table(ours), parameter_table(theirs)
    shared = 0
    for name in specs.keys() & others.keys():
        if specs[name].init != "normal":
            continue
        parts = {part.name: part for part in others[name].slices}
        for part in specs[name].slices or (None,):
            a, b = ours.get_parameter(name), theirs.get_parameter(name)
            if part is not None:
                if part.name not in parts:
                    continue
                a, b = part.view(a), parts[part.name].view(b)
            assert a.shape == b.shape
            assert torch.allclose(a / specs[name].std, b / others[name].std, rtol=1e-6, atol=0)
            shared += 1
    assert shared >= 15


def test_a_longer_table_starts_with_the_shorter_one() -> None:
    short, long = (
        GPTConfig.model_validate({"d_model": 24, "n_layers": 1, "n_heads": 3}).build(31, context)
        for context in (10, 20)
    )
    initialise(short, 0)
    initialise(long, 0)
    assert short.positions is not None
    assert long.positions is not None
    assert torch.equal(short.positions.weight, long.positions.weight[:10])


def test_known_values_stay() -> None:
    """Initial values are part of every recorded result: a change here makes old runs incomparable."""
    weight = build().blocks[0].get_parameter("attention.qkv.weight")
    found = (weight / 0.02).flatten()[:4]
    assert torch.allclose(found, torch.tensor([0.6292527, -1.7163924, -0.6510109, 1.6488087]), atol=1e-6)


def test_a_copied_model_keeps_its_table() -> None:
    model = build()
    assert parameter_table(copy.deepcopy(model)) == parameter_table(model)


def test_values_are_the_same_in_every_dtype() -> None:
    model = build()
    double = build().double()
    initialise(double, 0)
    for a, b in zip(model.parameters(), double.parameters(), strict=True):
        assert torch.equal(a, b.float())


def test_slices_must_tile() -> None:
    module = nn.Module()
    with pytest.raises(AssertionError, match="do not tile"):
        declare(module, "w", (10, 4), spec("matrix", 4, 10, slices=head_slices(("a", "b"), 4, 0)))
    declared = declare(module, "w", (8, 4), spec("matrix", 4, 8, slices=head_slices(("a", "b"), 4, 0)))
    assert parameter_table(module)["w"].slices[1].view(declared).shape == (4, 4)
    assert isinstance(parameter_table(module)["w"], ParameterSpec)


def test_one_element_may_start_alone() -> None:
    module = nn.Module()
    weight = declare(module, "w", (2, 3), spec("mixing", 3, 2, hot=(4, 2.5)))
    nn.init.constant_(weight, float("nan"))
    initialise(module, 0)
    assert weight.tolist() == [[0, 0, 0], [0, 2.5, 0]]
    assert not parameter_table(module)["w"].decay
    with pytest.raises(AssertionError, match="only mixing"):
        spec("matrix", 3, 2, hot=(0, 1.0))


def test_mixing_weights_are_drawn_and_not_decayed() -> None:
    module = nn.Module()
    parts = head_slices(("a", "b", "c", "d"), 1, 0)
    weight = declare(module, "w", (4, 5000), spec("mixing", 5000, 4, slices=parts))
    initialise(module, 0)
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not parameter_table(module)["w"].decay

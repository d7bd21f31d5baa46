"""Every variant of selective attention keeps the contract of a mechanism: documents, oracle, autocast, compilation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.attention import test_contract as contract
from tests.attention.test_contract import DOCUMENTS, inputs, make
from tests.attention.variants import VARIANTS, selective

from winnow.attention import MixerState, mixer_state
from winnow.attention.selective import SelectiveAttention
from winnow.models import GPTConfig
from winnow.parameters import initialise

every = pytest.mark.parametrize("name", VARIANTS)


@every
def test_keeps_the_contract(name) -> None:
    config = selective(**VARIANTS[name])
    contract.test_changing_a_token_never_alters_rows_before_it(config, DOCUMENTS)
    contract.test_first_token_attends_to_itself(config)
    contract.test_config_round_trips_whole(config)
    contract.test_parameters_are_declared_with_slices_per_head(config)
    contract.test_costs_grow_with_the_context(config)


@pytest.mark.parametrize(
    "name", [name for name in VARIANTS if "slices" in name or "latent" in name or "residual" in name]
)
def test_equals_its_oracle_in_values_and_gradients(name) -> None:
    """What slices do without rotary positions, and residual scores without a layer below; the rest: the next test."""
    contract.test_equals_its_oracle_in_values_and_gradients(selective(**VARIANTS[name]), 4, False)


@every
def test_parameters_learn_as_the_oracle_says(name) -> None:
    """Gradients of the mixing parameters, and with them of everything that a variant adds."""
    attention = make(selective(**VARIANTS[name]), n_kv_heads=2, std=0.4)
    assert isinstance(attention, SelectiveAttention)
    x = inputs(1)
    own = {key: p for key, p in attention.named_parameters() if not key.startswith("out.")}
    below = torch.randn(1, 4, 7, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tril()
    state = MixerState(previous={"scores": below})
    q, k, v = attention.project(x, state)
    found = attention.mix(q, k, v, state)[0]
    expected = attention.definition(q[0], k[0], v[0], {"scores": below[0]}).heads[None]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    g = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    of_found = torch.autograd.grad(found, tuple(own.values()), g, retain_graph=True)
    of_expected = torch.autograd.grad(expected, tuple(own.values()), g)
    for key, a, b in zip(own, of_found, of_expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10), key
        assert a.abs().max() > 1e-6, f"{key} does not learn"


@every
def test_autocast_is_near_full_precision(name) -> None:
    attention, x = make(selective(**VARIANTS[name]), dtype=torch.float32, std=0.35), inputs(2, n=30).float()
    exact = attention(x, MixerState()).y
    with torch.autocast("cpu", torch.bfloat16):
        rounded, aux = attention(x, MixerState())
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() / exact.norm() < 0.05
    assert all(value.dtype == torch.float32 for value in aux.values())


def model(name: str, **changes: Any) -> Any:
    table = {"d_model": 16, "n_layers": 3, "n_heads": 4, "d_head": 8, "attention": selective(**VARIANTS[name])}
    built = GPTConfig.model_validate({**table, **changes}).build(13, 24)
    initialise(built, 0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(8.0)  # votes that count
    return built


@every
def test_recomputed_blocks_give_the_same_gradients(name) -> None:
    tokens = torch.randint(13, (2, 24), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(24).div(10, rounding_mode="floor").expand(2, -1)
    found: list[list[torch.Tensor]] = []
    for recompute in (False, True):
        gpt = model(name)
        if recompute:
            gpt.recompute_blocks()
        output = gpt(tokens, documents)
        penalty = sum(aux["penalty"] for aux in output.aux if "penalty" in aux)
        (output.hidden.square().sum() + penalty).backward()
        found.append([p.grad for p in gpt.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(a.abs().max()))


@every
def test_packed_documents_equal_separate_ones_through_layers(name) -> None:
    gpt = model(name).double()
    tokens = torch.randint(13, (1, 24), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(24).div(10, rounding_mode="floor")
    packed = gpt(tokens, documents[None]).hidden[0]
    for document in documents.unique():
        inside = documents == document
        alone = gpt(tokens[:, inside]).hidden[0]
        assert torch.allclose(packed[inside], alone, rtol=0, atol=1e-10)


@every
def test_measures_itself(name) -> None:
    attention = make(selective(**VARIANTS[name]))
    state = mixer_state(DOCUMENTS)
    figures = attention.measure(*attention.project(inputs(), state), state)
    assert set(figures) == {"live", "mean_f", "max_f", "max_diff"}
    assert 0 < figures["live"] <= 1
    assert figures["max_f"] >= figures["mean_f"]
    assert 0 <= figures["max_diff"] < 1e-12


def compiled(backend: str, *names: str) -> None:
    """In a process of its own: the compiler cannot trace the tests' shape checks."""
    script = Path(__file__).with_name("compiled_variants.py")
    subprocess.run([sys.executable, str(script), backend, *names], check=True, timeout=3000)


def test_compiled_variants_equal_eager_ones() -> None:
    """S1-87. Traced and run as traced: explicit scores, and the kernel with usage; the others are soaked."""
    compiled("aot_eager", "residual_linear", "penalty_masks")


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_all_compiled_variants_equal_eager_ones(backend) -> None:
    compiled(backend)

"""The GPT against a loop oracle in fp64, its parameter counts, its costs, its config."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.oracles import gpt as oracle

from winnow.errors import InputError
from winnow.models import GPT, PRESETS, GPTConfig, ModelConfig, Output
from winnow.parameters import initialise

TINY = {"d_model": 8, "n_layers": 2, "n_heads": 4, "d_head": 4, "d_ff": 12}
T, V = 5, 11


def build(dtype: torch.dtype = torch.float64, context: int = T, **changes: Any) -> tuple[GPTConfig, GPT]:
    config = GPTConfig.model_validate({**TINY, **changes})
    torch.set_default_dtype(dtype)
    try:
        model = config.build(V, context)
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return config, model


VARIANTS: list[dict[str, Any]] = [
    {},
    {"positions": "rotary"},
    {"positions": "none", "bias": False},
    {"norm": {"kind": "rmsnorm"}, "n_kv_heads": 2},
    {"norm": {"kind": "layernorm", "affine": False}, "tied": False},
    {"norm": {"kind": "layernorm", "shift": False}, "activation": "gelu"},
    {"norm": {"kind": "rmsnorm", "affine": False}, "positions": "rotary", "n_kv_heads": 1},
    {"attention": {"kind": "selective"}},
    {"attention": {"kind": "selective", "protect_bos": False}, "positions": "rotary", "n_kv_heads": 2},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_logits_and_gradients_equal_the_oracle(changes) -> None:
    config, model = build(**changes)
    tokens = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))
    selective = config.attention.dump()
    selective = (
        {key: selective[key] for key in ("protect_bos", "allow_self_masking")}
        if config.attention.kind == "selective"
        else None
    )
    weights = dict(model.named_parameters())
    expected = torch.stack(
        [
            oracle.logits(
                row.tolist(),
                weights,
                n_layers=config.n_layers,
                n_heads=config.n_heads,
                n_kv_heads=config.n_kv_heads,
                d_head=config.d_head,
                positions=config.positions,
                norm=config.norm.kind,
                selective=selective,
                exact_gelu=config.activation == "gelu",
            )
            for row in tokens
        ]
    )
    found = model.logits(tokens)
    assert torch.allclose(found, expected, rtol=0, atol=1e-11)
    g = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaves = tuple(weights.values())
    for name, a, b in zip(
        weights, torch.autograd.grad(found, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("changes", VARIANTS)
def test_packed_documents_equal_separate_ones(changes) -> None:
    _, model = build(context=9, **changes)
    tokens = torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [3, 3, 2, 2, 2, 2, 2, 2, 8]])
    packed = model.logits(tokens, documents)
    for row in range(2):
        for document in documents[row].unique():
            inside = documents[row] == document
            alone = model.logits(tokens[row, inside][None])[0]
            assert torch.allclose(packed[row, inside], alone, rtol=0, atol=1e-11)
    assert not torch.allclose(packed, model.logits(tokens), atol=1e-3)


def test_hidden_times_readout_is_logits_and_tying_shares_the_matrix() -> None:
    for tied in (True, False):
        _, model = build(tied=tied)
        tokens = torch.randint(V, (1, T))
        output = model(tokens)
        assert isinstance(output, Output)
        assert len(output.aux) == 2
        assert torch.allclose(output.hidden @ model.readout_weight.T, model.logits(tokens), atol=1e-12)
        assert (model.readout_weight is model.embedding.weight) == tied


def test_gpt2_has_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        model = ModelConfig.model_validate({"preset": "gpt2-124m"}).build(50_257, 1024)
    assert model.facts(1024) == {
        "parameters": 124_439_808,
        "trainable": 124_439_808,
        # 6 x (50257 x 768 + 12 x 12 x 768 x 768) + 12 layers x 12 x 768 x 1024
        "flops_per_token": 6 * 123_532_032 + 113_246_208,
        "kv_bytes_per_token": 12 * 2 * 768 * 4,
    }


def test_facts_of_a_small_arm() -> None:
    _, model = build(positions="none", tied=False, n_kv_heads=2, attention={"kind": "selective"}, d_head=6)
    # per layer: qkv 8 x 48 + 48, out 24 x 8 + 8, mlp 8 x 12 + 12 + 12 x 8 + 8, two norms of 16
    layer = 384 + 48 + 192 + 8 + 96 + 12 + 96 + 8 + 32
    assert model.facts(64) == {
        "parameters": 2 * layer + 2 * V * 8 + 16,
        "trainable": 2 * layer + 2 * V * 8 + 16,
        # untied: the embedding is looked up, not multiplied
        "flops_per_token": 6 * (2 * (384 + 192 + 96 + 96) + V * 8) + 2 * (12 * 4 * 6 * 64 + 2 * 6 * 64),
        "kv_bytes_per_token": 2 * (2 * 2 * 6 * 4 + 4),
    }
    model.embedding.weight.requires_grad_(False)
    assert model.facts(64)["trainable"] == 2 * layer + V * 8 + 16


def test_first_loss_is_near_the_logarithm_of_the_vocabulary() -> None:
    model = ModelConfig.model_validate({"preset": "tiny", "positions": "rotary"}).build(256, 64)
    initialise(model, 0)
    tokens = torch.randint(256, (4, 65), generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy(model.logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - torch.tensor(256.0).log().item()) < 0.1


# One value other than the default or TINY's for every field: a field that is missing here fails the test.
OTHER: dict[str, Any] = {
    "d_model": 12,
    "n_layers": 3,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_head": 6,
    "d_ff": 16,
    "max_seq_len": T + 3,
    "positions": "rotary",
    "norm": {"kind": "rmsnorm"},
    "tied": False,
    "bias": False,
    "activation": "gelu",
    "attention": {"kind": "selective"},
}


@pytest.mark.parametrize("name", [name for name in GPTConfig.model_fields if name != "kind"])
def test_every_field_changes_the_function_or_the_table(name) -> None:
    def outcome(changes: dict[str, Any]) -> tuple[list[tuple[str, torch.Size]], torch.Tensor]:
        model = GPTConfig.model_validate({**TINY, **changes}).build(V, T)
        initialise(model, 0)
        for parameter in model.parameters():
            parameter.data += torch.arange(parameter.numel()).sin().view_as(parameter)  # biases off 0
        shapes = [(name, value.shape) for name, value in model.named_parameters()]
        return shapes, model.logits(torch.arange(T)[None]).detach()

    shapes, found = outcome({})
    other_shapes, other = outcome({name: OTHER[name]})
    assert shapes != other_shapes or (found - other).abs().max() > 1e-4


def test_defaults_are_filled_in_so_that_equal_models_share_a_digest() -> None:
    short = ModelConfig.model_validate({"preset": "mini"})
    long = ModelConfig.model_validate(
        {"kind": "gpt", "d_model": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "d_head": 64, "d_ff": 1024}
    )
    assert short == long
    assert short.digest() == long.digest()
    assert ModelConfig.model_validate(short.dump()) == short


def test_fields_that_came_later_move_no_digest() -> None:
    config = ModelConfig.model_validate({"preset": "tiny", "norm": {"kind": "layernorm"}})
    assert {"activation", "shift"}.isdisjoint({*config.canonical(), *config.canonical()["norm"]})
    for changes in ({"activation": "gelu"}, {"norm": {"kind": "layernorm", "shift": False}}):
        assert ModelConfig.model_validate({"preset": "tiny", **changes}).digest() != config.digest()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_expand_and_yield_to_the_table(preset) -> None:
    config = ModelConfig.model_validate({"preset": preset, "d_ff": 10, "attention": {"kind": "selective"}})
    assert isinstance(config, GPTConfig)
    assert config.d_ff == 10
    assert config.attention.kind == "selective"
    assert GPTConfig.model_validate({"preset": preset}) == ModelConfig.model_validate({"preset": preset})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"preset": "gpt2-124"}, "did you mean 'gpt2-124m'"),
        ({"preset": ["tiny"]}, "permitted"),
        ({"preset": "tiny", "n_heads": 5}, "give d_head"),
        ({"preset": "tiny", "n_kv_heads": 3}, "does not divide"),
        ({"preset": "tiny", "d_head": 5, "positions": "rotary"}, "must be even"),
        ({"preset": "tiny", "n_heads": 0}, "greater than 0"),
        ({"preset": "tiny", "d_model": "64"}, "valid integer"),
        ({"preset": "tiny", "layers": 2}, "did you mean 'n_layers'"),
        ({"preset": "tiny", "positions": "sinus"}, "learned"),
        ({"preset": "tiny", "attention": {"kind": "selektive"}}, "selective"),
        ({"preset": "tiny", "norm": {"affine": False}}, "layernorm"),
        ({"preset": "tiny", "norm": {"kind": "layernorm", "affine": False, "shift": False}}, "without affine"),
        ({"preset": "tiny", "activation": "relu"}, "gelu_tanh"),
        ({"kind": "gtp"}, "did you mean 'gpt'"),
    ],
)
def test_wrong_tables_are_refused_with_a_mend(table, message) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(table)


def test_too_long_a_context_is_an_input_error() -> None:
    with pytest.raises(InputError, match="max_seq_len"):
        build(context=6, max_seq_len=5)
    _, model = build()
    with pytest.raises(InputError, match="max_seq_len"):
        model(torch.zeros(1, T + 1, dtype=torch.int64))


def test_bf16_autocast_trains() -> None:
    _, model = build(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randint(V, (2, T)))
    output.hidden.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["softmax", "selective"])
def test_compiles(kind) -> None:
    """In a process of its own: the compiler cannot trace the tests' shape checks."""
    subprocess.run([sys.executable, str(Path(__file__).with_name("compiled_step.py")), kind], check=True, timeout=300)

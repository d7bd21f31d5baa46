"""Convolutional models and LSTMs: against loop oracles in fp64, their parameter counts, costs and configs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from winnow.attention.convolutional import ConvolutionalConfig, dpfp, elu_plus_one
from winnow.config import input_errors
from winnow.errors import InputError
from winnow.kernels.convolution import convolution
from winnow.models import LSTM, Conv, Model, ModelConfig
from winnow.models.conv import sinusoids
from winnow.parameters import initialise, parameter_table

PUBLISHED: dict[str, Any] = {"kind": "conv", "d_model": 64, "n_layers": 3, "kernel": 13, "dilation": [3, 5, 1]}
SMALL: dict[str, Any] = {"kind": "conv", "d_model": 4, "n_layers": 3, "kernel": 3, "dilation": [2, 3, 1]}
KINDS = sorted(set(ConvolutionalConfig.members) - {"none"})
ATTENTION: list[dict[str, Any]] = [
    *({"kind": "linear", "qkv": letters} for letters in ("QK", "QV", "KV", "QKV")),
    *({"kind": "softmax", "qkv": letters, "n_heads": 2} for letters in ("QK", "QV", "KV", "QKV")),
    {"kind": "linear", "qkv": "QK", "features": "dpfp"},
]


def build(vocab_size: int = 9, context: int = 7, **table: Any) -> Model:
    """In fp64, with large weights of every parameter."""
    torch.set_default_dtype(torch.float64)
    try:
        model = ModelConfig.model_validate(table).build(vocab_size, context)
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    return model


def refusal(**table: Any) -> InputError:
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(table)
    return input_errors(caught.value)[0]


def last(attention: Any) -> list[Any]:
    return ["none", "none", attention]


def layers(model: Any) -> list[Any]:
    return list(model.layers)


# Against definitions


def wave(t: int, c: int, C: int) -> float:
    return (math.cos if c % 2 else math.sin)(t / 10000 ** (c // 2 * 2 / C))


def loops(model: Conv, tokens: list[int], *, positions: bool, skips: tuple[tuple[int, int], ...]) -> Tensor:
    """Logits of one text, from the definitions alone: nothing of the model but its weights and sizes."""
    h = [model.embedding.weight[token] for token in tokens]
    if positions:
        C = len(h[0])
        h = [
            row
            + torch.tensor(
                [(math.cos if c % 2 else math.sin)(t / 10000 ** (c // 2 * 2 / C)) for c in range(C)],
                dtype=torch.float64,
            )
            for t, row in enumerate(h)
        ]
    given: list[list[Tensor]] = []
    for index, layer in enumerate(layers(model)):
        x = h
        for start, end in skips:
            if end == index:
                x = [a + b for a, b in zip(x, given[start], strict=True)]
        W, width, made = layer.weight, layer.width, layer.made
        parts: dict[str, list[Tensor]] = {}
        for place, letter in enumerate(made or "-"):
            rows = slice(place * width, (place + 1) * width)
            parts[letter] = [
                layer.bias[rows]
                + sum(
                    W[rows, :, tap] @ x[t + (tap - W.shape[2] // 2) * layer.dilation]
                    for tap in range(W.shape[2])
                    if 0 <= t + (tap - W.shape[2] // 2) * layer.dilation < len(x)
                )
                for t in range(len(x))
            ]
        if made:
            q, k, v = (parts.get(letter, x) for letter in "QKV")
            y = list(layer.attention.oracle(torch.stack(q), torch.stack(k), torch.stack(v)))
        else:
            y = parts["-"]
        y = [row * 0.5 * (1 + torch.erf(row / 2**0.5)) for row in y]
        h = [a + b for a, b in zip(y, x, strict=True)]
        given.append(h)
    return torch.stack(h) @ model.embedding.weight.T


@pytest.mark.parametrize("attention", ["none", *ATTENTION], ids=str)
@pytest.mark.parametrize("extra", [{}, {"positions": "sinusoidal", "skips": [[0, 2]]}], ids=["plain", "extras"])
def test_logits_and_gradients_equal_the_loops(attention: Any, extra: dict[str, Any]) -> None:
    model = build(**SMALL, attention=last(attention), **extra)
    assert isinstance(model, Conv)
    tokens = torch.randint(9, (2, 7), generator=torch.Generator().manual_seed(1))
    found = model.logits(tokens)
    skips = ((0, 2),) if extra else ()
    expected = torch.stack([loops(model, row.tolist(), positions=bool(extra), skips=skips) for row in tokens])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = tuple(model.parameters())
    for a, b in zip(
        torch.autograd.grad(found, weights, slope), torch.autograd.grad(expected, weights, slope), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


@pytest.mark.parametrize("norm", [None, {"kind": "layernorm"}, {"kind": "rmsnorm"}])
@pytest.mark.parametrize("attention", ["none", *ATTENTION], ids=str)
def test_a_layer_equals_its_own_oracle(attention: Any, norm: Any) -> None:
    """By which every run is watched."""
    layer = layers(build(**SMALL, attention=attention, norm=norm))[1]
    x = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = torch.stack([layer.oracle(x[:, b]) for b in range(2)], 1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_taps_are_pytorchs_convolution(kernel: int, dilation: int) -> None:
    """Values and gradients, also where taps reach beyond the text."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in ((9, 2, 3), (4, 3, kernel), (4,))
    )
    padding = kernel // 2 * dilation
    expected = torch.nn.functional.conv1d(x.permute(1, 2, 0), weight, bias, padding=padding, dilation=dilation)
    found = convolution(x, weight, bias, dilation)
    torch.testing.assert_close(found, expected.permute(2, 0, 1), rtol=0, atol=1e-12)
    slope = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    of_found = torch.autograd.grad(found, (x, weight, bias), slope)
    of_expected = torch.autograd.grad(expected.permute(2, 0, 1), (x, weight, bias), slope)
    for a, b in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x, w, b: convolution(x, w, b, dilation), (x, weight, bias), fast_mode=True)


def test_other_dtypes_use_pytorchs_convolution() -> None:
    x, weight, bias = torch.randn(5, 2, 3), torch.randn(4, 3, 3), torch.randn(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = convolution(x, weight, bias, 1)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), convolution(x, weight, bias, 1), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_lstm_equals_its_equations(bidirectional: bool) -> None:
    model = build(kind="lstm", d_model=4, n_layers=2, bidirectional=bidirectional)
    assert isinstance(model, LSTM)
    tokens = torch.tensor([3, 1, 8, 2])
    rows = list(model.embedding.weight[tokens])
    for layer in range(2):
        directions: list[list[Tensor]] = []
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            of_x, of_h, b1, b2 = (
                getattr(model.lstm, f"{name}_l{layer}{suffix}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = c = torch.zeros(of_h.shape[1], dtype=torch.float64)
            states: list[Tensor] = []
            for x in reversed(rows) if suffix else rows:
                i, f, g, o = (of_x @ x + b1 + of_h @ h + b2).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                states.append(h)
            directions.append(states[::-1] if suffix else states)
        rows = [torch.cat(parts) for parts in zip(*directions, strict=True)]
    expected = torch.stack(rows) @ model.embedding.weight.T
    torch.testing.assert_close(model.logits(tokens[None])[0], expected, rtol=0, atol=1e-12)


# Properties of attention inside


def attention_of(table: dict[str, Any], channels: int = 4) -> Any:
    torch.set_default_dtype(torch.float64)
    try:
        module = ConvolutionalConfig.model_validate(table).build(channels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert module is not None
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def inputs(n: int = 6) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(n, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("table", ATTENTION, ids=str)
@pytest.mark.parametrize("n", [1, 2, 6])
def test_attention_equals_its_double_sum(table: dict[str, Any], n: int) -> None:
    """In short and in long texts, which linear attention sums in another order."""
    module = attention_of(table)
    parts = [x.requires_grad_() for x in inputs(n)]
    found = module(*parts)
    expected = torch.stack([module.oracle(*(x[:, b] for x in parts)) for b in range(2)], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(found, parts, slope), torch.autograd.grad(expected, parts, slope), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("table", ATTENTION, ids=str)
def test_positions_are_all_alike_to_attention(table: dict[str, Any]) -> None:
    module, parts, order = attention_of(table), inputs(), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(module(*(x[order] for x in parts)), module(*parts)[order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("table", ATTENTION, ids=str)
def test_attention_sees_what_comes_later(table: dict[str, Any]) -> None:
    q, k, v = inputs()
    module, changed = attention_of(table), v.clone()
    changed[-1] += 1
    assert not torch.equal(module(q, k, changed)[0], module(q, k, v)[0])


def test_features() -> None:
    x = torch.tensor([-30.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    expected = torch.tensor([math.exp(-30), math.exp(-1), 1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(elu_plus_one(x), expected, rtol=0, atol=1e-12)
    assert (elu_plus_one(x) > 0).all()
    # [relu(x), relu(-x)] = [0 0 3 0 | 1 2 0 0]: neighbours are 2 after 1, and nothing else.
    assert dpfp(torch.tensor([-1.0, -2.0, 3.0, 0.0])).tolist() == [0, 0, 0, 0, 0, 2, 0, 0]
    assert not dpfp(torch.tensor([0.0, 5.0, 0.0, -4.0])).any()  # isolated entries
    around = dpfp(torch.tensor([2.0, 0.0, 0.0, -3.0]))
    assert around.tolist() == [6, 0, 0, 0, 0, 0, 0, 0]  # the last is beside the first


def test_attention_before_activation() -> None:
    """The order inside a layer: activation first would give something else, and so would the residual of a norm."""
    model = build(**SMALL, attention=last({"kind": "linear", "qkv": "QK"}))
    layer = layers(model)[2]
    x = inputs()[0]
    q, k = convolution(x, layer.weight, layer.bias, 1).split(4, -1)
    gelu = torch.nn.functional.gelu
    torch.testing.assert_close(layer(x), gelu(layer.attention(q, k, x)) + x)
    assert (layer(x) - layer.attention(gelu(q), gelu(k), x) - x).abs().max() > 1e-3


# Sizes


COUNTS = {
    "none": 176_320,
    "linear QK": 229_632,
    "linear QV": 229_632,
    "linear KV": 229_632,
    "linear QKV": 282_944,
    "softmax QK": 246_272,
    "softmax KV": 246_272,
    "softmax QKV": 299_584,
}


@pytest.mark.parametrize("arm", COUNTS)
def test_published_parameter_counts(arm: str) -> None:
    kind, _, letters = arm.partition(" ")
    attention = last({"kind": kind, "qkv": letters}) if letters else "none"
    with torch.device("meta"):
        model = ModelConfig.model_validate({**PUBLISHED, "attention": attention}).build(256, 23)
    assert model.facts(23)["parameters"] == COUNTS[arm]


def test_heads_cost_no_parameters_and_must_divide() -> None:
    counts = set()
    for n_heads in (1, 4, 8):
        attention = {"kind": "softmax", "qkv": "QK", "n_heads": n_heads}
        with torch.device("meta"):
            model = ModelConfig.model_validate({**PUBLISHED, "attention": last(attention)}).build(256, 23)
        counts.add(model.facts(23)["parameters"])
    assert counts == {246_272}
    error = refusal(**PUBLISHED, attention=last({"kind": "softmax", "qkv": "QK", "n_heads": 5}))
    assert (error.key, error.message) == ("attention.2.n_heads", "64 channels do not divide into 5 heads")


def test_costs() -> None:
    model = build(**SMALL, attention=last({"kind": "linear", "qkv": "QK"}))
    weights = 9 * 4 + 4 * 4 * 3 * 2 + 8 * 4 * 3
    assert model.facts(7)["flops_per_token"] == 6 * weights + min(12 * 4 * 4, 6 * 7 * 8)
    assert "kv_bytes_per_token" not in model.facts(7)
    untied = build(kind="lstm", d_model=4, n_layers=1, d_hidden=3, tied=False).facts(7)
    assert untied["parameters"] == 9 * 4 + 12 * (4 + 3 + 2) + 9 * 3
    assert untied["flops_per_token"] == 6 * (12 * (4 + 3) + 9 * 3)


# Initial values


def test_what_two_models_share_starts_alike() -> None:
    """Each letter's weights have draws of their own, uniform as PyTorch's."""
    models: dict[str, Any] = {}
    for letters in ("QK", "QKV", "KV"):
        models[letters] = ModelConfig.model_validate(
            {**PUBLISHED, "attention": last({"kind": "linear", "qkv": letters})}
        ).build(256, 23)
        initialise(models[letters], 5)
    parts = {letters: layers(model)[2].weight.split(64) for letters, model in models.items()}
    assert torch.equal(parts["QK"][0], parts["QKV"][0])
    assert torch.equal(parts["QK"][1], parts["KV"][0])
    assert torch.equal(parts["QKV"][2], parts["KV"][1])
    bound = (64 * 13) ** -0.5
    for parameter in (layers(models["QKV"])[2].weight, layers(models["QKV"])[2].bias):
        assert 0.95 * bound < float(parameter.detach().abs().max()) <= bound
    assert abs(float(models["QK"].embedding.weight.detach().std()) - 1) < 0.03
    small: Any = ModelConfig.model_validate({**PUBLISHED, "embedding_std": 0.02}).build(256, 23)
    initialise(small, 5)
    torch.testing.assert_close(small.embedding.weight, models["QK"].embedding.weight * 0.02)


def test_a_model_is_built_without_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    for table in (PUBLISHED, {"kind": "lstm", "d_model": 8, "n_layers": 1}):
        model = ModelConfig.model_validate(table).build(9, 30)
        initialise(model, 0)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert parameter_table(model).keys() == dict(model.named_parameters()).keys()
    assert torch.equal(torch.random.get_rng_state(), before)


# Configs


def test_two_ways_to_write_a_model_are_one() -> None:
    short = ModelConfig.model_validate(SMALL)
    long = ModelConfig.model_validate(
        {
            **SMALL,
            "kernel": [3, 3, 3],
            "channels": 4,
            "residual": [True] * 3,
            "attention": [{"kind": "none"}, "none", "none"],
            "skips": [],
        }
    )
    assert short == long
    assert short.digest() == long.digest()
    skips = [[0, 3], [0, 2]]
    four = {**SMALL, "n_layers": 4, "dilation": 1}
    assert ModelConfig.model_validate({**four, "skips": skips}) == ModelConfig.model_validate(
        {**four, "skips": skips[::-1]}
    )
    with_attention = ModelConfig.model_validate({**SMALL, "attention": last({"kind": "linear", "qkv": "QV"})})
    assert ModelConfig.model_validate(with_attention.dump()) == with_attention
    assert ModelConfig.model_validate(with_attention.dump()).digest() == with_attention.digest()


def test_widths_may_change_where_nothing_is_added() -> None:
    model = build(
        **SMALL, channels=[6, 8, 4], residual=False, attention=["none", {"kind": "linear", "qkv": "QKV"}, "none"]
    )
    assert model(torch.zeros(1, 7, dtype=torch.long)).hidden.shape == (1, 7, 4)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"kernel": 4}, "kernel", "4 taps would change the length"),
    ({"kernel": [3, 3]}, "kernel", "2 values for 3 layers"),
    ({"kernel": 1}, "dilation", "one tap has no dilation"),
    ({"channels": 6}, "residual", "turns 4 channels into 6"),
    ({"channels": 6, "residual": False}, "channels", "readout takes d_model = 4"),
    (
        {"channels": [4, 6, 4], "residual": False, "attention": ["none", {"kind": "linear", "qkv": "QK"}, "none"]},
        "attention.1.qkv",
        "takes the rest from the layer's input of 4 channels",
    ),
    ({"skips": [[0, 1]]}, "skips", "does not follow it directly"),
    ({"skips": [[0, 3]]}, "skips", "joins no layer"),
    ({"skips": [[0, 2], [0, 2]]}, "skips", "stands twice"),
    ({"channels": [6, 4, 4], "residual": [False, False, True], "skips": [[0, 2]]}, "skips", "gives 6 channels"),
    ({"d_model": 5, "positions": "sinusoidal"}, "positions", "pairs of channels"),
    ({"attention": {"kind": "linear"}}, "attention.0.qkv", "is missing"),
    ({"attention": {"kind": "linear", "qkv": "KQ"}}, "attention.0.qkv", "'KQ' is not permitted"),
    ({"attention": {"kind": "softmax", "qkv": "QK", "features": "dpfp"}}, "attention.0.features", "unknown key"),
    ({"attention": {"kind": "none", "qkv": "QK"}}, "attention.0.qkv", "unknown key"),
    ({"attention": "T"}, "attention.0", "kind 'T' is unknown"),
    ({"heads": 3}, "heads", "unknown key"),
]


@pytest.mark.parametrize(("changes", "key", "said"), REFUSED, ids=str)
def test_what_cannot_be_is_refused(changes: dict[str, Any], key: str, said: str) -> None:
    error = refusal(**{**SMALL, **changes})
    assert error.key == key
    assert said in error.message


def test_what_does_not_fit_the_task_is_refused() -> None:
    with pytest.raises(InputError, match="only the middle tap reaches a position of 3, at a dilation of 3"):
        build(**SMALL, context=3)
    with pytest.raises(InputError, match="8 tokens are more than the model's 7"):
        build(**SMALL)(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(InputError, match="reads across documents"):
        build(**SMALL)(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long))
    error = refusal(kind="lstm", d_model=4, n_layers=1, d_hidden=3)
    assert error.key == "tied"
    assert error.mend == "use another d_hidden, or tied = false"
    assert "give d_hidden" in str(refusal(kind="lstm", d_model=5, n_layers=1, bidirectional=True).message)


def test_recomputed_layers_are_the_same() -> None:
    model = build(**SMALL, attention=last(ATTENTION[0]))
    tokens = torch.randint(9, (2, 7), generator=torch.Generator().manual_seed(1))
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model.logits(tokens).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.recompute_blocks()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_sinusoids() -> None:
    expected = torch.tensor([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)])
    torch.testing.assert_close(sinusoids(3, 4)[2], expected)


def test_attention_of_chosen_layers_is_the_list_that_it_stands_for():
    """What a grid varies by key; two ways to write a model are one."""
    written = {**PUBLISHED, "attention": {"kind": "linear", "qkv": "QK", "layers": [2]}}
    spelt = {**PUBLISHED, "attention": ["none", "none", {"kind": "linear", "qkv": "QK"}]}
    assert ModelConfig.model_validate(written).digest() == ModelConfig.model_validate(spelt).digest()
    for layers in ([], [3], [-1], [0, 0], 2, [True], "2"):
        with pytest.raises(ValidationError) as found:
            ModelConfig.model_validate({**PUBLISHED, "attention": {"kind": "linear", "qkv": "QK", "layers": layers}})
        assert "choice of layers" in str(found.value), layers

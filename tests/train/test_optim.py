"""The schedule against numbers worked out by hand, AdamW against plain loops in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from winnow.parameters import ParameterSpec, spec
from winnow.train.config import TrainConfig
from winnow.train.optim import Optimizer, learning_rate


def test_warm_up_of_the_notebooks() -> None:
    """GPT-2 settings: maximum 6e-4 and W = 715; a run of 500 steps is still rising when it ends."""
    train = TrainConfig(steps=500, lr=6e-4, warmup=715)
    assert learning_rate(0, train) == pytest.approx(6e-4 / 715, rel=1e-12)
    assert learning_rate(499, train) == pytest.approx(4.19e-4, abs=1e-6)
    assert all(learning_rate(s, train) < learning_rate(s + 1, train) for s in range(499))


def test_cosine_from_the_peak_to_the_minimum() -> None:
    train = TrainConfig(steps=2500, lr=6e-4, warmup=715, min_lr_fraction=0.1)
    assert learning_rate(714, train) == pytest.approx(6e-4)
    assert learning_rate(715, train) == pytest.approx(6e-4)
    assert learning_rate(715 + 1785 // 3, train) == pytest.approx(6e-5 + 0.75 * 5.4e-4)  # cos 60 degrees
    assert learning_rate(2500, train) == pytest.approx(6e-5)


def test_linear_and_constant() -> None:
    linear = TrainConfig(steps=110, lr=1.0, warmup=10, schedule="linear", min_lr_fraction=0.2)
    assert [learning_rate(s, linear) for s in (4, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.6, 0.2])
    constant = TrainConfig(steps=110, lr=1.0, warmup=0, schedule="constant")
    assert {learning_rate(s, constant) for s in range(110)} == {1.0}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3))
        self.bias = nn.Parameter(torch.linspace(0.5, 1, 2, dtype=torch.float64))


def optimizer_of(pair: Pair, train: TrainConfig, multiplier: float = 1.0) -> Optimizer:
    table: dict[str, ParameterSpec] = {
        "matrix": spec("matrix", 3, 2),
        "bias": ParameterSpec("bias", 3, 2, "zeros", 0.0, decay=False, lr_multiplier=multiplier),
    }
    return Optimizer(dict(pair.named_parameters()), table, train)


def adamw(values: list[float], gradients: list[list[float]], rates: list[float], train: TrainConfig, decay: float):
    """Algorithm 2 of Loshchilov and Hutter 2019, one number at a time."""
    b1, b2 = train.betas
    found = []
    for index, value in enumerate(values):
        m = v = 0.0
        for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
            g = gradient[index]
            value -= rate * decay * value
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            value -= rate * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + train.eps)
        found.append(value)
    return found


@pytest.mark.parametrize("decay_on", ["matrices", "all"])
def test_adamw_matches_plain_loops(decay_on: str) -> None:
    train = TrainConfig(steps=5, lr=0.1, weight_decay=0.3, decay_on=decay_on, clip=None)  # pyright: ignore[reportArgumentType]
    pair = Pair()
    start = {name: p.detach().flatten().tolist() for name, p in pair.named_parameters()}
    optimizer = optimizer_of(pair, train, multiplier=0.5)
    draw = torch.Generator().manual_seed(1)
    gradients: dict[str, list[list[float]]] = {"matrix": [], "bias": []}
    rates = [learning_rate(s, train) for s in range(5)]
    for rate in rates:
        for name, p in pair.named_parameters():
            p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)
            gradients[name].append(p.grad.flatten().tolist())
        optimizer.step(rate)
    expected = adamw(start["matrix"], gradients["matrix"], rates, train, 0.3)
    assert pair.matrix.detach().flatten().tolist() == pytest.approx(expected, rel=1e-9)
    halved = [rate * 0.5 for rate in rates]
    expected = adamw(start["bias"], gradients["bias"], halved, train, 0.3 if decay_on == "all" else 0.0)
    assert pair.bias.detach().flatten().tolist() == pytest.approx(expected, rel=1e-9)
    assert optimizer.updates() == 5


def gradients_after_clip(clip: float | None) -> tuple[float, list[float]]:
    pair = Pair()
    optimizer = optimizer_of(pair, TrainConfig(clip=clip))
    pair.matrix.grad = torch.full((2, 3), 2.0, dtype=torch.float64)
    pair.bias.grad = torch.full((2,), 1.0, dtype=torch.float64)
    norm = float(optimizer.clip())
    return norm, [*pair.matrix.grad.flatten().tolist(), *pair.bias.grad.tolist()]


def test_clipping_scales_the_whole_gradient() -> None:
    norm, clipped = gradients_after_clip(1.0)
    assert norm == pytest.approx(math.sqrt(6 * 4 + 2))
    assert math.sqrt(sum(g * g for g in clipped)) == pytest.approx(1.0, rel=1e-5)
    assert clipped[0] / clipped[-1] == pytest.approx(2.0)


def test_a_bound_that_never_bites_leaves_no_trace() -> None:
    assert gradients_after_clip(1000.0) == gradients_after_clip(None)


def test_state_goes_round() -> None:
    train = TrainConfig()
    pair, other = Pair(), Pair()
    optimizer, copy = optimizer_of(pair, train), optimizer_of(other, train)
    for _ in range(2):
        for p in pair.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step(0.1)
    other.load_state_dict(pair.state_dict())
    copy.load(optimizer.state())
    for model, of in ((pair, optimizer), (other, copy)):
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.7)
        of.step(0.05)
    assert copy.updates() == 3
    assert pair.matrix.equal(other.matrix)
    assert pair.bias.equal(other.bias)

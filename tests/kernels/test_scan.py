"""Sums over queries and the protection recurrence: every algorithm against plain numbers, and their errors."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from tests.oracles.selective import recurrence
from torch import Tensor

from winnow.kernels.rule import Algorithm
from winnow.kernels.scan import BLOCK, damage_of_block, running_damage, running_sum

ALGORITHMS = get_args(Algorithm)
LENGTHS = (0, 1, 2, 3, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7)


def draw(n: int, seed: int = 0, columns: int = 3) -> tuple[Tensor, Tensor]:
    """Attacks and protections, a third of each 0, of sizes that leave the outcome open."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, 2, n, columns, generator=generator, dtype=torch.float64) + 0.4
    a, p = both.relu()
    return a, p


def column(x: Tensor) -> Tensor:
    return x.to(torch.float64)[:, None]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n", LENGTHS)
def test_sum_and_damage_against_plain_numbers(algorithm: Algorithm, n: int) -> None:
    a, p = draw(n)
    total, damage = running_sum(a, algorithm), running_damage(a, p, algorithm)
    assert total.shape == damage.shape == a.shape
    for row in range(2):
        for c in range(3):
            attacks, shields = a[row, :, c].tolist(), p[row, :, c].tolist()
            assert total[row, :, c].tolist() == pytest.approx(recurrence(attacks, [0.0] * n), abs=1e-11)
            assert damage[row, :, c].tolist() == pytest.approx(recurrence(attacks, shields), abs=1e-11)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_by_hand(algorithm: Algorithm) -> None:
    a, p = column(torch.tensor([1, 1, 10])), column(torch.tensor([5, 0, 0]))
    assert running_damage(a, p, algorithm)[:, 0].tolist() == [1, 1, 7]  # S1-60; not 6
    assert running_damage(a, torch.zeros_like(a), algorithm)[:, 0].tolist() == [1, 2, 12]
    assert running_damage(a, p + 50, algorithm)[:, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n", [1, 2, 7, BLOCK + 3])
def test_gradients(algorithm: Algorithm, n: int) -> None:
    """dD/da: g of the first vulnerable turn at or after; dD/dp: minus that of the first one after (S1-61)."""
    a, p = (x[0, :, :1].clone().requires_grad_() for x in draw(n, seed=n))
    g = torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(running_damage(a, p, algorithm), (a, p), g, allow_unused=True, materialize_grads=True)
    later = [float(g[i:].sum()) for i in range(n)] + [0.0]
    R, hit = 0.0, []
    for attack, shield in zip(a[:, 0].tolist(), p[:, 0].tolist(), strict=True):
        hit.append(attack >= R)
        R = max(R - attack, 0.0) + shield
    first = [next((i for i in range(start, n) if hit[i]), n) for start in range(n + 1)]
    live = a[:, 0] > 0  # a turn without attack is at the edge of its own relu: its gradient is never read
    expected_a = torch.tensor([later[first[i]] for i in range(n)], dtype=torch.float64)
    torch.testing.assert_close(found[0][live, 0], expected_a[live])
    shielded = p[:, 0] > 0
    expected_p = torch.tensor([-later[first[i + 1]] for i in range(n)], dtype=torch.float64)
    torch.testing.assert_close(found[1][shielded, 0], expected_p[shielded])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_surplus_of_exactly_the_attack_counts_as_damage(algorithm: Algorithm) -> None:
    a = column(torch.tensor([1.0, 5.0])).requires_grad_()
    p = column(torch.tensor([5.0, 0.0])).requires_grad_()
    damage = running_damage(a, p, algorithm)
    assert damage[:, 0].tolist() == [1, 1]
    of_a, of_p = torch.autograd.grad(damage[1, 0], (a, p))
    assert of_a[:, 0].tolist() == [1, 1]
    assert of_p[:, 0].tolist() == [-1, 0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_second_derivatives(algorithm: Algorithm) -> None:
    generator = torch.Generator().manual_seed(3)  # no two sums equal, where finite differences would see an edge
    a, p = (torch.rand(6, 2, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradgradcheck(lambda a, p: running_damage(a**2, p**2, algorithm), (a, p))
    assert torch.autograd.gradgradcheck(lambda a: running_sum(a**2, algorithm), (a,))


def test_a_surplus_goes_from_block_to_block() -> None:
    a, p = draw(40)
    whole, left = damage_of_block(a, p, torch.zeros_like(a[:, 0]))
    first, surplus = damage_of_block(a[:, :23], p[:, :23], torch.zeros_like(a[:, 0]))
    second, last = damage_of_block(a[:, 23:], p[:, 23:], surplus)
    torch.testing.assert_close(torch.cat((first, second + first[:, -1:]), dim=1), whole)
    torch.testing.assert_close(last, left)
    assert float(surplus.max()) > 0


def largest_error(a: Tensor, algorithm: Algorithm, dtype: torch.dtype) -> float:
    found = running_sum(a.to(dtype), algorithm).double()
    return float((found - a.double().cumsum(-2)).abs().max())


def test_errors_of_1024_terms() -> None:
    """The source's table S1-81: sequential fp32 1.6e-3, tree 2.3e-4, library 6e-5; a bf16 accumulator stagnates."""
    a = torch.rand(1024, 64, generator=torch.Generator().manual_seed(0)) * 2
    sequential = largest_error(a, "sequential", torch.float32)
    tree, library, blocked = (largest_error(a, x, torch.float32) for x in ("tree", "library", "blocked"))
    assert 5e-4 < sequential < 4e-3
    assert tree < sequential / 4
    assert library < sequential / 4
    assert blocked < sequential / 4
    assert 400 < largest_error(a, "sequential", torch.bfloat16) < 1024
    for algorithm in ALGORITHMS:
        assert largest_error(a, algorithm, torch.float64) < 1e-11  # S1-84 asks for 1e-5

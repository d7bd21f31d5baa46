"""Rotary positions against the loop oracle and their defining property."""

from __future__ import annotations

import torch
from tests.oracles.gpt import turn

from winnow.attention.rope import Rotary

D = 8


def rotary(max_seq_len: int) -> Rotary:
    torch.set_default_dtype(torch.float64)
    try:
        return Rotary(D, max_seq_len)
    finally:
        torch.set_default_dtype(torch.float32)


def test_equals_the_oracle() -> None:
    x = torch.randn(2, 5, 3, D, dtype=torch.float64)
    found = rotary(5)(x, None)
    for b in range(2):
        for t in range(5):
            for h in range(3):
                assert torch.allclose(found[b, t, h], turn(x[b, t, h], t), atol=1e-14)


def test_given_positions_are_used() -> None:
    x = torch.randn(1, 3, 1, D, dtype=torch.float64)
    found = rotary(9)(x, torch.tensor([[8, 0, 3]]))
    for t, position in enumerate((8, 0, 3)):
        assert torch.allclose(found[0, t, 0], turn(x[0, t, 0], position), atol=1e-14)


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, D, dtype=torch.float64)
    turned = rotary(50)
    at = lambda i, j: (turned(q, torch.tensor([[i]])) * turned(k, torch.tensor([[j]]))).sum()  # noqa: E731
    assert torch.allclose(at(7, 3), at(49, 45), atol=1e-12)
    assert not torch.allclose(at(7, 3), at(7, 4), atol=1e-3)


def test_late_positions_keep_their_angle_in_fp32() -> None:
    x = torch.randn(1, 1, 1, D)
    found = Rotary(D, 100_001)(x, torch.tensor([[100_000]]))
    assert torch.allclose(found[0, 0, 0].double(), turn(x[0, 0, 0].double(), 100_000), atol=1e-6)

"""The fused readout against the loop oracle (fp64), against itself in chunks, and against its memory promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.oracles.readout import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from winnow.kernels import readout
from winnow.kernels.readout import cross_entropy_and_choice, linear_cross_entropy


def example(B: int, T: int, C: int, V: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(B * 1000 + V)
    hidden = torch.randn(B, T, C, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, C, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (B, T), generator=generator)
    mask = torch.rand(B, T, generator=generator, dtype=torch.float64).round(decimals=2)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, mask.to(dtype)


def rms_error(found: torch.Tensor, expected: np.ndarray) -> float:
    difference = found.detach().double().numpy().reshape(expected.shape) - expected
    return float(np.sqrt((difference**2).mean()) / np.sqrt((expected**2).mean()))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_chunks", [1, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_loss_and_gradients_equal_the_oracle(reduction, masked, n_chunks, dtype, tolerance, monkeypatch) -> None:
    hidden, weight, targets, mask = example(3, 7, 6, 11, dtype)
    monkeypatch.setattr(readout, "LEAST_ROWS", 21 if n_chunks == 1 else 6)
    monkeypatch.setattr(readout, "CHUNK_ELEMENTS", 1)
    loss = linear_cross_entropy(hidden, weight, targets, mask if masked else None, reduction=reduction)
    (3.0 * loss).backward()
    expected, of_hidden, of_weight = cross_entropy(
        hidden.detach().double().numpy().reshape(21, 6),
        weight.detach().double().numpy(),
        targets.flatten().numpy(),
        mask.double().numpy().flatten() if masked else None,
        reduction,
    )
    assert loss.item() == pytest.approx(expected, rel=tolerance)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert rms_error(hidden.grad, 3 * of_hidden) < tolerance
    assert rms_error(weight.grad, 3 * of_weight) < tolerance


def test_the_likeliest_token_comes_from_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets, mask = example(3, 7, 6, 11, torch.float64)
    monkeypatch.setattr(readout, "LEAST_ROWS", 6)
    monkeypatch.setattr(readout, "CHUNK_ELEMENTS", 1)
    total, choice = cross_entropy_and_choice(hidden, weight, targets, mask)
    assert torch.equal(choice, (hidden @ weight.T).argmax(dim=-1))
    total.backward()
    gradient, hidden.grad = hidden.grad, None
    plain = linear_cross_entropy(hidden, weight, targets, mask, reduction="sum")
    plain.backward()
    assert torch.equal(total, plain)
    assert gradient is not None
    assert torch.equal(gradient, hidden.grad if hidden.grad is not None else torch.empty(0))
    assert not choice.requires_grad
    _, first = cross_entropy_and_choice(torch.zeros(1, 2, 6), weight.detach().float(), targets[:1, :2])
    assert first.tolist() == [[0, 0]]  # of equally likely ones


def test_gradcheck() -> None:
    hidden, weight, targets, mask = example(2, 3, 4, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, mask), (hidden, weight))


def test_large_logits_stay_finite() -> None:
    hidden, weight, targets, _ = example(1, 4, 3, 5, torch.float32)
    loss = linear_cross_entropy(hidden * 1e4, weight, targets)
    loss.backward()
    assert loss.isfinite()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, weight, targets, _ = example(1, 4, 3, 5, torch.float32)
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, tuple | list) else (result,)
        # Views of the inputs are no allocations; a transposed weight is one such.
        self.elements = max([self.elements, *(t.numel() for t in found if isinstance(t, torch.Tensor))])
        return result


def test_logits_are_never_formed_as_a_whole() -> None:
    B, T, C, V = 8, 128, 8, 16_384  # all logits: 16.8 M; the weight: 0.13 M
    hidden, weight, targets, _ = example(B, T, C, V, torch.float32)
    with Largest() as seen:
        linear_cross_entropy(hidden, weight, targets).backward()
    assert seen.elements <= max(readout.CHUNK_ELEMENTS, readout.LEAST_ROWS * V) < B * T * V / 4
    with Largest() as seen:  # that the measure can see them
        torch.nn.functional.linear(hidden, weight)
    assert seen.elements == B * T * V


def test_bf16_autocast_keeps_sums_in_fp32(monkeypatch) -> None:
    monkeypatch.setattr(readout, "LEAST_ROWS", 100)
    monkeypatch.setattr(readout, "CHUNK_ELEMENTS", 1)
    hidden, weight, targets, _ = example(4, 64, 32, 50, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    exact, of_hidden, of_weight = cross_entropy(
        hidden.detach().double().numpy().reshape(256, 32),
        weight.detach().double().numpy(),
        targets.flatten().numpy(),
        None,
        "mean",
    )
    # bf16 keeps 8 bits: products carry 2^-9 relative error, logits here are about 6.
    assert loss.item() == pytest.approx(exact, rel=2e-3)
    assert hidden.grad is not None
    assert rms_error(hidden.grad, of_hidden) < 1e-2
    assert rms_error(weight.grad, of_weight) < 1e-2


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, targets, _ = example(1, 4, 3, 5, torch.float32)
    loss = linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)

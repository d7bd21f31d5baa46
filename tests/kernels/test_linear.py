"""The linear map against fp64, on the fast path and off it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from winnow.kernels.linear import Linear, linear
from winnow.parameters import initialise, parameter_table, spec


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("rows", [(5,), (2, 7), (1, 3, 2)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_values_and_gradients(rows, with_bias, onednn) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((*rows, 33), (17, 33), (17,)))
    g = torch.randn(*rows, 17, generator=generator)
    before = torch.backends.mkldnn.set_flags(onednn)
    try:
        y = linear(x, w, b if with_bias else None)
        y.backward(g)
    finally:
        torch.backends.mkldnn.set_flags(before[0])
    xd, wd, bd = (t.detach().double().requires_grad_() for t in (x, w, b))
    yd = F.linear(xd, wd, bd if with_bias else None)
    yd.backward(g.double())
    assert relative(y, yd) < 1e-6
    for found, expected in ((x, xd), (w, wd), *([(b, bd)] if with_bias else [])):
        assert found.grad is not None
        assert expected.grad is not None
        assert relative(found.grad, expected.grad) < 1e-6


def test_strided_input_and_gradient() -> None:
    x = torch.randn(6, 4, 10).transpose(0, 1).requires_grad_()
    w = torch.randn(12, 10).requires_grad_()
    y = linear(x, w, None)
    y.transpose(0, 1).sum().backward()
    assert w.grad is not None
    assert relative(w.grad, x.detach().double().sum((0, 1)).expand(12, 10)) < 1e-6


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, w = torch.randn(3, 4).requires_grad_(), torch.randn(5, 4)
    linear(x, w, None).sum().backward()
    assert x.grad is not None
    assert w.grad is None


def test_second_derivatives_hold_on_the_fast_path() -> None:
    x, w = torch.randn(3, 4).requires_grad_(), torch.randn(5, 4).requires_grad_()
    (of_weight,) = torch.autograd.grad((linear(x, w, None) ** 2).sum(), w, create_graph=True)
    (found,) = torch.autograd.grad((of_weight**2).sum(), x)
    xd, wd = x.detach().double().requires_grad_(), w.detach().double()
    # d/dw of |x w^T|^2 is 2 (x w^T)^T x.
    (expected,) = torch.autograd.grad(((2 * (xd @ wd.T).T @ xd) ** 2).sum(), xd)
    assert relative(found, expected) < 1e-5
    (of_x,) = torch.autograd.grad((linear(x, w, None) ** 2).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad((of_x**2).sum(), w)
    wd.requires_grad_()
    (expected,) = torch.autograd.grad(((2 * (xd @ wd.T) @ wd) ** 2).sum(), wd)
    assert relative(found, expected) < 1e-5


def test_gradcheck_in_fp64() -> None:
    x, w, b = (torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((3, 4), (5, 4), (5,)))
    assert torch.autograd.gradcheck(linear, (x, w, b))


def test_module_declares_its_parameters() -> None:
    layer = Linear(4, 6, bias=True, weight_spec=spec("residual", 4, 6, n_layers=8))
    initialise(layer, 0)
    table = parameter_table(layer)
    assert table["weight"].std == pytest.approx(0.02 / 4)
    assert not table["bias"].decay
    assert torch.equal(layer(torch.zeros(2, 4)), torch.zeros(2, 6))

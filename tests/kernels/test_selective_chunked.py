"""Chunked attention against the definition in fp64: values, gradients, memory, repeatability."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels.selective_cases import BY_SCORES, CASES, PLAIN, Case, cotangents, leaves, with_leaves
from tests.kernels.test_selective_reference import VARIANTS, small
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from winnow.kernels import chunked, reference, selective_attention
from winnow.kernels.rule import Problem, calls


def expected(problem: Problem) -> list[Tensor]:
    """out, usage if wanted, and gradients, in fp64 from the problem's rounded tensors."""
    given = {name: t.double().requires_grad_() for name, t in leaves(problem).items()}
    out, usage = reference.attention(with_leaves(problem, given))
    grad_out, grad_usage = cotangents(problem)
    loss = (out * grad_out.double()).sum()
    if grad_usage is not None:
        loss = loss + (usage * grad_usage).sum()
    found = torch.autograd.grad(loss, list(given.values()))
    return [out.detach(), *([] if grad_usage is None else [usage.detach()]), *found]


def found(problem: Problem) -> list[Tensor]:
    out, usage, saved = chunked.forward(problem)
    grad_out, grad_usage = cotangents(problem)
    grads = chunked.backward(problem, out, saved, grad_out, grad_usage)
    return [out, *([] if grad_usage is None else [usage]), *(g for g in grads if g is not None)]


def relative(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y).norm() / y.norm().clamp(min=1e-3))


@pytest.mark.parametrize("name", [name for name in CASES if "T=513" not in name])
def test_in_fp64(name: str) -> None:
    problem = CASES[name].problem(torch.float64)
    for x, y in zip(found(problem), expected(problem), strict=True):
        assert x.shape == y.shape
        assert relative(x, y) < 1e-13


@pytest.mark.parametrize(("dtype", "values", "gradients"), [(torch.float32, 5e-7, 1e-6), (torch.bfloat16, 5e-3, 1e-2)])
@pytest.mark.parametrize(
    "name", ["T=513", "T=513 voted out", "protected, long", "usage, documents", "leak, relu after"]
)
def test_in_narrower_types(name: str, dtype: torch.dtype, values: float, gradients: float) -> None:
    problem = CASES[name].problem(dtype)
    results, wanted = found(problem), expected(problem)
    n_values = 1 if problem.tau is None else 2
    assert all(relative(x, y) < values for x, y in zip(results[:n_values], wanted[:n_values], strict=True))
    assert all(relative(x, y) < gradients for x, y in zip(results[n_values:], wanted[n_values:], strict=True))
    assert results[0].dtype == results[-1].dtype == dtype


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "ROWS", 2)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("name", [name for name, rule in VARIANTS.items() if rule.algorithm == "blocked"])
def test_gradients_against_finite_differences(name: str) -> None:
    problem = small(VARIANTS[name])
    given = [t.requires_grad_() for t in (problem.q, problem.k, problem.v)]

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        protect = problem.protect if problem.protect >= 0 else None
        return selective_attention(q, k, v, protect=protect, rule=problem.rule, backend="chunked")

    assert torch.autograd.gradcheck(function, given, fast_mode=True)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("T", [1, 2, 3, 4, 5])
def test_last_blocks_of_any_length(T: int) -> None:
    problem = Case("short", T=T, H=2, K=1, D=4, rule=BY_SCORES, tau=0.5, votes=2.0, documents=True).problem(
        torch.float64
    )
    for x, y in zip(found(problem), expected(problem), strict=True):
        assert relative(x, y) < 1e-13


@pytest.mark.parametrize("accumulate", ["float64", "bfloat16"])
@pytest.mark.parametrize("rule", [PLAIN, BY_SCORES])
def test_other_accumulators(rule: Any, accumulate: Any) -> None:
    """fp64 sums change nothing that fp32 can see; bf16 ones do, and forward and backward agree on them."""
    case = Case("sums", B=1, T=300, H=2, K=2, D=16, votes=1.0, rule=rule)
    problem = case.problem()
    other = replace(problem, rule=replace(problem.rule, accumulate=accumulate))
    results = found(other)
    assert max(relative(x, y) for x, y in zip(results, expected(other), strict=True)) < 1e-6
    out, of_fp32 = results[0], expected(problem)[0]
    if accumulate == "float64":
        assert relative(out, of_fp32) < 1e-6
    else:
        assert 1e-4 < relative(out, of_fp32) < 0.5


class Largest(TorchDispatchMode):
    """The largest number of elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def test_never_holds_scores_of_all_queries() -> None:
    problem = Case("long", B=1, T=512, H=4, K=4, D=8, tau=1.0).problem()
    out, _, saved = chunked.forward(problem)
    grad_out, grad_usage = cotangents(problem)
    with Largest() as seen:
        chunked.forward(problem)
        chunked.backward(problem, out, saved, grad_out, grad_usage)
    assert seen.elements <= 4 * 512**2 // 8
    with Largest() as seen:
        reference.attention(problem)
    assert seen.elements == 4 * 512**2


@pytest.mark.parametrize("name", ["usage, two masks", "protected by a head"])
def test_bitwise_repeatable(name: str) -> None:
    problem = CASES[name].problem()
    assert all(torch.equal(x, y) for x, y in zip(found(problem), found(problem), strict=True))


def test_unsupported_is_named() -> None:
    problem = CASES["T=3"].problem()
    assert chunked.unsupported(problem) is None
    reason = chunked.unsupported(replace(problem, rule=replace(problem.rule, algorithm="tree")))
    assert reason is not None
    assert "tree" in reason


def test_counts_itself() -> None:
    problem = CASES["T=3"].problem()
    before = calls.copy()
    found(problem)
    assert calls - before == {"chunked.forward": 1, "chunked.backward": 1}

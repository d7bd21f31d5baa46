"""The public functions and their operators: what runs, under which transforms, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kernels.selective_cases import BY_SCORES, CASES, PLAIN, Case, arguments, leaves, with_leaves
from torch import Tensor
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from winnow.errors import InputError
from winnow.kernels import Rule, selection_usage, selective_attention
from winnow.kernels.rule import Problem, calls
from winnow.kernels.selective import Backend, choose

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh_counts() -> None:
    calls.clear()


def tensors(*shape: int, n: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(n)]


@pytest.mark.parametrize(
    "name", ["usage, two masks", "protectors, shared key", "documents", "grouped queries", "strided"]
)
@pytest.mark.parametrize("backend", ["chunked", "auto"])
def test_equals_the_definition(name: str, backend: Any) -> None:
    problem = CASES[name].problem()
    given = {key: t.requires_grad_() for key, t in leaves(problem).items()}
    args, options = arguments(with_leaves(problem, given))
    results: list[list[Tensor]] = []
    for which in (backend, "reference"):
        out, usage = selection_usage(*args, **options, tau=1.0, backend=which)
        assert torch.equal(selective_attention(*args, **options, backend=which), out)
        found = torch.autograd.grad(out.sin().sum() + usage.sum(), list(given.values()))
        results.append([out, usage, *found])
    for x, y in zip(*results, strict=True):
        assert float((x - y).detach().norm()) < 2e-6 * float(y.detach().norm())


def squares(q: Tensor, k: Tensor, v: Tensor, backend: Any = "chunked", **options: Any) -> Tensor:
    out, usage = selection_usage(q, k, v, backend=backend, **options)
    return out.sin().sum() + usage.square().sum()


def test_replicates_fold_into_the_batch_in_both_directions() -> None:
    q, k, v = tensors(3, 2, 70, 4, 8)
    found = vmap(grad(squares, argnums=(0, 1, 2)))(q, k, v)
    assert calls == {"chunked.forward": 1, "chunked.backward": 1}
    for r in range(3):
        alone = grad(squares, argnums=(0, 1, 2))(q[r], k[r], v[r], "reference")
        for x, y in zip(found, alone, strict=True):
            torch.testing.assert_close(x[r], y)


def test_replicates_share_what_is_not_mapped() -> None:
    q, k, v = tensors(3, 2, 70, 4, 8)
    q_s, k_s, q_p = tensors(3, 2, 70, 2, 5)
    rule = Rule(spread=(0, 1, 1, 0), protection="scores")
    starts = torch.zeros(2, 70, dtype=torch.int32)
    starts[:, 33:] = 33

    def function(q: Tensor, v: Tensor, q_s: Tensor, backend: Any = "chunked") -> Tensor:
        pairs = {"select": (q_s, k_s[0]), "protect": (q_p[0], k_s[0, :, :, :1])}
        return squares(q, k[0], v, backend, rule=rule, starts=starts, **pairs)

    found = vmap(grad(function, argnums=(0, 1, 2)), in_dims=(1, None, 0))(q.movedim(0, 1), v[0], q_s)
    assert calls == {"chunked.forward": 1, "chunked.backward": 1}
    for r in range(3):
        alone = grad(function, argnums=(0, 1, 2))(q[r], v[0], q_s[r], "reference")
        for x, y in zip(found, alone, strict=True):
            torch.testing.assert_close(x[r], y)


def test_other_orders_of_transforms() -> None:
    q, k, v = tensors(2, 1, 9, 2, 4)
    expected = vmap(grad(squares))(q, k, v)
    torch.testing.assert_close(grad(lambda q: vmap(squares)(q, k, v).sum())(q), expected)
    nested = vmap(vmap(grad(squares)))(*(x.unsqueeze(0) for x in (q, k, v)))
    torch.testing.assert_close(nested[0], expected)

    def last(backend: Any) -> Any:
        return lambda q: selective_attention(q, k[0], v[0], backend=backend)[0, -1]

    torch.testing.assert_close(jacrev(last("chunked"))(q[0]), jacrev(last("reference"))(q[0]))
    torch.testing.assert_close(vmap(jacrev(last("chunked")))(q), vmap(jacrev(last("reference")))(q))


class Layer(torch.nn.Module):
    """The least module with an attention inside."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(16, 48, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (6, 8)).split(2, dim=2)
        return selective_attention(q, k, v, backend="chunked").flatten(2)


def test_stacked_models_train_as_a_loop_does() -> None:
    torch.manual_seed(0)
    layers = [Layer() for _ in range(3)]
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    parameters, buffers = stack_module_state(layers)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(layers[0], (parameters, buffers), (x,)).square().sum()

    found = vmap(grad(loss))(parameters, buffers)
    assert calls == {"chunked.forward": 1, "chunked.backward": 1}
    for r, layer in enumerate(layers):
        layer(x).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name][r], parameter.grad)


@pytest.mark.parametrize("backend", ["chunked", "auto"])
def test_autocast(backend: Any) -> None:
    """Products around it are bf16, its own sums fp32: as if given bf16 tensors outside of autocast."""
    q, k, v = tensors(1, 70, 2, 16, dtype=torch.bfloat16)
    leaf = q.clone().requires_grad_()
    expected = selective_attention(leaf, k, v, backend=backend)
    expected.float().sin().sum().backward()
    again = q.float().requires_grad_()  # brought to v's dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = selective_attention(again, k, v, backend=backend)
        out.float().sin().sum().backward()
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    assert leaf.grad is not None
    assert again.grad is not None
    assert torch.equal(again.grad, leaf.grad.float())
    assert not calls["reference.forward"]


def test_checkpointing_repeats_the_forward_pass_alone() -> None:
    given = [x.requires_grad_() for x in tensors(1, 70, 2, 16)]
    expected = torch.autograd.grad(squares(*given), given)
    calls.clear()
    loss = checkpoint(squares, *given, use_reentrant=False)
    assert isinstance(loss, Tensor)
    found = torch.autograd.grad(loss, given)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert calls == {"chunked.forward": 2, "chunked.backward": 1}


def test_compiled_without_breaks_or_recompilation() -> None:
    command = [sys.executable, "-m", "tests.kernels.compiled_selective"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_starts_nothing() -> None:
    code = (
        "import sys, winnow.kernels; "
        "print([m for m in sys.modules if m.startswith('triton') or m.endswith(('compiled', 'selective_cpu'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What runs.


def test_choice() -> None:
    problem = CASES["T=3"].problem()
    exact = CASES["T=3"].problem(torch.float64)
    tree = replace(problem, rule=replace(problem.rule, algorithm="tree"))
    choice = choose(exact, "auto")
    assert choice.backend == "chunked"
    assert "cpu: " in choice.reason
    choice = choose(tree, "auto")
    assert choice.backend == "reference"
    assert "chunked: " in choice.reason
    assert choose(problem, "chunked").backend == "chunked"
    impossible: tuple[tuple[Backend, Problem], ...] = (("chunked", tree), ("cpu", exact), ("triton", exact))
    for named, given in impossible:
        with pytest.raises(InputError) as caught:
            choose(given, named)
        assert caught.value.key == "backend"


def test_what_is_asked_for_is_what_runs() -> None:
    q, k, v = (x.requires_grad_() for x in tensors(1, 70, 2, 8))
    selective_attention(q, k, v, backend="reference").sum().backward()
    assert calls == {"reference.forward": 1}
    calls.clear()
    selective_attention(q, k, v).sum().backward()  # fp64
    assert calls == {"chunked.forward": 1, "chunked.backward": 1}
    calls.clear()
    rule = Rule(spread=(0, 0), algorithm="sequential")
    selective_attention(q, k, v, rule=rule).sum().backward()
    assert calls == {"reference.forward": 1}
    with pytest.raises(InputError, match="sequential"):
        selective_attention(q, k, v, rule=rule, backend="chunked")


def test_second_derivatives_are_the_definitions_alone() -> None:
    q, k, v = (x.requires_grad_() for x in tensors(1, 5, 2, 4))
    for backend in ("reference", "chunked"):
        out = selective_attention(q, k, v, backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        if backend == "reference":
            assert torch.autograd.grad(first.sum(), k)[0].isfinite().all()
        else:
            with pytest.raises(InputError, match="reference"):
                torch.autograd.grad(first.sum(), k)


# Input.


def test_a_head_protects_all_masks() -> None:
    problem = Case("two", T=40, D=8, M=2, rule=BY_SCORES, protectors=True).problem(torch.float64)
    q, k, v = problem.q, problem.k, problem.v
    assert problem.q_s is not None
    assert problem.k_s is not None
    select = (problem.q_s, problem.k_s)
    by_head = selective_attention(q, k, v, select=select, protect=3, rule=problem.rule)
    pair = (q[:, :, 3:4].expand(-1, -1, 2, -1), k[:, :, 3:4])
    torch.testing.assert_close(by_head, selective_attention(q, k, v, select=select, protect=pair, rule=problem.rule))


def test_spread_without_a_rule() -> None:
    """Groups of floor(H / M) heads; those left over start again at mask 0 (S1-50)."""
    q_s, k_s = tensors(1, 30, 5, 4, n=2, seed=1)
    for M, spread in ((2, (0,) * 6 + (1,) * 6 + (0,)), (5, (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 1))):
        q, k, v = tensors(1, 30, len(spread), 4)
        pair = (q_s[:, :, :M], k_s[:, :, :M])
        expected = selective_attention(q, k, v, select=pair, rule=Rule(spread=spread))
        assert torch.equal(selective_attention(q, k, v, select=pair), expected)


@pytest.mark.parametrize("backend", ["auto", "reference", "chunked"])
@pytest.mark.parametrize("shape", [(0, 5, 2, 4), (2, 0, 2, 4), (0, 0, 2, 4), (2, 1, 2, 4)])
def test_nothing_and_a_single_token(shape: tuple[int, ...], backend: Any) -> None:
    q, k, v = (x.requires_grad_() for x in tensors(*shape, dtype=torch.float32))
    out, usage = selection_usage(q, k, v, backend=backend)
    assert out.shape == shape
    assert usage.shape == (shape[0], 1, shape[1])
    (out.sum() + usage.sum()).backward()
    assert q.grad is not None
    assert q.grad.shape == shape
    torch.testing.assert_close(out, v)  # of a single token its own value


def test_any_strides() -> None:
    q, k, v = tensors(2, 40, 2, 8)
    backwards = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)]
    assert backwards[0].stride(-1) != 1
    assert torch.equal(selective_attention(*backwards), selective_attention(q, k, v))


def refused(key: str, *args: Any, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        selective_attention(*args, **options)
    assert caught.value.key == key


def test_refusals() -> None:
    q, k, v = tensors(2, 6, 4, 8)
    wide, other = torch.zeros(2, 6, 5, 8), torch.zeros(2, 6, 2, 3)
    refused("q", q[0], k, v)
    refused("k", q, k[:, :5], v)
    refused("k", q, k[..., :4], v)
    refused("q", q[:, :5], k, v)
    refused("q", q[..., :4], k, v)
    refused("k", q, k[:, :, :3], v[:, :, :3])
    refused("q", q[..., :0], k[..., :0], v[..., :0])
    refused("v", q, k, v.long())
    refused("select", q, k, v, select=4)
    refused("select", q, k, v, select=-1)
    refused("select", q, k, v, select=(q, other))
    refused("select", q, k, v, select=(q[:, :, :3], k[:, :, :2]))
    refused("select", q, k, v, select=(q[:1], k[:1]))
    refused("select", q, k, v, select=(q[0], k[0]))
    refused("select", q, k, v, select=(wide, wide))
    refused("protect", q, k, v, protect=1)
    refused("protect", q, k, v, rule=Rule(spread=(0,) * 4, protection="scores"))
    refused("protect", q, k, v, protect=9, rule=Rule(spread=(0,) * 4, protection="scores"))
    refused("protect", q, k, v, protect=(q[:, :, :3], k[:, :, :3]), rule=Rule(spread=(0,) * 4, protection="scores"))
    refused("spread", q, k, v, rule=Rule(spread=(0, 0)))
    refused("spread", q, k, v, rule=Rule(spread=(0, 0, 0, 1)))
    refused("compaction", q, k, v, rule=Rule(spread=(0,) * 4, leak=0.1), compaction="exact")
    refused("scale", q, k, v, scale=-1.0)
    refused("starts", q, k, v, starts=torch.zeros(2, 5, dtype=torch.int32))
    refused("starts", q, k, v, starts=torch.zeros(2, 6))
    refused("starts", q, k, v, starts=torch.full((2, 6), 3))
    refused("starts", q, k, v, starts=torch.full((2, 6), -1))
    refused("starts", q, k, v, starts=torch.tensor([[0, 0, 2, 2, 0, 0]] * 2))
    with pytest.raises(InputError, match="tau"):
        selection_usage(q, k, v, tau=-1.0)
    assert selective_attention(q, k, v, rule=replace(PLAIN, spread=(0,) * 4), compaction="exact").shape == q.shape

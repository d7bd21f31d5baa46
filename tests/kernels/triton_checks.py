"""The Triton backend against the fp64 oracle.

Not collected by itself: `test_selective_triton.py` runs it in a process of its own, where Triton interprets kernels on
the CPU. On a machine with a card, `pytest tests/kernels/triton_checks.py` runs it there.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.kernels.selective_cases import (
    BY_CONSTANT,
    BY_LEAK,
    BY_SCORES,
    CASES,
    LEAF_NAMES,
    PLAIN,
    Case,
    cotangents,
    leaves,
    with_leaves,
)
from tests.oracles import selective as oracle
from torch import Tensor

from winnow.kernels import selective_triton
from winnow.kernels.rule import Problem, calls
from winnow.kernels.triton_plan import Launch, Plan

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# Tiles beyond the sequence are never written and hold anything, poison here: no result may depend on them.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = Plan(
    32, 16, 4, attend=Launch(32, 4, 1), tails=Launch(32, 4, 1), queries=Launch(32, 4, 1), keys=Launch(16, 4, 1)
)
"""Several blocks, and several tiles of each kind, at few tokens."""

SIZES = {"B": 1, "T": 37, "H": 2, "K": 2, "D": 16, "votes": 1.0}


def case(name: str, **changes: object) -> Case:
    return Case(name, **{**SIZES, **changes})  # type: ignore[arg-type]


SHORT = [
    case("one token", T=1),
    case("three tokens, odd width", T=3, D=22),
    case("17, two rows", B=2, T=17),
    case("plain, odd width", D=22),
    case("never dropped", compact=False),
    case("dropped", T=77, H=1, K=1, votes=9.0, tau=1.0, rule=replace(PLAIN, protect_bos=False)),
    case("shared key in chunks, usage", M=2, E=70, shared_keys=True, tau=0.7, compact=False),
    case("masks out of order", H=3, K=1, M=2, spread=(1, 0, 1), strided=True),
    case("documents, grouped, usage", H=2, K=1, B=2, documents=True, select=1, tau=1.0),
    case("self and bos", rule=replace(PLAIN, allow_self_masking=True, protect_bos=False), documents=True),
    case("leak, usage", rule=replace(PLAIN, leak=0.2), tau=0.5),
    case("relu after, usage", rule=replace(PLAIN, leak=1.0, relu_after=True), tau=0.5),
    case("protected by a head", T=70, K=1, rule=replace(BY_SCORES, protection_scale=0.7, protection_bias=-0.1)),
    case("protectors", M=2, E=20, shared_keys=True, protectors=True, rule=BY_SCORES, tau=1.0, documents=True),
    case("leaky protection", rule=replace(BY_LEAK, protection_scale=2.0, protection_bias=0.02)),
    case("constant protection", rule=BY_CONSTANT, compact=False),
]


def errors(problem: Problem, plan: Plan | None) -> dict[str, float]:
    """Relative distance to the oracle of out, usage and each gradient, with all memory poisoned."""
    grad_out, grad_usage = cotangents(problem)
    before = calls["triton.forward"], calls["triton.backward"]
    out, usage, saved = selective_triton.forward(problem, plan)
    gradients = selective_triton.backward(problem, out, saved, grad_out, grad_usage, plan)
    assert (calls["triton.forward"], calls["triton.backward"]) == (before[0] + 1, before[1] + 1)
    assert tuple(tuple(t.shape) for t in saved) == selective_triton.saved_shapes(problem, plan)
    assert out.dtype == problem.v.dtype
    exact = {name: t.detach().double().cpu().requires_grad_() for name, t in leaves(problem).items()}
    wanted_problem = with_leaves(problem, exact)
    if problem.starts is not None:
        wanted_problem = replace(wanted_problem, starts=problem.starts.cpu())
    wanted, wanted_usage = oracle.attention(wanted_problem)
    loss = (wanted * grad_out.double().cpu()).sum()
    found: dict[str, float] = {"out": relative(out, wanted)}
    if grad_usage is not None:
        loss = loss + (wanted_usage * grad_usage.double().cpu()).sum()
        found["usage"] = relative(usage, wanted_usage)
    loss.backward()
    for name, gradient in zip(LEAF_NAMES, gradients, strict=True):
        assert (gradient is None) == (name not in exact), name
        if gradient is not None:
            expected = exact[name].grad
            assert gradient.shape == exact[name].shape
            assert gradient.dtype == problem.q.dtype
            assert expected is not None
            found[name] = relative(gradient, expected)
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    """Distance by size, no size counting as less than 1: one token has gradients of 0."""
    difference = (found.detach().double().cpu() - expected.detach()).norm()
    return float(difference / expected.detach().norm().clamp(min=1.0))


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two repairs: it multiplies bf16 matrices by their bit patterns, and takes seconds for scans of one's own."""
    if not INTERPRETED:
        return
    from triton.runtime.interpreter import InterpreterBuilder, ScanOps, TensorHandle

    plain_dot = InterpreterBuilder.create_dot

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: object) -> TensorHandle:
        import triton.language as tl

        def widened(x: TensorHandle) -> TensorHandle:
            if x.dtype.scalar != tl.bfloat16:
                return x
            return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

        return plain_dot(self, widened(a), widened(b), *rest)

    def generic_scan(self: ScanOps, inputs: list) -> list:
        """A row at a time, where the interpreter takes an element at a time."""
        data = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
        out = [np.empty_like(x) for x in data]
        now: tuple = ()
        for i in range(len(data[0])):
            row = tuple(self.to_tensor(np.ascontiguousarray(d[i]), x.dtype) for d, x in zip(data, inputs, strict=True))
            found = self.combine_fn.fn(*now, *row) if i else row
            now = found if isinstance(found, tuple) else (found,)
            for o, x in zip(out, now, strict=True):
                o[i] = x.handle.data
        moved = [np.ascontiguousarray(np.moveaxis(o, 0, self.axis)) for o in out]
        return [self.to_tensor(o, x.dtype) for o, x in zip(moved, inputs, strict=True)]

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(ScanOps, "generic_scan", generic_scan)


@pytest.mark.parametrize("each", SHORT, ids=lambda each: each.name)
def test_short(each: Case) -> None:
    problem = each.problem(torch.float32, DEVICE)
    assert selective_triton.unsupported(problem) is None
    found = errors(problem, SMALL)
    assert found.pop("out") < 5e-7
    assert all(error < 1e-6 for error in found.values()), found


def test_tiles_are_dropped_where_that_is_permitted() -> None:
    """The case above that is named for it does drop tiles, and their keys still count as used."""
    dropped = next(each for each in SHORT if each.name == "dropped")
    _, usage, (_, _, until) = selective_triton.forward(dropped.problem(torch.float32, DEVICE), SMALL)
    blocks = -(-dropped.T // SMALL.block)
    assert until.min() < blocks
    assert until[0, 0, -1] == blocks
    # Everything but the newest keys is voted out entirely: it counts tau = 1.
    assert usage[0, 0, -1] > 0.8 * dropped.T


def test_a_key_is_dropped_by_the_documented_bound() -> None:
    """Largest, over later rows and heads of the mask, of |q| max|k| scale - s_ii; plus ln T + 24 ln 2."""
    from winnow.kernels.triton_call import Call
    from winnow.kernels.triton_plan import sizes_of

    problem = case("bound", M=2).problem(torch.float32, DEVICE)
    found = Call(problem, sizes_of(problem, SMALL)).limits().cpu()
    q, k = problem.q[0].double().cpu(), problem.k[0].double().cpu()
    for h in range(2):  # head h reads mask h
        widest = max(float(k[j, h].norm()) for j in range(37))
        lead = [problem.scale * (float(q[i, h].norm()) * widest - float(q[i, h] @ k[i, h])) for i in range(37)]
        for t, row in enumerate((0, SMALL.block)):
            assert float(found[0, h, t]) == pytest.approx(max(lead[row:]) + math.log(37) + 24 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Against the oracle on the same rounded numbers."""
    found = errors(case("16 bits", T=33, M=2, E=20, tau=1.0).problem(dtype, DEVICE), SMALL)
    assert found.pop("out") < 5e-3
    assert all(error < 1e-2 for error in found.values()), found


def test_gradients_repeat_bit_for_bit() -> None:
    """On a card, where programs run in any order, this can fail; the interpreter has one order."""
    each = case("repeated", T=33, tau=1.0) if INTERPRETED else replace(CASES["T=513"], tau=1.0)
    problem = each.problem(torch.float32, DEVICE)
    plan = SMALL if INTERPRETED else None
    grad_out, grad_usage = cotangents(problem)
    results = []
    for _ in range(2):
        out, usage, saved = selective_triton.forward(problem, plan)
        gradients = selective_triton.backward(problem, out, saved, grad_out, grad_usage, plan)
        results.append([out, usage, *(g for g in gradients if g is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_grad_out_of_any_strides() -> None:
    """Sums hand back gradients whose strides are 0."""
    problem = case("expanded", T=17).problem(torch.float32, DEVICE)
    out, _, saved = selective_triton.forward(problem, SMALL)
    ones = torch.ones((), device=DEVICE).expand(out.shape)
    found = selective_triton.backward(problem, out, saved, ones, None, SMALL)
    expected = selective_triton.backward(problem, out, saved, ones.contiguous(), None, SMALL)
    assert all(torch.equal(one, other) for one, other in zip(found[:3], expected[:3], strict=True))


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_named_cases(name: str) -> None:
    """The cases that all backends share; in the interpreter with fewer heads and tokens, and blocks in proportion."""
    each = CASES[name]
    plan = None
    if INTERPRETED:
        masks = max(each.M, 1)
        heads = each.H if each.spread or each.K != each.H else max(masks, 2)
        kv = heads if each.K == each.H else each.K
        each = replace(
            each, T=min(each.T, 77), H=heads, K=kv, B=1, D=min(each.D, 32), select=min(each.select, heads - 1)
        )
        plan = SMALL
    found = errors(each.problem(torch.float32, DEVICE), plan)
    assert found.pop("out") < 5e-7
    assert all(error < 1e-6 for error in found.values()), found

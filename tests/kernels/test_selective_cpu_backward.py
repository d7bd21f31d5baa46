"""The compiled backward pass against gradients in fp64, on every instruction set of this machine.

These are autograd's, of the definition (`reference`, which is tested against the oracle) and of the oracle itself.

Errors are relative, in the 2-norm over the whole tensor, at most 1e-6. Where a gradient is all but zero by its formula
(one token, or two), they are relative to the size of what cancels.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

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

from winnow.kernels import compiled, reference, selective_cpu
from winnow.kernels.rule import Problem, calls

WITHOUT = compiled.available()
pytestmark = pytest.mark.skipif(WITHOUT is not None, reason=f"no compiled kernels: {WITHOUT}")
HERE = () if WITHOUT else compiled.INSTANCES[: compiled.library().winnow_widest() + 1]

Gradients = dict[str, Tensor]


def gradients(problem: Problem) -> Gradients:
    out, _, saved = selective_cpu.forward(problem)
    found = selective_cpu.backward(problem, out, saved, *cotangents(problem))
    return {name: d for name, d in zip(LEAF_NAMES, found, strict=True) if d is not None}


def true_gradients(problem: Problem, function: Callable[[Problem], tuple[Tensor, Tensor]]) -> Gradients:
    tensors = {name: t.double().requires_grad_() for name, t in leaves(problem).items()}
    out, usage = function(with_leaves(problem, tensors))
    grad_out, grad_usage = cotangents(problem)
    loss = (out * grad_out.double()).sum()
    if grad_usage is not None:
        loss = loss + (usage * grad_usage.double()).sum()
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def error(found: Tensor, true: Tensor, least: float = 1e-30) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm().clamp(min=least))


def check(found: Gradients, true: Gradients, T: int, hint: str, most: float = 1e-6) -> None:
    assert found.keys() == true.keys()
    least = float(true["v"].norm()) if T <= 2 else 1e-30
    errors = {name: error(found[name], true[name], least) for name in true}
    assert all(e <= most for e in errors.values()), (hint, errors)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_gradients_on_every_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = CASES[name].problem()
    true = true_gradients(problem, reference.attention)
    for isa in HERE:
        monkeypatch.setenv("WINNOW_CPU_ISA", isa)
        before = calls["cpu.backward"]
        found = gradients(problem)
        assert calls["cpu.backward"] == before + 1
        check(found, true, problem.q.shape[1], isa)


@pytest.mark.parametrize(
    "name", ["T=3", "grouped queries", "two masks", "protected by a head, groups", "leaky protection", "usage, leak"]
)
def test_gradients_of_the_oracle(name: str) -> None:
    problem = replace(CASES[name], B=1).problem()
    check(gradients(problem), true_gradients(problem, oracle.attention), problem.q.shape[1], name)


BOTH = replace(BY_SCORES, protection_scale=0.5)
MIXED = (
    # One head that selects and protects; one that protects in masks other than its own; widths that are no vector's.
    Case("same head", T=70, select=2, protect=2, rule=BOTH),
    Case("same head, groups", T=70, K=2, select=3, protect=3, rule=BOTH),
    Case("kv head in common", T=70, K=2, select=3, protect=4, rule=BOTH),
    Case("protecting head of two masks", T=70, M=2, protect=4, rule=BOTH),
    Case("protecting head of its own selector", T=70, M=1, protect=0, rule=BOTH),
    Case("masks across kv heads", T=200, M=3, K=2, D=16, protect=5, rule=BOTH, spread=(0, 1, 2, 2, 1, 0), votes=1.5),
    Case("selector of another width", T=70, M=2, E=7, D=5, protectors=True, rule=BOTH),
    Case("usage, masks, protected", T=150, M=2, H=2, K=1, D=16, tau=3.0, rule=BY_LEAK, votes=1.5),
    Case("usage, relu after", T=70, tau=0.3, rule=replace(PLAIN, leak=0.9, relu_after=True), votes=1.0),
    Case("constant, documents", T=140, documents=True, tau=1.0, rule=BY_CONSTANT, H=2, K=2, D=16),
)


@pytest.mark.parametrize("case", MIXED, ids=[case.name for case in MIXED])
@pytest.mark.parametrize("compact", [True, False])
def test_gradients_where_parts_meet(case: Case, compact: bool) -> None:
    problem = replace(case, compact=compact).problem()
    check(gradients(problem), true_gradients(problem, reference.attention), case.T, case.name)


def test_a_shield_that_a_vote_just_breaks_counts_as_broken() -> None:
    # All votes and all protections are exactly 1, so every turn after a key's first is a tie.
    rule = replace(BY_CONSTANT, protection_offset=1.0)
    problem = Case("ties", B=1, T=70, H=2, K=2, D=16, rule=rule, scale=0.25).problem()
    for tensor in (problem.q, problem.k):
        tensor[:, :, 0] = 0
        tensor[:, :, 0, 0] = 2
    check(gradients(problem), true_gradients(problem, oracle.attention), 70, "ties")


LONG = Case("long", B=2, T=520, H=3, K=3, D=24, votes=1.0, tau=1.0)
DROPPING = (
    LONG,
    replace(LONG, M=2, H=4, K=2),
    replace(LONG, M=2, shared_keys=True, H=4, K=1),
    replace(LONG, rule=replace(PLAIN, protect_bos=False, allow_self_masking=True)),
    replace(LONG, rule=replace(BY_SCORES, protection_scale=0.3)),
    replace(LONG, B=1, documents=True),
    replace(LONG, T=1000, votes=2.0, D=16, tau=60.0),
)


@pytest.mark.parametrize("case", DROPPING, ids=range(len(DROPPING)))
def test_dropping_keys_changes_nothing(case: Case) -> None:
    problem = case.problem()
    if case.documents:  # long ones: short documents never gather enough votes
        starts = torch.zeros(1, case.T, dtype=torch.int32)
        starts[:, 37:] = 37
        starts[:, 300:] = 300
        problem = replace(problem, starts=starts)
    _, _, (_, carry, theta) = selective_cpu.forward(problem)
    assert bool((carry[:, -1, :, 0, :64] > theta[:, -1, :, None]).any())
    found, full = gradients(problem), gradients(replace(problem, compact=False))
    for name in full:
        assert error(found[name], full[name]) <= 5e-7, name


@pytest.mark.parametrize("masks", [0, 2])
def test_no_key_below_the_bound_is_left_out(masks: int) -> None:
    """Key by key: what the last queries send back to keys just below the bound is tiny, and it is not 0."""
    problem = replace(LONG, B=4, T=1000, M=masks, H=4, K=4, tau=None).problem()
    out, _, saved = selective_cpu.forward(problem)
    _, carry, theta = saved
    grad_out = cotangents(problem)[0]
    grad_out[:, :960] = 0
    found = selective_cpu.backward(problem, out, saved, grad_out, None)[2]
    whole = replace(problem, compact=False)
    full_out, _, full_saved = selective_cpu.forward(whole)
    full = selective_cpu.backward(whole, full_out, full_saved, grad_out, None)[2]
    assert found is not None
    assert full is not None
    spread = list(problem.rule.spread)
    gap = (theta[:, -1, :, None] - carry[:, -1, :, 0])[:, spread, :960].transpose(1, 2)  # (B, keys, heads), nats
    assert int(((gap > 0) & (gap < 1)).sum()) > 10
    assert float((gap < 0).float().mean()) > 0.1
    off = (found - full)[:, :960].norm(dim=-1) / full[:, :960].norm(dim=-1)
    assert float(off[gap > 0].max()) < 1e-3


def lifetimes(T: int) -> Problem:
    """Keys that die after 2 to 500 queries, side by side, and some that never do: lists with all kinds of gaps."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 1, T, 2, 16, generator=generator)
    life = torch.exp(torch.rand(T, generator=generator) * 5.5 + 0.7)
    life[torch.rand(T, generator=generator) < 0.1] = 1e9
    q[0, :, 0, :2] = torch.tensor([4.0, 0.0])
    k[0, :, 0, 0] = 50.0 / life
    k[0, :, 0, 1:] *= 0.3
    rule = replace(PLAIN, spread=(0, 0))
    return Problem(q, k, v, None, None, None, None, None, rule, 0, -1, 0.25, None, True)


@pytest.mark.parametrize("T", [640, 700])
def test_keys_of_very_different_lifetimes(T: int) -> None:
    problem = lifetimes(T)
    _, _, (_, carry, theta) = selective_cpu.forward(problem)
    gone = (carry[0, -1, 0, 0, : T // 64 * 64 - 64] > theta[0, -1, 0]).float().mean()
    assert 0.2 < float(gone) < 0.9
    # Scores reach 25, of which fp32 knows 1e-6.
    check(gradients(problem), true_gradients(problem, reference.attention), T, "lifetimes", most=3e-6)
    found, full = gradients(problem), gradients(replace(problem, compact=False))
    assert all(error(found[name], full[name]) <= 1e-6 for name in full)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("case", [LONG, replace(LONG, M=2, protectors=True, rule=BY_SCORES, shared_keys=True)])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_threads(case: Case, rows: int) -> None:
    """Gradients repeat bit by bit; another number of threads may add dq up in another order, no more."""
    problem = replace(case, B=rows).problem()
    runs: list[Gradients] = []
    for n in (1, 1, 2, 2, 3, 3):
        torch.set_num_threads(n)
        runs.append(gradients(problem))
    for first, second in zip(runs[::2], runs[1::2], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    for other in runs[2:]:
        for name in other:
            assert error(other[name], runs[0][name]) <= 3e-7, name
            if name[0] != "q":
                assert torch.equal(other[name], runs[0][name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_computed_in_fp32(dtype: torch.dtype) -> None:
    narrow = CASES["strided selectors"].problem(dtype)
    wide = with_leaves(narrow, {name: t.float() for name, t in leaves(narrow).items()})
    out, _, saved = selective_cpu.forward(narrow)
    grad_out, _ = cotangents(narrow)
    found = selective_cpu.backward(narrow, out, saved, grad_out, None)
    exact = selective_cpu.backward(wide, out.float(), saved, grad_out.float(), None)
    for d, e in zip(found, exact, strict=True):
        assert d is not None
        assert e is not None
        assert d.dtype == dtype
        assert torch.equal(d, e.to(dtype))


def test_any_strides_of_what_comes_back() -> None:
    problem = CASES["T=77"].problem()
    out, _, saved = selective_cpu.forward(problem)
    grad_out, _ = cotangents(problem)
    true = selective_cpu.backward(problem, out, saved, grad_out, None)
    gaps = torch.full((*grad_out.shape, 2), float("nan"))
    gaps[..., 0] = grad_out
    heads_first = grad_out.transpose(1, 2).contiguous().transpose(1, 2)
    one = torch.ones(()).expand(grad_out.shape)
    for given, wanted in ((gaps[..., 0], true), (heads_first, true), (one, None)):
        wanted = wanted or selective_cpu.backward(problem, out, saved, one.contiguous(), None)
        found = selective_cpu.backward(problem, out, saved, given, None)
        for d, e in zip(found, wanted, strict=True):
            assert (d is None) == (e is None)
            assert d is None or e is None or torch.equal(d, e)


def test_gradients_of_a_row_reach_no_later_key() -> None:
    problem = CASES["T=513 voted out"].problem()
    out, _, saved = selective_cpu.forward(problem)
    grad_out, _ = cotangents(problem)
    grad_out[:, 200:] = 0
    found = selective_cpu.backward(problem, out, saved, grad_out, None)
    for d in found[:3]:
        assert d is not None
        assert not d[:, 200:].any()
        assert d[:, :200].any(dim=-1).float().mean() > 0.98


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_nan_is_not_hidden(name: str) -> None:
    problem = CASES["T=77"].problem()
    tensor = getattr(problem, name).clone()
    tensor[:, 40, :, 3] = float("nan")
    found = gradients(replace(problem, **{name: tensor}))
    assert found["q"][:, 40].isnan().any(-1).all()


def test_huge_scores_and_votes_stay_finite() -> None:
    problem = replace(CASES["T=300 two rows"].problem(), scale=40.0)
    assert all(d.isfinite().all() for d in gradients(problem).values())


def test_both_sides_agree_on_the_structure() -> None:
    assert compiled.library().winnow_backward_size() == ctypes.sizeof(selective_cpu.CBackward)


PEAK = """
import resource, torch
from winnow.kernels import selective_cpu
from winnow.kernels.rule import Problem, Rule
torch.set_num_threads(2)
q, k, v = torch.randn(3, {B}, 3072, 8, 16)
def run(n):
    x = [t[:, :n] for t in (q, k, v)]
    problem = Problem(*x, None, None, None, None, None, Rule(spread=(0,) * 8), 0, -1, 0.25, None, {compact})
    out, _, saved = selective_cpu.forward(problem)
    selective_cpu.backward(problem, out, saved, out, None)
run(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(3072)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
@pytest.mark.parametrize(("B", "compact", "most"), [(1, True, 32), (2, False, 48)])
def test_memory_grows_with_neither_heads_nor_keys_squared(B: int, compact: bool, most: int) -> None:
    # One (T, T) of fp32 is 36 MB, of every head 302 MB; inputs, outputs and gradients are 1.5 MB each and row.
    code = PEAK.format(B=B, compact=compact)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < most * 1024

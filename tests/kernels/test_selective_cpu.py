"""The compiled forward pass against the oracle, token by token in fp64, on every instruction set that this machine has.

Errors are relative, in the 2-norm over the whole tensor: fp32 out 5e-7, usage 1e-6.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from tests.kernels.selective_cases import BY_SCORES, CASES, PLAIN, Case
from tests.oracles import selective as oracle
from torch import Tensor

from winnow.kernels import compiled, selective_cpu
from winnow.kernels.rule import Problem, calls

WITHOUT = compiled.available()
pytestmark = pytest.mark.skipif(WITHOUT is not None, reason=f"no compiled kernels: {WITHOUT}")
HERE = () if WITHOUT else compiled.INSTANCES[: compiled.library().winnow_widest() + 1]


@lru_cache(maxsize=8)
def expected(name: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return oracle.attention(CASES[name].problem())


def error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm().clamp(min=1e-30))


def dropped(problem: Problem, saved: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(B, blocks, M, T): keys that are left out of a block."""
    _, carry, theta = saved
    return (carry[:, :, :, 0] > theta[..., None]) & earlier_keys(theta.shape[1], problem.q.shape[1])[:, None]


def known(saved: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """lse, carry and theta, 0 where nothing is carried and carry was not written."""
    lse, carry, theta = saved
    return lse, torch.where(earlier_keys(theta.shape[1], lse.shape[2])[:, None, None], carry, 0.0), theta


def earlier_keys(blocks: int, T: int) -> Tensor:
    """(blocks, T): keys before each block, of which alone something is carried."""
    return torch.arange(T) < torch.arange(blocks)[:, None] * selective_cpu.BLOCK


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle_on_every_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = CASES[name].problem()
    assert selective_cpu.unsupported(problem) is None
    out, usage = expected(name)
    for isa in HERE:
        monkeypatch.setenv("WINNOW_CPU_ISA", isa)
        before = calls["cpu.forward"]
        found, used, saved = selective_cpu.forward(problem)
        assert calls["cpu.forward"] == before + 1
        assert error(found, out) <= 5e-7, isa
        if problem.tau is None:
            assert used.shape == (0,)
        else:
            assert error(used, usage) <= 1e-6, isa
        assert [tuple(t.shape) for t in saved] == list(selective_cpu.saved_shapes(problem))
        assert not any(t.isnan().any() for t in known(saved)), isa


@pytest.mark.parametrize("name", ["T=513", "documents 513", "protected, long", "two masks, long", "leak"])
def test_saves_the_lse_of_every_row_and_what_is_held_against_keys_before_every_block(name: str) -> None:
    problem = replace(CASES[name].problem(), compact=False)
    _, _, (lse, carry, theta) = selective_cpu.forward(problem)
    assert torch.equal(theta, torch.full_like(theta, float("inf")))
    group = problem.q.shape[2] // problem.k.shape[2]
    for b in range(problem.q.shape[0]):
        masks = oracle.masks(problem, b)
        firsts = oracle.first_tokens(problem, b)
        for m, F in enumerate(masks):
            for t in range(carry.shape[1]):
                row = t * selective_cpu.BLOCK
                first = firsts[row]
                slack = 2e-6 * (1 + float(F.max()))  # of sums of this size, under protection of their differences
                torch.testing.assert_close(carry[b, t, m, 0, first:row].double(), F[row, first:row], rtol=0, atol=slack)
        for h in range(problem.q.shape[2]):
            q, k = problem.q[b, :, h].double(), problem.k[b, :, h // group].double()
            for i in (0, problem.q.shape[1] // 2, problem.q.shape[1] - 1):
                logits = oracle.row_scores(q, k, i, firsts[i], problem.scale)
                logits = logits - masks[problem.rule.spread[h]][i, firsts[i] : i + 1]
                assert float(lse[b, h, i]) == pytest.approx(float(logits.logsumexp(0)), abs=2e-6, rel=1e-6)


LONG = Case("long", B=2, T=520, H=3, K=3, D=24, votes=1.0, tau=1.0)
DROPPING = (
    LONG,
    replace(LONG, M=2, H=4, K=2),
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
        problem = replace(problem, starts=starts)
    out, usage, saved = selective_cpu.forward(problem)
    full_out, full_usage, full = selective_cpu.forward(replace(problem, compact=False))
    saved, full = known(saved), known(full)
    gone = dropped(problem, saved)
    assert gone.float().mean() > 0.02
    assert error(out, full_out) <= 2e-7
    assert error(usage, full_usage) <= 2e-7
    # Never again: and what is no longer followed stands still while its votes would have gone on.
    assert bool((gone[:, 1:] | ~gone[:, :-1]).all())
    kept = torch.where(gone, torch.zeros(()), (saved[1] - full[1])[:, :, :, 0])
    torch.testing.assert_close(kept, torch.zeros_like(kept), rtol=0, atol=1e-5)
    assert bool((saved[1][:, :, :, 0] < full[1][:, :, :, 0] - 1).any())


def test_theta_is_the_provable_bound() -> None:
    problem = replace(LONG.problem(), tau=None)
    _, _, (_, _, theta) = selective_cpu.forward(problem)
    q, k = problem.q.double(), problem.k.double()
    gap = problem.scale * (q.norm(dim=-1) * k.norm(dim=-1).amax(1, keepdim=True) - (q * k).sum(-1))  # (B, T, H)
    padded = torch.nn.functional.pad(gap.amax(-1), (0, -gap.shape[1] % 64), value=-float("inf"))
    of_blocks = padded.unflatten(1, (-1, 64)).amax(-1)
    later = of_blocks.flip(1).cummax(1).values.flip(1)
    slack = torch.tensor(float(problem.q.shape[1])).double().log() + 24 * torch.tensor(2.0).double().log()
    torch.testing.assert_close(theta[:, :, 0].double(), later + slack, rtol=1e-6, atol=0)
    _, _, (_, _, wider) = selective_cpu.forward(replace(problem, tau=1000.0))
    assert bool((wider == 1000.0).all())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("case", [*DROPPING[:4], replace(LONG, M=2, protectors=True, rule=BY_SCORES, shared_keys=True)])
@pytest.mark.parametrize("rows", [1, 2])
def test_bits_depend_neither_on_the_run_nor_on_the_threads(case: Case, rows: int) -> None:
    problem = replace(case, B=rows).problem()
    runs: list[tuple[Tensor, ...]] = []
    for n in (1, 1, 2, 3):
        torch.set_num_threads(n)
        out, usage, saved = selective_cpu.forward(problem)
        carry = torch.where(dropped(problem, saved), 0.0, known(saved)[1][:, :, :, 0])
        runs.append((out, usage, saved[0], carry, saved[2]))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["T=77", "strided selectors"])
def test_other_dtypes_are_computed_in_fp32(name: str, dtype: torch.dtype) -> None:
    narrow = CASES[name].problem(dtype)
    pairs = {n: t.float() for n in ("q", "k", "v", "q_s", "k_s", "q_p", "k_p") if (t := getattr(narrow, n)) is not None}
    out, _, saved = selective_cpu.forward(narrow)
    wide, _, wide_saved = selective_cpu.forward(replace(narrow, **pairs))
    assert out.dtype == dtype
    assert torch.equal(out, wide.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(known(saved), known(wide_saved), strict=True))


def test_a_last_dimension_with_gaps() -> None:
    problem = CASES["T=77"].problem()
    spread_out = torch.full((*problem.q.shape, 2), float("nan"))
    spread_out[..., 0] = problem.q
    gaps = replace(problem, q=spread_out[..., 0])
    assert torch.equal(selective_cpu.forward(gaps)[0], selective_cpu.forward(problem)[0])


def test_later_tokens_reach_no_earlier_row() -> None:
    problem = CASES["T=77"].problem()
    before = selective_cpu.forward(problem)[0]
    for name in ("q", "k", "v"):
        tensor = getattr(problem, name).clone()
        tensor[:, 40:] *= 1e3
        found = selective_cpu.forward(replace(problem, **{name: tensor}))[0]
        assert torch.equal(found[:, :40], before[:, :40]), name
        assert not torch.equal(found[:, 40:], before[:, 40:]), name


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("name", ["q", "k", "v", "q_s", "k_s", "q_p", "k_p"])
def test_nan_is_not_hidden(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_CPU_ISA", isa)
    for case in ("strided selectors", "protectors, shared key"):
        problem = replace(CASES[case].problem(), tau=1.0)
        tensor = getattr(problem, name).clone()
        tensor[:, 40, :, 3] = float("nan")
        out, usage, _ = selective_cpu.forward(replace(problem, **{name: tensor}))
        assert out[:, 76].isnan().any(-1).all() or name == "q"
        assert usage[:, :, 76].isnan().all() or name in "qkv"
        assert out[:, 40].isnan().any(-1).all() or "_" in name


def test_a_key_of_nan_is_never_dropped() -> None:
    problem = replace(LONG, M=1, B=1).problem()
    assert dropped(problem, selective_cpu.forward(problem)[2]).any()
    for name in ("k", "k_s"):
        tensor = getattr(problem, name).clone()
        tensor[:, 5, :, 3] = float("nan")
        out = selective_cpu.forward(replace(problem, **{name: tensor}))[0]
        assert out[:, 7:].isnan().any(-1).all(), name  # votes of row 6 count from row 7 on


def test_scores_near_the_largest_number() -> None:
    problem = Case("huge", B=1, T=70, H=1, K=1, D=8, M=1).problem()
    q, k = torch.full_like(problem.q, 1e19), torch.full_like(problem.k, -1e18)
    no_votes = torch.zeros_like(problem.q)
    out = selective_cpu.forward(replace(problem, q=q, k=k, scale=1.0, q_s=no_votes))[0]
    torch.testing.assert_close(out[0, :, 0], problem.v[0, :, 0].cumsum(0) / torch.arange(1, 71)[:, None])


def test_huge_scores_and_votes_stay_finite() -> None:
    problem = replace(CASES["T=300 two rows"].problem(), scale=40.0)
    out, _, saved = selective_cpu.forward(problem)
    assert error(out, oracle.attention(problem)[0]) <= 2e-5  # of logits near 1e3, fp32 knows 1e-4
    assert all(t.isfinite().all() for t in known(saved))


def test_denormal_numbers_mean_what_they_did_before_a_call() -> None:
    selective_cpu.forward(CASES["T=77"].problem())
    assert float(torch.tensor(1e-40) * 1.0) > 0


def test_says_what_it_cannot_run() -> None:
    problem = CASES["T=3"].problem()
    assert "float64" in (selective_cpu.unsupported(CASES["T=3"].problem(torch.float64)) or "")
    assert "tree" in (selective_cpu.unsupported(replace(problem, rule=replace(problem.rule, algorithm="tree"))) or "")
    rule = replace(problem.rule, accumulate="float64")
    assert "float64" in (selective_cpu.unsupported(replace(problem, rule=rule)) or "")
    assert "meta" in (selective_cpu.unsupported(replace(problem, q=problem.q.to("meta"))) or "")


def test_both_sides_agree_on_the_structures() -> None:
    library = compiled.library()
    assert library.winnow_problem_size() == ctypes.sizeof(selective_cpu.CProblem)
    assert library.winnow_forward_size() == ctypes.sizeof(selective_cpu.CForward)


PEAK = """
import resource, torch
from winnow.kernels import selective_cpu
from winnow.kernels.rule import Problem, Rule
q, k, v = torch.randn(3, 1, 3072, 8, 16)
def run(n):
    x = [t[:, :n] for t in (q, k, v)]
    rule = Rule(spread=(0,) * 8)
    selective_cpu.forward(Problem(*x, None, None, None, None, None, rule, 0, -1, 0.25, 1.0, {compact}))
run(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(3072)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
def test_memory_grows_with_neither_heads_nor_keys_squared() -> None:
    # One (T, T) of fp32 is 36 MB, of every head 302 MB; inputs and outputs are 1.5 MB each, carries 0.6 MB.
    done = subprocess.run([sys.executable, "-c", PEAK.format(compact=True)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 * 1024

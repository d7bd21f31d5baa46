"""The Triton backend, without a card: what it refuses, what it saves, its kernels interpreted, its kernels compiled."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kernels.selective_cases import BY_SCORES, CASES, Case
from torch import Tensor

from winnow.kernels import selective_triton
from winnow.kernels.rule import Rule
from winnow.kernels.triton_plan import plan_of, sizes_of

ROOT = Path(__file__).parents[2]
CHECKS = "tests/kernels/triton_checks.py"
SOURCES = ROOT / "src" / "winnow" / "kernels"
HOPPER_SHARED = 227 * 1024
"""Bytes of shared memory that a program may take on a Hopper card."""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_interpreted(*arguments: str) -> None:
    """Pytest on the checks, in a process that interprets kernels: the choice is made when Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout
    assert "skipped" not in found.stdout


@needs_triton
@pytest.mark.parametrize("part", ["test_short", "not test_short"])
def test_in_the_interpreter(part: str) -> None:
    run_interpreted(CHECKS, "-k", part)


@needs_triton
@pytest.mark.soak
def test_named_cases_in_the_interpreter() -> None:
    run_interpreted(CHECKS, "-m", "soak")


@pytest.fixture
def interpreting(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if kernels were interpreted: what is refused on a CPU is then a matter of the problem alone."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@needs_triton
@pytest.mark.usefixtures("interpreting")
def test_every_rule_of_the_studies_is_supported() -> None:
    for name, case in CASES.items():
        assert selective_triton.unsupported(case.problem()) is None, name


@needs_triton
@pytest.mark.usefixtures("interpreting")
@pytest.mark.parametrize(
    ("changes", "dtype", "cause"),
    [
        ({}, torch.float64, "float64"),
        ({"rule": Rule(spread=(0,), algorithm="tree")}, torch.float32, '"tree"'),
        ({"rule": Rule(spread=(0,), accumulate="float64")}, torch.float32, "not in float64"),
        ({"D": 160}, torch.float32, "width 160"),
        ({"T": 1, "H": 1, "K": 1, "D": 1, "B": 65536}, torch.float32, "65536 rows"),
        ({"T": 64 * 512 + 1, "H": 1, "K": 1, "D": 1, "B": 1}, torch.float32, "32769 tokens"),
    ],
)
def test_what_it_refuses_it_names(changes: dict[str, Any], dtype: torch.dtype, cause: str) -> None:
    case = replace(Case("refused", T=3), **changes)
    assert cause in str(selective_triton.unsupported(case.problem(dtype)))


@needs_triton
def test_a_cpu_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "CUDA" in str(selective_triton.unsupported(CASES["T=3"].problem()))


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in str(selective_triton.unsupported(CASES["T=3"].problem()))


def test_what_is_saved_is_small() -> None:
    """Nothing of T * T: one number per key and 128 queries, two with protection."""
    problem = Case("saved", B=1, T=2048, H=2, K=2, rule=BY_SCORES).problem(torch.bfloat16)
    lse, carry, until = selective_triton.saved_shapes(problem)
    assert lse == (1, 2, 2048)
    assert carry == (1, 1, 2, 16, 2048)
    assert until == (1, 1, 32)
    assert selective_triton.saved_shapes(replace(problem, compact=False))[2] == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [22, 64, 128])
def test_blocks_fit_into_one_another(dtype: torch.dtype, width: int) -> None:
    plan = plan_of(dtype, width)
    for size in (plan.tile, *(launch.rows for launch in (plan.attend, plan.tails, plan.queries, plan.keys))):
        assert size >= 16
        assert plan.block % size == 0
    assert plan.tails.rows == plan.block
    sizes = sizes_of(Case("fits", T=300).problem(dtype), plan)
    # The last block's rows end where the strip ends.
    assert sizes.strip == sum(plan.block * plan.block * (t + 1) for t in range(sizes.blocks))


def test_nothing_is_added_atomically() -> None:
    """Atomic additions come in any order, and gradients would not repeat."""
    for path in SOURCES.glob("triton_*.py"):
        assert not re.search(r"tl\.atomic", path.read_text(encoding="utf-8")), path.name


@contextmanager
def compiled_for_hopper() -> Iterator[list[tuple[str, int]]]:
    """Launches compile for compute capability 9.0 and do not run: name and bytes of shared memory of each kernel."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    kinds = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32"}
    made: list[tuple[str, int]] = []

    def run(self: Any, *values: Any, grid: Any, warmup: bool, num_warps: int = 4, num_stages: int = 3, **flags: Any) -> None:  # fmt: skip  # noqa: E501
        given = {**dict(zip(self.arg_names, values, strict=False)), **flags}
        signature: dict[str, str] = {}
        constants: dict[tuple[int], Any] = {}
        aligned: dict[tuple[int], Any] = {}
        for place, (name, parameter) in enumerate(zip(self.arg_names, self.params, strict=True)):
            value = given[name]
            if parameter.is_constexpr or (type(value) is int and value == 1):
                signature[name], constants[(place,)] = "constexpr", value
                continue
            if isinstance(value, Tensor):
                signature[name] = "*" + kinds[value.dtype]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, Tensor) or value % 16 == 0:
                aligned[(place,)] = [["tt.divisibility", 16]]
        source = compiler.ASTSource(fn=self, signature=signature, constexprs=constants, attrs=aligned)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        kernel = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        made.append((self.__name__, kernel.metadata.shared))

    plain = JITFunction.run
    JITFunction.run = run
    try:
        yield made
    finally:
        JITFunction.run = plain


@needs_triton
@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [24, 64, 128])
def test_kernels_compile_for_a_card(
    dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The interpreter takes what a compiler refuses: types, shapes, and more shared memory than a card has."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = Case("compiled", B=1, T=300, H=4, K=2, D=width, M=2, protectors=True, rule=BY_SCORES, tau=1.0, compact=False)
    with compiled_for_hopper() as made:
        for each in (case, Case("compiled", B=1, T=256, H=4, K=4, D=width, documents=True)):
            problem = each.problem(dtype)
            out, usage, saved = selective_triton.forward(problem)
            grad_usage = None if problem.tau is None else usage
            selective_triton.backward(problem, out, saved, torch.zeros_like(out), grad_usage)
    assert {"select_tiles", "attend", "vote_tails", "finish", "query_gradients", "key_gradients"} <= {
        n for n, _ in made
    }
    assert all(shared <= HOPPER_SHARED for _, shared in made), made

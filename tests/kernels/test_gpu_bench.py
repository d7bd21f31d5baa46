"""bench/gpu.py without a card: what it is told, what it says, its tables, its definition; times are made up."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.kernels.selective_cases import CASES, Case
from tests.oracles import selective as oracle
from torch import Tensor

from winnow.kernels import selective_triton
from winnow.kernels.rule import calls

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("gpu", "gpu_inputs", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("gpu")


def test_arguments(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.arguments(["ops"]).part == "ops"
    assert not gpu.arguments(["ops"]).quick
    assert gpu.arguments(["check", "--quick"]).quick
    assert gpu.arguments(["check", "--every-case"]).every_case
    with pytest.raises(SystemExit):
        gpu.arguments(["everything"])
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_it_says_so(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["all"]) == 2
    assert "nothing was measured" in capsys.readouterr().err


def test_a_part_replaces_its_own_section_alone(gpu: ModuleType) -> None:
    first = gpu.merged("", {"ops": "fast\n\n| a |"}, "# Card A\n")
    assert first == "# Card A\n\n## ops\n\nfast\n\n| a |\n"
    both = gpu.merged(first, {"check": "right"}, "# Card A\n")
    assert both == "# Card A\n\n## check\n\nright\n\n## ops\n\nfast\n\n| a |\n"
    assert gpu.merged(both, {"ops": "slow"}, "# Card A\n") == "# Card A\n\n## check\n\nright\n\n## ops\n\nslow\n"


def test_goals_are_bounds_from_one_side(gpu: ModuleType) -> None:
    assert gpu.Goal("time", 1.5, 1.6).met
    assert not gpu.Goal("time", 1.7, 1.6).met
    assert gpu.Goal("speed", 1.7, 1.6, True).met
    assert not gpu.Goal("speed", float("nan"), 1.6, True).met
    assert gpu.Goal("speed", 0.5, 0.88, True).row == ("speed", "0.50x", "at least 0.88x", "missed")


def test_checked_cases_are_there(gpu: ModuleType) -> None:
    assert set(gpu.CHECKED) <= set(CASES)


def test_its_definition_is_the_oracles(gpu: ModuleType) -> None:
    on = gpu.on
    q, k, v, _ = on.inputs(40, on.DENSE, torch.float32, tokens=40)
    problem = replace(Case("any", B=1, T=3, H=on.H, K=on.H).problem(), q=q, k=k, v=v)
    assert on.relative(on.naive(q, k, v).detach(), oracle.attention(problem)[0].detach()) < 1e-6
    # The shift moves head 0's scores and no other head's.
    moved = on.inputs(40, on.SPARSE, torch.float32, tokens=40)[0]
    assert torch.equal(moved[:, :, 1:], q[:, :, 1:])
    assert not torch.equal(moved[:, :, 0], q[:, :, 0])


@pytest.fixture
def pretended(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Kernels are the definition, and the clock is a list of names: what remains is the sections' own work."""
    on = gpu.on
    plain = on.inputs

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls["triton.forward"] += 1
        return on.naive(q, k, v)

    def spent(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        for run in runs.values():
            run()
        slow = {"SDPA flash": 2.0, "SDPA cuDNN": 1.0, "selective, every key live": 1.5, "selective, compacted": 0.5}
        return {name: [slow.get(name, 20.0)] * rounds for name in runs}

    monkeypatch.setattr(on, "dense", op)
    monkeypatch.setattr(on, "compacted", op)
    monkeypatch.setattr(on, "works", lambda kind: None)
    monkeypatch.setattr(on, "sdpa", lambda kind: on.naive)
    monkeypatch.setattr(on, "live_tiles", lambda *tensors: 0.2)
    monkeypatch.setattr(on, "inputs", lambda T, shift: plain(16, shift, torch.float32, tokens=16))
    monkeypatch.setattr(gpu, "spent", spent)
    monkeypatch.setattr(gpu, "peak", lambda run: 1000)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    return gpu


def test_ratios_are_to_the_faster_baseline(pretended: ModuleType) -> None:
    rows, goals = pretended.measure(2048, 4)
    assert ("2048 forward", "SDPA flash", "2.000", "2.00") in rows
    assert ("2048 both", "selective, compacted", "0.500", "0.50") in rows
    found = {goal.name: goal for goal in goals}
    assert found["G1 forward, T=2048"].found == 1.5
    assert found["G5 compacted, T=2048"].found == 0.5
    assert found["G4 over naive, T=2048"].found == pytest.approx(20 / 1.5)
    assert found["G6 memory over 1.2 SDPA + 2BT^2, T=2048"].met
    assert not any(goal.name.startswith("G4") for goal in pretended.measure(4096, 4)[1])


def test_a_kernel_that_did_not_run_is_seen(pretended: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretended.on, "dense", pretended.on.naive)
    monkeypatch.setattr(pretended.on, "compacted", pretended.on.naive)
    with pytest.raises(AssertionError, match="another backend"):
        pretended.measure(1024, 4)


def test_the_missing_baseline_is_named(pretended: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = pretended.SDPBackend
    monkeypatch.setattr(pretended.on, "works", lambda kind: "no cuDNN" if kind == kinds.CUDNN_ATTENTION else None)
    rows, goals = pretended.measure(1024, 4)
    assert ("1024", "SDPA cuDNN", "not run: no cuDNN", "") in rows
    assert goals[0].found == 0.75


def test_an_update(pretended: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretended, "GPT2", {"d_model": 16, "n_layers": 1, "n_heads": 2})
    monkeypatch.setattr(pretended, "VOCABULARY", 32)
    pretended.trainer("softmax", 8, 2, device="cpu")()
    # Its update would build the CPU's kernels.
    pretended.trainer("selective", 8, 2, device="cpu")


def test_check_tells_wrong_results(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("any", B=1, T=3, H=1, K=1, D=16)
    monkeypatch.setattr(gpu, "CASES", {"any": replace(case)})
    monkeypatch.setattr(gpu, "CHECKED", ("any",))
    plain = Case.problem
    monkeypatch.setattr(Case, "problem", lambda self, dtype, device: plain(self, dtype))
    monkeypatch.setattr(selective_triton, "unsupported", lambda problem: None)
    monkeypatch.setattr(gpu.on, "repeats", lambda problem: True)
    monkeypatch.setattr(gpu.on, "errors", lambda problem: (1e-3, 1e-3))
    text, well = gpu.check(True)
    assert well
    assert "| any | bfloat16 | 1.0e-03 | 1.0e-03 | yes |  |" in text
    monkeypatch.setattr(gpu.on, "errors", lambda problem: (float("nan"), 1e-3))
    text, well = gpu.check(True)
    assert not well
    assert "**wrong**" in text

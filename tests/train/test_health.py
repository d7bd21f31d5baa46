"""Every rule of the health watch fires on a planted defect and is silent on a clean run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.train.runs import CPU, go_on, make, run_in, said
from torch import Tensor, nn

from winnow.attention import Mixed
from winnow.models import GPT, GPTConfig
from winnow.models.gpt import Block
from winnow.records.run import Finding, RunRecord
from winnow.records.store import RunStore
from winnow.train import health, loop
from winnow.train.config import RunConfig
from winnow.train.preflight import preflight


class Planted(GPTConfig):  # pyright: ignore[reportGeneralTypeIssues]
    """A GPT with a defect."""

    kind: Literal["planted"] = "planted"  # pyright: ignore[reportIncompatibleVariableOverride]
    defect: str = "none"
    """Which."""
    ignored: float = 1.0
    """Read by nobody."""

    def build(self, vocab_size: int, context: int) -> GPT:
        model = GPT(self, vocab_size, context)
        plant(model, self.defect)
        return model


def plant(model: GPT, defect: str) -> None:
    block = model.blocks[0]
    assert isinstance(block, Block)
    if defect == "frozen":
        block.mlp.up.weight.requires_grad_(False)
    elif defect == "detached":
        block.attention.register_forward_hook(lambda module, inputs, mixed: Mixed(mixed.y.detach(), mixed.aux))
    elif defect == "dead head":
        block.attention.register_forward_hook(without_first_head)
    elif defect == "noise":
        block.mlp.register_forward_hook(noise)
    elif defect == "nan":
        block.mlp.register_forward_hook(nan_from)


def without_first_head(module: Any, inputs: tuple[Any, ...], mixed: Mixed) -> Mixed:
    """Attention as if head 0 did not exist."""
    x, state = inputs
    q, k, v = module.project(x, state)
    heads, aux = module.mix(q, k, v, state)
    keep = torch.ones(heads.shape[2], 1)
    keep[0] = 0
    return Mixed(module.out((heads * keep).flatten(2)), aux)


def noise(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    return y + 0.01 * torch.randn_like(y) if module.training else y


def nan_from(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    """NaN from the eighth training pass on."""
    passes = vars(module).setdefault("passes", [])
    if module.training:
        passes.append(1)
    return y * float("nan") if len(passes) > 7 else y


def planted(text: Path, defect: str, **changes: Any) -> RunConfig:
    return make(text, model__kind="planted", model__defect=defect, **changes)


def findings(record: RunRecord, rule: str) -> list[Finding]:
    assert {finding.rule for finding in record.findings} <= {rule, "unread-option"}
    return [finding for finding in record.findings if finding.rule == rule]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model__attention": {"kind": "selective"}, "evaluation__inside": 6, "train__recompute": True},
        {"model__attention": {"kind": "selective", "penalty": {"epsilon": 0.2, "tau": 2.0, "form": "mean"}}},
        {"model__attention": {"kind": "selective", "scores": {"kind": "linear_combination", "lr_multiplier": 0.1}}},
        {"model__positions": "rotary", "model__norm": {"kind": "rmsnorm"}, "model__tied": False, "model__bias": False},
        {"train__schedule": "linear", "train__clip": None, "train__weight_decay": 0.0, "train__decay_on": "all"},
        {"train__micro_batch": 2, "train__min_lr_fraction": 0.0, "train__eps": 1e-6, "train__betas": [0.8, 0.9]},
        {"train__precision": "bf16", "evaluation__bytes": 300, "evaluation__tokens": 16384},
        {"train__schedule": "constant", "train__warmup": 0, "task__document": "block"},
    ],
)
def test_a_clean_run_yields_no_finding(store: RunStore, text: Path, change: dict[str, Any]) -> None:
    record = run_in(store, make(text, **change))
    assert (record.status, said(record)) == ("finished", [])


def test_frozen_parameter(store: RunStore, text: Path) -> None:
    (finding,) = findings(run_in(store, planted(text, "frozen")), "dead-parameter")
    assert finding.severity == "invalid"
    assert finding.where == "blocks.0.mlp.up.weight"
    assert "never moved and never had a gradient" in finding.message


def test_detached_branch(store: RunStore, text: Path) -> None:
    found = findings(run_in(store, planted(text, "detached")), "dead-parameter")
    assert {finding.where for finding in found} == {
        f"blocks.0.attention.{name}.{kind}" for name in ("qkv", "out") for kind in ("weight", "bias")
    } | {"blocks.0.norm1.weight", "blocks.0.norm1.bias"}


def test_dead_head_is_named_by_its_slice(store: RunStore, text: Path) -> None:
    """Weight decay moves it, so only its gradient tells."""
    found = {
        finding.where: finding for finding in findings(run_in(store, planted(text, "dead head")), "dead-parameter")
    }
    assert (
        "blocks.0.attention.qkv.weight[k.0, q.0, v.0] never had a gradient"
        in found["blocks.0.attention.qkv.weight"].message
    )
    assert "[o.0]" in found["blocks.0.attention.out.weight"].message


def test_dead_parameters_are_found_after_a_resume(store: RunStore, text: Path) -> None:
    """What had no gradient before the interruption is remembered."""
    config = planted(text, "dead head")
    go_on(store, config, stop_at=6)
    found = {finding.where: finding.message for finding in findings(go_on(store, config), "dead-parameter")}
    assert "[k.0, q.0, v.0] never had a gradient" in found["blocks.0.attention.qkv.weight"]


def test_a_mechanism_that_draws_resumes_exactly(store: RunStore, text: Path, tmp_path: Path) -> None:
    """Its draws come from torch's generator, whose state is a function of seed and step."""
    config = planted(text, "noise")
    whole = run_in(store, config)
    other = RunStore(tmp_path / "stopped")
    go_on(other, config, stop_at=6)
    torch.rand(100)
    resumed = go_on(other, config)
    assert (resumed.weights, resumed.trace) == (whole.weights, whole.trace)
    assert run_in(store, planted(text, "none")).weights != whole.weights


def test_nan_names_step_and_tensor(store: RunStore, text: Path) -> None:
    record = run_in(store, planted(text, "nan"))
    (finding,) = findings(record, "non-finite")
    assert record.status == "diverged"
    assert record.steps_done == 7
    assert "step 7:" in finding.message
    assert "output of blocks.0.mlp" in finding.message
    assert record.outcome("val/ce") is None
    # The refused update left the weights finite, and the last row shows what happened.
    rows = store.metrics(record.digest)
    assert not torch.tensor(rows[-1]["train/ce"]).isfinite()
    # Killed between the last checkpoint and the record: the outcome stands, no row is doubled.
    (store.path(record.digest) / "run.json").unlink()
    again = go_on(store, planted(text, "nan"))
    assert (again.status, again.weights, again.trace) == (record.status, record.weights, record.trace)


def test_nan_parameter_is_named(text: Path) -> None:
    run = loop.Loop(make(text), seed=0, device=CPU)
    with torch.no_grad():
        dict(run.model.named_parameters())["blocks.0.norm2.weight"][3] = float("inf")
    assert not run.update().finite
    assert "parameter blocks.0.norm2.weight" in run.explain().message


def test_exploding_loss_diverges(store: RunStore, text: Path) -> None:
    wild = {"train__lr": 30.0, "train__clip": None, "train__warmup": 0, "train__steps": 60}
    record = run_in(store, make(text, **wild))
    assert record.status == "diverged"
    assert {finding.rule for finding in record.findings} & {"loss-divergence", "non-finite"}


def test_loss_divergence_threshold() -> None:
    assert health.loss_divergence(30, 11.0, 5.5, 256) is None
    found = health.loss_divergence(30, 11.2, 5.5, 256)
    assert found is not None
    assert "step 30" in found.message


@contextmanager
def initial_values_times(factor: float) -> Iterator[None]:
    real = loop.initialise

    def scaled(model: nn.Module, seed: int) -> None:
        real(model, seed)
        with torch.no_grad():
            dict(model.named_parameters())["embedding.weight"].mul_(factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "initialise", scaled)
        yield


def test_first_loss_far_above(store: RunStore, text: Path) -> None:
    with initial_values_times(60.0):
        record = run_in(store, make(text, train__lr=1e-5))
    (finding,) = [finding for finding in record.findings if finding.rule == "first-loss"]
    assert finding.severity == "warning"
    assert "ln(vocab) is 5.545" in finding.message


def test_first_loss_below_is_a_leak() -> None:
    found = health.first_loss(4.9, 256)
    assert found is not None
    assert found.severity == "invalid"
    assert health.first_loss(5.2, 256) is None
    assert health.first_loss(5.9, 256) is None


def test_warmup_only(store: RunStore, text: Path) -> None:
    (finding,) = findings(run_in(store, make(text, train__warmup=40)), "warmup-only")
    assert "12 steps, warm-up of 40" in finding.message
    assert health.warmup_only(make(text, train__warmup=11).train) is None


def test_steps_missing(store: RunStore, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that counts a step without taking it: the optimizer's own count tells."""
    real = loop.Loop.update

    def skipping(self: loop.Loop) -> loop.Update:
        measured = real(self)
        self.step += self.step == 5
        return measured

    monkeypatch.setattr(loop.Loop, "update", skipping)
    (finding,) = findings(run_in(store, make(text)), "steps-missing")
    assert finding.message == "12 steps were asked for, the optimizer did 11"


def test_unread_option(store: RunStore, text: Path) -> None:
    record = run_in(store, planted(text, "none", model__ignored=2.0))
    (finding,) = record.findings
    assert (finding.rule, finding.where, finding.severity) == ("unread-option", "model.ignored", "warning")
    constant = run_in(store, make(text, train__schedule="constant", train__min_lr_fraction=0.5))
    assert [finding.where for finding in constant.findings] == ["train.min_lr_fraction"]


def test_an_unread_option_counts_where_the_arm_is_about_it(store: RunStore, text: Path) -> None:
    control = run_in(store, planted(text, "none"))
    arm = run_in(store, planted(text, "none", model__ignored=2.0))
    (finding,) = health.unread_by_arm(arm, control)
    assert finding.severity == "invalid"
    assert health.unread_by_arm(arm, arm) == ()


def test_no_effect(store: RunStore, text: Path) -> None:
    """A bound that never bites: different digests, the same run."""
    clips: dict[str, float | None] = {"control": None, "clip": 1000.0, "bites": 0.5}
    runs = {
        arm: {seed: run_in(store, make(text, train__clip=clip), seed, arm) for seed in (0, 1)}
        for arm, clip in clips.items()
    }
    (finding,) = health.no_effect(runs)
    assert finding.severity == "invalid"
    assert finding.message == "setting train.clip (off and 1000.0) had no effect: control and clip are bit-identical"


def test_preflight_sees_it_before_the_run(text: Path) -> None:
    def tried(**changes: Any) -> Any:
        return preflight(make(text, **changes), seed=0, device=CPU, steps=3)

    clean, dead = tried(), tried(train__clip=1000.0, train__checkpoint_every=3)
    assert clean.findings == ()
    assert clean.steps == 3
    assert clean.seconds_per_step > 0
    assert clean.facts["parameters"] == 7664
    assert dead.weights == tried(train__clip=None).weights != clean.weights
    unread = preflight(planted(text, "none", model__ignored=3.0), seed=0, device=CPU, steps=1)
    assert [finding.where for finding in unread.findings] == ["model.ignored"]
    assert [finding.rule for finding in tried(train__warmup=99).findings] == ["warmup-only"]


RULE = re.compile(r'''(?:rule=|_note\(|\bDefect\()"([a-z-]+)"''')


def test_docs_and_table_name_every_rule() -> None:
    """docs/health.md, the table at the top of health.py, and the rules that the code can report."""
    folder = Path(health.__file__).parent
    reported = {rule for file in folder.glob("*.py") for rule in RULE.findall(file.read_text())}
    assert health.__doc__ is not None
    tabled = re.findall(r"^\| ([a-z]+(?:-[a-z]+)*) +\|", health.__doc__, re.MULTILINE)[1:]
    page = (folder.parents[2] / "docs" / "health.md").read_text()
    explained = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`[^|]*)\|", page, re.MULTILINE)))
    assert sorted(reported) == sorted(tabled) == sorted(explained)

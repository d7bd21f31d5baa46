"""Learning-rate multipliers and decay of single parameters, from the table of parameters to the weights at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.mechanisms import charged as charged
from tests.train.runs import CPU, make, run_in, said
from torch import Tensor

from winnow.parameters import initialise, parameter_table
from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.train import checkpoint, slices
from winnow.train.config import RunConfig
from winnow.train.loop import Loop

pytestmark = pytest.mark.usefixtures("charged")

GAIN = "blocks.0.attention.gain"


def config_of(text: Path, multiplier: float, **changes: Any) -> RunConfig:
    return make(text, model__attention={"kind": "charged", "lr_multiplier": multiplier}, **changes)


def trained(text: Path, multiplier: float, **changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values before and after one update."""
    loop = Loop(config_of(text, multiplier, **changes), seed=0, device=CPU)
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    loop.update()
    return before, {name: p.detach().clone() for name, p in loop.model.named_parameters()}


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def test_a_multiplier_of_zero_leaves_the_bits_alone(store: RunStore, text: Path) -> None:
    """H3 of the source program: its loop set every group to the global rate, and all these arms were one."""
    config = config_of(text, 0.0, train__weight_decay=0.5, train__decay_on="all")
    record = run_in(store, config)
    loop = Loop(config, seed=0, device=CPU)
    at_start = {name: p.detach() for name, p in loop.model.named_parameters()}
    snapshot = checkpoint.load_newest(store.path(record.digest) / "checkpoints", record.digest).snapshot
    assert snapshot is not None
    assert bits(snapshot.weights[GAIN]) == bits(at_start[GAIN])
    unmoved = [name for name, start in at_start.items() if bits(snapshot.weights[name]) == bits(start)]
    assert unmoved == [GAIN]
    # Said, and no defect.
    (finding,) = record.findings
    assert (finding.rule, finding.severity, finding.where) == ("frozen-parameter", "notice", GAIN)
    assert "kept the initial values" in finding.message


MIXED: dict[str, dict[str, Any]] = {
    "selector.weight": {"scores": {"kind": "linear_combination"}},
    "selector.bias": {"scores": {"kind": "linear_combination", "init": "random", "bias": True}},
    "selector.weight of latent masks": {"scores": {"kind": "latent", "n": 2}},
}


@pytest.mark.parametrize("name", MIXED)
def test_mixing_weights_of_selective_attention(store: RunStore, text: Path, name: str) -> None:
    """S1-45: a multiplier of 0 freezes the mix; others are arms that differ."""
    mixing = f"blocks.0.attention.{name.partition(' ')[0]}"

    def run(multiplier: float) -> tuple[RunConfig, RunRecord]:
        attention = {"kind": "selective", "scores": {**MIXED[name]["scores"], "lr_multiplier": multiplier}}
        size = {"model__positions": "rotary", "train__lr": 0.02, "train__decay_on": "all"}
        config = make(text, model__attention=attention, **size)
        return config, run_in(store, config)

    config, frozen = run(0.0)
    at_start = {n: p.detach() for n, p in Loop(config, seed=0, device=CPU).model.named_parameters()}
    snapshot = checkpoint.load_newest(store.path(frozen.digest) / "checkpoints", frozen.digest).snapshot
    assert snapshot is not None
    assert bits(snapshot.weights[mixing]) == bits(at_start[mixing])
    (finding,) = said(frozen)
    assert (finding.rule, finding.severity) == ("frozen-parameter", "notice")
    assert mixing in finding.message
    weights = {multiplier: run(multiplier)[1].weights for multiplier in (0.1, 1.0)}
    assert len({frozen.weights, *weights.values()}) == 3


def test_even_a_negative_zero_stays(text: Path) -> None:
    loop = Loop(config_of(text, 0.0), seed=0, device=CPU)
    gain = dict(loop.model.named_parameters())[GAIN]
    with torch.no_grad():
        gain.fill_(-0.0)
    before = bits(gain.detach())
    loop.update()
    loop.update()
    assert gain.grad is not None
    assert gain.grad.abs().max() > 0
    assert bits(gain.detach()) == before


def test_the_norm_of_the_gradient_holds_frozen_parameters(text: Path) -> None:
    """Arms with other multipliers are clipped alike."""
    norms = [Loop(config_of(text, m), seed=0, device=CPU).update().grad_norm for m in (0.0, 0.5, 1.0)]
    assert norms[0] == norms[1] == norms[2]


@pytest.mark.parametrize("multiplier", [0.025, 0.5, 2.0])
def test_the_first_step_is_multiplied(text: Path, multiplier: float) -> None:
    """AdamW's first step is the rate times the sign of the gradient."""
    changes = {"train__warmup": 0, "train__lr": 1e-2, "train__eps": 1e-20}
    before, after = trained(text, multiplier, **changes)
    assert (after[GAIN] - before[GAIN]).abs().flatten().tolist() == pytest.approx([1e-2 * multiplier] * 2, rel=1e-4)
    _, ordinary = trained(text, 1.0, **changes)
    assert all(torch.equal(after[name], ordinary[name]) for name in after if name != GAIN)


def test_what_is_not_marked_does_not_decay(text: Path) -> None:
    heavy, none = (
        trained(text, 1.0, train__weight_decay=decay, train__warmup=0, train__decay_on="matrices")[1]
        for decay in (0.5, 0.0)
    )
    changed = {name for name in heavy if not torch.equal(heavy[name], none[name])}
    assert GAIN not in changed
    assert "blocks.0.attention.qkv.weight" in changed
    everything, _ = (
        trained(text, 1.0, train__weight_decay=decay, train__warmup=0, train__decay_on="all")[1] for decay in (0.5, 0.0)
    )
    assert not torch.equal(everything[GAIN], none[GAIN])


def test_a_frozen_parameter_that_moved_is_a_defect(text: Path) -> None:
    loop = Loop(config_of(text, 0.0), seed=0, device=CPU)
    initial = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    table = parameter_table(loop.model)
    final = {name: p + 1e-3 for name, p in initial.items()}
    (finding,) = slices.dead_parameters(final, initial, table, {})
    assert (finding.rule, finding.severity, finding.where) == ("frozen-parameter", "invalid", GAIN)
    assert "moved all the same" in finding.message
    # Frozen and without a gradient: connected to nothing, which is a defect too.
    final[GAIN] = initial[GAIN]
    rules = {finding.rule: finding.severity for finding in slices.dead_parameters(final, initial, table, {GAIN: [""]})}
    assert rules == {"frozen-parameter": "notice", "dead-parameter": "invalid"}
    # The same table with an ordinary multiplier: never moved.
    table[GAIN] = replace(table[GAIN], lr_multiplier=1.0)
    (finding,) = slices.dead_parameters(final, initial, table, {})
    assert (finding.rule, finding.severity) == ("dead-parameter", "invalid")


def test_a_multiplier_redraws_nothing(text: Path) -> None:
    models = [Loop(config_of(text, m), seed=0, device=CPU).model for m in (0.0, 1.0)]
    for model in models:
        initialise(model, 3)
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))

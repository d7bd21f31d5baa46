"""What a mechanism adds to the loss: differentiated with it, reported beside it, never part of a perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.mechanisms import Charged
from tests.train.mechanisms import charged as charged
from tests.train.runs import CPU, make, run_in
from torch import Tensor

from winnow.records.store import RunStore
from winnow.tasks.base import Batch, Task
from winnow.train.config import RunConfig
from winnow.train.loop import Loop, Update
from winnow.train.losses import losses, target_weight

pytestmark = pytest.mark.usefixtures("charged")


PENALISED: list[dict[str, Any]] = [
    {"epsilon": 5.0},
    {"kind": "selective", "penalty": {"epsilon": 30.0, "tau": 0.5}},
    {"kind": "selective", "penalty": {"epsilon": 30.0, "form": "mean"}, "scores": {"kind": "selectors", "n_heads": 2}},
]


def config_of(text: Path, attention: Mapping[str, Any] | None = None, **changes: Any) -> RunConfig:
    return make(text, model__n_layers=2, model__attention={"kind": "charged", **(attention or {})}, **changes)


def updates(loop: Loop, steps: int) -> list[Update]:
    return [loop.update() for _ in range(steps)]


def weights_of(loop: Loop) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loop.model.named_parameters()}


def mixers(loop: Loop) -> list[Charged]:
    return [module for module in loop.model.modules() if isinstance(module, Charged)]


def mask_rows(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row i of an update counts only its first 2 i + 1 targets, so that rows weigh differently in the mean."""
    task: Task = loop.task
    real = task.batch

    def masked(seed: int, step: int, rows: range, rows_per_step: int) -> Batch:
        batch = real(seed, step, rows, rows_per_step)
        mask = torch.zeros(batch.targets.shape)
        for line, row in enumerate(rows):
            mask[line, : 2 * row + 1] = 1
        return replace(batch, mask=mask)

    monkeypatch.setattr(task, "batch", masked)


@pytest.mark.parametrize(
    ("attention", "micro_batch", "masked"),
    [*((PENALISED[0], rows, masked) for rows in (1, 2) for masked in (False, True)), (PENALISED[1], 2, True)],
)
def test_cutting_an_update_changes_only_the_order_of_additions(
    text: Path, attention: dict[str, Any], micro_batch: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[list[Update], dict[str, Tensor]]] = []
    for rows in (8, micro_batch):
        with monkeypatch.context() as patch:
            loop = Loop(config_of(text, attention, train__micro_batch=rows), seed=0, device=CPU)
            if masked:
                mask_rows(loop, patch)
            found.append((updates(loop, 6), weights_of(loop)))
    (whole, weights), (cut, cut_weights) = found
    assert [u.ce for u in cut] == pytest.approx([u.ce for u in whole], rel=3e-6)
    assert [u.penalty for u in cut] == pytest.approx([u.penalty for u in whole], rel=1e-5)
    assert [u.grad_norm for u in cut] == pytest.approx([u.grad_norm for u in whole], rel=1e-4)
    for name, weight in weights.items():
        assert (cut_weights[name] - weight).norm() <= 2e-4 * weight.norm() + 1e-5, name


@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize("attention", PENALISED)
def test_the_gradient_is_that_of_both(text: Path, attention: dict[str, Any], micro_batch: int) -> None:
    """Against a finite difference of cross entropy plus penalties in fp64, in one random direction."""
    loop = Loop(config_of(text, attention, train__micro_batch=micro_batch), seed=0, device=CPU)
    loop.model.double()
    start = weights_of(loop)
    measured = loop.update()
    gradients = {name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None}
    draw = torch.Generator().manual_seed(2)
    direction = {name: torch.randn(w.shape, generator=draw, dtype=w.dtype) for name, w in start.items()}
    # Clipping scales the gradient after its norm was taken.
    scale = max(1.0, measured.grad_norm)
    slope = scale * sum(float((gradients[name] * direction[name]).sum()) for name in gradients)

    def loss_at(distance: float) -> tuple[float, float]:
        with torch.no_grad():
            for name, p in loop.model.named_parameters():
                p.copy_(start[name] + distance * direction[name])
            batch = loop.task.batch(0, 0, range(8), 8)
            found = losses(loop.model, loop.model, batch, CPU, "fp32")
            assert found.penalty is not None
            return float(found.ce) / target_weight([batch]), float(found.penalty)

    h = 1e-6
    (ce, penalty), up, down = loss_at(0.0), sum(loss_at(h)), sum(loss_at(-h))
    assert measured.ce == pytest.approx(ce, rel=1e-6)
    assert measured.penalty == pytest.approx(penalty, rel=1e-6)
    assert slope == pytest.approx((up - down) / (2 * h), rel=1e-5)
    ce_slope = (loss_at(h)[0] - loss_at(-h)[0]) / (2 * h)
    assert abs(slope - ce_slope) > 0.01 * abs(slope), "the direction must feel the penalty"


def test_layers_add_up(text: Path) -> None:
    def first(layer: int | None) -> float:
        loop = Loop(config_of(text, {"penalised_layer": layer}), seed=0, device=CPU)
        penalty = loop.update().penalty
        assert penalty is not None
        return penalty

    assert first(None) == pytest.approx(first(0) + first(1), rel=1e-6)
    assert first(0) > 0


def test_a_weight_of_zero_is_no_penalty(text: Path) -> None:
    zero = Loop(config_of(text, {"epsilon": 0.0}), seed=0, device=CPU)
    none = Loop(config_of(text, {"epsilon": None}), seed=0, device=CPU)
    assert [(u.ce, u.grad_norm) for u in updates(zero, 5)] == [(u.ce, u.grad_norm) for u in updates(none, 5)]
    ours, theirs = weights_of(zero), weights_of(none)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_journal_keeps_the_penalty_apart(store: RunStore, text: Path) -> None:
    """H14 of the source program: its perplexity held the penalty."""
    charged_run = run_in(store, config_of(text, {"epsilon": 100.0}))
    plain_run = run_in(store, config_of(text, {"epsilon": None}))
    rows, plain = store.metrics(charged_run.digest), store.metrics(plain_run.digest)
    assert all(row["train/penalty"] > 0 for row in rows[:-1])
    assert "train/penalty" not in rows[-1]
    assert not any("train/penalty" in row for row in plain)
    assert rows[0]["train/penalty"] > 10, "large beside a cross entropy of 5.5, or this test shows nothing"
    # At step 0 the weights are the same ones: so are all cross entropies.
    assert {name: rows[0][name] for name in ("train/ce", "val/ce", "val/ppl")} == {
        name: plain[0][name] for name in ("train/ce", "val/ce", "val/ppl")
    }
    assert rows[0]["train/grad_norm"] > 2 * plain[0]["train/grad_norm"]
    measured = [row for row in rows if "val/ce" in row]
    assert len(measured) == 4
    for row in measured:
        assert math.exp(row["val/ce"]) == row["val/ppl"]
        assert row["val/ce"] < 6
    assert charged_run.final["train/penalty"] < rows[0]["train/penalty"], "it was trained on"
    assert (charged_run.status, charged_run.findings) == ("finished", ())


def test_evaluation_computes_no_penalty(text: Path) -> None:
    loop = Loop(config_of(text), seed=0, device=CPU)
    loop.evaluate()
    assert [mixer.penalties for mixer in mixers(loop)] == [0, 0]
    loop.update()
    assert [mixer.penalties for mixer in mixers(loop)] == [1, 1]


def test_a_penalty_that_is_not_finite_is_named(store: RunStore, text: Path) -> None:
    record = run_in(store, config_of(text, {"broken_after": 7, "penalised_layer": 1}))
    (finding,) = record.findings
    assert (record.status, record.steps_done) == ("diverged", 7)
    assert finding.rule == "non-finite"
    assert finding.where == "penalty of blocks.1.attention"
    assert "step 7:" in finding.message


def test_an_infinite_penalty_alone_stops_an_update() -> None:
    good = Update(3, 5.0, 5.0, 1.0, 1e-3, 0.5)
    assert good.finite
    assert not replace(good, penalty=math.inf).finite


def test_a_penalty_is_a_scalar(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Charged.mix

    def per_row(self: Charged, *inputs: Any) -> Any:
        heads, aux = real(self, *inputs)
        return heads, {"penalty": aux["penalty"].expand(3)}

    monkeypatch.setattr(Charged, "mix", per_row)
    with pytest.raises(AssertionError, match="a penalty is an fp32 scalar"):
        Loop(config_of(text), seed=0, device=CPU).update()

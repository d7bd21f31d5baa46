"""Losses, evaluation and updates in memory: against fp64 logits, and against other ways to cut an update."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.runs import CPU, make

from winnow.errors import InputError
from winnow.train.config import RunConfig
from winnow.train.loop import Loop
from winnow.train.losses import Smoothed

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_TOLERANCE = 1e-4
"""Relative. Two threads and passes of two rows move these losses by 2e-7, selection moves them by 9e-4."""


def trace_of(config: RunConfig, steps: int, seed: int = 0) -> list[float]:
    loop = Loop(config, seed=seed, device=CPU)
    return [loop.update().ce for _ in range(steps)]


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_cutting_an_update_changes_only_the_order_of_additions(text: Path, micro_batch: int) -> None:
    whole = trace_of(make(text), 8)
    cut = trace_of(make(text, train__micro_batch=micro_batch), 8)
    assert cut == pytest.approx(whole, rel=3e-6)
    assert trace_of(make(text, train__tokens_per_update=64), 8) != pytest.approx(whole, rel=1e-4)


def test_val_ce_is_the_mean_over_fp64_logits(text: Path) -> None:
    loop = Loop(make(text, evaluation__tokens=250), seed=3, device=CPU)  # 250 is no multiple of the context
    for _ in range(3):
        loop.update()
    found = loop.evaluate()
    model = loop.model.double()
    total, count = 0.0, 0
    for batch in loop.validation.batches(1):
        logits = model.logits(batch.tokens)[0].detach()
        for position in range(16):
            if batch.mask is None or batch.mask[0, position]:
                row = logits[position] - logits[position].logsumexp(0)
                total -= float(row[batch.targets[0, position]])
                count += 1
    assert count == 250
    assert found["val/ce"] == pytest.approx(total / 250, rel=1e-5)
    assert found["val/ppl"] == pytest.approx(math.exp(total / 250), rel=1e-4)
    assert found["val/bpb"] == pytest.approx(total / 250 / math.log(2), rel=1e-5)  # a byte is a token here


def test_validation_bytes_say_what_is_measured(text: Path) -> None:
    loop = Loop(make(text, evaluation__bytes=400), seed=0, device=CPU)
    assert loop.validation.n_bytes is not None
    assert 300 < loop.validation.n_bytes <= 400


def test_equal_seeds_are_equal_and_others_are_not(text: Path) -> None:
    config = make(text)
    assert trace_of(config, 3, seed=1) == trace_of(config, 3, seed=1)
    assert trace_of(config, 1, seed=1) != trace_of(config, 1, seed=2)


def test_training_consumes_no_global_randomness(text: Path) -> None:
    """The addressed stream of a step decides, whatever was drawn before."""
    torch.manual_seed(5)
    first = trace_of(make(text), 3)
    torch.manual_seed(6)
    torch.rand(10)
    assert trace_of(make(text), 3) == first


def test_smoothed_loss_has_no_bias_from_its_start() -> None:
    smoothed = Smoothed()
    assert [smoothed.add(3.0) for _ in range(4)] == pytest.approx([3.0] * 4)
    values = [5.0, 4.0, 2.0]
    weights = [0.5 ** (age / 20) for age in (2, 1, 0)]
    smoothed = Smoothed()
    last = [smoothed.add(value) for value in values][-1]
    assert last == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))


def test_bf16_stays_near_fp32(text: Path) -> None:
    exact, rounded = trace_of(make(text), 5), trace_of(make(text, train__precision="bf16"), 5)
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert rounded != exact


def test_too_few_validation_tokens_are_the_users_to_mend(text: Path) -> None:
    with pytest.raises(InputError, match=r"evaluation\.tokens"):
        Loop(make(text, evaluation__tokens=10**9), seed=0, device=CPU)


GOLDEN_SIZE: dict[str, Any] = {
    "task__context": 32,
    "model__d_model": 32,
    "model__n_layers": 2,
    "train__steps": 20,
    "train__tokens_per_update": 512,
    "train__lr": 0.02,  # large, so that scores grow enough within twenty updates for selection to matter
}
GOLDEN_RUNS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "selective": {"model__attention": {"kind": "selective"}},
}


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_golden_losses(text: Path, name: str) -> None:
    """Twenty updates on the synthetic text. They move only with a component's `revision`."""
    losses = trace_of(make(text, **GOLDEN_SIZE, **GOLDEN_RUNS[name]), 20, seed=1)
    golden = json.loads((GOLDEN / f"losses-{name}.json").read_text())
    assert losses == pytest.approx(golden["train/ce"], rel=GOLDEN_TOLERANCE)
    other = json.loads((GOLDEN / f"losses-{'softmax' if name == 'selective' else 'selective'}.json").read_text())
    assert losses != pytest.approx(other["train/ce"], rel=GOLDEN_TOLERANCE)

"""Runs on tasks of questions and answers: metrics counted by hand, windows of training errors, resuming, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.train.runs import CPU, go_on, make, run_in, said, table
from torch import Tensor
from torch.nn import functional as F

from winnow.config import input_errors
from winnow.errors import InputError
from winnow.models.base import Facts, Model, Output
from winnow.records.store import RunStore
from winnow.tasks import Batch, ProgramsConfig, TaskConfig, Validation
from winnow.train import health
from winnow.train.config import EvaluationConfig, RunConfig, TrainConfig
from winnow.train.evaluate import evaluate, held_out
from winnow.train.loop import Loop
from winnow.train.optim import learning_rate

FEW: dict[str, Any] = {"kind": "programs", "items": 3, "alphabet": 6, "validation": {"questions": 40}}
CONTEXT = 3 + 1 + 11 + 1 + 3


def programs(**changes: Any) -> RunConfig:
    """A tiny run on programs of 1 to 3 operations: 8 texts an update."""
    found = table(Path("nowhere"), **changes)
    return RunConfig.model_validate(
        {
            **found,
            "task": {**FEW, **changes.get("task", {})},
            "train": {**found["train"], "tokens_per_update": 8 * CONTEXT},
            "evaluation": {key: value for key, value in found["evaluation"].items() if key != "tokens"},
        }
    )


class Told(Model):
    """Says the target of every position, at odds of e^9 to 1; but what `wrong` says of (row, position) instead."""

    def __init__(self, rows: Validation, wrong: Callable[[int], list[int]]) -> None:
        super().__init__()
        self._readout = torch.nn.Parameter(torch.eye(256))
        self._said: dict[bytes, Tensor] = {}
        for index, batch in enumerate(rows.batches(1)):
            said = batch.targets[0].clone()
            said[wrong(index)] = ord("#")
            self._said[bytes(batch.tokens[0].tolist()).rstrip(b" ")] = said

    @property
    def readout_weight(self) -> Tensor:
        return self._readout

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Output:
        rows = []
        for row in tokens.tolist():
            said = self._said[bytes(row).rstrip(b" ")][: len(row)]
            rows.append(F.pad(said, (0, len(row) - len(said)), value=ord(" ")))
        return Output(9.0 * F.one_hot(torch.stack(rows), 256).float(), ())

    def facts(self, context: int) -> Facts:
        return {}


RIGHT, WRONG = (math.log(math.exp(9) + 255) - logit for logit in (9.0, 0.0))


def test_a_wrong_text_weighs_what_its_batch_says() -> None:
    """157 batches of 64, of which the last holds 16: a text there weighs four times as much in means of batches."""
    config = ProgramsConfig(items=3, operations=1)
    exact = config.build().validation(110_000)
    answer, question = [8, 10], [0]  # of 11 bytes
    positions = {5: answer, 64: question, 9_999: answer}
    model = Told(exact, lambda row: positions.get(row, []))
    found = evaluate(model, exact, CPU, "fp32")
    assert found.keys() == ProgramsConfig.metrics.keys()
    assert found["val/error"] == pytest.approx(100 * (2 + 1 + 2) / 110_000, rel=1e-12)
    assert found["val/mask_error"] == pytest.approx(100 * (2 + 0 + 2) / 30_000, rel=1e-12)
    assert found["val/sample_error"] == pytest.approx(100 * (1 + 1 + 1) / 10_000, rel=1e-12)
    assert found["val/ce"] == pytest.approx(RIGHT + 5 / 110_000 * (WRONG - RIGHT), rel=1e-4)
    means = evaluate(model, exact.in_batches(64), CPU, "fp32")
    assert means["val/error"] == pytest.approx(100 * (2 + 1 + 4 * 2) / (10_048 * 11), rel=1e-12)
    assert means["val/mask_error"] == pytest.approx(100 * (2 + 0 + 4 * 2) / (10_048 * 3), rel=1e-12)
    assert means["val/sample_error"] == pytest.approx(100 * (1 + 1 + 4 * 1) / 10_048, rel=1e-12)
    assert means["val/ce"] == pytest.approx(RIGHT + 11 / (10_048 * 11) * (WRONG - RIGHT), rel=1e-4)


def test_padding_counts_in_losses_and_errors() -> None:
    config = TaskConfig.model_validate({**FEW, "validation": {"questions": 40, "operations": [1, 3]}})
    whole = config.build().validation(40 * CONTEXT)
    shorter = [index for index, batch in enumerate(whole.batches(1)) if batch.targets[0, -1] == ord(" ")]
    assert 10 < len(shorter) < 38
    model = Told(whole, lambda row: [CONTEXT - 1] if row in shorter else [])
    found = evaluate(model, whole, CPU, "fp32")
    assert found["val/error"] == pytest.approx(100 * len(shorter) / (40 * CONTEXT))
    assert found["val/sample_error"] == pytest.approx(100 * len(shorter) / 40)
    assert found["val/mask_error"] == 0
    assert found["val/ce"] == pytest.approx(RIGHT + len(shorter) / (40 * CONTEXT) * (WRONG - RIGHT), rel=1e-4)


def by_hand(loop: Loop, batch: Batch) -> tuple[Tensor, Tensor]:
    """Which positions the model as it stands gets wrong; and where the answers are."""
    assert batch.answer is not None
    with torch.no_grad():
        return loop.model.logits(batch.tokens).argmax(dim=-1) != batch.targets, batch.answer


@pytest.mark.parametrize("means", [None, 4])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_training_errors_are_those_of_the_last_whole_window(means: int | None, micro_batch: int | None) -> None:
    config = programs(
        evaluation__train_window=17, evaluation__batch_means=means, train__micro_batch=micro_batch, train__steps=8
    )
    loop = Loop(config, seed=0, device=CPU)
    found, wrong, answers = [], [], []
    for step in range(8):
        missed, answer = by_hand(loop, loop.task.batch(0, step, range(8), 8))
        wrong.append(missed)
        answers.append(answer)
        found.append(loop.update().errors)
    assert [bool(errors) for errors in found] == [False, False, True, False, False, True, False, False]
    for end in (3, 6):
        missed, answer = wrong[end - 3 : end], answers[end - 3 : end]
        rows = 100 * sum(int(each.any(dim=1).sum()) for each in missed) / 24
        masked = [float((each & where).sum()) for each, where in zip(missed, answer, strict=True)]
        assert found[end - 1] == {
            "train/sample_error": pytest.approx(rows),
            "train/mask_error": pytest.approx(100 * sum(masked) / (24 * 3)),
            "train/error": pytest.approx(
                100 * sum(float(each.float().mean()) for each in missed) / 3
                if means
                else 100 * sum(int(each.sum()) for each in missed) / sum(each.numel() for each in missed)
            ),
        }


def test_a_short_run_has_one_window() -> None:
    loop = Loop(programs(train__steps=2, evaluation__train_window=1000), seed=0, device=CPU)
    assert [bool(loop.update().errors) for _ in range(2)] == [False, True]


def test_cutting_an_update_changes_only_the_order_of_additions() -> None:
    def trace(micro_batch: int) -> list[float]:
        loop = Loop(programs(train__micro_batch=micro_batch), seed=0, device=CPU)
        return [loop.update().ce for _ in range(6)]

    assert trace(1) == pytest.approx(trace(8), rel=3e-6)
    assert trace(4) == pytest.approx(trace(8), rel=3e-6)


def test_a_run_is_measured_and_goes_on_as_if_never_stopped(store: RunStore, tmp_path: Path) -> None:
    config = programs(evaluation__train_window=24, evaluation__batch_means=16)
    whole = run_in(store, config)
    rows = store.metrics(whole.digest)
    assert [row["step"] for row in rows if "train/error" in row] == [2, 5, 8, 11]
    assert [row["step"] for row in rows if "val/sample_error" in row] == [0, 5, 10, 12]
    assert {"val/ppl", "val/bpb"}.isdisjoint(whole.final)
    assert whole.final["val/sample_error"] >= whole.final["val/mask_error"] > whole.final["val/error"]
    assert said(whole) == []
    assert (whole.facts["val_tokens"], whole.facts["validation_questions"]) == (40 * CONTEXT, 40)
    assert "val_bytes" not in whole.facts
    other = RunStore(tmp_path / "stopped")
    for step in (1, 4, 5, 9):
        assert go_on(other, config, stop_at=step).steps_done == step
    ended = go_on(other, config)
    assert (ended.trace, ended.weights, ended.final) == (whole.trace, whole.weights, whole.final)


def test_evaluation_takes_the_whole_set_unless_told_otherwise() -> None:
    assert programs().evaluation.tokens == 40 * CONTEXT
    assert RunConfig.model_validate(programs().dump()).digest() == programs().digest()
    part = RunConfig.model_validate({**programs().dump(), "evaluation": {"tokens": 10 * CONTEXT}})
    assert held_out(part.task.build(), part.evaluation).n_tokens == 10 * CONTEXT
    default = RunConfig.model_validate({**programs().dump(), "evaluation": {"tokens": 16384}})
    with pytest.raises(InputError, match="16384 validation tokens are no whole number") as caught:
        held_out(default.task.build(), default.evaluation)
    assert caught.value.key == "evaluation.tokens"
    by_bytes = RunConfig.model_validate({**programs().dump(), "evaluation": {"bytes": 500}})
    with pytest.raises(InputError, match="no running text"):
        held_out(by_bytes.task.build(), by_bytes.evaluation)


def test_a_text_has_no_answers_to_count(text: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        make(text, evaluation__train_window=100)
    (error,) = input_errors(caught.value)
    assert (error.key, error.message) == ("evaluation.train_window", "corpus tasks count no errors")
    with pytest.raises(InputError, match="not by means of batches"):
        Loop(make(text, evaluation__batch_means=4), seed=0, device=CPU)
    assert make(text, evaluation__batch_means=None).canonical() == make(text).canonical()
    assert {"batch_means", "train_window"}.isdisjoint(make(text).canonical()["evaluation"])


def test_presets_say_what_was_published() -> None:
    config = RunConfig.model_validate(
        {
            "task": {"kind": "programs"},
            "model": {"preset": "tiny"},
            "train": {"preset": "as_published"},
            "evaluation": {"preset": "as_published", "every": 1000},
        }
    )
    assert (config.rows, config.rows * config.train.steps) == (64, 1_000_000)
    assert learning_rate(0, config.train) == 5e-4  # no warm-up was applied
    assert learning_rate(1, config.train) == pytest.approx(4.99999995e-4, rel=1e-9)
    assert learning_rate(15_625, config.train) == pytest.approx(0, abs=1e-18)
    assert (config.evaluation.batch_means, config.evaluation.train_window) == (64, 1000)
    assert (config.evaluation.every, config.evaluation.tokens) == (1000, 230_000)
    assert TrainConfig.model_validate({"preset": "as_published", "steps": 100}).steps == 100
    for part in (TrainConfig, EvaluationConfig):
        with pytest.raises(ValidationError, match="preset 'as_publisht' is unknown"):
            part.model_validate({"preset": "as_publisht"})


def test_an_answer_in_the_input_makes_a_run_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(programs(), seed=0, device=CPU)
    assert [item.rule for item in loop.findings_at_start()[0]] == []
    assert loop.judge_first_loss(3.0, None) is None  # questions may be repeated by an untrained model
    assert loop.judge_first_loss(9.0, None) is not None
    batch = loop.task.batch(0, 0, range(8), 8)
    leaked = Batch(batch.targets, batch.targets, answer=batch.answer)
    assert health.visible_answer([batch]) is None
    monkeypatch.setattr(loop.task, "batch", lambda *_: leaked)
    (finding,) = loop.findings_at_start()[0]
    assert (finding.rule, finding.severity) == ("visible-answer", "invalid")


def test_what_grafts_change_is_measured_on_the_task_itself() -> None:
    base = programs(model__n_layers=2).dump()
    grafted = RunConfig.model_validate({**base, "graft": [{"kind": "add-heads", "init": "o_rescaled"}]})
    loop, plain = Loop(grafted, seed=0, device=CPU), Loop(RunConfig.model_validate(base), seed=0, device=CPU)
    assert loop.start.report is not None
    assert loop.start.report.ce_change == pytest.approx(
        loop.evaluate()["val/ce"] - plain.evaluate()["val/ce"], abs=5e-5
    )

"""Runs of convolutional models and LSTMs: the same guarantees as a GPT's, and refusals of what they cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.study.studies import write_study
from tests.train import shown as shown_task
from tests.train.runs import go_on, make, run_in
from tests.train.test_start import KEPT, child_of, run_child
from tests.train.test_worker import request, serve, with_source
from torch.nn import functional as F

from winnow.analysis.trained import read_trained
from winnow.attention import convolutional
from winnow.config import input_errors
from winnow.errors import InputError
from winnow.kernels import convolution as kernel
from winnow.models import conv
from winnow.models.interchange import export_gpt2, read_weights
from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.study.resolve import resolve
from winnow.study.spec import load_study
from winnow.tasks import TaskConfig
from winnow.train import health
from winnow.train.config import RunConfig

SHOWN = TaskConfig.members.pop("shown")
CONV: dict[str, Any] = {"kind": "conv", "d_model": 8, "n_layers": 2, "kernel": 3, "dilation": [2, 1]}
LINEAR = {**CONV, "attention": ["none", {"kind": "linear", "qkv": "QK"}]}
HEADS = {
    **CONV,
    "norm": {"kind": "rmsnorm"},
    "attention": ["none", {"kind": "softmax", "qkv": "KV", "n_heads": 2}],
}
SKIPPING = {**CONV, "n_layers": 3, "dilation": 1, "skips": [[0, 2]], "positions": "sinusoidal", "embedding_std": 0.1}
LSTM = {"kind": "lstm", "d_model": 8, "n_layers": 2}
BOTH = {**LSTM, "bidirectional": True, "d_hidden": 6, "tied": False}
MODELS = {"linear": LINEAR, "heads": HEADS, "skipping": SKIPPING, "lstm": LSTM, "both": BOTH}
STEPS = {"train__steps": 8, "evaluation__every": 4}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the kind "shown" for one test."""
    monkeypatch.setitem(TaskConfig.members, "shown", SHOWN)


def run(store: RunStore, text: Path, model: dict[str, Any], **changes: Any) -> RunRecord:
    return run_in(store, make(text, task__kind="shown", model=model, **{**STEPS, **changes}))


def wrong(record: RunRecord) -> list[str]:
    """Findings, but for keys' biases, which softmax does not see."""
    return [f"{item.rule}: {item.message}" for item in record.findings if item.rule != "slice-barely-moves"]


@pytest.mark.usefixtures("shown")
def test_every_kind_passes_through_the_worker(store: RunStore, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "shown.py"
    file.write_text(Path(shown_task.__file__).read_text())
    configs = [make(text, task__kind="shown", model=model, **STEPS) for model in MODELS.values()]
    asked = [with_source(request(store, config), config, file) for config in configs]
    done = [event for event in serve(*asked) if event["event"] not in ("started", "progress")]
    assert [event["event"] for event in done] == ["done"] * len(MODELS), done
    for item, name in zip(asked, MODELS, strict=True):
        record = store.record(item["digest"])
        assert record is not None
        assert (record.status, record.steps_done, wrong(record)) == ("finished", 8, []), name
        assert record.final["val/ce"] < store.metrics(record.digest)[0]["val/ce"]
        assert "kv_bytes_per_token" not in record.facts


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("name", ["linear", "both"])
def test_a_stopped_run_goes_on_bit_for_bit(text: Path, tmp_path: Path, name: str) -> None:
    whole = run(RunStore(tmp_path / "whole"), text, MODELS[name])
    store, config = RunStore(tmp_path / "parts"), make(text, task__kind="shown", model=MODELS[name], **STEPS)
    assert go_on(store, config, stop_at=3).status == "interrupted"
    assert go_on(store, config).weights == whole.weights


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("name", ["linear", "lstm"])
def test_a_run_may_start_from_another(store: RunStore, text: Path, name: str) -> None:
    changes = {"task__kind": "shown", "model": MODELS[name], **STEPS}
    parent = run_in(store, make(text, **changes, train__keep=(KEPT,)))
    record = run_child(store, child_of(parent, text, changes), parent)
    assert (record.status, wrong(record)) == ("finished", [])
    assert record.initial != parent.initial


# Faults


def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activation before attention."""

    def forward(self: Any, x: Any) -> Any:
        h = F.gelu(kernel.convolution(x, self.weight, self.bias, self.dilation))
        if self.attention is not None:
            parts = dict(zip(self.made, h.split(self.width, -1), strict=True))
            h = self.attention(*(parts.get(letter, x) for letter in "QKV"))
        return h + x

    monkeypatch.setattr(conv.ConvLayer, "forward", forward)


def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taps that reach one position too far."""
    reach = kernel.reach
    monkeypatch.setattr(kernel, "reach", lambda n, dilation, *rest: reach(n, dilation + 1, *rest))


def value_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The feature map of keys also on values."""
    forward = convolutional.LinearAttention.forward
    monkeypatch.setattr(
        convolutional.LinearAttention, "forward", lambda self, q, k, v: forward(self, q, k, F.elu(v) + 1)
    )


def letters_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are the layer's input, whatever the invention says."""
    forward = convolutional.LinearAttention.forward
    monkeypatch.setattr(convolutional.LinearAttention, "forward", lambda self, q, k, v: forward(self, q, v, v))


def restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initial values of another spread than the table declares."""
    monkeypatch.setattr("winnow.train.loop.initialise", spread_out)


def spread_out(model: Any, seed: int) -> None:
    from winnow.parameters import initialise

    initialise(model, seed)
    with torch.no_grad():
        model.layers[0].weight.mul_(1.3)


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize(
    ("fault", "rules"),
    [
        (swapped, {"not-its-definition"}),
        (shifted, {"not-its-definition"}),
        (value_mapped, {"not-its-definition"}),
        (letters_lost, {"not-its-definition", "dead-parameter"}),
        (restarted, {"initial-values"}),
    ],
)
def test_faults_of_a_layer_are_noticed_by_the_run(
    fault: Any, rules: set[str], store: RunStore, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    record = run(store, text, LINEAR, train__steps=2)
    assert {item.rule for item in record.findings if item.severity == "invalid"} == rules


def test_a_low_first_loss_is_no_leak_where_targets_are_shown() -> None:
    low = health.first_loss(3.0, 256)
    assert low is not None
    assert low.severity == "invalid"
    assert health.first_loss(3.0, 256, next_token=False) is None
    high = health.first_loss(9.0, 256, declared=2.0, next_token=False)
    assert high is not None
    assert high.severity == "warning"
    assert health.first_loss(9.0, 256, declared=3.0) is None


# Refusals


def refused(text: Path, **changes: Any) -> InputError:
    with pytest.raises(ValidationError) as caught:
        make(text, **changes)
    return input_errors(caught.value)[0]


@pytest.mark.parametrize("model", [LINEAR, BOTH], ids=["conv", "lstm"])
def test_what_sees_later_tokens_does_not_predict_the_next(text: Path, model: dict[str, Any]) -> None:
    error = refused(text, model=model)
    assert error.key == "model"
    assert "sees later positions" in error.message
    make(text, model=LSTM)


@pytest.mark.usefixtures("shown")
def test_a_study_says_where(tmp_path: Path) -> None:
    study = """\
id = "shown"
seeds = [0]
base.task = { kind = "corpus", source = "corpus.txt", context = 16 }
base.train = { steps = 4, tokens_per_update = 64, warmup = 2 }
base.evaluation = { every = 2, tokens = 64 }
base.model = { kind = "lstm", d_model = 8, n_layers = 1 }

[arms]
control = {}
both = { model.bidirectional = true }
"""
    with pytest.raises(InputError) as caught:
        resolve(load_study(write_study(tmp_path, study)))
    assert caught.value.line == 10
    assert "it would read its targets" in caught.value.message
    assert "use a causal model" in str(caught.value.mend)
    resolve(load_study(write_study(tmp_path, study.replace('"corpus", ', '"shown", '), "second.toml")))


@pytest.mark.usefixtures("shown")
def test_what_needs_a_gpt_is_refused(text: Path, store: RunStore, tmp_path: Path) -> None:
    error = refused(text, task__kind="shown", model=CONV, graft=[{"kind": "add-heads", "n": 1}])
    assert "knows models of kind 'gpt', not 'conv'" in error.message
    window = [{"policy": "window", "keep": [0.5]}]
    error = refused(text, model=LSTM, evaluation__prune=window)
    assert (error.key, error.message) == ("evaluation.prune", "a model of kind 'lstm' has no cache of keys to prune")
    make(text, model=LSTM, evaluation__prune=[{"policy": "votes", "keep": [0.5]}])
    record = run_in(store, make(text, model=LSTM, train__steps=1, train__warmup=0))
    with pytest.raises(InputError, match="of kind 'lstm', which has no heads to look at and no cache"):
        read_trained(store, record.digest)
    config, weights = RunConfig.model_validate(record.config).model, read_weights(store.path(record.digest)).weights
    with pytest.raises(InputError, match="is no GPT-2: kind is 'lstm', not 'gpt'"):
        export_gpt2(tmp_path / "gpt2", config, weights, 256, 16)
    with pytest.raises(InputError, match="LSTM has no blocks to compute again"):
        run_in(store, make(text, model=LSTM, train__recompute=True))

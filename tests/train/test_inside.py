"""Looks at the inside of the mechanisms: at their steps, by their places, without a trace in the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.mechanisms import Charged
from tests.train.mechanisms import charged as charged
from tests.train.runs import CPU, go_on, make, run_in

from winnow.attention import MixerState
from winnow.records.store import RunStore
from winnow.train.config import EvaluationConfig, RunConfig
from winnow.train.loop import Loop
from winnow.train.preflight import preflight

pytestmark = pytest.mark.usefixtures("charged")


def config_of(text: Path, inside: int | None = 5, **changes: Any) -> RunConfig:
    attention = {"kind": "charged"}
    return make(text, model__n_layers=2, model__attention=attention, evaluation__inside=inside, **changes)


def test_at_its_steps_and_at_the_end(store: RunStore, text: Path) -> None:
    record = run_in(store, config_of(text, evaluation__every=4))
    rows = store.metrics(record.digest)
    names = {f"inside/{layer}/{name}" for layer in (0, 1) for name in ("rows", "query_norm")}
    assert [row["step"] for row in rows if names <= row.keys()] == [0, 5, 10, 12]
    assert [row["step"] for row in rows if any(name.startswith("inside/") for name in row)] == [0, 5, 10, 12]
    assert names <= record.final.keys()
    assert len({row["inside/1/query_norm"] for row in rows if "inside/1/query_norm" in row}) == 4
    assert record.findings == ()


def test_each_layer_is_measured_on_its_own_input(text: Path) -> None:
    loop = Loop(config_of(text), seed=0, device=CPU)
    found = loop.look_inside()
    batch = next(loop.validation.batches(512))
    assert found["inside/0/rows"] == len(batch.tokens) == 20
    seen: list[torch.Tensor] = []
    for module in loop.model.modules():
        if isinstance(module, Charged):
            module.register_forward_pre_hook(lambda mixer, inputs: seen.append(inputs[0]))
    loop.model(batch.tokens)
    for layer, x in enumerate(seen):
        mixer = loop.model.get_submodule(f"blocks.{layer}.attention")
        assert isinstance(mixer, Charged)
        q = mixer.project(x, MixerState())[0]
        assert found[f"inside/{layer}/query_norm"] == pytest.approx(float(q.detach().square().sum(-1).mean()), rel=1e-6)
    assert found["inside/0/query_norm"] != found["inside/1/query_norm"]


def test_a_window_that_is_filled_up_is_left_out(text: Path) -> None:
    loop = Loop(config_of(text, evaluation__tokens=37), seed=0, device=CPU)
    assert loop.look_inside()["inside/0/rows"] == 2
    short = Loop(config_of(text, evaluation__tokens=7), seed=0, device=CPU)
    assert short.look_inside()["inside/0/rows"] == 1


def test_training_does_not_feel_it(store: RunStore, text: Path) -> None:
    def of(inside: int | None) -> tuple[str | None, list[dict[str, Any]]]:
        attention = {"kind": "charged", "noise": 0.01}
        record = run_in(store, make(text, model__n_layers=2, model__attention=attention, evaluation__inside=inside))
        left_out = ("inside/", "speed/")
        rows = store.metrics(record.digest)
        return record.weights, [{k: v for k, v in row.items() if not k.startswith(left_out)} for row in rows]

    assert of(None) == of(1) == of(3)


def test_a_look_leaves_the_model_training(text: Path) -> None:
    loop = Loop(config_of(text), seed=0, device=CPU)
    loop.look_inside()
    mixers = [module for module in loop.model.modules() if isinstance(module, Charged)]
    assert all(mixer.training for mixer in mixers)
    assert [mixer.penalties for mixer in mixers] == [0, 0]
    assert not any(mixer._forward_pre_hooks for mixer in mixers)


def test_resumes_exactly(store: RunStore, text: Path, tmp_path: Path) -> None:
    config = config_of(text)
    whole = run_in(store, config)
    other = RunStore(tmp_path / "stopped")
    for step in (4, 5, 6, 11):
        go_on(other, config, stop_at=step)
    resumed = go_on(other, config)
    assert (resumed.weights, resumed.trace, resumed.final) == (whole.weights, whole.trace, whole.final)
    steps = [row["step"] for row in other.metrics(resumed.digest) if "inside/0/rows" in row]
    assert steps == [0, 5, 10, 12]


def test_nothing_to_see_is_said(store: RunStore, text: Path) -> None:
    config = make(text, evaluation__inside=5)
    (finding,) = run_in(store, config).findings
    assert (finding.rule, finding.severity, finding.where) == ("nothing-inside", "notice", "evaluation.inside")
    (finding,) = preflight(config, seed=0, device=CPU, steps=1).findings
    assert finding.rule == "nothing-inside"
    looked = preflight(config_of(text), seed=0, device=CPU, steps=2)
    assert looked.findings == ()
    assert looked.seconds_per_look > 0


def test_off_is_as_before() -> None:
    """The digest of today's default, as it was before the option."""
    before = "be635a720bdf36c985c5b0b136d51232d31737398504caf712376db11037c5c0"
    assert EvaluationConfig().digest() == before
    assert EvaluationConfig(inside=50).digest() != before

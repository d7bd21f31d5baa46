"""Losses with a pruned cache, as numbers of a run and of a study's claims."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.oracles import pruning as oracle
from tests.train.runs import CPU, make, run_in

from winnow.attention import MixerState
from winnow.attention.prune import PolicyConfig, VotesConfig, WindowConfig
from winnow.config import input_errors
from winnow.errors import InputError
from winnow.records.store import RunStore
from winnow.train.evaluate import evaluate, pruned_ce, prunings
from winnow.train.loop import Loop

SELECTIVE = {"model__attention": {"kind": "selective"}, "model__positions": "rotary"}
PRUNE = [{"policy": "votes", "keep": [0.25, 0.5]}, {"policy": {"kind": "window", "sinks": 1}, "keep": [0.25]}]


def test_a_run_logs_them_once_after_its_last_update(store: RunStore, text: Path) -> None:
    config = make(text, evaluation__prune=PRUNE, **SELECTIVE)
    record = run_in(store, config)
    names = {"prune/votes/0.25/ce", "prune/votes/0.5/ce", "prune/window/0.25/ce"}
    assert {name for name in record.final if name.startswith("prune/")} == names
    rows = store.metrics(record.digest)
    assert [row["step"] for row in rows if names <= row.keys()] == [12]
    assert set(config.metrics) == {"val/ce", "val/ppl", "val/bpb"} | names
    assert not [finding for finding in record.findings if finding.rule == "unread-option"]


def test_arms_without_selection_have_none_that_goes_by_votes(store: RunStore, text: Path) -> None:
    config = make(text, evaluation__prune=PRUNE)
    record = run_in(store, config)
    assert [name for name in record.final if name.startswith("prune/")] == ["prune/window/0.25/ce"]
    assert "prune/votes/0.25/ce" not in config.metrics
    assert not [finding for finding in record.findings if finding.rule == "unread-option"]


def test_the_digest_of_a_run_without_them_is_as_before(text: Path) -> None:
    plain = make(text)
    assert plain.digest() == make(text, evaluation__prune=[]).digest()
    assert "prune" not in plain.canonical()["evaluation"]
    assert plain.digest() != make(text, evaluation__prune=PRUNE).digest()


def trained(text: Path, policy: PolicyConfig, budget: int) -> tuple[Loop, float]:
    loop = Loop(make(text, evaluation__tokens=40, **SELECTIVE), seed=0, device=CPU)
    with torch.no_grad():
        for name, parameter in loop.model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter.mul_(20)  # scores that vote
    return loop, pruned_ce(loop.model, loop.validation, CPU, "fp32", budget, policy)


@pytest.mark.parametrize("policy", [VotesConfig(), WindowConfig()])
def test_the_loss_is_that_of_decoding_token_by_token(text: Path, policy: PolicyConfig) -> None:
    loop, found = trained(text, policy, 3)
    total, count = 0.0, 0
    for batch in loop.validation.batches(1):
        cache = loop.model.cache(1, loop.validation.context, 3, policy)
        for i in range(batch.tokens.shape[1]):
            hidden = loop.model.extend(batch.tokens[:, i : i + 1], cache).hidden
            logits = (hidden @ loop.model.readout_weight.detach().T).double()[0, 0]
            if batch.mask is None or batch.mask[0, i]:
                total -= float(logits.log_softmax(-1)[batch.targets[0, i]])
                count += 1
    assert count == 40
    assert math.isclose(found, total / count, rel_tol=2e-6)


def test_a_full_budget_is_the_unpruned_loss_to_the_bit(text: Path) -> None:
    for budget in (15, 16, 99):
        loop, found = trained(text, VotesConfig(), budget)
        assert found == evaluate(loop.model, loop.validation, CPU, "fp32")["val/ce"]
    assert trained(text, VotesConfig(), 2)[1] != found


def test_one_layer_equals_the_oracle(text: Path) -> None:
    """Hidden states of one window, with the oracle in the place of the mechanism."""
    loop, _ = trained(text, VotesConfig(), 4)
    model: Any = loop.model
    tokens = next(loop.validation.batches(1)).tokens
    found = model.extend(tokens, model.cache(1, 16, 4, VotesConfig())).hidden[0]
    block, attention = model.blocks[0], model.blocks[0].attention
    with torch.no_grad():
        h = model.embedding(tokens)
        q, k, v = (t[0].double() for t in attention.project(block.norm1(h), MixerState()))
        told = oracle.decode(q, k, v, [(q[:, 0], k[:, 0])], None, attention.voting, 4, "votes")
        h = h[0] + attention.out(told.heads.flatten(1).float())
        expected = model.norm(h + block.mlp(block.norm2(h)))
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(model(tokens).hidden[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("prune", "message", "key"),
    [
        ([{"policy": "votes", "keep": []}], "keeps nothing", "evaluation.prune.0.keep"),
        ([{"policy": "votes", "keep": [0.0]}], "0.0 is no part of the context", "evaluation.prune.0.keep"),
        ([{"policy": "votes", "keep": [1.5]}], "1.5 is no part of the context", "evaluation.prune.0.keep"),
        ([{"policy": "none", "keep": [0.5]}], "nothing goes under none", "evaluation.prune.0.policy"),
        ([{"policy": "vote", "keep": [0.5]}], "kind 'vote' is unknown", "evaluation.prune.0.policy"),
        ([{"keep": [0.5, 0.5]}], "0.5 stands twice", "evaluation.prune.0.keep"),
        ([{"keep": [0.5]}, {"keep": [0.5]}], "is asked for twice", "evaluation.prune"),
    ],
)
def test_what_is_refused(text: Path, prune, message: str, key: str) -> None:
    with pytest.raises(ValidationError) as refused:
        make(text, evaluation__prune=prune)
    (error,) = input_errors(refused.value)
    assert message in error.message
    assert error.key == key


def test_residual_scores_are_refused_where_the_run_is_written(text: Path) -> None:
    shared = {"model__n_layers": 2, "model__attention": {"kind": "selective", "residual_scores": True}}
    with pytest.raises(ValidationError) as refused:
        make(text, evaluation__prune=PRUNE, **shared)
    (error,) = input_errors(refused.value)
    assert error.message.startswith("prune/votes/0.25/ce cannot be measured: under residual scores")
    assert error.key == "evaluation.prune"
    felt_by_none = [{"policy": "votes", "keep": [1.0]}]
    config = make(text, evaluation__prune=felt_by_none, **shared)
    assert "prune/votes/1/ce" in config.metrics
    asked = make(text, evaluation__prune=PRUNE, **SELECTIVE).evaluation.prune
    with pytest.raises(InputError, match="residual scores") as late:  # a mechanism whose config does not say so
        prunings(asked, Loop(config, seed=0, device=CPU).model, config.task.context)
    assert late.value.key == "evaluation.prune"

"""`winnow graft` on folders of weights: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.runs import make, run_in, write_text

from winnow.models import GPTConfig
from winnow.models.grafts import AddHeads, SwitchAttention
from winnow.models.interchange import read_weights, write_model
from winnow.models.surgery import operate
from winnow.parameters import initialise
from winnow.records.store import RunStore
from winnow.train.losses import tensors_of

CONFIG = GPTConfig(d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, d_head=8, d_ff=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = CONFIG.build(11, 8)
    initialise(model, 0)
    write_model(tmp_path / "model", CONFIG, {n: t.detach() for n, t in tensors_of(model).items()}, 11, 8)
    return tmp_path / "model"


def test_it_writes_what_the_operation_makes_and_never_over_anything(winnow, folder: Path):
    before = (folder / "weights.safetensors").read_bytes()
    new = folder.parent / "grown"
    given = ("graft", folder, "--to", new, "--add-heads", 2, "--at", "end", "--init", "o_rescaled", "--seed", 7)
    ended = winnow(*given)
    assert ended.code == 0, ended.err
    source, found = read_weights(folder), read_weights(new)
    grafts = [AddHeads(n=2, at="end", init="o_rescaled")]
    expected = operate(CONFIG, source.weights, grafts, vocab_size=11, context=8, seed=7)
    assert found.config == expected.config
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())
    assert f"({expected.report.added:+,})" in ended.out
    assert (folder / "weights.safetensors").read_bytes() == before
    again = winnow(*given)
    assert (again.code, again.out) == (2, "")
    assert "grown: --to: exists already" in again.err


def test_it_says_what_is_kept_and_what_wakes_when(winnow, folder: Path):
    ended = winnow("graft", folder, "--to", folder.parent / "a", "--add-heads", 1, "--init", "ko_zero")
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["function", "kept", "yes,", "up", "to", "rounding"] in lines
    for part, update in (("qkv.weight[q.0]", 3), ("qkv.weight[k.0]", 2), ("qkv.bias[v.0]", 2), ("out.weight[o.0]", 1)):
        assert f"attention.{part} 2 update {update}".split() in lines, ended.out
    assert ["attention.qkv.bias[k.0]", "2", "none:", "no", "effect"] in lines, ended.out
    assert ended.err == ""


def test_a_dead_head_is_announced(winnow, folder: Path):
    ended = winnow("graft", folder, "--to", folder.parent / "a", "--add-heads", 1, "--init", "zero")
    assert ended.code == 0
    assert "dead-by-construction: 12 fresh slices can never get a gradient" in ended.err
    assert ["attention.out.weight[o.0]", "2", "never"] in [line.split() for line in ended.out.splitlines()]


def test_the_report_as_json_and_the_order_of_grafts(winnow, folder: Path):
    table = '{ kind = "selective", scores = { kind = "selectors" } }'
    options = ("--attention", table, "--add-heads", 1, "--remove-heads", "1")
    ended = winnow("graft", folder, "--to", folder.parent / "a", *options, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["model"]["n_heads"] == 2
    switched = SwitchAttention.model_validate({"attention": {"kind": "selective", "scores": {"kind": "selectors"}}})
    assert found["model"]["attention"] == switched.attention.dump()
    assert found["fresh"]["blocks.0.attention.qkv.weight"] == ["q.0", "qs.0", "k.0", "ks.0", "v.0"]
    assert found["preserves"] is False
    assert found["max_logit_change"] > 0
    assert found["added"] == 2 * (2 * 8 * 16 + 2 * 8)
    assert "blocks.1.attention.out.weight[o.1]" in found["dropped"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing is to be done; give --add-heads, --remove-heads or --attention"),
        (("--init", "zero"), "--init: speaks of new heads, and there are none; say how many with --add-heads N"),
        (("--remove-heads", 0, "--at", "start"), "--at: speaks of new heads"),
        (("--remove-heads", "a"), "--remove-heads: 'a' names no heads"),
        (("--remove-heads", "1,1"), "--remove-heads: [1, 1] names a head twice"),
        (("--remove-heads", "2"), "--remove-heads: head 2 is not one of 2; use 0 to 1"),
        (("--attention", "selective"), "--attention: 'selective' is no TOML"),
        (
            ("--attention", '{ kind = "selektive" }'),
            "--attention: kind 'selektive' is unknown; did you mean 'selective'",
        ),
        (
            ("--attention", '{ kind = "selective", scores = { kind = "head", head = 5 } }', "--add-heads", 1),
            "--attention.scores.head: head 5 is not one of 3",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(winnow, folder: Path, options, message):
    ended = winnow("graft", folder, "--to", folder.parent / "a", *options)
    assert ended.code == 2
    assert message in ended.err
    assert not (folder.parent / "a").exists()


def test_a_run_is_grafted_at_its_last_weights(winnow, tmp_path: Path):
    store = RunStore(tmp_path / "store")
    record = run_in(store, make(write_text(tmp_path / "text.txt")))
    ended = winnow("graft", "test/control/0", "--to", tmp_path / "a", "--remove-heads", 1, "--store", store.root)
    assert ended.code == 0, ended.err
    trained, found = read_weights(store.path(record.digest)), read_weights(tmp_path / "a")
    assert trained.sha256 == record.weights
    out = "blocks.0.attention.out.weight"
    assert torch.equal(found.weights[out], trained.weights[out][:, :8])


def test_what_a_runs_own_grafts_did_stands_in_its_record_and_its_log(winnow, tmp_path: Path):
    store, text = RunStore(tmp_path / "store"), write_text(tmp_path / "text.txt")
    facts: dict[str, dict[str, Any]] = {}
    for init in ("normal", "ko_zero", "zero"):
        record = run_in(store, make(text, graft=[{"kind": "add-heads", "init": init}]), arm=init)
        shown = json.loads(winnow("show", f"test/{init}/0", "--store", store.root, "--json").out)["record"]
        facts[init] = {name: value for name, value in shown["facts"].items() if name.startswith("graft_")}
        log = (store.path(record.digest) / "log.txt").read_text()
        added = 3 * 8 * (16 + 1) + 8 * 16
        assert facts[init]["graft_added"] == added
        assert f"grafted: +{added:,} parameters" in log
        assert facts[init]["graft_preserves"] == ("no" if init == "normal" else "yes")
        assert (facts[init]["graft_max_logit_change"] > 1e-3) == (init == "normal")
        assert (abs(facts[init]["graft_ce_change"]) > 1e-6) == (init == "normal")
        assert (facts[init]["graft_smallest_peak"] > 0) == (init != "zero")
        waking = {"normal": "update 1", "ko_zero": "update 3", "zero": "never"}[init]
        assert f"grafted: attention.qkv.weight[q.0], first gradient: {waking}\n" in log
    assert "graft_max_logit_change" in winnow("show", "test/normal/0", "--store", store.root).out
    assert facts["zero"]["graft_smallest_peak_of"] == "blocks.0.attention.out.weight[o.0]"
    plain = run_in(store, make(text))
    assert not [name for name in plain.facts if name.startswith("graft_")]


def test_a_source_that_is_none(winnow, tmp_path: Path):
    ended = winnow("graft", "nowhere/control/0", "--to", tmp_path / "a", "--add-heads", 1, "--store", tmp_path / "s")
    assert ended.code == 2
    assert "nowhere" in ended.err

"""`winnow export`: a run's weights as folders that others, and Winnow itself, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.gpt2_files import built
from tests.oracles import gpt2 as oracle
from tests.train.runs import make, run_in, write_text

from winnow.models.interchange import read_weights
from winnow.records.run import RunRecord
from winnow.records.store import RunStore

LEARNED = {"model__positions": "learned", "train__steps": 6, "train__checkpoint_every": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, RunRecord, RunRecord]:
    """A store with a GPT-2 and a model with rotary positions, both trained for a moment."""
    folder = tmp_path_factory.mktemp("runs")
    text = write_text(folder / "text.txt", 4000)
    store = RunStore(folder / "store")
    gpt2 = run_in(store, make(text, **LEARNED), arm="gpt2")
    rotary = run_in(store, make(text, **{**LEARNED, "model__positions": "rotary"}), arm="rotary")
    return store, gpt2, rotary


def test_a_gpt2_is_exported_for_transformers(winnow: Any, runs: Any, tmp_path: Path) -> None:
    store, record, _ = runs
    to = tmp_path / "gpt2"
    ended = winnow("export", "test/gpt2/0", "--to", to, "--store", store.root)
    assert ended.code == 0, ended.err
    assert f"parameters of run {record.digest}, step-00000006" in ended.out
    assert sorted(path.name for path in to.iterdir()) == ["config.json", "model.safetensors"]
    found = read_weights(to)
    assert (found.vocab_size, found.context, found.layout) == (256, 16, "huggingface")
    tokens = [116, 104, 101, 32, 113]
    trained = read_weights(store.path(record.digest))
    assert trained.sha256 == record.weights
    from safetensors.torch import load_file

    raw = {name.removeprefix("transformer."): tensor for name, tensor in load_file(to / "model.safetensors").items()}
    expected = oracle.logits(tokens, raw, n_layer=1, n_head=2, inputs_first=True, exact=False)
    with torch.no_grad():
        logits = built(trained).logits(torch.tensor([tokens]))[0]
    assert torch.allclose(logits.double(), expected, rtol=0, atol=1e-5)


def test_a_model_that_is_no_gpt2_has_winnows_own_folder(winnow: Any, runs: Any, tmp_path: Path) -> None:
    store, _, record = runs
    ended = winnow("export", record.digest[:8], "--to", tmp_path / "a", "--store", store.root)
    assert ended.code == 2
    assert "is no GPT-2: positions are 'rotary', not 'learned'" in ended.err
    assert "--layout winnow" in ended.err
    assert list(tmp_path.iterdir()) == []
    ended = winnow("export", record.digest, "--to", tmp_path / "a", "--store", store.root, "--layout", "winnow")
    assert ended.code == 0, ended.err
    assert read_weights(tmp_path / "a").sha256 == record.weights


def test_steps_and_folders_that_are_there_or_not(winnow: Any, runs: Any, tmp_path: Path) -> None:
    store, record, _ = runs
    arguments = ("export", record.digest, "--store", store.root, "--to")
    ended = winnow(*arguments, tmp_path / "a", "--step", 5)
    assert ended.code == 2
    assert f"--step: run {record.digest} has no checkpoint of step 5; there are: 6" in ended.err
    assert winnow(*arguments, tmp_path / "a", "--step", 6).code == 0
    before = (tmp_path / "a" / "config.json").read_bytes()
    ended = winnow(*arguments, tmp_path / "a")
    assert (ended.code, "exists already" in ended.err) == (2, True)
    assert (tmp_path / "a" / "config.json").read_bytes() == before
    (store.path(record.digest) / "checkpoints").rename(tmp_path / "away")
    try:
        ended = winnow(*arguments, tmp_path / "b")
    finally:
        (tmp_path / "away").rename(store.path(record.digest) / "checkpoints")
    assert (ended.code, "has no checkpoint here" in ended.err) == (2, True)


def test_a_run_with_mechanisms_of_its_own_is_refused(winnow: Any, runs: Any, tmp_path: Path) -> None:
    store, record, _ = runs
    file = store.path(record.digest) / "config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "sources": {"mine.py": "0" * 64}}))
    try:
        ended = winnow("export", record.digest, "--store", store.root, "--to", tmp_path / "a")
    finally:
        file.write_text(before)
    assert (ended.code, "from files of its own: mine.py" in ended.err) == (2, True)

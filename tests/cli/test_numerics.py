"""`winnow numerics`: what it prints, as text, as JSON and as a picture, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.cli.test_bad_input import one_line
from tests.train.runs import make, run_in, write_text

from winnow.records.store import RunStore


def test_a_page_of_errors_ends_with_what_a_study_should_use(winnow, tmp_path: Path):
    picture = tmp_path / "errors.png"
    ended = winnow("numerics", "--lengths", "8,24", "--backend", "reference", "--dtype", "float32", "--plot", picture)
    assert ended.code == 0, ended.err
    for title in (
        "F where it is below 40 nats, sum, float32 inputs",
        "outputs, sum, float32 inputs",
        "gradients, protection, float32 inputs",
        "bare sums of 1,024 terms",
        "protection of zero less no protection",
        "float32 inputs, 24 tokens: error over that of the best",
    ):
        assert ended.out.count(title) == 1, title
    assert "bfloat16 inputs" not in ended.out
    assert "a study should use blocked sums in float32" in ended.out
    header = next(line for line in ended.out.split("\n") if line.split()[:1] == ["backend"])
    assert header.split() == ["backend", "sums", "in", "8", "24"]
    sequential = [line.split() for line in ended.out.split("\n") if line.split()[:2] == ["sequential", "float32"]]
    assert sequential == [["sequential", "float32", "1.6e-03", "1.6e-03"]]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {picture}" in ended.err


def test_json_has_every_way_and_length_once(winnow):
    backends = ["--backend", "reference", "--backend", "chunked"]
    ended = winnow("numerics", "--max-length", "40", *backends, "--dtype", "bfloat16", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    keys = [
        (row["backend"], row["algorithm"], row["accumulate"], row["kind"], row["dtype"], row["length"])
        for row in found["errors"]
    ]
    assert len(keys) == len(set(keys)) == (12 + 3) * 2 * 2, "two kinds, two lengths"
    assert {key[5] for key in keys} == {32, 40}
    assert set(found["errors"][0]) == {
        "backend",
        "algorithm",
        "accumulate",
        "kind",
        "dtype",
        "length",
        "mask",
        "mask_live",
        "output",
        "gradient",
    }
    assert found["use"] == {"bfloat16": ["blocked", "float32"]}
    assert len(found["not_run"]) == 9, "chunked knows blocked sums alone"
    assert found["inputs"] == ["random, seed 0"]
    assert [row["length"] for row in found["zero_protection"]] == [32] * 4 + [40] * 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lengths", "8,x"], ("--lengths", "'x' is not a number of tokens", "64,128")),
        (["--lengths", "3"], ("--lengths", "3 tokens", "permitted: 4 to")),
        (["--max-length", "99999"], ("--max-length", "99999 tokens", "4096")),
        (["--max-length", "1000000"], ("--max-length", "permitted: 4 to")),
        (["--lengths", "8", "--max-length", "8"], ("--max-length", "leave one of them out")),
        (["--plot", "errors.jpg"], ("--plot", "not a PNG", ".png")),
        (["--backend", "gpu"], ("--backend", "'gpu'", "see winnow numerics --help")),
        (["--dtype", "float16"], ("--dtype", "'float16'")),
        (["--inputs", "none/at/0"], ("none/at/0",)),
        (["--lengths", "8", "--plot", "missing/errors.png"], ("--plot", "no folder 'missing'")),
    ],
)
def test_a_mistake_is_one_line(winnow, tmp_path, monkeypatch, arguments: list[str], words: tuple[str, ...]):
    monkeypatch.chdir(tmp_path)
    one_line(winnow("numerics", *arguments), *words)


@pytest.fixture
def denormals() -> Iterator[None]:
    """Training in this process flushes them, which later tests of floating-point numbers must not see."""
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("denormals")
def test_inputs_of_a_trained_run(winnow, tmp_path: Path):
    store = RunStore(tmp_path / "store")
    run_in(store, make(write_text(tmp_path / "words.txt"), model__n_layers=2, train__steps=3, model__n_kv_heads=1))
    given = ["numerics", "--inputs", "test/control/0", "--backend", "reference", "--dtype", "float32"]
    given += ["--store", str(store.root)]
    ended = winnow(*given, "--lengths", "8,16", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["inputs"] == ["blocks.0.attention", "blocks.1.attention"]
    assert {row["length"] for row in found["errors"]} == {8, 16}
    assert all(0 < row["output"] < 1e-5 for row in found["errors"] if row["accumulate"] == "float32")
    one_line(winnow(*given, "--max-length", "32"), "--inputs", "16 tokens at a time")
    for folder in store.runs.glob("*/checkpoints"):
        shutil.rmtree(folder)
    one_line(winnow(*given, "--max-length", "16"), "no checkpoint here", "run its study again")

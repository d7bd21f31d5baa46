"""`winnow masks`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.test_bad_input import one_line
from tests.train.runs import make, run_in, write_text

import winnow.analysis.masks_page
from winnow.records.store import RunStore

SELECTIVE = {"kind": "selective"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A store with a selective run, a softmax one, and one with another tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    text = write_text(folder / "text.txt")
    found = RunStore(folder / "store")
    changes = {"train__steps": 3, "train__warmup": 1}
    run_in(found, make(text, model__attention=SELECTIVE, model__n_layers=2, **changes), arm="plain")
    run_in(found, make(text, **changes), arm="softmax")
    run_in(found, make(text, task__tokenizer={"kind": "bpe", "vocab_size": 270}, **changes), arm="bpe")
    torch.set_flush_denormal(False)
    return found


@pytest.fixture
def masks(winnow: Any, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give `winnow masks` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: winnow("masks", *arguments, "--store", store.root)


def data_of(file: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', file.read_text(encoding="ascii"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_page_of_two_runs_and_a_picture(masks: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the slow key")
    ended = masks("test/plain/0", "test/softmax/0", "--text", "text.txt", "--png", "a.png", "--out", "a.html")
    assert ended.code == 0, ended.err
    assert "wrote a.html (0.0 MB)" in ended.err
    assert "test/softmax/0 has no masks: attention and next tokens alone are shown" in ended.err
    found = data_of(tmp_path / "a.html")
    assert found["tokens"] == ["⟨doc⟩", *"the slow key"]
    assert [run["name"] for run in found["runs"]] == ["test/plain/0", "test/softmax/0"]
    assert [len(run["layers"]) for run in found["runs"]] == [2, 1]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.png", "text.txt"]


def test_a_prompt_is_cut_only_when_asked(masks: Any, tmp_path: Path) -> None:
    text = "the slow key that is long"
    ended = masks("test/plain/0", "--prompt", text)
    one_line(ended, "--tokens", "26 tokens with the start of the document", "reads 16", "--tokens 16")
    assert list(tmp_path.iterdir()) == []
    assert masks("test/plain/0", "--prompt", text, "--tokens", 16, "--layers", "1").code == 0
    found = data_of(tmp_path / "masks.html")
    assert found["tokens"] == ["⟨doc⟩", *text[:15]]
    assert [layer["index"] for layer in found["runs"][0]["layers"]] == [1]
    assert masks("test/plain/0", "--prompt", "key", "--png", "a.png").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "masks.html"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("--text", "there is no text", "--prompt TEXT")),
        (["--text", "a.txt", "--prompt", "b"], ("there are two texts",)),
        (["--prompt", ""], ("--prompt", "empty")),
        (["--text", "empty.txt"], ("empty.txt: ", "empty")),
        (["--text", "missing.txt"], ("missing.txt: ", "No such file")),
        (["--text", "."], ("directory",)),
        (["--text", "latin.txt"], ("latin.txt: ", "not UTF-8 (byte 1)")),
        (["--text", "nul.txt"], ("NUL",)),
        (["--prompt", "a", "--tokens", "1"], ("--tokens", "2 or more")),
        (["--prompt", "a", "--layers", "0,x"], ("--layers", "'x' is not a layer")),
        (["--prompt", "a", "--layers", "0,2"], ("--layers", "no layer 2", "0 to 1")),
        (["--prompt", "a", "--out", "a.txt"], ("--out", ".html")),
        (["--prompt", "a", "--out", "foreign.html"], ("foreign.html: ", "no page of Winnow's")),
        (["--prompt", "a", "--png", "a.jpg"], ("--png", ".png")),
        (["--prompt", "a", "--out", "none/a.html"], ("--out", "no folder 'none'")),
        (["test/bpe/0", "--prompt", "the slow"], ("different tokens", "same tokenizer")),
        (["test/none/0", "--prompt", "a"], ("no run 'test/none/0'",)),
    ],
)
def test_a_mistake_is_one_line(masks: Any, tmp_path: Path, arguments: list[str], words: tuple[str, ...]) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"h\xe9")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "foreign.html").write_text("<p>mine</p>")
    before = sorted(tmp_path.iterdir())
    one_line(masks("test/plain/0", *arguments), *words)
    assert sorted(tmp_path.iterdir()) == before, "nothing is written"


def test_a_page_that_would_be_too_large_is_refused_first(masks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winnow.analysis.masks_page, "LIMIT", 1000)
    ended = masks("test/plain/0", "--prompt", "the slow key")
    found = re.search(r"--tokens (\d+), or fewer layers, say --layers 0", one_line(ended, "13 tokens of 2 layers"))
    assert found is not None
    assert masks("test/plain/0", "--prompt", "the slow key", "--tokens", int(found[1])).code == 0
    one_line(masks("test/plain/0", "--prompt", "the slow key", "--tokens", int(found[1]) + 1), "make a page of")


def test_checkpoints_that_are_damaged_or_gone(masks: Any, store: RunStore, tmp_path: Path) -> None:
    digest = next(digest for digest, record in store.records().items() if record.label.arm == "softmax")
    folder = store.path(digest) / "checkpoints"
    shutil.copytree(folder, tmp_path / "kept")
    weights = next(folder.glob("step-00000003/weights.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    try:
        one_line(masks(digest, "--prompt", "a"), "damaged checkpoint: step-00000003", "winnow rm", "run it again")
        shutil.rmtree(folder / "step-00000003")
        older = [path for path in folder.iterdir() if path.name.startswith("step-")]
        words = ("no checkpoint of its end here",) if older else ("no checkpoint here, only its record",)
        one_line(masks(digest, "--prompt", "a"), *words, "run its study again")
        shutil.rmtree(folder)
        one_line(masks(digest, "--prompt", "a"), "no checkpoint here, only its record")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", folder)

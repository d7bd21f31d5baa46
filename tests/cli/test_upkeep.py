"""data prepare, canary and verify-resume on one real run, which trains on the shards that were prepared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.tiny import Ended, winnow, write_study

from winnow.records.store import RunStore
from winnow.study import canary
from winnow.train import verify

CHANGES = {
    "seeds = [0, 1, 2]\nlooks = [2, 3]": "seeds = [0]\nlooks = [1]",
    "steps = 6": "steps = 80",
    '"text.txt"': '"shards"',
    'document = "block"': 'tokenizer = { kind = "manifest" }',
    "every = 3": "every = 50",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder with shards, a study that trains on them and its one run; what `data prepare` printed."""
    folder = tmp_path_factory.mktemp("lab")
    write_study(folder, changes=CHANGES)
    command = ["data", "prepare", "text.txt", "--out", "shards", "--validation-fraction", "0.2"]
    prepared = winnow(*command, cwd=folder)
    assert prepared.code == 0, prepared.err
    ended = winnow("run", "tiny.toml", "--jobs", 1, cwd=folder)
    assert ended.code == 0, ended.err
    return folder, prepared


def record_of(folder: Path):
    (record,) = RunStore(folder / "winnow-store").records().values()
    return record


def test_prepared_shards_hold_the_text_and_train_a_run(lab):
    folder, prepared = lab
    manifest = json.loads((folder / "shards" / "manifest.json").read_text())
    tokens = {shard["split"]: shard["tokens"] for shard in manifest["shards"]}
    size = (folder / "text.txt").stat().st_size
    assert set(tokens) == {"training", "validation"}
    assert size <= sum(tokens.values()) <= 1.01 * size, "bytes are the tokens, and a few ends of documents"
    assert 0.1 < tokens["validation"] / sum(tokens.values()) < 0.3
    assert 'tokenizer = { kind = "manifest" }' in prepared.out
    assert record_of(folder).facts["training_tokens"] == tokens["training"]


def test_prepare_again_makes_the_same_and_says_it_as_json(lab):
    folder, _ = lab
    before = {path.name: path.read_bytes() for path in (folder / "shards").glob("[!.]*")}
    assert len(before) == 3
    command = ["data", "prepare", "text.txt", "--out", "shards", "--document", "block", "--validation-fraction", "0.2"]
    ended = winnow(*command, "--json", cwd=folder)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["folder"] == "shards"
    assert {path.name: path.read_bytes() for path in (folder / "shards").glob("[!.]*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x"], "give text files or --dataset"),
        (["missing.txt", "--out", "x"], "missing.txt"),
        (["binary", "--out", "x"], "binary"),
        (["text.txt", "--out", "x", "--tokenizer", "missing.json"], "missing.json"),
    ],
)
def test_prepare_on_bad_input_is_one_line(lab, arguments: list[str], words: str):
    folder, _ = lab
    (folder / "binary").write_bytes(b"\x7fELF\0\0\xff" * 100)
    ended = winnow("data", "prepare", *arguments, cwd=folder)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert words in ended.err


def test_the_canary_of_unchanged_code_is_identical_and_kept(lab):
    folder, _ = lab
    ended = winnow("canary", "tiny.toml", "--json", cwd=folder)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["tiny"]
    assert (found["outcome"], found["difference"], found["first_step"]) == ("identical", 0.0, None)
    assert found["run"] == record_of(folder).digest
    assert RunStore(folder / "winnow-store").stamps(found["run"], "canary") == {"canaries": [found]}


def test_a_canary_that_differs_fails_the_command(lab, monkeypatch: pytest.MonkeyPatch):
    folder, _ = lab
    worse = {"final": {"val/ce": 9.0}, "weights": "others"}
    monkeypatch.setattr(canary, "_repeat", lambda study, old, *_: old.model_copy(update=worse))
    ended = winnow("canary", "tiny.toml", cwd=folder)
    assert ended.code == 1
    assert "may not be compared" in ended.out


def test_verify_resume_proves_it_and_stamps_the_record(lab):
    folder, _ = lab
    ended = winnow("verify-resume", "tiny/control/0", "--kills", 1, "--json", cwd=folder)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["bit_identical"], found["steps"], found["of_steps"]) == (True, 80, 80)
    assert len(found["killed_at"]) == 1
    shown = json.loads(winnow("show", "tiny/control/0", "--json", cwd=folder).out)
    assert shown["verified"]["killed_at"] == found["killed_at"]


def test_a_run_that_does_not_resume_exactly_fails_the_command(lab, monkeypatch: pytest.MonkeyPatch):
    folder, _ = lab
    wrong = {"bit_identical": False, "first_different_step": 7, "killed_at": [5], "notes": ["a note"]}
    monkeypatch.setattr(verify, "verify_resume", lambda *_, **__: wrong)
    ended = winnow("verify-resume", "tiny/control/0", cwd=folder)
    assert ended.code == 1
    assert "not bit-identical: metrics first differ at step 7; killed at 5" in ended.out
    assert "note: a note" in ended.out

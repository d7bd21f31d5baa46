"""What is wrong is said in one line with the place and the mend, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path

import pytest
from tests.cli.tiny import write_study

from winnow.records import files

CLAIM = 'arms.b = { train.lr = 0.02 }\nclaims.h1 = "b better-than control on val/ce smallest 0.01"\n'


def one_line(ended, *words: str) -> str:
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, "one line"
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err
    return ended.err


@pytest.mark.parametrize(
    ("more", "changes", "words"),
    [
        ("arms.b = { train.stesp = 3 }\n", {}, ("tiny.toml:11: ", "train.stesp", "did you mean 'steps'")),
        ("", {"steps = 6": 'steps = "six"'}, ("tiny.toml:8: ", "steps", "six", "integer")),
        ("", {'"val/ce", better': '"val/cee", better'}, ("tiny.toml:5: ", "endpoint.metric", "did you mean 'val/ce'")),
        ('claims.h1 = "b better-than control on val/ce"\n', {}, ("tiny.toml:11: ", "claims.h1", "'b'", "control")),
        ('claims.h1 = "control beats b"\n', {}, ("tiny.toml:11: ", "better-than")),
        ("question = 1\n", {}, ("tiny.toml:11: ", "not valid TOML")),
        ("arms.b = {}\n" + 'claims.h = "b better-than control on val/ce"\n', {}, ("tiny.toml:11", "equal-arms")),
        ("arms.b = { evaluation.every = 2 }\n", {}, ("tiny.toml:11", "belongs to the study")),
        ("", {"tokens_per_update = 64": "tokens_per_update = 65"}, ("tiny.toml:8: ", "64 or 80")),
        ("", {'"text.txt"': '"missing.txt"'}, ("tiny.toml:6: ", "missing.txt")),
        ("use = ['evil.py']\n", {}, ("evil.py",)),
    ],
)
def test_a_mistake_in_a_study(winnow, tmp_path: Path, more: str, changes: dict[str, str], words: tuple[str, ...]):
    file = write_study(tmp_path, more, changes=changes)
    said = one_line(winnow("check", file), *words)
    assert ";" in said or "should be" in said, "the mend follows the message, or is the message"
    assert not (tmp_path / "winnow-store" / "runs").exists() or not any((tmp_path / "winnow-store/runs").iterdir())


def shard(tokens: int, *, magic: int = 20240520, said: int | None = None) -> bytes:
    header = struct.pack("<256i", magic, 1, tokens if said is None else said, *[0] * 253)
    return header + b"\x05\0" * tokens


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("text.txt", b"", "empty"),
        ("text.txt", b"\x7fELF\0\0\0\x01" * 500, "text"),
        ("x_train_000.bin", shard(900, said=1000), "1000"),
        ("x_train_000.bin", shard(900, magic=7), "shard"),
        ("x_train_000.bin", b"", "shard"),
    ],
)
def test_data_that_is_not_what_it_says(winnow, tmp_path: Path, name: str, data: bytes, word: str):
    file = write_study(tmp_path, CLAIM)
    if name != "text.txt":
        text = file.read_text().replace('source = "text.txt"', f'source = "{name}"').replace(', document = "block"', "")
        file.write_text(text)
    (tmp_path / name).write_bytes(data)
    one_line(winnow("check", file), word)


def test_an_error_in_a_notebook_names_the_notebooks_line(winnow, tmp_path: Path):
    study = write_study(tmp_path, "arms.b = { train.stesp = 3 }\n").read_text()
    (tmp_path / "lab.md").write_text(f"# Lab\n\nprose\n\n```toml study\n{study}```\n")
    one_line(winnow("check", tmp_path / "lab.md"), "lab.md:16: ", "train.stesp")


def test_a_store_from_a_newer_version(winnow, tmp_path: Path):
    file = write_study(tmp_path, CLAIM)
    store = tmp_path / "winnow-store"
    store.mkdir()
    (store / "STORE.json").write_text(json.dumps({"version": 99}))
    one_line(winnow("compare", file), "version 99", "newer")
    one_line(winnow("run", file), "version 99")


def test_a_store_that_is_something_else_is_not_touched(winnow, tmp_path: Path):
    file = write_study(tmp_path, CLAIM)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    one_line(winnow("check", file, "--store", tmp_path / "photos"), "cat.jpg")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_no_disk_space_leaves_what_was_there(winnow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_study(tmp_path, CLAIM)
    assert winnow("check", file).code == 0
    plan = tmp_path / "winnow-store" / "studies" / "tiny.json"
    before = plan.read_bytes()
    file.write_text(file.read_text().replace("lr = 0.02", "lr = 0.03"))

    def full(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", full)
    one_line(winnow("check", file), "No space left on device", "free some disk space", "nothing that was recorded")
    assert plan.read_bytes() == before
    assert not list(plan.parent.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shwo"], ("No such command", "see winnow --help")),
        (["run"], ()),
        (["run", "x.toml", "--job", "2"], ("--job", "see winnow run --help")),
        (["run", "x.toml", "--jobs", "two"], ("--jobs", "integer", "see winnow run --help")),
        (["run", "x.toml"], ("no such file", "give the path of a study")),
        (["run", "x.py"], ("no such file",)),
        (["check", "x.toml", "--set", "steps"], ("'steps' is not a setting", "write key=value")),
        (["judge", "x.csv", "--metric", "m"], ("x.csv: cannot be read",)),
    ],
)
def test_a_mistake_on_the_command_line(winnow, tmp_path, monkeypatch, arguments: list[str], words: tuple[str, ...]):
    monkeypatch.chdir(tmp_path)
    ended = winnow(*arguments)
    if not words:
        assert ended.code == 2
        assert "Example: winnow run" in ended.out
        return
    one_line(ended, *words)


@pytest.mark.parametrize(("text", "words"), [("4..0", "holds no seed"), ("a", "not a range"), ("9", "not one of tiny")])
def test_seeds_that_are_no_seeds(winnow, tmp_path: Path, text: str, words: str):
    file = write_study(tmp_path, CLAIM)
    one_line(winnow("run", file, "--seeds", text), "--seeds", words)


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", ["foo", "cuda:99"])
def test_a_device_that_is_not_here_costs_nothing(winnow, tmp_path: Path, command: str, name: str):
    file = write_study(tmp_path, CLAIM)
    one_line(winnow(command, file, "--device", name), f"--device: device {name!r} is not on this machine", "permitted")
    assert not (tmp_path / "winnow-store").exists()


def test_settings_without_a_plan_are_named_in_the_mend(winnow, tmp_path: Path):
    file = write_study(tmp_path, CLAIM)
    assert winnow("check", file).code == 0
    said = winnow("compare", file, "--set", "train.steps=3")
    one_line(said, "no plan with these settings", "with --set train.steps=3 too")


def test_debug_shows_the_traceback_wherever_it_stands(winnow, tmp_path: Path):
    file = write_study(tmp_path, "nonsense = 1\n")
    for arguments in (["--debug", "check", file], ["check", file, "--debug"]):
        ended = winnow(*arguments)
        assert ended.code == 2
        assert "Traceback" in ended.err
        assert ended.err.rstrip().split("\n")[-1].startswith("error: ")

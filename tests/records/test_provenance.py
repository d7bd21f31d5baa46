"""Provenance: the code version follows code alone, secrets never reach a record, git is optional."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from winnow.records import provenance as provenance_module
from winnow.records.provenance import (
    COMMAND_VARIABLE,
    PACKAGES,
    REDACTED,
    clean_cpu_name,
    collect,
    command_line,
    cpu_model,
    git_state,
    hardware_class,
    package_versions,
    redact,
)
from winnow.records.sources import code_version, tree_text

SOURCE = '''
"""What the module is for."""
X = 1


def scale(x, by=2.0):
    """What it does."""
    # A comment.
    return x * by


class Field:
    width: int = 3
    """Tokens."""
    none = None
'''


def changed(old: str, new: str) -> bool:
    assert old in SOURCE
    return tree_text(SOURCE.replace(old, new).encode()) != tree_text(SOURCE.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What the module is for."""', '"""Another text."""'),
        ('"""What the module is for."""', ""),
        ('    """What it does."""\n', ""),
        ("# A comment.", ""),
        ('    """Tokens."""\n', ""),
        ("x * by", "(x   *  by)"),
        ("def scale(x, by=2.0)", "def scale(\n    x,\n    by=2.0,\n)"),
    ],
)
def test_documentation_and_layout_leave_the_code_version_alone(old: str, new: str) -> None:
    assert not changed(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.0", "2"),
        ("X = 1", "X = 1.0"),
        ("X = 1", "X = True"),
        ("X = 1", "X = '1'"),
        ("x * by", "x + by"),
        ("return x * by", "return x"),
        ("none = None", "none = ..."),
        ("X = 1\n", ""),
        ("x * by", "by * x"),
        ("def scale", "async def scale"),
    ],
)
def test_any_change_of_code_changes_the_code_version(old: str, new: str) -> None:
    assert changed(old, new)


def test_the_text_of_a_tree_is_pinned_for_every_python() -> None:
    assert tree_text(b"def f(a, *, b=None):\n    'doc'\n    return [a, -b]\n") == (
        "(Module body=[(FunctionDef args=(arguments args=[(arg arg='a'),] kw_defaults=[(Constant None),]"
        " kwonlyargs=[(arg arg='b'),]) body=[(Return value=(List elts=[(Name id='a'),(UnaryOp op=(USub)"
        " operand=(Name id='b')),])),] name='f'),])"
    )


def test_the_code_version_covers_the_numeric_parts_only(tmp_path: Path) -> None:
    def version() -> str:
        code_version.cache_clear()
        return code_version(tmp_path)

    for name in ("config.py", "train/loop.py", "kernels/cpp/a.cpp", "cli/main.py", "kernels/notes.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    first = version()
    (tmp_path / "cli/main.py").write_text("x = 2\n")
    (tmp_path / "kernels/notes.md").write_text("x = 2\n")
    (tmp_path / "train/loop.py").write_text("x  =  1  # commented\n")
    assert version() == first
    seen = {first}
    for name, text in (("config.py", "x = 2\n"), ("train/loop.py", "x = 2\n"), ("kernels/cpp/a.cpp", "x  = 1\n")):
        (tmp_path / name).write_text(text)
        seen.add(version())
    (tmp_path / "train/loop.py").rename(tmp_path / "train/looped.py")
    seen.add(version())
    assert len(seen) == 5
    code_version.cache_clear()
    assert len(code_version()) == 16


@pytest.mark.parametrize(
    ("argv", "cleaned"),
    [
        (["--token", "abc", "run"], ["--token", REDACTED, "run"]),
        (["--hf-token=abc"], [f"--hf-token={REDACTED}"]),
        (["HF_TOKEN=abc"], [f"HF_TOKEN={REDACTED}"]),
        (["--api-key", "abc"], ["--api-key", REDACTED]),
        (["--set", "wandb.api_key=abc"], ["--set", f"wandb.api_key={REDACTED}"]),
        (["--password", "--verbose", "x"], ["--password", "--verbose", "x"]),
        (["-H", "Authorization: Bearer abcdefghij"], ["-H", f"Authorization: {REDACTED}"]),
        (["https://me:pw@host/x"], [f"https://{REDACTED}@host/x"]),
        (["s3://key@bucket"], [f"s3://{REDACTED}@bucket"]),
        (["hf_" + "a" * 30], [REDACTED]),
        (["--note", "my ghp_" + "b" * 36], ["--note", f"my {REDACTED}"]),
        (["sk-" + "c" * 40], [REDACTED]),
        (["AKIA" + "D" * 16], [REDACTED]),
        (["s3://key:se/cr@et@bucket/x"], [f"s3://{REDACTED}@bucket/x"]),
        (["hf://me/lab?token=abc&endpoint=http://h"], [f"hf://me/lab?token={REDACTED}&endpoint=http://h"]),
        (["--artifacts=s3://b?key=A&secret=B"], [f"--artifacts=s3://b?key={REDACTED}&secret={REDACTED}"]),
        (["--then", "tell --token abc done"], ["--then", f"tell --token '{REDACTED}' done"]),
        (["--then=tell --token=abc"], [f"--then=tell '--token={REDACTED}'"]),
        (["--then", "tell 'abc"], ["--then", REDACTED]),
    ],
)
def test_secrets_are_redacted(argv: list[str], cleaned: list[str]) -> None:
    assert list(redact(argv)) == cleaned


def test_what_secret_variables_hold_is_redacted_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("HF_TOKEN", "1")  # too short to be one: replacing it would leave no command
    monkeypatch.setenv("PWD", "/home/me/lab")
    assert redact(["/home/me/lab/study.toml"]) == ("/home/me/lab/study.toml",)
    assert redact(["run1", "note=(wJalrXUtnFEMI/K7MDENG)"]) == ("run1", f"note=({REDACTED})")


@pytest.mark.parametrize(
    "argv",
    [
        ["winnow", "run", "study.toml", "--set", "base.train.tokens_per_update=4096", "--jobs", "2"],
        ["--tokenizer", "bytes", "--max-tokens=5", "--key", "step", "monkey=1", "--author", "x"],
        ["me@host", "a=b", "--seeds", "0..7", "-"],
        ["--artifacts", "s3://bucket/prefix?endpoint=http://127.0.0.1:9000", "--then", "sudo shutdown now"],
        ["hf://datasets/owner/repo@main/x"],
    ],
)
def test_ordinary_commands_are_kept(argv: list[str]) -> None:
    assert list(redact(argv)) == argv


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_git_gives_the_commit_and_the_difference(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == (None, False, None), "no commit yet"
    git_state.cache_clear()
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "winnow-store").mkdir()
    (tmp_path / "winnow-store" / "STORE.json").write_text("{}")
    assert git_state(tmp_path) == (git(tmp_path, "rev-parse", "HEAD").strip(), False, None), "untracked is not dirty"
    git_state.cache_clear()
    (tmp_path / "a.py").write_text("x = 2\n")
    diff = git(tmp_path, "diff", "--binary", "--no-color", "HEAD")
    assert git_state(tmp_path).dirty
    assert git_state(tmp_path).diff_sha256 == hashlib.sha256(diff.encode()).hexdigest()


def test_git_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    git_state.cache_clear()
    found = collect(folder=tmp_path, argv=["winnow"])
    git_state.cache_clear()
    assert (found.commit, found.dirty, found.diff_sha256, found.package_commit) == (None, False, None, None)


def test_a_repository_s_own_programs_are_not_run(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / ".gitattributes").write_text("*.py diff=evil\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "a.py").write_text("x = 2\n")
    for name in ("diff.evil.textconv", "diff.evil.command", "diff.external", "core.fsmonitor"):
        git(tmp_path, "config", name, f"touch {tmp_path}/{name}.ran; false")
    git_state.cache_clear()
    assert git_state(tmp_path).dirty
    assert not list(tmp_path.glob("*.ran"))


def test_the_command_is_the_launcher_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/winnow", "run", "lab.md"])
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)
    assert command_line() == ["winnow", "run", "lab.md"]
    monkeypatch.setenv(COMMAND_VARIABLE, json.dumps(command_line()))
    monkeypatch.setattr(sys, "argv", ["/somewhere/worker.py"])
    assert command_line() == ["winnow", "run", "lab.md"]


def test_what_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["winnow", "run", "--token", "hidden"])
    monkeypatch.setenv("MY_SECRET", "hidden")
    found = collect(threads=2, deterministic=False, notes=["compiled: not bit-exact"], folder=tmp_path)
    assert found.argv == ("winnow", "run", "--token", REDACTED)
    assert found.hardware == f"cpu {cpu_model()} 2 threads"
    assert (found.threads, found.deterministic, found.notes) == (2, False, ("compiled: not bit-exact",))
    assert set(found.packages) <= set(PACKAGES)
    assert found.packages["torch"] == dict(package_versions())["torch"]
    assert found.code == code_version()
    assert found.started.endswith("+00:00")
    assert "hidden" not in found.model_dump_json()


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("AMD EPYC 7B13 64-Core Processor", "AMD EPYC 7B13"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "Intel Xeon Platinum 8481C"),
        ("12th Gen Intel(R) Core(TM) i7-1260P", "12th Gen Intel Core i7-1260P"),
        ("Apple M2 Pro\n", "Apple M2 Pro"),
        ("", ""),
    ],
)
def test_cpu_names_lose_marks_and_clocks(name: str, cleaned: str) -> None:
    assert clean_cpu_name(name) == cleaned


def test_hardware_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance_module, "cpu_model", lambda: "Abacus")
    monkeypatch.setattr(
        provenance_module, "machine_name", lambda device: "NVIDIA H200" if device.startswith("cuda") else "Apple M2"
    )
    assert hardware_class("cpu", 1) == "cpu Abacus 1 thread"
    assert hardware_class("cpu", 2) == "cpu Abacus 2 threads"
    assert hardware_class("cuda:1", 1) == "cuda NVIDIA H200"
    assert hardware_class("mps", 1) == "mps Apple M2"

"""Checkpoints: every byte is checked, every instant of a crash leaves a usable one, a full disk is said aloud."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from winnow.errors import InputError
from winnow.train import checkpoint
from winnow.train.checkpoint import Snapshot, load_newest, save

DIGEST = "0123456789abcdef"


def snapshot(step: int) -> Snapshot:
    draw = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(3, 4, generator=draw), "b": torch.randn(5, generator=draw)}
    moments = {"b/exp_avg": torch.randn(5, generator=draw), "b/step": torch.tensor(float(step))}
    return Snapshot(step, 100 * step, weights, moments, {"seconds": 0.5})


def same(a: Snapshot | None, b: Snapshot) -> bool:
    if a is None or (a.step, a.journal, a.progress) != (b.step, b.journal, b.progress):
        return False
    pairs = ((a.weights, b.weights), (a.moments, b.moments))
    return all(x.keys() == y.keys() and all(x[k].equal(y[k]) for k in x) for x, y in pairs)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, DIGEST, snapshot(7))
    found = load_newest(tmp_path, DIGEST)
    assert same(found.snapshot, snapshot(7))
    assert found.skipped == ()
    assert (tmp_path / "latest").read_text() == "step-00000007"


def test_the_weights_digest_is_that_of_the_file(tmp_path: Path) -> None:
    written = save(tmp_path, DIGEST, snapshot(7))
    file = tmp_path / "step-00000007" / "weights.safetensors"
    assert written == hashlib.sha256(file.read_bytes()).hexdigest()
    assert written == checkpoint.weights_digest(snapshot(7).weights)


def test_older_ones_go_after_the_new_one_stands(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, DIGEST, snapshot(step), keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]


def damaged(path: Path) -> list[tuple[str, Callable[[], object]]]:
    """Ways to damage the checkpoint in folder `path`, each with what the loader must say."""

    def flip(file: Path, at: int) -> Callable[[], object]:
        def act() -> None:
            data = bytearray(file.read_bytes())
            data[at] ^= 0x10
            file.write_bytes(data)

        return act

    ways: list[tuple[str, Callable[[], object]]] = []
    for name in ("weights.safetensors", "moments.safetensors", "progress.json", "manifest.json", "COMPLETE"):
        file = path / name
        size = file.stat().st_size
        said = "manifest.json" if name == "COMPLETE" else name
        ways += [(said, flip(file, at)) for at in sorted({0, 7, size // 3, size // 2, size - 1})]
        if name != "COMPLETE":
            short = name if name == "manifest.json" else f"{name} has {size - 1} bytes, not {size}"
            ways.append((short, lambda file=file, size=size: os.truncate(file, size - 1)))
            ways.append((name, lambda file=file: os.truncate(file, 0)))
            ways.append((name, lambda file=file: file.unlink()))
    ways.append(("not complete", lambda: (path / "COMPLETE").unlink()))

    def swap() -> None:
        a, b = path / "weights.safetensors", path / "moments.safetensors"
        data = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(data)

    def from_older() -> None:
        shutil.copy(path.with_name("step-00000001") / "weights.safetensors", path)

    return [*ways, ("safetensors", swap), ("weights.safetensors", from_older)]


def test_corruption_sweep(tmp_path: Path) -> None:
    original = tmp_path / "original"
    for step in (1, 2):
        save(original, DIGEST, snapshot(step))
    count = len(damaged(original / "step-00000002"))
    assert count > 35
    for index in range(count):
        folder = tmp_path / f"copy-{index}"
        shutil.copytree(original, folder)
        said, damage = damaged(folder / "step-00000002")[index]
        damage()
        found = load_newest(folder, DIGEST)
        assert same(found.snapshot, snapshot(1)), f"damage {index} ({said})"
        assert len(found.skipped) == 1
        assert said in found.skipped[0]
        assert "step-00000002" in found.skipped[0]
        # The run goes on and saves the same step again: the refused one is out of the way.
        save(folder, DIGEST, snapshot(2))
        assert same(load_newest(folder, DIGEST).snapshot, snapshot(2))


def test_foreign_and_misplaced_checkpoints_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a", DIGEST, snapshot(1))
    save(tmp_path / "b", "f" * 16, snapshot(5))
    shutil.copytree(tmp_path / "b" / "step-00000005", tmp_path / "a" / "step-00000005")
    shutil.copytree(tmp_path / "a" / "step-00000001", tmp_path / "a" / "step-00000009")
    found = load_newest(tmp_path / "a", DIGEST)
    assert same(found.snapshot, snapshot(1))
    assert found.skipped == (
        "step-00000009: holds step 1",
        f"step-00000005: belongs to run {'f' * 16}, not to {DIGEST}",
    )


def test_the_callers_objection_counts(tmp_path: Path) -> None:
    save(tmp_path, DIGEST, snapshot(1))
    save(tmp_path, DIGEST, snapshot(2))
    found = load_newest(tmp_path, DIGEST, accept=lambda s: "the journal is short" if s.step == 2 else None)
    assert same(found.snapshot, snapshot(1))
    assert found.skipped == ("step-00000002: the journal is short",)


class Disk:
    """Counts the calls that change a disk; from the k-th on it fails, or the program dies there."""

    CALLS = ("write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: BaseException) -> None:
        self.count, self.fail_at, self.error = 0, fail_at, error
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), name))

    def _counted(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count > self.fail_at:
                if name == "write" and self.count == self.fail_at + 1:
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])  # a torn write
                raise self.error
            return real(*arguments, **options)

        return call


class Killed(BaseException):
    """The program ends here."""


@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")]
)
def test_every_instant_of_a_crash_leaves_a_whole_checkpoint(tmp_path: Path, error: BaseException) -> None:
    original = tmp_path / "original"
    for step in (1, 2):
        save(original, DIGEST, snapshot(step))
    outcomes: set[int] = set()
    fail_at, finished = 0, False
    while not finished:
        folder = tmp_path / f"at-{fail_at}"
        shutil.copytree(original, folder)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, fail_at, error)
            said = None
            try:
                save(folder, DIGEST, snapshot(3))
            except (Killed, InputError) as stopped:
                said = str(stopped)
            finished = disk.count <= fail_at
        assert finished or said is not None
        if isinstance(error, OSError) and said is not None:
            assert os.strerror(error.errno or 0) in said
            assert "step-0000000" in said or "latest" in said
        found = load_newest(folder, DIGEST).snapshot
        assert found is not None
        assert same(found, snapshot(found.step))
        assert found.step in (2, 3)
        outcomes.add(found.step)
        save(folder, DIGEST, snapshot(4))
        assert same(load_newest(folder, DIGEST).snapshot, snapshot(4))
        names = {path.name for path in folder.iterdir()}
        assert not [name for name in names if name.startswith((".tmp", "refused"))]
        fail_at += 1
    assert fail_at > 20
    assert outcomes == {2, 3}

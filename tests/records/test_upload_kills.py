"""SIGKILL at a random instant of training, saving, uploading and pulling: what had arrived is there, whole.

After each kill: every manifest at the remote names only files that are whole; a run that the child said had arrived is
there with its record; a fresh store can pull whatever the remote names; and the next child goes on with both.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.records.fabricated import assert_whole, content
from tests.records.upload_child import N_RUNS, STEPS

from winnow.records.artifacts import arrived, pull, upload
from winnow.records.manifest import read_manifest
from winnow.records.remote import Remote
from winnow.records.store import RunStore


def one_kill(root: Path, place: Path, seed: int, after: int, said: set[str]) -> None:
    """Kill a child at its step number `after`, a random moment into it."""
    command = [sys.executable, "-m", "tests.records.upload_child", str(root), f"file://{place}", str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for line in child.stdout:
            word, digest = line.split()
            if word != "tick":
                said.add(digest)
            elif (after := after - 1) == 0:
                time.sleep(random.uniform(0.0, 0.004))
                child.kill()
                break
        # What it had still said is true as well.
        said |= {line.split()[1] for line in child.stdout if line.endswith("\n") and not line.startswith("tick")}
    assert child.returncode == -9, "the child should have lived until it was killed"


def check(root: Path, place: Path, said: set[str], scratch: Path) -> None:
    remote, store = Remote(f"file://{place}"), RunStore(root)
    for digest in (f"abcd{number:04x}" for number in range(N_RUNS)):
        step = assert_whole(place, digest)
        manifest = read_manifest(remote, digest)
        assert (manifest is None) == (step == -2)
        if digest in said:
            assert manifest is not None
            assert manifest.status == "finished"
            assert step == STEPS
        if manifest is None:
            continue
        other = RunStore(scratch)
        pull(other, digest, remote)
        assert set(content(other.path(digest))) == set(manifest.files)
        assert (other.record(digest) is None) == (manifest.status is None)
        if arrived(store, digest, remote.url):
            assert other.record(digest) == store.record(digest)
        other.remove([digest])


def kills(folder: Path, count: int, seed: int) -> None:
    draw, said = random.Random(seed), set[str]()
    root, place = folder / "store", folder / "remote"
    for number in range(count):
        one_kill(root, place, draw.randrange(10**6), draw.randrange(1, 500), said)
        check(root, place, said, folder / f"scratch{number}")
    assert len(said) > 1, "the children hardly did anything"
    # Whatever was cut short, another launch finishes.
    store, remote = RunStore(root), Remote(f"file://{place}")
    for digest, record in store.records().items():
        assert record.status == "finished"
        upload(store, digest, remote, thorough=True)
        assert arrived(store, digest, remote.url)
        manifest = read_manifest(remote, digest)
        assert manifest is not None
        files = [path for path in (place / "runs" / digest).rglob("*") if path.is_file()]
        assert len(files) == len(manifest.files) + 1, "leftovers of killed uploads are gone"


def test_a_few_kills_while_uploading_lose_nothing(tmp_path: Path) -> None:
    kills(tmp_path, 8, seed=1)


@pytest.mark.soak
def test_five_hundred_kills_while_uploading_lose_nothing(tmp_path: Path) -> None:
    for place in range(10):
        (tmp_path / str(place)).mkdir()
        kills(tmp_path / str(place), 50, seed=100 + place)

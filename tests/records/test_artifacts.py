"""Uploads of runs: what goes, what stays, and every operation cut short."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.records.fabricated import RUN, assert_whole, content, finished, go_on, identity, record, save
from tests.records.s3_server import flipped

from winnow.errors import InputError
from winnow.records import manifest
from winnow.records.artifacts import arrived, places, upload
from winnow.records.manifest import RUN_FILE, opened, read_manifest
from winnow.records.patience import RefusedError
from winnow.records.remote import Remote
from winnow.records.store import RunStore


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def test_a_going_run_is_uploaded_as_far_as_it_is_whole(store: RunStore, folder: Remote, tmp_path: Path) -> None:
    root = tmp_path / "remote"
    run = store.claim(identity())
    assert run is not None
    with run:
        go_on(run, 4)
        save(run, 6, complete=False)
        torn = save(run, 7, complete=False) / "COMPLETE"
        torn.write_text("0" * 64)
        with run.journal.path.open("ab") as journal:
            journal.write(b'{"step": 4, "half')
        assert upload(store, RUN, folder) == "uploaded"
        assert assert_whole(root) == 4
        found = read_manifest(folder, RUN)
        assert found is not None
        assert found.status is None
        assert not [name for name in found.files if "00000006" in name or "00000007" in name]
        assert (root / found.place("metrics.0.jsonl")).read_bytes().endswith(b"}\n")
        assert places(store, RUN) == {}
        assert upload(store, RUN, folder) == "there"
        run.journal.truncate(run.journal.offset())
        torn.unlink()
        go_on(run, 4)
        assert upload(store, RUN, folder) == "uploaded"
        assert assert_whole(root) == 8
        assert (
            sorted(path.name for path in (root / "runs" / RUN / "checkpoints").glob("step-*/COMPLETE"))
            == ["COMPLETE"] * 2
        )
        run.finish(record(RUN, 8))
    assert upload(store, RUN, folder) == "uploaded"
    assert arrived(store, RUN, folder.url)
    assert not arrived(store, RUN, folder.url + "x")


def test_a_checkpoint_that_is_purged_while_it_is_uploaded_arrives_whole(
    store: RunStore, folder: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.claim(identity())
    assert run is not None
    put = Remote.put

    def put_and_purge(remote: Remote, files: Mapping[str, BinaryIO]) -> None:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        put(remote, files)

    with run:
        go_on(run, 2)
        monkeypatch.setattr(Remote, "put", put_and_purge)
        upload(store, RUN, folder)
        assert assert_whole(tmp_path / "remote") == 2
        monkeypatch.undo()
        assert upload(store, RUN, folder) == "nothing", "the older checkpoint stays until a newer one is whole"
        assert assert_whole(tmp_path / "remote") == 2


def test_a_checkpoint_that_is_damaged_here_is_not_sent(store: RunStore, folder: Remote, tmp_path: Path) -> None:
    finished(store)
    weights = store.path(RUN) / "checkpoints/step-00000004/weights.safetensors"
    weights.write_bytes(flipped(weights.read_bytes()))
    with pytest.raises(InputError, match=r"weights.safetensors: is damaged"):
        upload(store, RUN, folder)
    assert assert_whole(tmp_path / "remote") == -2
    assert not arrived(store, RUN, folder.url)


def test_failed_runs_go_too_and_a_run_that_was_made_again_goes_again(store: RunStore, folder: Remote) -> None:
    for status in ("failed", "finished"):
        run = store.claim(identity())
        assert run is not None
        with run:
            run.journal.truncate(0)
            go_on(run, 3)
            run.finish(record(RUN, 3, status))
        assert not arrived(store, RUN, folder.url)
        assert upload(store, RUN, folder) == "uploaded"
        assert arrived(store, RUN, folder.url)
    found = read_manifest(folder, RUN)
    assert found is not None
    assert {"failure-1.json", "failure-1.metrics.jsonl", RUN_FILE} <= set(found.files)


def test_what_the_remote_has_more_of_is_not_replaced(store: RunStore, folder: Remote, tmp_path: Path) -> None:
    finished(store)
    upload(store, RUN, folder)
    before = content(tmp_path / "remote")
    other = RunStore(tmp_path / "other")
    run = other.claim(identity())
    assert run is not None
    with run:
        go_on(run, 6)
        with pytest.raises(RefusedError, match="holds a finished record, this store has none"):
            upload(other, RUN, folder)
    going = RunStore(tmp_path / "going")
    run = going.claim(identity("abcd0002"))
    assert run is not None
    with run:
        go_on(run, 4)
        upload(going, "abcd0002", folder)
        shutil.rmtree(run.checkpoints)
        save(run, 2)
        with pytest.raises(RefusedError, match="checkpoint of step 4, newer than any here"):
            upload(going, "abcd0002", folder)
    assert {name: data for name, data in content(tmp_path / "remote").items() if RUN in name} == before


class Stopped(BaseException):
    """The process is no more."""


class CutShort(Remote):
    """Stops at its k-th change for good, half-way through a file that may be half written."""

    def __init__(self, url: str, at: int) -> None:
        super().__init__(url)
        self.at, self.count = at, 0

    def _step(self) -> bool:
        self.count += 1
        if self.count > self.at:
            raise Stopped
        return self.count == self.at

    def put(self, files: Mapping[str, BinaryIO]) -> None:
        ((name, source),) = files.items()
        if self._step():
            # Some places show a file while it is being written.
            path = Path(self._root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source.seek(0)
            path.write_bytes(source.read()[:-1])
            raise Stopped
        super().put(files)

    def put_whole(self, name: str, data: bytes) -> None:
        cut = self._step()
        super().put_whole(name, data)
        if cut:
            raise Stopped

    def remove(self, names: object) -> None:
        for name in list(names):  # type: ignore[call-overload]
            cut = self._step()
            super().remove([name])
            if cut:
                raise Stopped


def test_stopped_at_any_of_its_changes_an_upload_leaves_what_is_named_whole(store: RunStore, tmp_path: Path) -> None:
    run = store.claim(identity())
    assert run is not None
    root = tmp_path / "remote"
    with run:
        go_on(run, 4)
        upload(store, RUN, Remote(f"file://{root}"))
        go_on(run, 4)
        at = stops = 0
        while True:
            at += 1
            place = tmp_path / f"cut{at}"
            shutil.copytree(root, place)
            try:
                upload(store, RUN, CutShort(f"file://{place}", at))
            except Stopped:
                stops += 1
                step = assert_whole(place)
                assert step in (4, 8)
                upload(store, RUN, Remote(f"file://{place}"), thorough=True)
                assert assert_whole(place) == 8
                found = read_manifest(Remote(f"file://{place}"), RUN)
                assert found is not None
                assert len([path for path in place.rglob("*") if path.is_file()]) == len(found.files) + 1
            else:
                break
    assert stops > 12, "files, manifest and removals"


def test_pushing_again_mends_what_is_damaged_or_gone_there(store: RunStore, folder: Remote, tmp_path: Path) -> None:
    finished(store)
    upload(store, RUN, folder)
    run = tmp_path / "remote" / "runs" / RUN
    (run / RUN_FILE).write_bytes(flipped((run / RUN_FILE).read_bytes()))
    (run / "checkpoints/step-00000004/weights.safetensors").unlink()
    upload(store, RUN, folder, thorough=True)
    assert assert_whole(tmp_path / "remote") == 4
    (run / "manifest.json").write_bytes(flipped((run / "manifest.json").read_bytes()))
    upload(store, RUN, folder)
    assert assert_whole(tmp_path / "remote") == 4


def test_a_record_in_the_making_is_read_as_one_moment(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.claim(identity())
    assert run is not None
    looks: list[int] = []
    inode = manifest._inode

    def ends_meanwhile(path: Path) -> int | None:
        looks.append(1)
        if len(looks) == 1:
            go_on(run, 2)
            run.finish(record(RUN, 2))
        return inode(path)

    monkeypatch.setattr(manifest, "_inode", ends_meanwhile)
    with run, opened(store, RUN) as local:
        assert local is not None
        assert local.status == "finished"
        assert local.sums["metrics.0.jsonl"].size == run.journal.offset()
    assert len(looks) == 2

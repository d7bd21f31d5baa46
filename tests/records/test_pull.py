"""Runs that come back: every byte checked, nothing that is good replaced, cut short at any operation."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tests.records.fabricated import HASTY, RUN, content, finished, go_on, identity
from tests.records.faulty_disk import FaultyDisk
from tests.records.s3_server import Fault, S3Server, flipped

from winnow.errors import InputError
from winnow.records.artifacts import arrived, find_runs, pull, upload
from winnow.records.manifest import RUN_FILE, parse_manifest, read_manifest
from winnow.records.patience import AbsentError, Patience, RemoteError
from winnow.records.remote import Remote
from winnow.records.store import RunStore


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def bucket(s3: S3Server, request: pytest.FixtureRequest) -> Remote:
    return Remote(s3.bucket(f"b{abs(hash(request.node.name))}"))


def test_a_flipped_bit_of_any_file_is_refused_by_name(store: RunStore, folder: Remote, tmp_path: Path) -> None:
    finished(store)
    upload(store, RUN, folder)
    files = [path for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert len(files) == 14
    for number, path in enumerate(files):
        whole = path.read_bytes()
        path.write_bytes(flipped(whole))
        other = RunStore(tmp_path / f"other{number}")
        with pytest.raises(InputError, match=f"{path.name}.*is damaged"):
            pull(other, RUN, folder, HASTY)
        assert other.record(RUN) is None
        path.write_bytes(whole[:-2])
        with pytest.raises(InputError, match=f"{path.name}.*is damaged"):
            pull(other, RUN, folder, HASTY)
        path.write_bytes(whole)
        assert pull(other, RUN, folder) == "pulled"
        assert content(other.path(RUN)) == content(store.path(RUN))
    assert upload(store, RUN, folder, thorough=True) == "there"


@pytest.mark.parametrize("name", ["../../evil", "lock", "/etc/evil", "checkpoints/step-00000001/../../../../evil"])
def test_a_manifest_that_leads_out_of_the_run_is_refused(
    store: RunStore, folder: Remote, tmp_path: Path, name: str
) -> None:
    finished(store)
    upload(store, RUN, folder)
    found = read_manifest(folder, RUN)
    assert found is not None
    entry = found.files[RUN_FILE].model_copy(update={"at": RUN_FILE})
    evil = found.model_copy(update={"files": {**found.files, name: entry}}).seal()
    with pytest.raises(InputError, match="names a file"):
        parse_manifest(evil, RUN, "there")
    (tmp_path / "remote/runs" / RUN / "manifest.json").write_bytes(evil)
    with pytest.raises(InputError, match="names a file"):
        pull(RunStore(tmp_path / "other"), RUN, folder)
    assert not list(tmp_path.rglob("evil"))


def test_a_pull_does_not_follow_a_link_out_of_the_store(store: RunStore, folder: Remote, tmp_path: Path) -> None:
    finished(store)
    upload(store, RUN, folder)
    other = RunStore(tmp_path / "other")
    other.create()
    (tmp_path / "outside").mkdir()
    other.path(RUN).mkdir()
    (other.path(RUN) / "checkpoints").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="is a symbolic link"):
        pull(other, RUN, folder)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_good_record_stays_a_damaged_one_goes(store: RunStore, folder: Remote, tmp_path: Path) -> None:
    finished(store)
    upload(store, RUN, folder)
    other = RunStore(tmp_path / "other")
    finished(other, steps=6)
    before, notes = content(other.path(RUN)), []
    assert pull(other, RUN, folder, note=notes.append) == "had"
    assert content(other.path(RUN)) == before
    assert notes == [f"{RUN} has another record here, which stays"]
    assert not arrived(other, RUN, folder.url)
    path = other.path(RUN) / RUN_FILE
    path.write_bytes(flipped(path.read_bytes()))
    assert pull(other, RUN, folder, note=notes.append) == "pulled"
    assert other.record(RUN) == store.record(RUN)
    assert "is fetched anew" in notes[-1]
    with other.lock(RUN), pytest.raises(InputError, match="is running"):
        pull(other, RUN, folder)


def test_a_run_that_has_come_further_here_stays(store: RunStore, folder: Remote, tmp_path: Path) -> None:
    other = RunStore(tmp_path / "other")
    for where, steps in ((store, 4), (other, 6)):
        run = where.claim(identity())
        assert run is not None
        with run:
            go_on(run, steps)
    upload(store, RUN, folder)
    assert pull(other, RUN, folder) == "had"
    assert pull(RunStore(tmp_path / "third"), RUN, folder) == "pulled"
    upload(other, RUN, folder)
    assert pull(store, RUN, folder) == "pulled"
    assert (store.path(RUN) / "checkpoints/step-00000006/COMPLETE").exists()


def test_a_pull_that_was_cut_short_fetches_the_rest_only(
    store: RunStore, s3: S3Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    remote = bucket(s3, request)
    finished(store)
    upload(store, RUN, remote)
    s3.faults.append(Fault("error", "GET", after=5))
    other = RunStore(tmp_path / "other")
    with pytest.raises(RemoteError):
        pull(other, RUN, remote, Patience(attempts=1))
    there = set(content(other.path(RUN)))
    assert there
    assert other.state(RUN) == "interrupted"
    s3.faults.clear()
    s3.requests.clear()
    assert pull(other, RUN, remote) == "pulled"
    assert content(other.path(RUN)) == content(store.path(RUN))
    assert not [path for path in s3.sent("GET") for name in there if path.endswith(f"{RUN}/{name}")]


def test_a_full_disk_ends_a_pull_with_its_reason_and_it_goes_on_later(
    store: RunStore, folder: Remote, tmp_path: Path
) -> None:
    def pull_on(disk: FaultyDisk, other: RunStore) -> None:
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            pull(other, RUN, folder)

    finished(store)
    upload(store, RUN, folder)
    counting = FaultyDisk(tmp_path / "all")
    pull_on(counting, RunStore(counting.root))
    assert counting.count > 60
    for at in range(1, counting.count + 1, 7):
        other = RunStore(tmp_path / f"other{at}")
        disk = FaultyDisk(other.root, at, error=errno.ENOSPC)
        with pytest.raises(InputError, match="No space left on device; free some disk space"):
            pull_on(disk, other)
        assert not list(other.root.rglob("*.tmp")), disk.hit
        pull(other, RUN, folder)
        assert content(other.path(RUN)) == content(store.path(RUN))
        disk.close()
    counting.close()


def test_a_run_that_is_not_there_is_said(folder: Remote, store: RunStore) -> None:
    with pytest.raises(InputError, match="there is no run abcd0009"):
        pull(store, "abcd0009", folder)
    assert find_runs(folder, "") == []
    with pytest.raises(AbsentError, match="nothing is not there"):
        folder.read("nothing")

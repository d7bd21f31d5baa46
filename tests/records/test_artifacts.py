"""Uploads and downloads of runs: to a folder with every operation cut short, to a real S3 server that misbehaves."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.records.fabricated import assert_whole, content, finished, go_on, identity, record, save
from tests.records.faulty_disk import FaultyDisk
from tests.records.hub_server import TOKEN, Hub
from tests.records.s3_server import Fault, S3Server, flipped

from winnow.errors import InputError
from winnow.records import manifest
from winnow.records.artifacts import arrived, check, find_runs, places, pull, upload
from winnow.records.manifest import RUN_FILE, is_file_name, opened, parse_manifest, read_manifest
from winnow.records.patience import AbsentError, Patience, RefusedError, RemoteError
from winnow.records.remote import Remote, public_url
from winnow.records.store import RunStore

HASTY = Patience(attempts=4, first=0.01, most=0.02)
RUN = "abcd0001"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield server
    server.close()


@pytest.fixture
def s3(server: S3Server) -> Iterator[S3Server]:
    server.faults.clear()
    yield server
    server.faults.clear()


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Remote:
    return Remote(f"file://{tmp_path / 'remote'}")


def bucket(s3: S3Server, request: pytest.FixtureRequest) -> Remote:
    return Remote(s3.bucket(f"b{abs(hash(request.node.name))}"))


# Places


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("file:///a/b/", "file:///a/b"),
        ("s3://bucket/p/q", "s3://bucket/p/q"),
        ("s3://AKIAKEY:se%2Fcret@bucket/p", "s3://bucket/p"),
        ("s3://bucket?endpoint=http://h:9000&secret=abc&key=k", "s3://bucket?endpoint=http://h:9000"),
        ("hf://datasets/me/lab/x?token=hf_abc", "hf://datasets/me/lab/x"),
        ("hf://user:hf_abc@me/lab", "hf://me/lab"),
    ],
)
def test_a_place_is_shown_without_credentials(url: str, public: str) -> None:
    assert Remote(url).url == public


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:pw@host/x", "is no place for artifacts"),
        ("/tmp/x", "is no place"),
        ("file://relative/x", "is no absolute path"),
        ("s3:///x", "is not whole"),
        ("hf://me", "is not whole"),
        ("s3://b/p?tokn=me:pw", "unknown setting 'tokn'"),
    ],
)
def test_a_url_that_names_no_place_is_refused_without_its_secrets(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        Remote(url)
    assert "pw" not in str(refused.value)
    assert "me:pw" not in public_url("http://me:pw@host/x")


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(RefusedError, match=r"s3fs; pip install 'winnow-lab\[s3\]'"):
        check(Remote("s3://bucket/x"), HASTY)


def test_a_folder_is_not_made_where_a_disk_should_have_been_mounted(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="there is no such folder; mount or make it"):
        check(Remote(f"file://{tmp_path}/mnt/lab"))
    check(Remote(f"file://{tmp_path}/lab"))
    assert list((tmp_path / "lab").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/b", "checkpoints/../x", "checkpoints/.x/y", "lock", "uploaded.json", ".x", ""]
)
def test_names_that_are_no_run_files(name: str) -> None:
    assert not is_file_name(name)


# What goes


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


# Through the wire


def test_a_run_goes_to_s3_and_comes_back(
    store: RunStore, s3: S3Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    remote = bucket(s3, request)
    check(remote)
    assert remote.names() == {}
    finished(store)
    assert upload(store, RUN, remote) == "uploaded"
    assert s3.sent()[-1].endswith("manifest.json"), "the manifest goes last"
    s3.requests.clear()
    assert upload(store, RUN, remote) == "there"
    assert s3.sent() == []
    assert find_runs(remote, "s/a/0") == find_runs(remote, "abc") == [RUN]
    other = RunStore(tmp_path / "other")
    assert pull(other, RUN, remote) == "pulled"
    assert content(other.path(RUN)) == content(store.path(RUN))
    assert other.record(RUN) == store.record(RUN)
    assert arrived(other, RUN, remote.url)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", times=3),
        Fault("error", times=3, status="500 Internal Server Error", code="InternalError"),
        Fault("error", "GET", times=3),
        Fault("drop", times=2, after=3),
        Fault("drop", "GET", times=2, after=4),
        Fault("slow", times=3),
        Fault("flip in", times=1, path="weights"),
        Fault("flip out", "GET", times=1, path="weights"),
    ],
    ids=str,
)
def test_a_fault_that_passes_costs_time_and_nothing_else(
    store: RunStore, s3: S3Server, request: pytest.FixtureRequest, fault: Fault
) -> None:
    remote = bucket(s3, request)
    finished(store)
    fault = replace(fault)
    s3.faults.append(fault)
    assert upload(store, RUN, remote, HASTY) == "uploaded"
    assert fault.times == 0, "the fault was met"
    s3.faults.clear()
    assert arrived(store, RUN, remote.url)
    assert upload(store, RUN, remote, thorough=True) == "there"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault("flip in", path="weights"), RemoteError, "weights.safetensors has arrived damaged"),
        (Fault("error"), RemoteError, "cannot be written: .*SlowDown"),
        (Fault("error", status="403 Forbidden", code="AccessDenied"), RefusedError, "permission denied"),
        (Fault("drop", after=2), RemoteError, "cannot be written"),
    ],
)
def test_a_fault_that_stays_is_said_and_nothing_is_believed(
    store: RunStore, s3: S3Server, request: pytest.FixtureRequest, fault: Fault, kind: type[RemoteError], words: str
) -> None:
    remote = bucket(s3, request)
    finished(store)
    s3.faults.append(replace(fault))
    with pytest.raises(kind, match=words) as said:
        upload(store, RUN, remote, HASTY)
    assert type(said.value) is kind
    assert (len(s3.sent()) == 1) == (kind is RefusedError), "a refusal is not asked about twice"
    s3.faults.clear()
    assert not arrived(store, RUN, remote.url)
    assert read_manifest(remote, RUN) is None
    assert upload(store, RUN, remote, HASTY) == "uploaded"


def test_a_server_that_dies_in_the_middle_and_comes_back(
    store: RunStore, s3: S3Server, request: pytest.FixtureRequest
) -> None:
    remote = bucket(s3, request)
    finished(store)
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 3:
            s3.start()
        return False

    put = Remote.put

    def put_until_dead(remote: Remote, files: Mapping[str, BinaryIO]) -> None:
        if len(s3.sent()) == 4 and not waits:
            s3.close()
        put(remote, files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Remote, "put", put_until_dead)
        assert upload(store, RUN, remote, Patience(first=0.5, wait=wait)) == "uploaded"
    assert len(waits) == 3
    assert all(0 <= seconds <= bound for seconds, bound in zip(waits, (0.5, 1.0, 2.0), strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bucket": "nowhere"}, "there is no such bucket; make it first"),
        ({"endpoint": "http://127.0.0.1:1"}, "Could not connect"),
        ({"fault": Fault("error", status="403 Forbidden", code="AccessDenied")}, "permission denied"),
        ({"fault": Fault("flip in")}, "returns other bytes than were written"),
    ],
)
def test_a_preflight_says_why_a_place_is_of_no_use(s3: S3Server, change: dict[str, object], words: str) -> None:
    s3.bucket("good")
    if "fault" in change:
        s3.faults.append(replace(change["fault"]))  # type: ignore[type-var]
    url = f"s3://{change.get('bucket', 'good')}/lab?endpoint={change.get('endpoint', s3.endpoint)}&secret=hush&key=hush"
    with pytest.raises(RemoteError, match=words) as refused:
        check(Remote(url), HASTY)
    assert "hush" not in str(refused.value)


# What comes back


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


def test_a_run_goes_to_the_hub_and_comes_back(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub = Hub()
    try:
        remote = Remote(hub.url)
        check(remote, HASTY)
        assert hub.files == {}
        finished(store)
        hub.commits.clear()
        assert upload(store, RUN, remote, HASTY) == "uploaded"
        assert [names[-1].rpartition("/")[2] for names in hub.commits][-1] == "manifest.json"
        assert {name.removeprefix(f"lab/runs/{RUN}/") for name in hub.files} == {
            *content(store.path(RUN)),
            "manifest.json",
        }
        assert find_runs(remote, "s/a/0", HASTY) == [RUN]
        other = RunStore(tmp_path / "other")
        assert pull(other, RUN, remote, HASTY) == "pulled"
        assert content(other.path(RUN)) == content(store.path(RUN))
        for url in (f"{hub.url}&token=hf_another", hub.url.replace("lab/runs", "lab/nowhere")):
            with pytest.raises(RefusedError, match="there is no such repository that HF_TOKEN may see"):
                check(Remote(url), HASTY)
    finally:
        hub.close()

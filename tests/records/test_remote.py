"""Places for runs: what a URL says, a real S3 server that misbehaves, a hub."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.records.fabricated import HASTY, RUN, content, finished
from tests.records.hub_server import TOKEN, Hub
from tests.records.s3_server import Fault, S3Server

from winnow.errors import InputError
from winnow.records.artifacts import arrived, check, find_runs, pull, upload
from winnow.records.manifest import is_file_name, read_manifest
from winnow.records.patience import Patience, RefusedError, RemoteError
from winnow.records.remote import Remote, public_url
from winnow.records.store import RunStore


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def bucket(s3: S3Server, request: pytest.FixtureRequest) -> Remote:
    return Remote(s3.bucket(f"b{abs(hash(request.node.name))}"))


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


def test_what_a_file_system_says_is_told_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers repeat the key that they refuse, and a password of no known form stands in the URL alone."""
    remote = Remote("s3://plainname:not%2Fof%2Fany%2Fform@bucket/p")

    class Files:
        def find(self, root: str, detail: bool) -> None:
            raise OSError("plainname with not/of/any/form may not list " + root)

    monkeypatch.setattr(remote, "_opened", Files())
    with pytest.raises(RemoteError) as refused:
        remote.names()
    assert "[redacted] with [redacted] may not list bucket/p" in str(refused.value)
    assert "plainname" not in str(refused.value)
    assert remote.clean("a not/of/any/form b") == "a [redacted] b"


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

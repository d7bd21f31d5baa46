"""Uploads beside a launch: they hold nothing up, a dead remote is reported, the next launch makes up for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.records.fabricated import assert_whole, finished, go_on, identity, record
from tests.study.studies import fake, small

from winnow.errors import InputError
from winnow.records.artifacts import arrived
from winnow.records.patience import Patience, RemoteError
from winnow.records.remote import Remote
from winnow.records.store import RunStore
from winnow.study import launch, uploads
from winnow.study.events import Event, LookStarted, UploadsAwaited
from winnow.study.launch import run_study
from winnow.study.plan import load_plan
from winnow.study.spec import load_study
from winnow.study.uploads import Uploads

HASTY = Patience(attempts=3, first=0.01, most=0.02)
ONE_LOOK: dict[str, Any] = {"seeds": [0], "looks": [1]}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LOOK_SECONDS", {"file": 0.02, "s3": 0.02})
    monkeypatch.setattr(launch, "Uploads", lambda store, remote: Uploads(store, remote, HASTY))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_checkpoints_go_while_the_run_goes_on(tmp_path: Path) -> None:
    store, root = RunStore(tmp_path / "store"), tmp_path / "remote"
    going = Uploads(store, Remote(f"file://{root}"), HASTY)
    run = store.claim(identity())
    assert run is not None
    with run:
        going.begin("abcd0001")
        for step in (2, 4, 6):
            go_on(run, 2)
            until(lambda step=step: assert_whole(root) == step)
        run.finish(record("abcd0001", 6))
    going.end(["abcd0001"])
    assert going.finish() == {}
    assert arrived(store, "abcd0001", going.url)


def test_training_never_waits_for_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "store")
    going, let_go = Uploads(store, Remote(f"file://{tmp_path}/remote"), HASTY), threading.Event()
    put = Remote.put

    def slow(remote: Remote, files: dict) -> None:  # type: ignore[type-arg]
        let_go.wait(20)
        put(remote, files)

    monkeypatch.setattr(Remote, "put", slow)
    for number in range(3):
        going.end([finished(store, f"abcd000{number}")])
    assert len(going.waiting()) == 3, "nothing has arrived, nobody has waited"
    let_go.set()
    assert going.finish() == {}
    assert all(arrived(store, f"abcd000{number}", going.url) for number in range(3))


def test_one_dead_remote_is_tried_once_for_all_runs_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "store")
    going = Uploads(store, Remote(f"file://{tmp_path}/remote"), HASTY)
    asked: list[str] = []

    def dead(remote: Remote, name: str) -> bytes:
        asked.append(name)
        raise RemoteError("does not answer")

    monkeypatch.setattr(Remote, "read", dead)
    digests = [finished(store, f"abcd00{number:02d}") for number in range(20)]
    going.end(digests)
    assert going.finish() == dict.fromkeys(digests, "does not answer")
    assert len(asked) <= 2 * HASTY.attempts, "once as they ended, once at the end"


def test_a_fault_of_ours_in_the_thread_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "store")
    going = Uploads(store, Remote(f"file://{tmp_path}/remote"), HASTY)
    monkeypatch.setattr(uploads, "upload", lambda *_: 1 / 0)
    going.end([finished(store)])
    with pytest.raises(ZeroDivisionError):
        going.finish()


def test_a_launch_uploads_every_run_failed_ones_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = small(tmp_path, **ONE_LOOK, artifacts=f"file://{tmp_path}/remote")
    events: list[Event] = []
    outcome = run_study(study, store, fake(tmp_path, {"same": {"fail": 1}}, monkeypatch), events.append)
    assert outcome.artifacts == f"file://{tmp_path}/remote"
    assert outcome.not_uploaded == {}
    assert [str(key) for key in outcome.failed] == ["same seed 0"]
    assert len(outcome.ran) == 3
    for key in outcome.ran:
        assert arrived(store, key.digest, outcome.artifacts or "")
        assert_whole(tmp_path / "remote", key.digest)
    plan = load_plan(store, study)
    assert plan is not None
    assert plan.artifacts == outcome.artifacts


def test_a_dead_remote_stops_nothing_and_the_next_launch_makes_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = small(tmp_path, **ONE_LOOK)
    options = fake(tmp_path, {}, monkeypatch, artifacts=f"file://{tmp_path}/disk/remote")
    (tmp_path / "disk").mkdir()
    check = Uploads.check

    def check_then_unmount(self: Uploads) -> None:
        check(self)
        (tmp_path / "disk").rename(tmp_path / "unmounted")

    monkeypatch.setattr(Uploads, "check", check_then_unmount)
    outcome = run_study(study, store, options)
    assert len(outcome.ran) == len(outcome.not_uploaded) == 3
    assert not outcome.failed
    assert all("there is no such folder" in why for why in outcome.not_uploaded.values())
    (tmp_path / "unmounted").rename(tmp_path / "disk")
    monkeypatch.setattr(Uploads, "check", lambda self: pytest.fail("nothing is left to run"))
    events: list[Event] = []
    again = run_study(study, store, options, events.append)
    assert not again.ran
    assert again.not_uploaded == {}
    assert [len(event.runs) for event in events if isinstance(event, UploadsAwaited)] == [3]
    assert all(arrived(store, key.digest, again.artifacts or "") for key in outcome.ran)
    events.clear()
    run_study(study, store, options, events.append)
    assert not [event for event in events if isinstance(event, UploadsAwaited)]


def test_nothing_starts_where_the_remote_is_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = small(tmp_path, **ONE_LOOK, artifacts=f"file://{tmp_path}/nowhere/remote")
    events: list[Event] = []
    with pytest.raises(InputError, match="there is no such folder"):
        run_study(study, store, fake(tmp_path, {}, monkeypatch), events.append)
    assert not [event for event in events if isinstance(event, LookStarted)]
    assert store.digests() == []


def test_where_runs_go_is_neither_identity_nor_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = small(tmp_path, **ONE_LOOK)
    first = run_study(study, store, fake(tmp_path, {}, monkeypatch))
    file = tmp_path / "small.toml"
    file.write_text(f'artifacts = "s3://KEY:HUSH-HUSH@bucket/x?token=HUSH-TOO"\n{file.read_text()}')
    named = load_study(file, ONE_LOOK)
    moved, files = [], {}
    monkeypatch.setattr(Uploads, "end", lambda self, digests: moved.extend(digests))
    again = run_study(named, store, fake(tmp_path, {}, monkeypatch))
    assert not again.ran
    assert {key.digest for key in first.ran} == set(moved)
    plan = load_plan(store, named)
    assert plan is not None
    assert plan.edits == ()
    assert plan.artifacts == "s3://bucket/x"
    files = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    assert not [path for path, data in files.items() if b"HUSH" in data]


def test_a_place_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"artifacts: 'ftp://\[redacted\]@h/x' is no place for artifacts"):
        small(tmp_path, artifacts="ftp://me:hush@h/x")

"""Garbage: what a store could do without is found with its size, and nothing else is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.fakes import fake_record

from winnow.errors import InputError
from winnow.records.garbage import Garbage, find_garbage, remove_garbage, size_of
from winnow.records.run import Label, RunIdentity
from winnow.records.store import RunStore

USED, UNUSED, FOREIGN = "a" * 16, "b" * 16, "c" * 16


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "store")
    store.create()
    return store


def checkpoint(store: RunStore, digest: str, name: str, *, complete: bool = True) -> Path:
    path = store.path(digest) / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * 100)
    if complete:
        (path / "COMPLETE").write_text("")
    return path


def names(garbage: list[Garbage]) -> set[tuple[str, str]]:
    return {(item.kind, item.path.name) for item in garbage}


def test_a_clean_store_has_none(store: RunStore) -> None:
    fake_record(store, digest=USED, metrics=[{"step": 0}])
    checkpoint(store, USED, "step-00000002")
    assert find_garbage(store) == []


def test_leftovers_are_found_and_removed(store: RunStore) -> None:
    fake_record(store, digest=USED)
    inside_run = store.path(USED) / ".run.json.0badcafe.tmp"
    inside_run.write_text("half")
    old, fresh = store.root / ".STORE.json.0badcafe.tmp", store.root / "studies" / ".s.json.0badcafe.tmp"
    for path in (old, fresh):
        path.write_text("half")
    os.utime(old, (0, time.time() - 7200))
    (store.trash / "dead").mkdir(parents=True)
    (store.trash / "dead" / "file").write_bytes(b"x" * 10)
    unfinished = checkpoint(store, USED, ".saving-step-00000004", complete=False)
    torn = checkpoint(store, USED, "step-00000004", complete=False)
    found = find_garbage(store)
    assert {item.path for item in found} == {inside_run, old, store.trash / "dead", unfinished, torn}
    assert {item.path.name: item.size for item in found}["dead"] == 10
    assert remove_garbage(store, found) == sum(item.size for item in found) == 4 + 4 + 10 + 200
    assert find_garbage(store) == []
    assert fresh.exists(), "it may be a write in progress"
    assert store.state(USED) == "finished"


def test_a_later_complete_checkpoint_replaces_the_earlier(store: RunStore) -> None:
    fake_record(store, digest=USED)
    for step in (2, 4, 10):
        checkpoint(store, USED, f"step-{step:08d}")
    checkpoint(store, USED, "step-00000012", complete=False)
    found = find_garbage(store)
    assert names(found) == {
        ("checkpoint", "step-00000002"),
        ("checkpoint", "step-00000004"),
        ("leftover", "step-00000012"),
    }
    remove_garbage(store, found)
    assert os.listdir(store.path(USED) / "checkpoints") == ["step-00000010"]


def test_a_run_that_is_going_is_left_alone(store: RunStore) -> None:
    identity = RunIdentity(digest=USED, config={}, seed=0, data="d", label=Label(study="s", arm="a"))
    fake_record(store, digest=UNUSED)
    late = checkpoint(store, UNUSED, "step-00000002", complete=False)
    found = find_garbage(store)
    run = store.claim(identity)
    assert run is not None
    with run:
        torn = checkpoint(store, USED, "step-00000002", complete=False)
        assert names(find_garbage(store, unused_runs=True)) == {("run", UNUSED)}
    # What begins to run between the finding and the removal is left alone too.
    again = store.claim(identity.model_copy(update={"digest": UNUSED}), again=True)
    assert again is not None
    with again:
        assert remove_garbage(store, found) == 0
        with pytest.raises(InputError, match="is running"):
            remove_garbage(store, [Garbage("run", store.path(UNUSED), 1, UNUSED, "")])
    assert late.exists()
    assert torn.exists()


def test_runs_that_no_plan_names_are_found_only_when_asked(store: RunStore) -> None:
    for digest in (USED, UNUSED):
        fake_record(store, digest=digest)
    fake_record(store, digest=FOREIGN, watched=False)
    (store.path(FOREIGN) / ".x.0badcafe.tmp").write_text("")
    store.plan_path("s").write_text(f'{{"arms": {{"control": {{"runs": ["{USED}"]}}}}}}')
    assert names(find_garbage(store)) == {("leftover", ".x.0badcafe.tmp")}
    found = find_garbage(store, unused_runs=True)
    assert names(found) == {("run", UNUSED), ("leftover", ".x.0badcafe.tmp")}
    remove_garbage(store, found)
    assert store.digests() == [USED, FOREIGN]


def test_a_plan_that_names_no_run_makes_no_run_unused(store: RunStore) -> None:
    fake_record(store, digest=USED)
    store.plan_path("s").write_text('{"arms": {}}')
    with pytest.raises(InputError, match=r"s\.json: names no run"):
        find_garbage(store, unused_runs=True)
    assert find_garbage(store) == []


def test_a_damaged_record_is_never_taken_for_unused(store: RunStore) -> None:
    fake_record(store, digest=UNUSED)
    (store.path(UNUSED) / "run.json").write_text("{}")
    assert find_garbage(store, unused_runs=True) == []


def test_links_are_counted_and_removed_as_links(store: RunStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x" * 1000)
    store.trash.mkdir()
    (store.trash / "link").symlink_to(outside)
    assert size_of(store.trash / "link") < 1000
    remove_garbage(store, find_garbage(store))
    assert (outside / "precious").exists()
    assert not os.path.lexists(store.trash / "link")

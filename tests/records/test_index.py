"""The index is derived: whatever happens to it, the answer is that of the files."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest
from tests.fakes import fake_record

from winnow.errors import InputError
from winnow.records import index as index_module
from winnow.records.index import read_texts
from winnow.records.run import RunRecord
from winnow.records.store import RunStore

N = 12


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "store")
    for seed in range(N):
        fake_record(store, "control", seed, {"val/ce": 2.0 + seed})
    return store


def from_files(store: RunStore) -> dict[str, RunRecord]:
    found = {digest: store.record(digest) for digest in store.digests()}
    return {digest: record for digest, record in found.items() if record is not None}


def rows_in_index(store: RunStore) -> int:
    connection = sqlite3.connect(store.root / "index.sqlite")
    try:
        return connection.execute("SELECT count(*) FROM records").fetchone()[0]
    finally:
        connection.close()


def test_records_are_those_of_the_files_and_in_the_order_asked(store: RunStore) -> None:
    for _ in range(2):
        assert store.records() == from_files(store)
    assert rows_in_index(store) == N
    backwards = store.digests()[::-1]
    assert list(store.records(backwards)) == backwards
    assert list(store.records([*backwards[:2], "missing"])) == backwards[:2]


def test_a_second_reading_opens_no_record(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.records()
    monkeypatch.setattr(index_module, "_from_files", lambda runs, digests: dict.fromkeys(digests, "read anew"))
    assert store.records() == before


def test_what_changes_is_seen(store: RunStore) -> None:
    store.records()
    changed, gone = store.digests()[:2]
    fake_record(store, digest=changed, final={"val/ce": 9.0})
    (store.path(gone) / "run.json").unlink()
    fake_record(store, digest="feed")
    found = store.records()
    assert found == from_files(store)
    assert found[changed].final == {"val/ce": 9.0}
    assert gone not in found
    assert "feed" in found


def test_an_atomic_replacement_of_the_same_size_and_time_is_seen(store: RunStore) -> None:
    fake_record(store, digest="feed", final={"val/ce": 2.0})
    store.records()
    path = store.path("feed") / "run.json"
    before = path.stat()
    twin = RunStore(store.root.parent / "other")
    new = fake_record(twin, digest="feed", final={"val/ce": 7.0})
    other = twin.path("feed") / "run.json"
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert store.records()["feed"] == new


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "text", "folder", "old-version", "no-table", "half", "read-only"]
)
def test_an_unusable_index_costs_nothing_but_time(store: RunStore, damage: str) -> None:
    store.records()
    path = store.root / "index.sqlite"
    data = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_bytes(b"not a database at all" * 100)
        case "folder":
            path.unlink()
            path.mkdir()
        case "half":
            path.write_bytes(data[: len(data) // 2])
        case "read-only":
            path.chmod(0o400)
        case _:
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA user_version = 99" if damage == "old-version" else "DROP TABLE records")
            connection.commit()
            connection.close()
    for _ in range(3):
        assert store.records() == from_files(store)
    if damage != "folder":
        assert rows_in_index(store) == N


def test_any_damaged_byte_of_the_index_is_noticed(store: RunStore) -> None:
    store.records()
    expected = from_files(store)
    path = store.root / "index.sqlite"
    data = path.read_bytes()
    for position in range(0, len(data), 61):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert store.records() == expected, position


def test_a_reader_does_not_wait_for_a_writer(store: RunStore) -> None:
    store.records()
    connection = sqlite3.connect(store.root / "index.sqlite", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        fake_record(store, digest="feed")
        assert store.records() == from_files(store)
    finally:
        connection.close()
    assert store.records() == from_files(store)


def test_many_readers_at_once(store: RunStore) -> None:
    expected = from_files(store)
    wrong: list[object] = []

    def read() -> None:
        for _ in range(5):
            (store.root / "index.sqlite").unlink(missing_ok=True)
            if store.records() != expected:
                wrong.append("differs")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_damaged_record_is_never_indexed(store: RunStore) -> None:
    digest = store.digests()[0]
    (store.path(digest) / "run.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(InputError, match="is damaged"):
            store.records()
    assert len(read_texts(store.root / "index.sqlite", store.runs, store.digests()[1:])) == N - 1

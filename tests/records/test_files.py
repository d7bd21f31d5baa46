"""Atomic files, locks and names: also against a real full disk (a file size limit) and a real dead owner."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.records import files
from winnow.records.files import FileLock, inside, make_folder, read_json, safe_name, write_atomic, write_json


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "one, and longer than two")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, "colleagues can read it as any other file"


def test_a_private_file_is_private_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.md"
    path.write_text("mine")
    path.chmod(0o640)
    seen: list[int] = []

    def watched(descriptor: int, data: bytes) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        os.write(descriptor, data)

    monkeypatch.setattr(files, "write_all", watched)
    write_atomic(path, "still mine")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("still mine", 0o640)
    assert seen == [0o640], "the draft has the file's mode before the first byte is in it"


LIMITED = """
import resource, signal, sys
from pathlib import Path
from winnow.errors import InputError
from winnow.records.files import write_atomic
from winnow.records.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
journal = Journal(folder / "metrics.0.jsonl")
journal.append({"step": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
for write in (lambda: write_atomic(folder / "a.txt", "x" * 1000), lambda: journal.append({"step": 1, "n": "y" * 99})):
    try:
        write()
    except InputError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
journal.append({"step": 2})
"""


def test_a_disk_that_takes_only_half_is_loud_and_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("cannot be written: File too large" in line for line in lines)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "metrics.0.jsonl"]
    # The half row was cut off before the next one was written.
    assert [line.split(",")[0] for line in (tmp_path / "metrics.0.jsonl").read_text().splitlines()] == [
        '{"step": 0',
        '{"step": 2',
    ]


def test_a_folder_without_permission_is_an_input_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError, match="cannot be made: File exists"):
        make_folder(blocker / "store")
    with pytest.raises(InputError, match="cannot be written: No such file"):
        write_json(tmp_path / "missing" / "a.json", {})


@pytest.mark.parametrize("text", ["", "{", "[1]", "nul", "\x00\x01"])
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a\.json: is damaged"):
        read_json(path)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\x00b", "a b", "a#b", "a\n", "ü", "x" * 129, "a\\b"],
)
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not permitted"):
        safe_name(name)


@given(st.text(max_size=20))
def test_a_permitted_name_is_one_part_of_a_path(name: str) -> None:
    try:
        safe_name(name)
    except InputError:
        return
    path = Path("/root") / name
    assert path.parent == Path("/root")
    assert path.name == name
    assert not name.startswith(".")


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "store" / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(InputError, match="symbolic link"):
            inside(tmp_path / "store", name)


def test_one_owner_at_a_time_within_a_process(tmp_path: Path) -> None:
    one, two = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert not two.taken()
    with one:
        assert one.held
        assert two.taken()
        assert not two.try_acquire(patience=0.01)
        assert two.owner()["pid"] == os.getpid()
    assert not two.taken()
    assert two.try_acquire()
    two.release()
    two.release()


def test_a_lock_on_a_removed_folder_is_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    one, two = FileLock(folder / "lock"), FileLock(folder / "lock")
    with one:
        folder.rename(tmp_path / "trash")
        with pytest.raises(FileNotFoundError):
            two.try_acquire()
        folder.mkdir()
        assert two.try_acquire(), "a new folder's lock is another lock"
        two.release()


def test_a_folder_removed_while_its_lock_is_being_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    real = fcntl.flock
    calls: list[int] = []

    def race(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            folder.rename(tmp_path / "trash")
            folder.mkdir()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", race)
    lock = FileLock(folder / "lock")
    assert lock.try_acquire(patience=1.0)
    assert len(calls) == 2, "the lock on the removed file was worth nothing"
    assert FileLock(folder / "lock").taken()
    lock.release()


def test_a_child_does_not_hold_its_parent_s_lock(tmp_path: Path) -> None:
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert lock.try_acquire()
    child = os.fork()
    if child == 0:  # the child sleeps on, as a data loader does whose parent was killed
        signal.pause()
    try:
        lock.release()
        assert other.try_acquire(patience=2.0)
        other.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_kernel_frees_a_killed_owner_s_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom winnow.records.files import FileLock\n"
        "lock = FileLock(Path(sys.argv[1]))\nlock.acquire()\nprint('held', flush=True)\ntime.sleep(60)"
    )
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert FileLock(path).taken()
        assert not FileLock(path).try_acquire()
        child.kill()
    assert FileLock(path).try_acquire(patience=2.0)

"""The run store: claims, states, removal, newer versions, names, and two processes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import fake_provenance, fake_record

from winnow.errors import InputError
from winnow.records.run import Label, RunIdentity, RunRecord, Status
from winnow.records.store import RunStore, find_store


def identity(digest: str = "abcd", arm: str = "control") -> RunIdentity:
    return RunIdentity(digest=digest, config={"a": 1}, seed=3, data="d", label=Label(study="s", arm=arm))


def ended(status: Status = "finished", digest: str = "abcd") -> RunRecord:
    return RunRecord(
        digest=digest,
        status=status,
        label=Label(study="s", arm="control"),
        config={"a": 1},
        seed=3,
        data="d",
        steps_asked=2,
        steps_done=2,
        final={"val/ce": 2.0},
        provenance=fake_provenance(),
    )


def finish(store: RunStore, status: Status = "finished", *, again: bool = False) -> RunRecord:
    run = store.claim(identity(), again=again)
    assert run is not None
    with run:
        run.journal.append({"step": run.journal.rows})
        return run.finish(ended(status))


def test_a_run_s_life(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    assert store.state("abcd") == "missing"
    assert store.record("abcd") is None
    assert not store.root.exists(), "looking makes nothing"
    run = store.claim(identity())
    assert run is not None
    assert store.state("abcd") == "running"
    assert store.claim(identity()) is None, "held, though by the same process"
    run.journal.append({"step": 0, "val/ce": 3.0})
    assert store.metrics("abcd") == [{"step": 0, "val/ce": 3.0}]
    run.close()
    assert store.state("abcd") == "interrupted"
    run = store.claim(identity())
    assert run is not None
    with run:
        assert run.journal.rows == 1, "the metrics so far are for the new owner to go on from"
        record = run.finish(ended())
    assert record.metrics_rows == 1
    assert store.state("abcd") == "finished"
    assert store.record("abcd") == record
    assert store.records() == {"abcd": record}
    assert store.identity("abcd") == identity()
    assert store.claim(identity()) is None, "nothing is left to do"
    assert RunStore(tmp_path / "store").record("abcd") == record


def test_a_failed_run_may_be_claimed_again_and_every_failure_stays(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    for number in (1, 2):
        finish(store, "failed")
        assert store.state("abcd") == "failed"
        assert len(list(store.path("abcd").glob("failure-*.json"))) == number - 1
    finish(store, "interrupted")
    finish(store, "diverged")
    assert store.claim(identity()) is None
    names = set(os.listdir(store.path("abcd")))
    assert {"failure-1.json", "failure-2.json", "failure-2.metrics.jsonl", "interrupted-1.json"} <= names
    assert (store.path("abcd") / "failure-1.metrics.jsonl").read_text().count("\n") == 1
    assert (store.path("abcd") / "failure-2.metrics.jsonl").read_text().count("\n") == 2


def test_a_finished_run_made_again_keeps_the_first(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    first = finish(store)
    finish(store, again=True)
    kept = json.loads((store.path("abcd") / "superseded-1.json").read_text())
    assert kept["metrics_rows"] == first.metrics_rows == 1
    assert (store.path("abcd") / "superseded-1.metrics.jsonl").exists()


def test_the_label_of_the_first_claim_stays(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    for arm in ("first", "second"):
        run = store.claim(identity(arm=arm))
        assert run is not None
        run.close()
    found = store.identity("abcd")
    assert found is not None
    assert found.label.arm == "first"


def test_a_record_of_another_run_or_a_second_record_is_a_programming_error(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    run = store.claim(identity())
    assert run is not None
    with run:
        with pytest.raises(AssertionError, match="another run"):
            run.finish(ended(digest="dcba"))
        run.finish(ended())
        with pytest.raises(AssertionError, match="its record already"):
            run.finish(ended())
    with pytest.raises(AssertionError, match="closed"):
        run.finish(ended())


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "STORE.json").write_text('{"version": 2}')
    with pytest.raises(InputError, match=r"store of version 2; this Winnow reads up to 1; install a newer"):
        RunStore(tmp_path)
    (tmp_path / "STORE.json").write_text("{}")
    with pytest.raises(InputError, match="no version"):
        RunStore(tmp_path)


def test_a_store_made_newer_while_open_is_not_written(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    store.create()
    (store.root / "STORE.json").write_text('{"version": 2}')
    with pytest.raises(InputError, match="version 2"):
        store.claim(identity())


def test_a_folder_of_other_things_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"is not a run store: it holds 'thesis\.tex'"):
        RunStore(tmp_path)


@pytest.mark.parametrize("name", ["../abcd", "/etc", "a/b", "", ".x"])
def test_names_that_lead_out_of_the_store_are_refused_everywhere(tmp_path: Path, name: str) -> None:
    store = RunStore(tmp_path / "store")
    actions: list[Any] = [
        lambda: store.record(name),
        lambda: store.records([name]),
        lambda: store.state(name),
        lambda: store.metrics(name),
        lambda: store.remove([name]),
        lambda: store.claim(identity(name)),
        lambda: store.plan_path(name),
        lambda: store.find(name),
        lambda: store.stamps("abcd", name),
        lambda: store.stamp("abcd", name, {}),
    ]
    for action in actions:
        with pytest.raises(InputError, match="is not permitted"):
            action()


def test_links_out_of_the_store_are_not_followed(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    store.create()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (store.runs / "abcd").symlink_to(outside)
    for action in (lambda: store.claim(identity()), lambda: store.remove(["abcd"]), lambda: store.record("abcd")):
        with pytest.raises(InputError, match="symbolic link"):
            action()
    assert store.digests() == []
    assert (outside / "precious").exists()
    fake_record(store, digest="beef")
    inner = store.path("beef") / "checkpoints"
    inner.symlink_to(outside)
    store.remove(["beef"])
    assert (outside / "precious").exists(), "removing a run removes a link in it, not what it leads to"


def test_removal(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    for digest in ("aaaa", "bbbb", "cccc"):
        fake_record(store, digest=digest)
    run = store.claim(identity())
    assert run is not None
    with run, pytest.raises(InputError, match="abcd is running; stop it first"):
        store.remove(["aaaa", "abcd"])
    assert store.digests() == ["abcd", "bbbb", "cccc"]
    store.remove(["bbbb", "never-there", "bbbb"])
    assert store.digests() == ["abcd", "cccc"]
    assert os.listdir(store.trash) == []
    (store.path("cccc") / "run.json").write_text("damaged")
    store.remove(["cccc"])
    assert store.digests() == ["abcd"]


def test_a_run_is_found_by_the_start_of_its_name(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    for digest in ("aa11", "aa22", "bb33"):
        fake_record(store, digest=digest)
    assert store.find("b") == "bb33"
    with pytest.raises(InputError, match="'aa' fits 2 runs; say which: aa11, aa22"):
        store.find("aa")
    with pytest.raises(InputError, match="there is no run 'cc'"):
        store.find("cc")


def test_lost_rows_of_a_finished_run_are_damage(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    fake_record(store, digest="abcd", metrics=[{"step": 0}, {"step": 1}])
    path = store.path("abcd") / "metrics.0.jsonl"
    assert store.metrics("abcd") == [{"step": 0}, {"step": 1}]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="has 1 whole rows of 2"):
        store.metrics("abcd")
    path.unlink()
    with pytest.raises(InputError, match="has 0 whole rows of 2"):
        store.metrics("abcd")


def test_damage_names_the_file_and_the_mend(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    fake_record(store, digest="abcd")
    (store.path("abcd") / "run.json").write_text("{}")
    for action in (lambda: store.record("abcd"), lambda: store.records(), lambda: store.state("abcd")):
        with pytest.raises(InputError, match=r"abcd/run\.json: is damaged .*winnow rm abcd"):
            action()
    (store.path("abcd") / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json: is damaged"):
        store.identity("abcd")


def test_stamps_stand_beside_the_record(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    record = fake_record(store, digest="abcd")
    assert store.stamps("abcd", "verified") is None
    store.stamp("abcd", "verified", {"resume": "bit-identical"})
    assert store.stamps("abcd", "verified") == {"resume": "bit-identical"}
    assert store.record("abcd") == record
    with pytest.raises(AssertionError):
        store.stamp("abcd", "run", {})


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WINNOW_STORE", raising=False)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert find_store() == deep / "winnow-store"
    (tmp_path / "winnow-store").mkdir()
    assert find_store() == tmp_path / "winnow-store"
    assert find_store(beside=Path("studies/s.toml")) == Path("studies/winnow-store")
    monkeypatch.setenv("WINNOW_STORE", "/elsewhere")
    assert find_store() == find_store(beside=Path("s.toml")) == Path("/elsewhere")
    assert find_store(Path("given")) == Path("given")


def test_rows_are_a_table(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "store")
    fake_record(store, "control", 0, {"val/ce": 2.0})
    fake_record(store, "no-bos", 0, {"val/ce": 3.0}, config={"model": {"bos": False}})
    rows = {row["arm"]: row for row in store.rows()}
    assert rows["control"]["val/ce"] == 2.0
    assert rows["no-bos"]["config.model.bos"] is False
    assert rows["no-bos"]["seed"] == 0


def test_a_store_that_cannot_be_written_is_loud(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be"):
        RunStore(tmp_path / "file" / "store").claim(identity())


RACER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.records.test_store import identity, ended
from winnow.records.store import RunStore
store = RunStore(sys.argv[1])
while not Path(sys.argv[2]).exists():
    pass
run = store.claim(identity())
print("none" if run is None else "mine", flush=True)
if run is not None:
    time.sleep(60)
"""


def racer(store: Path, signal: Path) -> subprocess.Popen[str]:
    here = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", RACER, store, signal, here], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def answer(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_of_two_processes_one_gets_the_run_and_after_a_kill_the_other(tmp_path: Path) -> None:
    signal = tmp_path / "go"
    children = [racer(tmp_path / "store", signal) for _ in range(3)]
    try:
        signal.write_text("")
        answers = [answer(child) for child in children]
        assert sorted(answers) == ["mine", "none", "none"]
        store = RunStore(tmp_path / "store")
        assert store.state("abcd") == "running"
        assert store.claim(identity()) is None
        owner = children[answers.index("mine")]
        owner.kill()
        owner.wait()
        assert store.state("abcd") == "interrupted"
        run = store.claim(identity())
        assert run is not None
        run.close()
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()

"""A run that was stopped, killed or damaged ends bit for bit as one that was not."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from tests.train.kills import kill_until_done
from tests.train.runs import go_on, identity, make, run_in

from winnow.errors import InputError
from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.train import trainer
from winnow.train.tally import trace


def same_result(a: RunRecord, b: RunRecord) -> bool:
    return (a.weights, a.trace, a.final, a.steps_done) == (b.weights, b.trace, b.final, b.steps_done)


def test_metrics_of_a_run(store: RunStore, text: Path) -> None:
    record = run_in(store, make(text))
    rows = store.metrics(record.digest)
    assert [row["step"] for row in rows] == list(range(13))
    assert [row["step"] for row in rows if "val/ce" in row] == [0, 5, 10, 12]
    assert all({"train/ce", "train/ce_smooth", "train/lr", "train/grad_norm"} <= row.keys() for row in rows[:-1])
    assert rows[-1].keys() == {"step", "val/ce", "val/ppl", "val/bpb"}
    assert record.final["val/ce"] == rows[-1]["val/ce"] < rows[0]["val/ce"]
    assert (record.status, record.steps_done, record.findings) == ("finished", 12, ())
    assert record.facts["tokens"] == 12 * 128


def test_the_trace_sees_every_number_but_speed() -> None:
    rows: list[dict[str, Any]] = [{"step": 0, "train/ce": 5.0, "speed/tokens_per_second": 1.0}]
    assert trace(rows) == trace([{**rows[0], "speed/tokens_per_second": 2.0}])
    assert trace(rows) != trace([{**rows[0], "train/ce": 5.000000000000001}])


def test_stopped_after_every_step(store: RunStore, text: Path, tmp_path: Path) -> None:
    config = make(text)
    whole = run_in(store, config)
    other = RunStore(tmp_path / "stopped")
    for step in range(1, 12):
        partial = go_on(other, config, stop_at=step)
        assert (partial.status, partial.steps_done) == ("interrupted", step)
        assert other.state(whole.digest) == "interrupted"
    assert same_result(go_on(other, config), whole)


def test_a_run_that_ended_but_has_no_record_is_not_trained_again(store: RunStore, text: Path) -> None:
    config = make(text)
    whole = run_in(store, config)
    (store.path(whole.digest) / "run.json").unlink()  # killed between the last checkpoint and the record
    rows = store.metrics(whole.digest)
    assert same_result(go_on(store, config), whole)
    assert store.metrics(whole.digest) == rows


@pytest.mark.parametrize("file", ["weights.safetensors", "progress.json", "COMPLETE"])
def test_a_damaged_checkpoint_is_passed_over_and_named(store: RunStore, text: Path, tmp_path: Path, file: str) -> None:
    config = make(text, train__checkpoint_every=2)
    whole = run_in(store, config)
    other = RunStore(tmp_path / "damaged")
    go_on(other, config, stop_at=9)
    folder = other.path(whole.digest) / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000008", "step-00000009"]
    target = folder / "step-00000009" / file
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)
    record = go_on(other, config)
    assert same_result(record, whole)
    (finding,) = record.findings
    assert (finding.rule, finding.severity) == ("checkpoint-refused", "notice")
    assert "step-00000009" in finding.message


def test_a_journal_that_lost_its_end_takes_an_older_checkpoint(store: RunStore, text: Path, tmp_path: Path) -> None:
    config = make(text, train__checkpoint_every=2)
    whole = run_in(store, config)
    other = RunStore(tmp_path / "short")
    go_on(other, config, stop_at=9)
    journal = other.path(whole.digest) / "metrics.0.jsonl"
    os.truncate(journal, journal.stat().st_size - 3)
    record = go_on(other, config)
    assert same_result(record, whole)
    assert "metrics file" in record.findings[0].message


def test_a_full_disk_is_named_and_loses_nothing(store: RunStore, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(text, train__checkpoint_every=4)
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 28:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"No space left on device.*free some disk space"):
            go_on(store, config)
    digest = identity(config).digest
    assert store.state(digest) == "interrupted"
    resumed_from: list[int] = []
    monkeypatch.setattr(trainer.Training, "_log", lambda self, line: resumed_from.append(self._loop.step))
    record = go_on(store, config)
    assert resumed_from[0] in (4, 8)
    fresh = RunStore(store.root.parent / "fresh")
    assert same_result(record, run_in(fresh, config))


# Real children, real SIGKILL


def test_killed_a_dozen_times(store: RunStore, text: Path, tmp_path: Path) -> None:
    config = make(text, train__steps=150, train__checkpoint_every=4)
    whole = run_in(store, config)
    record, hits = kill_until_done(RunStore(tmp_path / "killed"), identity(config), kills=12, longest=0.25)
    assert hits >= 6
    assert same_result(record, whole)
    assert record.findings == ()


@pytest.mark.soak
def test_killed_five_hundred_times(store: RunStore, text: Path, tmp_path: Path) -> None:
    total = 0
    for round_ in range(1000):
        config = make(text, train__steps=150 + round_, train__checkpoint_every=1 + round_ % 5)
        whole = run_in(store, config)
        record, hits = kill_until_done(RunStore(tmp_path / f"killed-{round_}"), identity(config), kills=25, longest=0.4)
        assert same_result(record, whole)
        assert record.findings == ()
        total += hits
        if total >= 500:
            return
    raise AssertionError("too few kills hit a running child")

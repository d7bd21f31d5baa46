"""show, diff, rm and gc on runs that are on disk like real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fakes import fake_provenance, fake_record

from winnow.records.run import Finding, UpdateRatio
from winnow.records.store import RunStore

ROWS = [{"step": step, "val/ce": 5.0 - step, "speed/tokens_per_second": 1000.0 + step} for step in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "store")
    finding = Finding(
        rule="dead-parameter", severity="invalid", message="never moved", where="blocks.0.w", mend="use it"
    )
    fake_record(store, "control", 0, {"val/ce": 2.0}, study="s", metrics=ROWS, config={"model": {"d": 8, "clip": None}})
    fake_record(
        store,
        "b",
        0,
        {"val/ce": 1.5},
        study="s",
        metrics=[*ROWS[:2], {**ROWS[2], "val/ce": 2.5}, ROWS[3]],
        config={"model": {"d": 8, "clip": 1000}},
        findings=[finding],
        provenance=fake_provenance(code="other", packages={"torch": "2.12.0"}),
    )
    fake_record(store, "failing", 3, {}, study="s", status="failed", error="Traceback\nValueError: boom")
    return store


def test_show_tells_what_is_known(winnow, store: RunStore):
    ended = winnow("show", "s/b/0", "--store", store.root)
    assert ended.code == 0
    for word in ("finished", "10 of 10 steps", "invalid dead-parameter (blocks.0.w): never moved; use it", "Abacus"):
        assert word in ended.out
    assert "model.clip   1000" in ended.out.replace("  ", " ").replace("model.clip 1000", "model.clip   1000")
    failed = winnow("show", "s/failing/3", "--store", store.root)
    assert "ValueError: boom" in failed.out


def test_show_names_the_slices_that_move_most_and_least(winnow, store: RunStore):
    ratios = {f"w[q.{i}]": UpdateRatio(n=3, mean=0.001 * i, smallest=0.0, largest=0.5) for i in range(1, 13)}
    fake_record(store, "many", 0, study="s", updates=ratios)
    fake_record(store, "few", 0, study="s", updates=dict(list(ratios.items())[:2]))
    many = winnow("show", "s/many/0", "--store", store.root).out
    assert "update / value, mean of 3 updates (smallest to largest)" in many
    lines = [line.split()[:2] for line in many.splitlines() if line.startswith("  w[q.")]
    assert lines == [[f"w[q.{i}]", f"{0.001 * i:.2g}"] for i in (12, 11, 10, 9, 4, 3, 2, 1)]
    assert "and 4 slices between" in many
    few = winnow("show", "s/few/0", "--store", store.root).out
    assert "w[q.2]" in few
    assert "slices between" not in few


def test_show_json_is_the_record(winnow, store: RunStore):
    digest = next(d for d, record in store.records().items() if record.label.arm == "b")
    shown = json.loads(winnow("show", digest[:7], "--store", store.root, "--json").out)
    assert shown["digest"] == digest
    assert shown["record"]["final"] == {"val/ce": 1.5}
    assert [row["step"] for row in shown["metrics"]] == [0, 1, 2, 3]


def test_diff_names_settings_code_packages_and_the_first_step_that_parts(winnow, store: RunStore):
    ended = winnow("diff", "s/control/0", "s/b/0", "--store", store.root, "--json")
    found = json.loads(ended.out)
    assert found["settings"] == {"model.clip": [None, 1000]}
    assert found["provenance"] == {"code": ["c0dec0dec0dec0de", "other"], "packages.torch": ["2.11.0", "2.12.0"]}
    assert found["metrics"] == {"step": 2, "values": {"val/ce": [3.0, 2.5]}, "compared": 3}
    text = winnow("diff", "s/control/0", "s/b/0", "--store", store.root).out
    assert "first differ at step 2: val/ce 3 and 2.5" in text


def test_diff_says_where_losses_part_and_not_where_the_schedule_does(winnow, store: RunStore):
    for arm, lr in (("slow", 0.001), ("fast", 0.002)):
        rows = [{"step": s, "train/lr": lr, "train/ce": 5.0 - (s > 1) * lr} for s in range(4)]
        fake_record(store, arm, 0, study="s", metrics=rows, config={"train": {"lr": lr}})
    ended = winnow("diff", "s/slow/0", "s/fast/0", "--store", store.root)
    assert "first differ at step 2: train/ce 4.999 and 4.998\n" in ended.out
    assert "train.lr" in ended.out


def test_diff_of_equal_metrics_says_so_though_their_speed_differs(winnow, store: RunStore):
    fake_record(store, "twin", 0, study="s", metrics=[{**row, "speed/tokens_per_second": 7.0} for row in ROWS])
    ended = winnow("diff", "s/control/0", "s/twin/0", "--store", store.root)
    assert "bit-identical at all 4 rows that both have" in ended.out


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("s/nothing/0", "there is no run 's/nothing/0'"),
        ("s/control", "names no run"),
        ("ffffffff", "there is no run 'ffffffff'"),
        ("../../etc", "names no run"),
        ("", "fits 3 runs"),
    ],
)
def test_a_run_that_is_not_there_is_one_line(winnow, store: RunStore, run: str, words: str):
    ended = winnow("show", run, "--store", store.root)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert words in ended.err or "is not permitted" in ended.err


def test_rm_asks_and_without_anybody_removes_nothing(winnow, store: RunStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    ended = winnow("rm", "s/b/0", "--store", store.root)
    assert ended.code == 2
    assert "give --yes" in ended.err
    assert len(store.digests()) == 3
    ended = winnow("rm", "s/b/0", "s/b/0", "--store", store.root, "--yes")
    assert ended.code == 0
    assert "removed 1 run\n" in ended.out
    assert len(store.digests()) == 2


def test_rm_tells_runs_that_exist_from_those_that_are_only_planned(winnow, store: RunStore):
    parent, made, _ = store.digests()
    runs = {"0": made, "1": "0123456789abcdef"}
    arm = {"runs": runs, "parent": {"step": 4, "runs": dict.fromkeys(runs, parent)}}
    (store.root / "studies").mkdir(exist_ok=True)
    (store.root / "studies" / "later.json").write_text(json.dumps({"arms": {"restart": arm}}))
    ended = winnow("rm", parent, "--store", store.root)
    assert ended.err.splitlines()[:2] == [
        f"later/restart/0 starts from {parent}, and cannot be made again without it",
        f"later/restart/1 is planned, not begun: it cannot be made without {parent}",
    ]
    assert "starts from" not in winnow("rm", parent, made, "--store", store.root).err


def test_gc_shows_then_removes_only_with_a_word(winnow, store: RunStore):
    draft = store.path(store.digests()[0]) / ".run.json.0123abcd.tmp"
    draft.write_bytes(b"x" * 2048)
    shown = json.loads(winnow("gc", "--store", store.root, "--json").out)
    assert [(item["kind"], item["bytes"]) for item in shown] == [("leftover", 2048)]
    assert draft.exists()
    assert winnow("gc", "--store", store.root, "--yes").out.endswith("freed 2.0 KiB\n")
    assert not draft.exists()
    assert "nothing to remove" in winnow("gc", "--store", store.root).out


def test_gc_of_unused_runs_leaves_those_of_other_programs(winnow, store: RunStore):
    fake_record(store, "mine", 0, study="s", watched=False, data="")
    winnow("gc", "--store", store.root, "--unused-runs", "--yes")
    assert [record.label.arm for record in store.records().values()] == ["mine"]


def test_rm_removes_a_damaged_run_for_that_is_its_mend(winnow, store: RunStore):
    digest = store.digests()[0]
    for name in ("run.json", "config.json"):
        (store.path(digest) / name).write_text("{}")
    ended = winnow("rm", digest, "--store", store.root, "--yes")
    assert ended.code == 0
    assert "damaged" in ended.out
    assert digest not in store.digests()

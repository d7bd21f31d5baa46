"""Whether a plan still stands is known without reading the data, and a doubt always means no."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.cli.tiny import write_study

from winnow.records.store import RunStore
from winnow.study import freshness
from winnow.study.freshness import basis, is_fresh, keep_basis
from winnow.study.plan import Plan, PlannedArm
from winnow.study.spec import Study, load_study


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, RunStore, Plan]:
    """A study on a text file whose basis has been noted."""
    study = load_study(write_study(tmp_path))
    task = {**study.base["task"], "source": [str(tmp_path / "text.txt")]}
    arm = PlannedArm(written="w", config={"task": task}, identity={"task": task}, data="d")
    plan = Plan(id=study.id, file=None, arms={"control": arm})
    store = RunStore(tmp_path / "store")
    store.create()
    look_anew()
    monkeypatch.setattr(freshness, "_BEGAN", time.time_ns() + 1)
    keep_basis(store, study, plan)
    assert is_fresh(store, study, plan)
    return study, store, plan


def look_anew() -> None:
    """As in another process."""
    freshness._data_marks.cache_clear()
    freshness._own_sources.cache_clear()


def test_a_change_of_the_data_is_noticed(kept: tuple[Study, RunStore, Plan], tmp_path: Path):
    study, store, plan = kept
    text = tmp_path / "text.txt"
    os.utime(text, ns=(0, 1))
    look_anew()
    assert not is_fresh(store, study, plan)
    text.unlink()
    look_anew()
    assert basis(plan) is None
    assert not is_fresh(store, study, plan)


def test_another_plan_python_or_winnow_is_not_fresh(
    kept: tuple[Study, RunStore, Plan], monkeypatch: pytest.MonkeyPatch
):
    study, store, plan = kept
    arm = plan.arms["control"].replace({"identity": {"other": 1}})
    assert not is_fresh(store, study, plan.replace({"arms": {"control": arm}}))
    with monkeypatch.context() as patch:
        patch.setattr("sys.version", "3.99")
        assert not is_fresh(store, study, plan)
    with monkeypatch.context() as patch:
        patch.setattr(freshness, "_own_sources", lambda: "other")
        assert not is_fresh(store, study, plan)
    assert is_fresh(store, study, plan)


def test_what_is_not_known_is_not_fresh(kept: tuple[Study, RunStore, Plan]):
    study, store, plan = kept
    arm = plan.arms["control"]
    for config in (
        {"task": {"kind": "defined-by-a-use-file"}},
        {},
        {**arm.config, "init_from": {"path": "model.pt"}},
    ):
        doubtful = plan.replace({"arms": {"control": arm.replace({"config": config})}})
        assert basis(doubtful) is None
        keep_basis(store, study, doubtful)
        assert not is_fresh(store, study, doubtful)
    assert not is_fresh(store, study, plan), "the doubtful one has taken its note away"


def test_data_that_was_written_while_it_was_read_is_not_trusted(
    kept: tuple[Study, RunStore, Plan], monkeypatch: pytest.MonkeyPatch
):
    study, store, plan = kept
    monkeypatch.setattr(freshness, "_BEGAN", 0)
    keep_basis(store, study, plan)
    assert not is_fresh(store, study, plan)

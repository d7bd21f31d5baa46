"""Runs on several ranks, as a study starts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.study.studies import fake, small, trained

from winnow.errors import InputError
from winnow.study import capacity
from winnow.study.capacity import default_jobs
from winnow.study.crew import Crew, Job
from winnow.study.launch import run_study
from winnow.study.plan import load_plan


def test_ranks_that_do_not_divide_an_arms_updates_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = small(tmp_path)
    with pytest.raises(InputError, match=r"arm control: .* do not divide by 7 ranks"):
        run_study(study, store, fake(tmp_path, {}, monkeypatch, ranks=7))
    assert trained(tmp_path) == []
    plan = load_plan(store, study)
    assert plan is not None
    assert not plan.started


def test_every_run_is_asked_for_on_these_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []

    def run(crew: Crew, jobs: list[Job]) -> None:
        asked.extend(jobs)

    monkeypatch.setattr(Crew, "run", run)
    study, store = small(tmp_path)
    run_study(study, store, fake(tmp_path, {}, monkeypatch, ranks=2, parallel="fsdp", preflight=False))
    assert asked
    assert {(job.message["ranks"], job.message["parallel"]) for job in asked} == {(2, "fsdp")}


def test_ranks_take_the_place_of_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity.sys, "platform", "darwin")
    monkeypatch.setattr(capacity.os, "cpu_count", lambda: 8)
    assert [default_jobs("cpu", ranks) for ranks in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert default_jobs("cuda", 2) == 1

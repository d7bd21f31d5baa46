"""Launching with a worker that trains nothing: which runs are made, when, and what happens when things break."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.study.studies import TEXT, fake, small, trained

from winnow.errors import InputError
from winnow.models import GPTConfig
from winnow.models.interchange import write_model
from winnow.parameters import initialise
from winnow.records.store import RunStore
from winnow.study import launch
from winnow.study.compare import compare
from winnow.study.events import Event, LookEnded, LookStarted, PreflightEnded, RunEnded, RunWaits, Stopping, WorkerDied
from winnow.study.launch import run_study
from winnow.study.plan import load_plan
from winnow.study.resolve import resolve
from winnow.study.spec import Study
from winnow.train.losses import tensors_of

BIG = {"better": {"effect": -0.1}, "same": {"effect": 0.0}}


def test_seeds_are_added_only_for_open_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    events: list[Event] = []
    outcome = run_study(study, store, fake(tmp_path, BIG, monkeypatch), events.append)
    looks = [event for event in events if isinstance(event, LookStarted)]
    assert [(look.look, look.seeds, look.arms) for look in looks] == [
        (1, 3, ("control", "better", "same")),
        (2, 5, ("control", "same")),
    ]
    assert [len(look.missing) for look in looks] == [9, 4]
    assert len(outcome.ran) == 13
    assert len(set(trained(tmp_path))) == len(trained(tmp_path)) == 13
    first = next(event for event in events if isinstance(event, LookEnded))
    assert [verdict.status for verdict in first.verdicts] == ["supported", "undecided"]
    assert [verdict.status for verdict in outcome.comparison.verdicts] == ["supported", "undecided"]
    assert outcome.comparison.verdicts[0].budget == "at 1000 parameters, 640 tokens, lr 0.004"


def test_a_second_run_runs_nothing_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    options = fake(tmp_path, BIG, monkeypatch)
    first = run_study(study, store, options)
    plan = (store.root / "studies" / "small.json").read_bytes()
    events: list[Event] = []
    second = run_study(study, store, options, events.append)
    assert not second.ran
    assert not [event for event in events if isinstance(event, LookStarted | RunEnded)]
    assert second.comparison.verdicts == first.comparison.verdicts == compare(study, store).verdicts
    assert (store.root / "studies" / "small.json").read_bytes() == plan


def test_a_study_that_is_resolved_already_is_not_resolved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    resolved = resolve(study)
    monkeypatch.setattr(launch, "resolve", lambda *_, **__: pytest.fail("the data is read a second time"))
    outcome = run_study(study, store, fake(tmp_path, BIG, monkeypatch, seeds=(0,)), resolved=resolved)
    assert {key.digest for key in outcome.ran} == {resolved.plan.run(arm, 0) for arm in study.arms}


def test_chosen_seeds_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    outcome = run_study(study, store, fake(tmp_path, BIG, monkeypatch, seeds=(1,)))
    assert sorted((key.arm, key.seed) for key in outcome.ran) == [("better", 1), ("control", 1), ("same", 1)]
    assert {verdict.status for verdict in outcome.comparison.verdicts} == {"undecided"}
    with pytest.raises(InputError, match="seed 9 is not the study's"):
        run_study(study, store, fake(tmp_path, BIG, monkeypatch, seeds=(9,)))


def test_a_failed_run_stops_nobody_and_is_tried_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    options = fake(tmp_path, {**BIG, "same": {"fail": 1}}, monkeypatch)
    outcome = run_study(study, store, options)
    assert [key.arm for key in outcome.failed] == ["same"]
    assert store.state(outcome.failed[0].digest) == "failed"
    warning = next(finding for finding in outcome.comparison.findings if finding.rule == "failed-runs")
    assert "planted" in warning.message
    again = run_study(study, store, options)
    assert outcome.failed[0] in again.ran
    assert not again.failed
    assert store.state(outcome.failed[0].digest) == "finished"
    assert len(set(trained(tmp_path))) == len(trained(tmp_path)), "nothing was trained twice"


@pytest.mark.parametrize(("deaths", "status"), [(1, "finished"), (2, "failed")])
def test_a_worker_that_dies_loses_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, status: str):
    study, store = small(tmp_path, seeds=[0], looks=[1])
    events: list[Event] = []
    outcome = run_study(study, store, fake(tmp_path, {"same": {"die": deaths}}, monkeypatch), events.append)
    died = [event for event in events if isinstance(event, WorkerDied)]
    assert [event.again for event in died] == [True, False][:deaths]
    assert "SIGKILL" in died[0].how
    ended = {event.run.arm: event.status for event in events if isinstance(event, RunEnded)}
    assert ended == {"control": "finished", "better": "finished", "same": status}
    if status == "failed":
        record = store.record(outcome.failed[0].digest)
        assert record is not None
        assert "SIGKILL" in (record.error or "")


def test_a_diverged_run_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    options = fake(tmp_path, {**BIG, "same": {"status": "diverged"}}, monkeypatch)
    outcome = run_study(study, store, options)
    assert not outcome.failed
    assert "diverged" in outcome.comparison.verdicts[1].reason
    assert not run_study(study, store, options).ran


def test_arms_that_stay_identical_are_noticed_and_then_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    outcome = run_study(study, store, fake(tmp_path, {"control": {"same": "x"}, "same": {"same": "x"}}, monkeypatch))
    assert [finding.rule for finding in outcome.findings] == ["same-so-far"]
    assert "model.norm" in outcome.findings[0].message
    verdict = outcome.comparison.verdicts[1]
    assert verdict.status == "invalid"
    assert "model.norm.kind" in verdict.reason
    assert outcome.comparison.verdicts[0].status != "invalid"


def test_memory_bounds_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "free_memory", lambda: 1000)
    study, store = small(tmp_path, seeds=[0], looks=[1])
    outcome = run_study(study, store, fake(tmp_path, {"better": {"peak": 700}}, monkeypatch))
    assert [finding.rule for finding in outcome.findings] == ["one-seed", "memory"]
    assert len(outcome.ran) == 3


def test_no_disk_space_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda path: usage)
    study, store = small(tmp_path)
    with pytest.raises(InputError, match=r"the disk has 100 B free, and these runs need 12\.7 KiB"):
        run_study(study, store, fake(tmp_path, {}, monkeypatch))
    assert trained(tmp_path) == []
    assert not started(study, store)


def test_disk_space_counts_the_start_that_a_child_keeps_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of 1000 bytes each: one that stays, and beside either of two runs that go two old ones and the start."""
    config = GPTConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_head=8, d_ff=16)
    model = config.build(257, 32)
    initialise(model, 0)
    write_model(tmp_path / "model", config, {n: t.detach() for n, t in tensors_of(model).items()}, 257, 32)
    head = TEXT.partition("[base.model]")[0]
    text = head + 'base.init_from = { path = "model" }\narms.control = {}\n'
    study, store = small(tmp_path, text, seeds=[0], looks=[1])
    usage = SimpleNamespace(free=6999)
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"6\.8 KiB free, and these runs need 6\.8 KiB"):
        run_study(study, store, fake(tmp_path, {}, monkeypatch))
    usage.free = 7000
    assert len(run_study(study, store, fake(tmp_path, {}, monkeypatch)).ran) == 1


def test_what_every_arm_is_refused_freezes_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    events: list[Event] = []
    options = fake(tmp_path, {arm: {"refuse": "no such device"} for arm in study.arms}, monkeypatch)
    with pytest.raises(InputError, match="no such device"):
        run_study(study, store, options, events.append)
    assert not [event for event in events if isinstance(event, LookStarted | RunEnded)]
    assert not started(study, store)


@pytest.mark.parametrize(("blind", "said"), [(("control",), 0), (("control", "better", "same"), 3)])
def test_arms_that_measure_nothing_are_news_only_where_no_arm_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind: tuple[str, ...], said: int
):
    study, store = small(tmp_path)
    notice = {"rule": "nothing-inside", "severity": "notice", "message": "measures nothing"}
    arms = {arm: {"trial_findings": [notice]} for arm in blind}
    outcome = run_study(study, store, fake(tmp_path, arms, monkeypatch, seeds=(0,)))
    assert [finding.rule for finding in outcome.findings].count("nothing-inside") == said


def test_a_watcher_that_breaks_in_the_preflight_freezes_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)

    def watch(event: Event) -> None:
        if isinstance(event, PreflightEnded):
            raise OSError("planted")

    with pytest.raises(OSError, match="planted"):
        run_study(study, store, fake(tmp_path, {}, monkeypatch), watch)
    assert not started(study, store)


@pytest.mark.parametrize("fault", [{"fail": 99}, {"refuse_runs": "planted"}])
def test_an_arm_that_cannot_run_buys_no_more_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: dict):
    study, store = small(tmp_path)
    events: list[Event] = []
    outcome = run_study(study, store, fake(tmp_path, {"same": fault}, monkeypatch), events.append)
    looks = [event for event in events if isinstance(event, LookStarted)]
    assert [(look.look, look.arms) for look in looks] == [
        (1, ("control", "better", "same")),
        (2, ("control", "better")),
    ]
    assert [key.arm for key in outcome.failed] == ["same"] * 3


def test_nothing_more_is_bought_when_the_control_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    outcome = run_study(study, store, fake(tmp_path, {"control": {"fail": 99}}, monkeypatch))
    assert {key.seed for key in outcome.ran} == {0, 1, 2}


def started(study: Study, store: RunStore) -> str | None:
    plan = load_plan(store, study)
    assert plan is not None
    return plan.started


def test_what_the_audit_refuses_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = TEXT.replace('same = { model.norm = { kind = "rmsnorm" } }', "same = {}")
    study, store = small(tmp_path, text)
    with pytest.raises(InputError, match=r"small\.toml:\d+: equal-arms"):
        run_study(study, store, fake(tmp_path, {}, monkeypatch))
    assert not store.root.exists()


LAUNCHER = """
import sys
from pathlib import Path
from winnow.records.store import RunStore
from winnow.study.launch import Options, run_study
from winnow.study.spec import load_study
folder = Path(sys.argv[1])
print("ready", flush=True)
options = Options(worker=(sys.executable, sys.argv[2]), jobs=2, preflight=False)
outcome = run_study(load_study(folder / "small.toml"), RunStore(folder / "winnow-store"), options)
print("stopped" if outcome.stopped else "done", len(outcome.ran), flush=True)
"""


def launcher(folder: Path) -> subprocess.Popen[str]:
    worker = str(Path(__file__).with_name("fake_worker.py"))
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, str(folder), worker], stdout=subprocess.PIPE, text=True)


def wait_for(done: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def records(folder: Path) -> int:
    return len(list((folder / "winnow-store" / "runs").glob("*/run.json")))


def test_a_killed_launcher_leaves_one_record_per_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    slow = {arm: {"seconds": 0.3, **BIG.get(arm, {})} for arm in study.arms}
    options = fake(tmp_path, slow, monkeypatch, preflight=False)
    process = launcher(tmp_path)
    wait_for(lambda: records(tmp_path) >= 2)
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    outcome = run_study(study, store, options)
    assert not outcome.failed
    assert len(set(trained(tmp_path))) == len(trained(tmp_path)) == 13
    assert [verdict.status for verdict in outcome.comparison.verdicts] == ["supported", "undecided"]


def test_two_launchers_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path)
    slow = {arm: {"seconds": 0.1, **BIG.get(arm, {})} for arm in study.arms}
    events: list[Event] = []
    options = fake(tmp_path, slow, monkeypatch, preflight=False)
    process = launcher(tmp_path)
    assert process.stdout is not None
    wait_for(lambda: (store.root / "studies" / "small.json").exists())
    outcome = run_study(study, store, options, events.append)
    said = process.communicate(timeout=120)[0]
    assert "done" in said
    assert len(set(trained(tmp_path))) == len(trained(tmp_path)) == 13
    assert any(isinstance(event, RunWaits) or (isinstance(event, RunEnded) and event.elsewhere) for event in events)
    assert not outcome.comparison.missing or outcome.comparison.verdicts[0].status == "supported"
    assert [verdict.status for verdict in outcome.comparison.verdicts] == ["supported", "undecided"]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """A job that a shell starts in the background ignores it, and so would its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path, seeds=[0, 1], looks=[2])
    options = fake(tmp_path, {arm: {"seconds": 1.0} for arm in study.arms}, monkeypatch, preflight=False)
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if type(event).__name__ == "RunStarted" and not any(isinstance(e, Stopping) for e in events):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            events.append(Stopping(()))

    outcome = run_study(study, store, options, watch)
    assert outcome.stopped
    assert {event.status for event in events if isinstance(event, RunEnded)} == {"interrupted"}
    assert trained(tmp_path) == []
    (tmp_path / "fake.json").write_text(json.dumps({}))
    again = run_study(study, store, options)
    assert not again.stopped
    assert len(trained(tmp_path)) == 6


def test_claims_are_frozen_when_the_first_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = small(tmp_path, seeds=[0], looks=[1])
    run_study(study, store, fake(tmp_path, {}, monkeypatch))
    plan = load_plan(store, study)
    assert plan is not None
    assert plan.started is not None
    assert plan.claims["h1"].text == study.claim("h1").text
    assert plan.claims["h1"].at <= plan.started

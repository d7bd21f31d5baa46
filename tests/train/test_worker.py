"""The worker process, through its real stdin, stdout and signals."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.train.runs import identity, make, run_in

from winnow.config import run_digest
from winnow.errors import InputError
from winnow.records.store import RunStore
from winnow.train.config import RunConfig
from winnow.train.sources import load_sources
from winnow.train.verify import verify_resume

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
BREAKS = '''
"""A model that prints and raises at its fourth training pass."""
from typing import Literal
from winnow.models import GPT, GPTConfig

class Broken(GPT):
    passes = 0

    def forward(self, tokens, documents=None):
        print("noise on stdout")
        self.passes += self.training
        if self.passes == 4:
            raise RuntimeError("the belt came off")
        return super().forward(tokens, documents)

class BrokenConfig(GPTConfig):
    kind: Literal["broken"] = "broken"

    def build(self, vocab_size, context):
        return Broken(self, vocab_size, context)
'''


def request(store: RunStore, config: RunConfig, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {**identity(config, seed).dump(), "store": str(store.root), **more}


def with_source(asked: dict[str, Any], config: RunConfig, file: Path) -> dict[str, Any]:
    sources = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    digest = run_digest(config.canonical(), asked["seed"], asked["data"], sources)
    return {**asked, "sources": sources, "use": [str(file)], "digest": digest}


def serve(*requests: dict[str, Any] | str) -> list[dict[str, Any]]:
    lines = "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in requests)
    done = subprocess.run(
        [sys.executable, "-m", "winnow.train.worker"],
        input=lines, capture_output=True, text=True, check=True, env=ENVIRONMENT,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_process_many_runs(store: RunStore, text: Path, tmp_path: Path) -> None:
    config = make(text)
    good = request(store, config)
    file = tmp_path / "broken.py"
    file.write_text(BREAKS)
    broken = json.loads(json.dumps(request(store, config)))
    broken["config"]["model"]["kind"] = "broken"
    broken["data"] = good["data"]
    load_sources([file])
    broken = with_source(broken, RunConfig.model_validate(broken["config"]), file)
    other = request(store, config, seed=1)
    held = store.claim(identity(config, seed=2))
    assert held is not None
    with held:
        events = serve(
            request(store, config, preflight_steps=2),
            "not json",
            {**good, "digest": "0" * 16},
            {**good, "data": "0" * 64},
            {**good, "config": {**good["config"], "train": {**good["config"]["train"], "lr": -1.0}}},
            {**broken, "sources": {"broken.py": "0" * 64}},
            {**good, "device": "cuda:77"},
            broken,
            request(store, config, seed=2),
            good,
            other,
            good,
        )
    ends = [event for event in events if event["event"] not in ("started", "progress")]
    assert [(event["event"], event.get("status")) for event in ends] == [
        ("done", "preflight"),
        *[("failed", "refused")] * 6,
        ("failed", "failed"),
        ("busy", None),
        ("done", "finished"),
        ("done", "finished"),
        ("done", "finished"),
    ]
    said = [event.get("error", "") for event in ends]
    assert "what would run is not what was written" in said[2]
    assert "the text has changed since" in said[3]
    assert "train.lr" in said[4]
    assert "SHA-256" in said[5]
    assert "not on this machine" in said[6]
    assert said[7] == "RuntimeError: the belt came off"
    # Preflight and refusals leave nothing; a failure leaves its traceback; the rest is recorded as in this process.
    assert set(store.records()) == {good["digest"], other["digest"], broken["digest"]}
    failed = store.record(broken["digest"])
    assert failed is not None
    assert (failed.status, failed.steps_done) == ("failed", 3)
    assert "broken.py" in (failed.error or "")
    assert "the belt came off" in (failed.error or "")
    fresh = run_in(RunStore(tmp_path / "fresh"), config)
    recorded = store.record(good["digest"])
    assert recorded is not None
    assert (recorded.weights, recorded.trace) == (fresh.weights, fresh.trace)
    progress = [event for event in events if event["event"] == "progress" and event["digest"] == good["digest"]]
    assert progress[-1]["step"] == progress[-1]["steps"] == 12
    assert "val/ce" in progress[-1]["metrics"]
    assert recorded.provenance.threads == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(store: RunStore, text: Path, number: signal.Signals) -> None:
    config = make(text, train__steps=100000, evaluation__every=50000)
    asked = request(store, config)
    child = subprocess.Popen(
        [sys.executable, "-m", "winnow.train.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(asked).encode() + b"\n")
    child.stdin.flush()
    while json.loads(child.stdout.readline()).get("step", 0) < 5:
        pass
    child.send_signal(number)
    output, _ = child.communicate(timeout=60)
    last = json.loads(output.splitlines()[-1])
    assert child.returncode == 0
    assert (last["event"], last["status"]) == ("stopped", "interrupted")
    assert store.state(asked["digest"]) == "interrupted"
    assert (store.path(asked["digest"]) / "checkpoints" / f"step-{last['step']:08d}" / "COMPLETE").is_file()
    assert len(store.metrics(asked["digest"])) == last["step"]


def test_an_idle_worker_ends_at_once() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "winnow.train.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"nonsense\n")
    child.stdin.flush()
    child.stdout.readline()  # it is up, and waits for the next line
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_resume_is_verified_and_stamped(store: RunStore, text: Path) -> None:
    record = run_in(store, make(text, train__steps=40))
    found = verify_resume(store, record.digest, kills=1, draws=3)
    assert found["bit_identical"] is True
    assert found["killed_at"]
    assert store.stamps(record.digest, "verified") == found
    wrong = record.model_copy(update={"weights": "0" * 64})
    store.remove([record.digest])
    claimed = store.claim(identity(make(text, train__steps=40)))
    assert claimed is not None
    with claimed as run:
        run.finish(wrong)
    found = verify_resume(store, record.digest, kills=0)
    assert (found["bit_identical"], found["weights_identical"], found["first_different_step"]) == (False, False, 0)


@pytest.mark.soak
def test_the_first_steps_can_be_verified_alone(store: RunStore, text: Path) -> None:
    record = run_in(store, make(text, train__steps=40))
    found = verify_resume(store, record.digest, kills=3, steps=20)
    assert (found["bit_identical"], found["steps"], found["of_steps"]) == (True, 20, 40)


def test_only_finished_runs_can_be_verified(store: RunStore) -> None:
    with pytest.raises(InputError, match="no finished record"):
        verify_resume(store, "0" * 16)


@pytest.mark.soak
def test_what_compile_and_threads_do_is_measured(store: RunStore, text: Path) -> None:
    """In a process of its own: torch.compile cannot trace the shape checks of the tests."""
    asked = request(store, make(text, train__compile=True), threads=2)
    assert serve(asked)[-1]["status"] == "finished"
    record = store.record(asked["digest"])
    assert record is not None
    assert record.provenance.deterministic is False
    assert record.provenance.notes == ("compiled: not bit-exact", "2 threads: not bit-exact unless verified")
    found = verify_resume(store, record.digest, kills=1)
    assert found["notes"] == list(record.provenance.notes)
    assert isinstance(found["bit_identical"], bool)

"""A worker that trains nothing: it answers as `winnow.train.worker` does, with numbers drawn from known effects.

What it does stands in the JSON file that $FAKE_WORKER names, by arm: {"effect": 0.1, "sd": 0.01, "rho": 0.5,
"seconds": 0.0, "status": "finished", "fail": 0, "die": 0, "same": "", "refuse": "", "refuse_runs": "",
"trial_findings": []}. `fail` and `die` count how often; `refuse` says why every request is refused, `refuse_runs` why
those after the preflight are; `trial_findings` is what the preflight finds.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from winnow.records.run import RunIdentity, RunRecord
from winnow.records.store import RunStore
from winnow.study.crew import failure
from winnow.study.spec import SECTIONS

STEPS = 10
stopping = False


def on_signal(number: int, frame: object) -> None:
    global stopping
    stopping = True


def say(event: str, digest: str, **rest: Any) -> None:
    print(json.dumps({"event": event, "digest": digest, **rest}), flush=True)


def happens(folder: Path, what: str, arm: str, times: int) -> bool:
    """Whether this is one of the first `times` occasions, over all workers and launches."""
    for n in range(times):
        try:
            (folder / f"{what}-{arm}-{n}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


def value(settings: dict[str, Any], seed: int, arm: str) -> float:
    rho, sd = settings.get("rho", 0.5), settings.get("sd", 0.01)
    shared = random.Random(f"shared {settings.get('world', 0)} {seed}").gauss(0, 1)
    own = random.Random(f"own {settings.get('world', 0)} {seed} {settings.get('same') or arm}").gauss(0, 1)
    return 2.0 + settings.get("effect", 0.0) + sd * (math.sqrt(rho) * shared + math.sqrt(1 - rho) * own)


def record(request: dict[str, Any], settings: dict[str, Any], run: Any) -> RunRecord:
    arm, seed = request["label"]["arm"], request["seed"]
    ce = value(settings, seed, arm)
    status = settings.get("status", "finished")
    text = f"{settings.get('same') or arm} {seed}"
    changes = {
        "status": status,
        "steps_asked": STEPS,
        "steps_done": STEPS,
        "final": {"val/ce": ce, "val/ppl": math.exp(ce), "val/bpb": ce / math.log(2)} if status == "finished" else {},
        "facts": {"parameters": 1000, "trainable": 1000, "tokens": 640, "lr": 0.004, "val_digest": "v"},
        "weights": text,
        "trace": text,
        "error": None,
    }
    return failure(run.identity, "", 1).model_copy(update=changes)


def handle(request: dict[str, Any], folder: Path, settings: dict[str, Any]) -> None:
    digest, arm = request["digest"], request["label"]["arm"]
    assert set(SECTIONS) <= set(request["config"]), "the whole configuration is sent"
    trying = "preflight_steps" in request
    refusal = settings.get("refuse") or (not trying and settings.get("refuse_runs"))
    if refusal:
        say("failed", digest, status="refused", error=refusal)
        return
    if trying:
        trial = {"steps": 3, "seconds_per_step": 0.01, "seconds_per_evaluation": 0.01, "checkpoint_bytes": 1000}
        weights = settings.get("same") or arm
        say(
            "done",
            digest,
            preflight={**trial, "peak_bytes": settings.get("peak", 1000), "weights": weights},
            findings=settings.get("trial_findings", []),
        )
        return
    run = RunStore(request["store"]).claim(
        RunIdentity(**{name: request[name] for name in ("digest", "config", "seed", "data", "sources", "label")})
    )
    if run is None:
        say("busy", digest)
        return
    with run:
        start = run.journal.rows
        say("started", digest, step=start, steps=STEPS)
        if happens(folder, "die", arm, settings.get("die", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        for step in range(start, STEPS):
            time.sleep(settings.get("seconds", 0.0) / STEPS)
            run.journal.append({"step": step, "val/ce": 3.0 - step / STEPS})
            if stopping:
                say("stopped", digest, step=step, steps=STEPS)
                return
        if happens(folder, "fail", arm, settings.get("fail", 0)):
            run.finish(failure(run.identity, "Traceback\nValueError: planted", 1))
            say("failed", digest, status="failed", error="ValueError: planted")
            return
        run.finish(record(request, settings, run))
        (folder / f"trained-{digest}-{time.time_ns()}").touch()
    say("done", digest, status="finished", step=STEPS, steps=STEPS, metrics={}, findings=[])


def main() -> None:
    signal.signal(signal.SIGINT, on_signal)
    file = Path(os.environ["FAKE_WORKER"])
    # readline, not iteration: an interrupted worker must not wait for another line.
    while not stopping and (line := sys.stdin.buffer.readline()):
        request = json.loads(line)
        handle(request, file.parent, json.loads(file.read_text()).get(request["label"]["arm"], {}))


if __name__ == "__main__":
    main()

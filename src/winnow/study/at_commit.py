"""A program that another commit's Winnow runs: one arm of a study, some seeds, what came out as JSON lines.

    in   one line: {"study": TOML, "file", "store", "arm", "metric", "seeds", "jobs", "device", "threads", "package"}
    out  {"event": "run", "seed", "status"}...  then  {"event": "done", "runs": {seed: {...}}} or {"event": "failed"}

It is started by path, so that it is today's program on that day's package: it imports nothing but the calls that
have been there from the first. It stops, as Ctrl-C would, when whoever started it is gone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def say(event: str, **rest: Any) -> None:
    """A line to whoever started this; if nobody listens any more, the runs end by themselves."""
    print(json.dumps({"event": event, **rest}), file=sys.__stdout__, flush=True)


def obey() -> None:
    """End the runs when the other end of stdin closes."""
    while os.read(0, 4096):  # not sys.stdin: a thread that waits in it would disturb the end of the process
        pass
    os.kill(os.getpid(), signal.SIGINT)


def check_package(wanted: str | None) -> None:
    """Raise ImportError if Winnow is not that of the commit."""
    spec = importlib.util.find_spec("winnow")
    found = Path("" if spec is None else spec.origin or "").resolve()
    if wanted is not None and not found.is_relative_to(Path(wanted).resolve()):
        raise ImportError(f"winnow was imported from {found}, not from {wanted}")


def runs(request: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Make the runs that are missing; every seed's outcome, and whether it was stopped."""
    from winnow.records.store import RunStore
    from winnow.study.launch import Options, run_study
    from winnow.study.spec import parse_study

    study = parse_study(request["study"], request["file"])

    def watch(event: Any) -> None:
        if type(event).__name__ == "RunEnded":
            say("run", seed=event.run.seed, status=event.status)

    options = Options(
        jobs=request["jobs"],
        seeds=tuple(request["seeds"]),
        device=request["device"],
        threads=request["threads"],
        preflight=False,
        trust=True,
    )
    arm = request["arm"]
    outcome = run_study(study, RunStore(request["store"]), options, watch)
    values = outcome.comparison.observations[request["metric"]].values[arm]
    found: dict[str, Any] = {}
    for seed, record in outcome.comparison.runs[arm].items():
        lines = (record.error or "").strip().splitlines()
        found[str(seed)] = {
            "status": record.status,
            "measured": seed in values,
            "value": values.get(seed),
            "error": lines[-1] if lines else None,
            "invalid": [item.message for item in record.findings if item.severity == "invalid"],
            "commit": record.provenance.commit,
            "dirty": record.provenance.dirty,
            "package_commit": record.provenance.package_commit,
        }
    return found, outcome.stopped


def main() -> None:
    """Take one request, answer, end."""
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=obey, daemon=True).start()
    sys.stdout = sys.stderr  # whatever anybody prints goes to the log
    try:
        check_package(request["package"])
        found, stopped = runs(request)
    except Exception as error:
        traceback.print_exc()
        say("failed", error=f"{type(error).__name__}: {error}".removeprefix("InputError: "))
        return
    say("stopped" if stopped else "done", runs=found)


if __name__ == "__main__":
    main()

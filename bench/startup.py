"""CPU time to start commands that only read text or records, against an empty Python program.

    python bench/startup.py [--rounds 7]

Interleaved; the minimum of the rounds, since noise only ever adds CPU time. Each command is also checked never to
import torch or scipy.stats, and must end well before its time counts. What is promised: at most 0.5 s of CPU time.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from report import heading, publish, table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fakes import fake_record

from winnow.records.store import RunStore
from winnow.study.plan import load_plan
from winnow.study.spec import load_study

PROMISE = 0.5
"""Seconds of CPU time."""
FORBIDDEN = ("torch", "scipy.stats")
CSV = "arm,seed,ce\na,0,1.0\na,1,1.1\na,2,1.2\nb,0,0.9\nb,1,1.0\nb,2,1.15\n"
STUDY = """
id = "startup"
seeds = [0, 1, 2, 3, 4, 5, 6, 7]
base.task = { kind = "corpus", source = "stdlib", context = 32 }
base.model = { kind = "gpt", d_model = 16, n_layers = 1, n_heads = 2, max_seq_len = 32 }
base.train = { steps = 10, tokens_per_update = 512, warmup = 2 }
arms.control = {}
arms.clear = { train.clip = 100.0 }
arms.unclear = { train.lr = 1e-3 }
claims.decided = "clear better-than control on val/ce smallest 0.01"
claims.open = "unclear better-than control on val/ce smallest 0.01"
"""
EFFECTS = {"control": 0.0, "clear": -1.0, "unclear": -0.005}
"""One claim is decided at the first look, the other is open after the last and needs a forecast."""


def commands(folder: Path) -> dict[str, list[str]]:
    """Arguments of each command that is timed."""
    study = str(folder / "study.toml")
    return {
        "--help": ["--help"],
        "run --help": ["run", "--help"],
        "judge": ["judge", str(folder / "results.csv"), "--metric", "ce", "--arm", "arm", "--pair", "seed"],
        "status": ["status", study],
        "compare": ["compare", study],
        "why": ["why", study, "decided"],
        "why (undecided)": ["why", study, "open"],
        "table": ["table", study],
    }


def cpu_seconds(program: list[str], folder: Path) -> float:
    """CPU time of one process, user and system. Raises RuntimeError if it ends in error."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(program, cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise RuntimeError(f"{program} ended with {ended.returncode}: {ended.stderr.decode()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imported(arguments: list[str], folder: Path) -> list[str]:
    """Forbidden modules that a command imports."""
    program = (
        "import sys\nfrom winnow.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {FORBIDDEN!r} if m in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, check=True)
    return json.loads(ended.stderr.decode().splitlines()[-1].replace("'", '"'))


def prepare(folder: Path) -> None:
    """A study with a plan and made-up runs in its store, and a table of results."""
    (folder / "results.csv").write_text(CSV)
    (folder / "study.toml").write_text(STUDY)
    subprocess.run([*WINNOW, "check", str(folder / "study.toml")], check=True, capture_output=True)
    study, store = load_study(folder / "study.toml"), RunStore(folder / "winnow-store")
    plan = load_plan(store, study)
    assert plan is not None
    for arm, effect in EFFECTS.items():
        for seed in study.seeds:
            noise = random.Random(f"{arm} {seed}").gauss(0, 0.01)
            fake_record(
                store,
                arm,
                seed,
                {"val/ce": 2.0 + effect + noise},
                study=study.id,
                config=plan.arms[arm].config,
                digest=plan.run(arm, seed),
                weights=f"{arm} {seed}",
                trace=f"{arm} {seed}",
            )


WINNOW = [sys.executable, "-c", "from winnow.cli import main; main()"]


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        timed = commands(folder)
        for command, arguments in timed.items():
            found = imported(arguments, folder)
            if found:
                raise RuntimeError(f"winnow {command} imports {', '.join(found)}")
        seconds: dict[str, list[float]] = {"python -c pass": []} | {f"winnow {command}": [] for command in timed}
        for _ in range(options.rounds):
            seconds["python -c pass"].append(cpu_seconds([sys.executable, "-c", "pass"], folder))
            for command, arguments in timed.items():
                seconds[f"winnow {command}"].append(cpu_seconds([*WINNOW, *arguments], folder))
    empty = min(seconds["python -c pass"])
    rows = {command: min(times) for command, times in seconds.items()}
    cells = [(f"`{name}`", f"{least:.3f}", f"{least / empty:.1f}") for name, least in rows.items()]
    publish(
        "startup",
        heading("CPU time to start a command", "startup", threads=1, packages=("pydantic", "typer"))
        + f"User and system time of a fresh process; the least of {options.rounds} rounds, interleaved.\n\n"
        + table(["command", "seconds", "times an empty program"], cells)
        + f"\nPromised: {PROMISE} s, without importing {' or '.join(FORBIDDEN)}.\n",
    )
    if max(rows.values()) > PROMISE:
        sys.exit(1)


if __name__ == "__main__":
    main()

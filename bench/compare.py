"""`compare` over 1,000 recorded runs: at most 3 seconds, in a fresh process.

    python bench/compare.py [--runs 1000]

The gate is correctness: every claim must get the verdict that its planted effect deserves, or nothing is timed. The
first comparison reads every record and builds the store's index, the second finds the index; both are reported, the
median of five processes each.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fakes import fake_record

from report import heading, publish, table
from winnow.records.store import RunStore
from winnow.study.plan import Plan, PlannedArm, save_plan, written_digest
from winnow.study.spec import Study, parse_study

ARMS = 100
"""One control and 99 others, each claimed better; every third one is."""

CODE = """
import sys, time
started = time.perf_counter()
from pathlib import Path
from winnow.records.store import RunStore
from winnow.study.compare import compare
from winnow.study.spec import load_study
found = compare(load_study(sys.argv[1]), RunStore(sys.argv[2]))
print(time.perf_counter() - started, *(verdict.status for verdict in found.verdicts))
assert "torch" not in sys.modules
"""


def study_text(seeds: int) -> str:
    """A study of `ARMS` arms."""
    lines = ['id = "large"', f"seeds = {list(range(seeds))}", "rule.correction = 'none'", "arms.control = {}"]
    for arm in range(1, ARMS):
        lines.append(f"arms.arm-{arm} = {{ model.width = {arm} }}")
        lines.append(f'claims.h{arm} = "arm-{arm} better-than control on val/ce smallest 0.05"')
    return "\n".join(lines) + "\n"


def plan_of(study: Study) -> Plan:
    """The plan as it would have been resolved."""
    arms = {}
    for name, settings in study.arms.items():
        config = {key: dict(value) for key, value in settings.items()}
        written = written_digest(study, name, {})
        arms[name] = PlannedArm(written=written, config=config, identity=config, data="d", metrics={"val/ce": "lower"})
    return Plan(id=study.id, file=None, arms=arms)


def fill(store: RunStore, study: Study, plan: Plan) -> None:
    """Runs with an effect of 0.3 in every third arm, sd 0.02, metrics of 20 evaluations each."""
    for place, arm in enumerate(study.arms):
        for seed in study.seeds:
            rng = random.Random(f"{arm} {seed}")
            value = 2.0 - (0.3 if place % 3 == 1 else 0.0) + rng.gauss(0, 0.02)
            facts = {"parameters": 1000, "trainable": 1000, "tokens": 640, "lr": 0.004, "val_digest": "v"}
            rows = [{"step": step, "val/ce": value + 1 - step / 20} for step in range(20)]
            fake_record(
                store,
                arm,
                seed,
                {"val/ce": value},
                digest=plan.run(arm, seed),
                config=plan.arms[arm].config,
                study=study.id,
                facts=facts,
                metrics=rows,
                weights=f"{arm} {seed}",
                trace=f"{arm} {seed}",
            )


def main() -> None:
    """Publish the two medians; fail where a verdict is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.toml"
        file.write_text(study_text(runs // ARMS))
        study = parse_study(file.read_text(), file)
        store = RunStore(Path(folder) / "winnow-store")
        plan = plan_of(study)
        save_plan(store, study, plan.replace({"started": "2026-01-01T00:00:00+00:00"}))
        fill(store, study, plan)
        found: dict[str, list[float]] = {"absent (it is built)": [], "present": []}
        for _ in range(5):
            (store.root / "index.sqlite").unlink(missing_ok=True)
            for name in found:
                before = time.perf_counter()
                said = subprocess.run(
                    [sys.executable, "-c", CODE, str(file), str(store.root)], check=True, capture_output=True, text=True
                ).stdout.split()
                found[name].append(time.perf_counter() - before)
                wanted = ["supported" if place % 3 == 1 else "refuted" for place in range(1, ARMS)]
                wrong = sum(a != b for a, b in zip(said[1:], wanted, strict=True))
                assert wrong <= ARMS // 20, f"{wrong} wrong verdicts: nothing is timed"
    rows = [(name, f"{statistics.median(seconds):.2f}") for name, seconds in found.items()]
    publish(
        "compare",
        heading(f"`compare` over {runs:,} recorded runs", "compare", threads=1, packages=("pydantic",))
        + f"{ARMS} arms of {runs // ARMS} seeds, {ARMS - 1} claims; a fresh process each time, import included; "
        "medians of five. Every verdict is checked before a time counts.\n\n"
        + table(["store's index", "seconds"], rows)
        + "\nAllowed: 3 s.\n",
    )


if __name__ == "__main__":
    main()

"""`winnow table` over 1,000 recorded runs: reading, grouping, sorting and writing, in a fresh process without torch.

    python bench/table.py [--runs 1000]

The gate is correctness: every arm's mean must be that of its records, or nothing is timed. Each kind of table is made
in five processes that find the store's index; beside it stands `compare` alone, which every table begins with.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from compare import ARMS, fill, plan_of, study_text
from report import heading, publish, table
from winnow.records.store import RunStore
from winnow.study.plan import save_plan
from winnow.study.spec import parse_study

CODE = """
import sys, time
started = time.process_time()
from pathlib import Path
from winnow.records.store import RunStore
from winnow.study.compare import compare
from winnow.study.run_table import Layout, run_table
from winnow.study.spec import load_study
found = compare(load_study(sys.argv[1]), RunStore(sys.argv[2]))
compared = time.process_time()
layout = Layout(**eval(sys.argv[3]))
text = run_table(found, layout).text("csv")
print(compared - started, time.process_time() - compared, text.count(chr(10)))
assert "torch" not in sys.modules
for row in run_table(found, Layout()).rows:
    values = [record.final["val/ce"] for record in found.runs[row[0]].values()]
    assert abs(row[2] - sum(values) / len(values)) < 1e-12, row
"""
LAYOUTS = {
    "a row an arm": "{}",
    "the same, min, max, sd, settings, two sort keys": (
        "{'spread': ['val/ce'], 'add': ['model.width', 'samples/s'], 'sort': ['val/ce-', 'arm']}"
    ),
    "a row a run": "{'runs': True, 'sort': ['val/ce']}",
}


def main() -> None:
    """Publish the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.toml"
        file.write_text(study_text(runs // ARMS))
        study = parse_study(file.read_text(), file)
        store = RunStore(Path(folder) / "winnow-store")
        plan = plan_of(study)
        save_plan(store, study, plan.replace({"started": "2026-01-01T00:00:00+00:00"}))
        fill(store, study, plan)
        command = [sys.executable, "-c", CODE, str(file), str(store.root)]
        subprocess.run([*command, "{}"], check=True, capture_output=True)  # builds the index
        for name, layout in LAYOUTS.items():
            said = [
                subprocess.run([*command, layout], check=True, capture_output=True, text=True).stdout.split()
                for _ in range(5)
            ]
            assert int(said[0][2]) == (runs if "'runs'" in layout else ARMS) + 1, said[0]
            compared, made = (statistics.median(float(line[place]) for line in said) for place in (0, 1))
            rows.append((name, f"{compared:.2f}", f"{made:.3f}"))
    publish(
        "table",
        heading(f"`winnow table` over {runs:,} recorded runs", "table", threads=1, packages=("pydantic",))
        + f"{ARMS} arms of {runs // ARMS} seeds, {ARMS - 1} claims; a fresh process each time, import included; "
        "medians of five. Every mean is checked before a time counts.\n\n"
        + table(["table", "CPU seconds to judge", "to make the table"], rows),
    )


if __name__ == "__main__":
    main()

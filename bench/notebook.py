"""A no-op `winnow run` over a notebook of 300 studies and 3,000 recorded runs: at most 5 seconds of CPU time.

    python bench/notebook.py [--part run] [--studies 300]

Arms are resolved and registered as `winnow run` does it; only the training is left out: each run's record and metrics
are made up, in the form of real ones, and of 600 pictures two are drawn, the others copied under a digest of their own.
The gate is correctness: every claim must get the verdict that its planted effect deserves, and a no-op may change no
byte of the notebook, its pictures or the records, or nothing is timed.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fakes import fake_record

from report import heading, publish, table
from winnow.analysis import pictures
from winnow.cli.writing import results_of
from winnow.notebook.document import Document
from winnow.notebook.execute import open_source, write_results
from winnow.records.store import RunStore
from winnow.study import freshness
from winnow.study.compare import compare
from winnow.study.launch import register
from winnow.study.plan import now, save_plan
from winnow.study.resolve import resolve

SEEDS = 5
ROWS = 120
"""Updates of each run: one row of metrics each."""
REPEATS = 3

CELL = """\
## Question {number}

```toml study
id = "question-{number}"
question = "Does a width of {width} help at rate {rate}?"
seeds = [0, 1, 2, 3, 4]
looks = [3, 5]
base.task = {{ kind = "corpus", source = "text.txt", context = 16, document = "block" }}
base.model = {{ kind = "gpt", d_model = 16, n_layers = 1, n_heads = 2, positions = "rotary", max_seq_len = 16 }}
base.train = {{ steps = 120, tokens_per_update = 64, warmup = 2, lr = {rate} }}
base.evaluation = {{ every = 60, tokens = 256 }}
arms.control = {{}}
arms.wide = {{ model.d_ff = {width} }}
claims.wide = "wide better-than control on val/ce smallest 0.05"
```
"""
FRONT = "---\ntitle: Many questions\ndate: 2026-01-01\ntags: [bench]\n---\n\n"


def write_notebook(folder: Path, studies: int) -> Path:
    """A notebook with so many studies, and the text that they train on."""
    words = ["attention", "is", "what", "the", "model", "learns", "to", "select", "while", "it", "reads"]
    lines = [" ".join(words[(i * j + i) % len(words)] for j in range(1, 9)) for i in range(3000)]
    (folder / "text.txt").write_text("\n".join(line + ("\n" if i % 10 == 9 else "") for i, line in enumerate(lines)))
    cells = [CELL.format(number=i, width=64 + 8 * (i % 25 + 1), rate=1e-3 * (1 + i // 25)) for i in range(studies)]
    path = folder / "lab.md"
    path.write_text(FRONT + "\n".join(cells))
    return path


def fill(path: Path, store: RunStore) -> int:
    """Plans of every study, and records with an effect of 0.2 in every third, sd 0.01; how many runs."""
    # The text was written by this very process, which elsewhere would be a reason not to trust its times.
    freshness._BEGAN = time.time_ns()
    made = 0
    for number, study in enumerate(open_source(path).studies):
        plan = register(study, store, resolve(study).plan)
        save_plan(store, study, plan.replace({"started": now()}))
        for arm in study.arms:
            facts = {"trainable": plan.arms[arm].facts["parameters"], "lr": 0.004, "seconds": 2.0}
            facts |= {name: value for name, value in plan.arms[arm].facts.items() if isinstance(value, int | str)}
            for seed in study.seeds:
                rng = random.Random(f"{number} {arm} {seed}")
                value = 2.0 - (0.2 if arm == "wide" and number % 3 == 0 else 0.0) + rng.gauss(0, 0.01)
                rows = [
                    {"step": step, "train/ce": value + 3 / step, "lr": 0.004, "norm": 1.0}
                    | ({"val/ce": value + 1 - step / ROWS} if step % 60 == 0 else {})
                    for step in range(1, ROWS + 1)
                ]
                fake_record(
                    store,
                    arm,
                    seed,
                    {"val/ce": value},
                    digest=plan.run(arm, seed),
                    config=plan.arms[arm].config,
                    data=plan.arms[arm].data,
                    study=study.id,
                    facts=facts,
                    metrics=rows,
                    steps_asked=ROWS,
                    weights=f"{number} {arm} {seed}",
                    trace=hashlib.sha256(repr(rows).encode()).hexdigest(),
                )
                made += 1
    return made


def write_first(path: Path, store: RunStore) -> None:
    """The results of every study, as the first `winnow run` leaves them."""
    drawn: dict[str, tuple[bytes, bytes]] = {}

    def copied(draw: Callable[..., bytes]) -> Callable[..., bytes]:
        def make(*arguments: object, key: str, **named: object) -> bytes:
            if draw.__name__ not in drawn:
                drawn[draw.__name__] = (draw(*arguments, key=key, **named), key.encode())
            picture, old = drawn[draw.__name__]
            return picture.replace(old, key.encode())

        return make

    pictures.curves_png = copied(pictures.curves_png)
    pictures.differences_png = copied(pictures.differences_png)
    source = open_source(path)
    found = [compare(study, store) for study in source.studies]
    results = {each.study.id: results_of(source, each, store) for each in found}
    write_results(source, results, store.root / "studies")


def timed(*command: object, folder: Path) -> tuple[float, float]:
    """(CPU seconds, seconds) of a command in a process of its own, children included. Fails where it does."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "winnow.cli", *map(str, command)], cwd=folder, capture_output=True, text=True
    )
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    assert done.returncode == 0, done.stderr[-2000:]
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended - started


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of the notebook, its pictures and every file of the records."""
    paths = [*folder.glob("*"), *folder.glob("winnow-store/runs/*/*")]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file() and path.name != "lock"
    }


def check_verdicts(path: Path, studies: int) -> None:
    """The planted effects, and nothing else, are supported."""
    document = Document.read(path)
    wrong = 0
    for number in range(studies):
        block = document.block(f"question-{number}")
        assert block is not None
        wrong += ("**supported**" in block.content) != (number % 3 == 0)
    assert wrong <= studies // 20, f"{wrong} wrong verdicts: nothing is timed"


def run_part(studies: int) -> str:
    """The table of commands on many studies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_notebook(folder, studies)
        store = RunStore(folder / "winnow-store")
        runs = fill(path, store)
        write_first(path, store)
        rows: list[tuple[str, str, str]] = []

        def add(what: str, found: list[tuple[float, float]]) -> None:
            cpu, wall = (statistics.median(column) for column in zip(*found, strict=True))
            rows.append((what, f"{cpu:.2f}", f"{wall:.2f}"))

        check_verdicts(path, studies)
        before = content(folder)
        add("`run`, no-op", [timed("run", "lab.md", folder=folder) for _ in range(REPEATS)])
        assert content(folder) == before, "a no-op changed a file: nothing is timed"
        only = f"question-{studies // 2}"
        add("`run --only ID`, no-op", [timed("run", "lab.md", "--only", only, folder=folder) for _ in range(REPEATS)])
        add("`status`", [timed("status", "lab.md", folder=folder) for _ in range(REPEATS)])
        text = f"{studies} studies of 2 arms in one notebook of {len(path.read_text().splitlines()):,} lines, "
        text += f"{runs:,} recorded runs of {ROWS} updates; a process each, import included; medians of {REPEATS}.\n\n"
        return text + table(["command", "CPU seconds", "seconds"], rows) + "\nAllowed: 5 s for the no-op `run`.\n"


PARTS: dict[str, tuple[str, Callable[[int], str]]] = {"run": ("Running what is recorded", run_part)}
"""Heading and measurement of each part; a part that is not asked for keeps its old figures out of the result."""


def main() -> None:
    """Publish the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; all, unless given")
    parser.add_argument("--studies", type=int, default=300)
    given = parser.parse_args()
    chosen = [PARTS[name] for name in given.part or PARTS]
    body = "\n".join(f"## {title}\n\n{measure(given.studies)}" for title, measure in chosen)
    publish("notebook", heading("Large notebooks", "notebook", threads=1, packages=("pydantic",)) + "\n" + body)


if __name__ == "__main__":
    main()

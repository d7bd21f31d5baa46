"""What data costs a training step: the time to make an update's batch against the time to compute the update.

    python bench/data.py [--rounds 15] [--json bench/results/data.json]

One process, one thread, interleaved, medians. Rows are first compared with plain slices of the text. What is wanted:
data is never the bottleneck, at most 1 % of a step. Also printed: building the `stdlib` corpus, warm, against the
time that reading and hashing its bytes takes at the least.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from winnow.kernels.readout import linear_cross_entropy
from winnow.models import ModelConfig
from winnow.parameters import initialise
from winnow.tasks import Batch, CorpusConfig, Task
from winnow.tasks.documents import stdlib_documents

WANTED = 0.01
"""Share of a step."""
ROWS = 16
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2 layers of 64, context 64, bytes": (
        {"kind": "gpt", "d_model": 64, "n_layers": 2, "n_heads": 4},
        {"context": 64},
    ),
    "4 layers of 256, context 256, BPE of 4096": (
        {"kind": "gpt", "d_model": 256, "n_layers": 4, "n_heads": 4},
        {"context": 256, "tokenizer": {"kind": "bpe", "vocab_size": 4096}},
    ),
}


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def check_rows(task: Task) -> None:
    """Rows are windows of the text: every row of bytes stands in a training document or across a document's end."""
    text = b"\0".join(stdlib_documents())
    batch = task.batch(0, 0, range(ROWS), ROWS)
    for row in batch.tokens.tolist():
        for piece in bytes(row).split(b"\0"):
            assert piece in text, "a row is not text of the corpus"


def stepper(model_table: dict[str, Any], task: Task) -> Callable[[Batch], None]:
    """One update of a model on a batch: forward, backward, AdamW."""
    model = ModelConfig.model_validate(model_table).build(task.vocab_size, task.context)
    initialise(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        hidden = model(batch.tokens).hidden
        linear_cross_entropy(hidden, model.readout_weight, batch.targets).backward()
        optimizer.step()

    return step


def data_over_step(task: Task, step: Callable[[Batch], None], rounds: int) -> float:
    """Time to make an update's batch over the time to compute the update."""
    loading: list[float] = []
    training: list[float] = []
    step(task.batch(0, 0, range(ROWS), ROWS))
    for index in range(1, rounds + 1):
        start = time.perf_counter()
        batch = task.batch(0, index, range(ROWS), ROWS)
        made = time.perf_counter()
        step(batch)
        loading.append(made - start)
        training.append(time.perf_counter() - made)
    return statistics.median(loading) / statistics.median(training)


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row per shape."""
    rows: list[dict[str, Any]] = []
    for name, (model_table, task_table) in SHAPES.items():
        task = CorpusConfig.model_validate(task_table).build()
        share = data_over_step(task, stepper(model_table, task), rounds)
        rows.append({"shape": name, "data_over_step": share, "loads_per_step": 1 / share})
    return rows


def build_ratio(rounds: int) -> tuple[float, float]:
    """Seconds of a warm build, and that over the time to read and hash the same bytes."""
    builds: list[float] = []
    reads: list[float] = []
    for _ in range(rounds):
        builds.append(seconds(lambda: CorpusConfig(context=64).build()))
        reads.append(seconds(lambda: [hashlib.sha256(text).digest() for text in stdlib_documents()]))
    return statistics.median(builds), statistics.median(builds) / statistics.median(reads)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    check_rows(CorpusConfig(context=64).build())
    rows = measure(options.rounds)
    for row in rows:
        verdict = "" if row["data_over_step"] <= WANTED else f"  over the wanted {WANTED:.0%}"
        print(
            f"{row['shape']:42} data is {row['data_over_step']:.3%} of a step "
            f"({row['loads_per_step']:.0f}x as fast as needed){verdict}"
        )
    build, ratio = build_ratio(5)
    print(f"{'building the stdlib corpus, warm':42} {build:.2f} s, {ratio:.1f}x reading and hashing its bytes")
    if options.json is not None:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        options.json.write_text(json.dumps({**machine, "rows": rows, "build_over_read": ratio}, indent=1) + "\n")
    if max(row["data_over_step"] for row in rows) > WANTED:
        sys.exit(1)


if __name__ == "__main__":
    main()

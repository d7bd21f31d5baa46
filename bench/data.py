"""What data costs a training step: the time to make an update's batch against the time to compute the update.

    python bench/data.py [--rounds 15]

One process, one thread, interleaved, medians of CPU time, so that other programs on the machine disturb little. Rows
are first compared with plain slices of the text. What is wanted: data is never the bottleneck, at most 1 % of a step.
Also measured: building the `stdlib` corpus, warm, against the time that reading and hashing its bytes takes.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from report import heading, publish, table
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
    """CPU time of one call."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


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
        start = time.thread_time()
        batch = task.batch(0, index, range(ROWS), ROWS)
        made = time.thread_time()
        step(batch)
        loading.append(made - start)
        training.append(time.thread_time() - made)
    return statistics.median(loading) / statistics.median(training)


def measure(rounds: int) -> dict[str, float]:
    """Data over step, for each shape."""
    shares: dict[str, float] = {}
    for name, (model_table, task_table) in SHAPES.items():
        task = CorpusConfig.model_validate(task_table).build()
        shares[name] = data_over_step(task, stepper(model_table, task), rounds)
    return shares


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
    options = parser.parse_args()
    torch.set_num_threads(1)
    check_rows(CorpusConfig(context=64).build())
    shares = measure(options.rounds)
    build, ratio = build_ratio(5)
    rows = [(name, f"{share:.4%}", f"{1 / share:,.0f}") for name, share in shares.items()]
    publish(
        "data",
        heading("What data costs a training step", "data", threads=1)
        + f"{ROWS} rows an update, one process; {options.rounds} updates of each shape, medians of CPU time.\n\n"
        + table(["shape", "data, share of a step", "times as fast as needed"], rows)
        + f"\nWanted: at most {WANTED:.0%} of a step. Building the `stdlib` corpus, warm: {build:.2f} s, {ratio:.1f} "
        "times what reading and hashing its bytes takes.\n",
    )
    if max(shares.values()) > WANTED:
        sys.exit(1)


if __name__ == "__main__":
    main()

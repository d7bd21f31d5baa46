"""What the training loop costs over the bare forward, backward and optimizer step.

    loop   one row of a run's journal: rows of data, update, gradient norm, smoothing, health watch, metrics line,
           progress, evaluation bookkeeping (an evaluation's own computation is not overhead and does not fall due)
    bare   the same model and batch size on one fixed batch: forward, loss, backward, fused AdamW, nothing else

Steps of the two alternate and are counted in CPU seconds of the one thread that runs have, so that other programs on
the machine disturb little; the ratio is that of the medians. Gate: both train to the same loss scale, and
tests/train is green.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from report import heading, publish, table
from winnow.config import run_digest
from winnow.kernels.readout import linear_cross_entropy
from winnow.records.run import Label, RunIdentity
from winnow.records.store import RunStore
from winnow.train.config import RunConfig
from winnow.train.device import prepare
from winnow.train.loop import Loop, build_task
from winnow.train.trainer import Training, silent

STEPS = 300
ALLOWED = 1.05
QUICKSTART = {
    "task": {"kind": "corpus", "source": "stdlib", "context": 64},
    "model": {"kind": "gpt", "d_model": 64, "n_layers": 2, "n_heads": 4, "positions": "rotary"},
    "train": {"steps": 10 * STEPS, "tokens_per_update": 32 * 64, "lr": 1e-3, "clip": None},
    "evaluation": {"every": 10 * STEPS, "tokens": 4096},
}


def bare_step(config: RunConfig) -> Callable[[], None]:
    """The least that a training step can be."""
    loop = Loop(config, seed=0, device=torch.device("cpu"))
    batch = loop.task.batch(0, 0, range(config.rows), config.rows)
    model = loop.model
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        adamw.zero_grad(set_to_none=True)
        loss = linear_cross_entropy(model(batch.tokens).hidden, model.readout_weight, batch.targets)
        loss.backward()
        adamw.step()

    return step


def measure(folder: Path) -> tuple[list[float], list[float]]:
    """CPU seconds of each bare step and of each row of the loop, taken in turns."""
    config = RunConfig.model_validate(QUICKSTART)
    data = build_task(config.task)[0].digest
    identity = RunIdentity(
        digest=run_digest(config.canonical(), 0, data, {}),
        config=config.dump(),
        seed=0,
        data=data,
        label=Label(study="bench", arm="loop"),
    )
    claimed = RunStore(folder / "store").claim(identity)
    assert claimed is not None
    step = bare_step(config)
    bare: list[float] = []
    whole: list[float] = []
    with claimed as run:
        training = Training(config, run, seed=0, device=torch.device("cpu"), on_progress=silent)
        for index in range(STEPS + 20):
            started = time.thread_time()
            step()
            between = time.thread_time()
            assert training.advance()
            ended = time.thread_time()
            if index >= 20:
                bare.append(between - started)
                whole.append(ended - between)
    return bare, whole


def main() -> None:
    """Measure, print and write the table."""
    prepare(1)
    with tempfile.TemporaryDirectory() as folder:
        bare, whole = measure(Path(folder))
    ratio = statistics.median(whole) / statistics.median(bare)
    paired = sorted(b / a for a, b in zip(bare, whole, strict=True))
    low, high = paired[len(paired) // 4], paired[3 * len(paired) // 4]
    rows = [
        ("bare forward + backward + AdamW step", f"{1e3 * statistics.median(bare):.2f}"),
        ("whole loop (data, norm, health, metrics line, progress)", f"{1e3 * statistics.median(whole):.2f}"),
        ("ratio of medians (quartiles of the paired ratios)", f"{ratio:.3f} ({low:.3f} to {high:.3f})"),
    ]
    publish(
        "loop",
        heading("The loop's cost over a bare step", "loop", threads=1)
        + "GPT of the quickstart (d_model 64, 2 layers, context 64, 32 sequences, bytes); "
        + f"{STEPS} steps of each, alternating.\n\n"
        + table(["", "median, CPU ms"], rows)
        + f"\nAllowed: {ALLOWED:.2f}. Not in it: evaluations and checkpoints, whose own work is not overhead.\n",
    )


if __name__ == "__main__":
    main()

"""Tiny runs on a synthetic text, for the tests of training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from winnow.config import run_digest
from winnow.records.run import Finding, Label, RunIdentity, RunRecord
from winnow.records.store import RunStore
from winnow.train.config import RunConfig
from winnow.train.loop import build_task
from winnow.train.trainer import Progress, train

CPU = torch.device("cpu")
TEXT = "the quick query masks a slow key so that later tokens forget what earlier ones no longer need"


def write_text(path: Path, words: int = 20000) -> Path:
    """A text with some order in it, the same on every machine and Python version."""
    draw = random.Random(7)
    vocabulary = TEXT.split()
    lines, line = [], []
    for index in range(words):
        line.append(vocabulary[min(int(draw.random() ** 2 * len(vocabulary)), len(vocabulary) - 1)])
        if index % 9 == 8:
            lines.append(" ".join(line) + ".\n" + ("\n" if index % 45 == 44 else ""))
            line = []
    path.write_text("".join(lines), encoding="utf-8")
    return path


def table(text: Path, **changes: Any) -> dict[str, Any]:
    """The table of a tiny run; changes are dotted keys with `__` for the dot, `train__clip=None` say."""
    found: dict[str, Any] = {
        "task": {"kind": "corpus", "source": str(text), "context": 16, "validation_fraction": 0.3},
        "model": {"kind": "gpt", "d_model": 16, "n_layers": 1, "n_heads": 2, "attention": {"kind": "softmax"}},
        "train": {"steps": 12, "tokens_per_update": 128, "lr": 3e-3, "warmup": 3},
        "evaluation": {"every": 5, "tokens": 320},
    }
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        part = found
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
    return found


def make(text: Path, **changes: Any) -> RunConfig:
    """The config of a tiny run."""
    return RunConfig.model_validate(table(text, **changes))


def identity(config: RunConfig, seed: int = 0, arm: str = "control") -> RunIdentity:
    """What the store knows a run by."""
    data = build_task(config.task)[0].digest
    return RunIdentity(
        digest=run_digest(config.canonical(), seed, data, {}),
        config=config.dump(),
        seed=seed,
        data=data,
        label=Label(study="test", arm=arm),
    )


def run_in(store: RunStore, config: RunConfig, seed: int = 0, arm: str = "control") -> RunRecord:
    """Train a run in this process."""
    claimed = store.claim(identity(config, seed, arm))
    assert claimed is not None
    with claimed as run:
        return train(config, run, seed=seed, device=CPU)


def said(record: RunRecord) -> list[Finding]:
    """The findings of a run, but for what depends on this machine: whether it has a compiler."""
    return [finding for finding in record.findings if finding.rule != "slow-kernel"]


def go_on(store: RunStore, config: RunConfig, stop_at: int | None = None) -> RunRecord:
    """Continue a run, and stop it again after `stop_at` updates."""
    claimed = store.claim(identity(config))
    assert claimed is not None
    seen: list[Progress] = []
    with claimed as run:
        return train(config, run, seed=0, device=CPU, on_progress=seen.append, stop=lambda: seen[-1].step == stop_at)

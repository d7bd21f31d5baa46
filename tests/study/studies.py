"""A small study on a small text, for tests that resolve or run one."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.records.store import RunStore
from winnow.study.launch import Options
from winnow.study.spec import Study, load_study

TEXT = """\
id = "small"
seeds = [0, 1, 2, 3, 4]
looks = [3, 5]
base.task = { kind = "corpus", source = "corpus.txt", context = 16 }
base.train = { steps = 6, tokens_per_update = 64, warmup = 2, lr = 4e-3 }
base.evaluation = { every = 3, tokens = 128 }

[base.model]
d_model = 16
n_layers = 1
n_heads = 2
positions = "rotary"

[arms]
control = {}
better = { model.attention = { kind = "selective" } }
same = { model.norm = { kind = "rmsnorm" } }

[claims]
h1 = "better better-than control on val/ce smallest 0.005"
h2 = "same better-than control on val/ce smallest 0.004"
"""


def write_study(folder: Path, text: str = TEXT, name: str = "small.toml") -> Path:
    """A study file and the text that it trains on; returns the file."""
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(60)]
        lines = [" ".join(rng.choices(words, k=8)) for _ in range(3000)]
        corpus.write_text("\n".join("\n" if i % 40 == 0 else line for i, line in enumerate(lines)))
    file = folder / name
    file.write_text(text)
    return file


def small(folder: Path, text: str = TEXT, **changes: Any) -> tuple[Study, RunStore]:
    """The study and a store beside it."""
    file = write_study(folder, text)
    return load_study(file, changes), RunStore(folder / "winnow-store")


def fake(folder: Path, arms: Mapping[str, Mapping[str, Any]], monkeypatch: Any, **options: Any) -> Options:
    """Options with the fake worker, which behaves as `arms` says."""
    file = folder / "fake.json"
    file.write_text(json.dumps(arms))
    monkeypatch.setenv("FAKE_WORKER", str(file))
    worker = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
    return Options(**{"worker": worker, "jobs": 2, **options})


def trained(folder: Path) -> list[str]:
    """Digests that the fake worker trained to the end, with repetitions."""
    return sorted(path.name.split("-")[1] for path in folder.glob("trained-*"))

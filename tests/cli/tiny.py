"""A study that trains in a moment, for tests through the real command line."""

from __future__ import annotations

import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from winnow.cli import main

STUDY = """\
id = "tiny"
question = "Does <b>anything</b> | help [here](x)?"
seeds = [0, 1, 2]
looks = [2, 3]
endpoint = { metric = "val/ce", better = "lower" }
base.task = { kind = "corpus", source = "text.txt", context = 16, document = "block" }
base.model = { kind = "gpt", d_model = 16, n_layers = 1, n_heads = 2, positions = "rotary", max_seq_len = 16 }
base.train = { steps = 6, tokens_per_update = 64, warmup = 2, lr = 0.01 }
base.evaluation = { every = 3, tokens = 256 }
arms.control = {}
"""

WINNOW = [sys.executable, "-m", "winnow.cli"]


def write_study(
    folder: Path, more: str = "", *, name: str = "tiny.toml", changes: dict[str, str] | None = None
) -> Path:
    """The study file with further lines, beside the text that it trains on; `changes` replaces parts of it."""
    words = ["attention", "is", "what", "the", "model", "learns", "to", "select", "while", "it", "reads"]
    lines = [" ".join(words[(i * j + i) % len(words)] for j in range(1, 9)) for i in range(3000)]
    (folder / "text.txt").write_text("\n".join(line + ("\n" if i % 10 == 9 else "") for i, line in enumerate(lines)))
    text = STUDY
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text + more)
    return path


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


def winnow(*arguments: object, cwd: Path) -> Ended:
    """A command given in `cwd`, in this process, which has paid for its imports; the workers are real ones."""
    out, err = StringIO(), StringIO()
    code = 0
    with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def winnow_process(*arguments: object, cwd: Path) -> Ended:
    """The real command in a process of its own."""
    ended = subprocess.run([*WINNOW, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120)
    return Ended(ended.returncode, ended.stdout, ended.stderr)

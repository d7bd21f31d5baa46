"""How every benchmark presents its result: a title, what it was measured with, a table; in bench/results.

from report import publish        in a script that is run as `python bench/SCRIPT.py`
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from winnow.records.provenance import cpu_model

RESULTS = Path(__file__).parent / "results"


def heading(
    title: str, script: str, *, threads: int, packages: Iterable[str] = ("torch",), date: str | None = None
) -> str:
    """The first lines of a result: how it was made, when, on which machine, how busy that was, with which versions."""
    many = "1 thread" if threads == 1 else f"{threads} threads"
    versions = ", ".join([*(f"{name} {version(name)}" for name in packages), f"Python {platform.python_version()}"])
    return (
        f"# {title}\n\n`python bench/{script}.py`, {date or time.strftime('%Y-%m-%d')}, {cpu_model()} "
        f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}), {many}, {versions}.\n"
    )


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table, numbers as the caller spells them; all columns but the first are for numbers."""
    names = list(header)
    rule = ["---", *["--:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [names, rule, *rows]) + "\n"


def publish(script: str, text: str) -> None:
    """Print a result and write it to bench/results/SCRIPT.md."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{script}.md").write_text(text, encoding="utf-8")

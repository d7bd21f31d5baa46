"""What commands print: plain text that pipes well, colours on a terminal only, JSON for scripts."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TextIO

from winnow.records.files import size as size

COLOURS = {
    "supported": "32",
    "finished": "32",
    "refuted": "31",
    "failed": "31",
    "invalid": "35",
    "diverged": "35",
    "warning": "33",
    "stale": "33",
    "interrupted": "33",
    "finished, not uploaded": "33",
    "undecided": "34",
    "running": "34",
    "withdrawn": "90",
}
"""ANSI colours of words that carry a judgement."""


def say(text: str = "") -> None:
    """A line of a command's result, on stdout."""
    with unheard(sys.stdout):
        print(text)


def note(text: str) -> None:
    """A line about the command itself, on stderr, so that a pipe sees results alone."""
    flush()
    with unheard(sys.stderr):
        print(text, file=sys.stderr, flush=True)


def flush() -> None:
    """Send what was said on its way."""
    with unheard(sys.stdout):
        sys.stdout.flush()


@contextmanager
def unheard(stream: TextIO) -> Iterator[None]:
    """Nobody reads any more (`| head` has seen enough): the command goes on in silence, a run is worth more."""
    try:
        yield
    except BrokenPipeError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Let what is said from here on go nowhere, and what the stream still holds: Python flushes it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say_json(value: Any) -> None:
    """A result as JSON; numbers that are not finite become null, as JSON has no word for them."""
    say(json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@cache
def coloured() -> bool:
    """Whether stdout is a terminal that wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def word(text: str) -> str:
    """A word of judgement in its colour."""
    colour = COLOURS.get(text)
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and coloured() else text


def bold(text: str) -> str:
    """A heading."""
    return f"\x1b[1m{text}\x1b[0m" if coloured() else text


def columns(rows: Iterable[Sequence[str]], header: Sequence[str] | None = None, indent: str = "") -> list[str]:
    """Rows as aligned lines; columns of numbers stand at the right."""
    body = [list(row) for row in rows]
    table = [list(header), *body] if header else body
    if not table:
        return []
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    right = [bool(body) and all(_is_number(row[index]) for row in body) for index in range(len(widths))]
    lines: list[str] = []
    for number, row in enumerate(table):
        cells = [
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ]
        line = indent + "  ".join(cells).rstrip()
        lines.append(bold(line) if header and number == 0 else line)
    return lines


def _is_number(text: str) -> bool:
    return text in ("", "-") or text.lstrip("-+")[:1].isdigit()


def pairs(values: Iterable[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Names and values, one pair a line."""
    found = list(values)
    width = max((len(name) for name, _ in found), default=0)
    return [f"{indent}{name.ljust(width)}  {value}" for name, value in found]


def finding_line(severity: str, rule: str, message: str, where: str | None = None, mend: str | None = None) -> str:
    """A finding on one line."""
    place = f"{where}: " if where else ""
    return f"{word(severity)}: {place}{rule}: {message}{f'; {mend}' if mend else ''}"


def duration(seconds: float) -> str:
    """A time as people say it: "45 s", "3 min 20 s", "2 h 05 min"; anything shorter is a second."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: float) -> str:
    """A count with a unit prefix: 409600 is "410 k"."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:g}"


def value(item: Any) -> str:
    """A setting or a measured number on one line."""
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, str):
        return item
    return json.dumps(item, ensure_ascii=False, default=str)

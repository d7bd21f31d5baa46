"""The working of a verdict on the terminal: `winnow why`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from winnow.cli import output
from winnow.study.verdict import Verdict


def working_lines(verdict: Verdict) -> list[str]:
    """Every number behind a verdict, in the order in which it was used."""
    numbers = dict(verdict.numbers)
    lines = _values(numbers.pop("values", {}), verdict)
    for pair in numbers.pop("pairs", []):
        lines += ["", output.bold(f"{pair['pair'][0]} - {pair['pair'][1]}")]
        lines += _tree({key: value for key, value in pair.items() if key not in ("pair", "a", "b", "differences")})
    history: list[dict[str, Any]] = numbers.pop("history", [])
    if history:
        lines += ["", output.bold("looks"), *_rows(history)]
    lines += ["", output.bold("rule and levels"), *_tree(numbers)]
    return lines


def _values(values: Mapping[str, Mapping[str, float | None]], verdict: Verdict) -> list[str]:
    """One row per seed, one column per arm, and the difference where there are two."""
    seeds = list(dict.fromkeys(seed for runs in values.values() for seed in runs))
    header = ["seed", *values]
    two = list(values.values()) if len(values) == 2 else None
    rows: list[list[str]] = []
    for seed in seeds:
        cells = [_cell(runs, seed) for runs in values.values()]
        if two is not None:
            a, b = two[0].get(seed), two[1].get(seed)
            cells.append("-" if a is None or b is None else f"{a - b:+.6g}")
        rows.append([seed, *cells])
    if two is not None:
        header.append("difference")
    return [output.bold(f"{verdict.claim.metric} by seed"), *output.columns(rows, header=header, indent="  ")]


def _cell(runs: Mapping[str, float | None], seed: str) -> str:
    if seed not in runs:
        return "-"
    value = runs[seed]
    return "diverged" if value is None else f"{value:.6g}"


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    header = list(dict.fromkeys(key for row in rows for key in row))
    cells = [["-" if row.get(key) is None else output.value(row[key]) for key in header] for row in rows]
    return output.columns(cells, header=header, indent="  ")


def _tree(value: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested tables by dotted key."""
    found: list[tuple[str, str]] = []
    _collect(value, prefix, found)
    return output.pairs(found)


def _collect(value: Any, name: str, found: list[tuple[str, str]]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, f"{name}.{key}" if name else str(key), found)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value, 1):
            _collect(item, f"{name}.{number}", found)
    else:
        found.append((name, output.value(value)))

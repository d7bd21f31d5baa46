"""Tables of a study's runs as somebody asks for them: which columns, in which order, one row an arm or one a run.

An arm's row holds the mean over its runs that ended well, and as asked min, max, standard deviation (n - 1) and count.
Everything comes from records; the same records and options give the same bytes. What columns mean: `columns`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from winnow.errors import InputError, nearest
from winnow.study.columns import Column, Rows, Source, Value, find_columns, summary
from winnow.study.compare import Comparison
from winnow.study.dead_axes import RULES
from winnow.study.ranking import Ranking, ranking
from winnow.study.table_text import Format, csv_text, decimals, noted, text_table

SPREAD: Final = ("min", "max", "sd")
_AROUND: Final = ("parameters", "minutes", "throughput")


@dataclass(frozen=True)
class Layout:
    """What is asked of a table. Columns are named as in `columns`."""

    columns: Sequence[str] = ()
    """These alone; empty = what most want to see."""
    add: Sequence[str] = ()
    """These too."""
    exclude: Sequence[str] = ()
    spread: Sequence[str] = ()
    """Behind these come their min, max and standard deviation."""
    rename: Mapping[str, str] | None = None
    """Another title, by name."""
    sort: Sequence[str] = ()
    """Rows are ordered by these, the first one first; a minus before or behind a name: largest first."""
    runs: bool = False
    """One row a run, not one an arm."""
    rank: bool = False
    """Letters, best arm first: arms that share one are not shown to differ."""


@dataclass(frozen=True)
class RunTable:
    """Columns, rows, and what has to be said beside them."""

    study: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    ranking: Ranking | None
    findings: tuple[str, ...]
    """Axes along which nothing moves that should."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What belongs under the table, a sentence each."""
        return (*(() if self.ranking is None else (self.ranking.text,)), *self.findings)

    def text(self, form: Format) -> str:
        """The table. JSON and CSV hold full precision; the others what is meant to be read, with the notes."""
        titles = [column.title for column in self.columns]
        if form == "json":
            data: dict[str, Any] = {"study": self.study, "columns": titles}
            data["rows"] = [dict(zip(titles, row, strict=True)) for row in self.rows]
            if self.ranking is not None:
                data["ranking"] = self.ranking.plain()
            return json.dumps({**data, "findings": list(self.findings)}, indent=1, ensure_ascii=False) + "\n"
        if form == "csv":
            return csv_text(titles, self.rows)
        return text_table(titles, self._cells(), form, self.study) + noted(self.notes, form)

    def _cells(self) -> list[list[str]]:
        by_column = [self._shown(place) for place in range(len(self.columns))]
        return [list(line) for line in zip(*by_column, strict=True)]

    def _shown(self, place: int) -> list[str]:
        column = self.columns[place]
        digits = self._digits(column.name) if column.source == "metric" else None
        return [_shown(row[place], column, digits) for row in self.rows]

    def _digits(self, name: str) -> int | None:
        """Decimals that show two digits of the smallest standard deviation that is not 0, where one is shown."""
        places = [place for place, each in enumerate(self.columns) if (each.name, each.stat) == (name, "sd")]
        spreads = [row[place] for place in places for row in self.rows]
        known = [value for value in spreads if isinstance(value, int | float) and value > 0]
        return decimals(min(known)) if known else None


def run_table(comparison: Comparison, layout: Layout) -> RunTable:
    """The table that is asked for. Raises InputError with the option for a column that nothing knows."""
    order = ranking(comparison) if layout.rank or "letter" in (*layout.columns, *layout.add) else None
    source = Rows(comparison, {} if order is None else order.letters)
    known = source.names()
    columns = _columns(source, layout, known)
    keys = [_sort_key(text, known) for text in layout.sort]
    if layout.rank and not keys:
        better = comparison.study.endpoint.better
        keys = [(find_columns([comparison.study.endpoint.metric], known)[0], better == "higher")]
    wanted = [*columns, *(column for column, _ in keys)]
    rows = _by_run(source, wanted) if layout.runs else _by_arm(source, wanted)
    for place, (_, descending) in reversed(list(enumerate(keys, len(columns)))):
        rows = _sorted(rows, place, descending=descending)
    if not layout.columns:
        columns, rows = _without_empty(columns, rows, layout)
    findings = tuple(item.message for item in comparison.findings if item.rule in RULES)
    cut = tuple(tuple(row[: len(columns)]) for row in rows)
    return RunTable(comparison.study.id, tuple(columns), cut, order, findings)


def _columns(source: Rows, layout: Layout, known: Mapping[str, Source]) -> list[Column]:
    usual = [name for name in _usual(source, layout) if name in known or ":" in name]
    found = _found("--columns", layout.columns or usual, known)
    if layout.rank and layout.columns:
        found += [column for column in _found("--rank", ["letter"], known) if column not in found]
    found += [column for column in _found("--add", layout.add, known) if column not in found]
    for name in layout.exclude:
        gone = _found("--exclude", [name], known)
        if not any(column in found for column in gone):
            there = nearest(name, [column.key for column in found])
            raise InputError(f"{name!r} is not in the table", key="--exclude", mend=there)
        found = [column for column in found if column not in gone]
    for column in _found("--spread", layout.spread, known):
        if layout.runs:
            raise InputError("a row of one run has no spread", key="--spread", mend="leave out --runs or --spread")
        beside = _found("--spread", [f"{column.name}:{stat}" for stat in SPREAD], known)
        found = [each for each in found if each not in beside]
        place = found.index(column) + 1 if column in found else len(found)
        found[place:place] = beside if column in found else [column, *beside]
    if layout.runs and any(column.stat != "mean" or column.name in ("n", "lost") for column in found):
        raise InputError("a row of one run has no statistics", key="--columns", mend="leave out --runs, or name runs")
    if not found:
        raise InputError("every column is excluded", key="--exclude", mend="leave one")
    return [_renamed(column, layout.rename or {}, found) for column in found]


def _usual(source: Rows, layout: Layout) -> list[str]:
    study = source.comparison.study
    axes = [axis.name for axis in study.grid.axes if len(axis.labels) > 1] if study.grid is not None else []
    letters = ["letter"] if layout.rank else []
    if layout.runs:
        return ["arm", *axes, "seed", "status", study.endpoint.metric, *letters, *_AROUND]
    return ["arm", *axes, "n", "lost", study.endpoint.metric, f"{study.endpoint.metric}:sd", *letters, *_AROUND]


def _found(option: str, names: Sequence[str], known: Mapping[str, Source]) -> list[Column]:
    try:
        return find_columns(names, known)
    except InputError as error:
        raise InputError(error.message, key=option, mend=error.mend) from None


def _renamed(column: Column, titles: Mapping[str, str], found: Sequence[Column]) -> Column:
    for name in titles:
        if all(name not in (each.key, each.name) for each in found):
            raise InputError(
                f"no column is called {name!r}", key="--rename", mend=nearest(name, [c.key for c in found])
            )
    if column.key in titles:
        return replace(column, title=titles[column.key])
    if column.name in titles:
        return replace(column, title=f"{titles[column.name]} ({column.stat})")
    return column


def _sort_key(text: str, known: Mapping[str, Source]) -> tuple[Column, bool]:
    name = text.removesuffix("-") if text.endswith("-") else text.removeprefix("-")
    return _found("--sort", [name], known)[0], name != text


def _by_arm(source: Rows, columns: Sequence[Column]) -> list[tuple[Value, ...]]:
    return [tuple(_of_arm(source, arm, column) for column in columns) for arm in source.comparison.study.arms]


def _of_arm(source: Rows, arm: str, column: Column) -> Value:
    if column.source == "own":
        runs = source.comparison.runs.get(arm, {})
        counted = source.counted(arm)
        lost = [record.status for seed, record in sorted(runs.items()) if seed not in counted]
        own: dict[str, Value] = {
            "arm": arm,
            "n": len(counted),
            "lost": ", ".join(f"{lost.count(status)} {status}" for status in dict.fromkeys(lost)) or None,
            "letter": source.letters.get(arm),
        }
        if column.name not in own:
            raise InputError(f"an arm has no {column.name!r}", key="--columns", mend="give --runs for a row a run")
        return own[column.name]
    if column.source == "axis":
        return source.place(arm, column.name)
    return summary(source.values(arm, column), column.stat)


def _by_run(source: Rows, columns: Sequence[Column]) -> list[tuple[Value, ...]]:
    return [
        tuple(source.value(arm, record, seed, column) for column in columns)
        for arm in source.comparison.study.arms
        for seed, record in sorted(source.comparison.runs.get(arm, {}).items())
    ]


def _sorted(rows: Iterable[tuple[Value, ...]], place: int, *, descending: bool) -> list[tuple[Value, ...]]:
    """Numbers before texts; what is not known comes last either way."""
    rows = list(rows)
    known = [row for row in rows if row[place] is not None]
    known.sort(key=lambda row: _order(row[place]), reverse=descending)
    return [*known, *(row for row in rows if row[place] is None)]


def _order(value: Value) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, float(value or 0), "")


def _without_empty(
    columns: list[Column], rows: list[tuple[Value, ...]], layout: Layout
) -> tuple[list[Column], list[tuple[Value, ...]]]:
    """Usual columns that hold nothing are left out, and `status` where every run finished."""
    kept = [
        place
        for place, column in enumerate(columns)
        if column.key in layout.add
        or not all(row[place] is None or (column.name == "status" and row[place] == "finished") for row in rows)
    ]
    return [columns[place] for place in kept], [tuple(row[place] for place in kept) for row in rows]


def _shown(value: Value, column: Column, digits: int | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    counted = column.source in ("fact", "derived") and column.stat != "n"
    if isinstance(value, int):
        return f"{value:,}" if counted else str(value)
    if digits is not None:
        return f"{value:.{digits}f}"
    if counted and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if column.source == "derived" else f"{value:.6g}"

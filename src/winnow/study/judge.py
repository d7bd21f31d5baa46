"""Verdicts on a table of results that any other program wrote: one row per run.

    arm,seed,val_loss
    control,0,3.2793
    wide,0,3.2769

The same rules as for a study. `nan` or `inf` in the metric's column is a run that diverged.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from winnow.errors import InputError, nearest
from winnow.study.claims import Claim, parse_claim
from winnow.study.noise import Prior
from winnow.study.observations import Better, Observations, Seed
from winnow.study.verdict import DecisionRule, Verdict, judge_claims

CONTROL = "control"
"""The arm that others are compared with when no claim is given; without one of this name, the first arm."""


@dataclass(frozen=True)
class Row:
    """One line of a table: cells by column, and the line it stands on."""

    cells: dict[str, str]
    line: int


@dataclass(frozen=True)
class Table:
    """A table as text. `file` and the rows' lines give errors their place."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    file: str | None = None


def read_table(path: Path) -> Table:
    """A table with a header line; commas, semicolons or tabs. Raises InputError naming the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", file=path, mend="give a CSV file") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns: tuple[str, ...] = ()
    rows: list[Row] = []
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not columns:
            columns = tuple(cells)
            if len(set(columns)) < len(columns):
                raise InputError("two columns have one name", file=path, line=reader.line_num)
        elif len(cells) != len(columns):
            raise InputError(
                f"{len(cells)} cells where the header names {len(columns)} columns", file=path, line=reader.line_num
            )
        else:
            rows.append(Row(dict(zip(columns, cells, strict=True)), reader.line_num))
    if not rows:
        raise InputError("holds no rows", file=path, mend="a header line, then one line per run")
    return Table(columns, tuple(rows), str(path))


def table_observations(table: Table, metric: str, arm: str, pair: str | None, better: Better = "lower") -> Observations:
    """The observations in a table.

    metric, arm, pair: column names. pair names what two runs share (the seed); None: nothing, each arm's runs are
    numbered as they come. Raises InputError for a missing column, an entry that is no number, an arm and seed twice.
    """
    for column in (metric, arm, pair):
        if column is not None and column not in table.columns:
            raise InputError(f"no column is called {column!r}", file=table.file, mend=nearest(column, table.columns))
    values: dict[str, dict[Seed, float | None]] = {}
    lines: dict[tuple[str, Seed], int] = {}
    for row in table.rows:
        name = row.cells[arm]
        if not name:
            raise InputError("names no arm", file=table.file, line=row.line, key=arm)
        mine = values.setdefault(name, {})
        seed = len(mine) if pair is None else _seed(row.cells[pair])
        if (name, seed) in lines:
            raise InputError(
                f"arm {name!r} has {pair} {seed} already on line {lines[name, seed]}",
                file=table.file,
                line=row.line,
                key=pair,
                mend="keep one line per run",
            )
        lines[name, seed] = row.line
        mine[seed] = _number(row.cells[metric], table, row, metric)
    control = CONTROL if CONTROL in values else next(iter(values))
    # Seeds in the order in which the table first names them: what a declared look reads.
    seeds = dict.fromkeys(seed for _, seed in lines)
    return Observations(values, metric, better, tuple(seeds), control)


def judge_table(
    table: Table,
    metric: str,
    arm: str,
    pair: str | None,
    claims: Sequence[str] = (),
    better: Better = "lower",
    *,
    rule: DecisionRule | None = None,
    looks: tuple[int, ...] | None = None,
    prior: Prior | None = None,
    budget: str = "",
) -> tuple[Verdict, ...]:
    """Verdicts on the runs in a table.

    claims: sentences of the claim grammar, which need not name the metric; none: every arm against the control as
    exploratory estimates.
    Runs are paired by the `pair` column, or two independent samples without one. looks: the numbers of seeds at which
    one declared to look; None: one look at all of them.
    """
    observations = table_observations(table, metric, arm, pair, better)
    if len(observations.values) < 2:
        raise InputError(f"holds only the arm {next(iter(observations.values))!r}", file=table.file, key=arm)
    rule = (rule or DecisionRule()).replace({"paired": pair is not None})
    parsed = tuple(_claims(claims, observations)) or tuple(_estimates(observations))
    return judge_claims(parsed, observations, rule, looks, prior=prior, budget=budget)


def _claims(claims: Sequence[str], observations: Observations) -> Iterable[Claim]:
    for place, sentence in enumerate(claims, 1):
        claim = parse_claim(f"h{place}", sentence, observations.metric)
        claim.check(observations.values, [observations.metric])
        yield claim


def _estimates(observations: Observations) -> Iterable[Claim]:
    control = observations.control
    assert control is not None
    for arm in observations.values:
        if arm != control:
            yield Claim(id=arm, kind="better", arms=(arm, control), metric=observations.metric, exploratory=True)


def _seed(text: str) -> Seed:
    return int(text) if text.isascii() and text.isdigit() else text


def _number(text: str, table: Table, row: Row, metric: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"{text!r} is no number",
            file=table.file,
            line=row.line,
            key=metric,
            mend="write nan for a run that diverged, and no line for a run that was not made",
        ) from None
    return value if math.isfinite(value) else None

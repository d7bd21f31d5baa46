"""`winnow numerics`: how far sums over queries, and what follows from them, are from fp64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.analysis.numerics import Gap, Heads, Precision, Row, Standing, Terms

USUAL = 512
"""Tokens, the longest unless told otherwise: about 20 s on one core. Twice as long takes four times the time."""
SHORTEST, LONGEST = 4, 4096
"""Tokens: below, hardly a vote is felt; above, the fp64 reference needs more memory than many machines have."""


class Name(StrEnum):
    """A backend."""

    REFERENCE = "reference"
    CHUNKED = "chunked"
    CPU = "cpu"
    TRITON = "triton"


class Dtype(StrEnum):
    """What the inputs are rounded to."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "numerics", rich_help_panel=options.MODELS, epilog="Example: winnow numerics --max-length 512 --plot errors.png"
    )(numerics)


def numerics(
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", metavar="N,N", help="Tokens; default 32, 64, ... up to --max-length."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", metavar="N", help=f"Longest sequence, tokens; default {USUAL}.")
    ] = None,
    backend: Annotated[
        list[Name] | None, typer.Option("--backend", help="Only this backend; may be given again.", show_default=False)
    ] = None,
    dtype: Annotated[
        list[Dtype] | None, typer.Option("--dtype", help="Only inputs of this dtype; may be given again.")
    ] = None,
    inputs: Annotated[
        str, typer.Option("--inputs", metavar="random|RUN", help="Random q, k, v, or those of a trained run.")
    ] = "random",
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw the errors of the first dtype.", show_default=False),
    ] = None,
    store: options.StoreAbove = None,
    as_json: options.Json = False,
) -> None:
    """How accurate are the sums behind selective attention? Errors against fp64, without training anything."""
    wanted = _lengths(lengths, max_length)
    if plot is not None and plot.suffix != ".png":
        raise InputError(f"{str(plot)!r} is not a PNG file", key="--plot", mend="give a name that ends in .png")
    if plot is not None and not plot.parent.is_dir():
        raise InputError(f"there is no folder {str(plot.parent)!r}", key="--plot", mend="make it first")
    heads = _heads(inputs, store, max(wanted))
    from winnow.analysis import numerics as study

    dtypes: list[Precision] = [name for name in study.PRECISIONS if not dtype or name in [item.value for item in dtype]]
    ways = [way for way in study.WAYS if not backend or way.backend in [name.value for name in backend]]
    refused = {
        f"{way.backend}, {way.algorithm} sums in {way.accumulate}": why
        for way in ways
        if (why := study.refusal("sum", dtypes[0], way)) is not None
    }
    if len(refused) == len(ways):
        raise InputError(next(iter(refused.values())), key="--backend")
    rows: list[Row] = []
    for row in study.study(heads, wanted, ways=ways, dtypes=dtypes):
        if not as_json and rows and (row.kind, row.dtype) != (rows[-1].kind, rows[-1].dtype):
            _say_errors(
                [earlier for earlier in rows if (earlier.kind, earlier.dtype) == (rows[-1].kind, rows[-1].dtype)]
            )
        rows.append(row)
    gaps, terms, standings = study.gaps(heads[0], wanted), study.terms(), study.standings(rows)
    drawn: list[str] = []
    if plot is not None:
        _draw(plot, [row for row in rows if row.dtype == dtypes[0]], heads)
        drawn.append(str(plot))
    if as_json:
        output.say_json(
            {
                "inputs": [part.name for part in heads],
                "errors": [{**asdict(row.way), **_plain(row)} for row in rows],
                "not_run": refused,
                "terms": [asdict(row) for row in terms],
                "zero_protection": [asdict(row) for row in gaps],
                "use": {found.dtype: list(found.use) if found.use else None for found in standings},
                "files": drawn,
            }
        )
        return
    _say_errors([row for row in rows if (row.kind, row.dtype) == (rows[-1].kind, rows[-1].dtype)])
    _say_terms(terms)
    _say_gaps(gaps)
    _say_standings(standings)
    _say_refused(refused)
    for file in drawn:
        output.note(f"wrote {file}")


def _lengths(text: str | None, longest: int | None) -> list[int]:
    """The lengths asked for, rising. Raises InputError."""
    if text is not None and longest is not None:
        raise InputError("--lengths says it all", key="--max-length", mend="leave one of them out")
    if text is None:
        longest = USUAL if longest is None else longest
        found = [32 * 2**n for n in range(8) if 32 * 2**n < min(longest, LONGEST)] + [longest]
    else:
        parts = [part.strip() for part in text.split(",")]
        wrong = next((part for part in parts if not part.isdecimal()), None)
        if wrong is not None:
            raise InputError(f"{wrong!r} is not a number of tokens", key="--lengths", mend="write 64,128,256")
        found = sorted({int(part) for part in parts})
    for length in reversed(found):
        if not SHORTEST <= length <= LONGEST:
            key = "--max-length" if text is None else "--lengths"
            raise InputError(f"{length} tokens", key=key, mend=f"permitted: {SHORTEST} to {LONGEST}")
    return found


def _heads(inputs: str, store: Path | None, length: int) -> list[Heads]:
    if inputs == "random":
        from winnow.analysis.numerics import random_heads

        return [random_heads(length)]
    records = options.open_store(store)
    digest = options.find_run(records, inputs)
    from winnow.analysis.trained import trained_heads

    return trained_heads(records, digest, length)


def _plain(row: Row) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "way"}


def _say_errors(rows: Sequence[Row]) -> None:
    """One table each for F, outputs and gradients; rows of a kind that nobody can tell apart are one."""
    lengths = sorted({row.length for row in rows})
    names = {"mask_live": "F where it is below 40 nats", "output": "outputs", "gradient": "gradients"}
    for name, title in names.items():
        unit = "largest error, nats" if name.startswith("mask") else "largest error over largest value"
        output.say(output.bold(f"{title}, {rows[0].kind}, {rows[0].dtype} inputs: {unit}"))
        cells: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for way in dict.fromkeys(row.way for row in rows):
            by_length = {row.length: getattr(row, name) for row in rows if row.way == way}
            key = (way.backend, way.accumulate, tuple(_error(by_length[n]) for n in lengths))
            cells.setdefault(key, []).append(way.algorithm)
        table = [[backend, _listed(who), dtype, *found] for (backend, dtype, found), who in cells.items()]
        for line in output.columns(table, header=["backend", "sums", "in", *map(str, lengths)], indent="  "):
            output.say(line)
        output.say()


def _say_terms(terms: Iterable[Terms]) -> None:
    output.say(output.bold("bare sums of 1,024 terms in [0, 2): largest error"))
    rows = [
        [row.algorithm, row.dtype, _error(row.error), "-" if row.source is None else _error(row.source)]
        for row in terms
    ]
    for line in output.columns(rows, header=["sums", "terms and sums in", "here", "source notebook"], indent="  "):
        output.say(line)
    output.say()


def _say_gaps(gaps: Sequence[Gap]) -> None:
    output.say(output.bold("protection of zero less no protection (library sums), float32: all of it is rounding"))
    lengths = list(dict.fromkeys(gap.length for gap in gaps))
    rows: list[list[str]] = []
    for name, title in (("mask", "F, nats"), ("output", "outputs"), ("gradient", "gradients")):
        for algorithm in dict.fromkeys(gap.algorithm for gap in gaps):
            rows.append([title, algorithm, *(_error(getattr(g, name)) for g in gaps if g.algorithm == algorithm)])
    for line in output.columns(rows, header=["", "sums", *map(str, lengths)], indent="  "):
        output.say(line)
    output.say()


def _say_standings(standings: Iterable[Standing]) -> None:
    for found in standings:
        output.say(output.bold(f"{found.dtype} inputs, {found.length} tokens: error over that of the best"))
        alike: dict[tuple[float, str, str], list[str]] = {}
        for (algorithm, dtype), factor in found.factors.items():
            alike.setdefault((float(f"{factor:.2g}"), f"{factor:.2g}", dtype), []).append(algorithm)
        rows = [[text, f"{_listed(who)} sums in {dtype}"] for (_, text, dtype), who in sorted(alike.items())]
        for line in output.columns(rows, indent="  "):
            output.say(line)
        if len(found.factors) == 1:
            output.say("  nothing to compare it with: name more backends\n")
        elif found.use is None:
            output.say("  none of the usual ones is near the best: use float64\n")
        else:
            output.say(f"  a study should use {found.use[0]} sums in {found.use[1]}\n")


def _say_refused(refused: dict[str, str]) -> None:
    """Each cause once, with what it stands against."""
    by_cause: dict[str, list[str]] = {}
    for what, why in refused.items():
        by_cause.setdefault(why, []).append(what)
    for why, what in by_cause.items():
        more = f" and {len(what) - 1} more" if len(what) > 1 else ""
        output.note(f"not run: {what[0]}{more}: {why}")


def _draw(path: Path, rows: Sequence[Row], heads: Sequence[Heads]) -> None:
    from winnow.analysis.error_plot import errors_png
    from winnow.records.files import writing

    title = f"Errors of selective attention against fp64, {rows[0].dtype} inputs"
    with writing(path):
        path.write_bytes(errors_png(rows, title, f"inputs: {_listed([part.name for part in heads])}"))


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def _error(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"

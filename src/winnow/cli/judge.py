"""`winnow judge`: verdicts on numbers that any program wrote into a table."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.study.observations import Observations


class Better(StrEnum):
    """Which direction of the metric is good."""

    LOWER = "lower"
    HIGHER = "higher"


def judge(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS.csv", help="One row per run, below a header.", show_default=False)
    ],
    metric: Annotated[
        str, typer.Option("--metric", metavar="COLUMN", help="The number that decides.", show_default=False)
    ],
    arm: Annotated[str, typer.Option("--arm", metavar="COLUMN", help="What runs are compared by.")] = "arm",
    pair: Annotated[
        str | None,
        typer.Option("--pair", metavar="COLUMN", help="What pairs runs of different arms, say seed. None: unpaired."),
    ] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option("--claim", metavar="TEXT", help='For example "a better-than b smallest 0.01".'),
    ] = None,
    better: Annotated[Better, typer.Option("--better", help="Which direction of the metric is good.")] = Better.LOWER,
    looks: Annotated[
        str | None,
        typer.Option("--looks", metavar="N,N,...", help="Seeds per arm at which you looked. None: this once."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Verdicts on results that any other program produced."""
    from winnow.cli.verdict_text import say_verdicts, unexpectedly_invalid, verdict_json
    from winnow.study.judge import judge_table, read_table, table_observations

    table = read_table(results)
    verdicts = judge_table(table, metric, arm, pair, claim or (), better.value, looks=looks_of(looks))
    if as_json:
        output.say_json({"file": str(results), "verdicts": [verdict_json(verdict) for verdict in verdicts]})
    else:
        observations = table_observations(table, metric, arm, pair, better.value)
        for line in output.columns(_summary(observations), header=["arm", "n", metric, "sd", "diverged"]):
            output.say(line)
        output.say()
        say_verdicts(verdicts)
        output.say()
        if claim:
            output.say("Winnow cannot know when these claims were written: after the results, they are exploratory.")
        else:
            output.say(f"No --claim was given: every arm is compared with {observations.control}, exploratory.")
    if unexpectedly_invalid(verdicts):
        raise typer.Exit(1)


def looks_of(text: str | None) -> tuple[int, ...] | None:
    """Looks as `--looks` gives them. Raises InputError for anything but numbers with commas."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"{text!r} is no list of looks", key="--looks", mend="write 3,5,8")
    return tuple(int(part) for part in parts)


def _summary(observations: Observations) -> list[list[str]]:
    rows: list[list[str]] = []
    for arm, runs in observations.values.items():
        found = [value for value in runs.values() if value is not None]
        mean = math.fsum(found) / len(found) if found else math.nan
        sd = math.sqrt(math.fsum((x - mean) ** 2 for x in found) / (len(found) - 1)) if len(found) > 1 else None
        shown = f"{sd:.3g}" if sd is not None else "-"
        rows.append([arm, str(len(found)), f"{mean:.5g}" if found else "-", shown, str(len(runs) - len(found))])
    return rows

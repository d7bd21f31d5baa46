"""The command `table`: the arms or runs of a study and their numbers, for a paper or a program."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.study.compare import Comparison
    from winnow.study.run_table import Layout


class Format(StrEnum):
    """How a table is written."""

    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"
    HTML = "html"
    JSON = "json"


def _names(name: str, meaning: str, *short: str) -> Any:
    return typer.Option(name, *short, metavar="NAMES", help=f"{meaning} Commas between names.", show_default=False)


Names = list[str] | None


def table(
    file: options.StudyFile,
    form: Annotated[Format, typer.Option("--format", "-f", help="How the table is written.")] = Format.MARKDOWN,
    columns: Annotated[Names, _names("--columns", "These columns alone: arm, axes, metrics, facts, settings.")] = None,
    add: Annotated[Names, _names("--add", "These columns too, such as a logged metric or model.n_layers.")] = None,
    exclude: Annotated[Names, _names("--exclude", "Not these columns.")] = None,
    spread: Annotated[
        Names, _names("--spread", "Min, max and standard deviation (n - 1) behind these columns.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", metavar="NAME=TITLE", help="Another title of a column.", show_default=False),
    ] = None,
    sort: Annotated[Names, _names("--sort", "Order rows by these columns; NAME- is largest first.", "-s")] = None,
    runs: Annotated[bool, typer.Option("--runs", help="One row for each run, not for each arm.")] = False,
    rank: Annotated[
        bool, typer.Option("--rank", help="Best arm first, with letters: arms that share one are not shown to differ.")
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", metavar="NAME", help="Recorded metrics by arm, such as 'inside/*/live'."),
    ] = None,
    settings: options.Changes = None,
    only: options.Only = None,
    store: options.Store = None,
) -> None:
    """The arms of a study and their numbers, for a paper or a program."""
    from winnow.study.compare import compare as compare_study
    from winnow.study.run_table import Layout

    layout = Layout(
        columns=_split(columns),
        add=_split(add),
        exclude=_split(exclude),
        spread=_split(spread),
        rename=dict(_title(text) for text in rename or ()),
        sort=_split(sort),
        runs=runs,
        rank=rank,
    )
    asked = layout != Layout(rename={})
    if metric and asked:
        mend = "leave it out, or add the metric as a column with --add"
        raise InputError("a table of metrics by arm has no other columns", key="--metric", mend=mend)
    source, records, successions = options.open_recorded(file, settings, only, store)
    found = [compare_study(study, records, successions) for study in source.studies]
    texts = [_text(each, form.value, metric, layout if asked else None) for each in found]
    if form is Format.JSON and len(texts) > 1:
        output.say(f"[{', '.join(text.strip() for text in texts)}]")
        return
    output.say("\n\n".join(text.strip("\n") for text in texts))


def _text(comparison: Comparison, form: Any, metric: list[str] | None, layout: Layout | None) -> str:
    from winnow.study.metric_table import metric_table
    from winnow.study.ranking import shown_ranking
    from winnow.study.run_table import run_table
    from winnow.study.table_text import noted
    from winnow.study.tables import table as study_table

    if metric:
        return metric_table(comparison, metric, form)
    if layout is not None:
        found = run_table(comparison, layout)
        for note in found.notes if form == "csv" else ():
            output.note(note)
        return found.text(form)
    order = shown_ranking(comparison)
    said = [] if order is None or form in ("csv", "json") else [order.text]
    return study_table(comparison, form, order) + noted(said, form)


def _split(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for text in texts or () for name in text.split(",") if name.strip())


def _title(text: str) -> tuple[str, str]:
    name, equals, title = text.partition("=")
    if not equals or not name.strip() or not title.strip():
        raise InputError(f"{text!r} is no title", key="--rename", mend="write NAME=TITLE, say parameters=size")
    return name.strip(), title.strip()

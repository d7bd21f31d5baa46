"""Commands that write pages: report, index."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from winnow.cli import options, output
from winnow.errors import InputError, nearest

if TYPE_CHECKING:
    from winnow.analysis.reports import Passage
    from winnow.analysis.sections import Section
    from winnow.notebook.execute import Source
    from winnow.records.store import RunStore
    from winnow.study.succession import Place, Successions

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.html", help="The page; none: beside what it is about.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this panel."""
    for name, command, example in (
        ("report", report, "winnow report examples/quickstart.toml --out quickstart.html"),
        ("index", index, "winnow index notebooks"),
    ):
        app.command(name, rich_help_panel=options.NOTEBOOKS, epilog=f"Example: {example}", no_args_is_help=True)(
            command
        )


def report(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE|STUDY",
            help="A .toml study, a .md notebook, or a study that the store knows.",
            show_default=False,
        ),
    ],
    out: Out = None,
    settings: options.Changes = None,
    only: options.Only = None,
    store: options.StoreNearby = None,
    as_json: options.Json = False,
) -> None:
    """One HTML page that opens anywhere: verdicts, tables, pictures, findings, provenance, commands to reproduce."""
    from winnow.analysis.page import check_target, write_page
    from winnow.analysis.reports import report_html

    file, named = _file_of(what, store)
    if named is not None and only not in (None, named):
        raise InputError(f"{what!r} is one study already", key="--only", mend="leave --only out")
    only = named or only
    source, records, successions = options.open_recorded(file, settings, only, store)
    path = out or _page_path(source, only)
    check_target(path)

    def address(place: Place) -> str:
        if any(study.id == place.study for study in source.studies):
            return f"#study-{place.study}"
        return "" if place.file is None else quote(os.path.relpath(place.file, path.resolve().parent))

    sections, summaries = _sections(source, records, successions, settings or [], address)
    title, about, parts = _arranged(source, sections, whole=only is None and not settings)
    changed = write_page(path, report_html(title, about, parts))
    if as_json:
        output.say_json({"file": str(path), "changed": changed, "studies": summaries})
    else:
        for summary in summaries:
            said = ", ".join(f"{number} {output.word(status)}" for status, number in summary["counts"].items())
            output.say(f"{output.bold(summary['study'])}: {said or 'claims nothing'}")
        output.say(f"page: {path}{'' if changed else ' (unchanged)'}")


def index(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of notebooks and studies.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="The page; none: index.html in DIR.", show_default=False),
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """One HTML page over many notebooks: claims, open questions, and where studies contradict each other."""
    from winnow.analysis.overview import index_html
    from winnow.analysis.page import check_target, write_page
    from winnow.cli.gathering import check_folder, gather, plain_index

    check_folder(folder)
    path = out or folder / "index.html"
    check_target(path)
    found = gather(folder, path, store)
    changed = write_page(path, index_html(found.title, found.entries, found.same))
    if as_json:
        output.say_json({"file": str(path), "changed": changed, **plain_index(found)})
    else:
        for entry in found.entries:
            said = ", ".join(f"{number} {output.word(status)}" for status, number in entry.counts)
            output.say(f"{output.bold(entry.name)}: {'not read' if entry.damage else said or 'claims nothing'}")
        for kind, words in (("contradiction", "contradicts itself"), ("budget", "depends on the budget")):
            for each in found.same:
                if each.kind == kind:
                    first = each.statements[0]
                    where = ", ".join(
                        f"{said.study}/{said.claim} {output.word(said.status)}" for said in each.statements
                    )
                    output.say(f"{words}: {first.one} - {first.other} on {each.metric}: {where}")
        output.say(f"page: {path}{'' if changed else ' (unchanged)'}")
    for entry in found.entries:
        for problem in filter(None, [entry.damage, *(study.problem for study in entry.studies)]):
            output.note(f"error: {problem}")
    if found.damaged:
        raise typer.Exit(1)


def _file_of(what: str, store: Path | None) -> tuple[Path, str | None]:
    """The file that is meant, and the study in it where a study was named."""
    from winnow.study.plan import read_plan, stored_plans

    path = Path(what)
    if path.suffix.lower() in (".toml", ".md", ".markdown") or path.exists() or "/" in what:
        return path, None
    records = options.open_store(store)
    names = stored_plans(records)
    plan = read_plan(records, what) if what in names else None
    if plan is None:
        mend = f"give a file, or {nearest(what, names)}"
        raise InputError(f"there is no study {what!r} in {records.root}", mend=mend)
    if plan.id != what:
        raise InputError(f"{what!r} was made with --set", mend="give its file with the same --set")
    if plan.file is None or not Path(plan.file).is_file():
        where = "no file is noted for it" if plan.file is None else f"{plan.file} is not there any more"
        raise InputError(f"the study {what!r} cannot be read: {where}", mend="give the file that declares it")
    return Path(plan.file), what


def _page_path(source: Source, only: str | None) -> Path:
    """Where a page goes that is given no name: beside its file."""
    stem = source.path.stem
    if source.changed:
        stem = f"{stem}.{source.studies[0].plan_name}" if len(source.studies) == 1 else f"{stem}.changed"
    elif only is not None and source.is_notebook:
        stem = f"{stem}.{only}"
    return source.path.with_name(f"{stem}.html")


def _sections(
    source: Source,
    records: RunStore,
    successions: Successions,
    settings: list[str],
    address: Callable[[Place], str],
) -> tuple[dict[str, Section], list[dict[str, Any]]]:
    """Each study's section, and what `--json` says of it."""
    from winnow.analysis.sections import section, unplanned
    from winnow.study.compare import compare, plain
    from winnow.study.plan import load_plan

    sections: dict[str, Section] = {}
    summaries: list[dict[str, Any]] = []
    for study in source.studies:
        written = source.cells.get(study.id) or source.path.read_text(encoding="utf-8-sig")
        if study.runs == "winnow" and load_plan(records, study) is None:
            found = unplanned(study, written)
            summary: dict[str, Any] = {"study": study.id, "verdicts": [], "findings": [], "missing": [], "stale": []}
        else:
            comparison = compare(study, records, successions)
            found = section(comparison, records, written, settings, address)
            summary = plain(comparison)
        statuses = [claim.status for claim in found.claims]
        counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
        sections[study.id] = found
        summaries.append({**summary, "counts": counts, "runs": len(found.runs)})
    return sections, summaries


def _arranged(source: Source, sections: dict[str, Section], *, whole: bool) -> tuple[str, str, list[Passage | Section]]:
    """Title, the line under it, and the parts of the page; whole: with the prose of the notebook."""
    from winnow.analysis.reports import Passage

    if not (whole and source.is_notebook):
        first = next(iter(sections.values()))
        title = first.question if len(sections) == 1 and first.question else source.path.stem
        return title, source.path.name, list(sections.values())
    from winnow.notebook.prose import Prose, page_of

    assert source.document is not None, "a notebook has one"
    page = page_of(source.document)
    parts: list[Passage | Section] = []
    for part in page.parts:
        if isinstance(part, Prose):
            parts.append(Passage(part.html))
        elif part.study in sections:
            parts.append(sections[part.study])
    about = " · ".join(text for text in (source.path.name, page.date, ", ".join(page.tags)) if text)
    return page.title or source.path.stem, about, parts

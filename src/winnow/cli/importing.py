"""`winnow import`: a notebook of commands as a notebook of studies."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError


class Preset(StrEnum):
    """How large the imported runs are."""

    AS_PUBLISHED = "as-published"
    MINI = "mini"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "import",
        rich_help_panel=options.NOTEBOOKS,
        epilog="Example: winnow import examples/commands.md --preset mini",
        no_args_is_help=True,
    )(import_notebook)


def import_notebook(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A notebook of commands.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="NOTEBOOK", help="A new .md file. None: FILE's name here, with .imported.md"),
    ] = None,
    preset: Annotated[Preset, typer.Option("--preset", help="The source's size, or one for a laptop.")] = (
        Preset.AS_PUBLISHED
    ),
    source: Annotated[
        str, typer.Option("--source", metavar="TEXT", help="What the runs read: a path, a glob, a folder of shards.")
    ] = "stdlib",
    semantics: Annotated[
        list[str] | None,
        typer.Option(
            "--semantics",
            metavar="OPTION=READING[@GROUP]",
            help="What an option means whose meaning has changed.",
            show_default=False,
        ),
    ] = None,
    program: Annotated[
        list[Path] | None,
        typer.Option("--program", metavar="FILE", help="The description of a program.", show_default=False),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Turn a notebook of commands into one of studies: each command a run of an arm, or a reason why not."""
    from winnow.notebook.arms import Choices
    from winnow.notebook.importer import import_page
    from winnow.notebook.pages import Page
    from winnow.notebook.program import known_programs, read_program
    from winnow.notebook.scale import SCALES
    from winnow.notebook.transcript import summary, transcript
    from winnow.records.files import write_atomic

    programs = (*map(read_program, program or ()), *known_programs())
    choices = Choices.parse(semantics or [], programs)
    page = Page.read(file)
    target = Path(f"{file.stem}.imported.md") if out is None else out
    if target.suffix.lower() not in (".md", ".markdown"):
        raise InputError(f"{target} would be no notebook", key="--out", mend="give the name of a .md file")
    if target.exists():
        raise InputError("exists already", file=target, key="--out", mend="give a new file: nothing is written over")
    imported = import_page(page, programs, choices, SCALES[preset.value], source=source, start=target.resolve().parent)
    if not imported.launches and not imported.outline.experiments:
        raise InputError("has no command that trains anything", file=file, mend="give a notebook of commands")
    write_atomic(target, transcript(imported))
    if as_json:
        output.say_json({**imported.plain(), "written": str(target)})
        return
    for launch, refused in imported.refused:
        name = imported.name(launch)
        for item in refused:
            output.say(f"{file}:{item.line}: {f'{name}: ' if name else ''}{item.message}")
    for sentence in summary(imported):
        output.say(sentence)
    if imported.studies and source == "stdlib":
        output.note("note: no --source was given: every run reads the Python standard library, not the source's text")
    output.say(f"wrote {target}{f'; next: winnow check {target}' if imported.studies else ''}")

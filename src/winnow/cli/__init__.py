"""The command line: one command per job, in panels. Heavy imports stay inside the commands.

Exit codes: 0 done; 1 a run failed or has not arrived where it was to be uploaded, a verdict is unexpectedly invalid, or
lint found an error, an index met a damaged file; 2 the input is wrong; 70 Winnow itself is wrong (a traceback says
where); 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from winnow.cli import (
    artifacts,
    bisect,
    export,
    generate,
    graft,
    importing,
    lint,
    masks,
    numerics,
    output,
    prune,
    reporting,
    runs,
    studies,
    upkeep,
    verdicts,
)
from winnow.cli.failures import explain

app = typer.Typer(
    name="winnow",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Attention research on small language models, with verdicts that can be trusted.\n\n"
    "FILE is a .toml study or a .md notebook with study cells. RUN is the start of a digest, or study/arm/seed.",
    epilog="Begin with: winnow check examples/quickstart.toml",
)
studies.register(app)
verdicts.register(app)
runs.register(app)
reporting.register(app)
lint.register(app)
importing.register(app)
prune.register(app)
generate.register(app)
masks.register(app)
numerics.register(app)
graft.register(app)
export.register(app)
upkeep.register(app)
artifacts.register(app)
bisect.register(app)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"winnow {version('winnow-lab')}")
        raise typer.Exit


@app.callback()
def global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Global options; `main` has read --debug already."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit. `--debug` may stand anywhere before `--`."""
    # Looking for plugins of pydantic takes a tenth of a short command's time; nothing here uses any.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in own
    given = [word for word in own if word != "--debug"] + given[len(own) :]
    try:
        code = app(args=given, prog_name="winnow", standalone_mode=False)
        output.flush()
    except BaseException as error:
        code = explain(error, given, debug=debug)
    sys.exit(code if isinstance(code, int) else 0)

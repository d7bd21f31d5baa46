"""`winnow lint`: what is wrong in a notebook, by line, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.notebook.rules import Finding


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "lint",
        rich_help_panel=options.NOTEBOOKS,
        epilog="Example: winnow lint notebooks/001-does-the-gain-last.md --ignore claim-unanswered",
        no_args_is_help=True,
    )(lint)


def lint(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Markdown, of any suffix.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--rule", metavar="RULE", help="Only this rule; may be given again.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="RULE", help="Not this rule; may be given again.")
    ] = None,
    program: Annotated[
        list[Path] | None,
        typer.Option("--program", metavar="FILE.toml", help="Describes a training program that commands start."),
    ] = None,
    list_rules: Annotated[bool, typer.Option("--rules", help="List the rules and stop.")] = False,
    as_json: options.Json = False,
) -> int:
    """Find what is wrong in notebooks: commands, fences, claims, results, links. Nothing is run.

    Ends with 1 where a finding is an error, with 0 where all are warnings and notices.
    """
    from winnow.notebook.lint import choose, lint
    from winnow.notebook.program import known_programs, read_program

    rules = choose(only or [], ignore or [])
    if list_rules:
        if as_json:
            output.say_json([{"rule": r.name, "severity": r.severity, "about": r.about, "mend": r.mend} for r in rules])
        else:
            for line in output.columns([[rule.name, rule.severity, rule.about] for rule in rules]):
                output.say(line)
        return 0
    if not files:
        raise InputError("no file is given", key="FILE", mend="give the path of a Markdown file")
    programs = [*(read_program(path) for path in program or []), *known_programs()]
    found: list[Finding] = []
    for path in dict.fromkeys(files):
        findings = lint(path, rules, programs)
        found += findings
        for item in () if as_json else findings:
            place = f"{item.file}:{item.line}"
            output.say(f"{place}: {output.finding_line(item.severity, item.rule, item.message, None, item.mend)}")
    if as_json:
        output.say_json([asdict(item) for item in found])
    else:
        output.note(_summary(found, len(set(files))))
    return int(any(item.severity == "error" for item in found))


def _summary(found: Sequence[Finding], n_files: int) -> str:
    from winnow.notebook.rules import SEVERITIES

    counts = {severity: sum(item.severity == severity for item in found) for severity in SEVERITIES}
    said = ", ".join(f"{n} {severity}{'s' * (n != 1)}" for severity, n in counts.items() if n)
    return f"{said or 'nothing found'} in {n_files} file{'s' * (n_files != 1)}"

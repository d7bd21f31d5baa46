"""`winnow lint`: every rule over a Markdown file. Needs no torch.

    findings = lint(Path("notebook.md"))

Rules stand in the modules `rules_*`; docs/lint.md lists them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from pathlib import Path

from winnow.errors import InputError, nearest
from winnow.notebook.pages import Page
from winnow.notebook.program import Program, known_programs
from winnow.notebook.rules import RULES, Finding, Found, Reading, Rule, rule

RELATED = 50
"""Related lines that a finding keeps."""

for _part in ("fences", "commands", "sets", "design", "text", "claims", "links", "studies"):
    import_module(f"winnow.notebook.rules_{_part}")


@rule("unreadable", "error", "a file that is no text in UTF-8", "save it as UTF-8, or give another file")
def unreadable(reading: Reading) -> Iterable[Found]:
    """Found before any other rule can look: see `lint`."""
    return ()


def choose(rules: Collection[str], ignored: Collection[str]) -> tuple[Rule, ...]:
    """The rules to apply: those named, or all; without the ignored ones. Raises InputError for an unknown name."""
    for key, names in (("--rule", rules), ("--ignore", ignored)):
        for name in names:
            if name not in RULES:
                raise InputError(f"there is no rule {name!r}", key=key, mend=nearest(name, RULES))
    return tuple(rule for rule in RULES.values() if (not rules or rule.name in rules) and rule.name not in ignored)


def lint(
    path: Path, rules: Sequence[Rule] | None = None, programs: Sequence[Program] | None = None
) -> tuple[Finding, ...]:
    """Everything that some rules find in a file, by line.

    rules: None = all. programs: descriptions of the programs that commands start; None = those that ship.
    Raises InputError where the file cannot be opened; what is no UTF-8 text is a finding.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", file=path, mend="give a Markdown file") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path, mend="give a Markdown file") from None
    return lint_bytes(data, path, rules, programs)


def lint_bytes(
    data: bytes, path: Path, rules: Sequence[Rule] | None = None, programs: Sequence[Program] | None = None
) -> tuple[Finding, ...]:
    """The same for a file's bytes. path: its name, from which relative links start."""
    chosen = tuple(RULES.values()) if rules is None else tuple(rules)
    try:
        page = Page.parse(data, path)
    except InputError as error:
        own = RULES["unreadable"]
        found = Finding(str(path), error.line or 1, own.name, own.severity, error.message, error.mend or own.mend)
        return (found,) if own in chosen else ()
    reading = Reading(page, known_programs() if programs is None else programs)
    findings = {
        Finding(
            str(path), item.line, rule.name, rule.severity, item.message, item.mend or rule.mend, item.related[:RELATED]
        )
        for rule in chosen
        for item in rule.check(reading)
    }
    order = {name: number for number, name in enumerate(RULES)}
    return tuple(sorted(findings, key=lambda item: (item.line, order[item.rule], item.message)))

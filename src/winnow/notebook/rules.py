"""What a lint rule is, what it reads, and the list of all rules.

A rule looks at the structure of a `Reading` and yields what it finds, each with its line. It knows no notebook and no
training program: what an option means is asked of `program`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from winnow.errors import InputError
from winnow.notebook.document import Block, Cell, Document
from winnow.notebook.frontmatter import FrontMatter, read_front_matter
from winnow.notebook.launches import BlockState, Launch, block_states, launches
from winnow.notebook.pages import Page, Prose, Section
from winnow.notebook.program import Program
from winnow.notebook.runs import Run, runs
from winnow.notebook.statements import Result, Statements, statements
from winnow.study.spec import Study, parse_study

Severity = Literal["error", "warning", "notice"]
_WINNOWS = re.compile(rb"<!-- /?winnow|toml[ \t]+study", re.IGNORECASE)
OUTDATED = re.compile(r"\b(?:outdated|out of date|deprecated|obsolete|old|no longer)\b", re.IGNORECASE)
"""Words by which a heading says that its commands are of yesterday."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "notice")
"""error: what is written is not what runs, or cannot be read as meant; warning: a comparison that cannot bear a
conclusion as it stands; notice: worth a look."""


class Found(NamedTuple):
    """What a rule yields."""

    line: int
    message: str
    related: tuple[int, ...] = ()
    """Other lines that it is about; of many, the first ones."""
    mend: str | None = None
    """Instead of the rule's own."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What lint reports."""

    file: str
    line: int
    rule: str
    severity: Severity
    message: str
    mend: str
    related: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.severity}: {self.rule}: {self.message}; {self.mend}"


@dataclass(frozen=True, slots=True)
class ReadCell:
    """A study cell: the study, or why it is none."""

    cell: Cell
    study: Study | None
    error: InputError | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that can be wrong."""

    name: str
    severity: Severity
    about: str
    mend: str
    check: Callable[[Reading], Iterable[Found]]


RULES: dict[str, Rule] = {}
"""Every rule by name, in the order of the modules that hold them."""

Check = Callable[["Reading"], Iterable[Found]]


def rule(name: str, severity: Severity, about: str, mend: str) -> Callable[[Check], Check]:
    """Enter a function into the list of rules."""

    def enter(check: Check) -> Check:
        assert name not in RULES, name
        RULES[name] = Rule(name, severity, about, mend, check)
        return check

    return enter


class Reading:
    """A page with everything that rules ask of it, each part read once."""

    def __init__(self, page: Page, programs: Sequence[Program]) -> None:
        self.page = page
        self.programs = programs

    @cached_property
    def launches(self) -> tuple[Launch, ...]:
        """Every start of a training program."""
        return launches(self.page)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The launches with what is known of their programs, in the same order."""
        return runs(self.launches, self.programs)

    @cached_property
    def groups(self) -> dict[str, list[Run]]:
        """Runs that are compared with each other, by the group they name; those that name none are in none."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.group is not None:
                found.setdefault(run.group, []).append(run)
        return found

    @cached_property
    def states(self) -> tuple[BlockState, ...]:
        """The state of every fence that has one."""
        return block_states(self.page)

    @cached_property
    def statements(self) -> Statements:
        """Hypotheses, results and predictions of the author's: not what Winnow wrote."""
        found = statements(self.page, self.launches)
        return Statements(
            tuple(item for item in found.hypotheses if not self.is_winnows(item.line)),
            tuple(item for item in found.predictions if not self.is_winnows(item.line)),
            tuple((section, item) for section, item in found.results if not self.is_winnows(item.line)),
        )

    @cached_property
    def document(self) -> Document | InputError | None:
        """The page as a notebook of Winnow's, why it is none, or None: nothing on it asks to be one."""
        if not _WINNOWS.search(self.page.data):
            return None
        try:
            return Document(self.page.data, self.page.path)
        except InputError as error:
            return error

    @cached_property
    def front(self) -> FrontMatter | InputError:
        """Title, date and tags, or why they cannot be read."""
        try:
            return read_front_matter(self.page.lines, self.page.path)
        except InputError as error:
            return error

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Winnow's own parts of the page."""
        return self.document.blocks if isinstance(self.document, Document) else ()

    @cached_property
    def cells(self) -> tuple[ReadCell, ...]:
        """Every study cell, read."""
        return tuple(self._cells())

    def _cells(self) -> Iterator[ReadCell]:
        for cell in self.document.cells if isinstance(self.document, Document) else ():
            try:
                yield ReadCell(cell, parse_study(cell.text, self.page.path, cell.first_line), None)
            except InputError as error:
                yield ReadCell(cell, None, error)

    @cached_property
    def studies(self) -> tuple[tuple[Cell, Study], ...]:
        """The cells that are studies."""
        return tuple((item.cell, item.study) for item in self.cells if item.study is not None)

    @cached_property
    def prose(self) -> tuple[tuple[int, Prose], ...]:
        """Sentences that an author wrote, with the index of their section: not what Winnow wrote."""
        return tuple(self._prose())

    def _prose(self) -> Iterator[tuple[int, Prose]]:
        for index, section in enumerate(self.page.sections):
            for item in section.items:
                if isinstance(item, Prose) and item.is_text and not self.is_winnows(item.line):
                    yield index, item

    @cached_property
    def by_section(self) -> dict[int, tuple[list[Run], list[Prose]]]:
        """Runs and an author's prose, by the index of their section."""
        found: dict[int, tuple[list[Run], list[Prose]]] = {n: ([], []) for n in range(len(self.page.sections))}
        for run in self.runs:
            found[run.launch.section][0].append(run)
        for section, item in self.prose:
            found[section][1].append(item)
        return found

    def is_winnows(self, line: int) -> bool:
        """Whether a line stands in a part that Winnow writes."""
        return line in self._winnows

    @cached_property
    def _winnows(self) -> frozenset[int]:
        return frozenset(line for block in self.blocks for line in range(block.opening_line, block.closing_line + 1))

    @cached_property
    def results(self) -> tuple[tuple[int, Result], ...]:
        """Everything that says how something came out: labelled results, and the entries of summaries."""
        found = {result.line: (section, result) for section, result in self.statements.results}
        for item in self.statements.hypotheses:
            for result in (item.result, item.verdict):
                if result is not None:
                    found.setdefault(result.line, (item.section, result))
        return tuple(found[line] for line in sorted(found))

    def numbered(self, result: Result) -> Iterator[tuple[int, str]]:
        """A result's lines with their numbers, as they stand in the file."""
        return enumerate(self.page.lines[result.line - 1 : result.last_line], result.line)

    @cached_property
    def sections_with_results(self) -> frozenset[int]:
        """Indexes of sections that hold one."""
        return frozenset(section for section, _ in self.results)

    def section_of(self, run: Run) -> Section:
        """The section a run stands in."""
        return self.page.sections[run.launch.section]

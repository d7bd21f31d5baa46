"""Any Markdown file as sections of prose and fences, each with its lines: what `lint` and `import` read.

More tolerant than `document`, which refuses what it could not write back: here a fence that is never closed, a
marker without its partner or a heading inside a list is something to report, not to stop at. Blocks are found by a
CommonMark parser with tables; text inside a paragraph stays as written. Lines are counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from winnow.errors import InputError
from winnow.notebook.document import LARGEST, decode
from winnow.notebook.frontmatter import extent

_LINE_END = re.compile(r"\r\n|\n|\r")
_BACKTICKS = re.compile(r"`{3,}|~{3,}")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading, by `#` or underlined."""

    text: str
    level: int
    line: int


@dataclass(frozen=True, slots=True)
class Prose:
    """A block of text. `text` holds its source, newlines as LF, without what marks it as a list item or a quotation."""

    text: str
    line: int
    last_line: int
    kind: str
    """paragraph, item (a paragraph of a list item), quote, table, code (by indentation), html, or rule."""
    depth: int
    """How many lists and quotations it stands in."""

    @property
    def is_text(self) -> bool:
        """Whether somebody wrote sentences here."""
        return self.kind in ("paragraph", "item", "quote")

    @property
    def is_break(self) -> bool:
        """Whether it is a line across the page, in Markdown or HTML."""
        return self.kind == "rule" or (self.kind == "html" and self.text.strip().casefold().startswith("<hr"))

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Its lines with their numbers."""
        return enumerate(self.text.split("\n"), self.line)


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced code block."""

    info: str
    """The info string, blanks at its ends removed."""
    markup: str
    """The backticks or tildes that open it."""
    lines: tuple[str, ...]
    opening_line: int
    last_line: int
    """Line of the closing fence; of the last line inside where there is none."""
    closed: bool
    closing: str
    """The backticks or tildes that close it; empty where none do."""
    depth: int
    """How many lists and quotations it stands in."""

    @property
    def first_line(self) -> int:
        """Line of the first line inside."""
        return self.opening_line + 1


@dataclass(frozen=True, slots=True)
class Section:
    """What stands between one heading and the next; the first one of a file may have no heading."""

    heading: Heading | None
    line: int
    last_line: int
    items: tuple[Prose | Fence, ...]

    @property
    def level(self) -> int:
        """1 to 6; 0 before the first heading."""
        return self.heading.level if self.heading else 0

    @property
    def title(self) -> str:
        """The heading's text, or nothing."""
        return self.heading.text if self.heading else ""


@dataclass(frozen=True)
class Page:
    """A Markdown file, read."""

    path: Path
    data: bytes
    lines: tuple[str, ...]
    sections: tuple[Section, ...]
    front: int
    """How many lines at the top are front matter, both `---` included."""

    @classmethod
    def read(cls, path: Path) -> Page:
        """Raises InputError where the file is missing, too large, or no UTF-8 text."""
        try:
            return cls.parse(path.read_bytes(), path)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=path, mend="give a Markdown file") from None

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Page:
        """Raises InputError, with the line, for what is no UTF-8 text."""
        if len(data) > LARGEST:
            mend = "keep data out of notebooks"
            raise InputError(f"{len(data) / 2**20:.0f} MB is too long for a notebook", file=path, mend=mend)
        text = decode(data.removeprefix(b"\xef\xbb\xbf"), path)
        lines = tuple(_LINE_END.split(text))
        front = extent(lines)
        return cls(path, data, lines, _sections(lines, front), front)

    def fences(self) -> Iterator[Fence]:
        """Every fence, in order."""
        return (item for section in self.sections for item in section.items if isinstance(item, Fence))

    @cached_property
    def n_lines(self) -> int:
        """How many lines an editor shows."""
        return len(self.lines) - 1 if len(self.lines) > 1 and self.lines[-1] == "" else len(self.lines)


def _sections(lines: tuple[str, ...], front: int) -> tuple[Section, ...]:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    # Inline rules would take most of the time and say nothing about blocks.
    parser.core.ruler.enableOnly(["normalize", "block"])
    tokens = parser.parse("\n" * front + "\n".join(lines[front:]))
    sections: list[Section] = []
    heading: Heading | None = None
    started = 1
    items: list[Prose | Fence] = []
    containers: list[str] = []
    table: tuple[int, int] | None = None
    for index, token in enumerate(tokens):
        kind, spans = token.type, token.map
        first, last = (spans[0] + 1, max(spans[1], spans[0] + 1)) if spans else (0, 0)
        if kind in ("bullet_list_open", "ordered_list_open", "blockquote_open"):
            containers.append("quote" if kind.startswith("block") else "item")
        elif kind in ("bullet_list_close", "ordered_list_close", "blockquote_close"):
            containers.pop()
        elif kind == "heading_open" and not containers:
            sections.append(Section(heading, started, first - 1, tuple(items)))
            heading, started, items = Heading(tokens[index + 1].content, int(token.tag[1]), first), first, []
        elif kind == "table_open":
            table = (first, last)
        elif kind == "table_close" and table:
            text = "\n".join(lines[table[0] - 1 : table[1]])
            items.append(Prose(text, *table, "table", len(containers)))
            table = None
        elif kind == "paragraph_open" or (kind == "heading_open" and containers):
            text = tokens[index + 1].content
            where = containers[-1] if containers else "paragraph"
            items.append(Prose(text, first, last, where, len(containers)))
        elif kind == "fence":
            items.append(_fence(token, first, last, lines, len(containers)))
        elif kind in ("code_block", "html_block", "hr"):
            name = {"code_block": "code", "html_block": "html", "hr": "rule"}[kind]
            items.append(Prose(token.content.rstrip("\n"), first, last, name, len(containers)))
    sections.append(Section(heading, started, len(lines), tuple(items)))
    if sections[0].heading is None and not sections[0].items and len(sections) > 1:
        sections.pop(0)
    return tuple(sections)


def _fence(token, first: int, last: int, lines: tuple[str, ...], depth: int) -> Fence:
    inside = token.content.split("\n")
    if inside[-1] == "":
        inside.pop()
    # A closed fence spans its two markers besides what it holds; one that is not closed, only the first.
    closed = last - first == len(inside) + 1
    marks = _BACKTICKS.search(lines[last - 1]) if closed else None
    return Fence(
        token.info.strip(), token.markup, tuple(inside), first, last, closed, marks.group() if marks else "", depth
    )

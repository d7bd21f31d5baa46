"""A Markdown notebook: study cells with their line numbers, result blocks, and a byte-exact write-back.

A study cell is a fenced code block with the info string `toml study` at the left margin. What stands between
`<!-- winnow:ID -->` and `<!-- /winnow -->` is Winnow's; every other byte of the file is the author's and is never
changed: newline style, byte order mark, tabs, a missing final newline.

Fences are found by a CommonMark parser (block rules only), so that cells inside longer fences, quotations, comments
or lists are text, as they are on the page. Lines are counted from 1, as editors do.
"""

from __future__ import annotations

import bisect
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from winnow.errors import InputError
from winnow.notebook.frontmatter import read_front_matter

OPENING = re.compile(r"<!-- winnow:([A-Za-z0-9._-]+) -->[ \t]*\Z")
CLOSING = "<!-- /winnow -->"
SEAL = re.compile(r"<!-- sealed:([0-9a-f]{16}) -->[ \t]*\Z")
_LINE_END = re.compile(r"\r\n|\n|\r")
_STUDY_FENCE = re.compile(r" {0,3}(?:`{3,}|~{3,})[ \t]*toml[ \t]+study\b", re.IGNORECASE)
LARGEST = 64 * 2**20
"""Bytes. A notebook beyond it is refused: it is data, not something a person wrote."""


@dataclass(frozen=True)
class Cell:
    """A study cell: `text` is TOML with newlines as LF, its first line is line `first_line` of the file."""

    text: str
    opening_line: int
    first_line: int
    last_line: int
    """Line of the closing fence."""

    @property
    def study(self) -> str | None:
        """The study's id as written; None where the TOML does not parse or has none (loading it says why)."""
        return self._named("id")

    @property
    def supersedes(self) -> str | None:
        """The id of the study that it replaces, as written; None as for `study`."""
        return self._named("supersedes")

    def _named(self, key: str) -> str | None:
        found = self._table.get(key)
        return found if isinstance(found, str) else None

    @cached_property
    def _table(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.text)
        except tomllib.TOMLDecodeError:
            return {}


@dataclass(frozen=True)
class Block:
    """Winnow's own lines for one study, markers included (`opening_line` to `closing_line`)."""

    study: str
    opening_line: int
    closing_line: int
    content: str
    """What stands between the markers, newlines as LF, without the seal."""
    seal: str | None
    """Digest of the content as Winnow wrote it; None where no seal is found."""

    @property
    def edited(self) -> bool:
        """Whether somebody has changed what Winnow wrote, or put own text between the markers."""
        return self.content.strip() != "" and self.seal != seal(self.content)


def seal(content: str) -> str:
    """16 hexadecimal digits of what a block says; newline style and blank margins do not count."""
    return hashlib.sha256(content.strip().encode()).hexdigest()[:16]


class Document:
    """A parsed notebook. `text` holds it exactly, byte order mark apart."""

    def __init__(self, data: bytes, path: Path) -> None:
        """Raises InputError with the line of what is wrong: text that is not UTF-8, an open fence, lost markers."""
        self.path = path
        self.data = data
        if len(data) > LARGEST:
            raise InputError(
                f"{len(data) / 2**20:.0f} MB is too long for a notebook", file=path, mend="keep data out of notebooks"
            )
        self._bom = b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b""
        self.text = decode(data[len(self._bom) :], path)
        ends = [match.span() for match in _LINE_END.finditer(self.text)]
        starts = [0, *(end for _, end in ends)]
        stops = [*(start for start, _ in ends), len(self.text)]
        self._spans = list(zip(starts, stops, strict=True))
        """Where each line starts and ends in `text`, its newline left out."""
        self._lines = [self.text[start:stop] for start, stop in self._spans]
        self.front = read_front_matter(self._lines, path)
        """Title, date and tags."""
        self.blocks, fences = self._parse()
        self.cells = self._cells(fences)
        self._cell_of = {cell.study: cell for cell in self.cells}
        self._block_of = {block.study: block for block in self.blocks}

    @classmethod
    def read(cls, path: Path) -> Document:
        """Raises InputError where the file is missing or no notebook."""
        try:
            return cls(path.read_bytes(), path)
        except FileNotFoundError:
            raise InputError("no such file", file=path, mend="give the path of a .md notebook") from None
        except IsADirectoryError:
            raise InputError("is a folder", file=path, mend="give the path of a .md notebook") from None

    def cell(self, study: str) -> Cell | None:
        """The cell that declares `study`."""
        return self._cell_of.get(study)

    def block(self, study: str) -> Block | None:
        """The results of `study`, where they have been written."""
        return self._block_of.get(study)

    def with_results(self, results: Mapping[str, str]) -> bytes:
        """The notebook's bytes with the results (Markdown) of some studies put in or replaced.

        A block that is missing is added under its cell. Raises KeyError for a study that has neither.
        """
        splices: list[tuple[int, int, str]] = []
        for study, content in results.items():
            block, cell = self.block(study), self.cell(study)
            if block is not None:
                start, stop = self._spans[block.opening_line - 1][0], self._spans[block.closing_line - 1][1]
                newline = self._newline(block.opening_line)
                splices.append((start, stop, render_block(study, content, newline)))
            elif cell is not None:
                stop = self._spans[cell.last_line - 1][1]
                newline = self._newline(cell.opening_line)
                splices.append((stop, stop, newline * 2 + render_block(study, content, newline)))
            else:
                raise KeyError(study)
        parts: list[str] = []
        position = 0
        for start, stop, inserted in sorted(splices):
            parts += [self.text[position:start], inserted]
            position = stop
        return self._bom + "".join([*parts, self.text[position:]]).encode()

    def _newline(self, line: int) -> str:
        """The newline that ends a line (counted from 1): what is put in follows its surroundings."""
        stop = self._spans[line - 1][1]
        match = _LINE_END.match(self.text, stop)
        return match.group() if match else "\n"

    def _parse(self) -> tuple[tuple[Block, ...], list[_Piece]]:
        """Blocks, and the fences at the left margin."""
        lines = list(self._lines)
        lines[: self.front.last_line] = [""] * self.front.last_line
        blocks: list[Block] = []
        # Where something reaches out of a block (a fence that somebody's edit there has left open, which must not
        # swallow what follows), what stands in the blocks up to there is blanked and the rest parsed again.
        while True:
            pieces = _pieces("\n".join(lines))
            html = [piece.start for piece in pieces if piece.kind == "html_block" and piece.level == 0]
            found, leaks = _up_to_a_leak(self._blocks(html, lines), pieces)
            blocks += found
            for block in found:
                lines[block.opening_line - 1 : block.closing_line] = [""] * len(self._lines_of(block))
            if not leaks:
                break
        inside = {line for block in blocks for line in range(block.opening_line - 1, block.closing_line)}
        pieces = [piece for piece in pieces if piece.start not in inside]
        html = [start for start in html if start not in inside]
        for start in html:
            if lines[start].rstrip() == CLOSING:
                mend = "remove it or restore its <!-- winnow:ID --> line"
                raise InputError(f"{CLOSING} without an opening marker", file=self.path, line=start + 1, mend=mend)
        blocks.sort(key=lambda block: block.opening_line)
        self._refuse_repeated([(block.study, block.opening_line) for block in blocks], "has results in two places")
        fences = [piece for piece in pieces if piece.kind == "fence"]
        for fence in fences:
            if fence.level and _is_study(fence.info):
                raise InputError(
                    "a study cell inside a list or a quotation",
                    file=self.path,
                    line=fence.start + 1,
                    mend="move its fence to the left margin, outside the list or quotation",
                )
        return tuple(blocks), [fence for fence in fences if not fence.level]

    def _lines_of(self, block: Block) -> list[str]:
        return self._lines[block.opening_line - 1 : block.closing_line]

    def _refuse_repeated(self, named: list[tuple[str, int]], what: str) -> None:
        seen: dict[str, int] = {}
        for study, line in named:
            if study in seen:
                raise InputError(
                    f"study {study!r} {what}, first on line {seen[study]}",
                    file=self.path,
                    line=line,
                    mend="keep one of them",
                )
            seen[study] = line

    def _blocks(self, candidates: list[int], lines: list[str]) -> list[Block]:
        """Blocks that open on the candidate lines (from 0)."""
        blocks: list[Block] = []
        for start in candidates:
            match = OPENING.match(lines[start])
            if match is None or (blocks and start < blocks[-1].closing_line):
                continue
            end = start + 1
            while end < len(lines) and lines[end].rstrip() != CLOSING and not OPENING.match(lines[end]):
                end += 1
            if end == len(lines) or OPENING.match(lines[end]):
                raise InputError(
                    f"the results of {match[1]!r} have no end",
                    file=self.path,
                    line=start + 1,
                    mend=f"put a line {CLOSING} where Winnow's part ends",
                )
            body = lines[start + 1 : end]
            seals = [index for index, line in enumerate(body) if SEAL.match(line)]
            found = body.pop(seals[-1])[len("<!-- sealed:") :][:16] if seals else None
            blocks.append(Block(match[1], start + 1, end + 1, "\n".join(body), found))
        return blocks

    def _cells(self, fences: list[_Piece]) -> tuple[Cell, ...]:
        cells: list[Cell] = []
        for _, start, end, _, info, markup in fences:
            closed = end - start >= 2 and re.fullmatch(
                rf" {{0,3}}{re.escape(markup[0])}{{{len(markup)},}}[ \t]*", self._lines[end - 1]
            )
            if not closed:
                self._refuse_open(start, end, info, markup)
                continue
            if _is_study(info):
                text = "".join(line + "\n" for line in self._lines[start + 1 : end - 1])
                cells.append(Cell(text, start + 1, start + 2, end))
        named = [(cell.study, cell.opening_line) for cell in cells if cell.study is not None]
        self._refuse_repeated(named, "is declared twice")
        return tuple(cells)

    def _refuse_open(self, start: int, end: int, info: str, markup: str) -> None:
        """An open fence is harmless prose unless it is a study or hides one."""
        if _is_study(info):
            raise InputError(
                "the study cell is never closed", file=self.path, line=start + 1, mend=f"close it with {markup}"
            )
        for line in range(start + 1, end):
            if _STUDY_FENCE.match(self._lines[line]):
                raise InputError(
                    f"this fence is never closed and hides the study cell on line {line + 1}",
                    file=self.path,
                    line=start + 1,
                    mend=f"close it with {markup}",
                )


def render_block(study: str, content: str, newline: str = "\n") -> str:
    """Markers around content, with its seal; no newline at the end.

    Raises ValueError where the content holds a marker of its own: text from a study must be escaped before.
    """
    body = content.strip()
    if any(OPENING.match(line) or SEAL.match(line) or line.rstrip() == CLOSING for line in body.split("\n")):
        raise ValueError(f"the results of {study!r} contain a line that ends or opens a block")
    lines = [f"<!-- winnow:{study} -->", "", *body.split("\n"), "", f"<!-- sealed:{seal(body)} -->", CLOSING]
    return newline.join(lines)


def _is_study(info: str) -> bool:
    return [word.casefold() for word in info.split()[:2]] == ["toml", "study"]


def decode(data: bytes, path: Path) -> str:
    """UTF-8 text. Raises InputError with the line of the first byte that is none, or NUL, which no text holds."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(_LINE_END.findall(data[: error.start].decode("latin-1"))) + 1
        binary = b"\0" in data[:8192]
        raise InputError(
            "is a binary file, not a notebook" if binary else f"byte 0x{data[error.start]:02x} is not UTF-8",
            file=path,
            line=None if binary else line,
            mend="give a .md notebook or a .toml study" if binary else "save the file as UTF-8",
        ) from None
    if "\0" in text:
        line = len(_LINE_END.findall(text[: text.index("\0")])) + 1
        raise InputError("holds a NUL byte: this is no text", file=path, line=line, mend="give a Markdown file")
    return text


def _up_to_a_leak(blocks: list[Block], pieces: list[_Piece]) -> tuple[list[Block], bool]:
    """The blocks up to the first from which something reaches out, and whether anything does.

    What follows such a block may have been read wrongly.
    """
    openings = [block.opening_line for block in blocks]
    for piece in sorted(pieces, key=lambda piece: piece.start):
        place = bisect.bisect_right(openings, piece.start) - 1
        if place >= 0 and piece.start < blocks[place].closing_line < piece.end:
            return blocks[: place + 1], True
    return blocks, False


class _Piece(NamedTuple):
    """A block of Markdown: lines `start` to `end` (from 0, end left out)."""

    kind: str
    start: int
    end: int
    level: int
    info: str
    markup: str


def _pieces(text: str) -> list[_Piece]:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    # Inline rules would take most of the time and say nothing about cells.
    parser.core.ruler.enableOnly(["normalize", "block"])
    return [
        _Piece(token.type, token.map[0], token.map[1], token.level, token.info, token.markup)
        for token in parser.parse(text)
        if token.map
    ]

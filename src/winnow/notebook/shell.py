"""Shell text as commands, every word with the line it stands on.

Lines are joined as a POSIX shell joins them: a backslash joins only when it is the last character of its line. Where
it is not, the rest of the command is a command of its own, and `Command.torn` says so. Nothing is run or expanded;
what stands in quotes is unquoted by `shlex`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_TOKEN = re.compile(
    r"""(?P<blank>(?:[ \t\r\f\v]|\\\n)+)
    |(?P<comment>\#[^\n]*)
    |(?P<newline>\n)
    |(?P<redirect>\d*(?:&>>|&>|>>|>\||>&|<<<|<<-|<<|<&|<>|<|>))
    |(?P<operator>&&|\|\||\|&|;;|[;&|()])
    |(?P<word>(?:\\(?!\n).|\\\n(?=[^\s]) |'[^']*'|"(?:\\.|[^"\\])*"|`[^`]*`|\$\((?:[^()]|\([^()]*\))*\)
        |[^\s\\'"`;&|()<>])+)
    |(?P<rest>.)""",
    re.VERBOSE | re.DOTALL,
)
_REST = re.compile(r"[^\s;&|()<>]+")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_QUOTED = re.compile(r"""(?P<name>[^"']*)(?P<quote>["'])(?P<inside>.*)(?P=quote)""", re.DOTALL)
_ESCAPED = re.compile(r'\\(["$`\\])')
_OPTION = re.compile(r"--?[A-Za-z]")


class Word(NamedTuple):
    """A word as the program sees it, its line, and how it was written."""

    text: str
    line: int
    raw: str


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command."""

    assignments: tuple[tuple[str, Word], ...]
    """`NAME=value` before the first word."""
    words: tuple[Word, ...]
    redirects: tuple[tuple[str, Word], ...]
    """Operator (`>`, `&>`, ...) and where to."""
    before: str
    """What separates it from the command before it: `&&`, `;`, `|`, a newline, or nothing for the first one."""
    line: int
    last_line: int

    @property
    def name(self) -> str:
        """The first word; nothing for assignments alone."""
        return self.words[0].text if self.words else ""

    @property
    def torn(self) -> bool:
        """Whether it begins with an option: it was meant to go on with the command before it."""
        return bool(self.words) and not self.assignments and bool(_OPTION.match(self.words[0].raw))

    @property
    def stray(self) -> tuple[Word, ...]:
        """Arguments of blanks alone, from a backslash before blanks at a line's end."""
        return tuple(word for word in self.words if word.raw.startswith("\\") and not word.text.strip())

    def inner(self) -> tuple[Command, ...]:
        """Commands in its quoted arguments (`ssh host "cd x && train"`), with their own lines."""
        found: list[Command] = []
        for word in self.words[1:]:
            match = _QUOTED.fullmatch(word.raw)
            if match is None or not re.search(r"\s", match["inside"]) or match["quote"] in match["inside"][-1:]:
                continue
            inside = match["inside"]
            if match["quote"] == '"':
                inside = _ESCAPED.sub(r"\1", inside)
            found += parse(inside.split("\n"), word.line)
        return tuple(found)


def parse(lines: Sequence[str], first_line: int) -> tuple[Command, ...]:
    """The commands in some lines; line numbers start at `first_line`. Never raises."""
    commands: list[Command] = []
    parts = _Parts(first_line)
    before = ""
    for kind, text, line in _tokens("\n".join(lines), first_line):
        if kind in ("newline", "operator"):
            if parts.begun:
                commands.append(parts.command(before, line))
                before = ""
            parts = _Parts(line)
            before = text if kind == "operator" or not before else before
        else:
            parts.add(kind, text, line)
    if parts.begun:
        commands.append(parts.command(before, first_line + len(lines) - 1))
    return tuple(commands)


class _Parts:
    """A command while it is read."""

    def __init__(self, line: int) -> None:
        self.assignments: list[tuple[str, Word]] = []
        self.words: list[Word] = []
        self.redirects: list[tuple[str, Word]] = []
        self.waiting = ""
        """A redirection that has no target yet."""
        self.line = line

    @property
    def begun(self) -> bool:
        return bool(self.words or self.assignments or self.redirects)

    def add(self, kind: str, text: str, line: int) -> None:
        if not self.begun:
            self.line = line
        if kind == "redirect":
            self.waiting = text
            return
        word = Word(_unquoted(text), line, text)
        if self.waiting:
            self.redirects.append((self.waiting, word))
            self.waiting = ""
            return
        match = None if self.words or "=" not in text else _ASSIGNMENT.fullmatch(text)
        if match:
            self.assignments.append((match[1], Word(_unquoted(match[2]), line, match[2])))
        elif self.words or text != "$":  # the prompt of a pasted terminal
            self.words.append(word)

    def command(self, before: str, line: int) -> Command:
        return Command(tuple(self.assignments), tuple(self.words), tuple(self.redirects), before, self.line, line)


def _tokens(text: str, line: int) -> Iterator[tuple[str, str, int]]:
    """Kind, text and line of what counts; the bodies of here-documents are passed over."""
    position = 0
    at_start = True
    ends: list[str] = []
    heredoc = False
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None  # the last alternative takes any character
        kind, found = match.lastgroup or "", match.group()
        if kind == "comment" and not at_start:  # inside a word, # is a character like others
            match = _REST.match(text, position)
            assert match is not None
            kind, found = "word", match.group()
        if kind in ("word", "rest"):
            if heredoc:
                ends.append(_unquoted(found))
            heredoc = False
            yield "word", found, line
        elif kind in ("redirect", "operator", "newline"):
            heredoc = found.lstrip("0123456789") in ("<<", "<<-")
            yield kind, found, line
        line += found.count("\n")
        position = match.end()
        at_start = kind in ("blank", "newline", "operator")
        if kind == "newline":
            while ends:
                end = ends.pop(0)
                while position < len(text):
                    stop = text.find("\n", position)
                    stop = len(text) if stop < 0 else stop
                    body = text[position:stop]
                    line += 1
                    position = min(stop + 1, len(text))
                    if body.lstrip("\t") == end:
                        break


def _unquoted(raw: str) -> str:
    if "\\" not in raw and "'" not in raw and '"' not in raw:
        return raw
    if raw[0] == '"' and raw.find('"', 1) == len(raw) - 1 > 0 and not raw.endswith('\\"'):
        return _ESCAPED.sub(r"\1", raw[1:-1].replace("\\\n", ""))  # long ones are frequent, and shlex takes its time
    try:
        return "".join(shlex.split(raw.replace("\\\n", ""), posix=True)) or (" " if raw.strip() == "\\" else "")
    except ValueError:  # an open quote
        return raw

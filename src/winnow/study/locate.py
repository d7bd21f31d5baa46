"""Where each key of a TOML text stands, so that an error can name a file and a line.

`tomllib` says what a text means; this says where. It scans a text that `tomllib` has already accepted and notes the
line of every key: dotted keys, tables, arrays of tables, inline tables and the elements of arrays (by index).
"""

from __future__ import annotations

import bisect
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from winnow.errors import InputError

KeyPath = tuple[str, ...]
"""A key's full path; the elements of an array count as keys "0", "1", ..."""


@dataclass(frozen=True)
class KeyLines:
    """The line of every key of one TOML text, counted in the file that holds the text."""

    file: str | None = None
    text: str = ""
    first_line: int = 1
    elsewhere: Mapping[KeyPath, Sequence[KeyPath]] = field(default_factory=dict[KeyPath, Sequence[KeyPath]])
    """Where that stands which the text only implies, by the first two parts of its path: the arms of a grid, say."""

    def implying(self, elsewhere: Mapping[KeyPath, Sequence[KeyPath]]) -> KeyLines:
        """With more places of what is only implied."""
        return replace(self, elsewhere={**self.elsewhere, **elsewhere})

    @cached_property
    def lines(self) -> dict[KeyPath, int]:
        """By path; looked for when the first one is asked for, since most texts are right."""
        return _Scanner(self.text.replace("\r\n", "\n"), self.first_line).scan()

    def depth(self, path: Sequence[str]) -> int:
        """How many leading parts of `path` are written in the text, or implied by it."""
        return self._found(path)[0]

    def line(self, path: Sequence[str]) -> int | None:
        """Line of the key, or of the nearest table around it that is written; None where there is none."""
        return self.lines.get(self._found(path)[1])

    def _found(self, path: Sequence[str]) -> tuple[int, KeyPath]:
        """(how many leading parts of the path are known, what is written for them)."""
        found = self._written(path)
        best = (len(found), found)
        for place in self.elsewhere.get(tuple(path[:2]), ()):
            written = self._written((*place, *path[2:]))
            known = 2 + len(written) - len(place)
            if len(written) >= len(place) and known > best[0]:
                best = (known, written)
        return best

    def _written(self, path: Sequence[str]) -> KeyPath:
        """The leading parts of `path` that are written in the text."""
        for length in range(len(path), 0, -1):
            if tuple(path[:length]) in self.lines:
                return tuple(path[:length])
        return ()

    def where(self, path: Sequence[str]) -> str | None:
        """`file:line` of a key, for a finding."""
        line = self.line(path)
        if self.file is None:
            return None if line is None else f"line {line}"
        return self.file if line is None else f"{self.file}:{line}"

    def error(self, message: str, path: Sequence[str], mend: str | None = None) -> InputError:
        """An error at a key."""
        return InputError(message, file=self.file, line=self.line(path), key=dotted(path), mend=mend)


def dotted(path: Sequence[str]) -> str:
    """A key path as one would write it in TOML."""
    return ".".join(part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False) for part in path)


def load_toml(text: str, file: str | Path | None = None, first_line: int = 1) -> tuple[dict[str, Any], KeyLines]:
    """A TOML text's data and the lines of its keys.

    first_line: where in `file` the text begins (a study may stand in the middle of a notebook).
    Raises InputError with the line of a syntax error or of a key given twice.
    """
    name = None if file is None else str(file)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = re.search(r" \(at line (\d+), column \d+\)$", message)
        message = re.sub(r" \(at [^()]*\)$", "", message)
        line = int(place.group(1)) if place else text.count("\n") + 1
        raise InputError(
            f"not valid TOML: {message[:1].lower()}{message[1:]}",
            file=name,
            line=first_line + line - 1,
            mend="see toml.io for the syntax",
        ) from None
    return data, KeyLines(name, text, first_line)


_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BASIC: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL: Final = re.compile(r"'[^'\n]*'")
# A multi-line string may end in up to two quotes of its own before the closing three.
_LONG_BASIC: Final = re.compile(r'"""(?:[^\\]|\\[\s\S])*?"{3,5}')
_LONG_LITERAL: Final = re.compile(r"'''[\s\S]*?'{3,5}")


class _Scanner:
    """One pass over a TOML text that is known to be valid."""

    def __init__(self, text: str, first_line: int) -> None:
        self.text = text
        self.at = 0
        self.first_line = first_line
        self.breaks = [match.start() for match in re.finditer("\n", text)]
        self.found: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        arrays: dict[KeyPath, int] = {}
        while self._blank():
            if self._next() == "[":
                double = self.text.startswith("[[", self.at)
                self.at += 2 if double else 1
                table = self._key((), arrays)
                if double:
                    arrays[table] = arrays.get(table, -1) + 1
                    table = (*table, str(arrays[table]))
                    self._note(table)
                self._blank()
                self.at += 2 if double else 1
            else:
                self._pair(table)
        return self.found

    def _pair(self, table: KeyPath) -> None:
        path = self._key(table, {})
        self._blank()
        self.at += 1  # the equals sign
        self._value(path)

    def _key(self, table: KeyPath, arrays: dict[KeyPath, int]) -> KeyPath:
        path = table
        while True:
            self._blank()
            path = (*path, self._part())
            self._note(path)
            self._blank()
            if self._next() != ".":
                return path
            self.at += 1
            if path in arrays:  # [a.b] under [[a]] belongs to the latest a
                path = (*path, str(arrays[path]))

    def _part(self) -> str:
        for pattern in (_BARE, _BASIC, _LITERAL):
            match = pattern.match(self.text, self.at)
            if match:
                self.at = match.end()
                written = match.group()
                return written if pattern is _BARE else str(tomllib.loads(f"key = {written}")["key"])
        raise AssertionError(f"a key was expected at offset {self.at}")

    def _value(self, path: KeyPath) -> None:
        self._blank()
        if self._next() == "[":
            self._array(path)
        elif self._next() == "{":
            self._inline(path)
        else:
            self._scalar()

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while self._blank() and self._next() != "]":
            element = (*path, str(index))
            self._note(element)
            self._value(element)
            index += 1
            self._blank()
            self.at += self._next() == ","
        self.at += 1

    def _inline(self, path: KeyPath) -> None:
        self.at += 1
        while self._blank() and self._next() != "}":
            self._pair(path)
            self._blank()
            self.at += self._next() == ","
        self.at += 1

    def _scalar(self) -> None:
        patterns = {'"""': _LONG_BASIC, "'''": _LONG_LITERAL, '"': _BASIC, "'": _LITERAL, "": _SCALAR}
        opening = next(opening for opening in patterns if self.text.startswith(opening, self.at))
        match = patterns[opening].match(self.text, self.at)
        assert match is not None, "tomllib accepted this value"
        self.at = match.end()

    def _note(self, path: KeyPath) -> None:
        self.found.setdefault(path, bisect.bisect_left(self.breaks, self.at) + self.first_line)

    def _blank(self) -> bool:
        """Skip white space and comments; is anything left?"""
        match = _BLANK.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.at < len(self.text)

    def _next(self) -> str:
        return self.text[self.at : self.at + 1]

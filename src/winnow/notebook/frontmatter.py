"""Front matter: title, date and tags of a notebook, as YAML between `---` lines at its very top (GitHub shows a table).

    ---
    title: Does the early gain last?
    date: 2026-11-22
    tags: [selective, budget]
    ---

Other programs (Jekyll, Quarto, Obsidian) keep keys of their own there: those are left alone. A key that looks like one
of ours misspelt is remarked on. As for Pandoc, a `---` that a blank line follows is a horizontal rule.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from winnow.errors import InputError

KEYS: Final = ("title", "date", "tags")
LARGEST: Final = 64 * 2**10
"""Characters. More than this at the top of a notebook is no front matter."""
_RULE = re.compile(r"---[ \t]*")
_KEY = re.compile(r"[A-Za-z_][\w-]*[ \t]*:(?:[ \t]|\Z)")


class Note(NamedTuple):
    """What the author may not have meant."""

    line: int
    message: str
    mend: str


@dataclass(frozen=True)
class FrontMatter:
    """What a notebook says of itself."""

    title: str | None = None
    date: str | None = None
    """ISO 8601: a day, or a day and a time."""
    tags: tuple[str, ...] = ()
    last_line: int = 0
    """Line of the closing `---`, from 1; 0 = the notebook has no front matter."""
    notes: tuple[Note, ...] = ()


def extent(lines: Sequence[str]) -> int:
    """How many lines of a file, newlines left out, are front matter, both `---` included; 0 = it has none."""
    if not _opened(lines):
        return 0
    return next((number for number, line in enumerate(lines[1:], 2) if _RULE.fullmatch(line)), 0)


def _opened(lines: Sequence[str]) -> bool:
    return len(lines) > 1 and _RULE.fullmatch(lines[0]) is not None and lines[1].strip() != ""


def read_front_matter(lines: Sequence[str], path: Path) -> FrontMatter:
    """The front matter of a file, from its lines without newlines.

    Raises InputError with the line: YAML that cannot be read, a key given twice, a title, date or tags of another type.
    """
    last = extent(lines)
    if not last:
        if _opened(lines) and _KEY.match(lines[1]):
            raise InputError("the front matter is never closed", file=path, line=1, mend="close it with a line ---")
        return FrontMatter()  # a horizontal rule and prose
    text = "\n".join(lines[1 : last - 1])
    if len(text) > LARGEST:
        raise InputError(
            "the front matter is too long", file=path, line=1, mend="is its closing --- where you mean it?"
        )
    return _Reader(path, last).read(text)


class _Reader:
    """One front matter; YAML's line 0 is line 2 of the file."""

    def __init__(self, path: Path, last_line: int) -> None:
        self.path, self.last_line = path, last_line

    def read(self, text: str) -> FrontMatter:
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = None if mark is None else mark.line + 2
            raise InputError(
                f"the front matter is not valid YAML: {error.problem or error.context}",
                file=self.path,
                line=line,
                mend="put text with a colon or quotes in quotes; see yaml.org for the syntax",
            ) from None
        except (yaml.YAMLError, RecursionError) as error:
            message = str(error).splitlines()[0] if str(error) else "nested too deeply"
            raise InputError(f"the front matter is not valid YAML: {message}", file=self.path, line=1) from None
        if node is None:
            return FrontMatter(last_line=self.last_line)
        if not isinstance(node, yaml.MappingNode):
            mend = "write key: value lines, or leave a blank line after a --- that is meant as a rule"
            raise self._error("the front matter is no list of keys and values", node, mend)
        found = self._pairs(node)
        return FrontMatter(
            title=None if (title := found.get("title")) is None else self._text(title, "title"),
            date=None if (date := found.get("date")) is None else self._date(date),
            tags=() if (tags := found.get("tags")) is None else self._tags(tags),
            last_line=self.last_line,
            notes=tuple(self._notes(node, found)),
        )

    def _pairs(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if name and name in found:
                raise self._error(f"{name!r} is given twice", key, "keep one of them", key=name)
            found[name] = value
        return found

    def _notes(self, node: yaml.MappingNode, found: dict[str, yaml.Node]) -> list[Note]:
        notes: list[Note] = []
        for key, _ in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            near = difflib.get_close_matches(name.casefold(), KEYS, n=1, cutoff=0.8)
            if name not in KEYS and near and near[0] not in found:
                notes.append(Note(key.start_mark.line + 2, f"{name!r} is ignored", f"did you mean {near[0]!r}?"))
        return notes

    def _text(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(f"{key} should be text", node, "put it on one line, in quotes", key=key)
        if node.tag != "tag:yaml.org,2002:str":
            mend = f'put it in quotes: "{node.value}"' if node.value else f"give it a value, or leave {key} out"
            raise self._error(f"{node.value!r} is not text for YAML", node, mend, key=key)
        if not node.value.strip():
            raise self._error(f"{key} is empty", node, f"give it a value, or leave {key} out", key=key)
        return " ".join(node.value.split())

    def _date(self, node: yaml.Node) -> str:
        try:
            if not isinstance(node, yaml.ScalarNode):
                raise ValueError
            found: Any = yaml.SafeLoader("").construct_object(node)
            if isinstance(found, str):
                found = (
                    datetime.datetime.fromisoformat(found) if len(found) > 10 else datetime.date.fromisoformat(found)
                )
            if not isinstance(found, datetime.date):
                raise ValueError
            return found.isoformat()
        except (ValueError, yaml.YAMLError):
            shown = repr(node.value) if isinstance(node, yaml.ScalarNode) else "this"
            raise self._error(f"{shown} is not a date", node, "write it as 2026-11-22", key="date") from None

    def _tags(self, node: yaml.Node) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error("tags should be a list", node, "write tags: [first, second]", key="tags")
        return tuple(dict.fromkeys(self._text(item, "tags") for item in node.value))

    def _error(self, message: str, node: yaml.Node, mend: str, key: str | None = None) -> InputError:
        return InputError(message, file=self.path, line=node.start_mark.line + 2, key=key, mend=mend)

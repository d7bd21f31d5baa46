"""Study cells as text: the TOML of a study whose arms are given in full.

What all arms share becomes the base, so that an arm says only what it changes. A table whose `kind` is not the same
everywhere is kept whole in the arms, because a table with a kind replaces the one it would stand over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

LONGEST_LINE = 110
"""Characters of a line of a cell; a longer one has to be scrolled where the page is read."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def shared(tables: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what all tables have in common, what each has beyond it).

    `winnow.study.overlay.merge` of the two gives each table back.
    """
    base: dict[str, Any] = {}
    rests: list[dict[str, Any]] = [{} for _ in tables]
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [table.get(key) for table in tables]
        if all(value is not None and value == values[0] for value in values):
            base[key] = values[0]
        elif _laid_over(values):
            inner, beyond = shared([cast("Mapping[str, Any]", value) for value in values])
            if inner:
                base[key] = inner
            for rest, more in zip(rests, beyond, strict=True):
                if more:
                    rest[key] = more
        else:
            for rest, value in zip(rests, values, strict=True):
                if value is not None:
                    rest[key] = value
    return base, rests


def _laid_over(values: Sequence[Any]) -> bool:
    """Whether the values are tables of one kind, so that they can have a common base; an empty one has nothing."""
    if not all(isinstance(value, Mapping) and value for value in values):
        return False
    tables = cast("Sequence[Mapping[str, Any]]", values)
    return all(table.get("kind") == tables[0].get("kind") for table in tables)


def toml(value: Any) -> str:
    """A value in TOML on one line; a table that holds one entry is written with dots."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        entries = [entry(key, item) for key, item in cast("Mapping[str, Any]", value).items()]
        return f"{{ {', '.join(entries)} }}" if entries else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(item) for item in cast('Sequence[Any]', value))}]"
    return _text(str(value))


def entry(key: str, value: Any, *before: str) -> str:
    """`key = value`; `before` are the keys of the tables around it."""
    path = [*before, key]
    while isinstance(value, Mapping) and len(cast("Mapping[str, Any]", value)) == 1:
        ((inner, value),) = cast("Mapping[str, Any]", value).items()
        path.append(inner)
    return f"{'.'.join(map(_key, path))} = {toml(value)}"


def entries(key: str, value: Any, *before: str) -> list[str]:
    """`key = value` on one line if it fits, else an entry of a table, or an item of a list, on each."""
    line = entry(key, value, *before)
    if len(line) <= LONGEST_LINE:
        return [line]
    if isinstance(value, Mapping) and value:
        inner = cast("Mapping[str, Any]", value)
        return [text for name, item in inner.items() for text in entries(name, item, *before, key)]
    if isinstance(value, list) and value:
        items = cast("list[Any]", value)
        return [f"{'.'.join(map(_key, [*before, key]))} = [", *(f"  {toml(item)}," for item in items), "]"]
    return [line]


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

"""The axes of a study's grid: settings with the values that they take, and labels with what they change.

Every list under a part of a run is an axis; any other key is an axis of one's own. Needs no torch.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from winnow.errors import nearest
from winnow.study.locate import KeyLines, KeyPath, dotted

LONGEST_LABEL: Final = 40
NOT_AXES: Final = ("filter", "changes")
"""Keys of a grid that are no axes."""
TAKEN: Final = ("arm", "seed", "run", "status", "n", "lost", "letter")
"""What tables call the columns of a row itself: no axis is called so."""
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS: Final = ("and", "or", "not", "in", "is", "if", "else", "for", "lambda", "len", "true", "false")
_LABEL = re.compile(r"[A-Za-z0-9._-]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")
_KINDS: Final = ("kind", "preset")
_LABEL_IT: Final = "give it a label: an axis of your own, say grid.attn.LABEL = { ... }"


@dataclass(frozen=True)
class Axis:
    """One thing that a grid varies."""

    name: str
    """How the filter, claims and tables call it."""
    path: KeyPath
    """Where it is written."""
    labels: tuple[str, ...]
    """Of its values, as they stand in arms' names."""
    values: tuple[Any, ...]
    """What the filter compares: the setting's value; of an axis of one's own the label."""
    tables: tuple[Mapping[str, Any], ...]
    """What each value changes in the base."""

    @property
    def plain(self) -> bool:
        """Whether its values are texts, numbers and truths."""
        return not any(isinstance(value, list | tuple | dict) for value in self.values)

    @property
    def sections(self) -> frozenset[str]:
        """The parts of a run that it touches, such as `model`."""
        return frozenset(section for table in self.tables for section in table)


def read_axes(table: Mapping[str, Any], lines: KeyLines, sections: Sequence[str] | None) -> tuple[Axis, ...]:
    """The axes in the order in which they are written. Raises InputError with the line; see `grid.read_grid`."""
    settings: list[tuple[KeyPath, list[Any]]] = []
    found: list[Axis | KeyPath] = []
    for key, value in table.items():
        if key in NOT_AXES:
            continue
        if (key in sections) if sections is not None else isinstance(value, list):
            for path, values in _settings(value, (key,), lines):
                settings.append((path, values))
                found.append(path)
        else:
            found.append(_own_axis(key, value, lines, sections))
    own = [axis.name for axis in found if isinstance(axis, Axis)]
    names = _short_names([path for path, _ in settings], [*own, *TAKEN])
    by_path = {path: _setting_axis(names[path], path, values, lines) for path, values in settings}
    return tuple(axis if isinstance(axis, Axis) else by_path[axis] for axis in found)


def _settings(value: Any, path: KeyPath, lines: KeyLines) -> Iterator[tuple[KeyPath, list[Any]]]:
    if isinstance(value, dict) and value:
        for key, inner in cast("dict[str, Any]", value).items():
            yield from _settings(inner, (*path, key), lines)
        return
    if not isinstance(value, list):
        mend = f"a grid varies it: give a list of values, or set base.{dotted(path)}"
        raise lines.error(f"{value!r} is one value", ("grid", *path), mend)
    values = cast("list[Any]", value)
    if not values:
        raise lines.error("an axis without values leaves no arm", ("grid", *path), "give at least one value")
    yield path, values


def _setting_axis(name: str, path: KeyPath, values: list[Any], lines: KeyLines) -> Axis:
    place = ("grid", *path)
    labels: list[str] = []
    for index, value in enumerate(values):
        label = _slug(value, name)
        if not label or len(label) > LONGEST_LABEL:
            raise lines.error(f"{value!r} makes no short name", (*place, str(index)), _LABEL_IT)
        if label in labels:
            before = values[labels.index(label)]
            same = before == value and isinstance(before, bool) == isinstance(value, bool)
            message = f"{value!r} is given twice" if same else f"{before!r} and {value!r} are both called {label!r}"
            mend = "drop one" if same else _LABEL_IT
            raise lines.error(message, (*place, str(index)), mend)
        labels.append(label)
    tables: list[Mapping[str, Any]] = []
    for value in values:
        inner: Any = value
        for part in reversed(path):
            inner = {part: inner}
        tables.append(inner)
    return Axis(name, place, tuple(labels), tuple(values), tuple(tables))


def _own_axis(name: str, value: Any, lines: KeyLines, sections: Sequence[str] | None) -> Axis:
    path = ("grid", name)
    if _IDENTIFIER.fullmatch(name) is None or name in _WORDS or name in TAKEN:
        mend = f"use letters, digits and '_', as for a variable, and none of {', '.join(TAKEN)}"
        raise lines.error(f"{name!r} cannot name an axis", path, mend)
    if not isinstance(value, dict):
        mend = nearest(name, [*(sections or ()), *NOT_AXES])
        raise lines.error(f"unknown key {name!r}", path, f"{mend}; an axis of your own is a table of labels")
    tables = cast("dict[str, Any]", value)
    if not tables:
        raise lines.error("an axis without values leaves no arm", path, "give at least one label")
    for label, settings in tables.items():
        if _LABEL.fullmatch(label) is None:
            raise lines.error(f"label {label!r} is not permitted", (*path, label), "use letters, digits, '.', '_', '-'")
        if not isinstance(settings, dict):
            mend = f"say {name}.{label} = {{ model.d_model = 64 }}: a label says what it changes in the base"
            hint = "" if sections is None else f"; {nearest(name, sections)}"
            raise lines.error(f"{settings!r} should be a table", (*path, label), mend + hint)
    labels = tuple(tables)
    return Axis(name, path, labels, labels, tuple(tables.values()))


def _short_names(paths: Sequence[KeyPath], taken: Sequence[str]) -> dict[KeyPath, str]:
    """The end of each path that tells it from the others; `model.attention.kind` is `attention`."""
    cores = {path: path[:-1] if len(path) > 1 and path[-1] in _KINDS else path for path in paths}
    found: dict[KeyPath, str] = {}
    for path, core in cores.items():
        others = [other for key, other in cores.items() if key != path]
        for length in range(1, len(core) + 1):
            name = ".".join(core[-length:])
            if name not in taken and all(".".join(other[-length:]) != name for other in others):
                break
        else:
            name = ".".join(path)
        found[path] = name
    return found


def _slug(value: Any, name: str) -> str:
    """A value as a part of an arm's name: texts by themselves, others behind the name of the axis."""
    if isinstance(value, str):
        return _UNSAFE.sub("-", value).strip("-.")
    if isinstance(value, dict):
        return "-".join(_slug(item, key) for key, item in cast("dict[str, Any]", value).items())
    return f"{name.rpartition('.')[2]}-{_plain(value)}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "-".join(_plain(item) for item in cast("Sequence[Any]", value)) or "none"
    if isinstance(value, dict):
        return _slug(value, "")
    return _UNSAFE.sub("-", str(value)) if isinstance(value, str) else repr(value).replace("+", "")


def leaves(table: Mapping[str, Any], path: KeyPath = ()) -> Iterator[KeyPath]:
    """The paths of the settings in a table."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(cast("Mapping[str, Any]", value), (*path, key))
        elif not isinstance(value, Mapping):
            yield (*path, key)


def check_apart(axes: Sequence[Axis], lines: KeyLines) -> None:
    """Two axes that set one thing: whichever came last would make the other one dead."""
    sets = [{leaf for table in axis.tables for leaf in leaves(table)} for axis in axes]
    for (axis, own), (other, theirs) in itertools.combinations(zip(axes, sets, strict=True), 2):
        for one in sorted(own):
            for two in theirs:
                shorter = min(len(one), len(two))
                if one[:shorter] == two[:shorter]:
                    message = f"axes {axis.name} and {other.name} both set {dotted(one[:shorter])}"
                    raise lines.error(message, other.path, "one of them would have no effect: make them one axis")


def union(axes: Sequence[Axis], chosen: Sequence[int]) -> dict[str, Any]:
    """What the chosen values change together; no two axes set the same thing."""
    found: dict[str, Any] = {}
    for axis, place in zip(axes, chosen, strict=True):
        found = _joined(found, axis.tables[place])
    return found


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for key, value in other.items():
        below = found.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            found[key] = _joined(cast("Mapping[str, Any]", below), cast("Mapping[str, Any]", value))
        else:
            found[key] = value
    return found

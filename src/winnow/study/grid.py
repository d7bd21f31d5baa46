"""A study's grid: axes of settings, their product, and the arms that a filter leaves. Needs no torch.

    [grid]
    train.lr = [1e-3, 3e-3]                          an axis: a setting, and the list of its values
    attn.T = { model.attention = { kind = "linear" } }   an axis of one's own: labels, each with what it changes
    attn.h8 = { model.attention = { kind = "softmax", n_heads = 8 } }
    filter = "attn != 'T' or lr < 0.002"             which combinations stay
    changes.parameters = ["attn"]                    what an axis must change: a fact of the arms

A key of `grid` that is a part of a run (`task`, `model`, `train` ...) leads to settings, and there every list holds
values, so that a setting whose value is itself a list is a list of lists; any other key is an axis of one's own.
An arm's name is the labels of the axes that have several values, joined by `_`. Format in docs/studies.md.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from winnow.errors import InputError, nearest
from winnow.records.files import safe_name
from winnow.study.axes import Axis, check_apart, leaves, read_axes, union
from winnow.study.expressions import Expression
from winnow.study.locate import KeyLines, KeyPath, dotted
from winnow.study.overlay import OFF, merge

MOST_COMBINATIONS: Final = 4096
"""A larger product is a slip."""
_PLACEHOLDER = re.compile(r"\{([^{}\s]*)\}")


@dataclass(frozen=True)
class Grid:
    """The axes, and what came of their product."""

    axes: tuple[Axis, ...]
    points: Mapping[str, tuple[str, ...]]
    """Labels, one of each axis, by arm: of the combinations that stay."""
    dropped: tuple[str, ...] = ()
    """Names of the combinations that the filter drops."""
    filter: str | None = None
    changes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Axes that must change a fact of the arms, by fact."""
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]], repr=False)
    """What each arm changes in the base."""

    def axis(self, name: str) -> Axis | None:
        """The axis of this name."""
        return next((axis for axis in self.axes if axis.name == name), None)

    def label(self, arm: str, axis: str) -> str | None:
        """Where an arm stands on an axis; None for an arm that is not the grid's."""
        place = next(place for place, known in enumerate(self.axes) if known.name == axis)
        return self.points[arm][place] if arm in self.points else None

    def value(self, arm: str, axis: str) -> str | float | None:
        """The value of an axis in an arm, as a table shows it: its label where it is no text and no number."""
        known, label = self.axis(axis), self.label(arm, axis)
        if known is None or label is None:
            return None
        value = known.values[known.labels.index(label)]
        return value if isinstance(value, str | int | float) and not isinstance(value, bool) else label

    def lines(self, axis: str) -> Iterator[tuple[str, ...]]:
        """Arms that differ in this axis alone, where there are at least two."""
        place = next(place for place, known in enumerate(self.axes) if known.name == axis)
        found: dict[tuple[str, ...], list[str]] = {}
        for arm, labels in self.points.items():
            found.setdefault((*labels[:place], *labels[place + 1 :]), []).append(arm)
        yield from (tuple(arms) for arms in found.values() if len(arms) > 1)

    def sizes(self) -> str:
        """For example "4 attn x 4 qkv = 16 combinations"."""
        product = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in self.axes)
        size = math.prod(len(axis.labels) for axis in self.axes)
        return f"{product} = {size} combination{'' if size == 1 else 's'}"

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "axes": {axis.name: list(axis.labels) for axis in self.axes},
            "arms": {arm: list(labels) for arm, labels in self.points.items()},
            "dropped": list(self.dropped),
        }

    def places(self) -> dict[KeyPath, tuple[KeyPath, ...]]:
        """Where the settings of each arm are written."""
        found: dict[KeyPath, tuple[KeyPath, ...]] = {}
        for arm, labels in self.points.items():
            own = [(*axis.path, label) for axis, label in zip(self.axes, labels, strict=True) if len(axis.path) == 2]
            found["arms", arm] = (("grid",), *own)
        return found


def read_grid(
    table: Mapping[str, Any], base: Mapping[str, Any], lines: KeyLines, sections: Sequence[str] | None
) -> Grid:
    """The grid of a study. Raises InputError with the line.

    sections: what leads to settings; None: runs of other programs, whose settings are lists at the top.
    """
    axes = read_axes(table, lines, sections)
    if not axes:
        raise lines.error("has no axis", ("grid",), "give a list of values, say grid.train.lr = [1e-3, 3e-3]")
    check_apart(axes, lines)
    size = math.prod(len(axis.labels) for axis in axes)
    if size > MOST_COMBINATIONS:
        raise lines.error(f"{size:,} combinations", ("grid",), f"at most {MOST_COMBINATIONS:,} make a study")
    varying = [place for place, axis in enumerate(axes) if len(axis.labels) > 1] or list(range(len(axes)))
    combinations: dict[str, tuple[int, ...]] = {}
    for chosen in itertools.product(*(range(len(axis.labels)) for axis in axes)):
        name = "_".join(axes[place].labels[chosen[place]] for place in varying)
        if name in combinations:
            mend = "give the values labels: an axis of your own, say grid.attn.LABEL = { ... }"
            raise lines.error(f"two combinations are both called {name!r}", ("grid",), mend)
        try:
            combinations[safe_name(name, what="arm")] = chosen
        except InputError as error:
            raise lines.error(error.message, ("grid",), "give the values shorter labels") from None
    tables = {name: union(axes, chosen) for name, chosen in combinations.items()}
    text = table.get("filter")
    kept = list(combinations)
    if text is not None:
        if not isinstance(text, str):
            raise lines.error("should be a text", ("grid", "filter"), 'say filter = "lr < 0.01"')
        kept = _filtered(text, axes, combinations, tables, base, lines)
    points = {
        name: tuple(axis.labels[place] for axis, place in zip(axes, combinations[name], strict=True)) for name in kept
    }
    return Grid(
        axes=axes,
        points=points,
        dropped=tuple(name for name in combinations if name not in points),
        filter=text,
        changes=_changes(table.get("changes", {}), axes, lines),
        arms={name: tables[name] for name in kept},
    )


def expand_claims(
    claims: Mapping[str, Any], grid: Grid, arms: Iterable[str], lines: KeyLines
) -> tuple[dict[str, Any], dict[KeyPath, tuple[KeyPath, ...]]]:
    """Claims with `{axis}` in name and sentence, once for each label; and where each is written.

    One that names a combination which the filter dropped is left out. Raises InputError with the line.
    """
    known, dropped = set(arms), set(grid.dropped)
    found: dict[str, Any] = {}
    places: dict[KeyPath, tuple[KeyPath, ...]] = {}
    for name, written in claims.items():
        path = ("claims", name)
        sentence = cast("dict[str, Any]", written).get("claim") if isinstance(written, dict) else written
        used = tuple(dict.fromkeys(_PLACEHOLDER.findall(sentence))) if isinstance(sentence, str) else ()
        if set(_PLACEHOLDER.findall(name)) != set(used):
            mend = 'a claim for each value has the axis in its name too, say "best-{attn}"'
            raise lines.error("name and sentence hold different axes in braces", path, mend)
        if not used:
            found[name] = written
            continue
        axes: list[Axis] = []
        for axis in used:
            known_axis = grid.axis(axis)
            if known_axis is None:
                raise lines.error(f"no axis is called {axis!r}", path, nearest(axis, (each.name for each in grid.axes)))
            axes.append(known_axis)
        before = len(found)
        for labels in itertools.product(*(axis.labels for axis in axes)):
            filled = dict(zip(used, labels, strict=True))
            text = _fill(cast(str, sentence), filled)
            if any(word in dropped and word not in known for word in re.findall(r"[^\s,]+", text)):
                continue
            own = _fill(name, filled)
            if own in found or own in claims:
                raise lines.error(f"two claims are called {own!r}", path, "rename one")
            found[own] = {**written, "claim": text} if isinstance(written, dict) else text
            places["claims", own] = (path,)
        if len(found) == before:
            raise lines.error("the filter drops every combination that the claim names", path, "drop the claim")
    return found, places


def _fill(text: str, labels: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: labels[found[1]], text)


def _filtered(
    text: str,
    axes: Sequence[Axis],
    combinations: Mapping[str, tuple[int, ...]],
    tables: Mapping[str, Mapping[str, Any]],
    base: Mapping[str, Any],
    lines: KeyLines,
) -> list[str]:
    """Names of the combinations for which the filter holds."""
    by_name = {axis.name: (place, axis) for place, axis in enumerate(axes)}
    merged = {name: merge(base, settings) for name, settings in tables.items()}
    kept: list[str] = []
    try:
        condition = Expression(text)
        for name, place in condition.names():
            if name not in by_name and all(_setting(table, name) is OFF for table in merged.values()):
                known = [*by_name, *(dotted(leaf) for leaf in leaves(next(iter(merged.values()))))]
                condition.fail_at(place, f"no axis is called {name!r} and no arm sets it", nearest(name, known))
        for name, constant, place in condition.compared():
            axis = by_name[name][1] if name in by_name else None
            if axis is not None and axis.plain and constant not in axis.values:
                values = ", ".join(map(repr, axis.values))
                condition.fail_at(place, f"axis {axis.name} has no value {constant!r}", f"its values: {values}")
        for name, chosen in combinations.items():

            def value_of(asked: str, name: str = name, chosen: tuple[int, ...] = chosen) -> Any:
                if asked in by_name:
                    place, axis = by_name[asked]
                    return axis.values[chosen[place]]
                return _setting(merged[name], asked)

            if condition.holds(value_of):
                kept.append(name)
    except InputError as error:
        raise lines.error(error.message, ("grid", "filter"), error.mend) from None
    if not kept:
        raise lines.error(f"none of {len(combinations)} combinations is left", ("grid", "filter"), "loosen the filter")
    return kept


def _setting(table: Mapping[str, Any], path: str) -> Any:
    """A setting by its dotted path; "off" where it is None or nobody sets it."""
    value: Any = table
    for part in path.split("."):
        value = cast("Mapping[str, Any]", value).get(part) if isinstance(value, Mapping) else None
    return OFF if value is None else value


def _changes(table: Any, axes: Sequence[Axis], lines: KeyLines) -> dict[str, tuple[str, ...]]:
    path = ("grid", "changes")
    if not isinstance(table, dict):
        raise lines.error("should be a table", path, 'say changes.parameters = ["attn"]')
    names = [axis.name for axis in axes]
    found: dict[str, tuple[str, ...]] = {}
    for fact, listed in cast("dict[str, Any]", table).items():
        if not isinstance(listed, list) or not listed:
            raise lines.error("should be a list of axes", (*path, fact), f"say changes.{fact} = [{names[0]!r}]")
        for index, name in enumerate(cast("list[Any]", listed)):
            if name not in names:
                mend = nearest(str(name), names)
                raise lines.error(f"no axis is called {name!r}", (*path, fact, str(index)), mend)
        found[fact] = tuple(cast("list[str]", listed))
    return found

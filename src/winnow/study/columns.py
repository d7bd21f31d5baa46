"""What the columns of a table of runs are called, and what each says of a run or of an arm. Needs no torch.

    arm, seed, run, status, n, lost, letter     the arm or run itself; n: runs that count; lost: the others
    AXIS                                        where an arm stands on an axis of the grid, by its name
    METRIC                                      any recorded metric; the endpoint at its declared step
    FACT                                        parameters, tokens, seconds ... as the runs recorded them
    minutes, throughput, samples/s              made of facts; throughput: tokens per second of the whole run
    KEY                                         a setting by its dotted path, model.attention.kind

A name may end in `:mean`, `:min`, `:max`, `:sd` or `:n`: over the runs of an arm, sd with n - 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from winnow.errors import InputError, nearest
from winnow.records.run import RunRecord
from winnow.study.axes import TAKEN
from winnow.study.compare import Comparison
from winnow.study.noise import moments

Stat = Literal["mean", "min", "max", "sd", "n"]
STATS: Final[tuple[Stat, ...]] = ("mean", "min", "max", "sd", "n")
DERIVED: Final = ("minutes", "throughput", "samples/s")
Value = float | int | str | None
Source = Literal["own", "axis", "metric", "derived", "fact", "setting"]


@dataclass(frozen=True)
class Column:
    """One column."""

    name: str
    stat: Stat
    source: Source
    title: str

    @property
    def key(self) -> str:
        """How an option names it."""
        return self.name if self.stat == "mean" else f"{self.name}:{self.stat}"


@dataclass(frozen=True)
class Rows:
    """A study's runs as its table reads them."""

    comparison: Comparison
    letters: Mapping[str, str]
    """Of each arm; empty where none were asked for, or there are none."""

    def names(self) -> dict[str, Source]:
        """Every name that means something, and where its value comes from; earlier ones hide later ones."""
        study = self.comparison.study
        records = [record for runs in self.comparison.runs.values() for record in runs.values()]
        facts = [record.facts for record in records] or [arm.facts for arm in self.comparison.plan.arms.values()]
        found: dict[str, Source] = dict.fromkeys(TAKEN, "own")
        sources: list[tuple[Source, Iterable[str]]] = [
            ("axis", [axis.name for axis in study.grid.axes] if study.grid is not None else ()),
            ("metric", (study.endpoint.metric, *_ordered({name for record in records for name in record.final}))),
            ("derived", DERIVED),
            ("fact", _ordered({name for fact in facts for name in fact})),
            ("setting", _ordered(self._settings())),
        ]
        for source, names in sources:
            for name in names:
                found.setdefault(name, source)
        return found

    def value(self, arm: str, record: RunRecord, seed: int, column: Column) -> Value:
        """What one run says; None where it says nothing."""
        match column.source:
            case "own":
                own = {"arm": arm, "seed": seed, "run": record.digest, "status": record.status}
                return own.get(column.name, self.letters.get(arm) if column.name == "letter" else None)
            case "axis":
                return self.place(arm, column.name)
            case "metric":
                return self._measured(arm, record, seed, column.name)
            case "derived":
                return _derived(record.facts, column.name)
            case "fact":
                return _finite(record.facts.get(column.name))
            case _:
                return setting(record.config, column.name)

    def values(self, arm: str, column: Column) -> list[Value]:
        """What the arm's runs that count say of a column, each that says something."""
        runs = self.counted(arm)
        found = [self.value(arm, record, seed, column) for seed, record in runs.items()]
        plan = self.comparison.plan.arms.get(arm)
        if not found and plan is not None and arm not in self.comparison.stale:
            planned = {"fact": plan.facts.get(column.name), "setting": setting(plan.config, column.name)}
            found = [planned.get(column.source)]
        return [value for value in found if value is not None]

    def counted(self, arm: str) -> dict[int, RunRecord]:
        """Runs that ended well."""
        runs = self.comparison.runs.get(arm, {})
        return {seed: record for seed, record in sorted(runs.items()) if record.status == "finished"}

    def place(self, arm: str, axis: str) -> Value:
        """Where the arm stands on an axis."""
        grid = self.comparison.study.grid
        return None if grid is None else grid.value(arm, axis)

    def _measured(self, arm: str, record: RunRecord, seed: int, metric: str) -> Value:
        observed = self.comparison.observations.get(metric)
        return _finite(record.final.get(metric) if observed is None else observed.values.get(arm, {}).get(seed))

    def _settings(self) -> set[str]:
        configs = [arm.config for arm in self.comparison.plan.arms.values()]
        configs += [next(iter(runs.values())).config for runs in self.comparison.runs.values() if runs]
        return {path for config in configs for path in _paths(config)}


def find_columns(asked: Sequence[str], known: Mapping[str, Source]) -> list[Column]:
    """The columns of these names, each once; shell-style patterns find metrics and facts. Raises InputError."""
    found: dict[str, Column] = {}
    for text in asked:
        name, stat = _parsed(text)
        named = [name] if name in known else [each for each in known if _matches(each, name, known)]
        if not named:
            raise InputError(f"no column is called {name!r}", mend=_mend(name, known))
        for each in named:
            if stat != "mean" and known[each] not in ("metric", "fact", "derived"):
                raise InputError(f"{each!r} has no {stat}", mend="metrics and facts have")
            column = Column(each, stat, known[each], each if stat == "mean" else f"{each} ({stat})")
            found.setdefault(column.key, column)
    return list(found.values())


def _mend(name: str, known: Mapping[str, Source]) -> str:
    """The nearest name, and all but the settings, of which there are many."""
    hint, _, _ = nearest(name, known).partition("permitted: ")
    listed = ", ".join(sorted(each for each, source in known.items() if source != "setting"))
    return f"{hint}permitted: {listed}, and settings such as train.lr"


def _matches(name: str, pattern: str, known: Mapping[str, Source]) -> bool:
    return known[name] in ("metric", "fact") and any(sign in pattern for sign in "*?[") and fnmatchcase(name, pattern)


def summary(values: Sequence[Value], stat: Stat) -> Value:
    """One value for several runs: a number's statistic; of others the one that all have, else all of them."""
    if stat == "n":
        return len(values)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return ", ".join(dict.fromkeys(str(value) for value in values))
    if not numbers:
        return None
    if stat == "min":
        return min(numbers)
    if stat == "max":
        return max(numbers)
    if len(numbers) == 1:
        return numbers[0] if stat == "mean" else None
    mean, variance = moments(numbers)
    return mean if stat == "mean" else math.sqrt(variance)


def setting(config: Mapping[str, Any], path: str) -> Value:
    """A setting by its dotted path, a list or table as JSON; "off" where it is None, None where there is none."""
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    if value is None or isinstance(value, bool):
        return {None: "off", True: "true", False: "false"}[value]
    return value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def _finite(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(text: str) -> tuple[str, Stat]:
    name, colon, stat = text.rpartition(":")
    if not colon:
        return text, "mean"
    for known in STATS:
        if known == stat:
            return name, known
    raise InputError(f"{text!r} asks for no statistic", mend=nearest(stat, STATS))


def _derived(facts: Mapping[str, Any], name: str) -> Value:
    seconds, tokens, context = (facts.get(fact) for fact in ("seconds", "tokens", "context"))
    if not isinstance(seconds, int | float) or seconds <= 0:
        return None
    if name == "minutes":
        return seconds / 60
    if not isinstance(tokens, int | float):
        return None
    if name == "throughput":
        return tokens / seconds
    return tokens / context / seconds if isinstance(context, int) and context > 0 else None


def _paths(config: Mapping[str, Any], before: str = "") -> Iterable[str]:
    for key, value in config.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{before}{key}.")


def _ordered(names: Iterable[str]) -> list[str]:
    """By name, layer 2 before layer 10."""
    return sorted(
        names, key=lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in name.split("/")]
    )

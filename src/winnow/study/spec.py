"""A study as it is written: question, arms, seeds, looks, claims. Read from TOML; needs no torch.

Format in docs/studies.md. What the arms mean (which options a model has) is known only to `study.resolve`; here every
key of the study itself is checked, and every error carries file, line, key and what is permitted.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from winnow.config import Config, digest, input_errors
from winnow.errors import InputError, nearest
from winnow.records.files import safe_name
from winnow.records.remote import Remote
from winnow.study.claims import Claim, parse_claim
from winnow.study.grid import Grid, expand_claims, read_grid
from winnow.study.locate import KeyLines, KeyPath, load_toml
from winnow.study.verdict import DecisionRule

SECTIONS: Final = ("task", "model", "train", "evaluation", "init_from", "graft")
"""What `base` and an arm may set: the parts of a run's configuration."""

DEFAULT_LOOKS: Final = (3, 5, 8)


class Endpoint(Config):
    """The number that decides: one per run, declared before any run."""

    metric: str = "val/ce"
    """A metric of the task: `val/ce` (nats per token), `val/ppl`, `val/bpb` (bits per byte)."""
    better: Literal["lower", "higher"] = "lower"
    step: NonNegativeInt | None = None
    """Update step at which the metric is read (an evaluation step); None = after the last one."""


class _Table(Config):
    """The study's own keys; everything under `base` and `arms` is left to `resolve`."""

    id: str
    question: str = ""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    looks: tuple[PositiveInt, ...] | None = None
    endpoint: Endpoint = Endpoint()
    base: dict[str, Any] = Field(default_factory=dict)
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    grid: dict[str, Any] | None = None
    claims: dict[str, str | dict[str, Any]] = Field(default_factory=dict)
    rule: DecisionRule = DecisionRule()
    control: str = "control"
    use: tuple[str, ...] = ()
    runs: Literal["winnow", "recorded"] = "winnow"
    artifacts: str | None = None
    supersedes: str | None = None


@dataclass(frozen=True)
class Study:
    """One question, put as arms, paired seeds and claims, before anything runs."""

    id: str
    question: str
    seeds: tuple[int, ...]
    """One run per arm and seed; arms share a seed's data order and initial values, so they are compared in pairs."""
    looks: tuple[int, ...]
    """Seeds per arm at which the claims are looked at."""
    endpoint: Endpoint
    base: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    """What each arm changes in `base`."""
    claims: tuple[Claim, ...]
    rule: DecisionRule
    control: str
    use: tuple[str, ...]
    """Python files that define further mechanisms; relative to the study file."""
    runs: Literal["winnow", "recorded"]
    """Where the runs come from: made here, or recorded elsewhere with `winnow.record`."""
    artifacts: str | None = None
    """URL of the place that every run is uploaded to; None = nowhere. Neither identity nor part of the design."""
    supersedes: str | None = None
    """Id of the earlier study that this one replaces, and so withdraws; None = none."""
    grid: Grid | None = None
    """Where the arms of its product stand; None = every arm is written by hand. They are in `arms`, too."""
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings given on the command line instead of in the file."""
    file: Path | None = None
    lines: KeyLines = field(default_factory=KeyLines, repr=False)

    @property
    def plan_name(self) -> str:
        """Name of the plan in the store: the id, and a mark of changed settings, which make it another study."""
        return f"{self.id}.set-{digest(dict(self.changes))[:8]}" if self.changes else self.id

    @property
    def folder(self) -> Path:
        """Folder that relative paths in the study start from."""
        return self.file.resolve().parent if self.file else Path.cwd()

    def claim(self, name: str) -> Claim:
        """The claim of this name; InputError with the nearest one otherwise."""
        for claim in self.claims:
            if claim.id == name:
                return claim
        raise self.lines.error(f"no claim {name!r}", ("claims",), nearest(name, (claim.id for claim in self.claims)))


def load_study(path: str | Path, changes: Mapping[str, Any] | None = None, only: str | None = None) -> Study:
    """The study in a `.toml` file.

    changes: settings to use instead of the file's, by dotted key, for example {"base.train.steps": 10}.
    only: the id the study must have. Raises InputError with the place and the mend.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError("no such file", file=file, mend="give the path of a study") from None
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", file=file, mend="a study is a TOML file") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from None
    study = parse_study(text, file, changes=changes)
    if only is not None and study.id != only:
        raise InputError(f"has no study {only!r}", file=file, mend=f"permitted: {study.id}")
    return study


def parse_study(
    text: str, file: str | Path | None = None, first_line: int = 1, changes: Mapping[str, Any] | None = None
) -> Study:
    """The study in a TOML text that stands in `file` from `first_line` on. Raises InputError."""
    data, lines = load_toml(text, file, first_line)
    changes = {} if changes is None else {_full_key(key): value for key, value in changes.items()}
    for key, value in changes.items():
        data = _with_change(data, key, value)
    _check_plain(data, (), lines)
    try:
        table = _Table.model_validate(data)
    except ValidationError as error:
        first = input_errors(error)[0]
        path = tuple((first.key or "").split("."))
        # A tuple or a union adds its own parts to the path; the nearest written key is the user's.
        raise lines.error(first.message, path[: max(lines.depth(path), 1)] or path, first.mend) from None
    _check_id("id", table.id, lines)
    if table.supersedes is not None:
        _check_id("supersedes", table.supersedes, lines)
    _check_seeds(table, lines)
    looks = _looks(table, lines)
    grid = None
    if table.grid is not None:
        sections = SECTIONS if table.runs == "winnow" else None
        grid = read_grid(table.grid, table.base, lines, sections)
        table, lines = _expanded(table, grid, lines)
    _check_arms(table, lines)
    return Study(
        id=table.id,
        question=table.question.strip(),
        seeds=table.seeds,
        looks=looks,
        endpoint=table.endpoint,
        base=deepcopy(table.base),
        arms=deepcopy(table.arms),
        claims=_claims(table, lines, () if grid is None else grid.dropped),
        rule=table.rule,
        control=table.control,
        use=table.use,
        runs=table.runs,
        artifacts=_artifacts(table, lines),
        supersedes=table.supersedes,
        grid=grid,
        changes=changes,
        file=None if file is None else Path(file),
        lines=lines,
    )


def _expanded(table: _Table, grid: Grid, lines: KeyLines) -> tuple[_Table, KeyLines]:
    """The study with its grid's arms beside those that are written, and a claim for each value that one stands for."""
    for name in table.arms:
        if name in grid.points:
            mend = "rename the arm, or drop the combination with grid.filter"
            raise lines.error(f"the grid has an arm {name!r} too", ("arms", name), mend)
    arms = {**table.arms, **{name: dict(settings) for name, settings in grid.arms.items()}}
    claims, places = expand_claims(table.claims, grid, arms, lines)
    return table.model_copy(update={"arms": arms, "claims": claims}), lines.implying({**grid.places(), **places})


def parse_change(text: str) -> tuple[str, Any]:
    """A setting as given on the command line, `key=value`, as (dotted key, value).

    The value is read as TOML, and as plain text where it is not TOML: `steps=10`, `kind=softmax`, `seeds=[0, 1]`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{text!r} is not a setting", key="--set", mend="write key=value, say base.train.steps=10")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _full_key(key: str) -> str:
    """`train.steps` is short for `base.train.steps`."""
    return f"base.{key}" if key.split(".")[0] in SECTIONS else key


def _with_change(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = deepcopy(data)
    table = changed
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"{parent!r} is not a table", key=key, mend="change that key as a whole")
        table = inner
    table[last] = value
    return changed


def _check_plain(value: Any, path: KeyPath, lines: KeyLines) -> None:
    """Refuse what has no canonical JSON, and so no digest: dates, infinities, NaN."""
    if isinstance(value, dict):
        for key, item in cast(dict[str, Any], value).items():
            _check_plain(item, (*path, key), lines)
    elif isinstance(value, list):
        for index, item in enumerate(cast(list[Any], value)):
            _check_plain(item, (*path, str(index)), lines)
    elif not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise lines.error(f"{value} cannot be a setting", path, "use numbers, texts, true or false, lists and tables")


def _check_id(key: str, name: str, lines: KeyLines) -> None:
    try:
        safe_name(name)
    except InputError as error:
        raise lines.error(error.message, (key,), error.mend) from None


def _check_seeds(table: _Table, lines: KeyLines) -> None:
    if not table.seeds:
        raise lines.error("no seeds are given", ("seeds",), "give at least 3, say seeds = [0, 1, 2, 3, 4, 5, 6, 7]")
    for index, seed in enumerate(table.seeds):
        if seed in table.seeds[:index]:
            path = ("seeds", str(index))
            raise lines.error(f"seed {seed} is given twice", path, "a repeated run is no new observation")


def _looks(table: _Table, lines: KeyLines) -> tuple[int, ...]:
    n = len(table.seeds)
    if table.looks is None:
        return (*(look for look in DEFAULT_LOOKS if look < n), n)
    if not table.looks:
        raise lines.error("no look is given", ("looks",), "leave looks out for the default, 3, 5 and 8 seeds")
    for index, look in enumerate(table.looks):
        path = ("looks", str(index))
        if index and look <= table.looks[index - 1]:
            raise lines.error(f"look {look} does not come after {table.looks[index - 1]}", path, "looks must increase")
        if look > n:
            mend = "a look counts seeds per arm: add seeds or drop the look"
            raise lines.error(f"look {look} is beyond the {n} seeds", path, mend)
    return table.looks


def _check_arms(table: _Table, lines: KeyLines) -> None:
    if not table.arms:
        raise lines.error("no arms are given", ("arms",), "give at least a control and one arm: arms.control = {}")
    for name in table.arms:
        try:
            safe_name(name)
        except InputError as error:
            raise lines.error(f"arm {name!r}: {error.message}", ("arms", name), error.mend) from None
    if table.runs == "recorded":
        return
    for path, settings in (("base",), table.base), *((("arms", name), arm) for name, arm in table.arms.items()):
        for section, value in settings.items():
            if section not in SECTIONS:
                raise lines.error(f"unknown key {section!r}", (*path, section), nearest(section, SECTIONS))
            if section == "graft":
                if not isinstance(value, list):
                    mend = 'say graft = [{ kind = "add-heads" }], or [] for none'
                    raise lines.error(f"{value!r} should be a list of tables", (*path, section), mend)
                continue
            if section == "init_from" and value == "off":
                continue
            if not isinstance(value, dict):
                raise lines.error(f"{value!r} should be a table", (*path, section), f"say {section}.key = value")


def _artifacts(table: _Table, lines: KeyLines) -> str | None:
    if table.artifacts is not None:
        try:
            Remote(table.artifacts)
        except InputError as error:
            raise lines.error(error.message, ("artifacts",), error.mend) from None
    return table.artifacts


def _claims(table: _Table, lines: KeyLines, dropped: Sequence[str]) -> tuple[Claim, ...]:
    found: list[Claim] = []
    for name, written in table.claims.items():
        path = ("claims", name)
        try:
            safe_name(name)
            claim = parse_claim(name, written)
        except InputError as error:
            inner = tuple(part for part in (error.key or "").split(".") if part and part not in (name, "claims"))
            raise lines.error(error.message, (*path, *inner), error.mend) from None
        for arm in claim.all_arms:
            if arm in dropped:
                raise lines.error(f"the claim names {arm!r}, which the grid's filter drops", path, "loosen the filter")
            if arm not in table.arms:
                raise lines.error(f"the claim names an arm {arm!r} that is not given", path, nearest(arm, table.arms))
        if table.runs == "recorded" and claim.metric != table.endpoint.metric:
            what = f"nothing says whether {claim.metric} is better lower or higher"
            raise lines.error(what, path, f"make it the endpoint, or claim on {table.endpoint.metric}")
        found.append(claim)
    return tuple(found)

"""Axes of a grid along which something stands still that should move: settings that may never have reached the model.

    rule               severity   what it means
    fact-unchanged     invalid    `grid.changes` names a fact that must change along an axis, and it does not
    axis-without-trace notice     nothing that is known of the models changes along an axis of settings of the model

The second is right for settings that keep size and cost, such as the number of heads, so it is a notice; where runs
differ along the axis the setting has reached them, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from winnow.errors import nearest
from winnow.records.run import Fact, Finding, RunRecord
from winnow.study.budget import count_text
from winnow.study.grid import Grid
from winnow.study.plan import Plan
from winnow.study.spec import Study

RULES = ("fact-unchanged", "axis-without-trace")
SIZES = ("parameters", "trainable", "flops_per_token", "kv_bytes_per_token")
"""Facts of a record that its model's settings alone decide."""
Facts = Mapping[str, Mapping[str, Fact]]
"""By arm."""


def planned_dead_axes(study: Study, plan: Plan) -> Iterator[tuple[Finding, tuple[str, ...]]]:
    """Before anything has run, from what the arms resolved to: each finding, and the claims on arms of that line."""
    if study.grid is not None:
        facts = {name: arm.facts for name, arm in plan.arms.items()}
        same = {name: plan.run(name, study.seeds[0]) for name in plan.arms}
        yield from _unchanged(study, study.grid, facts)
        yield from _without_trace(study, study.grid, facts, same)


def recorded_dead_axes(
    study: Study, ended: Mapping[str, Mapping[int, RunRecord]]
) -> Iterator[tuple[Finding, tuple[str, ...]]]:
    """From what was recorded: as `planned_dead_axes`, silent where the final weights differ along the axis."""
    if study.grid is None:
        return
    first = {arm: next(iter(by_seed.values())) for arm, by_seed in ended.items() if by_seed}
    yield from _unchanged(study, study.grid, {arm: record.facts for arm, record in first.items()})
    sizes = {arm: {name: fact for name, fact in record.facts.items() if name in SIZES} for arm, record in first.items()}
    moved = {arm: record.weights or "" for arm, record in first.items()}
    yield from _without_trace(study, study.grid, sizes, moved, alive=True)


def _unchanged(study: Study, grid: Grid, facts: Facts) -> Iterator[tuple[Finding, tuple[str, ...]]]:
    for fact, axes in grid.changes.items():
        for axis in axes:
            for line in grid.lines(axis):
                known = [arm for arm in line if arm in facts]
                values = {facts[arm].get(fact) for arm in known}
                if len(known) < 2 or len(values) > 1:
                    continue
                value = next(iter(values))
                labels = ", ".join(str(grid.label(arm, axis)) for arm in known)
                mend: str | None = "the setting never reached the model, or it should not be named in grid.changes"
                if value is None:
                    message = f"no arm along {axis} ({labels}) says its {fact}, which must change"
                    mend = nearest(fact, {name for arm in known for name in facts[arm]})
                else:
                    message = f"{fact} must change along {axis} and is {_text(value)} in {', '.join(known)} alike"
                where = study.lines.where(("grid", "changes", fact))
                finding = Finding(rule="fact-unchanged", severity="invalid", message=message, where=where, mend=mend)
                yield finding, _claims_on(study, known)


def _without_trace(
    study: Study, grid: Grid, facts: Facts, same: Mapping[str, str], *, alive: bool = False
) -> Iterator[tuple[Finding, tuple[str, ...]]]:
    """same: a mark of each arm. Unless `alive`, arms of one mark are equal, which another rule says; if `alive`, arms
    of different marks have shown that the axis acts."""
    declared = {axis for axes in grid.changes.values() for axis in axes}
    for axis in grid.axes:
        if axis.sections != {"model"} or axis.name in declared:
            continue
        lines = [[arm for arm in line if facts.get(arm)] for line in grid.lines(axis.name)]
        lines = [line for line in lines if len(line) > 1]
        if not lines or any(facts[arm] != facts[line[0]] for line in lines for arm in line):
            continue
        marks = [{same[arm] for arm in line} for line in lines]
        if any(len(mark) > 1 for mark in marks) if alive else all(len(mark) == 1 for mark in marks):
            continue
        said = [f"{name} {_text(facts[lines[0][0]][name])}" for name in SIZES if name in facts[lines[0][0]]]
        example = f" (in {lines[0][0]} and its like: {', '.join(said)})" if said else ""
        message = f"axis {axis.name} ({', '.join(axis.labels)}) changes nothing that is known of the models{example}"
        mend = "right where it keeps size and cost, as heads do; else it never reached the model: see grid.changes"
        where = study.lines.where(axis.path)
        yield Finding(rule="axis-without-trace", severity="notice", message=message, where=where, mend=mend), ()


def _claims_on(study: Study, arms: list[str]) -> tuple[str, ...]:
    """Claims that compare two of these arms."""
    return tuple(claim.id for claim in study.claims if len(set(arms) & set(claim.all_arms)) > 1)


def _text(value: Fact) -> str:
    return f"{value:,}" if isinstance(value, int) else count_text(value) if isinstance(value, float) else value

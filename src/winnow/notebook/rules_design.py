"""Rules about what a set of runs can show: baselines, schedules, settings that change together."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from winnow.notebook.rules import Found, Reading, rule
from winnow.notebook.runs import Run

_FACTOR = re.compile(
    r"\b(?P<factor>half|double|quarter|sqrt|(?P<number>\d+(?:\.\d+)?)x)[ -]"
    r"(?P<how>(?:smaller|lower|less|bigger|larger|higher|more|the|total)[ -])*"
    r"(?P<what>lr|learning[ -]rate|bs|batch(?:[ -]size)?|seq(?:[ -]?len(?:gth)?)?|context|steps)\b",
    re.IGNORECASE,
)
_SETTINGS = {
    "l": "train.lr",
    "b": "train.tokens_per_update",
    "s": "task.context",
    "c": "task.context",
    "t": "train.steps",
}


@rule(
    "warmup-outlasts",
    "warning",
    "a run that ends before its warm-up does: the rate only rises, and never reaches its peak",
    "run longer, or give a shorter warm-up",
)
def warmup_outlasts(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        steps, warmup = run.setting("train.steps"), run.setting("train.warmup")
        if isinstance(steps, int | float) and isinstance(warmup, int | float) and 0 < steps < warmup:
            option = run.option_for("train.steps")
            reached = run.setting("train.lr")
            peak = f": it ends at {reached * steps / warmup:.2g} of {reached:g}" if isinstance(reached, float) else ""
            yield Found(
                run.line, f"{steps:g} steps under a warm-up of {warmup:g}{peak}", (option.line,) if option else ()
            )


@rule(
    "baseline-missing",
    "warning",
    "a group without a baseline of its own: no arm leaves everything that varies at its default",
    "add the arm that changes nothing, on the same code and seeds",
)
def baseline_missing(reading: Reading) -> Iterator[Found]:
    """A value that most of the group's arms share counts as its default: the group has chosen it."""
    for group, runs in reading.groups.items():
        arms = _arms(runs)
        if runs[0].program is None or len({run.launch.checkout for run in runs}) > 1:
            continue
        if len(arms) == 1:
            if arms[0].arm and len(reading.groups) > 1 and len(runs) == 1:
                yield Found(runs[0].line, f"{runs[0].name or 'this run'!r} is the only arm of {group!r}")
            continue
        varying = {name for run in arms for name in run.arm if len({other.arm.get(name) for other in arms}) > 1}
        varying -= {name for run in arms for name in run.nuisance}
        if not varying or _is_ladder(arms, varying) or any(_is_baseline(run, arms, varying) for run in arms):
            continue
        closest = min(arms, key=lambda run: sum(name in run.arm for name in varying))
        sets = ", ".join(f"{name} {closest.arm[name]}" for name in sorted(varying) if name in closest.arm)
        called = "" if not any(run.is_called_baseline for run in arms) else "; what is called the baseline is none"
        lines = tuple(run.line for run in runs[1:])
        yield Found(runs[0].line, f"all {len(arms)} arms of {group!r} change something, at least {sets}{called}", lines)


def _arms(runs: Sequence[Run]) -> list[Run]:
    """The first run of every arm."""
    found: dict[tuple, Run] = {}
    for run in runs:
        found.setdefault(tuple(sorted(run.arm.items())), run)
    return list(found.values())


def _is_baseline(run: Run, arms: Sequence[Run], varying: set[str]) -> bool:
    for name in varying & run.arm.keys():
        value, n = Counter(other.arm.get(name) for other in arms).most_common(1)[0]
        if run.arm[name] != value or 2 * n <= len(arms):
            return False
    return True


def _is_ladder(arms: Sequence[Run], varying: set[str]) -> bool:
    """One number that takes many values: its lowest rung is as good a baseline as any."""
    return len(varying) == 1 and all(
        re.fullmatch(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", value)
        for run in arms
        for name, value in run.arm.items()
        if name in varying
    )


@rule(
    "baselines-two",
    "warning",
    "two different arms of one group are both called the baseline",
    "call one of them so",
)
def baselines_two(reading: Reading) -> Iterator[Found]:
    for runs in reading.groups.values():
        called = [run for run in runs if run.is_called_baseline]
        first = called[0] if called else None
        for run in called[1:]:
            if first is not None and run.arm != first.arm:
                yield Found(run.line, f"as is the arm on line {first.line}, with other settings", (first.line,))


@rule(
    "baseline-altered",
    "notice",
    "what is called the baseline gives a learning rate that is not the program's default",
    "say so in the prose, or call it something else",
)
def baseline_altered(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        option = run.option_for("train.lr")
        if run.is_called_baseline and option is not None and run.own_name(option) in run.arm:
            schema = run.schema(run.own_name(option))
            default = None if schema is None else schema.default
            yield Found(run.line, f"--{option.name} is {option.value}, by default {default}", (option.line,))


@rule(
    "environment-differs",
    "warning",
    "an environment variable that only some arms of a comparison have",
    "set it for all of them, or for none",
)
def environment_differs(reading: Reading) -> Iterator[Found]:
    """Whoever is in the minority is reported; where it is no small one, the first that changes."""
    for group, runs in reading.groups.items():
        for name in dict.fromkeys(name for run in runs for name in run.environment):
            sides: dict[str | None, list[Run]] = {}
            for run in runs:
                sides.setdefault(run.environment.get(name), []).append(run)
            if len(sides) < 2:
                continue
            *rare, _ = sorted(sides.items(), key=lambda side: len(side[1]))
            few = [run for _, found in rare for run in found]
            changed = next(run for run in runs if run.environment.get(name) != runs[0].environment.get(name))
            shown = few if 3 * len(few) <= len(runs) else [changed]
            for run in shown:
                value = run.environment.get(name)
                mine = f"{name}={value}" if value is not None else f"without {name}"
                others = [other for other in runs if other.environment.get(name) != value]
                yield Found(run.line, f"{mine}, unlike {len(others)} others of {group!r}", (others[0].line,))


@rule(
    "nuisance-differs",
    "notice",
    "a setting of speed or memory that only some arms of a comparison have",
    "give it to all of them: the order of additions differs with it",
)
def nuisance_differs(reading: Reading) -> Iterator[Found]:
    for group, runs in reading.groups.items():
        for name in dict.fromkeys(name for run in runs for name in run.nuisance):
            schema = runs[0].schema(name)
            if len(_arms(runs)) < 2 or schema is None or schema.takes != "value":
                continue
            having = [run for run in runs if name in run.nuisance and name in run.arm]
            if having and len(having) < len(runs):
                other = next(run for run in runs if run not in having)
                for run in having:
                    option = run.nuisance[name]
                    said = f"--{name} {option.value}, unlike {len(runs) - len(having)} of {len(runs)} runs of {group!r}"
                    yield Found(run.line, said, (option.line, other.line))


@rule(
    "settings-together",
    "notice",
    "an arm that differs in several settings from every other: no comparison can tell which one did it",
    "add the arms in between, or say that they belong together",
)
def settings_together(reading: Reading) -> Iterator[Found]:
    for runs in reading.groups.values():
        arms = _arms(runs)
        if len(arms) < 3 or runs[0].program is None:
            continue
        base = next((run for run in arms if run.is_called_baseline), None)
        for run in arms:
            others = [other for other in arms if other is not run] if base is None else [base]
            own = min((_own(run, other) for other in others), key=len)
            if len(own) > 1:
                whom = "the nearest arm" if base is None else f"the baseline on line {base.line}"
                yield Found(run.line, f"differs from {whom} in {', '.join(own)}", () if base is None else (base.line,))


def _own(run: Run, other: Run) -> list[str]:
    """Options that an arm gives, unlike another, and that do not merely belong to one that differs."""
    names = [name for name in run.arm if run.arm[name] != other.arm.get(name)]
    return [name for name in names if not any(owner in names for owner in run.facts.only_with.get(name, ()))]


@rule(
    "factor-differs",
    "error",
    "the prose says by what factor a setting differs from the baseline, and the command says another",
    "mend the one that is wrong",
)
def factor_differs(reading: Reading) -> Iterator[Found]:
    for runs in reading.groups.values():
        base = next((run for run in runs if run.is_called_baseline), None)
        for run in runs:
            if base is None or run is base:
                continue
            for item in run.launch.lead:
                for line, text in item.numbered() if item.is_text else ():
                    for match in _FACTOR.finditer(text):
                        yield from _factor(run, base, match, line)


def _factor(run: Run, base: Run, match: re.Match[str], line: int) -> Iterator[Found]:
    what = match["what"].casefold()
    key = _SETTINGS["t" if what == "steps" else what[0]]
    mine, theirs = run.setting(key), base.setting(key)
    option = run.option_for(key)
    if not isinstance(mine, int | float) or not isinstance(theirs, int | float) or not theirs:
        return
    said = match["factor"].casefold()
    if said == "sqrt":
        batch, other = run.setting("train.tokens_per_update"), base.setting("train.tokens_per_update")
        if not isinstance(batch, int | float) or not isinstance(other, int | float) or batch == other:
            return
        wanted = math.sqrt(batch / other)
    elif match["number"]:
        smaller = re.search(r"smaller|lower|less", match.group(), re.IGNORECASE)
        wanted = 1 / float(match["number"]) if smaller else float(match["number"])
    else:
        wanted = {"half": 0.5, "double": 2.0, "quarter": 0.25}[said]
    if abs(mine / theirs / wanted - 1) > 0.02:
        lines = (option.line, base.line) if option else (base.line,)
        said = f"{match.group()!r} asks for {theirs * wanted:.3g}, the command has {mine:.3g}"
        yield Found(line, f"{said} ({theirs:.3g} on line {base.line})", lines)

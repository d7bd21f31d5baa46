"""Rules about sets of runs: names that collide, runs made twice, seeds and indexes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from winnow.notebook.rules import Found, Reading, rule
from winnow.notebook.runs import Run

_INDEX = re.compile(r"(?:^|(?<=[_-]))(?:run|trial|rep|replicate|try)[_-]?(\d+)(?=[_-]|$)")
"""The number in a run's name."""
_SHOWN = 8
"""How many earlier runs of one name are told of; a page of copies would have a number of them that nobody reads."""
_SEED_WORDS = re.compile(r"\bseeds?\b|\bagain\b|\bre-?run|\bre-?run\b|\breplicat|\brepeat|\bmore time\b", re.IGNORECASE)


@rule(
    "run-overwritten",
    "error",
    "two runs of one name in one group: the later one takes the place of the earlier",
    "put the seed, or what differs, into the name",
)
def run_overwritten(reading: Reading) -> Iterator[Found]:
    for earlier, run in _namesakes(reading):
        same = [other for other in earlier if other.group == run.group]
        for other in same[-_SHOWN:]:
            what = (
                "with the same settings" if other.identity == run.identity else f"differs in {_difference(other, run)}"
            )
            yield Found(run.line, f"{run.name!r} again, as on line {other.line}: {what}", (other.line,))


@rule(
    "run-collides",
    "warning",
    "one run name in two groups: directory and upload are made of the name alone",
    "put the group into the name",
)
def run_collides(reading: Reading) -> Iterator[Found]:
    for earlier, run in _namesakes(reading):
        others = tuple(other.line for other in earlier if other.group != run.group)[:_SHOWN]
        if others:
            place = f"line {others[0]}" if len(others) == 1 else f"lines {', '.join(map(str, others))}"
            yield Found(run.line, f"{run.name!r} is also the run on {place}, in another group", others)


def _namesakes(reading: Reading) -> Iterator[tuple[list[Run], Run]]:
    """Every run with the earlier ones of its program and name; programs that keep earlier runs are left out."""
    seen: dict[tuple[str, str], list[Run]] = {}
    for run in reading.runs:
        if run.name is None or (run.program is not None and run.program.overwrites is None):
            continue
        earlier = seen.setdefault((run.program.name if run.program else run.launch.module, run.name), [])
        if earlier:
            yield earlier, run
        earlier.append(run)


def _difference(first: Run, second: Run) -> str:
    """What two commands differ in, in a few words."""
    names = [name for name in {**first.arm, **second.arm} if first.arm.get(name) != second.arm.get(name)]
    if first.seed != second.seed:
        names.append("seed")
    names += [
        name
        for name in {**first.launch.environment, **second.launch.environment}
        if getattr(first.launch.environment.get(name), "value", None)
        != getattr(second.launch.environment.get(name), "value", None)
    ]
    if first.launch.port != second.launch.port and "MASTER_PORT" not in names:
        names.append("port")
    return ", ".join(names) or "nothing that the program reads"


@rule(
    "run-repeated",
    "notice",
    "a command that does what an earlier one does, names apart",
    "say that it is a replicate of other code, or drop one",
)
def run_repeated(reading: Reading) -> Iterator[Found]:
    seen: dict[tuple, list[Run]] = {}
    for run in reading.runs:
        if run.name is None or (run.launch.arguments and run.program is None):
            continue
        earlier = seen.setdefault(run.identity, [])
        if earlier:
            lines = tuple(other.line for other in earlier[:_SHOWN])
            yield Found(run.line, f"the same settings and seed as the run on line {lines[0]}", lines)
        earlier.append(run)


@rule(
    "seeds-unequal",
    "warning",
    "an arm with fewer seeds than others it is compared with",
    "run the seeds that are missing, or compare on those that all arms have",
)
def seeds_unequal(reading: Reading) -> Iterator[Found]:
    for runs in reading.groups.values():
        arms = _arms(runs)
        if len(arms) < 2:
            continue
        seeds = {arm: {run.seed for run in found if run.seed is not None} for arm, found in arms.items()}
        every = set().union(*seeds.values())
        if len(every) < 2:
            continue
        for arm, found in arms.items():
            missing = sorted(every - seeds[arm], key=_order)
            if missing and seeds[arm]:
                has = ", ".join(sorted(seeds[arm], key=_order))
                yield Found(
                    found[0].line,
                    f"seed{'s' * (len(seeds[arm]) > 1)} {has} alone; others of the group have {', '.join(missing)}",
                    tuple(run.line for run in found[1:]),
                )


@rule(
    "seed-single",
    "notice",
    "a comparison on one seed: differences and luck look the same",
    "run three seeds or more of each arm",
)
def seed_single(reading: Reading) -> Iterator[Found]:
    for group, runs in reading.groups.items():
        arms = _arms(runs)
        if len(arms) > 1 and len({run.seed for run in runs}) == 1:
            yield Found(runs[0].line, f"{len(arms)} arms of {group!r}, all on seed {runs[0].seed or 'of the default'}")


@rule(
    "seed-unmentioned",
    "notice",
    "another seed than the default, and neither name nor prose says so",
    "say it in the prose, or put the seed into the name",
)
def seed_unmentioned(reading: Reading) -> Iterator[Found]:
    """Only where the arm's other runs do not have the default seed either: then it stands in for it."""
    for run in reading.runs:
        option = run.seed_option
        if option is None or run.first_seed is None or run.seed == run.first_seed:
            continue
        name = run.name or ""
        counted = _INDEX.search(name) or re.search(r"[_-]\d+$", name) or (run.seed and run.seed in name)
        if _SEED_WORDS.search(run.lead) or (counted and not _stands_in(reading, run)):
            continue
        line = next((item.line for item in run.launch.lead if item.is_text), run.line)
        yield Found(line, f"seed {run.seed}, where the program's own is {run.first_seed}", (run.line, option.line))


def _stands_in(reading: Reading, run: Run) -> bool:
    """Whether no run of the same arm and group has the default seed."""
    others = reading.groups.get(run.group or "", [])
    return not any(other.arm == run.arm and other.seed == run.first_seed for other in others)


@rule(
    "seed-index",
    "warning",
    "a numbered run whose seed is not the one that its number has elsewhere in the group",
    "give the seed, or number the run as its seed is numbered",
)
def seed_index(reading: Reading) -> Iterator[Found]:
    for runs in reading.groups.values():
        seeds: dict[str, Counter[str]] = {}
        for run in runs:
            index = _index(run)
            if index is not None and run.seed is not None:
                seeds.setdefault(index, Counter())[run.seed] += 1
        for run in runs:
            index = _index(run)
            if index is None or run.seed is None:
                continue
            usual, n = seeds[index].most_common(1)[0]
            if run.seed != usual and n > seeds[index][run.seed]:
                yield Found(run.line, f"number {index} has seed {run.seed}; in this group it is seed {usual} elsewhere")


@rule(
    "run-index",
    "notice",
    "a numbered run without the ones before it",
    "number from 0, or use the seed for a number",
)
def run_index(reading: Reading) -> Iterator[Found]:
    """The first of its name has a number of 2 or more, and the seed that a first run has."""
    stems: dict[str, list[Run]] = {}
    for run in reading.runs:
        if _index(run) is not None and run.name is not None:
            stems.setdefault(_INDEX.sub("#", run.name), []).append(run)
    names = {run.name: run.line for run in reversed(reading.runs)}
    for found in stems.values():
        bare = names.get(_INDEX.sub(lambda match: match.group().rstrip("0123456789_-"), found[0].name or ""))
        if bare is not None and bare < found[0].line:  # the first one has no number
            continue
        lowest = min(int(_index(run) or 0) for run in found)
        for run in found:
            if lowest >= 2 and int(_index(run) or 0) == lowest and run.seed == (run.first_seed or run.seed):
                said = f"number {lowest} with the seed of a first run, {run.seed}" if run.seed else f"number {lowest}"
                yield Found(run.line, f"{run.name!r} is {said}; the page has none before it")


@rule(
    "group-of-others",
    "warning",
    "a run in the group of another section: it is compared with runs that its own section is not about",
    "give it the group of its section",
)
def group_of_others(reading: Reading) -> Iterator[Found]:
    by_section: dict[int, Counter[str]] = {}
    for run in reading.runs:
        if run.group is not None:
            by_section.setdefault(run.launch.section, Counter())[run.group] += 1
    homes: dict[str, int] = {}
    for section, counts in by_section.items():
        homes.setdefault(counts.most_common(1)[0][0], section)
    for run in reading.runs:
        option, section = run.group_option, run.launch.section
        if option is None or option.value is None:
            continue
        own = by_section[section].most_common(1)[0][0]
        home = homes.get(option.value, section)
        if option.value != own and home < section and by_section[section][own] > by_section[section][option.value]:
            line = reading.page.sections[home].line
            yield Found(
                option.line,
                f"group {option.value!r} is that of the section on line {line}; here it is {own!r}",
                (line,),
            )


def _arms(runs: Iterable[Run]) -> dict[tuple, list[Run]]:
    """Runs by what makes them one arm; the code version counts."""
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        checkout = run.launch.checkout
        arm = tuple(sorted((name, value) for name, value in run.arm.items() if name not in run.nuisance))
        found.setdefault((arm, checkout.text if checkout else None), []).append(run)
    return found


def _index(run: Run) -> str | None:
    match = _INDEX.search(run.name or "")
    return match[1] if match else None


def _order(seed: str) -> tuple[int, str]:
    return (int(seed) if seed.lstrip("-").isdecimal() else 0, seed)

"""Rules that hold prose against the commands it stands beside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from winnow.notebook.pages import Prose
from winnow.notebook.rules import Found, Reading, rule
from winnow.notebook.runs import Run
from winnow.notebook.statements import LINK, alike, words_of

_STEPS = re.compile(
    r"(?<![\w.])(?P<number>\d+(?:[.,]\d+)*)(?P<k>k)?[ -](?:max[ _])?(?:steps|updates|iterations)\b", re.IGNORECASE
)
_NOT_OURS = re.compile(r"\b(?:last|first|another|every|warm-?up|after|next|remaining|previous|old)\s+$", re.IGNORECASE)
_VALUE = re.compile(
    r"(?<![\w`/.-])(?P<name>[A-Za-z][A-Za-z_]{2,})\s?=\s?(?P<value>-?\d+(?:\.\d+)?(?:e-?\d+)?|[A-Za-z][\w]*)"
)
_FRACTION = re.compile(r"\b1/(?P<n>\d+)x? (?P<name>[A-Za-z]+(?: [A-Za-z]+){0,2})")
_SWITCHED = re.compile(r"\b(?P<name>[A-Za-z]{4,}?)(?:ging)? (?:enabled|turned on|switched on)\b")
_LEFT_OUT = ("use", "with", "enable")


@rule(
    "text-steps",
    "error",
    "the prose says how many steps, and the command gives another number",
    "mend the one that is wrong",
)
def text_steps(reading: Reading) -> Iterator[Found]:
    for run, line, text in _lead(reading):
        option = run.option_for("train.steps") or _named(run, "steps")
        if option is None or option.value is None or not option.value.isdecimal():
            continue
        said = [match for match in _STEPS.finditer(text) if not _NOT_OURS.search(text[: match.start()])]
        numbers = [float(m["number"].replace(",", "")) * (1000 if m["k"] else 1) for m in said]
        if numbers and float(option.value) not in numbers:
            yield Found(line, f"{said[0].group()!r}, and the command has {option.value}", (option.line,))


@rule(
    "text-value",
    "error",
    "the prose gives a setting a value that the command does not",
    "mend the one that is wrong",
)
def text_value(reading: Reading) -> Iterator[Found]:
    """What hypotheses, predictions and results say is no description of the block. Any of several values will do."""
    claimed = _claimed(reading)
    by_block: dict[int, tuple[Run, dict[str, list[str]], dict[str, int]]] = {}
    for run, line, text in _lead(reading):
        if line in claimed:
            continue
        _, said, lines = by_block.setdefault(run.line, (run, {}, {}))
        found = [(match["name"], match["value"]) for match in _VALUE.finditer(text)]
        found += [(match["name"], repr(1 / int(match["n"]))) for match in _FRACTION.finditer(text) if int(match["n"])]
        for name, value in found:
            said.setdefault(name.casefold(), []).append(value)
            lines.setdefault(name.casefold(), line)
    for run, said, lines in by_block.values():
        for name, values in said.items():
            line = lines[name]
            options = [option for option in (*run.launch.options, *run.launch.lost) if _is_called(option.name, name)]
            reached = [option for option in options if option in run.launch.options]
            if not options or any(option.value is None or _same(option.value, v) for option in reached for v in values):
                continue
            lost = f"--{options[0].name} never reaches the program"
            had = f"the command has {reached[0].value}" if reached else lost
            yield Found(line, f"{name} {' or '.join(values)}, and {had}", (options[0].line,))


def _claimed(reading: Reading) -> set[int]:
    """Lines of hypotheses, predictions and results."""
    found = {item.line for item in reading.statements.predictions}
    for item in reading.statements.hypotheses:
        found.update(range(item.line, item.line + item.text.count("\n") + 1))
    for _, result in reading.results:
        found.update(range(result.line, result.last_line + 1))
    return found


@rule(
    "text-option",
    "warning",
    "prose, run or group is named for an option that the command does not give",
    "give the option, or take the words out",
)
def text_option(reading: Reading) -> Iterator[Found]:
    """Only for options that stand bare: `no compile`, `mup`. A group is said once."""
    flags = _flags(reading)
    variables = list(dict.fromkeys(name for run in reading.runs for name in run.environment))
    said_groups: set[tuple[str, str]] = set()
    for run in reading.runs:
        missing = [(name, words) for name, words in flags[_program(run)].items() if name not in run.given]
        for option, kind in ((run.name_option, "run"), (run.group_option, "group")):
            if option is None or option.value is None:
                continue
            text = option.value.casefold()
            for name, _ in _said(text, missing):
                if kind == "group" and (text, name) in said_groups:
                    continue
                others: list[int] = []
                if kind == "group":
                    said_groups.add((text, name))
                    group = reading.groups.get(run.group or "", [])
                    others = [other.line for other in group if name not in other.given and other is not run]
                had = f" ({len(others)} more blocks of it do not)" if others else ""
                yield Found(option.line, f"the {kind} is {option.value!r}, without --{name}{had}", tuple(others))
        for item in run.launch.lead:
            for line, text in item.numbered() if item.is_text else ():
                text = LINK.sub(" ", text).casefold()
                for name, words in _said(text, missing):
                    if len(words) > 1:
                        yield Found(line, f"{' '.join(words)!r}, without --{name} in the command", (run.line,))
                yield from _switched(run, line, text, variables)


def _switched(run: Run, line: int, text: str, variables: Sequence[str]) -> Iterator[Found]:
    """`debug enabled`: a variable that other blocks set."""
    for match in _SWITCHED.finditer(text) if variables else ():
        named = [name for name in variables if match["name"] in name.casefold().split("_")]
        if named and not any(name in run.environment for name in named):
            yield Found(line, f"{match.group()!r}, without {named[0]} in the command", (run.line,))


def _flags(reading: Reading) -> dict[str, dict[str, list[str]]]:
    """Bare options by program, with their words: those its description calls flags, or those that stand bare here."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in reading.runs:
        flags = found.setdefault(_program(run), {})
        if run.program is None:
            flags.update((o.name, _essential(o.name)) for o in run.launch.options if o.value is None)
        elif not flags:
            flags.update(
                (name, _essential(name))
                for name, schema in run.program.options.items()
                if schema.takes == "flag" and schema.aside is None and not schema.about.endswith(": the default")
            )
    return found


def _program(run: Run) -> str:
    return run.program.name if run.program else run.launch.module


def _essential(name: str) -> list[str]:
    return [word for word in name.casefold().split("_") if word not in _LEFT_OUT]


def _said(text: str, options: Sequence[tuple[str, list[str]]]) -> Iterator[tuple[str, list[str]]]:
    """The options whose words, in small letters as the text, stand in it one after another."""
    there = set(re.findall(r"[a-z0-9]+", text))
    for name, words in options:
        if not there.issuperset(words) or sum(map(len, words)) < 3:
            continue
        if re.search(rf"(?<![a-z0-9]){'[ _-]'.join(map(re.escape, words))}(?![a-z0-9])", text):
            yield name, words


@rule(
    "value-never-run",
    "warning",
    "a hypothesis about a value that no run of its section has",
    "run it, or write down that it was not run",
)
def value_never_run(reading: Reading) -> Iterator[Found]:
    for item in reading.statements.hypotheses:
        if item.launches:
            continue
        runs, _ = reading.by_section[item.section]
        for match in _VALUE.finditer(item.text):
            given = [o for run in runs for o in run.launch.options if _is_called(o.name, match["name"].casefold())]
            given = [option for option in given if option.value is not None]
            if given and not any(_same(option.value or "", match["value"]) for option in given):
                had = ", ".join(dict.fromkeys(option.value or "" for option in given))
                line = item.line + item.text[: match.start()].count("\n")
                yield Found(line, f"{match.group()!r}; --{given[0].name} is {had}", tuple(o.line for o in given))


@rule(
    "run-not-shown",
    "notice",
    "a run that is told of and not written down",
    "write its command down, or leave it out of the argument",
)
def run_not_shown(reading: Reading) -> Iterator[Found]:
    for _, item in reading.prose:
        for line, text in item.numbered():
            if re.search(r"\brun\b[^.]{0,20}\(not shown\)", text, re.IGNORECASE):
                yield Found(line, "its command is not shown")


def _lead(reading: Reading) -> Iterator[tuple[Run, int, str]]:
    """Every line of the prose about each block alone; where a block starts several programs, for the first."""
    seen: set[int] = set()
    for run in reading.runs:
        if run.line in seen:
            continue
        seen.add(run.line)
        for item in run.launch.lead:
            if isinstance(item, Prose) and item.is_text:
                for line, text in item.numbered():
                    yield run, line, text


def _named(run: Run, ending: str):
    found = [
        option
        for name, option in run.given.items()
        if name in (ending, f"max_{ending}", f"n_{ending}", f"num_{ending}")
    ]
    return found[0] if found and run.program is None else None


def _is_called(option: str, name: str) -> bool:
    """Whether every word of a name in prose is, or begins like, a word of the option's."""
    words = words_of(option.replace("_", " "))
    said = words_of(name.replace("_", " "))
    return bool(said) and all(alike(words, word) for word in said)


def _same(value: str, said: str) -> bool:
    """Equal as numbers, or as text where one is short for the other."""
    try:
        return abs(float(value) - float(said)) <= 1e-9 + 1e-3 * abs(float(said))
    except ValueError:
        value, said = value.casefold(), said.casefold()
        return value == said or value.startswith(f"{said}_") or said.startswith(f"{value}_")

"""Rules about single commands: what reaches the program, and what the program makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from winnow.errors import nearest
from winnow.notebook.launches import RUNNERS, SHELLS, Launch, Option
from winnow.notebook.rules import OUTDATED, Found, Reading, rule
from winnow.notebook.shell import parse

_PRIVATE = re.compile(r"(?:/root|/home/[^/]+|/Users/[^/]+|~|\$HOME)(?:/|$)|/tmp/|[A-Za-z]:\\")


@rule(
    "option-lost",
    "error",
    "a line that is not joined to the next: the options that follow never reach the program",
    "end the line with a backslash, and nothing after it",
)
def option_lost(reading: Reading) -> Iterator[Found]:
    for launch in reading.launches:
        if not launch.lost:
            continue
        index = next(n for n, command in enumerate(launch.commands) if command is launch.command)
        torn = launch.commands[index + 1]
        text = reading.page.lines[torn.line - 2] if torn.line >= 2 else ""
        why = "blanks follow the backslash" if re.search(r"\\[ \t]+\Z", text) else "no backslash ends this line"
        names = _listed([f"--{option.name}" for option in launch.lost])
        yield Found(torn.line - 1, f"{why}: {names} never reached the program", tuple(o.line for o in launch.lost))


@rule(
    "command-torn",
    "error",
    "a command that begins with an option: it was meant to go on with the line before",
    "end the line before with a backslash, and nothing after it",
)
def command_torn(reading: Reading) -> Iterator[Found]:
    known = {launch.line for launch in reading.launches}
    for fence in reading.page.fences():
        is_shell = fence.info.casefold() in SHELLS[1:] or fence.info.split(":")[0] in RUNNERS
        if fence.opening_line in known or not is_shell or "console" in fence.info.casefold():
            continue
        for before, command in zip(commands := parse(fence.lines, fence.first_line), commands[1:], strict=False):
            if command.torn and command.before == "\n" and before.words:
                yield Found(command.line, f"the shell looks for a program called {command.name!r}", (before.line,))


@rule(
    "option-unknown",
    "error",
    "an option that the program does not have",
    "take it out, or describe the program's options with --program",
)
def option_unknown(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        if run.program is None:
            continue
        for option in (*run.launch.options, *run.launch.lost):
            if run.schema(run.own_name(option)) is None:
                mend = nearest(option.name, run.program.options)
                yield Found(option.line, f"{run.program.name} has no option {option.name!r}", mend=_first(mend))


@rule(
    "option-removed",
    "error",
    "an option that later versions of the program refuse",
    "pin the commit that has it, before the command that runs the program",
)
def option_removed(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        for option in run.launch.options:
            removed = run.facts.removed.get(run.own_name(option))
            if removed is not None and run.launch.checkout is None:
                yield Found(option.line, f"--{option.name} {removed}")


@rule("option-value", "error", "a value that the program does not take", "give one that it takes")
def option_value(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        for option in (*run.launch.options, *run.launch.lost):
            schema = run.schema(run.own_name(option))
            problem = None if schema is None else schema.problem(option.value, run.launch.interface)
            if problem is not None:
                yield Found(option.line, f"--{option.name}: {_first(problem)}")


@rule(
    "option-meaning",
    "error",
    "an option whose meaning changed: the command does not say which one ran",
    "pin the commit it ran on, or say beside it what it meant",
)
def option_meaning(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        for option in run.launch.options:
            name = run.own_name(option)
            readings = run.facts.options[name].readings_of(option.value) if name in run.facts.changed else {}
            if readings and run.launch.checkout is None:
                meant = "; or ".join(reading.about for reading in readings.values())
                yield Found(option.line, f"--{option.name} has had {len(readings)} meanings: {meant}")


@rule(
    "option-two-forms",
    "warning",
    "an option given bare here and with a value there: no version of a program takes both",
    "write the value",
)
def option_two_forms(reading: Reading) -> Iterator[Found]:
    forms: dict[tuple[str, str], dict[bool, list[Option]]] = {}
    for run in reading.runs:
        program = run.program.name if run.program else run.launch.module
        for option in run.launch.options if run.launch.interface == "flags" else ():
            forms.setdefault((program, option.name), {}).setdefault(option.value is None, []).append(option)
    for (_, name), found in forms.items():
        if len(found) == 2:
            rarer, other = sorted(found.values(), key=lambda options: (len(options), options[0].line))
            form = "bare" if rarer[0].value is None else "with a value"
            for option in rarer:
                yield Found(
                    option.line, f"--{name} {form} here, otherwise from line {other[0].line} on", (other[0].line,)
                )


@rule(
    "option-twice",
    "warning",
    "an option given twice with different values: the last one counts",
    "keep the one that is meant",
)
def option_twice(reading: Reading) -> Iterator[Found]:
    for launch in reading.launches:
        seen: dict[str, Option] = {}
        for option in launch.options:
            before = seen.get(option.name)
            if before is not None and before.value != option.value:
                yield Found(option.line, f"--{option.name} is {before.value!r} on line {before.line}", (before.line,))
            seen[option.name] = option


@rule(
    "option-unread",
    "warning",
    "an option that the program reads only beside others, which are not given",
    "give the others as well, or take it out",
)
def option_unread(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        for name, option in run.given.items():
            for other, values in run.facts.only_with.get(name, {}).items():
                beside = run.given.get(other)
                default = run.schema(other)
                value = beside.value if beside else None if default is None else default.default
                if (not values and beside is None) or (values and str(value) not in values):
                    needs = f"--{other}" + (f" {' or '.join(values)}" if values else "")
                    yield Found(option.line, f"--{option.name} is read only with {_first(needs)}")
                    break


@rule(
    "interface-outdated",
    "notice",
    "settings as environment variables, where later commands for the program use flags",
    "write it with flags, or say in the heading that it is outdated",
)
def interface_outdated(reading: Reading) -> Iterator[Found]:
    last = max((run.line for run in reading.runs if run.launch.interface == "flags"), default=0)
    for run in reading.runs:
        if run.launch.interface == "environment" and run.line < last:
            said = " ".join([reading.section_of(run).title, run.lead])
            if not OUTDATED.search(said):
                yield Found(run.line, f"{len(run.launch.options)} settings by environment, unlike line {last}", (last,))


@rule(
    "path-private",
    "warning",
    "a path that exists on one machine, or until it restarts",
    "give a path below the project, or an address that others can reach",
)
def path_private(reading: Reading) -> Iterator[Found]:
    for launch in reading.launches:
        for option in launch.options:
            if option.value is not None and _PRIVATE.match(option.value):
                yield Found(option.line, f"--{option.name} is {_first(option.value)}")


@rule(
    "run-deleted-first",
    "notice",
    "a command that deletes the run it is about to make",
    "give each run a name of its own, and delete none",
)
def run_deleted_first(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        for command in run.launch.commands:
            if command is run.launch.command:
                break
            words = [word.text for word in command.words]
            if words[:1] == ["rm"] and run.name is not None and run.name in [word.rstrip("/") for word in words[1:]]:
                yield Found(command.line, f"an earlier run {run.name!r} is removed without asking")


@rule(
    "checkout-stays",
    "warning",
    "a checkout that the machine's next `git pull` stumbles over",
    "use a worktree for the revision, or check the branch out again afterwards",
)
def checkout_stays(reading: Reading) -> Iterator[Found]:
    pulls = sum(launch.pulls and launch.checkout is None for launch in reading.launches)
    for launch in reading.launches:
        word = launch.checkout
        if word is None or not pulls:
            continue
        if re.fullmatch(r"[0-9a-f]{6,40}", word.text):
            said = f"leaves the machine at {word.text} without a branch: a later git pull there fails"
        else:
            said = f"leaves the machine on {word.text}: a later git pull there stays on it"
        yield Found(launch.line, f"{said}; {pulls} other blocks pull", (word.line,))


@rule(
    "revision-in-name",
    "error",
    "a run named after one revision that checks out another",
    "name it after the revision that it runs",
)
def revision_in_name(reading: Reading) -> Iterator[Found]:
    for run in reading.runs:
        word, option = run.launch.checkout, run.name_option
        if word is None or option is None or option.value is None:
            continue
        named = re.findall(r"(?<![A-Za-z0-9])[0-9a-f]{7,40}(?![A-Za-z0-9])", option.value)
        revision = word.text
        is_one = re.fullmatch(r"[0-9a-f]{6,40}", revision) and any(re.search(r"\d", name) for name in named)
        if is_one and not any(revision.startswith(name) or name.startswith(revision) for name in named):
            yield Found(option.line, f"the run is called {option.value} and runs {revision}", (word.line,))


@rule(
    "code-unpinned",
    "notice",
    "commands that run whatever `git pull` brings: nothing says which code made the results",
    "check the commit out by its name, and write it down",
)
def code_unpinned(reading: Reading) -> Iterator[Found]:
    yield from _by_section([each for each in reading.launches if each.pulls and each.checkout is None])


@rule(
    "devices-of-machine",
    "notice",
    "the number of processes is left to the machine: batch and accumulation differ with it",
    "write the number that it ran on",
)
def devices_of_machine(reading: Reading) -> Iterator[Found]:
    many = [each for each in reading.launches if each.processes is not None and not each.processes.isdecimal()]
    yield from _by_section(many)


def _by_section(launches: list[Launch]) -> Iterator[Found]:
    """What holds for many blocks is said once a section, at the first of them."""
    by_section: dict[int, list[int]] = {}
    for launch in launches:
        by_section.setdefault(launch.section, []).append(launch.line)
    for first, *more in by_section.values():
        blocks = f"{len(more) + 1} blocks of this section, from this one on" if more else "this block"
        yield Found(first, blocks, tuple(more))


@rule(
    "port-reused",
    "notice",
    "one rendezvous port for several runs: they cannot run side by side on one host",
    "give each its own --master_port, or leave it to --standalone",
)
def port_reused(reading: Reading) -> Iterator[Found]:
    seen: dict[str, list[int]] = {}
    for launch in reading.launches:
        port = launch.port
        if port is not None and port.value is not None:
            earlier = seen.setdefault(port.value, [])
            if earlier:
                yield Found(launch.line, f"port {port.value}, as on line {earlier[-1]}", tuple(earlier))
            earlier.append(launch.line)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _first(text: str) -> str:
    """A text cut to what a line of output bears."""
    return text if len(text) <= 160 else text[:157] + "..."

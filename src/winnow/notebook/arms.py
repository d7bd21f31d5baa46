"""A launch's options as settings of a study, or the reasons why they are none.

What an option means stands in the program's description; here it is only looked up, checked against the other options
of the command, and laid together in the order of the description. Nothing is guessed: an option that is unknown, has
no effect, has had several meanings or needs a part that is not built makes a refusal that names it and its line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from winnow.errors import InputError, nearest
from winnow.notebook.launches import SYSTEM, Launch, Option
from winnow.notebook.program import Interface, OptionSchema, Program, Role, too_small
from winnow.study.overlay import merge

Reason = Literal[
    "state", "program", "argument", "unknown", "value", "effect", "meaning", "unbuilt", "size", "start", "name"
]


@dataclass(frozen=True)
class Refusal:
    """Why a launch cannot be imported."""

    line: int
    reason: Reason
    message: str
    option: str | None = None
    """Name of the option it is about, without dashes."""


@dataclass(frozen=True)
class Start:
    """A checkpoint that a run starts from."""

    path: str
    line: int
    resume: bool
    """Whether optimizer, step and place in the data come along."""


@dataclass(frozen=True)
class Settled:
    """What a launch says, in Winnow's words."""

    launch: Launch
    program: Program
    group: str | None
    name: str
    seed: int
    settings: Mapping[str, Any]
    """`task`, `model`, `train`, `evaluation` of a study, and `attention` apart: it may belong into a graft."""
    heads: Mapping[str, Any] | None
    """The graft that adds heads. None: no head is added."""
    start: Start | None
    sizes: Mapping[str, Option]
    """Settings of the model that the command itself gives, with the option: weights that are loaded must agree."""
    inside: bool
    """Whether the command measures the inside of the mechanism."""
    notes: tuple[str, ...]


@dataclass
class Choices:
    """Which of an option's meanings holds: for a group, or for all."""

    readings: dict[str, dict[str | None, str]] = field(default_factory=dict[str, dict[str | None, str]])

    @classmethod
    def parse(cls, given: Sequence[str], programs: Sequence[Program]) -> Choices:
        """From `OPTION=READING` and `OPTION=READING@GROUP`. Raises InputError for what no program knows."""
        found = cls()
        for text in given:
            name, equals, rest = text.partition("=")
            reading, at, group = rest.partition("@")
            name = name.strip().lstrip("-").replace("-", "_")
            if not equals or not name or not reading:
                mend = "write OPTION=READING, or OPTION=READING@GROUP"
                raise InputError(f"{text!r} is no choice", key="--semantics", mend=mend)
            known = {
                option: schema.readings
                for program in programs
                for option, schema in program.options.items()
                if schema.readings
            }
            if name not in known:
                raise InputError(f"--{name} has one meaning", key="--semantics", mend=nearest(name, known))
            if reading not in known[name]:
                message = f"--{name} has no meaning {reading!r}"
                raise InputError(message, key="--semantics", mend=nearest(reading, known[name]))
            found.readings.setdefault(name, {})[group if at else None] = reading
        return found

    def of(self, option: str, group: str | None) -> str | None:
        """The reading chosen for a group, or for all; None: nobody chose."""
        chosen = self.readings.get(option, {})
        return chosen.get(group) or chosen.get(None)


def settle(launch: Launch, program: Program, choices: Choices) -> Settled | tuple[Refusal, ...]:
    """What a launch means, or every reason why it cannot be said."""
    command = _Command(launch, program, choices)
    refusals = [*command.grammar(), *command.problems()]
    if refusals:
        return tuple(refusals)
    settings, heads = command.settings()
    command.divides(settings)
    return tuple(command.refusals) if command.refusals else command.settled(settings, heads)


class _Command:
    """One command while it is read."""

    def __init__(self, launch: Launch, program: Program, choices: Choices) -> None:
        self.launch = launch
        self.program = program
        self.choices = choices
        self.interface: Interface = "environment" if launch.interface == "environment" else "flags"
        self.refusals: list[Refusal] = []
        self.notes: list[str] = []
        self.inside = False
        self.sizes: dict[str, Option] = {}
        self.given: dict[str, Option] = {}
        self.off: set[str] = set()
        """Flags that the environment says are false."""
        self.unknown: list[Option] = []
        variables = [option for name, option in launch.environment.items() if program.of_environment(name)]
        self.variables = {id(option) for option in variables}
        for option in [*variables, *launch.options, *launch.lost]:  # the last one holds, as in the program
            name = option.name.replace("-", "_").lower()
            name = program.of_environment(option.name.upper()) or name if program.option(name) is None else name
            schema = program.option(name)
            if schema is None:
                self.unknown.append(option)
            elif schema.takes == "flag" and schema.plain(option.value or "") is False:
                self.off.add(name)
            else:
                self.given[name] = option

    @property
    def group(self) -> str | None:
        return self._text("group")

    def grammar(self) -> Iterator[Refusal]:
        """What is wrong with the block rather than with an option."""
        state = self.launch.state
        if state is not None and state.problem is not None:
            yield Refusal(state.line, "state", f"block state {state.text!r}: {state.problem}")
        for word in self.launch.arguments:
            if word.text.strip():
                yield Refusal(
                    word.line, "argument", f"argument {word.text!r}: {self.program.name} is not known to take any"
                )
        for name, variable in self.launch.environment.items():
            known = self.program.variables.get(name)
            if known is None and self.program.of_environment(name) is None and not SYSTEM.match(name):
                yield Refusal(variable.line, "unknown", f"variable {name} is not known", name)

    def problems(self) -> Iterator[Refusal]:
        """What is wrong with each option by itself, and with the options that go with it."""
        for option in self.unknown:
            close = difflib.get_close_matches(option.name, self.program.options, n=1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            message = f"{shown(option)} is no option of {self.program.name}{hint}"
            yield Refusal(option.line, "unknown", message, option.name)
        for name, option in self.given.items():
            schema = self.program.options[name]
            found = self._problem(name, option, schema)
            if found is not None:
                reason, message = found
                yield Refusal(option.line, reason, f"{shown(option)}: {message}", name)

    def _problem(self, name: str, option: Option, schema: OptionSchema) -> tuple[Reason, str] | None:
        wrong = schema.problem(option.value, "environment" if id(option) in self.variables else self.interface)
        if wrong is not None:
            return "value", wrong
        if schema.unbuilt is not None:
            return "unbuilt", f"{schema.about}; Winnow has not got {schema.unbuilt} yet"
        readings = schema.readings_of(option.value)
        if readings:
            chosen = self.choices.of(name, self.group)
            if chosen is None or chosen not in readings:
                both = "; ".join(f"{key}: {each.about}" for key, each in readings.items())
                ways = " or ".join(f"--semantics {name}={key}" for key in readings)
                return "meaning", f"its meaning has changed ({both}); choose with {ways}"
            if readings[chosen].refused is not None:
                return "value", f"read as {chosen!r}, {readings[chosen].refused}"
            plain = None if option.value is None else schema.plain(option.value)
            small = too_small(plain, readings[chosen].above) if isinstance(plain, int | float) else None
            if small is not None:
                return "value", f"read as {chosen!r}, it {small}"
        for other, values in schema.only_with.items():
            has = self._value(other)
            if has is None or (values and has not in values):
                wanted = f" {' or '.join(values[:3])}{', ...' if len(values) > 3 else ''}" if values else ""
                instead = f", and the command has --{other} {has}" if has is not None else ""
                return "effect", f"is read only with --{other}{wanted}{instead}"
        if option.value is not None and option.value.lower() in schema.values:
            for other in schema.values[option.value.lower()].asks:
                if other not in self.given:
                    return "value", f"needs --{other}"
        return None

    def settings(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The settings, and the graft that adds heads."""
        settings: dict[str, Any] = deepcopy(self.program.base)
        settings.setdefault("attention", {})
        heads: dict[str, Any] = {"kind": "add-heads"}
        for name, schema in self.program.options.items():
            option = self.given.get(name)
            sets = self._sets(name, schema, option)
            if sets is None:
                continue
            if schema.role in ("add-head", "add-head-at", "add-head-init"):
                heads.update(sets)
                continue
            touched: Mapping[str, Any] = sets.get("attention", {})
            if touched and "kind" not in touched and settings["attention"].get("kind") == "softmax":
                if option is not None:
                    message = f"{shown(option)}: has no effect on softmax attention"
                    self.refusals.append(Refusal(option.line, "effect", message, name))
                continue
            if option is not None:
                self.sizes.update(dict.fromkeys(sets.get("model", {}), option))
            settings = merge(settings, sets)
        return settings, heads if self._role("add-head") is not None else None

    def divides(self, settings: Mapping[str, Any]) -> None:
        """Refuse an update that is no whole number of passes: the program stops there too."""
        train = settings.get("train", {})
        tokens, rows = train.get("tokens_per_update"), train.get("micro_batch")
        context = settings.get("task", {}).get("context")
        if not all(isinstance(number, int) and number > 0 for number in (tokens, rows, context)):
            return
        if tokens % (rows * context):
            numbers = {str(tokens), str(rows), str(context)}
            named = [option for option in self.given.values() if option.value in numbers]
            line = named[0].line if named else self.launch.line
            what = "".join(f"{shown(option)}: " for option in named[:1])
            message = f"{what}{tokens} tokens of an update do not divide into passes of {rows} sequences of {context}"
            self.refusals.append(Refusal(line, "size", message, named[0].name if named else None))

    def _sets(self, name: str, schema: OptionSchema, option: Option | None) -> Mapping[str, Any] | None:
        """What the option, or its default, sets; None: nothing is given and there is no default that does."""
        value: Any = None
        sets: Mapping[str, Any] = schema.sets
        if option is not None:
            if option.value is not None:
                value = schema.plain(option.value)
            self._note(name, option.line, schema.note, removed=schema.removed)
            readings = schema.readings_of(option.value)
            chosen = self.choices.of(name, self.group)
            if chosen is not None and chosen in readings:
                self._note(name, option.line, readings[chosen].note)
                return cast(Mapping[str, Any], _filled(readings[chosen].sets, value))
        else:
            earlier = schema.earlier_for(self.interface, self.given)
            value = schema.default if earlier is None else earlier.value
            if value is None or value is False or name in self.off or schema.readings or not self._read(schema):
                return None
            if earlier is None and not schema.values:  # a number of today's: the base says it
                return None
            if earlier is not None and earlier.note is not None and self._matters(schema):
                self._note(name, self.launch.line, earlier.note)
        known = None if value is None else schema.values.get(str(value).lower())
        if known is not None:
            sets = known.sets
            self._note(name, self.launch.line if option is None else option.line, known.note)
        return cast(Mapping[str, Any], _filled(sets, value))

    def _read(self, schema: OptionSchema) -> bool:
        """Whether the option would be read: the ones it goes with are there."""
        found = {other: self._value(other) for other in schema.only_with}
        return all(
            value is not None and (not schema.only_with[other] or value in schema.only_with[other])
            for other, value in found.items()
        )

    def _matters(self, schema: OptionSchema) -> bool:
        """Whether a default of the option bears on this command: one about the optimizer does where weights are loaded,
        one about the fresh model where none are."""
        loads = self._role("checkpoint") is not None
        return loads if schema.role == "optimizer" else not loads if "model" in schema.sets else True

    def _note(self, name: str, line: int, note: str | None, removed: str | None = None) -> None:
        if removed is not None:
            self.notes.append(f"--{name} (line {line}) {removed}")
        if note is not None:
            self.notes.append(f"--{name} (line {line}): {note}")

    def settled(self, settings: Mapping[str, Any], heads: Mapping[str, Any] | None) -> Settled | tuple[Refusal, ...]:
        launch = self.launch
        name = self._text("name")
        if name is None:
            wanted = self.program.with_role("name")
            return (Refusal(launch.line, "name", f"the run has no name: --{wanted} is missing", wanted),)
        for option in launch.lost:
            self.notes.append(
                f"{shown(option)} (line {option.line}) never reached the program, because the line above does not end "
                "in a backslash; it is imported as written, and what was reported there is of a run without it"
            )
        for variable in launch.environment:
            known = self.program.variables.get(variable)
            self.inside |= known is not None and known.inside
        checkout = launch.checkout
        if checkout is not None:
            self.notes.append(f"there the code was {checkout.text} (line {checkout.line}); here it is Winnow's")
        start = None
        option = self._role("checkpoint")
        if option is not None:
            start = Start(option.value or "", option.line, self._resumes())
        return Settled(
            launch=launch,
            program=self.program,
            group=self.group,
            name=name,
            seed=self._seed(),
            settings=settings,
            heads=heads,
            start=start,
            sizes=self.sizes,
            inside=self.inside,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _resumes(self) -> bool:
        if self._role("optimizer") is not None:
            return True
        name = self.program.with_role("optimizer")
        if name is None or name in self.off:
            return False
        return bool(self.program.options[name].default_for(self.interface, self.given))

    def _seed(self) -> int:
        name = self.program.with_role("seed")
        option = self.given.get(name or "")
        if option is not None:
            return int(option.value or 0)
        default = None if name is None else self.program.options[name].default_for(self.interface, self.given)
        return int(default or 0)

    def _role(self, role: Role) -> Option | None:
        return self.given.get(self.program.with_role(role) or "")

    def _text(self, role: Role) -> str | None:
        option = self._role(role)
        return None if option is None else option.value

    def _value(self, name: str) -> str | None:
        """The value in force of an option, in lower case; of a flag "true"; None: it is off, or has no default."""
        option = self.given.get(name)
        if option is not None:
            return "true" if option.value is None else option.value.lower()
        default = self.program.options[name].default_for(self.interface, self.given)
        return None if name in self.off or default is None or default is False else str(default).lower()


def shown(option: Option) -> str:
    """The option as a flag, however it was given."""
    return f"--{option.name}" if option.value is None else f"--{option.name} {option.value}"


def _filled(template: Any, value: Any) -> Any:
    """The template with the value in the place of "$value"; other names wait until the model's size is known."""
    if isinstance(template, Mapping):
        return {key: _filled(item, value) for key, item in cast(Mapping[str, Any], template).items()}
    if template == "$value":
        return value
    return template.replace("$value", repr(value)) if isinstance(template, str) else deepcopy(template)

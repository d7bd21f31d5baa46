"""Launches with what is known of their programs: name, group, seed, settings that count, settings in Winnow's words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from winnow.notebook.launches import GROUPS, NAMES, SEEDS, SYSTEM, Launch, Option
from winnow.notebook.program import OptionSchema, Program, program_of

NUISANCE = ("train.micro_batch", "train.compile")
"""Settings that are meant to change speed and memory, not what is learnt."""


@dataclass(frozen=True)
class Run:
    """A launch, and what its program makes of it."""

    launch: Launch
    program: Program | None
    """None: an unknown one; then names are taken for what they usually mean and no default is known."""
    facts: Facts
    """The program's description, turned for look-ups; empty for an unknown one."""

    @property
    def line(self) -> int:
        """Line of its fence."""
        return self.launch.line

    @cached_property
    def given(self) -> dict[str, Option]:
        """Options that reach the program, by the program's own name for them; the last of several counts."""
        return {self.own_name(option): option for option in self.launch.options}

    def own_name(self, option: Option) -> str:
        """The flag's name of an option that was given as a variable."""
        if self.launch.interface == "flags":
            return option.name
        return self.facts.variables.get(option.name.upper(), option.name)

    def schema(self, name: str) -> OptionSchema | None:
        """What is known of an option."""
        return self.facts.options.get(name)

    @cached_property
    def name_option(self) -> Option | None:
        """The option that names the run."""
        return self._role("name", NAMES)

    @cached_property
    def group_option(self) -> Option | None:
        """The option that names what it is compared with."""
        return self._role("group", GROUPS)

    @property
    def name(self) -> str | None:
        """How the run is called."""
        return None if self.name_option is None else self.name_option.value

    @property
    def group(self) -> str | None:
        """What it is compared with."""
        return None if self.group_option is None else self.group_option.value

    @cached_property
    def seed_option(self) -> Option | None:
        """The option that gives the seed."""
        return self._role("seed", SEEDS)

    @cached_property
    def seed(self) -> str | None:
        """The seed that counts: the one given, else the program's default; None where neither is known."""
        if self.seed_option is not None:
            return self.seed_option.value
        return self.first_seed

    @cached_property
    def first_seed(self) -> str | None:
        """The program's default seed."""
        name = self.facts.roles.get("seed")
        schema = None if name is None else self.schema(name)
        return None if schema is None or schema.default is None else str(schema.default)

    @cached_property
    def arm(self) -> dict[str, str]:
        """What makes it another experiment than its program's default: options by name, without names, seed, defaults,
        and what changes no result."""
        found: dict[str, str] = {}
        for name, option in self.given.items():
            if option in (self.name_option, self.group_option, self.seed_option):
                continue
            schema = self.facts.options.get(name)
            if schema is not None and (name in self.facts.aside or self.is_default(option, schema)):
                continue
            found[name] = "true" if option.value is None else option.value
        return found

    def is_default(self, option: Option, schema: OptionSchema) -> bool:
        """Whether an option gives what the program does anyway."""
        default = schema.default_for(self.launch.interface, self.given)
        if default is None or option.value is None:
            return False
        return schema.plain(option.value) == default

    @cached_property
    def environment(self) -> dict[str, str]:
        """Variables that may change results."""
        return {
            name: option.value or ""
            for name, option in self.launch.environment.items()
            if not SYSTEM.match(name) and name not in self.facts.aside_variables
        }

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two commands that do the same on the same code."""
        checkout = self.launch.checkout
        return (
            self.program.name if self.program else self.launch.module,
            self.launch.launcher,
            self.launch.processes,
            tuple(sorted(self.arm.items())),
            self.seed,
            tuple(sorted(self.environment.items())),
            tuple(word.text for word in self.launch.arguments if word.text.strip()),
            checkout.text if checkout else None,
        )

    def option_for(self, setting: str) -> Option | None:
        """The option given that sets one of Winnow's settings, by dotted key."""
        setters = self.facts.setters.get(setting, {})
        return next((option for name, option in reversed(self.given.items()) if name in setters), None)

    def setting(self, key: str) -> float | str | bool | None:
        """One of Winnow's settings that the run has, given or by default; None where it is not known."""
        facts = self.facts
        setters = facts.setters.get(key, {})
        option = self.option_for(key)
        if option is not None:
            name = self.own_name(option)
            value = setters[name]
            if value != "$value":
                return value if not isinstance(value, str) or "$" not in value else None
            return None if option.value is None else facts.options[name].plain(option.value)
        for name, value in setters.items():
            if value == "$value":
                default = facts.options[name].default_for(self.launch.interface, self.given)
                if default is not None:
                    return default
        return facts.base.get(key)

    @cached_property
    def nuisance(self) -> dict[str, Option]:
        """Options given that should change nothing but speed and memory."""
        return {name: option for name, option in self.given.items() if name in self.facts.nuisance}

    @cached_property
    def lead(self) -> str:
        """The prose about this block alone."""
        return "\n".join(item.text for item in self.launch.lead if item.is_text)

    @cached_property
    def is_called_baseline(self) -> bool:
        """Whether its name or its prose says that it is what others are compared with."""
        said = re.search(
            r"^\s*baseline\b|\((?:the )?baseline\)|\bbaseline:\s*$|\bbaseline again\b", self.lead, re.I | re.M
        )
        return bool(said) or bool(re.fullmatch(r"(?:.*[_-])?(?:baseline|control)(?:[_-]\d+)?", self.name or "", re.I))

    def _role(self, role: Any, usual: Sequence[str]) -> Option | None:
        name = self.facts.roles.get(role)
        return self.given.get(name) if name is not None else self.launch.option(*usual)


class Facts:
    """A program's description, turned so that each question is one look-up: thousands are asked of it."""

    def __init__(self, program: Program | None) -> None:
        self.options: dict[str, OptionSchema] = dict(program.options) if program else {}
        self.base: dict[str, Any] = dict(_leaves(program.base)) if program else {}
        self.setters: dict[str, dict[str, Any]] = {}
        """For each of Winnow's settings, by dotted key, the options that set it, and to what."""
        self.nuisance: set[str] = set()
        self.roles: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        """Options by their names as environment variables."""
        self.aside: set[str] = set()
        """Options that change no result."""
        self.changed: set[str] = set()
        """Options whose meaning has changed."""
        self.removed: dict[str, str] = {}
        self.only_with: dict[str, dict[str, list[str]]] = {}
        self.aside_variables = {
            name for name, variable in (program.variables.items() if program else ()) if variable.aside is not None
        }
        for name, schema in self.options.items():
            leaves = dict(_leaves(schema.sets))
            for key, value in leaves.items():
                self.setters.setdefault(key, {})[name] = value
            if leaves and all(key in NUISANCE for key in leaves):
                self.nuisance.add(name)
            if schema.role is not None:
                self.roles.setdefault(schema.role, name)
            if schema.environment is not None:
                self.variables[schema.environment] = name
            if schema.aside is not None:
                self.aside.add(name)
            if schema.readings:
                self.changed.add(name)
            if schema.removed is not None:
                self.removed[name] = schema.removed
            if schema.only_with:
                self.only_with[name] = schema.only_with


def runs(launches: Sequence[Launch], programs: Sequence[Program]) -> tuple[Run, ...]:
    """The runs of some launches."""
    known: dict[str, tuple[Program | None, Facts]] = {}
    for launch in launches:
        if launch.module not in known:
            program = program_of(launch.module, programs)
            same = next((facts for other, facts in known.values() if other is program), None)
            known[launch.module] = (program, same or Facts(program))
    return tuple(Run(launch, *known[launch.module]) for launch in launches)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested table."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

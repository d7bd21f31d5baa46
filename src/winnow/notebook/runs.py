"""Launches with what is known of their programs: name, group, seed, settings that count, settings in Winnow's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
        if self.program is None or self.launch.interface == "flags":
            return option.name
        return self.program.of_environment(option.name.upper()) or option.name

    def schema(self, name: str) -> OptionSchema | None:
        """What is known of an option."""
        return None if self.program is None else self.program.option(name)

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
        name = None if self.program is None else self.program.with_role("seed")
        schema = None if name is None else self.schema(name)
        return None if schema is None or schema.default is None else str(schema.default)

    @cached_property
    def first_seed(self) -> str | None:
        """The program's default seed."""
        name = None if self.program is None else self.program.with_role("seed")
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
            schema = self.schema(name)
            if schema is not None and (schema.aside is not None or self.is_default(name, option, schema)):
                continue
            found[name] = "true" if option.value is None else option.value
        return found

    def is_default(self, name: str, option: Option, schema: OptionSchema) -> bool:
        """Whether an option gives what the program does anyway."""
        default = schema.default_for(self.launch.interface, self.given)
        if default is None or option.value is None:
            return False
        return schema.plain(option.value) == default

    @cached_property
    def environment(self) -> dict[str, str]:
        """Variables that may change results."""
        known = {} if self.program is None else self.program.variables
        return {
            name: option.value or ""
            for name, option in self.launch.environment.items()
            if not SYSTEM.match(name) and not (name in known and known[name].aside is not None)
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
        found = None
        for name, option in self.given.items():
            schema = self.schema(name)
            if schema is not None and _inside(schema.sets, setting) is not None:
                found = option
        return found

    def setting(self, key: str) -> float | str | bool | None:
        """One of Winnow's settings that the run has, given or by default; None where it is not known."""
        if self.program is None:
            return None
        option = self.option_for(key)
        if option is not None:
            schema = self.schema(self.own_name(option))
            assert schema is not None
            value = _inside(schema.sets, key)
            if value != "$value":
                return value if not isinstance(value, str) or "$" not in value else None
            return None if option.value is None else schema.plain(option.value)
        for name, schema in self.program.options.items():
            if name not in self.given and _inside(schema.sets, key) == "$value":
                default = schema.default_for(self.launch.interface, self.given)
                if default is not None:
                    return default
        value = _inside(self.program.base, key)
        return None if isinstance(value, dict) else value

    @cached_property
    def nuisance(self) -> dict[str, Option]:
        """Options given that should change nothing but speed and memory."""
        found: dict[str, Option] = {}
        for name, option in self.given.items():
            schema = self.schema(name)
            if schema is not None and schema.sets and all(key in NUISANCE for key in _leaves(schema.sets)):
                found[name] = option
        return found

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
        name = None if self.program is None else self.program.with_role(role)
        return self.given.get(name) if name is not None else self.launch.option(*usual)


def runs(launches: Sequence[Launch], programs: Sequence[Program]) -> tuple[Run, ...]:
    """The runs of some launches."""
    return tuple(Run(launch, program_of(launch.module, programs)) for launch in launches)


def _inside(table: Mapping[str, Any], key: str) -> Any:
    """A value by dotted key, whether the table spells it in one piece or nested; None where there is none."""
    if key in table:
        return table[key]
    first, dot, rest = key.partition(".")
    inner = table.get(first)
    return _inside(inner, rest) if dot and isinstance(inner, Mapping) else None


def _leaves(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, value in table.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"]
    return found

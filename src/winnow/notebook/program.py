"""What is known of a training program that notebooks launch: its options, and what they mean in Winnow's words.

Facts about a program stand in a TOML file, one per program, under `programs/`; a user may bring another one
(docs/importing.md). Rules that read notebooks and the importer ask here, so that neither knows any program.

    program = program_of("context_compression.train", known_programs())
    program.option("max_steps").problem("many")        # "takes a whole number, not 'many'"
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from winnow.config import Config, input_errors
from winnow.errors import InputError, nearest

Role = Literal["group", "name", "seed", "checkpoint", "optimizer", "add-head", "add-head-at", "add-head-init"]
Interface = Literal["environment", "flags"]


class Value(Config):
    """One permitted value of an option."""

    about: str = ""
    sets: dict[str, Any] = Field(default_factory=dict)
    """What it means: settings of a study, laid over those of other options."""
    asks: tuple[str, ...] = ()
    """Options that must be given with it."""
    note: str | None = None
    """What a reader of results should know: the program did something else, say."""


class Reading(Config):
    """One of several meanings that an option has had."""

    about: str
    sets: dict[str, Any] = Field(default_factory=dict)
    refused: str | None = None
    """Why a command is no command under this reading. None: it is one."""
    form: Literal["bare", "valued"] | None = None
    """How the option must be written for the question to arise. None: either way."""
    note: str | None = None
    """What a reader of results should know of commands under this reading."""
    above: float | None = None
    """Numbers must be greater under this reading. None: as the option says."""


class Earlier(Config):
    """A default that was another one before."""

    value: str | int | float | bool
    when: str
    """`environment` for the older interface, or the name of an option whose presence says that a command is older."""
    note: str | None = None


class OptionSchema(Config):
    """One option of a program, under the name of its flag without the dashes, hyphens as underscores.

    What several options set is laid over each other in the order of the file.
    """

    about: str
    environment: str | None = None
    """Its name as an environment variable. None: it has none."""
    takes: Literal["flag", "value", "either"] = "value"
    """flag: nothing follows; value: something must; either: it has been both."""
    type: Literal["text", "integer", "number", "boolean"] = "text"
    """Of the value. A flag in the environment is a boolean."""
    values: dict[str, Value] = Field(default_factory=dict)
    """Permitted values; none: any of the type."""
    least: float | None = None
    """The smallest number that means something. None: there is none."""
    above: float | None = None
    """Numbers must be greater. None: they need not be."""
    never: dict[str, str] = Field(default_factory=dict)
    """Values that look right and never were, each with the reason."""
    default: str | int | float | bool | None = None
    """None: there is none, or what follows from other options."""
    earlier: tuple[Earlier, ...] = ()
    sets: dict[str, Any] = Field(default_factory=dict)
    """Settings of a study; "$value" stands for the value, "$n_heads" for the model's heads, "$a * $b" for products."""
    readings: dict[str, Reading] = Field(default_factory=dict)
    """Meanings, where they have changed: nobody but the author can choose. None: it has one."""
    only_with: dict[str, list[str]] = Field(default_factory=dict)
    """Options, and values of them, without which this one is not read; [] permits any value."""
    role: Role | None = None
    """What the importer does with it beyond settings."""
    aside: str | None = None
    """Why it changes no result, and what does its job in Winnow. None: it may change results."""
    unbuilt: str | None = None
    """The part that Winnow has not got. None: it has what the option needs."""
    removed: str | None = None
    """When and why later versions of the program refuse it. None: they take it."""
    note: str | None = None
    """What a reader of results should know of every command that gives it."""

    @model_validator(mode="after")
    def _says_what_it_does(self) -> OptionSchema:
        meanings = [self.sets, self.values, self.readings, self.role, self.aside, self.unbuilt]
        if not any(meanings):
            raise InputError(
                "says nothing of what it means", mend="give sets, values, readings, role, aside or unbuilt"
            )
        return self

    def problem(self, value: str | None, interface: Interface = "flags") -> str | None:
        """What is wrong with the value as written, or None. `value` None: the option stands bare."""
        if value is None:
            return None if self.takes != "value" else f"takes {self._kind()}"
        if self.takes == "flag" and interface == "flags":
            return f"takes no value, and {value!r} follows"
        if value in self.never:
            return f"{value!r} {self.never[value]}"
        if self.values and value.lower() not in self.values:
            return f"{value!r} is not a value; {nearest(value, self.values)}"
        plain = self.plain(value)
        if not self.values and plain is None:
            return f"takes {self._kind()}, not {value!r}"
        if isinstance(plain, int | float):
            if not math.isfinite(plain):
                return f"takes a finite number, not {value!r}"
            if self.least is not None and plain < self.least:
                return f"takes {self.least:g} or more, not {value}"
            return too_small(plain, self.above)
        return None

    def plain(self, value: str) -> str | int | float | bool | None:
        """The value in its type; None where it is not of the type."""
        try:
            if self.type == "integer":
                return int(value)
            if self.type == "number":
                return float(value)
        except ValueError:
            return None
        if self.type == "boolean":
            return {"true": True, "false": False}.get(value.lower())
        return value

    def default_for(self, interface: Interface, given: Iterable[str]) -> str | int | float | bool | None:
        """The default of a command's time.

        interface: how the command gives its options; given: the names of those that it gives.
        """
        found = self.earlier_for(interface, given)
        return self.default if found is None else found.value

    def earlier_for(self, interface: Interface, given: Iterable[str]) -> Earlier | None:
        """The earlier default that a command ran under; None: today's."""
        names = set(given)
        return next((old for old in self.earlier if old.when == interface or old.when in names), None)

    def readings_of(self, value: str | None) -> Mapping[str, Reading]:
        """The meanings between which somebody must choose for the option as written; none: there is no question."""
        form = "bare" if value is None else "valued"
        return {name: each for name, each in self.readings.items() if each.form in (None, form)}

    def _kind(self) -> str:
        if self.values:
            return f"one of {', '.join(sorted(self.values))}"
        return {"integer": "a whole number", "number": "a number", "boolean": "true or false"}.get(self.type, "a value")


def too_small(number: float, above: float | None) -> str | None:
    """What is wrong with a number that must be greater than another; None: nothing."""
    return f"takes more than {above:g}, not {number:g}" if above is not None and number <= above else None


class VariableSchema(Config):
    """An environment variable that is no option."""

    about: str
    aside: str | None = None
    """Why it changes no result. None: it may."""
    inside: bool = False
    """It measures the inside of the mechanism while the run trains."""


class Program(Config):
    """A training program, as far as commands in notebooks show it."""

    name: str
    about: str
    runs: tuple[str, ...]
    """Modules (`python -m NAME`) and scripts (`python NAME`) that are this program."""
    checkpoint: str | None = None
    """File name of a checkpoint in a run's directory, `{step}` for the step. None: it writes none."""
    overwrites: str | None = None
    """What happens to an earlier run of the same name. None: it is kept."""
    base: dict[str, Any] = Field(default_factory=dict)
    """What a run is where no option says otherwise, defaults of numbers included: settings of a study."""
    options: dict[str, OptionSchema]
    variables: dict[str, VariableSchema] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_known(self) -> Program:
        for name, option in self.options.items():
            asked = [other for value in option.values.values() for other in value.asks]
            older = [old.when for old in option.earlier if old.when != "environment"]
            for other in [*asked, *older, *option.only_with]:
                if other not in self.options:
                    raise InputError(
                        f"names an option {other!r}", key=f"options.{name}", mend=nearest(other, self.options)
                    )
        return self

    def option(self, name: str) -> OptionSchema | None:
        """What is known of `--name`, with underscores or hyphens; None: the program has no such option."""
        return self.options.get(name.replace("-", "_"))

    def of_environment(self, variable: str) -> str | None:
        """The option that an environment variable gives; None: none."""
        return next((name for name, option in self.options.items() if option.environment == variable), None)

    def with_role(self, role: Role) -> str | None:
        """The option that plays a role; None: none does."""
        return next((name for name, option in self.options.items() if option.role == role), None)


def known_programs() -> tuple[Program, ...]:
    """The programs that ship with Winnow."""
    return _shipped()


@cache
def _shipped() -> tuple[Program, ...]:
    folder = files("winnow.notebook") / "programs"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tuple(_parse((folder / name).read_text("utf-8"), name) for name in names)


def read_program(path: Path) -> Program:
    """A program that a user describes. Raises InputError with the file and the key."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError("no such file", file=path, mend="give a description of a program: docs/importing.md") from None
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", file=path, mend="a description of a program is TOML") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    return _parse(text, path)


def _parse(text: str, file: str | Path) -> Program:
    try:
        return Program.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"is not TOML: {error}", file=file) from None
    except ValidationError as error:
        raise input_errors(error)[0].at(file=file) from None


def program_of(module: str, programs: Iterable[Program]) -> Program | None:
    """The program that a module or script (`-m MODULE`, `python path/to/SCRIPT.py`) is; None: an unknown one."""
    names = {module, PurePosixPath(module).name}
    return next((program for program in programs if names & set(program.runs)), None)

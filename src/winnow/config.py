"""Frozen configurations with a scientific identity, and randomness addressed by what it is for.

`Config`    an immutable pydantic model that refuses unknown keys.
`Variant`   a Config chosen by its `kind`: a family (attention, task, model) and its members.
`digest`    SHA-256 of canonical JSON: equal digests mean the same experiment.
`stream`    every random draw is a function of (seed, what for); nothing consumes a global generator.

Not here: device, threads, paths, versions. They are provenance (`winnow.records`), never identity.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from winnow.errors import InputError, nearest

DIGEST_LENGTH = 16
"""Hexadecimal digits of a run's digest (64 bits): its folder name in the store."""


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces; refuses what has no stable text (NaN, objects)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def run_digest(config: Mapping[str, Any], seed: int, data: str, sources: Mapping[str, str]) -> str:
    """Scientific identity of one run.

    config: `RunConfig.canonical()`; seed: the random seed; data: the task's data digest;
    sources: SHA-256 of each `use` file by name. Needs no torch, so a stored plan can name its runs.
    """
    return digest({"config": config, "seed": seed, "data": data, "sources": sources})[:DIGEST_LENGTH]


def parent_digest(config: Mapping[str, Any], data: str, sources: Mapping[str, str], seed: int | None) -> str:
    """Scientific identity of the runs that others start from: those of one arm.

    As for `run_digest`; seed: of the one run that is always meant; None = of each run the parent with its own seed.
    """
    return digest([config, data, sources, seed])


def stream(seed: int, *address: str | int) -> int:
    """A 63-bit key for the draws named by `address`, for example `stream(0, "init", "blocks.0.attn.qkv", "q.3")`.

    Seed a fresh generator with it. Two addresses never share draws, so nothing that is added shifts anything else.
    """
    return int(digest([seed, *address])[:16], 16) >> 1


_read: set[tuple[int, str]] | None = None


@contextmanager
def watch_reads() -> Iterator[set[tuple[int, str]]]:
    """Collect (id of a Config, field) of every field that code reads while the block runs.

    Dumps and digests do not count as reads: an option that is only hashed never reached the model.
    """
    global _read
    outer, _read = _read, set()
    try:
        yield _read
    finally:
        _read = outer


class Config(BaseModel):
    """Immutable, strict, closed. Subclass it; give every field its unit and off-value in a string under it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    revision: ClassVar[int] = 0
    """Bumped when this component's results may move: only runs that use it change identity."""
    legacy: ClassVar[Mapping[str, Any]] = {}
    """Fields added after release, with the value that means "as before": left out of the digest when equal."""
    outside_identity: ClassVar[frozenset[str]] = frozenset()
    """Fields that change no result (where a cached file lies, say): never part of the digest."""

    def __getattribute__(self, name: str) -> Any:
        if _read is not None and name in type(self).__pydantic_fields__:
            _read.add((id(self), name))
        return super().__getattribute__(name)

    @model_validator(mode="before")
    @classmethod
    def _close(cls, value: Any) -> Any:
        """Refuse unknown keys here, where the class is known and can name its own; make lists tuples.

        A subclass's own validators of this mode run before it, so they may expand a preset.
        """
        if not isinstance(value, dict):
            return value
        table = cast(dict[str, Any], value)
        unknown = [] if Variant in cls.__bases__ else [key for key in table if key not in cls.model_fields]
        if unknown:
            raise ValidationError.from_exception_data(cls.__name__, [_unknown(key, table[key], cls) for key in unknown])
        return {key: _frozen_list(item) for key, item in table.items()}

    def canonical(self) -> dict[str, Any]:
        """What the digest sees: every field, less legacy values, plus the revision where it is not 0."""
        # Through the instances, not `model_dump`: a base-typed field would drop its subclass's fields.
        found: dict[str, Any] = {}
        for name in type(self).model_fields:
            if name in self.outside_identity:
                continue
            value = self.__dict__[name]
            if name in self.legacy and value == self.legacy[name]:
                continue
            found[name] = canonical_value(value)
        if self.revision:
            found["~revision"] = self.revision
        return found

    def digest(self) -> str:
        """SHA-256 of the canonical form."""
        return digest(self.canonical())

    def dump(self) -> dict[str, Any]:
        """Plain JSON data from which `model_validate` makes an equal config."""
        return self.model_dump(mode="json", serialize_as_any=True)

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A validated copy with some fields changed."""
        return type(self).model_validate({**{name: self.__dict__[name] for name in type(self).model_fields}, **changes})

    def walk(self, path: str = "") -> Iterator[tuple[str, Config]]:
        """This config and those inside it, each with its dotted path."""
        yield path, self
        for name in type(self).model_fields:
            value = self.__dict__[name]
            yield from _walk(value, f"{path}.{name}" if path else name)


def _walk(value: Any, path: str) -> Iterator[tuple[str, Config]]:
    if isinstance(value, Config):
        yield from value.walk(path)
    elif isinstance(value, tuple):
        for index, item in enumerate(cast(tuple[Any, ...], value)):
            yield from _walk(item, f"{path}.{index}")
    elif isinstance(value, Mapping):
        for key, item in cast(Mapping[Any, Any], value).items():
            yield from _walk(item, f"{path}.{key}")


def _unknown(key: str, value: Any, schema: type[Config]) -> InitErrorDetails:
    context = {"key": repr(key), "mend": nearest(str(key), schema.model_fields)}
    kind = PydanticCustomError("unknown_key", "unknown key {key}; {mend}", context)
    return InitErrorDetails(type=kind, loc=(str(key),), input=value)


def _frozen_list(value: Any) -> Any:
    return tuple(_frozen_list(item) for item in cast(list[Any], value)) if isinstance(value, list) else value


def canonical_value(value: Any) -> Any:
    """A value as the digest sees it: configs by their canonical form, tuples as lists, 1.0 as 1."""
    if isinstance(value, Config):
        return value.canonical()
    if isinstance(value, tuple | list):
        return [canonical_value(item) for item in cast(Iterable[Any], value)]
    if isinstance(value, Mapping):
        return {str(key): canonical_value(item) for key, item in cast(Mapping[Any, Any], value).items()}
    # 1 and 1.0 in a float field are one value; an int field never holds a float (strict).
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < 2**53:
        return int(value)
    return value


class Variant(Config):
    """A Config chosen by `kind`.

    A direct subclass is a family: a field of the family's type accepts a table whose `kind` names a member.
    A member is a subclass of a family with a default for `kind`; defining it registers it.
    """

    kind: Any
    """The name of the member; each member narrows it to a literal of its own."""
    members: ClassVar[dict[str, type[Variant]]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if Variant in cls.__bases__:
            cls.members = {}
            return
        kind = cls.model_fields["kind"].default
        if not isinstance(kind, str):
            return  # an abstract step between the family and its members
        known = cls.members.get(kind)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"kind {kind!r} is defined by {known.__qualname__} and by {cls.__qualname__}")
        cls.members[kind] = cls

    @model_validator(mode="wrap")
    @classmethod
    def _choose(cls, value: Any, handler: Any) -> Any:
        if Variant not in cls.__bases__ or isinstance(value, cls):
            return handler(value) if not isinstance(value, cls) else value
        if not isinstance(value, dict):
            raise PydanticCustomError("variant_type", "should be a table with a kind")
        table = cast(dict[str, Any], value)
        kind = table.get("kind")
        if not isinstance(kind, str) or kind not in cls.members:
            raise PydanticCustomError(
                "variant_kind",
                "kind {kind} is unknown; {mend}" if kind is not None else "no kind is given; {mend}",
                {"kind": repr(kind), "mend": nearest(str(kind or ""), cls.members)},
            )
        return cls.members[kind].model_validate(table)


def input_errors(error: ValidationError) -> list[InputError]:
    """A pydantic error as Winnow's own: the key as a dotted path, the nearest valid name, the permitted values."""
    return [_input_error(details) for details in error.errors(include_url=False)]


def _input_error(details: Any) -> InputError:
    key = ".".join(str(part) for part in details["loc"])
    kind: str = details["type"]
    if kind == "unknown_key":
        return InputError(f"unknown key {details['ctx']['key']}", key=key, mend=details["ctx"]["mend"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return InputError(f"{details['input']!r} should be a table", key=key)
    if kind == "missing":
        return InputError("is missing", key=key, mend="give it a value")
    if kind == "literal_error":
        permitted = str(details["ctx"]["expected"])
        return InputError(f"{details['input']!r} is not permitted", key=key, mend=f"permitted: {permitted}")
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return InputError(cause.message, key=".".join(part for part in (key, cause.key) if part), mend=cause.mend)
    message = str(details["msg"])
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    shown = details.get("input")
    if isinstance(shown, str | int | float | bool) and kind not in ("value_error", "variant_kind"):
        message = f"{shown!r} {message}"
    return InputError(message, key=key)

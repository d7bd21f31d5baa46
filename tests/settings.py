"""Dead settings: for every field of a config, at any depth, another value changes the model or is refused.

`verdicts` walks the pydantic fields of a model's config as its study would write it. It invents other values from a
field's type; where it cannot, or where a value acts only beside another, `EXAMPLES` says what to write. A field of
which no other value is accepted, or an accepted one leaves the model as it was, is dead.

A model is what its parameters are (shapes, roles, initial values, learning rates) and what it computes, in fp64 with
weights of its own names: outputs and penalties while training.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import ValidationError

from winnow.config import Config, Variant, stream
from winnow.errors import InputError
from winnow.models import Model, ModelConfig
from winnow.parameters import ParameterSpec, Slice, parameter_table

Table = Mapping[str, Any]
Path = tuple[str | int, ...]
Outline = dict[str, tuple[tuple[int, ...], ParameterSpec]]

BASES: Mapping[str, Table] = {
    "gpt": {"kind": "gpt", "d_model": 8, "n_layers": 2, "n_heads": 4},
    "conv": {"kind": "conv", "d_model": 8, "n_layers": 3, "kernel": 3},
    "lstm": {"kind": "lstm", "d_model": 8, "n_layers": 2, "tied": False},
}
"""A small model of each kind, as a study would write it; fields that act only beside another are beside it here."""

EXAMPLES: Mapping[str, tuple[Table, Any]] = {
    # Where a value cannot be invented, or acts only beside another: what else to write in the same table, and it.
    "ConvConfig.channels": ({"residual": [False, False, True]}, [6, 8, 8]),
    "ConvConfig.skips": ({}, [[0, 2]]),
    "ConstantProtector.value": ({"value": 0.5}, 1.0),
    "GateConfig.relu_after": ({"leak": 0.5}, True),
    "SelectiveConfig.spread": ({"scores": {"kind": "selectors", "n_heads": 2}}, [0, 1, 1, 0]),
    "SelectiveConfig.residual_scores": ({}, True),
}
ROUNDING = ("AccumulateConfig.algorithm", "AccumulateConfig.dtype")
"""Change a result in its last bits alone, in fp32 and after many tokens."""

V, T, LONG = 13, 12, 131
SAME = 1e-9
"""Part of an output's size up to which a difference is rounding."""


@dataclass(frozen=True)
class Verdict:
    """What became of one other value of a field."""

    field: str
    """`path: value`"""
    dead: bool


def verdicts(kind: str) -> Iterator[Verdict]:
    """Every field of a kind of model, and of every member of every family inside it."""
    assert kind in BASES, f"say in BASES how a small model of kind {kind!r} is written"
    yield from verdicts_at(BASES[kind], ())


def verdicts_at(table: Table, at: Path) -> Iterator[Verdict]:
    """Every field of the config that stands at `at` in the model that `table` writes, and of what is inside it."""
    yield from _Walk(set()).part(table, at, _at(ModelConfig.model_validate(table), at))


@dataclass
class _Walk:
    seen: set[str]
    """Types of configs whose fields are done."""

    def part(self, table: Table, at: Path, part: Config) -> Iterator[Verdict]:
        """The fields of the config that stands at `at` in the model that `table` writes."""
        if type(part).__name__ in self.seen:
            return
        self.seen.add(type(part).__name__)
        for name, field in type(part).model_fields.items():
            if name == "kind":
                continue  # other kinds are tried where the family stands
            value = part.__dict__[name]
            yield from self.field(table, at, part, name, value, field.annotation)
            for index, inner in _configs(value):
                yield from self.part(table, (*at, name, *index), inner)

    def field(self, table: Table, at: Path, part: Config, name: str, value: Any, annotation: Any) -> Iterator[Verdict]:
        key = next((k for k in (f"{c.__name__}.{name}" for c in type(part).__mro__) if k in EXAMPLES), "")
        rounding = any(f"{c.__name__}.{name}" in ROUNDING for c in type(part).__mro__)
        where = ".".join(map(str, (*at, name)))
        tried = 0
        number = isinstance(value, int | float) and not isinstance(value, bool)
        for other in [EXAMPLES[key][1]] if key else invented(annotation, value):
            if number and tried:
                break  # one other number will do
            before = written(table, at, EXAMPLES[key][0] if key else {})
            after = written(before, at, {name: other})
            one, another = modelled(before), modelled(after)
            if one is None or another is None:
                assert not key, f"the example of {key} is refused"
                continue
            tried += 1
            yield Verdict(f"{where}: {other!r}", not differ(one, another, rounding=rounding))
            for index, inner in _configs(_at(another[0], (*at, name))):
                yield from self.part(after, (*at, name, *index), inner)
        only_parts = isinstance(value, Config) and Variant not in type(value).__mro__  # its fields are looked at
        what = f"no other value of {type(part).__name__}.{name} is accepted"
        assert tried or only_parts, f"{what}: say in EXAMPLES how it is changed"


def _configs(value: Any) -> Iterator[tuple[Path, Config]]:
    if isinstance(value, Config):
        yield (), value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            for inner, config in _configs(item):
                yield (index, *inner), config


def _at(config: Any, path: Path) -> Any:
    for name in path:
        config = config[name] if isinstance(name, int) else config.__dict__[name]
    return config


def written(table: Table, at: Path, changes: Table) -> Table:
    """A copy of a model's table with some fields of the part at `at` changed; what was not written is, first."""
    if not at:
        return {**table, **changes}
    head, *inner = at
    part = ModelConfig.model_validate(table).dump()[str(head)]
    place = part
    for name in inner:
        place = place[name]
    place.update(changes)
    return {**table, str(head): part}


def invented(annotation: Any, value: Any) -> Iterator[Any]:
    """Other values of a type, in JSON."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for argument in arguments:
            if argument is type(None):
                if value is not None:
                    yield None
            else:
                yield from invented(argument, value)
    elif origin is Literal:
        yield from (other for other in arguments if other != value)
    elif annotation is bool:
        yield not value
    elif origin is Annotated:
        yield from invented(arguments[0], value)
    elif annotation is int:
        found = (value + 1, value + 2, value // 2 or 1) if isinstance(value, int) else (17, 3)
        yield from (other for other in found if other != value)
    elif annotation is float:
        yield from (2 * value + 0.25, value + 1.5) if isinstance(value, int | float) else (0.5,)
    elif origin is tuple and isinstance(value, tuple):
        for index, item in enumerate(value):
            inner = arguments[0] if arguments[-1] is Ellipsis else arguments[index]
            for other in invented(inner, item):
                yield [*map(_plain, value[:index]), other, *map(_plain, value[index + 1 :])]
    elif isinstance(annotation, type) and issubclass(annotation, Config):
        members: list[type[Config]] = [annotation]
        if issubclass(annotation, Variant) and Variant in annotation.__bases__:
            members = shipped(annotation.members.values())
        for member in members:
            if type(value) is not member:
                yield first_of(member)


def shipped(kinds: Iterable[type[Config]]) -> list[Any]:
    """Those of the package: other tests register kinds of their own."""
    return [kind for kind in kinds if kind.__module__.startswith("winnow.")]


def first_of(kind: type[Config]) -> Table:
    """The shortest table of a config: what must be given gets the first value of its type."""
    table: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name == "kind":
            table["kind"] = field.default
        elif field.is_required():
            table[name] = next(invented(field.annotation, None))
    return table


def _plain(value: Any) -> Any:
    return value.dump() if isinstance(value, Config) else value


def modelled(table: Table) -> tuple[ModelConfig, Outline] | None:
    """The config and what its model's parameters are, where both are accepted."""
    try:
        config = ModelConfig.model_validate(table)
        with torch.device("meta"):
            model = config.build(V, T)
    except (ValidationError, InputError):
        return None
    # How parameters are cut changes nothing by itself.
    specs = {name: replace(spec, slices=(), across=()) for name, spec in parameter_table(model).items()}
    return config, {name: (tuple(p.shape), specs[name]) for name, p in model.named_parameters()}


def built(config: ModelConfig, context: int, dtype: torch.dtype, std: float) -> Model:
    torch.set_default_dtype(dtype)
    try:
        model = config.build(V, context)
    finally:
        torch.set_default_dtype(torch.float32)
    table = parameter_table(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for part in table[name].slices or (Slice("", 0, 0, len(parameter)),):
                generator = torch.Generator().manual_seed(stream(3, name, part.name))
                target = part.view(parameter)
                target.copy_(torch.randn(target.shape, generator=generator, dtype=torch.float64) * std)
    return model


def computed(model: Model, context: int) -> list[torch.Tensor]:
    """Logits and penalties while training."""
    tokens = torch.randint(V, (2, context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model.train()(tokens)
        penalties = [aux["penalty"] for aux in output.aux if "penalty" in aux]
        return [output.hidden @ model.readout_weight.T, torch.stack(penalties) if penalties else torch.zeros(1)]


def differ(a: tuple[ModelConfig, Outline], b: tuple[ModelConfig, Outline], *, rounding: bool) -> bool:
    """Whether two models start, train or compute otherwise."""
    if a[1] != b[1]:
        return True
    context = LONG if rounding else T
    settings = (context, torch.float32, 0.3) if rounding else (context, torch.float64, 0.7)
    one, other = (computed(built(config, *settings), context) for config, _ in (a, b))
    pairs = list(zip(one, other, strict=True))
    if rounding:
        return any(not torch.equal(x, y) for x, y in pairs)
    return any(x.shape != y.shape or (x - y).abs().max() > SAME * x.abs().max().clamp(min=1.0) for x, y in pairs)

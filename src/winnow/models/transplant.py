"""One graft on tensors: which old values stand where in the new model, and what the others start with.

The table of parameters says it all: a parameter's slices carry names, `q.3` say, and a family of slices (here `q`)
with as many members as there are heads, before the graft and after, belongs to the heads and follows them. Any other
slice is carried by its name. Nothing is known here of a mechanism.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from winnow.errors import InputError
from winnow.models.base import Model, ModelConfig
from winnow.models.grafts import GraftConfig, Places, heads_of
from winnow.parameters import ParameterSpec, Slice, normal, parameter_table, uniform


@dataclass(frozen=True)
class Cell:
    """The smallest part of a parameter that is carried or fresh as a whole: a slice, or where two slices cross."""

    parameter: str
    name: str
    """`q.3`, `a.1/of.0`; empty for a parameter without slices."""
    label: str
    """How it is called in reports: `blocks.0.attention.qkv.weight[q.3]`."""
    parts: tuple[Slice, ...]

    @property
    def family(self) -> str:
        """The name of its first slice without the number."""
        return _parsed(self.parts[0].name)[0] if self.parts else ""

    def view(self, tensor: Tensor) -> Tensor:
        """This part of anything of the parameter's shape; shares memory with it."""
        for part in self.parts:
            tensor = tensor.narrow(part.dim, part.start, part.stop - part.start)
        return tensor


def _cells(parameter: str, spec: ParameterSpec) -> dict[str, Cell]:
    """The cells of a parameter by name; they tile it."""
    rows = [(part,) for part in spec.slices] or [()]
    columns = [(part,) for part in spec.across] or [()]
    found: dict[str, Cell] = {}
    for parts in (row + column for row in rows for column in columns):
        name = "/".join(part.name for part in parts)
        found[name] = Cell(parameter, name, label(parameter, name), parts)
    return found


def label(parameter: str, cell: str) -> str:
    """The name of a cell among those of all parameters."""
    return f"{parameter}[{cell}]" if cell else parameter


@dataclass(frozen=True)
class Layout:
    """The tensors of a model, without values."""

    table: Mapping[str, ParameterSpec]
    shapes: Mapping[str, torch.Size]
    """Of parameters and persistent buffers, a shared one once."""
    cells: Mapping[str, Mapping[str, Cell]]
    """Of each parameter by their names."""

    @property
    def every(self) -> list[Cell]:
        """The cells of all parameters."""
        return [cell for of in self.cells.values() for cell in of.values()]

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raises InputError, naming the tensor, unless the weights are those of this model."""
        for name, shape in self.shapes.items():
            if name not in weights:
                raise InputError(f"the weights have no {name}", mend="give the weights of this very model")
            if weights[name].shape != shape:
                raise InputError(f"{name} is {list(weights[name].shape)}, the model's is {list(shape)}")
        for name in weights:
            if name not in self.shapes:
                raise InputError(f"the weights have a {name}, the model has none")


@dataclass(frozen=True)
class _Asked:
    """A model as the key of a cache: a config may hold what has no hash."""

    digest: str
    config: ModelConfig = field(compare=False)


def layout(config: ModelConfig, vocab_size: int, context: int) -> Layout:
    """The layout of a model; allocates nothing."""
    return _layout(_Asked(config.digest(), config), vocab_size, context)


@lru_cache(maxsize=64)
def _layout(asked: _Asked, vocab_size: int, context: int) -> Layout:
    with torch.device("meta"):
        model = asked.config.build(vocab_size, context)
    persistent = model.state_dict().keys()
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors.update((name, buffer) for name, buffer in model.named_buffers() if name in persistent)
    table = parameter_table(model)
    cells = {name: _cells(name, spec) for name, spec in table.items()}
    return Layout(table, {name: tensor.shape for name, tensor in tensors.items()}, cells)


def filled(config: ModelConfig, weights: Mapping[str, Tensor], vocab_size: int, context: int) -> Model:
    """The model with copies of these weights, in their dtype, on the CPU."""
    model = config.build(vocab_size, context)
    dtypes = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    if len(dtypes) == 1:
        model = model.to(dtypes.pop())
    fill(model, weights)
    return model


@torch.no_grad()
def fill(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model that has them all."""
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, weight in weights.items():
        tensors[name].copy_(weight)


@dataclass(frozen=True)
class Transplant:
    """The model after one graft."""

    config: ModelConfig
    before: Layout
    after: Layout
    weights: dict[str, Tensor]
    origins: dict[str, dict[str, str | None]]
    """Of each cell of each parameter, the cell of the same parameter that it was; None: it is fresh."""


@torch.no_grad()
def transplant(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    graft: GraftConfig,
    vocab_size: int,
    context: int,
    key: Callable[[str, str], int],
) -> Transplant:
    """One graft. `weights` are those of `config`, and stay as they are; what is returned shares no memory with them.

    key: of the draws of a fresh cell, by parameter and cell. Raises InputError where the graft does not fit, or would
    lose or invent what it may not.
    """
    new = graft.grown(config)
    before, after = layout(config, vocab_size, context), layout(new, vocab_size, context)
    places, n_heads = graft.places(config), heads_of(config)
    like = next(iter(weights.values()))
    origins: dict[str, dict[str, str | None]] = {}
    found: dict[str, Tensor] = {}
    for name, spec in after.table.items():
        old_spec = before.table.get(name)
        old_cells = before.cells.get(name, {})
        source = weights.get(name, like)
        tensor = torch.empty(after.shapes[name], dtype=source.dtype, device=source.device)
        origins[name] = {}
        for cell in after.cells[name].values():
            target = cell.view(tensor)
            was = None if old_spec is None else _origin(cell, spec, old_spec, places, n_heads)
            origin = None if was is None else old_cells.get(was)
            if origin is not None and origin.view(weights[name]).shape == target.shape:
                target.copy_(origin.view(weights[name]))
                origins[name][cell.name] = origin.name
                continue
            if not graft.replaces and (old_spec is None or was is not None):
                why = "has no counterpart in the old model"
                if origin is not None:
                    why = "changes its shape with the heads, and the table of parameters gives it no slices per head"
                raise _lost(graft, cell.label, why)
            target.copy_(_start(spec, cell, tensor.shape, graft, key(name, cell.name)))
            origins[name][cell.name] = None
        found[name] = tensor
    for name, shape in after.shapes.items():
        if name in after.table:
            continue
        if name not in weights or weights[name].shape != shape:
            raise _lost(graft, f"buffer {name}", "has no counterpart in the old model")
        found[name] = weights[name].clone()
    for name in before.shapes:
        if name not in after.shapes and not graft.replaces:
            raise _lost(graft, name, "has no place in the new model")
    return Transplant(new, before, after, found, origins)


def _families(parts: tuple[Slice, ...]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for part in parts:
        family, number = _parsed(part.name)
        found.setdefault(family, []).append(number)
    return found


@lru_cache(maxsize=1024)
def _parsed(name: str) -> tuple[str, int]:
    """Family and number of a slice's name."""
    family, _, number = name.rpartition(".")
    return (family, int(number)) if number.isdecimal() else (name, 0)


def _origin(cell: Cell, spec: ParameterSpec, old: ParameterSpec, places: Places, n_heads: int) -> str | None:
    """The name that the cell had; None: it belongs to a new head."""
    names: list[str] = []
    for part in cell.parts:
        family, number = _parsed(part.name)
        dimension, old_dimension = (spec.slices, old.slices) if part in spec.slices else (spec.across, old.across)
        members = len(_families(dimension).get(family, ()))
        if members == len(places) and len(_families(old_dimension).get(family, ())) == n_heads:
            was = places[number]
            if was is None:
                return None
            names.append(f"{family}.{was}")
        else:
            names.append(part.name)
    return "/".join(names)


def _start(spec: ParameterSpec, cell: Cell, shape: torch.Size, graft: GraftConfig, key: int) -> Tensor:
    """The first values of a fresh cell, fp32."""
    whole = torch.zeros(()).expand(shape)
    if spec.init in ("zeros", "ones"):
        return cell.view(whole) + (1.0 if spec.init == "ones" else 0.0)
    bound = graft.bound(cell.family, spec.fan_in)
    size = cell.view(whole).shape
    if bound is not None:
        return uniform(key, size) * bound if bound else torch.zeros(size)
    if spec.hot is not None:
        index, value = spec.hot
        hot = torch.zeros(shape.numel())
        hot[index] = value
        return cell.view(hot.view(shape))
    return normal(key, size) * spec.std


def _lost(graft: GraftConfig, what: str, why: str) -> InputError:
    return InputError(f"{graft.kind} cannot carry {what}: it {why}", mend="switch to another mechanism first")

"""One table of parameters: each is declared once, and everything that treats parameters reads the declaration.

`declare`          adds a parameter to a module together with its specification.
`declared`         adds the specification alone, where a module of PyTorch's own has the parameter.
`parameter_table`  every parameter of a model by name; one without a specification is an error.
`initialise`       draws the initial values, each logical slice from a stream of its own.

Initialisation, optimizer groups and surgery read the table, never the number of dimensions of a tensor.

Initial values (the only place where they are decided; L = number of layers):

| role        | what                                                  | values  | standard deviation | decayed |
|-------------|-------------------------------------------------------|---------|--------------------|---------|
| embedding   | token table, tied readout; a conv model says its own  | normal  | 0.02               | yes     |
| position    | learned position table                                | normal  | 0.02               | yes     |
| readout     | untied readout                                        | normal  | 0.02               | yes     |
| matrix      | q, k, v; first matrix of the MLP                      | normal  | 0.02               | yes     |
| residual    | attention's output projection; last matrix of the MLP | normal  | 0.02 / sqrt(2 L)   | yes     |
| mixing      | weights that mix scores of heads or slices into masks | normal  | 0.02               | no      |
| convolution | weights of a convolution over positions               | uniform | 1 / sqrt(3 fan_in) | yes     |
| projection  | maps of softmax attention inside a convolution layer  | uniform | 1 / sqrt(3 fan_in) | yes     |
| recurrent   | maps of an LSTM; its fan_in is the width of its state | uniform | 1 / sqrt(3 fan_in) | yes     |
| offset      | added by a convolution or an LSTM, with its fan_in    | uniform | 1 / sqrt(3 fan_in) | no      |
| bias        | added by a linear map                                 | zeros   |                    | no      |
| scale       | multiplied by a norm                                  | ones    |                    | no      |
| shift       | added by a norm                                       | zeros   |                    | no      |

"Decayed" is what `decay_on = "matrices"` decays: the tensors of two dimensions or more, as GPT-2's training did, except
mixing weights. A mixing vector may start at one head instead (`hot`): one element is set, the others are 0.
Sources: Radford et al. 2019, section 2.3, with the constants of the released GPT-2; what is uniform starts as PyTorch's
own layers do, between -1 / sqrt(fan_in) and 1 / sqrt(fan_in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from winnow.config import stream

Role = Literal[
    "embedding",
    "position",
    "readout",
    "matrix",
    "residual",
    "mixing",
    "convolution",
    "projection",
    "recurrent",
    "offset",
    "bias",
    "scale",
    "shift",
]
Init = Literal["normal", "uniform", "zeros", "ones", "one-hot"]

STD = 0.02
"""Standard deviation of every normal initial value, before residual scaling."""


@dataclass(frozen=True)
class Slice:
    """A logical part of a parameter, such as the query weights of one head: rows `start` to `stop` of `dim`."""

    name: str
    dim: int
    start: int
    stop: int

    def view(self, tensor: Tensor) -> Tensor:
        """This part of the parameter, of its gradient or of anything of that shape; shares memory with it."""
        return tensor.narrow(self.dim, self.start, self.stop - self.start)


@dataclass(frozen=True)
class ParameterSpec:
    """What a parameter is. The slices, if any, tile it exactly along one dimension."""

    role: Role
    fan_in: int
    """Inputs that each output sums over."""
    fan_out: int
    """Outputs that each input feeds."""
    init: Init
    std: float
    """Standard deviation of normal and uniform initial values; 0 for constants."""
    decay: bool
    """Decayed under `decay_on = "matrices"`."""
    slices: tuple[Slice, ...] = ()
    across: tuple[Slice, ...] = ()
    """Parts along another dimension, which they tile: where heads meet heads. For surgery; drawn with the slices."""
    lr_multiplier: float = 1.0
    """Of the learning rate; 0 freezes."""
    hot: tuple[int, float] | None = None
    """Of a one-hot start: index in the flattened tensor, and the value there."""


def spec(
    role: Role,
    fan_in: int,
    fan_out: int,
    *,
    slices: tuple[Slice, ...] = (),
    n_layers: int | None = None,
    hot: tuple[int, float] | None = None,
    std: float = STD,
) -> ParameterSpec:
    """The specification that the table above gives a role. Only `residual` needs `n_layers`; `hot` is for `mixing`.

    std: of normal initial values, where a model says its own.
    """
    assert hot is None or role == "mixing", "only mixing weights start at one element"
    if hot is not None:
        return ParameterSpec(role, fan_in, fan_out, "one-hot", 0.0, decay=False, slices=slices, hot=hot)
    if role in ("bias", "shift"):
        return ParameterSpec(role, fan_in, fan_out, "zeros", 0.0, decay=False, slices=slices)
    if role == "scale":
        return ParameterSpec(role, fan_in, fan_out, "ones", 0.0, decay=False, slices=slices)
    if role in ("convolution", "projection", "recurrent", "offset"):
        return ParameterSpec(role, fan_in, fan_out, "uniform", (3 * fan_in) ** -0.5, role != "offset", slices)
    if role == "residual":
        assert n_layers is not None, "a residual projection is scaled by the number of layers"
        std *= (2 * n_layers) ** -0.5
    return ParameterSpec(role, fan_in, fan_out, "normal", std, decay=role != "mixing", slices=slices)


def head_slices(names: tuple[str, ...], width: int, dim: int) -> tuple[Slice, ...]:
    """Equal slices of `width` along `dim`, in the order of their names."""
    return tuple(Slice(name, dim, i * width, (i + 1) * width) for i, name in enumerate(names))


_SPECS = "_parameter_specs"  # in the module's own dictionary, so that copies of a model keep their table


def declare(module: nn.Module, name: str, shape: tuple[int, ...], specification: ParameterSpec) -> nn.Parameter:
    """Register `module.name`, uninitialised, with its specification."""
    parameter = nn.Parameter(torch.empty(shape))
    module.register_parameter(name, parameter)
    declared(module, name, specification)
    return parameter


def declared(module: nn.Module, name: str, specification: ParameterSpec) -> None:
    """Add the specification of a parameter that a module of PyTorch's own has registered."""
    shape = module.get_parameter(name).shape
    for parts in (specification.slices, specification.across):
        if not parts:
            continue
        (dim,) = {part.dim for part in parts}
        bounds = [part.start for part in parts] + [shape[dim]]
        stops = [0] + [part.stop for part in parts]
        assert bounds == stops, f"the slices of {name} do not tile its dimension {dim}"
    vars(module).setdefault(_SPECS, {})[name] = specification


def parameter_table(model: nn.Module) -> dict[str, ParameterSpec]:
    """Specification of every parameter, by its full name. A shared parameter stands once, under its first name.

    Raises KeyError for a parameter that was not declared: nothing would know how to start or train it.
    """
    table: dict[str, ParameterSpec] = {}
    for name, _ in model.named_parameters():
        path, _, own = name.rpartition(".")
        specs = cast("dict[str, ParameterSpec]", vars(model.get_submodule(path)).get(_SPECS, {}))
        if own not in specs:
            raise KeyError(f"parameter {name} was not declared: register it with winnow.parameters.declare")
        table[name] = specs[own]
    return table


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Set every parameter to its initial value, a function of (seed, name, slice) alone.

    Models that differ elsewhere share these values, and adding a head or a module redraws nothing. Drawn in fp32
    on the CPU, whatever the model's device and dtype, so that they are the same everywhere.
    """
    parameters = dict(model.named_parameters())
    for name, specification in parameter_table(model).items():
        parameter = parameters[name]
        if specification.init in ("normal", "uniform"):
            draw, spread = (normal, 1.0) if specification.init == "normal" else (uniform, 3**0.5)
            for part in specification.slices or (Slice("", 0, 0, parameter.shape[0]),):
                target = part.view(parameter)
                drawn = draw(stream(seed, "init", name, part.name), target.shape)
                target.copy_(drawn * (spread * specification.std))
        else:
            parameter.fill_(1.0 if specification.init == "ones" else 0.0)
        if specification.hot is not None:
            index, value = specification.hot
            parameter.view(-1)[index] = value


def normal(key: int, shape: torch.Size) -> Tensor:
    """Standard normal values, fp32 on the CPU, a function of the key alone."""
    return torch.from_numpy(_generator(key).standard_normal(tuple(shape), dtype=np.float32))


def uniform(key: int, shape: torch.Size) -> Tensor:
    """Values uniform in [-1, 1), fp32 on the CPU, a function of the key alone."""
    return torch.from_numpy(_generator(key).random(tuple(shape), dtype=np.float32) * 2 - 1)


def _generator(key: int) -> np.random.Generator:
    # Philox takes all 63 bits of the key; torch's CPU generator seeds from 32, so two of many streams could meet.
    return np.random.Generator(np.random.Philox(key=key))

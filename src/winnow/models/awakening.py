"""What a graft does by construction, found on a small double of the model before a step of it is spent.

The double has the model's layers, heads, head width, mechanism and biases, but is narrow, short and in fp64. Where
the real weights hold a cell of nothing but zeros, so does the double; everything else holds generic numbers. What it
does, it does because of where the zeros are.

preserved   the double computes the same logits before and after, at two sizes of its weights
wakes       update 1 changes the cells whose gradient is not 0. A cell of zeros that is changed holds generic numbers
            from then on, and the next update is looked at, until nothing new happens: what has not moved by then
            never will.
idle        where nothing is 0, a gradient that is no more than rounding: the cell changes nothing whatever it holds. A
            bias of keys shifts all scores of a query alike, which softmax does not see.

An update of AdamW changes what has a gradient, and by weight decay what is not 0; decay wakes nothing and is not
looked at. relu'(0) = 0: a head whose scores are all 0 gets no gradient through the votes it casts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from winnow.config import stream
from winnow.models.base import Model, ModelConfig
from winnow.models.grafts import GraftConfig
from winnow.models.transplant import Cell, Layout, fill, filled, layout, transplant
from winnow.parameters import ParameterSpec, normal

_SMALL = {"d_model": 16, "d_ff": 16, "max_seq_len": None}
_VOCABULARY, _CONTEXT, _ROWS = 17, 8, 2
_GAINS = (1.0, 6.0)
"""Of the weights of linear maps: scores of about 1 nat, and of about 36, which no constant protection hides."""
_NOISE = 1e-12
"""Part of the model's largest gradient below which another one is rounding in fp64. What rounding makes of 0 is some
1e-17 of it, in models of 2 to 24 layers; what acts has 1e-4 or more."""
_SAME = 1e-9
"""Largest difference of logits, relative to the largest logit, that is rounding in fp64."""


def zeros_of(weights: Mapping[str, Tensor], of: Layout) -> frozenset[str]:
    """Labels of the cells that hold nothing but zeros."""
    return frozenset(cell.label for cell in of.every if not cell.view(weights[cell.parameter]).any())


def preserved(config: ModelConfig, grafts: Sequence[GraftConfig], zeros: frozenset[str]) -> bool:
    """Whether the function is the same after the grafts as before, up to rounding, whatever the weights that are not 0.

    zeros: of the weights before them.
    """
    small, tokens = config.replace(_SMALL), _tokens(_CONTEXT)
    models: list[Model] = []
    for gain in _GAINS:
        weights = _double(small, zeros, gain)
        model, grown = small, weights
        for index, graft in enumerate(grafts):
            done = transplant(
                model, grown, graft, _VOCABULARY, _CONTEXT, lambda *cell, i=index: stream(0, "double", i, *cell)
            )
            model, grown = done.config, done.weights
        models = models or [
            filled(of, values, _VOCABULARY, _CONTEXT) for of, values in ((small, weights), (model, grown))
        ]
        before, after = (_logits(of, values, tokens) for of, values in zip(models, (weights, grown), strict=True))
        if not torch.allclose(after, before, rtol=0, atol=_SAME * float(before.abs().max())):
            return False
    return True


def wakes(config: ModelConfig, zeros: frozenset[str]) -> dict[str, int | None]:
    """Of every cell that is trained and is not idle, by its label, the update that first gives it a gradient, from 1;
    None: none will.

    config, zeros: of the model that is to be trained.
    """
    model = config.replace(_SMALL)
    of = layout(model, _VOCABULARY, _CONTEXT)
    without = idle(config)
    trained = {
        cell.label: cell for cell in of.every if of.table[cell.parameter].lr_multiplier and cell.label not in without
    }
    found: dict[str, int | None] = dict.fromkeys(trained)
    weights, still = _double(model, zeros, 1.0), zeros & trained.keys()
    double = filled(model, weights, _VOCABULARY, _CONTEXT).train()
    for update in range(1, len(found) + 2):
        fill(double, weights)
        size = _gradients(double, of)
        moving = {name for name in trained if size[name] > _NOISE * max(size.values())}
        for name in moving:
            found[name] = found[name] or update
        if not still & moving:
            break
        for name in still & moving:
            _fill(trained[name], weights, of, 1.0)
        still -= moving
    return found


def idle(config: ModelConfig) -> frozenset[str]:
    """Labels of the cells that change nothing, whatever they hold; an optimizer moves them by rounding alone."""
    model = config.replace(_SMALL)
    of = layout(model, _VOCABULARY, _CONTEXT)
    double = filled(model, _double(model, frozenset(), 1.0), _VOCABULARY, _CONTEXT).train()
    size = _gradients(double, of)
    # What is exactly 0 is cut off: by a gate that numbers of this size do not open, say.
    return frozenset(name for name, found in size.items() if 0 < found <= _NOISE * max(size.values()))


def _gradients(model: Model, of: Layout) -> dict[str, float]:
    """The largest magnitude of the gradient in each cell, by its label."""
    model.zero_grad()
    rows = _tokens(_CONTEXT + 1)
    output = model(rows[:, :-1])
    logits = F.linear(output.hidden, model.readout_weight)
    loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    for aux in output.aux:
        loss = loss + aux.get("penalty", torch.zeros((), dtype=loss.dtype))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    found: dict[str, float] = {}
    for cell in of.every:
        gradient = gradients[cell.parameter]
        found[cell.label] = 0.0 if gradient is None else float(cell.view(gradient).abs().max())
    return found


def _double(config: ModelConfig, zeros: frozenset[str], gain: float) -> dict[str, Tensor]:
    """Generic weights of the small model, fp64, zero where it is said."""
    of = layout(config, _VOCABULARY, _CONTEXT)
    found = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in of.shapes.items()}
    for cell in of.every:
        if cell.label not in zeros:
            _fill(cell, found, of, gain)
    return found


def _fill(cell: Cell, weights: dict[str, Tensor], of: Layout, gain: float) -> None:
    """Generic values, the same ones whenever the cell is filled."""
    target = cell.view(weights[cell.parameter])
    centre, size = _size(of.table[cell.parameter], gain)
    target.copy_(centre + size * normal(stream(0, "generic", cell.label), target.shape))


def _size(spec: ParameterSpec, gain: float) -> tuple[float, float]:
    """Mean and standard deviation of generic values."""
    match spec.role:
        case "scale":
            return 1.0, 0.1
        case "bias" | "shift":
            return 0.0, 0.1
        case "matrix" | "residual":
            return 0.0, gain / math.sqrt(spec.fan_in)
        case "mixing":
            return 0.0, 1 / math.sqrt(spec.fan_in)
        case _:
            return 0.0, 1.0


def _logits(model: Model, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    fill(model.eval(), weights)
    with torch.no_grad():
        return model.logits(tokens)


def _tokens(length: int) -> Tensor:
    """Rows of different tokens, as far as the vocabulary goes."""
    order = normal(stream(0, "tokens"), torch.Size((_ROWS, _VOCABULARY))).argsort(dim=1)
    return order[:, :length]

"""What a graft does by construction, found on a small double of the model before a step of it is spent.

The double has the model's layers, heads, head width, mechanism and biases, but is narrow, short and in fp64. Where
the real weights hold a cell of nothing but zeros, so does the double; everything else holds generic numbers. What it
does, it does because of where the zeros are.

preserved   the double computes the same logits before and after, at two sizes of its weights
wakes       update 1 changes the cells whose gradient is not 0. A cell of zeros that is changed holds generic numbers
            from then on, and the next update is looked at, until nothing new happens: what has not moved by then
            never will.

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
    """Of every cell that is trained, by its label, the update that first gives it a gradient, from 1; None: none will.

    config, zeros: of the model that is to be trained.
    """
    model = config.replace(_SMALL)
    of = layout(model, _VOCABULARY, _CONTEXT)
    trained = {cell.label: cell for cell in of.every if of.table[cell.parameter].lr_multiplier}
    found: dict[str, int | None] = dict.fromkeys(trained)
    weights, still = _double(model, zeros, 1.0), zeros & trained.keys()
    double = filled(model, weights, _VOCABULARY, _CONTEXT).train()
    for update in range(1, len(found) + 2):
        fill(double, weights)
        moving = _moving(double, of) & trained.keys()
        for name in moving:
            found[name] = found[name] or update
        if not still & moving:
            break
        for name in still & moving:
            _fill(trained[name], weights, of, 1.0)
        still -= moving
    return found


def _moving(model: Model, of: Layout) -> frozenset[str]:
    """Labels of the cells with a gradient somewhere."""
    model.zero_grad()
    rows = _tokens(_CONTEXT + 1)
    output = model(rows[:, :-1])
    logits = F.linear(output.hidden, model.readout_weight)
    loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    for aux in output.aux:
        loss = loss + aux.get("penalty", torch.zeros((), dtype=loss.dtype))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    found: set[str] = set()
    for cell in of.every:
        gradient = gradients[cell.parameter]
        if gradient is not None and bool(cell.view(gradient).any()):
            found.add(cell.label)
    return frozenset(found)


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

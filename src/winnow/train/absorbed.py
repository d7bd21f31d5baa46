"""Parameters that no gradient reaches because no vote gets through: an outcome of the weights, and no defect.

Under protection, or behind a gate, whatever makes votes has a gradient of exactly 0 for as long as every vote is
absorbed. What is told apart here is that and a parameter that is not connected: by definition, in fp64, nothing reaches
the first with the run's weights either; with weights that vote, the mechanism itself reaches it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from winnow.attention import Attention, MixerState
from winnow.config import stream
from winnow.models.base import Model
from winnow.parameters import parameter_table
from winnow.tasks.base import Validation
from winnow.train.evaluate import evaluating
from winnow.train.mechanism_checks import Place, one_row, perturbed, probe, reached

Cells = set[tuple[str, str]]
"""(parameter of the model, slice of it); "" = the whole of it."""


def absorbed(models: Sequence[Model], validation: Validation) -> Cells:
    """Slices of mechanisms that no gradient reaches by definition with the weights of any of `models` (the same model
    at its start and its end, say), although one would with other weights."""
    found: Cells | None = None
    places: list[Place] = []
    for model in models:
        with evaluating(model), torch.no_grad():
            device = next(model.parameters()).device
            places = reached(model, probe(model, validation).to(device))
        cells = {cell for place in places for cell in _unreached(place, place.mixer, by_definition=True)}
        found = cells if found is None else found & cells
    dead = {cell for place in places for cell in _unreached(place, perturbed(place), by_definition=False)}
    return (found or set()) - dead


def _unreached(place: Place, weights: Attention, *, by_definition: bool) -> Iterator[tuple[str, str]]:
    """Slices of a mechanism with these weights that no gradient of its heads reaches; none where nothing defines it."""
    mixer = copy.deepcopy(weights).requires_grad_(True)
    names = dict(mixer.named_parameters())
    try:
        with torch.enable_grad():
            q, k, v = mixer.project(place.x, place.state)
            exact = copy.deepcopy(mixer).to("cpu", torch.float64)
            heads = _defined(exact, q, k, v, place.state) if by_definition else mixer.mix(q, k, v, place.state)[0]
            generator = torch.Generator().manual_seed(stream(0, "absorbed", place.path))
            pull = torch.randn(heads.shape, generator=generator).to(heads)
            # A part of the definition is computed from the copy's parameters, and q, k and v from the mechanism's.
            parameters = [*names.values(), *exact.parameters()]
            gradients = torch.autograd.grad((heads * pull).sum(), parameters, allow_unused=True)
    except NotImplementedError:
        return
    table = parameter_table(mixer)
    for name, of_mixer, of_copy in zip(names, gradients, gradients[len(names) :], strict=False):
        there = [gradient for gradient in (of_mixer, of_copy) if gradient is not None]
        for part in table[name].slices or [None]:
            views = there if part is None else [part.view(gradient) for gradient in there]
            if not any(bool(view.any()) for view in views):
                yield f"{place.path}.{name}", "" if part is None else part.name


def _defined(exact: Attention, q: Tensor, k: Tensor, v: Tensor, state: MixerState) -> Tensor:
    previous = {name: one_row(tensor) for name, tensor in state.row(0).previous.items()}
    return exact.definition(one_row(q), one_row(k), one_row(v), previous).heads

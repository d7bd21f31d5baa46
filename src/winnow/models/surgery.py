"""Surgery: a model with other heads, or another mechanism, over the weights that it has; and what that changes.

`operate`   applies grafts (`winnow.models.grafts`) to weights, as a pure function, and reports on them.
`peaks`     the largest value of each fresh slice: after training, the least of them says whether any is still 0.

It makes no difference whether the weights are trained or freshly initialised. What survives is carried bit for bit;
fresh values are functions of the seed, the graft's place, the parameter and the slice, so nothing else is redrawn.

Moments of AdamW are carried for what survives and are 0 for fresh slices of a surviving parameter; a parameter that is
new altogether has none. AdamW counts updates once per tensor, so a fresh slice shares the count of the tensor around
it: its moments' bias is no longer corrected, and its first steps are (1 - beta1) / sqrt(1 - beta2) of the learning rate
instead of 1 (0.45 with betas 0.9 and 0.95, 3.2 with 0.9 and 0.999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from winnow.config import stream
from winnow.errors import InputError
from winnow.models.awakening import idle, preserved, wakes, zeros_of
from winnow.models.base import ModelConfig
from winnow.models.grafts import GraftConfig, grow
from winnow.models.transplant import Transplant, filled, label, layout, transplant

__all__ = ["Operation", "SurgeryReport", "Waking", "grow", "operate", "peaks"]


class Waking(NamedTuple):
    """Fresh slices of one name that begin to learn at the same time."""

    name: str
    """Without the layer: `attention.qkv.weight[q.0]`."""
    layers: int
    when: str
    """`update 2`, `never`, `frozen` or `none: no effect`."""


@dataclass(frozen=True)
class SurgeryReport:
    """What surgery has changed."""

    added: int
    """Numbers in all parameters after it, less those before."""
    preserves: bool
    """The model computes the same function up to rounding, and would with any other values of what is not 0."""
    fresh: Mapping[str, tuple[str, ...]]
    """Of each parameter that has any, its fresh slices by name (`q.0`; "" is a whole parameter without slices)."""
    dropped: tuple[str, ...]
    """What is lost, as it was called before the graft that lost it: `parameter[slice]`."""
    wakes: Mapping[str, int | None]
    """Of each fresh slice that is trained and acts, `parameter[slice]`, the update that first gives it a gradient, from
    1; None: it never gets one. Weight decay shrinks what is not 0 before that."""
    idle: tuple[str, ...] = ()
    """Fresh slices that are in no `wakes` since they change nothing, whatever they hold: biases of keys under softmax.
    Rounding moves them."""
    max_logit_change: float | None = None
    """Largest change of a logit on the probe, nats."""
    ce_change: float | None = None
    """Change of the mean cross entropy on the probe, nats per token."""

    @property
    def dead(self) -> tuple[str, ...]:
        """Fresh slices that can never learn."""
        return tuple(name for name, update in self.wakes.items() if update is None)

    def waking(self) -> list[Waking]:
        """For people: the fresh slices, those of all layers as one."""
        found: dict[tuple[str, str], int] = {}
        for parameter, cells in self.fresh.items():
            for cell in cells:
                of = label(parameter, cell)
                update = self.wakes.get(of, 0)
                when = "never" if update is None else f"update {update}" if update else "frozen"
                when = "none: no effect" if of in self.idle else when
                name = ".".join(part for part in of.split(".", 2) if part != "blocks" and not part.isdecimal())
                found[name, when] = found.get((name, when), 0) + 1
        return [Waking(name, layers, when) for (name, when), layers in found.items()]


@dataclass(frozen=True)
class Operation:
    """A model after surgery, and the report on it."""

    config: ModelConfig
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    """As `winnow.train.optim.Optimizer.state` names them; empty where none were given."""
    report: SurgeryReport


def operate(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    grafts: Sequence[GraftConfig],
    *,
    vocab_size: int,
    context: int,
    seed: int,
    moments: Mapping[str, Tensor] | None = None,
    probe: tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]] | None = None,
) -> Operation:
    """The model after all grafts, in their order. Nothing that is given is changed or shared.

    weights: every parameter and persistent buffer of `config` by name; moments: `NAME/exp_avg` and the like; probe:
    rows of tokens and their targets: what the old and the new model make of them is compared.
    Raises InputError where weights or moments are not those of the model, or a graft does not fit.
    """
    start = layout(config, vocab_size, context)
    start.check(weights)
    now, model = {name: tensor.detach().clone() for name, tensor in weights.items()}, config
    kept = {name: tensor.detach().clone() for name, tensor in (moments or {}).items()}
    _check_moments(kept, now)
    fresh: dict[str, tuple[str, ...]] = {}
    dropped: list[str] = []
    for index, graft in enumerate(grafts):
        try:
            done = transplant(
                model, now, graft, vocab_size, context, lambda *cell, i=index: stream(seed, "graft", i, *cell)
            )
        except InputError as error:
            key = f"{index}.{error.key}" if error.key else str(index)
            raise InputError(error.message, key=key, mend=error.mend) from error
        survived = {label(name, was) for name, of in done.origins.items() for was in of.values() if was is not None}
        dropped += [cell.label for cell in done.before.every if cell.label not in survived]
        fresh = {
            name: tuple(cell for cell, was in of.items() if was is None or was in fresh.get(name, ()))
            for name, of in done.origins.items()
        }
        kept = _carried(kept, now, done)
        model, now = done.config, done.weights
    fresh = {name: of for name, of in fresh.items() if of}
    end = layout(model, vocab_size, context)
    awake = wakes(model, zeros_of(now, end)) if fresh else {}
    without = idle(model) if fresh else frozenset[str]()
    labels = [label(name, cell) for name, of in fresh.items() for cell in of]
    change, ce_change = (
        (None, None) if probe is None else _measured((config, weights), (model, now), vocab_size, context, probe)
    )
    report = SurgeryReport(
        added=sum(end.shapes[name].numel() for name in end.table)
        - sum(start.shapes[name].numel() for name in start.table),
        preserves=preserved(config, grafts, zeros_of(weights, start)),
        fresh=fresh,
        dropped=tuple(dropped),
        wakes={name: awake[name] for name in labels if name in awake},
        idle=tuple(name for name in labels if name in without),
        max_logit_change=change,
        ce_change=ce_change,
    )
    return Operation(model, now, kept, report)


def peaks(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    fresh: Mapping[str, Sequence[str]],
    *,
    vocab_size: int,
    context: int,
) -> dict[str, float]:
    """Largest magnitude in each fresh slice of `weights`, by `parameter[slice]`.

    config: of the model after surgery; fresh: of its report. All of a trained graft is non-zero when the least is
    above 0.
    """
    cells = layout(config, vocab_size, context).cells
    chosen = [cells[parameter][name] for parameter, names in fresh.items() for name in names]
    return {cell.label: float(cell.view(weights[cell.parameter]).abs().max()) for cell in chosen}


def _check_moments(moments: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for full, moment in moments.items():
        name = full.rpartition("/")[0]
        if name not in weights:
            raise InputError(f"there are moments of {name!r}, which the model has not")
        if moment.numel() != 1 and moment.shape != weights[name].shape:
            raise InputError(f"{full} is {list(moment.shape)}, the parameter {list(weights[name].shape)}")


@torch.no_grad()
def _carried(moments: Mapping[str, Tensor], old: Mapping[str, Tensor], done: Transplant) -> dict[str, Tensor]:
    """Moments after a graft: see the module."""
    found: dict[str, Tensor] = {}
    for full, moment in moments.items():
        name, _, what = full.rpartition("/")
        origins = done.origins.get(name, {})
        if all(was is None for was in origins.values()):
            continue
        if what == "step" or moment.shape != old[name].shape:
            found[full] = moment
            continue
        tensor = torch.zeros_like(done.weights[name], dtype=moment.dtype)
        for cell in done.after.cells[name].values():
            was = origins[cell.name]
            if was is not None:
                cell.view(tensor).copy_(done.before.cells[name][was].view(moment))
        found[full] = tensor
    return found


@torch.no_grad()
def _measured(
    old: tuple[ModelConfig, Mapping[str, Tensor]],
    new: tuple[ModelConfig, Mapping[str, Tensor]],
    vocab_size: int,
    context: int,
    probe: tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]],
) -> tuple[float, float]:
    """Largest change of a logit, and change of the mean cross entropy, a row at a time."""
    models = [filled(config, weights, vocab_size, context).eval() for config, weights in (old, new)]
    change, ce = 0.0, 0.0
    tokens, targets = probe
    for row, target in zip(tokens.split(1), targets, strict=True):
        logits = [model.logits(row)[0].double() for model in models]
        change = max(change, float((logits[1] - logits[0]).abs().max()))
        ce += float(F.cross_entropy(logits[1], target) - F.cross_entropy(logits[0], target)) / len(tokens)
    return change, ce

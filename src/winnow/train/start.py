"""Where a run starts: fresh initial values, another run's checkpoint or a file of weights; then the grafts.

    fresh     initial values of `model`, step 0
    restart   the parent's weights, step 0: fresh moments (or the parent's, on request) and a new schedule. The data go
              on where the parent stopped; where that place means nothing here (other data, context, rows per update
              or seed) they start at the front, and that is said
    resume    the parent's weights, moments, smoothing, step and place in the data: with the parent's own settings the
              run goes on bit for bit as the parent would have
    grafts    applied to what any of these gives, before the first update (`winnow.models.surgery`)

`begin` is a pure function of its arguments: given twice, the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from winnow.config import canonical_json
from winnow.errors import InputError
from winnow.models.base import Model, ModelConfig
from winnow.models.surgery import SurgeryReport, operate
from winnow.parameters import initialise
from winnow.records.run import Finding
from winnow.tasks.base import Task
from winnow.train import health
from winnow.train.checkpoint import Snapshot
from winnow.train.config import RunConfig
from winnow.train.evaluate import held_out
from winnow.train.grafted import Grafted
from winnow.train.losses import tensors_of

PROBE_TOKENS = 2048
"""Validation tokens on which surgery's change of the function is measured."""


@dataclass(frozen=True)
class Parent:
    """What a run starts from, as it was read and checked."""

    name: str
    """For messages: `run 0123456789abcdef, step 400`, or a file."""
    identity: str | None
    """As `init_from.identity` names it."""
    model: ModelConfig
    """The model that the weights are of: the parent's, after its own grafts."""
    snapshot: Snapshot
    """Of a file of weights: step 0 and no moments."""
    vocab_size: int
    context: int
    """Tokens per row in training, and the longest that the weights know."""
    config: RunConfig | None = None
    """The parent's; None: a file of weights."""
    seed: int | None = None
    data: str | None = None
    """Digest of the parent's data; None: not known."""
    loss: float | None = None
    """Its validation loss at that step, nats per token; None: not known."""
    own: bool = False
    """These are the run's own starting values, grafts and all, from its own first checkpoint."""
    said: tuple[str, ...] = ()
    """What was converted, assumed or passed over when it was read."""


@dataclass(frozen=True)
class Start:
    """A model as it stands before a run's first update, and where everything else stands."""

    model: Model
    """On the CPU."""
    step: int = 0
    """Updates that count as done: the parent's where it is resumed."""
    data_step: int = 0
    """Update whose rows of the task come next."""
    tokens_before: int = 0
    """Training tokens that the weights have seen in Winnow's runs."""
    moments: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    smoothed: tuple[float, float] = (0.0, 0.0)
    first_ce: float | None = None
    """First training loss of a parent that is resumed, nats per token."""
    parent_loss: float | None = None
    """The parent's validation loss at its checkpoint, nats per token; None: no parent, not known, or of other data."""
    report: SurgeryReport | None = None
    """None: no graft."""
    converted: tuple[str, ...] = ()
    """What was converted, assumed or passed over when the parent was read."""
    restarted: str | None = None
    """Why the data start at the front although there is a parent; None: they do not."""

    def findings(self) -> list[Finding]:
        """What is to be said of it before anything is computed."""
        found = [
            Finding(rule="weights-converted", severity="notice", message=said, where="init_from")
            for said in self.converted
        ]
        if self.restarted is not None:
            said = self.restarted
            found.append(Finding(rule="data-restarted", severity="notice", message=said, where="init_from"))
        return found + health.dead_by_construction(() if self.report is None else self.report.dead)

    def snapshot(self) -> Snapshot:
        """As a checkpoint of the run, before its first update."""
        return Snapshot(
            step=self.step,
            journal=0,
            weights=tensors_of(self.model),
            moments=self.moments,
            progress={
                "smoothed": list(self.smoothed),
                "first_ce": self.first_ce,
                "start": Position(self.step, self.data_step, updates_in(self.moments), self.tokens_before).dump(),
                "graft": None if self.report is None else Grafted.of(self.report).dump(),
            },
        )


@dataclass(frozen=True)
class Position:
    """Where a run stood before its first update; saved with every checkpoint."""

    step: int = 0
    data_step: int = 0
    updates: int = 0
    """Updates that the optimizer counted then."""
    tokens_before: int = 0

    def dump(self) -> dict[str, int]:
        """Plain JSON data."""
        return dict(vars(self))

    @classmethod
    def of(cls, progress: Mapping[str, Any]) -> Position:
        """From a checkpoint's progress; those of older versions had no parents."""
        return cls(**progress.get("start", {}))


def updates_in(moments: Mapping[str, Tensor]) -> int:
    """Updates that these moments count."""
    return max((int(value) for name, value in moments.items() if name.endswith("/step")), default=0)


def begin(config: RunConfig, task: Task, seed: int, parent: Parent | None = None, *, probe: bool = True) -> Start:
    """The starting point of a run.

    parent: what `config.init_from` names; None where it names nothing. probe: measure what grafts change.
    Raises InputError where the parent is another than was named, or does not fit the config.
    """
    start = config.init_from
    if parent is not None and parent.own:
        return _own(config, task, parent)
    if start is None:
        return _grafted(config, task, seed, _fresh(config, task, seed), None, probe=probe)
    if parent is None:
        raise InputError("the run has a starting point and was given no parent", key="init_from")
    if start.identity != parent.identity:
        raise InputError(
            f"{parent.name} is {str(parent.identity)[:12]}, the study was resolved with {str(start.identity)[:12]}",
            key="init_from",
            mend="give the command again: the parent has changed since",
        )
    _check(config, task, parent)
    if start.mode == "resume":
        found = _resumed(config, task, seed, parent)
    else:
        found = _restarted(config, task, seed, parent, moments=start.moments)
    return _grafted(config, task, seed, found, parent, probe=probe)


def _fresh(config: RunConfig, task: Task, seed: int) -> Start:
    model = config.model.build(task.vocab_size, task.context)
    initialise(model, seed)
    return Start(model)


def _own(config: RunConfig, task: Task, parent: Parent) -> Start:
    """From the checkpoint that the run itself wrote before its first update."""
    snapshot, position = parent.snapshot, Position.of(parent.snapshot.progress)
    return Start(
        _filled(config.grown, task, snapshot.weights, parent.name),
        position.step,
        position.data_step,
        position.tokens_before,
        snapshot.moments,
        _pair(snapshot.progress),
        snapshot.progress["first_ce"],
    )


def _check(config: RunConfig, task: Task, parent: Parent) -> None:
    """The parent is at the step that was written, and its model is the one for this vocabulary."""
    start = config.init_from
    assert start is not None
    if (start.step or 0) != parent.snapshot.step and (start.step is not None or start.mode == "resume"):
        raise InputError(
            f"{parent.name} is not step {start.step}",
            key="init_from.step",
            mend="give the command again: studies are resolved to a step",
        )
    if canonical_json(parent.model.canonical()) != canonical_json(config.model.canonical()):
        raise InputError(
            f"{parent.name} is another model than `model` says",
            key="model",
            mend="leave model out: it is the parent's; a graft changes it",
        )
    if parent.vocab_size != task.vocab_size:
        raise InputError(
            f"{parent.name} knows {parent.vocab_size} tokens, the task has {task.vocab_size}",
            key="task.tokenizer",
            mend="use the parent's tokenizer",
        )


def _resumed(config: RunConfig, task: Task, seed: int, parent: Parent) -> Start:
    snapshot, before = parent.snapshot, parent.config
    if before is None:
        raise InputError(
            f"{parent.name} holds weights alone, without optimizer and place in the data",
            key="init_from.mode",
            mend='write mode = "restart", or name a run',
        )
    other = _other_place(config, task, seed, parent)
    if other is not None:
        raise cannot_go_on(parent.name, other)
    position = Position.of(snapshot.progress)
    return Start(
        _filled(parent.model, task, snapshot.weights, parent.name),
        step=snapshot.step,
        data_step=position.data_step + snapshot.step - position.step,
        tokens_before=tokens_seen(before, snapshot),
        moments=snapshot.moments,
        smoothed=_pair(snapshot.progress),
        first_ce=snapshot.progress["first_ce"],
        parent_loss=_loss_here(task, parent),
        converted=parent.said,
    )


def _restarted(config: RunConfig, task: Task, seed: int, parent: Parent, *, moments: bool) -> Start:
    snapshot, before = parent.snapshot, parent.config
    weights = _cropped(config, task, parent)
    if before is None:
        if moments:
            raise InputError(f"{parent.name} has no moments", key="init_from.moments", mend="leave it out")
        return Start(_filled(parent.model, task, weights, parent.name), converted=parent.said)
    position = Position.of(snapshot.progress)
    other = _other_place(config, task, seed, parent)
    return Start(
        _filled(parent.model, task, weights, parent.name),
        data_step=0 if other is not None else position.data_step + snapshot.step - position.step,
        tokens_before=tokens_seen(before, snapshot),
        moments=snapshot.moments if moments else {},
        parent_loss=_loss_here(task, parent),
        converted=parent.said,
        restarted=None if other is None else f"the data start at the front: {parent.name} has another {other}",
    )


def _loss_here(task: Task, parent: Parent) -> float | None:
    """The parent's loss where it is of the same text: that of another says nothing here."""
    return parent.loss if parent.data == task.digest else None


def _other_place(config: RunConfig, task: Task, seed: int, parent: Parent) -> str | None:
    assert parent.config is not None
    other = other_place(parent.config, parent.data, config, task.digest)
    return other or (None if parent.seed == seed else "seed")


def other_place(before: RunConfig, data_before: str | None, config: RunConfig, data: str) -> str | None:
    """What keeps a parent's place in the data from meaning the same in `config`, but for the seed; None: nothing.

    data_before, data: digests of both runs' data.
    """
    if data_before != data:
        return "text"
    if before.task.context != config.task.context:
        return "task.context"
    return None if before.rows == config.rows else "number of rows per update"


def cannot_go_on(name: str, other: str) -> InputError:
    """Why a run cannot resume parent `name`, which has another `other`."""
    return InputError(
        f"{name} has another {other}, so its data cannot go on here",
        key="init_from.mode",
        mend=f'write mode = "restart", or use the parent\'s {other}',
    )


def tokens_seen(before: RunConfig, snapshot: Snapshot) -> int:
    """Training tokens that a checkpoint's weights have seen in Winnow's runs, the last of them of config `before`."""
    position = Position.of(snapshot.progress)
    return position.tokens_before + (snapshot.step - position.step) * before.train.tokens_per_update


def _pair(progress: Mapping[str, Any]) -> tuple[float, float]:
    total, weight = progress["smoothed"]
    return total, weight


def _cropped(config: RunConfig, task: Task, parent: Parent) -> Mapping[str, Tensor]:
    """The weights, a longer table of positions cut to this run's context: the front of it is what short rows used."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in tensors_of(_built(parent.model, task)).items()}
    found = dict(parent.snapshot.weights)
    table = found.get(POSITIONS)
    if table is not None and POSITIONS in wanted and wanted[POSITIONS][0] < len(table):
        found[POSITIONS] = table[: wanted[POSITIONS][0]]
    return found


POSITIONS = "positions.weight"
"""Name of a GPT's table of learned positions: the only parameter whose size is the context's."""


def _built(model: ModelConfig, task: Task) -> Model:
    return model.build(task.vocab_size, task.context)


@torch.no_grad()
def _filled(config: ModelConfig, task: Task, weights: Mapping[str, Tensor], name: str) -> Model:
    """The model with these weights. Raises InputError where they are not its own."""
    model = _built(config, task)
    here = tensors_of(model)
    if odd := sorted(here.keys() ^ weights.keys()):
        what = "lacks" if odd[0] in here else "has another parameter,"
        raise InputError(f"{name} {what} {odd[0]}", key="init_from", mend="leave model out: it is the parent's")
    for key, tensor in here.items():
        if tensor.shape != weights[key].shape:
            sizes = f"{list(weights[key].shape)}, {list(tensor.shape)} is needed"
            raise InputError(f"{key} of {name} is {sizes}", key="init_from", mend="use the parent's task.context")
        tensor.copy_(weights[key])
    return model


def _grafted(config: RunConfig, task: Task, seed: int, start: Start, parent: Parent | None, *, probe: bool) -> Start:
    if not config.graft:
        return start
    done = operate(
        config.model,
        tensors_of(start.model),
        config.graft,
        vocab_size=task.vocab_size,
        context=task.context,
        seed=seed,
        moments=start.moments or None,
        probe=_probe(config, task) if probe else None,
    )
    name = "the fresh model" if parent is None else parent.name
    return Start(**{**vars(start), "model": _filled(config.grown, task, done.weights, name), "moments": done.moments,
                    "report": done.report})  # fmt: skip


def _probe(config: RunConfig, task: Task) -> tuple[Tensor, Tensor]:
    """The first validation rows and their targets."""
    batch = next(held_out(task, config.evaluation).batches(max(1, PROBE_TOKENS // task.context)))
    whole = slice(None) if batch.mask is None else batch.mask.all(dim=1)
    return batch.tokens[whole], batch.targets[whole]

"""The training loop's inside: model, optimizer, data and schedule of one run, one update at a time. No files.

Every draw is a function of (seed, stream, step, index): the initial values, the rows of a batch, and for a mechanism
that draws from torch's own generator, that generator's state at each update. So an update depends on nothing but the
weights and moments before it and the step's number, and a resumed run repeats it bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from winnow.config import canonical_json, stream, watch_reads
from winnow.models.base import Model
from winnow.parameters import initialise, parameter_table
from winnow.records.run import Finding
from winnow.tasks.base import Batch, Task, TaskConfig
from winnow.train import health
from winnow.train.backends import Backends
from winnow.train.checkpoint import Snapshot
from winnow.train.config import RunConfig, split_update
from winnow.train.device import autocast
from winnow.train.evaluate import evaluate, held_out, look_inside
from winnow.train.losses import Forward, Smoothed, losses, target_weight, tensors_of
from winnow.train.optim import Optimizer, learning_rate

Reads = set[tuple[str, str]]
"""(path of a part of the config, field) of every option that was read."""


@dataclass(frozen=True)
class Update:
    """What one update measured."""

    step: int
    ce: float
    """Mean cross entropy of the update's tokens before it, nats per token."""
    ce_smooth: float
    grad_norm: float
    """Norm of the whole gradient, before clipping."""
    lr: float
    """Peak-parameter learning rate of this update."""
    penalty: float | None = None
    """What the mechanisms added to the loss; None: none of them does."""

    @property
    def finite(self) -> bool:
        """Whether the update could be applied."""
        return math.isfinite(self.ce) and math.isfinite(self.grad_norm) and math.isfinite(self.penalty or 0.0)

    def metrics(self) -> dict[str, float]:
        """As they stand in the journal."""
        found = {
            "train/ce": self.ce,
            "train/ce_smooth": self.ce_smooth,
            "train/lr": self.lr,
            "train/grad_norm": self.grad_norm,
        }
        return found if self.penalty is None else {**found, "train/penalty": self.penalty}


class Watched(NamedTuple):
    """What the first step of a run measured."""

    evaluation: dict[str, float]
    inside: dict[str, float]
    update: Update


class Loop:
    """One run in memory. Raises InputError where the config does not fit the data or the device."""

    def __init__(self, config: RunConfig, *, seed: int, device: torch.device) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.reads: Reads = set()
        self.step = 0
        self.first_ce: float | None = None
        self._smoothed = Smoothed()
        self.backends = Backends()
        with watch_reads() as seen:
            self.task, task_reads = build_task(config.task)
            self.model = build_model(config, self.task, seed).to(device)
            table = parameter_table(self.model)
            parameters = dict(self.model.named_parameters())
            self.optimizer = Optimizer(
                {name: p for name, p in parameters.items() if p.requires_grad}, table, config.train
            )
            self.validation = held_out(self.task, config.evaluation)
            autocast(device, config.train.precision)
            self._forward: Forward = self.model
            if config.train.compile:
                self._forward = cast(Forward, torch.compile(self.model))
            self._micro_batch, self._accumulation = split_update(config.train, config.task.context)
            self._evaluate_every = config.evaluation.every
            self._look_every = config.evaluation.inside
            if config.train.recompute:
                self.model.recompute_blocks()
            learning_rate(config.train.steps, config.train)  # its far end, so that a late option counts as read
        self.gradients = health.GradientWatch(parameters, table)
        self.reads |= _named(config, seen) | {(_under("task", path), field) for path, field in task_reads}
        self.model.train()

    @property
    def evaluation_due(self) -> bool:
        """Whether the weights as they are belong on the validation curve."""
        return self.step % self._evaluate_every == 0

    def evaluate(self) -> dict[str, float]:
        """Validation metrics of the weights as they are."""
        with self.backends.watched():
            return evaluate(self.model, self.validation, self.device, self.config.train.precision)

    @property
    def look_due(self) -> bool:
        """Whether the weights as they are belong on the curves of the mechanisms' inside."""
        every = self._look_every
        return every is not None and (self.step % every == 0 or self.step == self.config.train.steps)

    def look_inside(self) -> dict[str, float]:
        """What the mechanisms measure of themselves with the weights as they are."""
        return look_inside(self.model, self.validation, self.device, self.config.train.precision)

    def update(self) -> Update:
        """One step of the optimizer. An update that is not finite is measured and not applied."""
        self._seed_torch()
        batches = self._batches()
        self.optimizer.zero_grad()
        with self.backends.watched():
            ce, penalty = self._backward(batches)
        self.gradients.look()
        norm = self.optimizer.clip()
        rate = learning_rate(self.step, self.config.train)
        # The one moment at which the host waits for the device.
        numbers = (ce, norm.to(ce.dtype)) if penalty is None else (ce, norm.to(ce.dtype), penalty.to(ce.dtype))
        ce_value, norm_value, *rest = torch.stack(numbers).tolist()
        smooth = self._smoothed.add(ce_value) if math.isfinite(ce_value) else ce_value
        measured = Update(self.step, ce_value, smooth, norm_value, rate, rest[0] if rest else None)
        if measured.finite:
            self.optimizer.step(rate)
            self.step += 1
            self.first_ce = ce_value if self.first_ce is None else self.first_ce
        return measured

    def watched_update(self) -> Watched:
        """An evaluation, a look inside and an update, during which the reading of options is noted."""
        with watch_reads() as seen:
            evaluation = self.evaluate()
            inside = self.look_inside() if self.look_due else {}
            update = self.update()
        self.reads |= _named(self.config, seen)
        return Watched(evaluation, inside, update)

    def _batches(self) -> list[Batch]:
        size, passes = self._micro_batch, self._accumulation
        rows = size * passes
        return [self.task.batch(self.seed, self.step, range(i * size, (i + 1) * size), rows) for i in range(passes)]

    def _backward(self, batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradients of the update's loss; its mean cross entropy (nats per token) and penalty, on the device."""
        weight, rows = target_weight(batches), sum(len(batch.tokens) for batch in batches)
        total, penalties = torch.zeros((), device=self.device), None
        for batch in batches:
            found = losses(self._forward, self.model, batch, self.device, self.config.train.precision)
            ce = found.ce / weight
            loss = ce
            if found.penalty is not None:
                penalty = found.penalty * (len(batch.tokens) / rows)
                loss = ce + penalty
                penalties = penalty.detach() if penalties is None else penalties + penalty.detach()
            loss.backward()
            total += ce.detach()
        return total, penalties

    def _seed_torch(self) -> None:
        key = stream(self.seed, "step", self.step)
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(key)
        else:
            torch.manual_seed(key)

    def explain(self) -> Finding:
        """Which tensor was the first that was not finite in the update that was just refused."""
        batches = self._batches()

        def forward() -> None:
            with torch.no_grad():
                for batch in batches:
                    losses(self.model, self.model, batch, self.device, self.config.train.precision)

        return health.non_finite(self.step, self.model, forward)

    def findings_at_end(self) -> list[Finding]:
        """Rules that need the trained weights."""
        initial = build_model(self.config, self.task, self.seed)
        final = {name: p.detach().cpu() for name, p in self.model.named_parameters()}
        table = parameter_table(self.model)
        found = health.dead_parameters(final, dict(initial.named_parameters()), table, self.gradients.unseen)
        missing = health.steps_missing(self.config.train.steps, self.optimizer.updates())
        return found if missing is None else [*found, missing]

    def snapshot(self, journal: int, progress: Mapping[str, object]) -> Snapshot:
        """The run's state between two updates. journal: bytes of its metrics file; progress: the caller's own."""
        return Snapshot(
            step=self.step,
            journal=journal,
            weights=tensors_of(self.model),
            moments=self.optimizer.state(),
            progress={
                **progress,
                "smoothed": [self._smoothed.total, self._smoothed.weight],
                "first_ce": self.first_ce,
                "without_gradient": self.gradients.unseen,
                "backends": self.backends.ran,
            },
        )

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same run."""
        here = tensors_of(self.model)
        assert here.keys() == snapshot.weights.keys(), "a checkpoint of another model under the same digest"
        for name, tensor in here.items():
            tensor.copy_(snapshot.weights[name])
        self.optimizer.load(snapshot.moments)
        self._smoothed = Smoothed(*snapshot.progress["smoothed"])
        self.first_ce = snapshot.progress["first_ce"]
        self.gradients.restore(snapshot.progress["without_gradient"])
        self.backends.restore(snapshot.progress.get("backends", {}))
        self.step = snapshot.step


def build_model(config: RunConfig, task: Task, seed: int) -> Model:
    """A model with its initial values, on the CPU."""
    model = config.model.build(task.vocab_size, config.task.context)
    initialise(model, seed)
    return model


@dataclass(frozen=True)
class _Built:
    key: str
    task: Task
    reads: frozenset[tuple[str, str]]


_last_task: _Built | None = None


def build_task(config: TaskConfig) -> tuple[Task, frozenset[tuple[str, str]]]:
    """The task of a config and the options that building it read; the last one is kept for the next run."""
    global _last_task
    key = canonical_json({"kind": type(config).__qualname__, **config.dump()})
    if _last_task is None or _last_task.key != key:
        _last_task = None  # before the next is built: never two corpora at once
        with watch_reads() as seen:
            task = config.build()
        _last_task = _Built(key, task, frozenset(_named(config, seen)))
    return _last_task.task, _last_task.reads


def forget_task() -> None:
    """Read the data again for the next run: the files may have changed."""
    global _last_task
    _last_task = None


def _named(config: RunConfig | TaskConfig, seen: set[tuple[int, str]]) -> Reads:
    return {(path, field) for path, part in config.walk() for identity, field in seen if identity == id(part)}


def _under(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if path else prefix

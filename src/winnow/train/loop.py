"""The training loop's inside: model, optimizer, data and schedule of one run, one update at a time. No files.

Every draw is a function of (seed, stream, step, index): the initial values, the rows of a batch, and for a mechanism
that draws from torch's own generator, that generator's state at each update. So an update depends on nothing but the
weights and moments before it and the step's number, and a resumed run repeats it bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import NamedTuple, cast

import torch

from winnow.config import canonical_json, stream, watch_reads
from winnow.models.base import Model
from winnow.parameters import initialise, parameter_table
from winnow.records.run import Fact, Finding, Spread
from winnow.tasks.base import Batch, Score, Task, TaskConfig
from winnow.train import health, inspection, slices
from winnow.train.backends import Backends
from winnow.train.checkpoint import Snapshot
from winnow.train.config import RunConfig, split_ranks
from winnow.train.device import autocast
from winnow.train.error_window import ErrorWindow
from winnow.train.evaluate import evaluate, held_out, look_inside, pruned_ce, prunings
from winnow.train.grafted import Grafted
from winnow.train.group import ALONE, BUILD, Charge, Group, together
from winnow.train.losses import Forward, Losses, Smoothed, losses, score, target_weight, tensors_of
from winnow.train.optim import Optimizer, learning_rate
from winnow.train.ratios import RatioWatch
from winnow.train.start import Parent, Position, Start, begin
from winnow.train.step_checks import UpdateWatch

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
    errors: Mapping[str, float] = field(default_factory=dict[str, float])
    """`train/error` and the like where a window of training texts ends with this update."""

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
        return {**found, **({} if self.penalty is None else {"train/penalty": self.penalty}), **self.errors}


class Watched(NamedTuple):
    """What the first step of a run measured."""

    evaluation: dict[str, float]
    inside: dict[str, float]
    update: Update


class Loop:
    """One run in memory, or one rank's part of it. Raises InputError where the config does not fit the data, the device
    or the number of ranks."""

    def __init__(
        self,
        config: RunConfig,
        *,
        seed: int,
        device: torch.device,
        group: Group = ALONE,
        parent: Parent | None = None,
    ) -> None:
        """parent: what `config.init_from` names, on the rank that leads."""
        with group.led(BUILD, torch.get_num_threads()):
            self._build(config, seed, device, group)
        self.parent = parent
        self.start = Start(self.model)
        self.start_reads: Reads = set()
        """Options that were read to make the starting values."""
        if group.leads and (config.init_from is not None or config.graft):
            self._begin()

    def _build(self, config: RunConfig, seed: int, device: torch.device, group: Group) -> None:
        self.config, self.seed, self.device, self.group = config, seed, device, group
        self.reads: Reads = set()
        self.step = 0
        self.position = Position()
        """Where the run stood before its first update."""
        self.first_ce: float | None = None
        self.grafted: Grafted | None = None
        """What the run's own grafts did before its first update; None: it has none."""
        self._smoothed = Smoothed()
        self.backends = Backends()
        with watch_reads() as seen:
            self.task, task_reads = build_task(config.task)
            self.model = group.place(build_model(config, self.task, seed), device)
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
            self._micro_batch, self._passes = split_ranks(config, group.size)
            self._charge: Charge = group.wrap(self._losses, self.model)
            self._evaluate_every = config.evaluation.every
            self._look_every = config.evaluation.inside
            self._window = _window(config)
            self._prunings = prunings(config.evaluation.prune, self.model, config.task.context)
            if config.train.recompute:
                self.model.recompute_blocks()
            learning_rate(config.train.steps, config.train)  # its far end, so that a late option counts as read
        self.gradients = slices.GradientWatch(parameters, table)
        self.changes: dict[str, Fact] = {}
        """How far slices moved, once the run has ended."""
        self.watch = UpdateWatch(self.optimizer, table, config.train, group)
        self.ratios = RatioWatch(self.optimizer.parameters, table, group.whole)
        self.reads |= _named(config, seen) | {(_under("task", path), field) for path, field in task_reads}
        self.model.train()

    def _begin(self) -> None:
        """Take over the starting values; other ranks get them from this one."""
        with watch_reads() as seen:
            self.start = begin(self.config, self.task, self.seed, self.parent)
        self.start_reads = _named(self.config, seen)
        self.reads |= self.start_reads
        self.restore(self.start.snapshot())
        if self.parent is not None:  # its weights are needed again at the end, its moments are not
            self.parent = replace(self.parent, snapshot=replace(self.parent.snapshot, moments={}))

    def starting_model(self) -> Model:
        """The model as it stood before the first update, made anew on the CPU; on the rank that leads."""
        if self.config.init_from is None and not self.config.graft:
            return build_model(self.config, self.task, self.seed)
        return begin(self.config, self.task, self.seed, self.parent, probe=False).model

    @property
    def evaluation_due(self) -> bool:
        """Whether the weights as they are belong on the validation curve."""
        return self.step % self._evaluate_every == 0

    @together
    def evaluate(self) -> dict[str, float]:
        """Validation metrics of the weights as they are; those of the last update with a pruned cache too."""
        precision = self.config.train.precision
        with self.backends.watched(), self.group.inference(self.model):
            found = evaluate(self.model, self.validation, self.device, precision, self.group)
            for part in self._prunings if self.step == self.config.train.steps else ():
                found[part.metric] = pruned_ce(
                    self.model, self.validation, self.device, precision, part.budget, part.policy
                )
            return found

    @property
    def look_due(self) -> bool:
        """Whether the weights as they are belong on the curves of the mechanisms' inside."""
        every = self._look_every
        return every is not None and (self.step % every == 0 or self.step == self.config.train.steps)

    @together
    def look_inside(self) -> dict[str, float]:
        """What the mechanisms measure of themselves with the weights as they are."""
        with self.group.inference(self.model):
            return look_inside(self.model, self.validation, self.device, self.config.train.precision)

    @together
    def update(self) -> Update:
        """One step of the optimizer. An update that is not finite is measured and not applied."""
        self._seed_torch()
        batches = self._batches()
        self.optimizer.zero_grad()
        with self.backends.watched():
            ce, penalty, wrong = self._backward(batches)
        self.group.drop_unused(self.model)
        self.gradients.look(self.group.whole)
        norm = self.optimizer.clip(self.group.whole)
        rate = learning_rate(self.step, self.config.train)
        # The one moment at which the host waits for the device.
        numbers = (ce, norm.to(ce.dtype)) if penalty is None else (ce, norm.to(ce.dtype), penalty.to(ce.dtype))
        ce_value, norm_value, *rest = torch.stack(numbers).tolist()
        errors = {} if self._window is None else self._window.add(self.step, self._score(batches, ce_value, wrong))
        self.watch.loss(ce_value, batches, self.model.readout_weight)
        smooth = self._smoothed.add(ce_value) if math.isfinite(ce_value) else ce_value
        measured = Update(self.step, ce_value, smooth, norm_value, rate, rest[0] if rest else None, errors)
        if measured.finite:
            last = self.step + 1 == self.config.train.steps
            with self.watch.rates(rate, last=last), self.ratios.around(due=last or self.evaluation_due):
                self.optimizer.step(rate)
            self.step += 1
            self.first_ce = ce_value if self.first_ce is None else self.first_ce
        return measured

    @together
    def watched_update(self) -> Watched:
        """An evaluation, a look inside and an update, during which the reading of options is noted."""
        with watch_reads() as seen:
            evaluation = self.evaluate()
            inside = self.look_inside() if self.look_due else {}
            update = self.update()
        self.reads |= _named(self.config, seen)
        return Watched(evaluation, inside, update)

    @property
    def data_step(self) -> int:
        """The update whose rows of the task come next: a run with a parent goes on where that one stopped."""
        return self.position.data_step + self.step - self.position.step

    def _batches(self) -> list[Batch]:
        """This rank's rows of the update, pass by pass."""
        size, passes, rows = self._micro_batch, self._passes, self.config.rows
        first = self.group.rank * passes
        starts = range(first * size, (first + passes) * size, size)
        return [self.task.batch(self.seed, self.data_step, range(start, start + size), rows) for start in starts]

    def _losses(self, batch: Batch) -> Losses:
        forward = self.watch.forward(self._forward)
        precision = self.config.train.precision
        return losses(forward, self.model, batch, self.device, precision, errors=self._window is not None)

    def _score(self, batches: list[Batch], ce: float, wrong: torch.Tensor) -> Score:
        """Of the update's rows, all ranks' together. ce: nats per token; wrong: on the device."""
        mine = score(batches, 0.0, wrong.tolist())
        total = Score(*map(self.group.total, astuple(mine)))
        return replace(total, ce=ce * total.targets)

    def _backward(self, batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Gradients of the update's loss; its mean cross entropy (nats per token), its penalty and this rank's errors,
        on the device."""
        weight, rows = self.group.total(target_weight(batches)), self.config.rows
        total, penalties = torch.zeros((), device=self.device), None
        wrong = torch.zeros(3, dtype=torch.int64, device=self.device)
        for batch in batches:
            with self.group.accumulating(last=batch is batches[-1]):
                found = self._charge(batch)
                ce = found.ce / weight
                loss = ce
                if found.penalty is not None:
                    penalty = found.penalty * (len(batch.tokens) / rows)
                    loss = ce + penalty
                    penalties = penalty.detach() if penalties is None else penalties + penalty.detach()
                loss.backward()
            total += ce.detach()
            wrong += 0 if found.wrong is None else found.wrong
        return self.group.sum(total), None if penalties is None else self.group.sum(penalties), wrong

    def _seed_torch(self) -> None:
        # Every rank draws for its own rows, as the passes of one process do one after the other.
        rank = ("rank", self.group.rank) if self.group.rank else ()
        key = stream(self.seed, "step", self.step, *rank)
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(key)
        else:
            torch.manual_seed(key)

    @together
    def explain(self) -> Finding:
        """Which tensor was the first that was not finite in the update that was just refused."""
        batches = self._batches()

        def forward() -> None:
            with torch.no_grad():
                for batch in batches:
                    losses(self.model, self.model, batch, self.device, self.config.train.precision)

        with self.group.inference(self.model):
            found = health.non_finite(self.step, self.model, forward)
        return min(self.group.gather(found), key=health.place_order)

    def judge_first_loss(self, cross_entropy: float, parent_loss: float | None) -> Finding | None:
        """What is wrong with the validation loss before the first update, nats per token; see `Start.parent_loss`."""
        if self.config.init_from is None:
            return health.first_loss(
                cross_entropy,
                self.task.vocab_size,
                declared=readout_nats(self.model),
                next_token=self.config.task.next_token,
            )
        graft = None if self.grafted is None else self.grafted.ce_change
        return health.start_exploded(cross_entropy, self.task.vocab_size, parent=parent_loss, graft=graft)

    @together
    def findings_at_start(self) -> tuple[list[Finding], dict[str, Spread]]:
        """Rules that need the starting weights; and how far these lie from 0, by parameter."""
        return inspection.at_start(self)

    @together
    def findings_at_end(self, reported: Mapping[str, float]) -> list[Finding]:
        """Rules that need the trained weights. reported: what evaluation said of them."""
        return inspection.at_end(self, reported)

    @together
    def snapshot(self, journal: int, progress: Mapping[str, object]) -> Snapshot:
        """The run's state between two updates. journal: bytes of its metrics file; progress: the caller's own."""
        weights = tensors_of(self.model)
        self.group.check_copies(weights)
        return Snapshot(
            step=self.step,
            journal=journal,
            weights=self.group.collect(weights),
            moments=self.group.collect(self.optimizer.state()),
            progress={
                **progress,
                "smoothed": [self._smoothed.total, self._smoothed.weight],
                "first_ce": self.first_ce,
                "start": self.position.dump(),
                "graft": None if self.grafted is None else self.grafted.dump(),
                "without_gradient": self.gradients.unseen,
                "update_ratios": self.ratios.dump(),
                "backends": self.backends.ran,
                "error_window": None if self._window is None else self._window.dump(),
            },
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same run, whatever the ranks that made it. Other ranks get its outline."""
        with self.group.led("restore", snapshot.outline()):
            self._restore(snapshot)

    @torch.no_grad()
    def _restore(self, snapshot: Snapshot) -> None:
        here = tensors_of(self.model)
        assert here.keys() == snapshot.weights.keys(), "a checkpoint of another model under the same digest"
        for name, tensor in here.items():
            self.group.fill(tensor, snapshot.weights[name])
        self.optimizer.load(snapshot.moments, self.group.beside)
        self._smoothed = Smoothed(*snapshot.progress["smoothed"])
        self.first_ce = snapshot.progress["first_ce"]
        self.position = Position.of(snapshot.progress)
        graft = snapshot.progress.get("graft")
        self.grafted = None if graft is None else Grafted.load(graft)
        if "without_gradient" in snapshot.progress:  # a starting point has not looked yet
            self.gradients.restore(snapshot.progress["without_gradient"])
        self.ratios.restore(snapshot.progress.get("update_ratios", {}))
        self.backends.restore(snapshot.progress.get("backends", {}))
        if self._window is not None and snapshot.progress.get("error_window"):
            self._window.restore(snapshot.progress["error_window"])
        self.step = snapshot.step


def _window(config: RunConfig) -> ErrorWindow | None:
    rows, means = config.evaluation.train_window, config.evaluation.batch_means is not None
    return None if rows is None else ErrorWindow(rows, config.rows, config.train.steps, means=means)


def build_model(config: RunConfig, task: Task, seed: int) -> Model:
    """The model that runs with fresh initial values, on the CPU: what a run starts from that has no parent and no
    graft, and the shape of any other."""
    model = config.grown.build(task.vocab_size, config.task.context)
    initialise(model, seed)
    return model


def readout_nats(model: Model) -> float:
    """By how much logits of the readout's declared spread may raise a first loss, nats: half their variance, where
    hidden states have a variance of 2 (a residual stream to which layers have added as much again)."""
    roles = {spec.role: spec for spec in parameter_table(model).values()}
    return (roles.get("readout") or roles["embedding"]).std ** 2 * model.readout_weight.shape[1]


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
    parts = list(config.walk())
    if isinstance(config, RunConfig) and config.graft:
        # What runs is the grafted model, whose options stand in the config under `model` and `graft`.
        grown = list(config.grown.walk("model"))
        switched = [
            (path.replace("model", f"graft.{index}", 1), part)
            for index in range(len(config.graft))
            for path, part in grown
            if path.startswith("model.attention")
        ]
        parts += [*grown, *switched]
    return {(path, field) for path, part in parts for identity, field in seen if identity == id(part)}


def _under(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if path else prefix

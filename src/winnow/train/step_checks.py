"""Whether an update did what the journal says: the learning rate that moved each group, and the loss that was reported.

implied rate     AdamW moves p by -rate (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay p), so two
                 copies of p and its moments m, v tell the rate, whatever the optimizer's own fields say
cross entropy    log_softmax in fp64 of the logits that hidden states and readout give, apart from the kernel
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from winnow.models.base import Model, Output
from winnow.parameters import ParameterSpec
from winnow.records.run import Finding
from winnow.tasks.base import Batch, Validation
from winnow.train.config import TrainConfig
from winnow.train.device import autocast
from winnow.train.evaluate import evaluate, evaluating
from winnow.train.group import Group
from winnow.train.losses import Forward, target_weight
from winnow.train.optim import Optimizer

SAMPLE = 4096
"""Elements of a parameter that are looked at."""
RATE_ERROR = 0.01
"""Part of a learning rate by which the implied one may differ."""
ROUNDING = 2.0**-22
"""Part of a value that an update in fp32 may lose: half a unit in the last place each of 1 - rate decay, of the decayed
value and of the sum."""
WINDOWS = 2
"""Validation rows whose cross entropy is formed again."""
LOGITS = 128
"""Tokens whose logits exist at once."""
LOSS_ERROR: Mapping[str, float] = {"fp32": 1e-4, "bf16": 1e-2}
"""Part of a cross entropy by which two ways to form it may differ."""

Whole = Callable[[Tensor], Tensor]
"""Puts together a tensor of which ranks hold parts."""


class RateWatch:
    """The learning rates that an update really applied."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        moments: Callable[[], Mapping[str, Tensor]],
        table: Mapping[str, ParameterSpec],
        train: TrainConfig,
        whole: Whole,
    ) -> None:
        self._parameters = {name: p for name, p in parameters.items() if table[name].lr_multiplier != 0}
        self._moments, self._table, self._train, self._whole = moments, table, train, whole

    def before(self) -> dict[str, tuple[Tensor, float]]:
        """Some elements of every parameter, and its updates so far; call it before the optimizer's step."""
        moments = self._moments()
        return {name: (self._some(p), _updates(moments, name)) for name, p in self._parameters.items()}

    def _some(self, tensor: Tensor) -> Tensor:
        flat = self._whole(tensor.detach()).flatten()
        return flat[:: max(1, len(flat) // SAMPLE)].cpu().double()

    def after(self, before: Mapping[str, tuple[Tensor, float]], rate: float) -> list[Finding]:
        """What the step did otherwise than at `rate` times each group's multiplier."""
        moments = self._moments()
        groups: dict[float, list[tuple[Tensor, Tensor, Tensor]]] = {}
        first: dict[float, str] = {}
        for name, (old, updates) in before.items():
            if _updates(moments, name) == updates:
                continue  # had no gradient
            multiplier = self._table[name].lr_multiplier
            direction = self._direction(name, old, moments)
            groups.setdefault(multiplier, []).append((self._some(self._parameters[name]) - old, direction, old))
            first.setdefault(multiplier, name)
        found: list[Finding] = []
        for multiplier, parts in groups.items():
            expected = rate * multiplier
            implied = _implied(parts, expected)
            if implied is not None:
                message = (
                    f"{first[multiplier]} and its group moved at learning rate {implied:.4g}; the schedule says "
                    f"{rate:.4g}, times its multiplier {multiplier:g} is {expected:.4g}"
                )
                mend = "look for what sets the rate of the optimizer's groups after they were made"
                found.append(
                    Finding(
                        rule="lr-not-applied", severity="invalid", message=message, where=first[multiplier], mend=mend
                    )
                )
        return found

    def _direction(self, name: str, old: Tensor, moments: Mapping[str, Tensor]) -> Tensor:
        train, spec = self._train, self._table[name]
        steps = float(moments[f"{name}/step"])
        mean, square = (self._some(moments[f"{name}/{key}"]) for key in ("exp_avg", "exp_avg_sq"))
        mean, square = (m / (1 - beta**steps) for m, beta in zip((mean, square), train.betas, strict=True))
        decay = train.weight_decay if train.decay_on == "all" or spec.decay else 0.0
        return mean / (square.sqrt() + train.eps) + decay * old


def _implied(parts: Sequence[tuple[Tensor, Tensor, Tensor]], expected: float) -> float | None:
    """The rate that fits these (moved by, direction, value before) best, where it is not the expected one."""
    moved, direction, old = (torch.cat(column) for column in zip(*parts, strict=True))
    lost = ROUNDING * old.abs()
    seen = (expected * direction).abs() > 16 * lost
    moved, direction, lost = moved[seen], direction[seen], lost[seen]
    weight = float(direction.square().sum())
    if not weight > 0:
        return None
    implied = -float((moved * direction).sum()) / weight
    # All roundings may point one way: equal values that are moved alike round alike.
    rounding = float((lost * direction.abs()).sum()) / weight
    return implied if not abs(implied - expected) <= RATE_ERROR * expected + rounding else None


def _updates(moments: Mapping[str, Tensor], name: str) -> float:
    step = moments.get(f"{name}/step")
    return 0.0 if step is None else float(step)


class UpdateWatch:
    """Holds a run's first and last update against what is reported of them; costs nothing in between."""

    def __init__(self, optimizer: Optimizer, table: Mapping[str, ParameterSpec], train: TrainConfig, group: Group):
        own = train.model_copy()  # what is read here must not count as read by the run
        self._rates = RateWatch(optimizer.parameters, optimizer.state, table, own, group.whole)
        self._precision, self._group = own.precision, group
        self._seen: LossWatch | None = None
        self._first = True
        self.found: list[Finding] = []
        """What was found, in the order of the updates."""

    def forward(self, forward: Forward) -> Forward:
        """The pass that an update's losses are formed of."""
        if not self._first:
            return forward
        if self._seen is None:
            self._seen = LossWatch(forward)
        return self._seen.forward

    def loss(self, reported: float, batches: Sequence[Batch], readout: Tensor) -> None:
        """Compare a reported cross entropy (nats per token) with one formed apart; before the optimizer's step."""
        seen, self._seen = self._seen, None
        if seen is not None:
            weight = self._group.total(target_weight(batches))
            total = self._group.total(seen.total(batches, self._group.whole(readout.detach()), self._precision))
            finding = training_loss(reported, total / weight, self._precision)
            self.found += [] if finding is None else [finding]

    @contextmanager
    def rates(self, rate: float, *, last: bool) -> Iterator[None]:
        """Around the optimizer's step at `rate`."""
        before = self._rates.before() if self._first or last else None
        yield
        self._first = False
        if before is not None:
            self.found += self._rates.after(before, rate)


class LossWatch:
    """The hidden states that an update's losses were formed from."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._hidden: list[Tensor] = []

    def forward(self, tokens: Tensor) -> Output:
        """The model's pass; keeps what comes out."""
        output = self._forward(tokens)
        self._hidden.append(output.hidden.detach())
        return output

    def total(self, batches: Sequence[Batch], readout: Tensor, precision: str) -> float:
        """Summed cross entropy of the passes so far, nats; call it before the optimizer's step."""
        return sum(
            _cross_entropy(hidden, readout, batch, precision)
            for hidden, batch in zip(self._hidden, batches, strict=True)
        )


@torch.no_grad()
def _cross_entropy(hidden: Float[Tensor, "B T C"], readout: Tensor, batch: Batch, precision: str) -> float:
    targets = batch.targets.to(hidden.device).flatten()
    counted = None if batch.mask is None else batch.mask.to(hidden.device).flatten().double()
    total = 0.0
    rows = hidden.flatten(0, 1)
    for start in range(0, len(rows), LOGITS):
        part = slice(start, start + LOGITS)
        with autocast(hidden.device, precision):
            logits = F.linear(rows[part].to(readout.dtype), readout)
        of_targets = -logits.double().log_softmax(-1).gather(1, targets[part, None]).squeeze(1)
        total += float((of_targets if counted is None else of_targets * counted[part]).sum())
    return total


def training_loss(reported: float, formed: float, precision: str) -> Finding | None:
    """Whether an update's reported cross entropy is one. reported, formed: nats per token."""
    if not _apart(reported, formed, precision):
        return None
    return _not_cross_entropy("train/ce", reported, formed)


@torch.no_grad()
def evaluation_loss(
    model: Model, validation: Validation, device: torch.device, precision: str, reported: Mapping[str, float]
) -> list[Finding]:
    """Whether what evaluation calls cross entropy is one, on a few rows, and the perplexity its exponential.

    reported: an evaluation of these weights, as it stands in the journal.
    """
    few = validation.first(WINDOWS)
    (batch,) = few.batches(WINDOWS)
    found = evaluate(model, few, device, precision)
    with evaluating(model), autocast(device, precision):
        hidden = model(batch.tokens.to(device)).hidden
    formed = _cross_entropy(hidden, model.readout_weight, batch, precision) / target_weight([batch])
    wrong = (
        [_not_cross_entropy("val/ce", found["val/ce"], formed)] if _apart(found["val/ce"], formed, precision) else []
    )
    for figures in (found, reported):
        ce, perplexity = figures.get("val/ce", math.nan), figures.get("val/ppl", math.nan)
        if math.isfinite(ce) and math.isfinite(perplexity) and abs(math.log(perplexity) - ce) > 1e-6 * max(1.0, ce):
            wrong.append(_not_cross_entropy("val/ppl", perplexity, math.exp(ce)))
            break
    return wrong


def _apart(reported: float, formed: float, precision: str) -> bool:
    finite = math.isfinite(reported) and math.isfinite(formed)  # what is not finite has a finding of its own
    return finite and abs(reported - formed) > LOSS_ERROR[precision] * max(1.0, formed)


def _not_cross_entropy(metric: str, reported: float, formed: float) -> Finding:
    return Finding(
        rule="not-cross-entropy",
        severity="invalid",
        message=f"{metric} is {reported:.6g}, the cross entropy of the same tokens makes it {formed:.6g}",
        where=metric,
        mend="look for what else is in it: a penalty, say, that belongs to the training loss alone",
    )

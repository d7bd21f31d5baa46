"""What a run really did, against what was written: the rules of the health watch.

| rule            | fires when                                                              | severity |
|-----------------|-------------------------------------------------------------------------|----------|
| dead-parameter  | a parameter, or a slice such as one head, never moved or never had a gradient | invalid |
| frozen-parameter | a parameter has learning-rate multiplier 0; invalid where it moved all the same | notice |
| non-finite      | a loss or gradient is NaN or infinite; the run becomes `diverged`       | warning  |
| loss-divergence | the smoothed loss is far above its start; the run becomes `diverged`    | warning  |
| first-loss      | step-0 loss is below ln(vocab) (invalid) or far above it (warning)      | both     |
| warmup-only     | warm-up lasts as long as the run, so the peak rate is never held        | warning  |
| steps-missing   | the optimizer did not do as many updates as were asked for              | invalid  |
| unread-option   | an option that was set was never read while the run was built and run   | warning  |
| nothing-inside  | `evaluation.inside` is set and no mechanism measures anything of itself | notice   |
| slow-kernel     | selective attention ran on another backend than the device's fastest    | notice   |
| no-effect       | arms are bit-identical although their configs differ (study level)      | invalid  |

A diverged run is an outcome, so its findings do not make a verdict invalid. An unread option becomes invalid where it
is what an arm is about (`unread_by_arm`).

Not here: what can be seen before training (`winnow.study.audit`). Nothing here imports torch, so that records can be
compared without it; tensors come in and only their methods are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from winnow.config import Config
from winnow.records.run import Finding, RunRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from winnow.parameters import ParameterSpec
    from winnow.train.config import EvaluationConfig, TrainConfig

FIRST_LOSS_NATS = 0.5
"""How far step-0 cross entropy may be from ln(vocab). GPT-2's initial values give +0.15 at width 768."""
DIVERGENCE_FACTOR = 2.0
"""A smoothed loss above this many times the larger of the first loss and ln(vocab) has diverged."""
OUTSIDE_IDENTITY = frozenset({"task.source", "train.checkpoint_every"})
"""Settings that change no result, so that a difference in them explains nothing."""


class GradientWatch:
    """Which parameters, slice by slice, have had a gradient. Costs nothing once all have."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], table: Mapping[str, ParameterSpec]) -> None:
        self._parameters, self._table = parameters, table
        self._unseen = {name: {part for part, _ in _parts(table[name], parameters[name])} for name in table}

    def look(self) -> None:
        """Note what has a gradient now; call it between the backward pass and the update."""
        for name in [name for name, parts in self._unseen.items() if parts]:
            gradient = self._parameters[name].grad
            if gradient is None:
                continue
            for part, view in _parts(self._table[name], gradient):
                if part in self._unseen[name] and bool(view.any()):
                    self._unseen[name].discard(part)

    @property
    def unseen(self) -> dict[str, list[str]]:
        """Names of the slices without a gradient so far, by parameter ("" = the whole of it); plain JSON data."""
        return {name: sorted(parts) for name, parts in self._unseen.items() if parts}

    def restore(self, unseen: Mapping[str, Iterable[str]]) -> None:
        """Continue from an earlier `unseen`."""
        self._unseen = {name: set(unseen.get(name, ())) for name in self._table}


def dead_parameters(
    final: Mapping[str, Tensor],
    initial: Mapping[str, Tensor],
    table: Mapping[str, ParameterSpec],
    unseen: Mapping[str, Iterable[str]],
) -> list[Finding]:
    """Parameters that never moved (their values are bit for bit the initial ones) or never had a gradient.

    One whose learning-rate multiplier is 0 should not move: that is stated, and it is a defect where it did.
    """
    found: list[Finding] = []
    frozen: dict[bool, list[str]] = {False: [], True: []}
    for name, spec in table.items():
        without = set(unseen.get(name, ()))
        starts = dict(_parts(spec, initial[name]))
        still = {part for part, view in _parts(spec, final[name]) if view.equal(starts[part])}
        if spec.lr_multiplier == 0:
            frozen[still != set(starts)].append(name)
            still = set[str]()
        for dead, what in ((still, "never moved"), (without - still, "never had a gradient")):
            if not dead:
                continue
            where = name if dead == set(starts) else f"{name}[{', '.join(sorted(dead))}]"
            found.append(
                Finding(
                    rule="dead-parameter",
                    severity="invalid",
                    message=f"{where} {what}{' and never had a gradient' if dead & still & without else ''}",
                    where=name,
                    mend="connect it, start it from other values, or take it out of the model",
                )
            )
    return [*found, *_frozen(frozen[False], moved=False), *_frozen(frozen[True], moved=True)]


def _frozen(names: list[str], *, moved: bool) -> list[Finding]:
    if not names:
        return []
    what = "moved all the same" if moved else "kept the initial values"
    return [
        Finding(
            rule="frozen-parameter",
            severity="invalid" if moved else "notice",
            message=f"learning-rate multiplier 0: {', '.join(names)} {what}",
            where=names[0],
        )
    ]


def _parts(spec: ParameterSpec, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if not spec.slices:
        yield "", tensor
    for part in spec.slices:
        yield part.name, part.view(tensor)


def non_finite(step: int, model: nn.Module, forward: Callable[[], object]) -> Finding:
    """Which tensor is the first that is not finite.

    step: the update whose loss or gradient was not finite; forward: runs that update's forward pass again.
    Parameters come first, then outputs of modules and what mechanisms hand to losses, in the order in which they were
    computed, then gradients.
    """
    place = next((f"parameter {name}" for name, p in model.named_parameters() if _bad(p)), None)
    place = place or _first_bad_output(model, forward)
    place = place or next((f"gradient of {name}" for name, p in model.named_parameters() if _bad(p.grad)), None)
    return Finding(
        rule="non-finite",
        severity="warning",
        message=f"step {step}: {place or 'the loss'} is the first tensor with NaN or infinite values",
        where=place or "loss",
        mend="lower train.lr, set train.clip, or look at this module",
    )


def _bad(value: Tensor | None) -> bool:
    return value is not None and value.is_floating_point() and not bool(value.isfinite().all())


def _first_bad_output(model: nn.Module, forward: Callable[[], object]) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Callable[[Any, Any, Any], None]:
        def look(module: Any, inputs: Any, output: Any) -> None:
            bad = next((what for what, tensor in _tensors("output", output) if _bad(tensor)), None)
            if not found and bad is not None:
                found.append(f"{bad} of {name}" if name else f"the model's {bad}")

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module's answer; those in a mapping, such as a mechanism's penalty, by their own names."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(name, item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(str(key), item)
    elif callable(getattr(value, "isfinite", None)):
        yield name, value


def loss_divergence(step: int, smooth: float, first: float, vocab_size: int) -> Finding | None:
    """Whether a run is lost although every number is finite. smooth, first: cross entropy, nats per token."""
    bound = DIVERGENCE_FACTOR * max(first, math.log(vocab_size))
    if smooth <= bound:
        return None
    return Finding(
        rule="loss-divergence",
        severity="warning",
        message=f"step {step}: smoothed loss {smooth:.3g} nats is above {bound:.3g}, where it started at {first:.3g}",
        where=f"step {step}",
        mend="lower train.lr, or set train.clip",
    )


def first_loss(cross_entropy: float, vocab_size: int) -> Finding | None:
    """Step-0 validation cross entropy (nats per token) against that of a model that knows nothing."""
    expected = math.log(vocab_size)
    distance = cross_entropy - expected
    if abs(distance) <= FIRST_LOSS_NATS:
        return None
    below = distance < 0
    return Finding(
        rule="first-loss",
        severity="invalid" if below else "warning",
        message=f"step-0 loss is {cross_entropy:.3f} nats, ln(vocab) is {expected:.3f}: "
        + ("the model knows its targets before it is trained" if below else "the initial values are too large"),
        where="step 0",
        mend="look for targets that reach the inputs" if below else "look at the initial values and the readout",
    )


def warmup_only(train: TrainConfig) -> Finding | None:
    """Whether the learning rate is still rising when the run ends."""
    if train.warmup == 0 or train.steps > train.warmup:
        return None
    return Finding(
        rule="warmup-only",
        severity="warning",
        message=f"the schedule never leaves warm-up: {train.steps} steps, warm-up of {train.warmup}; "
        f"the last rate is {train.steps / train.warmup:.2g} of train.lr",
        where="train.warmup",
        mend="lower train.warmup, or raise train.steps",
    )


def nothing_inside(evaluation: EvaluationConfig, figures: Mapping[str, float]) -> Finding | None:
    """Whether a look at the inside was asked for and showed nothing. figures: what it showed at step 0."""
    if evaluation.inside is None or figures:
        return None
    return Finding(
        rule="nothing-inside",
        severity="notice",
        message=f"evaluation.inside = {evaluation.inside}, but no mechanism of this model measures anything of itself",
        where="evaluation.inside",
    )


ASKED_FOR = "asked for"
"""The reason of a backend that somebody named."""


def slow_kernel(ran: Mapping[str, str]) -> Finding | None:
    """Whether a faster backend than those that ran was passed over. ran: why, by backend; empty for the fastest."""
    slow = {backend: reason for backend, reason in ran.items() if reason not in ("", ASKED_FOR)}
    if not slow:
        return None
    what = "; ".join(f"{backend} ({reason})" for backend, reason in slow.items())
    return Finding(
        rule="slow-kernel",
        severity="notice",
        message=f"selective attention ran on a slower backend: {what}",
        where="selective_attention",
    )


def steps_missing(asked: int, done: int) -> Finding | None:
    """Steps asked for against updates that the optimizer counted."""
    if asked == done:
        return None
    return Finding(
        rule="steps-missing",
        severity="invalid",
        message=f"{asked} steps were asked for, the optimizer did {done}",
        where="train.steps",
        mend="remove the run and run it again",
    )


def unread_options(config: Config, reads: Iterable[tuple[str, str]]) -> list[Finding]:
    """Options that were set and never read.

    reads: (path of the part of the config, field). Left out: `kind`, fields outside the identity, parts that are
    configs themselves (their own fields are looked at), and options at their default, which nobody has set.
    """
    seen = set(reads)
    found: list[Finding] = []
    for path, part in config.walk():
        for name, field in type(part).model_fields.items():
            value = part.__dict__[name]
            if name == "kind" or name in part.outside_identity or isinstance(value, Config) or (path, name) in seen:
                continue
            if not field.is_required() and value == field.get_default(call_default_factory=True, validated_data={}):
                continue
            key = f"{path}.{name}" if path else name
            found.append(
                Finding(
                    rule="unread-option",
                    severity="warning",
                    message=f"option {key} = {value!r} was never read: it changed nothing",
                    where=key,
                    mend="remove it, or choose the kind that reads it",
                )
            )
    return found


def no_effect(runs: Mapping[str, Mapping[int, RunRecord]]) -> tuple[Finding, ...]:
    """Pairs of arms that are bit-identical, weights and metrics, although their configs differ.

    runs: records by arm and seed. A pair is reported when every seed that both have is identical.
    """
    found: list[Finding] = []
    arms = list(runs)
    for index, first in enumerate(arms):
        for second in arms[index + 1 :]:
            pairs = [(runs[first][seed], runs[second][seed]) for seed in runs[first] if seed in runs[second]]
            if not pairs or not all(_identical(a, b) for a, b in pairs):
                continue
            changed = differing_settings(pairs[0][0].config, pairs[0][1].config)
            plural = "s" if len(changed) > 1 else ""
            what = ", ".join(f"{key} ({values[0]} and {values[1]})" for key, values in changed.items())
            found.append(
                Finding(
                    rule="no-effect",
                    severity="invalid",
                    message=f"setting{plural} {what} had no effect: {first} and {second} are bit-identical",
                    where=f"{first}, {second}",
                    mend="the arms are one experiment: change the setting until it bites, or drop an arm",
                )
            )
    return tuple(found)


def _identical(a: RunRecord, b: RunRecord) -> bool:
    hashed = a.weights is not None and a.trace is not None
    return hashed and a.digest != b.digest and (a.weights, a.trace) == (b.weights, b.trace)


def unread_by_arm(arm: RunRecord, control: RunRecord) -> tuple[Finding, ...]:
    """The arm's unread options in which it differs from the control: then the arm is not what was written."""
    changed = differing_settings(arm.config, control.config)
    return tuple(
        finding.model_copy(update={"severity": "invalid"})
        for finding in arm.findings
        if finding.rule == "unread-option" and finding.where in changed
    )


def differing_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Dotted settings in which two dumped configs differ, each with its two values as text ("-" = absent)."""
    a, b = dict(_flat(first)), dict(_flat(second))
    keys = [key for key in {**a, **b} if a.get(key, _ABSENT) != b.get(key, _ABSENT) and key not in OUTSIDE_IDENTITY]
    return {key: (_shown(a.get(key, _ABSENT)), _shown(b.get(key, _ABSENT))) for key in keys}


_ABSENT = object()


def _shown(value: Any) -> str:
    return "-" if value is _ABSENT else "off" if value is None else str(value)


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        key = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from _flat(value, key)
        else:
            yield key, value

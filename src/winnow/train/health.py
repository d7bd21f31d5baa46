"""What a run really did, against what was written: the rules of the health watch.

| rule | fires when | severity | found in |
|---|---|---|---|
| not-its-definition | a mechanism's output, mask or penalty is not its plain loops' | invalid | mechanism_checks |
| negative-mask | a mask is below 0 where its definition is not | invalid | mechanism_checks |
| future-touched | a mask or a token acts on what comes before it | invalid | mechanism_checks |
| unselective | every mask is 0; a notice at the start, a warning where weights want it | invalid | mechanism_checks |
| no-definition | a mechanism has no oracle | notice | mechanism_checks |
| initial-values | a fresh parameter is not what the table declares | invalid | start_checks |
| lr-not-applied | a group moved at another rate than schedule times multiplier | invalid | step_checks |
| not-cross-entropy | a reported cross entropy or perplexity is something else | invalid | step_checks |
| dead-parameter | a slice never moved or had a gradient; a warning where no vote got through | invalid | slices |
| frozen-parameter | its multiplier is 0; invalid where it moved all the same | notice | slices |
| slice-barely-moves | a slice moved far less than others of its role | notice | slices |
| non-finite | a loss or gradient is NaN or infinite; the run becomes `diverged` | warning | here |
| loss-divergence | the smoothed loss is far above its start; the run becomes `diverged` | warning | here |
| first-loss | step-0 loss is below ln(vocab) (invalid; next token only) or far above it (warning) | both | here |
| visible-answer | a token of an answer stands in what the model reads | invalid | here |
| start-exploded | a parent's weights start far worse than they were, or than knowing nothing | warning | here |
| dead-by-construction | a graft starts slices that no gradient can reach | invalid | here |
| warmup-only | warm-up lasts as long as the run, so the peak rate is never held | warning | here |
| steps-missing | the optimizer did not do as many updates as were asked for | invalid | here |
| unread-option | an option that was set was never read while the run was built and run | warning | here |
| nothing-inside | `evaluation.inside` is set and no mechanism measures anything of itself | notice | here |
| slow-kernel | selective attention ran on another backend than the device's fastest | notice | here |
| no-effect | arms are bit-identical although their configs differ (study level) | invalid | here |
| initial-spread | arms start a tensor differently and no setting says so (study level) | invalid | here |
| data-restarted | a run with a parent reads its data from the front | notice | start |
| weights-converted | the parent's weights were converted, or something about them assumed | notice | start |
| checkpoint-refused | a damaged checkpoint was passed over | notice | trainer |
| continued-elsewhere | the run went on in another environment | warning | trainer |
| denormals | a thread does not flush denormals | notice | trainer |

What each means to whom it stops: docs/health.md.

A diverged run is an outcome, so its findings do not make a verdict invalid. An unread option becomes invalid where it
is what an arm is about (`unread_by_arm`).

Not here: what can be seen before training (`winnow.study.audit`). Nothing here imports torch, so that records can be
compared without it; tensors come in and only their methods are used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from winnow.config import Config
from winnow.records.run import Finding, RunRecord, Spread

if TYPE_CHECKING:
    from torch import Tensor, nn

    from winnow.tasks.base import Batch
    from winnow.train.config import EvaluationConfig, TrainConfig

FIRST_LOSS_NATS = 0.5
"""How far step-0 cross entropy may be from ln(vocab). GPT-2's initial values give +0.15 at width 768."""
DIVERGENCE_FACTOR = 2.0
"""A smoothed loss above this many times the larger of the first loss and ln(vocab) has diverged."""
OUTSIDE_IDENTITY = frozenset({"task.source", "train.checkpoint_every", "train.keep", "init_from.run", "init_from.path"})
"""Settings that change no result, so that a difference in them explains nothing."""


def non_finite(step: int, model: nn.Module, forward: Callable[[], object]) -> Finding:
    """Which tensor is the first that is not finite.

    step: the update whose loss or gradient was not finite; forward: runs that update's forward pass again.
    Parameters come first, then outputs of modules and what mechanisms hand to losses, in the order in which they were
    computed, then gradients.
    """
    place = next((f"parameter {name}" for name, p in model.named_parameters() if _bad(p)), None)
    # Looked for all the same: ranks that hold parts of it look together, and not all may have found an output.
    gradient = next((f"gradient of {name}" for name, p in model.named_parameters() if _bad(p.grad)), None)
    place = place or _first_bad_output(model, forward) or gradient
    return Finding(
        rule="non-finite",
        severity="warning",
        message=f"step {step}: {place or 'the loss'} is the first tensor with NaN or infinite values",
        where=place or "loss",
        mend="lower train.lr, set train.clip, or look at this module",
    )


def place_order(finding: Finding) -> int:
    """Which of several ranks' answers to `non_finite` comes first in the order of computation."""
    where = finding.where or "loss"
    return (
        0 if where.startswith("parameter ") else 2 if where.startswith("gradient of ") else 3 if where == "loss" else 1
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


def first_loss(
    cross_entropy: float, vocab_size: int, *, declared: float = 0.0, next_token: bool = True
) -> Finding | None:
    """Step-0 validation cross entropy (nats per token) against that of a model that knows nothing.

    declared: what the readout's initial values explain by themselves; next_token: whether targets are later tokens;
    where they stand in the input, a lower loss is no knowledge of them.
    """
    expected = math.log(vocab_size)
    distance = cross_entropy - expected
    if -FIRST_LOSS_NATS <= distance <= FIRST_LOSS_NATS + declared or (distance < 0 and not next_token):
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


def visible_answer(batches: Iterable[Batch]) -> Finding | None:
    """Whether an answer is where the model reads it: some of a task's training and validation rows."""
    for batch in batches:
        if batch.answer is not None and bool((batch.answer & (batch.tokens == batch.targets)).any()):
            return Finding(
                rule="visible-answer",
                severity="invalid",
                message="an answer that is to be found stands in the input",
                where="task",
                mend="look at where the task blanks out its answers",
            )
    return None


def start_exploded(
    cross_entropy: float, vocab_size: int, *, parent: float | None, graft: float | None
) -> Finding | None:
    """Whether a run that starts from another's weights, or from a file's, lost what these had learnt.

    cross_entropy: before the first update; parent: of the parent at its checkpoint, None: not known. All of validation,
    nats per token. graft: how far grafts change it by themselves; None: there are none, or it was not measured.
    """
    message = f"before the first update the loss is {cross_entropy:.3f} nats, "
    mend = "look at the file, the tokenizer and the context"
    if parent is not None:
        lost = cross_entropy - parent > FIRST_LOSS_NATS
        message += (
            f"the parent's was {parent:.3f}: the weights that were loaded, or what was grafted onto them, do not "
            "compute what the parent did"
        )
        mend = "look at the graft's start (`winnow graft`), the tokenizer and the context"
    elif graft is not None and graft > FIRST_LOSS_NATS:
        lost = True
        message += f"of which grafts alone have added {graft:.3f}: they undo what the weights had learnt"
        mend = "choose another `init` of the graft: ko_zero changes the function as little as can be"
    else:
        expected = math.log(vocab_size)
        lost = cross_entropy - expected > FIRST_LOSS_NATS
        message += (
            f"knowing nothing costs {expected:.3f} (ln(vocab)): weights that are worse than that hold nothing of this "
            "text, or are not what they were"
        )
    if not lost:
        return None
    return Finding(rule="start-exploded", severity="warning", message=message, where="step 0", mend=mend)


def dead_by_construction(dead: Sequence[str]) -> list[Finding]:
    """Fresh slices of a graft that no update can ever change. dead: their names."""
    if not dead:
        return []
    more = f" and {len(dead) - 1} more slices" if len(dead) > 1 else ""
    message = f"{dead[0]}{more}: started so that no gradient can ever arrive, what was grafted stays what it is"
    mend = "choose another `init` of the graft: ko_zero changes the function as little, and learns"
    return [Finding(rule="dead-by-construction", severity="invalid", message=message, where=dead[0], mend=mend)]


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
            if not pairs or not all(_identical(a, b) and not goes_on(a, b) for a, b in pairs):
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


def goes_on(a: RunRecord, b: RunRecord) -> bool:
    """Whether two runs differ only in where they resume one parent, or in that one of them resumes and the other was
    never interrupted: then they are the same on purpose."""
    starts = [start for start in (a.config.get("init_from"), b.config.get("init_from")) if start]
    if not starts or any(start["mode"] != "resume" for start in starts):
        return False
    one_parent = len({start["identity"] for start in starts}) == 1
    return one_parent and all(OTHER_START.match(key) for key in differing_settings(a.config, b.config))


def _identical(a: RunRecord, b: RunRecord) -> bool:
    hashed = a.weights is not None and a.trace is not None
    return hashed and a.digest != b.digest and (a.weights, a.trace) == (b.weights, b.trace)


def unread_by_arm(arm: RunRecord, control: RunRecord) -> tuple[Finding, ...]:
    """The arm's unread options in which it differs from the control: then the arm is not what was written."""
    unread = [finding for finding in arm.findings if finding.rule == "unread-option"]
    if not unread:
        return ()
    changed = differing_settings(arm.config, control.config)
    return tuple(finding.model_copy(update={"severity": "invalid"}) for finding in unread if finding.where in changed)


STARTS = re.compile(r"(^|\.)(init|n_layers|scale|std)$")
"""Settings that initial values depend on, where both arms have them: what a mixing weight starts at, the depth that
residual projections are scaled by."""
OTHER_START = re.compile(r"init_from(\.|$)")
"""Settings that name a parent."""
OTHER_STARTS = re.compile(rf"{OTHER_START.pattern}|graft(\.|$)")
"""Settings that give a run other initial values than its model's."""
OTHER_PARTS = re.compile(r"(^|\.)attention\.(.+\.)?kind$")
"""Settings that choose a mechanism, or a part of one such as where its votes come from."""
OWN_TENSOR = re.compile(r"(^|\.)attention\.(?!(qkv|out)\.)")
"""Names of what a mechanism has beside the projections that all have: another part means something else by them."""
SPREAD_RATIO = 0.05
"""Natural logarithm of the ratio of two standard deviations that are still called alike."""
SPREAD_DEVIATIONS = 7.0
"""Standard deviations up to which a difference of spreads is chance: one false alarm in 10^11 pairs of tensors."""


def initial_spread(arm: RunRecord, control: RunRecord) -> tuple[Finding, ...]:
    """Tensors that two arms share by name and start differently, although no setting of their starts differs.

    They may have been drawn apart (a tensor of other heads): what chance explains is no difference.
    """
    if not arm.initial.keys() & control.initial.keys():
        return ()
    changed = differing_settings(arm.config, control.config)
    if any(OTHER_STARTS.match(key) or (STARTS.search(key) and "-" not in both) for key, both in changed.items()):
        return ()
    apart: dict[str, float] = {}
    other_parts = any(OTHER_PARTS.search(key) for key in changed)
    for name in arm.initial.keys() & control.initial.keys():
        one, other = arm.initial[name], control.initial[name]
        if other_parts and OWN_TENSOR.search(name):
            continue
        if not one.n or not other.n or one.std == other.std:
            continue
        if not one.std or not other.std:
            apart[name] = math.inf
            continue
        ratio = abs(math.log(one.std / other.std))
        if ratio > SPREAD_RATIO and not _by_chance(one, other):
            apart[name] = ratio
    if not apart:
        return ()
    worst = max(sorted(apart), key=apart.__getitem__)
    more = f", and {len(apart) - 1} more" if len(apart) > 1 else ""
    return (
        Finding(
            rule="initial-spread",
            severity="invalid",
            message=f"{worst} starts with standard deviation {arm.initial[worst].std:.3g} in {arm.label.arm} and "
            f"{control.initial[worst].std:.3g} in {control.label.arm}{more}, though no setting says so",
            where=f"{arm.label.arm}, {control.label.arm}",
            mend="declare both alike (winnow.parameters), or make the start an option of the arm",
        ),
    )


def _by_chance(one: Spread, other: Spread) -> bool:
    """Whether normal numbers of one standard deviation may well spread so: the cube root of their F is nearly normal
    (Paulson 1942), and for few numbers it falls short of any bound."""
    more, less = (one, other) if one.std > other.std else (other, one)
    root = (more.std / less.std) ** (2 / 3)
    a, b = 2 / (9 * more.n), 2 / (9 * less.n)
    return (1 - b) * root - (1 - a) <= SPREAD_DEVIATIONS * (b * root**2 + a) ** 0.5


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

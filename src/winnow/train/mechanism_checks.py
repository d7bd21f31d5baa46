"""Whether the mechanisms that run are what they are said to be, on a few tokens of the run's own validation text.

    not-its-definition   what `Attention.mix` (masks and penalty included) makes of the tokens, in fp32 on the run's
                         device, against `Attention.definition`, plain loops in fp64
    negative-mask        a mask below 0 where the definition has none: forgetting would be rewarded
    future-touched       a mask that is not 0 at the query's own place or later; a model whose outputs before token i
                         move when token i does
    unselective          masks that are 0 everywhere; invalid where their definition is not

What rounding explains is no difference. Where a result differs, the definition is looped through again on numbers a
few roundings away, which tells how much of the difference that is: scores of thousands of nats magnify it.

Each layer is looked at with the run's weights, and one of each kind of layer also with other weights, where start
values hide a part: a bias of 0 cannot leak, and scores near 0 look alike whatever they are multiplied by. Everything
runs on copies, without gradients; no number of the run depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from winnow.attention import Attention, Definition, MixerState
from winnow.config import stream
from winnow.models.base import Model
from winnow.parameters import ParameterSpec, parameter_table
from winnow.records.run import Finding
from winnow.tasks.base import Validation
from winnow.train.evaluate import evaluating
from winnow.train.layer_checks import layer_findings

PAIRS = 3000
"""(query, key, head) triples that the loops go through in all layers together: some 0.1 s."""
FEWEST, MOST = 8, 16
"""Tokens that are looked at: fewer in larger models."""
LEAST_F = 1e-6
"""Part of the largest possible product of a query and a key (1 nat at least) up to which a mask is 0 by rounding."""
NUDGE = 2.0**-21
"""Part of itself by which a number is moved that rounding in fp32 may have moved: some 8 roundings."""
NUDGED = 4
"""Differences that nudging makes, times this, are rounding's."""
FUTURE = 1e-4
"""Part of an output's size by which it may differ, in fp32, when a later token is another."""


@dataclass(frozen=True)
class Place:
    """A mechanism in the model, and what reached it."""

    path: str
    mixer: Attention
    x: Float[Tensor, "1 T C"]
    state: MixerState


@torch.no_grad()
def mechanism_findings(model: Model, validation: Validation, device: torch.device, *, start: bool) -> list[Finding]:
    """What is wrong with the model's mechanisms. start: whether nothing has been learnt yet: then other weights are
    tried too, and masks of 0 may still wake up."""
    tokens = probe(model, validation).to(device)
    with evaluating(model):
        places = reached(model, tokens)
        found = [*_against_definitions(places, start=start), *layer_findings(model, tokens)]
        if model.causal:
            found += _future(model, tokens)
        found += _unselective(model, places, validation, device, start=start)
    return found


def probe(model: Model, validation: Validation) -> Int[Tensor, "1 T"]:
    """The first tokens of the validation text, few enough for plain loops."""
    heads = sum(mixer.shape.n_heads for mixer in _mixers(model).values())
    n = MOST
    while n > FEWEST and heads * n * (n + 1) // 2 > PAIRS:
        n -= 1
    batch = next(validation.batches(1))
    return batch.tokens[:, : min(n, validation.n_tokens)]


def _mixers(model: Model) -> dict[str, Attention]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Attention)}


def reached(model: Model, tokens: Int[Tensor, "B T"]) -> list[Place]:
    """Every mechanism of the model, and what reaches it of these tokens."""
    found: list[Place] = []

    def keep(path: str) -> Any:
        def look(mixer: Attention, inputs: tuple[Any, ...]) -> None:
            found.append(Place(path, mixer, *inputs))

        return look

    handles = [mixer.register_forward_pre_hook(keep(path)) for path, mixer in _mixers(model).items()]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return found


# The mechanisms against their definitions


@dataclass(frozen=True)
class Defect:
    """A difference from the definition."""

    rule: str
    """As in findings."""
    what: str
    size: float
    """How far it is off; only compared within a rule."""


def _against_definitions(places: list[Place], *, start: bool) -> Iterator[Finding]:
    defects: list[tuple[Defect, Place, str]] = []
    untold: list[str] = []
    kinds: set[Any] = set()
    for place in places:
        kind = (type(place.mixer), *((name, p.shape) for name, p in place.mixer.named_parameters()))
        trials = {"": place.mixer}
        if start and kind not in kinds:
            trials[" with other weights than the run's"] = perturbed(place)
        kinds.add(kind)
        for when, mixer in trials.items():
            try:
                defects += [(defect, place, when) for defect in defects_of(_copy(mixer), place.x, place.state)]
            except NotImplementedError:
                untold.append(place.path)
                break
    # What says more comes first: it is the reason that a verdict gives.
    for rule in sorted(
        {defect.rule for defect, _, _ in defects}, key=lambda rule: (rule == "not-its-definition", rule)
    ):
        worst, place, when = max((item for item in defects if item[0].rule == rule), key=lambda item: item[0].size)
        several = len({where.path for defect, where, _ in defects if defect.rule == rule})
        others = f" (so in {several} layers)" if several > 1 else ""
        yield Finding(
            rule=rule,
            severity="invalid",
            message=f"{place.path} ({type(place.mixer).__name__}): {worst.what}{when}{others}",
            where=place.path,
            mend="the mechanism is not what its config says: compare `mix` with `definition`, or its backend with "
            "`reference`",
        )
    if untold:
        yield Finding(
            rule="no-definition",
            severity="notice",
            message=f"{untold[0]} has no oracle: nothing says what it should compute",
            where=untold[0],
            mend="write `oracle`: docs/mechanisms.md",
        )


def one_row(tensor: Tensor) -> Tensor:
    """The only row, as the plain loops take it."""
    return tensor[0].to("cpu", torch.float64)


def _copy(mixer: Attention) -> Attention:
    return copy.deepcopy(mixer).requires_grad_(False)


def defects_of(mixer: Attention, x: Float[Tensor, "1 T C"], state: MixerState) -> Iterator[Defect]:
    """What a mechanism makes of one row otherwise than its definition. Call it without gradients; it may leave `mixer`
    in training mode."""
    q, k, v = mixer.project(x, state)
    exact = copy.deepcopy(mixer).to("cpu", torch.float64)
    exact_q, exact_k, exact_v = one_row(q), one_row(k), one_row(v)
    previous = {name: one_row(t) for name, t in state.row(0).previous.items()}

    def defined(nudge: float) -> Definition:
        moved = {name: _nudged(t, nudge) for name, t in previous.items()}
        return exact.definition(_nudged(exact_q, nudge), _nudged(exact_k, nudge), _nudged(exact_v, nudge), moved)

    truth = _Truth(defined(0.0), lambda: defined(NUDGE), _zero(exact_q, exact_k))
    if not truth.told.heads.isfinite().all():
        return  # other weights than any run would have
    yield from truth.off("the output", mixer.mix(q, k, v, state)[0][0], lambda told: told.heads)
    masks = mixer.masks(q, k, state)
    if masks is not None and truth.told.masks is not None:
        yield from _mask_defects(masks[0].to("cpu", torch.float64), truth)
    if truth.told.penalty is not None:
        mixer.train()
        heads, aux = mixer.mix(q, k, v, state)
        yield from truth.off("the output while training", heads[0], lambda told: told.heads)
        if "penalty" not in aux:
            yield Defect("not-its-definition", "there is no penalty while training", 1.0)
        else:
            yield from truth.off("the penalty", aux["penalty"], lambda told: told.penalty)


def _zero(q: Float[Tensor, "T H D"], k: Float[Tensor, "T K D"]) -> float:
    """Nats up to which a mask of such queries and keys is 0."""
    return LEAST_F * max(1.0, float(q.norm(dim=-1).max() * k.norm(dim=-1).max()))


def _nudged(tensor: Tensor, by: float) -> Tensor:
    generator = torch.Generator().manual_seed(stream(0, "nudge", *tensor.shape))
    return tensor * (1 + by * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)) if by else tensor


@dataclass
class _Truth:
    """What a mechanism should come to, and how much of a difference rounding explains."""

    told: Definition
    nudge: Callable[[], Definition]
    """Of numbers a few roundings away; asked for only where something differs."""
    zero: float
    """Nats up to which a mask is 0."""
    nudged: Definition | None = None

    def off(
        self, name: str, found: Tensor, part: Callable[[Definition], Tensor | None], least: float = 0.0
    ) -> Iterator[Defect]:
        """What is wrong with a part of the result. least: a difference of which nothing is said."""
        truth, found = part(self.told), found.to("cpu", torch.float64)
        assert truth is not None
        if not found.isfinite().all():
            yield Defect("not-its-definition", f"{name} is NaN or infinite, and its definition is not", float("inf"))
            return
        apart, size = float((found - truth).abs().max()), float(truth.abs().max())
        if apart <= self.told.rounding * size + least:
            return
        self.nudged = self.nudged or self.nudge()
        near = part(self.nudged)
        assert near is not None
        if apart <= NUDGED * float((near - truth).abs().max()) + least:
            return
        share = apart / size if size else float("inf")
        yield Defect("not-its-definition", f"{name} is off its definition by {share:.2g} of its size", share)


def _mask_defects(masks: Float[Tensor, "M T T"], truth: _Truth) -> Iterator[Defect]:
    T = masks.shape[-1]
    past = torch.ones(T, T).tril(-1).bool()
    right = _past(truth.told)
    assert right is not None
    if not masks.isfinite().all():
        yield Defect("not-its-definition", "the mask is NaN or infinite, and its definition is not", float("inf"))
        return
    later = masks.masked_fill(past, 0).abs()
    touched = float(later.max())
    if touched > truth.zero:
        query, key = divmod(int(later.amax(0).argmax()), T)
        what = f"the mask is {touched:.2g} nats at query {query} and key {key}, which no earlier query has seen"
        yield Defect("future-touched", what, touched)
    seen = masks.masked_fill(~past, 0)
    lowest = float(seen.min())
    if lowest < -truth.zero - truth.told.rounding * float(right.abs().max()) and float(right.min()) >= -truth.zero:
        what = f"the mask falls to {lowest:.2g} nats, where it is 0 or more by definition: it rewards what is voted out"
        yield Defect("negative-mask", what, -lowest)
    yield from truth.off("the mask", seen, _past, truth.zero)


def _past(told: Definition) -> Tensor | None:
    """The masks at keys before the query's own place; None: there are none."""
    return None if told.masks is None else told.masks.tril(-1)


@torch.no_grad()
def perturbed(place: Place) -> Attention:
    """A copy whose scores are some nats large and whose constants are none. A function of its path alone."""
    mixer = copy.deepcopy(place.mixer)
    table = parameter_table(mixer)
    for name, parameter in mixer.named_parameters():
        generator = torch.Generator().manual_seed(stream(0, "probe", place.path, name))
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.copy_(_moved(parameter, drawn, table[name]))
    return mixer


def _moved(parameter: Tensor, drawn: Tensor, spec: ParameterSpec) -> Tensor:
    if spec.role in ("matrix", "residual"):
        return drawn * spec.fan_in**-0.5
    if spec.role == "scale":
        return parameter * (1 + 0.1 * drawn)
    if spec.init == "zeros":  # small, of either sign, the first above 0: one that is lost behind a gate shows nothing
        signs = 1.0 - 2.0 * (torch.arange(parameter.numel()) % 2).view(parameter.shape).to(parameter)
        return parameter + 0.3 * drawn.abs() * signs
    return parameter + 0.5 * drawn


# The whole model


def _future(model: Model, tokens: Int[Tensor, "1 T"]) -> Iterator[Finding]:
    T, n_vocabulary = tokens.shape[1], len(model.readout_weight)
    changed = sorted({1, T // 2, T - 1} & set(range(1, T)))
    if not changed:
        return
    rows = tokens.repeat(1 + len(changed), 1)
    for row, i in enumerate(changed, 1):
        rows[row, i] = (rows[row, i] + 1 + n_vocabulary // 2) % n_vocabulary
    # Row by row of batches alike in shape: another place in a batch may round otherwise.
    before, after = (model(batch).hidden.float() for batch in (tokens.repeat(len(rows), 1), rows))
    for row, i in enumerate(changed, 1):
        apart = float((after[row, :i] - before[row, :i]).abs().max())
        if apart > FUTURE * float(before[row].abs().max()):
            yield Finding(
                rule="future-touched",
                severity="invalid",
                message=f"another token {i} changes what the model says of the tokens before it, by {apart:.2g}",
                where="model",
                mend="look for what reads later positions: targets reach the inputs",
            )
            return


# Masks that select nothing


def _unselective(
    model: Model, places: list[Place], validation: Validation, device: torch.device, *, start: bool
) -> Iterator[Finding]:
    largest = {place.path: value for place in places if (value := _largest_mask(place)) is not None}
    if not largest or any(largest.values()):
        return  # a layer may leave all selecting to another
    if not start:  # before anybody is accused: all of a row
        rows = reached(model, next(validation.batches(1)).tokens.to(device))
        if any(_largest_mask(place) for place in rows):
            return
    places = [place for place in places if place.path in largest]
    lost = not start and any(_selects(_copy(place.mixer), place) for place in places)
    nothing = not lost and not _selects(_copy(perturbed(places[0])), places[0])
    if nothing:
        why = ", as its rule has it"
    elif start:
        why = ", before the first update"
    else:
        why = ", and should not be by its definition" if lost else ", as these weights have it: no vote got through"
    yield Finding(
        rule="unselective",
        severity="invalid" if lost else "notice" if start or nothing else "warning",
        message="this arm is unselective: every mask is 0 on the validation text" + why,
        where="selection",
        mend="look at what selects: scores of 0, a gate that never opens, a protection that absorbs every vote",
    )


def _largest_mask(place: Place) -> float | None:
    mixer = place.mixer
    q, k, _ = mixer.project(place.x, place.state)
    masks = mixer.masks(q, k, place.state)
    # Only what a query feels: NaN is no selection.
    return None if masks is None else float(masks.tril(-1).abs().nan_to_num(0, posinf=0).max())


def _selects(mixer: Attention, place: Place) -> bool:
    """Whether a vote gets through by definition, with the weights of `mixer`."""
    q, k, v = (one_row(t) for t in mixer.project(place.x, place.state))
    previous = {name: one_row(t) for name, t in place.state.row(0).previous.items()}
    masks = _past(mixer.to("cpu", torch.float64).definition(q, k, v, previous))
    return masks is not None and float(masks.abs().max()) > _zero(q, k)

"""What became of each parameter, slice by slice (a head's queries, say): gradients, values, how far they moved.

| rule | fires when | severity |
|---|---|---|
| dead-parameter | a slice never moved or never had a gradient; a warning where no vote gets through | invalid |
| frozen-parameter | a learning-rate multiplier is 0; invalid where the parameter moved all the same | notice |
| slice-barely-moves | a slice moved far less, relative to its start, than others of its role | notice |
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from winnow.records.run import Fact, Finding

if TYPE_CHECKING:
    from torch import Tensor, nn

    from winnow.parameters import ParameterSpec

BARELY = 0.01
"""Part of the usual relative change of a role's slices below which one barely moves."""
HIDDEN = 2.0**-20
"""Part of a value below which an update may be lost in fp32 time and again."""


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class GradientWatch:
    """Which parameters, slice by slice, have had a gradient. Costs nothing once all have."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], table: Mapping[str, ParameterSpec]) -> None:
        self._parameters, self._table = parameters, table
        self._unseen = {name: {part.name for part in spec.slices} or {""} for name, spec in table.items()}

    def look(self, whole: Callable[[Tensor], Tensor] = _as_it_is) -> None:
        """Note what has a gradient now; call it between the backward pass and the update.

        whole: puts together a gradient of which ranks hold parts; all of them look at the same ones.
        """
        for name in [name for name, parts in self._unseen.items() if parts]:
            gradient = self._parameters[name].grad
            if gradient is None:
                continue
            for part, view in _parts(self._table[name], whole(gradient)):
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
    *,
    rate: float = math.inf,
    asleep: Collection[tuple[str, str]] = (),
    absorbed: Collection[tuple[str, str]] = (),
) -> list[Finding]:
    """Parameters that never moved (their values are bit for bit the initial ones) or never had a gradient.

    One whose learning-rate multiplier is 0 should not move: that is stated, and it is a defect where it did.
    rate: the highest learning rate so far; what it cannot move in fp32 may stand still. asleep: (parameter, slice) of
    which nothing is said, since the run starts so that no gradient could reach them yet. absorbed: those that no
    gradient could reach with the run's weights, by definition: a warning, since the run is what was written.
    """
    found: list[Finding] = []
    frozen: dict[bool, list[str]] = {False: [], True: []}
    for name, spec in table.items():
        starts = dict(_parts(spec, initial[name]))
        without = {part for part in unseen.get(name, ()) if (name, part) not in asleep}
        still = {part for part, view in _parts(spec, final[name]) if view.equal(starts[part])}
        if spec.lr_multiplier == 0:
            frozen[still != set(starts)].append(name)
            still = set[str]()
        lowest = rate * spec.lr_multiplier / HIDDEN
        still = {part for part in still if (name, part) not in asleep and float(starts[part].abs().min()) < lowest}
        lost = {part for part in still | without if (name, part) in absorbed}
        for dead, what in ((still - lost, "never moved"), (without - still - lost, "never had a gradient")):
            if dead:
                where = name if dead == set(starts) else f"{name}[{', '.join(sorted(dead))}]"
                also = " and never had a gradient" if dead & still & without else ""
                found.append(_dead(name, f"{where} {what}{also}"))
        if lost:
            where = name if lost == set(starts) else f"{name}[{', '.join(sorted(lost))}]"
            found.append(_absorbed(name, f"{where} never had a gradient"))
    return [*found, *_frozen(frozen[False], moved=False), *_frozen(frozen[True], moved=True)]


def _dead(name: str, message: str) -> Finding:
    mend = "connect it, start it from other values, or take it out of the model"
    return Finding(rule="dead-parameter", severity="invalid", message=message, where=name, mend=mend)


def _absorbed(name: str, message: str) -> Finding:
    return Finding(
        rule="dead-parameter",
        severity="warning",
        message=f"{message}: with these weights no vote gets through, by its definition too",
        where=name,
        mend="weaken what protects or closes the gate, or start the scores from larger values",
    )


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


def relative_changes(
    final: Mapping[str, Tensor], initial: Mapping[str, Tensor], table: Mapping[str, ParameterSpec]
) -> dict[tuple[str, str], float]:
    """|final - initial| / |initial| by (parameter, slice); what started at 0 or is frozen has none."""
    found: dict[tuple[str, str], float] = {}
    for name, spec in table.items():
        starts = dict(_parts(spec, initial[name]))
        for part, view in _parts(spec, final[name]):
            size = float(starts[part].double().norm())
            if size and spec.lr_multiplier:
                found[name, part] = float((view.double() - starts[part].double()).norm()) / size
    return found


def barely_moved(
    changes: Mapping[tuple[str, str], float],
    table: Mapping[str, ParameterSpec],
    unseen: Mapping[str, Iterable[str]],
) -> list[Finding]:
    """Slices that moved, but a hundred times less than is usual for their role, learning rates taken into account.

    unseen: those without any gradient, of which `dead_parameters` says more.
    """
    by_role: dict[str, dict[tuple[str, str], float]] = {}
    for place, change in changes.items():
        spec = table[place[0]]
        by_role.setdefault(f"{spec.role} {spec.std}", {})[place] = change / spec.lr_multiplier
    found: list[Finding] = []
    for of_role in by_role.values():
        usual = statistics.median(of_role.values())
        for (name, part), change in of_role.items():
            if 0 < change < BARELY * usual and part not in set(unseen.get(name, ())):
                where = f"{name}[{part}]" if part else name
                message = (
                    f"{where} moved by {change:.2g} of its size, {usual:.2g} is usual for such parameters of this model"
                )
                mend = "look at whether its gradient arrives"
                found.append(
                    Finding(rule="slice-barely-moves", severity="notice", message=message, where=where, mend=mend)
                )
    return found


def change_facts(changes: Mapping[tuple[str, str], float]) -> dict[str, Fact]:
    """The largest and smallest relative change and whose they are."""
    found: dict[str, Fact] = {}
    if changes:
        for which, choose in (("largest", max), ("smallest", min)):
            name, part = choose(changes, key=changes.__getitem__)
            found[f"{which}_change"] = float(f"{changes[name, part]:.4g}")
            found[f"{which}_change_of"] = f"{name}[{part}]" if part else name
    return found

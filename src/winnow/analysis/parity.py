"""Everything that `winnow prune` finds of a run; its smallest memory at another run's loss as a run of its own.

A study with `runs = "recorded"` reads what `record_parity` writes, so that claims are decided on it like on any other
number:

    memory/POLICY/WAY        of the cache over a full one's; WAY is uniform or by-layer
    log2-memory/POLICY/WAY   its logarithm, in which a factor is a difference

Where even the whole cache does not reach the loss, memory is 1: the run whose loss it is can be had for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.analysis.pruning import Kept, Pruner
from winnow.analysis.trained import Trained
from winnow.attention import PolicyConfig
from winnow.errors import InputError
from winnow.records.external import record
from winnow.records.store import RunStore

FULL = 1.0
"""Memory of a full cache of standard attention."""


@dataclass(frozen=True)
class Parity:
    """What keeps up with the target under one policy; None: nothing does."""

    uniform: Kept | None
    by_layer: Kept | None
    searched: bool
    """Whether budgets by layer were looked for."""

    def ways(self) -> dict[str, Kept | None]:
        """What was looked for, by name."""
        return {"uniform": self.uniform} | ({"by-layer": self.by_layer} if self.searched else {})


def first_step(context: int) -> int:
    """Keys by which a layer is lowered first, unless another number is asked for."""
    return max(1, context // 8)


def find_parity(
    pruner: Pruner,
    policies: Sequence[PolicyConfig],
    target: float,
    step: int,
    uniform: bool,
    said: Callable[[Kept], None],
) -> dict[str, Parity]:
    """By policy. Budgets by layer are searched for `votes` where it is among them, else for every one that evicts.

    target: nats per token; step: keys by which a layer is lowered first; uniform: search no budgets by layer; said:
    hears of every lowering.
    """
    by_votes = [policy for policy in policies if policy.kind == "votes"]
    searched = [] if uniform else by_votes or [policy for policy in policies if policy.kind != "anew"]
    return {
        policy.kind: Parity(
            pruner.uniform(policy, target),
            pruner.by_layer(policy, target, step, said) if policy in searched else None,
            policy in searched,
        )
        for policy in policies
    }


@dataclass(frozen=True)
class Measured:
    """One run."""

    run: Trained
    pruner: Pruner
    curves: Mapping[str, Mapping[float, Kept]]
    """By policy and kept part of the context."""
    target: float | None
    """Loss to keep up with, nats per token."""
    step: int
    """Keys by which a layer was lowered first."""
    parity: Mapping[str, Parity]
    """By policy; empty without a target."""

    @property
    def arm(self) -> str:
        """study/arm"""
        return self.run.name.rpartition("/")[0]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run": self.run.record.digest,
            "name": self.run.name,
            "seed": self.run.record.seed,
            "context": self.pruner.context,
            "tokens": self.pruner.validation.n_tokens,
            "unpruned": self.pruner.unpruned,
            "target": self.target,
            "curve": [
                {"keep": keep, **_plain(kept)} for by_keep in self.curves.values() for keep, kept in by_keep.items()
            ],
            "parity": {
                name: {"uniform": _plain(found.uniform), "by_layer": _plain(found.by_layer)}
                for name, found in self.parity.items()
            },
        }


def _plain(kept: Kept | None) -> dict[str, Any]:
    if kept is None:
        return {}
    return {"policy": kept.policy, "budgets": dict(kept.budgets), "loss": kept.loss, "memory": kept.memory}


def check_unrecorded(records: RunStore, study: str, runs: Sequence[Trained], key: str) -> None:
    """What could not be recorded after the measuring is refused before it: raises InputError, naming the option `key`,
    where a run is recorded already or two have the same arm and seed."""
    known = {
        (found.label.arm, found.seed): found.digest
        for found in records.records().values()
        if found.label.study == study and found.status == "finished"
    }
    asked = [(run.record.label.arm, run.record.seed) for run in runs]
    for arm, seed in asked:
        if (arm, seed) in known:
            mend = f"leave that run out, give another study, or remove it: winnow rm {known[arm, seed]}"
            raise InputError(f"{study}/{arm}/{seed} is recorded already", key=key, mend=mend)
    if len(set(asked)) < len(asked):
        raise InputError("two of the runs have the same arm and seed", key=key, mend="record them one by one")


def record_parity(records: RunStore, study: str, found: Measured, target: str) -> None:
    """Write the run's smallest memory under every policy that frees any, as arm and seed of `study`.

    target: the run whose loss was to be reached, as it was named.
    """
    run = found.run.record
    config = {
        "run": found.arm,
        "digest": run.digest,
        "target": target,
        "target_loss": found.target,
        "tokens": found.pruner.validation.n_tokens,
        "step": found.step,
    }
    with record(config, run.seed, study=study, arm=run.label.arm, store=records.root) as written:
        for policy, parity in found.parity.items():
            if policy == "anew":
                continue
            for way, kept in parity.ways().items():
                memory = FULL if kept is None else kept.memory
                name = f"memory/{policy}/{way}"
                written.log(step=0, **{name: memory, f"log2-{name}": math.log2(memory)})

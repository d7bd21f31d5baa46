"""Runs that other runs start from: which plan knows them, and whether they are there. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from winnow.config import digest
from winnow.errors import InputError
from winnow.records.checkpoints import COMPLETE, step_folder, step_folders, step_of
from winnow.records.store import RunStore
from winnow.study.events import RunKey
from winnow.study.plan import Plan, PlannedArm, PlannedParent, read_plan, stored_plans
from winnow.study.spec import Study


@dataclass
class Parents:
    """Plans of the studies that a run may start from: those that were resolved just now, then those of the store."""

    store: RunStore | None = None
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings given on the command line: a parent that was made with them too comes first."""
    plans: dict[str, Plan] = field(default_factory=dict[str, Plan])
    """By study id; whoever resolves several studies adds each."""

    _seeds: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def add(self, study: Study, plan: Plan) -> None:
        """Let runs start from the runs of this study, which was resolved just now."""
        self.plans[study.id] = plan
        self._seeds[study.id] = study.seeds

    def seeds(self, study: str, arm: PlannedArm) -> tuple[int, ...]:
        """Seeds of a study, an arm of which is `arm`: those written now, or those of the store's plan."""
        return self._seeds.get(study) or tuple(map(int, arm.runs))

    def plan(self, study: str) -> Plan | None:
        """The plan of a study, or None. Raises InputError if it is damaged."""
        if study in self.plans or self.store is None:
            return self.plans.get(study)
        changed = read_plan(self.store, f"{study}.set-{digest(dict(self.changes))[:8]}") if self.changes else None
        return changed or read_plan(self.store, study)

    def names(self) -> tuple[str, ...]:
        """Studies that are known."""
        return (*self.plans, *(stored_plans(self.store) if self.store is not None else ()))

    def changed(self, parent: PlannedParent) -> bool:
        """Whether the arm means something else now than when its child was resolved."""
        plan = self.plan(parent.study)
        arm = None if plan is None else plan.arms.get(parent.arm)
        if plan is None or arm is None:
            return False  # its plan has gone; the runs may still be there
        now = (arm.identity, arm.data, plan.sources)
        return now != (parent.identity, parent.data, parent.sources)


def needed_by(studies: Iterable[tuple[Plan, tuple[int, ...]]], parent: str) -> frozenset[tuple[str, int]]:
    """(arm, seed) of every run of study `parent` from which runs of these studies start.

    studies: the plan and the seeds of each.
    """
    return frozenset(
        (arm.parent.arm, seed if arm.parent.seed is None else arm.parent.seed)
        for plan, seeds in studies
        for arm in plan.arms.values()
        if arm.parent is not None and arm.parent.study == parent
        for seed in seeds
    )


def needed_in_store(store: RunStore, parent: str) -> frozenset[tuple[str, int]]:
    """The same for every study whose plan the store holds."""
    plans = [plan for name in stored_plans(store) if (plan := read_plan(store, name)) is not None]
    return frozenset().union(
        *(
            needed_by([(plan, tuple(int(seed) for seed in arm.parent.runs))], parent)
            for plan in plans
            for arm in plan.arms.values()
            if arm.parent is not None
        )
    )


def missing_parents(plan: Plan, keys: Iterable[RunKey], store: RunStore) -> InputError | None:
    """What to do before these runs can start: the first parent that is not there, and how to make all like it."""
    unmade: dict[str, tuple[PlannedParent, list[int]]] = {}
    for key in keys:
        parent = plan.arms[key.arm].parent
        if parent is None:
            continue
        seed = key.seed if parent.seed is None else parent.seed
        record = store.record(parent.run(key.seed))
        if record is None or record.status not in ("finished", "diverged"):
            seeds = unmade.setdefault(parent.study, (parent, []))[1]
            if seed not in seeds:
                seeds.append(seed)
            continue
        name = f"{parent.study}/{parent.arm} seed {seed}"
        if parent.step > record.steps_done:
            return InputError(
                f"{key} starts from step {parent.step} of {name}, which diverged at step {record.steps_done}",
                key=f"arms.{key.arm}.init_from",
                mend="start from an earlier step that train.keep kept, or leave this seed out",
            )
        folder = store.path(record.digest) / "checkpoints"
        if not (folder / step_folder(parent.step) / COMPLETE).is_file():
            have = sorted(step for path in step_folders(folder) if (step := step_of(path.name)) is not None)
            return InputError(
                f"{name} has no checkpoint at step {parent.step} "
                f"({'it has ' + ', '.join(map(str, have)) if have else 'it has none'})",
                key=f"arms.{key.arm}.init_from",
                mend=f"set train.keep = [{parent.step}] in study {parent.study}, remove the run (winnow rm "
                f"{record.digest}) and run that study again",
            )
    for study, (parent, seeds) in unmade.items():
        return _unmade(study, parent, sorted(seeds), store)
    return None


def _unmade(study: str, parent: PlannedParent, seeds: list[int], store: RunStore) -> InputError:
    plan = read_plan(store, study)
    named = f"{study}/{parent.arm} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    known = set() if plan is None or parent.arm not in plan.arms else set(map(int, plan.arms[parent.arm].runs))
    foreign = [seed for seed in seeds if seed not in known]
    if foreign:
        mend = add_seed(study, foreign[0])
    else:
        file = "FILE" if plan is None or plan.file is None else os.path.relpath(plan.file)
        which = f"{seeds[0]}..{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        mend = f"winnow run {file} --only {study} --seeds {which}"
    return InputError(f"runs start from runs that are not finished: {named}", key="init_from", mend=mend)


def add_seed(study: str, seed: int) -> str:
    """The mend where a run starts from a seed that the parents' study does not have."""
    return f"add seed {seed} to the seeds of {study} and run it, or leave it out here"

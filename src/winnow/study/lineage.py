"""What `init_from` in a study means: the parent's model, the checkpoint's step, and what the parent is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from winnow.config import input_errors, parent_digest
from winnow.errors import InputError, nearest
from winnow.models.base import ModelConfig
from winnow.study.parents import Parents, add_seed
from winnow.study.plan import PlannedArm, PlannedParent, differing
from winnow.study.spec import Study
from winnow.train.config import InitFromConfig, RunConfig, parent_name
from winnow.train.parents import file_parent
from winnow.train.start import cannot_go_on, other_place, tokens_seen


@dataclass(frozen=True)
class Before:
    """The run that an arm starts from, where it is one."""

    name: str
    config: RunConfig
    data: str | None
    """Digest of its data."""
    seed: int | None
    """None: each run's own."""


@dataclass(frozen=True)
class Lineage:
    """An arm's table with its starting point filled in."""

    table: dict[str, Any]
    parent: PlannedParent | None = None
    """None: fresh initial values, or a file."""
    tokens_before: int | None = None
    """Training tokens that the starting weights have seen; None: no parent, or not known."""
    before: Before | None = None
    """None: no parent, or weights alone."""
    said: tuple[str, ...] = ()
    """What was converted, assumed or passed over when a file was read."""

    def check(self, config: RunConfig, data: str, seeds: Iterable[int]) -> None:
        """Refuse now what would be refused when the run starts: to resume where the parent's data cannot go on.

        config: the arm's; data: digest of its data. Raises InputError.
        """
        before = self.before
        if before is None or config.init_from is None or config.init_from.mode != "resume":
            return
        other = other_place(before.config, before.data, config, data)
        if other is None and before.seed is not None and any(seed != before.seed for seed in seeds):
            other = "seed"
        if other is not None:
            raise cannot_go_on(before.name, other)


def located(study: Study, table: Mapping[str, Any], parents: Parents) -> Lineage:
    """`table` (base and arm) with the parent's model and identity in it.

    Raises InputError, its key from the arm on, where the parent is not known or does not fit.
    """
    written = table.get("init_from")
    if written is None:
        return Lineage({key: value for key, value in table.items() if key != "init_from"})
    try:
        start = InitFromConfig.model_validate(written)
    except ValidationError as error:
        raise input_errors(error)[0].prefixed("init_from") from None
    if start.identity is not None:
        raise InputError("is found out, not given", key="init_from.identity", mend="leave it out")
    if start.path is not None:
        return _file(study, table, start, start.path)
    return _run(study, table, start, start.run or "", parents)


def _run(study: Study, table: Mapping[str, Any], start: InitFromConfig, run: str, parents: Parents) -> Lineage:
    name, arm, seed = parent_name(run)
    plan = None if name == study.id else parents.plan(name)
    if plan is None:
        others = [known for known in parents.names() if known != study.id]
        message = "a run cannot start from its own study" if name == study.id else f"no study {name!r} is known"
        mend = f"{nearest(name, others)} (studies above in this file, and those of the store)"
        raise InputError(message, key="init_from.run", mend=mend)
    if arm not in plan.arms:
        raise InputError(f"study {name} has no arm {arm!r}", key="init_from.run", mend=nearest(arm, plan.arms))
    planned = plan.arms[arm]
    try:
        config = RunConfig.model_validate(planned.config)
    except ValidationError as error:
        message = f"the settings of {run} mean nothing here: {input_errors(error)[0]}"
        raise InputError(message, key="init_from.run", mend="`use` the files that it uses") from None
    step = _step(start, config, name, run)
    filled = {
        **start.dump(),
        "step": step,
        "identity": parent_digest(planned.identity, planned.data, plan.sources, seed),
    }
    parent = PlannedParent(
        study=name,
        arm=arm,
        seed=seed,
        step=step,
        identity=planned.identity,
        data=planned.data,
        sources=plan.sources,
    )
    _check_seeds(study, planned, parent, parents)
    tokens = _tokens_before(planned) + (step - config.first_step) * config.train.tokens_per_update
    made = {**table, "model": _model(table, config.grown, run), "init_from": filled}
    return Lineage(made, parent, tokens, Before(run, config, planned.data, seed))


def _check_seeds(study: Study, planned: PlannedArm, parent: PlannedParent, parents: Parents) -> None:
    """Refuse a run whose parent has a seed that its study neither has nor once ran."""
    known = parents.seeds(parent.study, planned)
    for seed in study.seeds[: study.looks[-1]] if parent.seed is None else (parent.seed,):
        if not known or seed in known:
            continue
        record = None if parents.store is None else parents.store.record(parent.run(seed))
        if record is None or record.status not in ("finished", "diverged"):
            message = f"study {parent.study} has no seed {seed}"
            raise InputError(message, key="init_from.run", mend=add_seed(parent.study, seed))


def _step(start: InitFromConfig, config: RunConfig, study: str, run: str) -> int:
    train = config.train
    step = train.steps if start.step is None else start.step
    if step > train.steps:
        message = f"{run} ends at step {train.steps}"
        raise InputError(message, key="init_from.step", mend=f"use a step up to {train.steps}, or leave it out")
    if step != train.steps and step not in train.keep:
        kept = ", ".join(map(str, sorted({*train.keep, train.steps})))
        message = f"{run} does not keep its checkpoint of step {step} (it keeps {kept})"
        raise InputError(message, key="init_from.step", mend=f"set train.keep = [{step}] in study {study}")
    if step < config.first_step:
        message = f"{run} itself starts at step {config.first_step}"
        raise InputError(message, key="init_from.step", mend="use a later step")
    return step


def _tokens_before(arm: PlannedArm) -> int:
    return int(arm.facts.get("tokens_before", 0))


def _file(study: Study, table: Mapping[str, Any], start: InitFromConfig, path: str) -> Lineage:
    if start.step is not None:
        raise InputError("a file has no steps", key="init_from.step", mend="leave it out, or name a run")
    place = path if "://" in path else str((study.folder / path).resolve())
    try:
        found = file_parent(place)
    except InputError as error:
        where = f"{error.file}: " if error.file else ""
        raise InputError(f"{where}{error.message}", key="init_from.path", mend=error.mend) from None
    step = None if found.config is None else found.snapshot.step
    if step is None and start.mode == "resume":
        message = f"{path} holds weights alone, without optimizer and place in the data"
        raise InputError(message, key="init_from.mode", mend='write mode = "restart", or name a run')
    filled = {**start.dump(), "path": place, "step": step, "identity": found.identity}
    made = {**table, "model": _model(table, found.model, path), "init_from": filled}
    if found.config is None:
        return Lineage(made, said=found.said)
    before = Before(path, found.config, found.data, found.seed)
    return Lineage(made, None, tokens_seen(found.config, found.snapshot), before, found.said)


def _model(table: Mapping[str, Any], found: ModelConfig, name: str) -> dict[str, Any]:
    """The parent's model; where one was written too, it must be the same."""
    if "model" in table:
        try:
            written = ModelConfig.model_validate(table["model"])
        except ValidationError as error:
            raise input_errors(error)[0].prefixed("model") from None
        odd = differing(written.canonical(), found.canonical())
        if odd:
            raise InputError(
                f"the model of {name} has another {', '.join(odd)}",
                key=f"model.{odd[0]}",
                mend="leave model out: it is the parent's; `graft` changes it",
            )
    return found.dump()

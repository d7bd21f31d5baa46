"""What a study's arms mean: base + arm -> `RunConfig`, data, digests. Imports torch, through the models.

An arm's table is laid over the base, key by key; a table that sets `kind` or `preset` replaces what it stands over,
because the other keys belonged to another mechanism. The text "off" is None, which TOML cannot write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import ValidationError

from winnow.config import canonical_json, input_errors
from winnow.errors import InputError, nearest
from winnow.records.run import Finding
from winnow.study.lineage import Lineage, located
from winnow.study.locate import KeyPath
from winnow.study.overlay import merge
from winnow.study.parents import Parents
from winnow.study.plan import Plan, PlannedArm, source_digests, written_digest, written_table
from winnow.study.spec import Study
from winnow.tasks.base import Task
from winnow.train.config import RunConfig
from winnow.train.evaluate import held_out
from winnow.train.sources import load_sources


@dataclass(frozen=True)
class Resolved:
    """A study whose arms are known in full."""

    study: Study
    configs: Mapping[str, RunConfig]
    plan: Plan
    """Without history: `study.plan` adds what the store knows."""
    findings: tuple[Finding, ...] = ()
    """What reading the files that arms start from had to say."""


def resolve(study: Study, *, trust: bool = False, parents: Parents | None = None) -> Resolved:
    """Every arm in full, and the plan that names its runs.

    trust: permit the study's `use` files, which are programs. parents: the studies from whose runs arms may start.
    Raises InputError with the line of the arm or of the base that is wrong.
    """
    parents = parents or Parents()
    sources = source_digests(study)
    if study.use:
        if not trust:
            raise study.lines.error(
                f"{', '.join(study.use)}: a study's own Python files are run only on demand",
                ("use",),
                "read them, then give --trust",
            )
        load_sources([study.folder / name for name in study.use], sources)
    tasks: dict[str, Task] = {}
    configs: dict[str, RunConfig] = {}
    arms: dict[str, PlannedArm] = {}
    findings: list[Finding] = []
    for name in study.arms:
        config, lineage = _config(study, name, parents)
        key = canonical_json(config.task.dump())
        try:
            if key not in tasks:
                tasks[key] = config.task.build()
            task = tasks[key]
            lineage.check(config, task.digest, study.seeds)
            facts = _facts(config, task, lineage)
        except InputError as error:
            raise _placed(study, name, error) from None
        configs[name] = config
        findings += _said(study, name, lineage)
        arms[name] = PlannedArm(
            written=written_digest(study, name, sources),
            table=written_table(study, name),
            config=config.dump(),
            identity=config.canonical(),
            data=task.digest,
            facts=facts,
            metrics=config.metrics,
            parent=lineage.parent,
        )
    _check_metrics(study, configs)
    file = None if study.file is None else str(study.file.resolve())
    plan = Plan(id=study.id, file=file, sources=sources, arms=arms)
    return Resolved(study, configs, plan, tuple({(item.message, item.where): item for item in findings}.values()))


def _config(study: Study, arm: str, parents: Parents) -> tuple[RunConfig, Lineage]:
    try:
        lineage = located(study, merge(study.base, study.arms[arm]), parents)
        config = RunConfig.model_validate(lineage.table)
        return config.replace({"task": config.task.located(study.folder)}), lineage
    except InputError as error:
        raise _placed(study, arm, error) from None
    except ValidationError as error:
        raise _placed(study, arm, input_errors(error)[0]) from None


def _said(study: Study, arm: str, lineage: Lineage) -> list[Finding]:
    where = study.lines.where(_place(study, arm, ("init_from", "path")))
    return [Finding(rule="weights-converted", severity="notice", message=text, where=where) for text in lineage.said]


def _placed(study: Study, arm: str, error: InputError) -> InputError:
    """The error at the line of the key that the user wrote: the arm's where the arm sets it, else the base's."""
    inner = tuple((error.key or "").split(".")) if error.key else ()
    message = f"{error.file}: {error.message}" if error.file else error.message
    return study.lines.error(message, _place(study, arm, inner), error.mend)


def _place(study: Study, arm: str, inner: KeyPath) -> KeyPath:
    """Where a key of an arm was written: in the arm or in the base."""
    places: list[KeyPath] = [("arms", arm, *inner), ("base", *inner)]
    depths = [study.lines.depth(places[0]) - 2, study.lines.depth(places[1]) - 1]
    place = places[0] if depths[0] > 0 and depths[0] >= depths[1] else places[1]
    return place if max(depths) > 0 else places[0]


def _facts(config: RunConfig, task: Task, lineage: Lineage) -> dict[str, float | int | str]:
    with torch.device("meta"):  # sizes only: no memory is taken, nothing is drawn
        model = config.grown.build(task.vocab_size, config.task.context)
    tokens = (config.train.steps - config.first_step) * config.train.tokens_per_update
    before = {} if lineage.tokens_before is None else {"tokens_before": lineage.tokens_before}
    return {
        **task.facts(),
        **model.facts(config.task.context),
        "vocab_size": task.vocab_size,
        "val_digest": held_out(task, config.evaluation).digest,
        "tokens": tokens,
        **before,
    }


def _check_metrics(study: Study, configs: Mapping[str, RunConfig]) -> None:
    """Every metric that decides must be one that the arms measure, and better in the direction that was written."""
    endpoint = study.endpoint
    for arm, config in configs.items():
        metrics = config.metrics
        if endpoint.metric not in metrics:
            place = ("endpoint", "metric")
            raise study.lines.error(
                f"arm {arm!r} does not measure {endpoint.metric!r}",
                place,
                nearest(endpoint.metric, metrics),
            )
        if metrics[endpoint.metric] != endpoint.better:
            raise study.lines.error(
                f"{endpoint.metric} is better when {metrics[endpoint.metric]}",
                ("endpoint", "better"),
                f'write better = "{metrics[endpoint.metric]}"',
            )
        for claim in study.claims:
            if arm in claim.all_arms and claim.metric not in metrics:
                raise study.lines.error(
                    f"arm {arm!r} does not measure {claim.metric!r}",
                    ("claims", claim.id),
                    nearest(claim.metric, metrics),
                )
        step, steps, every = endpoint.step, config.train.steps, config.evaluation.every
        if step is not None and (step > steps or (step % every and step != steps)):
            raise study.lines.error(
                f"arm {arm!r} is not evaluated at step {step}",
                ("endpoint", "step"),
                f"use a multiple of evaluation.every ({every}) up to train.steps ({steps})",
            )

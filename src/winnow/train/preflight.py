"""A few updates of a run before it is started in earnest: what it needs, and whether it does what was written."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from winnow.records.run import Fact, Finding
from winnow.train import health
from winnow.train.checkpoint import weights_digest
from winnow.train.config import RunConfig
from winnow.train.device import PeakMemory
from winnow.train.group import ALONE, Group
from winnow.train.loop import Loop
from winnow.train.start import Parent


@dataclass(frozen=True)
class Preflight:
    """What a few updates showed. No record is written."""

    steps: int
    """Updates done; fewer than asked for when one was not finite."""
    seconds_per_step: float
    """Median, the first update left out where there are more."""
    seconds_per_evaluation: float
    seconds_per_look: float
    """At the inside of the mechanisms; about 0 where nobody looks."""
    peak_bytes: int
    """Most memory used (see `PeakMemory`), by rank 0 where there are several."""
    checkpoint_bytes: int
    """Size of one checkpoint: weights and two moments."""
    weights: str
    """SHA-256 of the weights after these updates: arms that agree in it are still identical."""
    findings: tuple[Finding, ...]
    """From the rules of the health watch that a few updates can tell."""
    facts: dict[str, Fact]
    """Parameters, FLOPs per token and so on."""


def preflight(
    config: RunConfig,
    *,
    seed: int,
    device: torch.device,
    steps: int,
    group: Group = ALONE,
    parent: Parent | None = None,
) -> Preflight:
    """Do `steps` updates (at most the run's own) in memory, from `parent` where the run starts from one.

    Raises InputError where the run could not start.
    """
    memory = PeakMemory(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        loop = Loop(config, seed=seed, device=device, group=group, parent=parent)
        first = loop.position.step
        wrong, _ = loop.findings_at_start()
        evaluation, inside, update = loop.watched_update()
        findings = [
            loop.judge_first_loss(evaluation["val/ce"], loop.start.parent_loss),
            health.warmup_only(config.train),
            None
            if config.evaluation.inside is None  # a resumed run may start between two looks
            else health.nothing_inside(config.evaluation, inside or loop.look_inside()),
            health.slow_kernel(loop.backends.ran),
        ]
        durations: list[float] = []
        while update.finite and loop.step < min(first + steps, config.train.steps):
            started = time.perf_counter()
            update = loop.update()
            durations.append(time.perf_counter() - started)
        if not update.finite:
            findings.append(loop.explain())
        started = time.perf_counter()
        loop.evaluate()
        evaluating = time.perf_counter() - started
        started = time.perf_counter()
        if config.evaluation.inside is not None:
            loop.look_inside()
        looking = time.perf_counter() - started
    weights = loop.snapshot(0, {}).weights
    return Preflight(
        steps=loop.step - first,
        seconds_per_step=sorted(durations)[len(durations) // 2] if durations else evaluating,
        seconds_per_evaluation=evaluating,
        seconds_per_look=looking,
        peak_bytes=memory.read(),
        checkpoint_bytes=3 * sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        weights=weights_digest(weights),
        findings=(
            *(item for item in findings if item is not None),
            *health.unread_options(config, loop.reads),
            *wrong,
            *loop.watch.found,
        ),
        facts={**loop.task.facts(), **loop.model.facts(config.task.context), "val_digest": loop.validation.digest},
    )

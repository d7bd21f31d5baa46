"""What every run is looked over for before its first update and after its last: which rules, on what.

All ranks come here together; what the leading one finds counts. A sharded model's mechanisms are not compared with
their definitions: no rank holds one whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from winnow.models.awakening import idle, wakes, zeros_of
from winnow.models.gpt import GPTConfig
from winnow.models.transplant import Layout, layout
from winnow.parameters import parameter_table
from winnow.records.run import Finding, Spread
from winnow.train import health, slices
from winnow.train.absorbed import absorbed
from winnow.train.mechanism_checks import mechanism_findings
from winnow.train.optim import learning_rate
from winnow.train.start_checks import initial_spread, initial_values
from winnow.train.step_checks import evaluation_loss

if TYPE_CHECKING:
    from torch import Tensor

    from winnow.train.loop import Loop


def at_start(loop: Loop) -> tuple[list[Finding], dict[str, Spread]]:
    """What is wrong with the starting weights, and how far they lie from 0, by parameter."""
    values = {name: loop.group.whole(p.detach()).cpu() for name, p in loop.model.named_parameters()}
    report = loop.start.report
    found: list[Finding] = []
    if loop.config.init_from is None:
        grafted = () if report is None else report.fresh
        found += initial_values(values, parameter_table(loop.model), skip=grafted)
    rows = loop.task.batch(loop.seed, loop.data_step, range(1), loop.config.rows), next(loop.validation.batches(1))
    visible = health.visible_answer(rows)
    found += [] if visible is None else [visible]
    return [*found, *loop.start.findings(), *_computed(loop, {}, start=True)], initial_spread(values)


def at_end(loop: Loop, reported: Mapping[str, float]) -> list[Finding]:
    """What is wrong with a run and its final weights. reported: what evaluation said of these."""
    final = {name: loop.group.whole(p.detach()).cpu() for name, p in loop.model.named_parameters()}
    table, unseen = parameter_table(loop.model), loop.gradients.unseen
    wrong = _computed(loop, reported, start=False)
    if not loop.group.leads:
        return []
    started = loop.starting_model()
    initial = {name: p.detach() for name, p in started.named_parameters()}
    # Only a run that was seen to select nothing, as it should with its weights, may have lost its votes.
    mute = any((item.rule, item.severity) == ("unselective", "warning") for item in wrong)
    lost = absorbed([started, loop.model], loop.validation) if mute else set[tuple[str, str]]()
    found = _dead(loop, final, initial, lost)
    asked, done = loop.config.train.steps - loop.position.step, loop.optimizer.updates() - loop.position.updates
    missing = health.steps_missing(asked, done)
    changes = _acting(loop, slices.relative_changes(final, initial, table))
    loop.changes = slices.change_facts(changes)
    if loop.grafted is not None:
        sizes = {"vocab_size": loop.task.vocab_size, "context": loop.config.task.context}
        loop.changes |= loop.grafted.peak_facts(loop.config.grown, final, **sizes)
    return [
        *found,
        *([] if missing is None else [missing]),
        *slices.barely_moved(changes, table, unseen),
        *wrong,
    ]


def _dead(
    loop: Loop, final: Mapping[str, Tensor], initial: Mapping[str, Tensor], lost: Collection[tuple[str, str]]
) -> list[Finding]:
    """Parameters that were not trained; but for those that the start keeps from it, which is said where it is for good.

    A graft of zeros wakes up part by part (`winnow.models.awakening`); so does what another run's graft left behind.
    lost: what nothing but votes would train, where no vote gets through.
    """
    config, table, unseen = loop.config, parameter_table(loop.model), loop.gradients.unseen
    first, steps = loop.position.step, config.train.steps
    rate = learning_rate(min(max(first, config.train.warmup), steps - 1), config.train)
    found = slices.dead_parameters(final, initial, table, unseen, rate=rate, absorbed=lost)
    fresh = config.init_from is None and not config.graft
    if not found or fresh or not isinstance(config.grown, GPTConfig):
        return found
    cells = layout(config.grown, loop.task.vocab_size, config.task.context)
    # What has no effect need not wake, and nothing is lost by that.
    awake = {**dict.fromkeys(idle(config.grown), math.inf), **wakes(config.grown, zeros_of(initial, cells))}
    for_good: list[str] = []
    asleep: set[tuple[str, str]] = set()
    for name, spec in table.items():
        for part in [part.name for part in spec.slices] or [""]:
            of = _labels(cells, name, part)
            when = [awake[label] for label in of if label in awake]
            if when and all(update is None or update > steps - first for update in when):
                asleep.add((name, part))
                for_good += [label for label in of if awake[label] is None]
    found = slices.dead_parameters(final, initial, table, unseen, rate=rate, asleep=asleep, absorbed=lost)
    told = config.graft or (loop.parent is not None and loop.parent.own)  # before the first update
    return found if told else [*found, *health.dead_by_construction(for_good)]


def _acting(loop: Loop, changes: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Of slices' changes, those that are no rounding. Only a parent's may be: fresh biases start at 0 and have none."""
    config = loop.config
    if config.init_from is None or not isinstance(config.grown, GPTConfig):
        return dict(changes)
    cells, without = layout(config.grown, loop.task.vocab_size, config.task.context), idle(config.grown)
    return {place: change for place, change in changes.items() if not without.issuperset(_labels(cells, *place))}


def _labels(cells: Layout, parameter: str, part: str) -> list[str]:
    """What a slice of a parameter consists of."""
    return [cell.label for cell in cells.cells[parameter].values() if cell.name.partition("/")[0] == part]


def _computed(loop: Loop, reported: Mapping[str, float], *, start: bool) -> list[Finding]:
    """What the model makes of a few validation tokens."""
    model, precision = loop.model, loop.config.train.precision
    found: list[Finding] = []
    with loop.group.inference(model):
        if loop.group.parallel != "fsdp":
            found += mechanism_findings(model, loop.validation, loop.device, start=start)
        return found + evaluation_loss(model, loop.validation, loop.device, precision, reported)

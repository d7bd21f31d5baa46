"""Live progress of a launch: bars on a terminal, plain lines in a log. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from winnow.cli import output
from winnow.study.events import (
    Event,
    LookEnded,
    LookStarted,
    Noticed,
    PreflightEnded,
    PreflightStarted,
    RunEnded,
    RunKey,
    RunProgress,
    RunStarted,
    RunWaits,
    Stopping,
    UploadsAwaited,
    WorkerDied,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

STOPPING = "finishing the step and saving; run the same command to go on"
_QUIET_SECONDS = 15.0
"""A log gets a line at least this far apart while runs go on."""


class Watcher(Protocol):
    """Takes the events of a launch."""

    def __call__(self, event: Event) -> None: ...


@contextmanager
def watching(metric: str) -> Iterator[Watcher]:
    """A watcher that fits where stderr goes; `metric` is shown for each run."""
    if not sys.stderr.isatty():
        yield Lines(metric)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[last]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        yield Bars(metric, progress)


class Work:
    """Steps done and to do at one look, and how long the rest will take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds that a whole run of an arm is expected to take."""
        self.jobs = 1
        self.missing: dict[RunKey, float] = {}
        """Part of each run that is still to do."""
        self.total = 0

    def start(self, event: LookStarted) -> None:
        """A look begins: all of its missing runs are to be done."""
        self.missing = dict.fromkeys(event.missing, 1.0)
        self.total = len(event.missing)

    def at(self, run: RunKey, step: int, steps: int) -> None:
        """A run has come to a step."""
        if run in self.missing and steps:
            self.missing[run] = 1.0 - step / steps

    def end(self, run: RunKey) -> None:
        """A run needs no more work."""
        self.missing.pop(run, None)

    @property
    def done(self) -> int:
        """Runs of this look that have ended here."""
        return self.total - len(self.missing)

    @property
    def fraction(self) -> float:
        """Share of this look's runs that is done, partly done ones counted in part."""
        return (self.total - sum(self.missing.values())) / self.total if self.total else 1.0

    def remaining(self) -> float | None:
        """Seconds until this look's runs are done; None where nothing was measured."""
        if not all(run.arm in self.seconds for run in self.missing):
            return None
        left = [self.seconds[run.arm] * part for run, part in self.missing.items()]
        return max(sum(left) / self.jobs, max(left, default=0.0))


class Lines:
    """One line for each thing that happens, and now and then one on how far it is."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.work = Work()
        self._last: dict[RunKey, float] = {}
        self._begun: dict[RunKey, float] = {}
        self._spoken = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Say what happened."""
        match event:
            case PreflightEnded():
                self.work.seconds, self.work.jobs = dict(event.seconds), event.jobs
            case LookStarted():
                self.work.start(event)
            case RunStarted():
                self._begun[event.run] = time.monotonic()
                self.work.at(event.run, event.step, event.steps)
            case RunProgress():
                if self.metric in event.metrics:
                    self._last[event.run] = event.metrics[self.metric]
                self.work.at(event.run, event.step, event.steps)
            case RunEnded() if event.status != "interrupted":
                self.work.end(event.run)
            case _:
                pass
        line = self.line(event)
        if line is not None:
            self._say(line)
        elif time.monotonic() - self._spoken > _QUIET_SECONDS and self.work.missing:
            self._say(self.overall())

    def line(self, event: Event) -> str | None:
        """What an event is worth saying; None for the many that are not."""
        match event:
            case Noticed():
                return output.finding_line(event.finding.severity, event.finding.rule, event.finding.message)
            case PreflightStarted():
                return f"trying a few steps of {len(event.arms)} arms: {', '.join(event.arms)}"
            case PreflightEnded():
                return preflight_line(event)
            case LookStarted():
                return look_line(event, self.work.remaining())
            case RunStarted() if event.step > 0:
                return f"  {event.run}: goes on from step {event.step} of {event.steps}"
            case RunWaits():
                return f"  {event.run}: another launcher has it; waiting"
            case WorkerDied():
                return f"  {event.run}: {event.how}{'; another worker goes on with it' if event.again else ''}"
            case RunEnded():
                return self._ended(event)
            case LookEnded():
                return f"look {event.look} of {event.looks} is done: {counted(event)}"
            case UploadsAwaited():
                runs = f"{len(event.runs)} run{'' if len(event.runs) == 1 else 's'}"
                return f"{runs} still to be uploaded to {event.url}"
            case Stopping():
                return STOPPING
            case _:
                return None

    def overall(self) -> str:
        """How far this look is."""
        left = self.work.remaining()
        eta = f", about {output.duration(left)} to go" if left is not None else ""
        return f"  {self.work.done} of {self.work.total} runs, {self.work.fraction:.0%}{eta}"

    def _ended(self, event: RunEnded) -> str:
        parts = [f"  {event.run}: {event.status}"]
        if event.run in self._last and event.status == "finished":
            parts.append(f"{self.metric} {self._last[event.run]:.4f}")
        if event.run in self._begun:
            parts.append(output.duration(time.monotonic() - self._begun[event.run]))
        if event.elsewhere:
            parts.append("done by another launcher")
        if event.error:
            parts.append(event.error)
        left = self.work.remaining()
        if event.status != "interrupted" and self.work.missing and left is not None:
            parts.append(f"{self.work.done} of {self.work.total}, about {output.duration(left)} to go")
        return ", ".join(parts)

    def _say(self, line: str) -> None:
        self._spoken = time.monotonic()
        output.note(line)


class Bars(Lines):
    """A bar for each run that is going and one for the look; lines scroll above."""

    def __init__(self, metric: str, progress: Progress) -> None:
        super().__init__(metric)
        self._progress = progress
        self._bars: dict[RunKey, TaskID] = {}
        self._whole: TaskID | None = None

    def __call__(self, event: Event) -> None:
        """Say and draw what happened."""
        super().__call__(event)
        match event:
            case LookStarted():
                if self._whole is not None:
                    self._progress.remove_task(self._whole)
                self._whole = self._progress.add_task(f"look {event.look} of {event.looks}", total=1.0, last="")
            case RunStarted():
                self._bar(event.run, event.step, event.steps)
            case RunProgress():
                self._bar(event.run, event.step, event.steps)
            case RunEnded() if event.run in self._bars:
                self._progress.remove_task(self._bars.pop(event.run))
            case _:
                pass
        if self._whole is not None:
            left = self.work.remaining()
            eta = f", about {output.duration(left)} to go" if left is not None and self.work.missing else ""
            told = f"{self.work.done} of {self.work.total} runs{eta}"
            self._progress.update(self._whole, completed=self.work.fraction, last=told)

    def _bar(self, run: RunKey, step: int, steps: int) -> None:
        last = f"{self.metric} {self._last[run]:.4f}" if run in self._last else ""
        if run not in self._bars:
            self._bars[run] = self._progress.add_task(str(run), total=steps, last=last)
        self._progress.update(self._bars[run], completed=step, last=last)

    def _say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def preflight_line(event: PreflightEnded) -> str:
    """What the trial of the arms measured."""
    whole = sorted(event.seconds.values())
    if not whole:
        return "the arms were tried"
    low, high = output.duration(whole[0]), output.duration(whole[-1])
    each = low if low == high else f"{low} to {high}"
    memory = f", up to {output.size(event.peak_bytes)} each" if event.peak_bytes else ""
    return f"a run takes {each}; {event.jobs} at once{memory}"


def look_line(event: LookStarted, remaining: float | None) -> str:
    """What a look is about to do."""
    if not event.missing:
        return f"look {event.look} of {event.looks}, {event.seeds} seeds per arm: everything is recorded"
    eta = f", about {output.duration(remaining)}" if remaining is not None else ""
    runs = f"{len(event.missing)} run{'' if len(event.missing) == 1 else 's'}"
    return f"look {event.look} of {event.looks}, {event.seeds} seeds per arm: {runs} to do{eta}"


def counted(event: LookEnded) -> str:
    """How many claims stand where after a look."""
    found: dict[str, int] = {}
    for verdict in event.verdicts:
        found[verdict.status] = found.get(verdict.status, 0) + 1
    return ", ".join(f"{number} {status}" for status, number in found.items()) or "nothing was claimed"

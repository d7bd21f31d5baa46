"""What a launch tells whoever watches it, as it happens. The command line draws progress from these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from winnow.records.run import Finding
from winnow.study.verdict import Verdict


@dataclass(frozen=True)
class RunKey:
    """One run of a study."""

    arm: str
    seed: int
    digest: str

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True)
class Noticed:
    """A finding of the audit, the preflight or the launch."""

    finding: Finding


@dataclass(frozen=True)
class PreflightStarted:
    """A few steps of each of these arms are about to be tried."""

    arms: tuple[str, ...]


@dataclass(frozen=True)
class PreflightEnded:
    """What the trial of the arms measured."""

    seconds: Mapping[str, float]
    """Seconds that one whole run of each arm will take, by arm."""
    peak_bytes: int
    """Largest memory of one worker."""
    jobs: int
    """Runs that will go at once."""


@dataclass(frozen=True)
class LookStarted:
    """The runs of one look are about to start."""

    look: int
    """Which look, from 1."""
    looks: int
    seeds: int
    """Seeds per arm at this look."""
    arms: tuple[str, ...]
    """Arms that an open claim still needs."""
    missing: tuple[RunKey, ...]
    """Runs of this look that are not recorded yet."""


@dataclass(frozen=True)
class RunStarted:
    """A run has begun or goes on from a checkpoint."""

    run: RunKey
    step: int
    steps: int


@dataclass(frozen=True)
class RunProgress:
    """A run has done further steps."""

    run: RunKey
    step: int
    steps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunEnded:
    """A run needs no more work here: finished, failed, diverged, or stopped with its state saved."""

    run: RunKey
    status: str
    error: str | None = None
    """Last line of what went wrong."""
    elsewhere: bool = False
    """Whether another launcher did it."""


@dataclass(frozen=True)
class RunWaits:
    """Another launcher holds this run."""

    run: RunKey


@dataclass(frozen=True)
class WorkerDied:
    """A worker process ended while it held a run."""

    run: RunKey
    how: str
    again: bool
    """Whether another worker goes on with the run."""


@dataclass(frozen=True)
class LookEnded:
    """The claims as they stand after a look."""

    look: int
    looks: int
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class UploadsAwaited:
    """Every run has ended; the last of them are still being uploaded."""

    runs: tuple[RunKey, ...]
    url: str
    """Where to, without credentials."""


@dataclass(frozen=True)
class Stopping:
    """Ctrl-C: the runs in progress finish their step and are saved."""

    runs: tuple[RunKey, ...]


Event = (
    Noticed
    | PreflightStarted
    | PreflightEnded
    | LookStarted
    | RunStarted
    | RunProgress
    | RunEnded
    | RunWaits
    | WorkerDied
    | LookEnded
    | UploadsAwaited
    | Stopping
)

"""Runs of other programs: a few lines in any training script make it an arm of a study.

    with winnow.record({"lr": 3e-4, "depth": 6}, seed=0, study="depth", arm="deep") as run:
        for step in range(1000):
            ...
            run.log(step=step, **{"val/ce": loss})

Such a run is stamped `watched = false`: health could not look inside.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from winnow.config import canonical_value, digest, run_digest
from winnow.errors import InputError
from winnow.records.provenance import collect
from winnow.records.run import Finding, Label, RunIdentity, RunRecord, Status
from winnow.records.store import OpenRun, RunStore, find_store


class RecordedRun:
    """A run in progress, made by `winnow.record`. Use it in a `with` block: its end writes the record."""

    def __init__(self, run: OpenRun, steps: int | None, rerun: bool) -> None:
        self.digest = run.identity.digest
        """The run's name in the store."""
        self._run = run
        self._steps_asked = steps
        self._rerun = rerun
        self._last_step = -1
        self._logged = frozenset[str]()
        """Metrics that the last step has."""
        self._final: dict[str, float] = {}
        self._started = time.monotonic()
        self._provenance = collect(deterministic=False, notes=("made by another program",))

    def log(self, *, step: int, **metrics: float) -> None:
        """Write metric values of one step (counted from 0, never going back). The last value of each is its result.

        Several calls may share a step if they log different metrics.
        Raises InputError for a step that goes back, a metric twice at one step, or a value that is no number.
        """
        if step < self._last_step:
            raise InputError(f"step {step} comes after step {self._last_step}", mend="log steps in order")
        logged = self._logged if step == self._last_step else frozenset[str]()
        row: dict[str, float] = {}
        for name, value in metrics.items():
            if name in ("step", "crc"):
                raise InputError(f"a metric cannot be called {name!r}", mend="give it another name")
            if name in logged:
                raise InputError(f"step {step} has a value already", key=name, mend="log each metric once per step")
            try:
                row[name] = float(value)
            except (TypeError, ValueError) as error:
                raise InputError(f"{value!r} is not a number", key=name, mend="log plain numbers") from error
        self._run.journal.append({"step": step, **row})
        self._last_step = step
        self._logged = logged | row.keys()
        self._final.update(row)

    def _record(self, status: Status, error: str | None) -> RunRecord:
        identity = self._run.identity
        findings = [
            Finding(rule="non-finite", severity="warning", message=f"the last {name} is {value}", where=name)
            for name, value in self._final.items()
            if not math.isfinite(value)
        ]
        if self._rerun:
            message = "the run was recorded before and has been made again; the earlier record stands beside it"
            findings.append(Finding(rule="recorded-again", severity="warning", message=message))
        done = self._last_step + 1
        return RunRecord(
            digest=identity.digest,
            status=status,
            label=identity.label,
            config=identity.config,
            seed=identity.seed,
            data=identity.data,
            steps_asked=done if self._steps_asked is None else self._steps_asked,
            steps_done=done,
            final=dict(self._final),
            facts={"seconds": round(time.monotonic() - self._started, 3)},
            findings=tuple(findings),
            provenance=self._provenance,
            error=error,
            watched=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._run:
            if error is None and not self._final:
                empty = InputError("the block has logged nothing", mend="call run.log(step=..., METRIC=...) inside it")
                self._run.finish(self._record("failed", str(empty)))
                raise empty
            if error is None:
                self._run.finish(self._record("finished", None))
                return
            status = "failed" if isinstance(error, Exception) else "interrupted"
            text = "".join(traceback.format_exception(kind, error, trace))
            self._run.finish(self._record(status, text))


def record(
    config: Mapping[str, Any],
    seed: int,
    *,
    study: str = "recorded",
    arm: str | None = None,
    store: Path | str | None = None,
    steps: int | None = None,
    again: bool = False,
) -> RecordedRun:
    """Record a run of another program as an arm of a study.

    config: what makes this run what it is, as plain data (numbers, strings, lists, tables): with the seed, its
    identity; seed: pairs it with other arms; study, arm: where it belongs (arm None = a name made from the config);
    store: the folder of records (None = as the command line finds it); steps: how many were asked for (None = as
    many as are logged); again: make a run anew that is recorded already. Its earlier record and metrics stay beside
    the new ones, and the new record says so.

    An exception inside the block is recorded with its traceback and goes on; the run may then be made again. A block
    that has logged nothing is a failed run, and raises InputError at its end.
    Raises InputError if the run is recorded already or another process is recording it, or the config is not plain.
    """
    plain = _plain(config)
    name = arm if arm is not None else f"arm-{digest(plain)[:8]}"
    identity = RunIdentity(
        digest=run_digest(plain, seed, "", {}), config=plain, seed=seed, data="", label=Label(study=study, arm=name)
    )
    records = RunStore(find_store(None if store is None else Path(store)))
    state = records.state(identity.digest)
    if state in ("finished", "diverged") and not again:
        raise InputError(
            f"run {identity.digest} (seed {seed}) is recorded already",
            mend="give another seed or config, or again=True to make it anew and keep the earlier record beside it",
        )
    run = records.claim(identity, again=again)
    if run is None:
        raise InputError(f"run {identity.digest} (seed {seed}) is being recorded by another process")
    run.journal.truncate(0)  # another program goes on from nowhere: an earlier try stays in its own file
    return RecordedRun(run, steps, rerun=state in ("finished", "diverged"))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain data in which 1.0 and 1 are one value. Raises InputError for anything else."""
    _check_plain(config, "")
    return canonical_value(dict(config))


def _check_plain(value: Any, key: str) -> None:
    mend = "give plain data: numbers, strings, None, lists and tables with string keys"
    if isinstance(value, Mapping):
        for name, item in cast(Mapping[Any, Any], value).items():
            if not isinstance(name, str):
                raise InputError(f"the key {name!r} is not a string", key=key, mend=mend)
            _check_plain(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(cast(Sequence[Any], value)):
            _check_plain(item, f"{key}.{index}")
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{value!r} is not plain data", key=key, mend=mend)

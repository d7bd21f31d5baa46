"""Rerun a recorded baseline with the present code: may old and new records be compared?

The baseline is the study's control at its first recorded seed. It is trained again in a store of its own, on as many
threads and the same kind of device as before, and every number of the two is compared.

    identical   weights and metrics agree bit for bit
    noise       the first steps agree to float precision, and the metric moves by less than a tenth of the seed sd
    different   anything else
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from winnow.errors import InputError
from winnow.records.run import RunIdentity, RunRecord
from winnow.records.store import RunStore
from winnow.study.bridges import Canary, Outcome, add_canary
from winnow.study.compare import find_runs
from winnow.study.crew import Crew, Job
from winnow.study.events import Event, RunEnded, RunKey
from winnow.study.plan import load_plan, now
from winnow.study.spec import Study
from winnow.study.workers import WORKER

FIRST_STEPS: Final = 5
"""Rows of the journals that float noise must leave alone: chaos grows it in the later ones."""
FLOAT_NOISE: Final = 1e-4
"""Relative difference that another order of sums can make in these."""
SHARE_OF_SD: Final = 0.1
"""Part of the seed standard deviation that the metric may move by."""


def silent(event: Event) -> None:
    """Events that nobody watches."""


def run_canary(
    study: Study,
    store: RunStore,
    on_event: Callable[[Event], None] = silent,
    *,
    trust: bool = False,
    worker: Sequence[str] = WORKER,
) -> Canary:
    """Repeat the baseline and keep the result beside its record.

    Raises InputError where there is no baseline yet, its `use` files are not trusted, or the repetition fails;
    Stopped after Ctrl-C.
    """
    if study.runs == "recorded":
        raise study.lines.error("runs of other programs cannot be repeated", ("runs",))
    if study.use and not trust:
        mend = "read them, then give --trust"
        raise study.lines.error("a study's own Python files are run only on demand", ("use",), mend)
    old = _baseline(study, store)
    with tempfile.TemporaryDirectory(prefix="winnow-canary-") as folder:
        other = RunStore(Path(folder) / "store")
        new = _repeat(study, old, store, other, on_event, worker)
        outcome, difference, first = compared(
            old,
            new,
            store.metrics(old.digest),
            other.metrics(new.digest),
            study.endpoint.metric,
            _seed_sd(study, store),
        )
    packages = {*old.provenance.packages.items()} ^ {*new.provenance.packages.items()}
    canary = Canary(
        run=old.digest,
        old=old.provenance.code,
        new=new.provenance.code,
        outcome=outcome,
        metric=study.endpoint.metric,
        difference=difference,
        first_step=first,
        seed_sd=_seed_sd(study, store),
        packages=tuple(sorted({name for name, _ in packages})),
        at=now(),
    )
    add_canary(store, canary)
    return canary


def compared(
    old: RunRecord,
    new: RunRecord,
    old_rows: Sequence[dict[str, Any]],
    new_rows: Sequence[dict[str, Any]],
    metric: str,
    seed_sd: float | None,
) -> tuple[Outcome, float | None, int | None]:
    """(outcome, difference of the metric, first step at which any number differs)."""
    first = next((int(a["step"]) for a, b in zip(old_rows, new_rows, strict=False) if _numbers(a) != _numbers(b)), None)
    if first is None and len(old_rows) != len(new_rows):
        first = min(len(old_rows), len(new_rows))
    a, b = old.outcome(metric), new.outcome(metric)
    difference = None if a is None or b is None else b - a
    if first is None and (old.weights, old.trace, old.status) == (new.weights, new.trace, new.status):
        return "identical", difference, None
    early = all(
        math.isclose(value, _numbers(y).get(name, math.nan), rel_tol=FLOAT_NOISE)
        for x, y in zip(old_rows[:FIRST_STEPS], new_rows[:FIRST_STEPS], strict=False)
        for name, value in _numbers(x).items()
    )
    if difference is None or not early:
        return "different", difference, first
    allowed = SHARE_OF_SD * seed_sd if seed_sd else FLOAT_NOISE * abs(a or 0.0)
    return ("noise" if abs(difference) <= allowed else "different"), difference, first


def _baseline(study: Study, store: RunStore) -> RunRecord:
    plan = load_plan(store, study)
    if plan is not None and study.control in study.arms:
        found = find_runs(study, plan, store)[0][study.control]
        for seed in study.seeds:
            if seed in found and found[seed].status == "finished":
                return found[seed]
    raise InputError(
        f"no finished run of {study.control!r} is recorded", file=study.file, mend="give `winnow run` first"
    )


def _repeat(
    study: Study,
    old: RunRecord,
    parents: RunStore,
    store: RunStore,
    on_event: Callable[[Event], None],
    worker: Sequence[str],
) -> RunRecord:
    parent = old.facts.get("parent")
    identity = RunIdentity(
        digest=old.digest,
        config=old.config,
        seed=old.seed,
        data=old.data,
        sources=old.sources,
        label=old.label,
        parent=None if parent is None else str(parent),
    )
    key = RunKey(study.control, old.seed, old.digest)
    device = old.provenance.device
    message: dict[str, Any] = {
        **identity.dump(),
        "use": [str(study.folder / name) for name in study.use],
        "store": str(store.root),
        "parents": str(parents.root),
        "device": device,
        "threads": old.provenance.threads,
    }
    reasons: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, RunEnded) and event.error:
            reasons.append(event.error)
        on_event(event)

    crew = Crew(store, watch, jobs=1, threads=old.provenance.threads, command=worker)
    try:
        crew.run([Job(key, message, identity)])
    finally:
        crew.close()
    record = store.record(old.digest)
    if record is None or record.status not in ("finished", "diverged"):
        reason = reasons[-1] if reasons else "it did not finish"
        raise InputError(f"the repetition failed: {reason}", mend="old and new records may not be compared")
    return record


def _seed_sd(study: Study, store: RunStore) -> float | None:
    plan = load_plan(store, study)
    runs = find_runs(study, plan, store)[0][study.control] if plan is not None else {}
    values = [record.outcome(study.endpoint.metric) for record in runs.values() if record.status == "finished"]
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """What must be the same in an equal run: all but speeds."""
    return {name: value for name, value in row.items() if not name.startswith("speed/")}

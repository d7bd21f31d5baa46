"""Finished runs that nobody trained, for tests of everything that reads records. They are on disk like real ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from winnow.config import run_digest
from winnow.records.journal import journal_line
from winnow.records.run import Fact, Finding, Label, Provenance, RunIdentity, RunRecord, Status, UpdateRatio, seal
from winnow.records.store import RunStore


def fake_provenance(**changes: Any) -> Provenance:
    """A provenance of a made-up machine, the same each time, with some fields changed."""
    fields: dict[str, Any] = {
        "code": "c0dec0dec0dec0de",
        "packages": {"torch": "2.11.0"},
        "python": "3.11.7",
        "platform": "Linux",
        "machine": "Abacus",
        "hardware": "cpu Abacus 1 thread",
        "device": "cpu",
        "threads": 1,
        "deterministic": True,
        "host": "nowhere",
        "started": "2026-01-01T00:00:00+00:00",
    }
    return Provenance.model_validate({**fields, **changes})


def fake_record(
    store: RunStore,
    arm: str = "control",
    seed: int = 0,
    final: Mapping[str, float] | None = None,
    *,
    study: str = "fake",
    config: Mapping[str, Any] | None = None,
    digest: str | None = None,
    data: str = "da7a",
    status: Status = "finished",
    steps_asked: int = 10,
    steps_done: int | None = None,
    facts: Mapping[str, Fact] | None = None,
    findings: Iterable[Finding] = (),
    provenance: Provenance | None = None,
    metrics: Iterable[Mapping[str, float]] = (),
    weights: str | None = None,
    trace: str | None = None,
    error: str | None = None,
    watched: bool = True,
    updates: Mapping[str, UpdateRatio] | None = None,
) -> RunRecord:
    """Put an ended run into the store and return its record.

    config: made up from the arm's name unless given; digest: computed from config, seed and data unless given (give
    the one of a resolved plan). Writes the same files as a claim and a finish, but leaves out the fsyncs and the
    lock: a thousand take about a second.
    """
    settings = dict(config) if config is not None else {"arm": arm}
    name = digest or run_digest(settings, seed, data, {})
    rows = [dict(row) for row in metrics]
    label = Label(study=study, arm=arm)
    identity = RunIdentity(digest=name, config=settings, seed=seed, data=data, label=label)
    record = RunRecord(
        digest=name,
        status=status,
        label=label,
        config=settings,
        seed=seed,
        data=data,
        steps_asked=steps_asked,
        steps_done=steps_asked if steps_done is None else steps_done,
        final=dict(final) if final is not None else {"val/ce": 2.0},
        facts=dict(facts or {}),
        weights=weights,
        trace=trace,
        metrics_rows=len(rows),
        findings=tuple(findings),
        provenance=provenance or fake_provenance(),
        error=error,
        watched=watched,
        updates=dict(updates or {}),
    )
    if not store.runs.is_dir():
        store.create()
    path = store.path(name)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(identity.dump()))
    (path / "metrics.0.jsonl").write_bytes(b"".join(journal_line(row) for row in rows))
    (path / "run.json").write_text(seal(record))
    return record

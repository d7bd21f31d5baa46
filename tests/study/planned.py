"""Studies whose plan and records are made up, for tests of everything that only reads them. No torch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fakes import fake_record

from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.study.observations import Better
from winnow.study.plan import Plan, PlannedArm, save_plan, seen, source_digests, written_digest, written_table
from winnow.study.spec import Study, parse_study

METRICS: dict[str, Better] = {"val/ce": "lower", "val/ppl": "lower", "val/bpb": "lower"}
TEXT = """\
id = "made-up"
seeds = [0, 1, 2, 3, 4, 5, 6, 7]
looks = [3, 5, 8]
base.train = { steps = 10 }
arms.control = {}
arms.good = { model.width = 2 }
arms.dead = { train.clip = 1000.0 }
claims.h1 = "good better-than control on val/ce smallest 0.01"
claims.h2 = "dead better-than control on val/ce smallest 0.01"
"""
AT = "2026-01-01T00:00:00+00:00"


def made_up(folder: Path, text: str = TEXT, **changes: Any) -> tuple[Study, RunStore]:
    """A study, and a store that holds its plan but no run."""
    study = parse_study(text, folder / "made-up.toml", changes=changes)
    store = RunStore(folder / "winnow-store")
    save_plan(store, study, planned(study))
    return study, store


def planned(study: Study) -> Plan:
    """A plan as `resolve` would make it, with the tables as they are written for configs."""
    arms = {}
    for name, table in study.arms.items():
        config = {**{key: dict(value) for key, value in study.base.items()}}
        for key, value in table.items():
            config[key] = {**config.get(key, {}), **value}
        written = written_digest(study, name, source_digests(study))
        arms[name] = PlannedArm(
            written=written,
            table=written_table(study, name),
            config=config,
            identity=config,
            data="da7a",
            metrics=METRICS,
        )
    return seen(study, Plan(id=study.id, file=None, arms=arms), {}, AT)


def run(study: Study, store: RunStore, arm: str, seed: int, value: float | None = None, **fields: Any) -> RunRecord:
    """Put a finished run of the study into the store; value: of val/ce."""
    plan = planned(study)
    facts = {"parameters": 1000, "trainable": 1000, "tokens": 640, "lr": 0.004, "val_digest": "v", "seconds": 2.0}
    facts |= {"flops_per_token": 123_456, "kv_bytes_per_token": 512}
    text = f"{arm} {seed}"
    defaults: dict[str, Any] = {
        "config": plan.arms[arm].config,
        "digest": plan.run(arm, seed),
        "final": {"val/ce": noisy(arm, seed) if value is None else value},
        "facts": facts,
        "study": study.id,
        "weights": text,
        "trace": text,
    }
    return fake_record(store, arm, seed, **{**defaults, **fields})


def noisy(arm: str, seed: int, effects: Mapping[str, float] | None = None) -> float:
    """2 + the arm's effect + noise of which most is shared by the arms of a seed."""
    shared, own = random.Random(f"shared {seed}"), random.Random(f"own {arm} {seed}")
    effect = (effects or {"good": -0.1}).get(arm, 0.0)
    return 2.0 + effect + 0.01 * shared.gauss(0, 1) + 0.004 * own.gauss(0, 1)


def run_all(study: Study, store: RunStore, seeds: int = 3, **fields: Any) -> None:
    """Every arm's first seeds."""
    for arm in study.arms:
        for seed in study.seeds[:seeds]:
            run(study, store, arm, seed, **fields)

"""Which runs start from which, and which checkpoints must therefore stay. Read from plans and from the runs' own files.

A plan is JSON here: what its arms mean is the business of `winnow.study`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from winnow.errors import InputError
from winnow.records.files import read_json, writing
from winnow.records.store import RunStore


class Child(NamedTuple):
    """A run that starts, or would start, from another."""

    name: str
    """`study/arm/seed`."""
    digest: str
    """Its own; the run need not exist."""
    step: int
    """Of the parent's checkpoint."""


def children(store: RunStore) -> dict[str, list[Child]]:
    """By the parent's digest, every run that the plans of this store start from it. Raises InputError for a damaged
    plan."""
    found: dict[str, list[Child]] = {}
    for study, name, arm in _arms(store):
        parent = arm.get("parent")
        if not parent:
            continue
        for seed, digest in parent["runs"].items():
            child = Child(f"{study}/{name}/{seed}", arm["runs"].get(seed, ""), int(parent["step"]))
            found.setdefault(digest, []).append(child)
    return found


def kept_steps(store: RunStore) -> dict[str, set[int]]:
    """By digest, the steps whose checkpoints stay: those of `train.keep`, those that other runs start from, and what an
    unfinished run with a parent needs of its own. Raises InputError for a damaged plan."""
    found: dict[str, set[int]] = {}
    for parent, runs in children(store).items():
        found.setdefault(parent, set()).update(child.step for child in runs)
    for _, _, arm in _arms(store):
        for digest in arm["runs"].values():
            found.setdefault(digest, set()).update(_own_steps(arm.get("config", {})))
    for digest in store.digests():
        try:
            about = store.identity(digest)
        except InputError:
            continue  # a damaged file: `winnow show` says so
        if about is not None and about.data:
            found.setdefault(digest, set()).update(_own_steps(about.config))
    return found


def _own_steps(config: dict[str, Any]) -> set[int]:
    steps = set(config.get("train", {}).get("keep", ()))
    start = config.get("init_from")
    if start:
        steps.add(int(start["step"] or 0) if start["mode"] == "resume" else 0)
    return steps


def _arms(store: RunStore) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(study, arm, table) of every arm of every plan."""
    for path in sorted((store.root / "studies").glob("*.json")):
        if path.name.startswith("."):
            continue
        with writing(path, "cannot be read"):
            plan = read_json(path)
        for name, arm in plan.get("arms", {}).items():
            if isinstance(arm, dict) and isinstance(arm.get("runs"), dict):  # else it is of another version
                yield path.stem, name, cast(dict[str, Any], arm)

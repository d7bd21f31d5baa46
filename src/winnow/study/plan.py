"""The plan of a study: what its arms resolved to, and what was claimed when. Needs no torch.

`store/studies/<id>.json` holds it. With it, `status`, `compare`, `why` and `table` know the digest of every run
without loading a model; seeds, looks and claims may change without resolving again. An arm whose text (or base, or
`use` file) has changed since is *stale*: only `check` and `run` can say what it means now.

Claims are frozen by hash when the first run starts. What is edited later is exploratory, and the plan says what was
edited and when it was first seen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Container, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from winnow.config import Config, canonical_json, digest, input_errors, run_digest
from winnow.errors import InputError
from winnow.records.files import FileLock, inside, read_json, write_json
from winnow.records.store import RunStore
from winnow.study.claims import Claim
from winnow.study.overlay import merge
from winnow.study.spec import Study

VERSION: Final = 1


class PlannedParent(Config):
    """The arm of another study from whose runs an arm's runs start: enough to name them."""

    study: str
    arm: str
    seed: int | None = None
    """The one run that is always meant; None = the one with the child's own seed."""
    step: int
    """Of the checkpoint."""
    identity: dict[str, Any]
    """As in `PlannedArm`."""
    data: str
    sources: dict[str, str] = Field(default_factory=dict)
    runs: dict[str, str] = Field(default_factory=dict)
    """Digest of the parent's run by the child's seed, for readers without Winnow and for `gc`."""

    def run(self, seed: int) -> str:
        """Digest of the run from which the run with this seed starts."""
        return run_digest(self.identity, seed if self.seed is None else self.seed, self.data, self.sources)


class PlannedArm(Config):
    """One arm, resolved: enough to name its runs and to start them."""

    written: str
    """Digest of what was written for it (base, arm, `use` files): when that changes, the arm is stale."""
    table: dict[str, Any] | None = None
    """Its settings as written, laid over the base; None = made by a Winnow that did not keep them."""
    config: dict[str, Any]
    """`RunConfig.dump()`, with absolute paths."""
    identity: dict[str, Any]
    """`RunConfig.canonical()`: what the run's digest sees."""
    data: str
    """The task's data digest."""
    facts: dict[str, float | int | str] = Field(default_factory=dict)
    """Parameters, FLOPs per token, KV bytes per token ... as the model reports them."""
    metrics: dict[str, Literal["lower", "higher"]] = Field(default_factory=dict)
    """The task's deciding metrics and which way is better."""
    runs: dict[str, str] = Field(default_factory=dict)
    """Digest of the run of each seed, for readers without Winnow and for `gc`."""
    parent: PlannedParent | None = None
    """The runs that its runs start from; None: fresh initial values, or a file."""

    def run(self, seed: int, sources: Mapping[str, str]) -> str:
        """The run's scientific identity, its folder in the store."""
        return run_digest(self.identity, seed, self.data, sources)


class FrozenClaim(Config):
    """A claim as it stood when the first run started."""

    text: str
    hash: str
    at: str
    """When this text was first seen (UTC, ISO 8601)."""
    late: str | None = None
    """Why it is exploratory from the start: it was added after results existed."""


class Edit(Config):
    """A change of the study, first seen after its runs had begun."""

    at: str
    kind: Literal["claim", "dropped", "design", "arm"]
    key: str
    """Which claim, which part of the design, which arm."""
    what: str
    """For example "looks changed from 3, 5, 8 to 3, 5, 8, 12"."""
    value: str = ""
    """What it was changed to: a claim's hash, a part of the design."""
    claims: tuple[str, ...] = ()
    """The claims that it makes exploratory for as long as it stands."""


class Plan(Config):
    """Everything about a study that outlives the file it was written in."""

    version: int = VERSION
    id: str
    file: str | None
    sources: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each `use` file, by name."""
    arms: dict[str, PlannedArm] = Field(default_factory=dict)
    claims: dict[str, FrozenClaim] = Field(default_factory=dict)
    design: dict[str, str] = Field(default_factory=dict)
    """How it is judged (looks, seeds, endpoint, rule), as frozen with the claims."""
    started: str | None = None
    """When the first run started; None = none has."""
    edits: tuple[Edit, ...] = ()
    supersedes: str | None = None
    """The study that this one replaces."""
    artifacts: str | None = None
    """Where the last `run` was asked to upload to, without credentials; None = nowhere."""

    def run(self, arm: str, seed: int) -> str:
        """Digest of one run."""
        return self.arms[arm].run(seed, self.sources)


def now() -> str:
    """The present time as the plan notes it: UTC, ISO 8601, seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def without_arms(study: Study) -> Plan:
    """The plan of a study whose runs other programs make: its arms have no meaning here, its claims do."""
    return Plan(id=study.id, file=None if study.file is None else str(study.file.resolve()))


def load_plan(store: RunStore, study: Study) -> Plan | None:
    """The plan in the store, None where the study has not been resolved yet. Raises InputError if it is damaged."""
    return read_plan(store, study.plan_name)


def stored_plans(store: RunStore) -> tuple[str, ...]:
    """Names of the plans in the store."""
    found = sorted((store.root / "studies").glob("*.json"))
    return tuple(path.stem for path in found if not path.name.startswith("."))


def read_plan(store: RunStore, name: str) -> Plan | None:
    """The plan of this name in the store, or None. Raises InputError if it is damaged."""
    path = inside(store.root / "studies", f"{name}.json", what="study id")
    try:
        data = read_json(path)
    except FileNotFoundError:
        return None
    if isinstance(data.get("version"), int) and data["version"] > VERSION:
        raise InputError(f"is a plan of version {data['version']}", file=path, mend="install a newer winnow-lab")
    try:
        plan = Plan.model_validate(data)
    except ValidationError as error:
        raise input_errors(error)[0].at(file=path) from None
    return plan if plan.file is None else plan.replace({"file": os.path.normpath(store.root.resolve() / plan.file)})


def save_plan(store: RunStore, study: Study, plan: Plan) -> None:
    """Write the plan, whole or not at all; its file relative to the store, so that both may be moved or shared.

    Raises InputError if the disk refuses.
    """
    file = None if plan.file is None else os.path.relpath(plan.file, store.root.resolve())
    arms = {name: _with_runs(arm, study, plan) for name, arm in plan.arms.items()}
    write_json(store.plan_path(study.plan_name), plan.replace({"arms": arms, "file": file}).dump())


def _with_runs(arm: PlannedArm, study: Study, plan: Plan) -> PlannedArm:
    changes: dict[str, Any] = {"runs": {str(seed): arm.run(seed, plan.sources) for seed in study.seeds}}
    if arm.parent is not None:
        runs = {str(seed): arm.parent.run(seed) for seed in study.seeds}
        changes["parent"] = arm.parent.replace({"runs": runs})
    return arm.replace(changes)


def plan_lock(store: RunStore, study: Study) -> FileLock:
    """Held while a plan is read, changed and written, so that two launchers lose nothing of each other's."""
    path = store.plan_path(study.plan_name)
    return FileLock(path.with_name(f".{path.stem}.lock"))


def source_digests(study: Study) -> dict[str, str]:
    """SHA-256 of each `use` file by its name. Raises InputError for one that is missing."""
    found: dict[str, str] = {}
    for index, name in enumerate(study.use):
        path = study.folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            place = ("use", str(index))
            raise study.lines.error(f"{name!r} cannot be read: {error.strerror}", place, "correct the path") from None
        if path.name in found:
            raise study.lines.error(f"two files are named {path.name!r}", ("use", str(index)), "rename one")
        found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def written_digest(study: Study, arm: str, sources: Mapping[str, str]) -> str:
    """Digest of everything that was written for an arm."""
    return digest([dict(study.base), dict(study.arms[arm]), dict(sources)])


def written_table(study: Study, arm: str) -> dict[str, Any]:
    """The settings of an arm as they are written: its table laid over the base, as JSON data."""
    return json.loads(canonical_json(merge(study.base, study.arms[arm])))


def rewritten_keys(study: Study, plan: Plan, arm: str) -> tuple[str, ...] | None:
    """What differs between a stale arm and what its runs were resolved from: dotted keys, and names of `use` files.

    `init_from` where its text is the same: what it starts from was rewritten. None: the plan does not know.
    Raises InputError for a `use` file that is missing.
    """
    before, now = plan.arms[arm], source_digests(study)
    if before.written == written_digest(study, arm, now):
        return ("init_from",)
    if before.table is None:
        return None
    files = [name for name in sorted({*now, *plan.sources}) if now.get(name) != plan.sources.get(name)]
    return (*differing(before.table, written_table(study, arm)), *files)


def stale_arms(study: Study, plan: Plan, changed: Callable[[PlannedParent], bool] = lambda _: False) -> tuple[str, ...]:
    """Arms that were added or rewritten since the plan was made, or whose parents were.

    changed: whether a parent means something else now (`Parents.changed`).
    """
    sources = source_digests(study)
    return tuple(
        name
        for name in study.arms
        if name not in plan.arms
        or plan.arms[name].written != written_digest(study, name, sources)
        or ((parent := plan.arms[name].parent) is not None and changed(parent))
    )


def claim_hash(claim: Claim) -> str:
    """What may not change after the first run: everything about a claim but its spelling.

    What is expected of it counts too: a claim that is expected to be invalid leaves the corrected family.
    """
    return claim.digest()


def design_of(study: Study) -> dict[str, str]:
    """How the study is judged, in words that an edit is reported with."""
    return {
        "looks": ", ".join(map(str, study.looks)),
        "seeds": ", ".join(map(str, study.seeds)),
        "endpoint": canonical_json(study.endpoint.dump()),
        "rule": canonical_json(study.rule.dump()),
        "control": study.control,
        "question": study.question,
    }


def seen(study: Study, plan: Plan, results: Mapping[tuple[str, int], str], at: str) -> Plan:
    """The plan with the study's claims taken in, and with every edit since the runs began noted.

    results: when each finished run was made, by arm and seed (UTC, ISO 8601); at: the present time.
    """
    plan = plan.replace({"supersedes": study.supersedes})
    frozen = dict(plan.claims)
    edits = list(plan.edits)
    late = {claim.id: _late(study, claim, results) for claim in study.claims}
    # Runs that another study made count as begun once they could have told anything about a claim.
    begun = plan.started is not None or any(late.values())
    for claim in study.claims:
        before = frozen.get(claim.id)
        if before is None or (not begun and before.hash != claim_hash(claim)):
            frozen[claim.id] = FrozenClaim(text=claim.text, hash=claim_hash(claim), at=at, late=late[claim.id])
        elif before.hash != claim_hash(claim):
            what = f"the claim was {before.text!r} and is {claim.text!r}"
            edits.append(
                Edit(at=at, kind="claim", key=claim.id, what=what, value=claim_hash(claim), claims=(claim.id,))
            )
    present = {claim.id for claim in study.claims}
    if not begun:
        frozen = {name: claim for name, claim in frozen.items() if name in present}
        return plan.replace({"claims": frozen, "design": design_of(study)})
    for name, claim in frozen.items():
        if name not in present:
            edits.append(Edit(at=at, kind="dropped", key=name, what=f"claim {name} was dropped: {claim.text!r}"))
    plan = plan if plan.design else plan.replace({"design": design_of(study)})
    for key, (before, after) in changed_design(study, plan).items():
        what = f"{key} changed from {before or 'nothing'} to {after or 'nothing'}"
        # The claims are frozen by themselves: another wording of the question is said, and changes none of them.
        claims = () if key == "question" else tuple(sorted(present))
        edits.append(Edit(at=at, kind="design", key=key, what=what, value=after, claims=claims))
    # The first time that an edit is seen is the one that counts.
    first = {(edit.kind, edit.key, edit.what): edit for edit in reversed(edits)}
    return plan.replace(
        {"claims": frozen, "edits": tuple(sorted(first.values(), key=lambda edit: (edit.at, edit.key)))}
    )


def rewritten(study: Study, old: Plan, new: Plan, finished: Container[str], at: str) -> Plan:
    """`new` with the history of `old`; an arm that means something else after it had results is an edit.

    finished: digests of the runs that have results.
    """
    edits = list(old.edits)
    for name, arm in new.arms.items():
        before = old.arms.get(name)
        if before is None:
            if old.started is not None:
                edits.append(Edit(at=at, kind="arm", key=name, what=f"arm {name} was added"))
            continue
        # The same text on the same data may resolve to something else in a newer Winnow: nobody has edited it.
        if (before.written, before.data) == (arm.written, arm.data):
            continue
        if before.run(0, old.sources) == arm.run(0, new.sources):
            continue
        if any(before.run(seed, old.sources) in finished for seed in study.seeds):
            files = sorted({*old.sources, *new.sources})
            changed = [*differing(before.identity, arm.identity), *(["its data"] if before.data != arm.data else [])]
            changed += [file for file in files if old.sources.get(file) != new.sources.get(file)]
            what = f"arm {name} was rewritten: {', '.join(changed)}"
            claims = tuple(claim.id for claim in study.claims if name in claim.all_arms)
            edits.append(Edit(at=at, kind="arm", key=name, what=what, claims=claims))
    if old.started is not None:
        gone = [name for name in old.arms if name not in new.arms]
        edits += [Edit(at=at, kind="arm", key=name, what=f"arm {name} was removed") for name in gone]
    kept = {"claims": old.claims, "design": old.design, "started": old.started, "artifacts": old.artifacts}
    return new.replace({**kept, "edits": tuple(edits)})


def changed_design(study: Study, plan: Plan) -> dict[str, tuple[str, str]]:
    """What the frozen design says and what the study says now, where they differ.

    Seeds and looks may be added at the end: what is beyond the last look is read by the e-process.
    """
    found: dict[str, tuple[str, str]] = {}
    for key, after in design_of(study).items():
        before = plan.design.get(key, after)
        if before != after and not (key in ("seeds", "looks") and f"{after}, ".startswith(f"{before}, ")):
            found[key] = (before, after)
    return found


def exploratory(study: Study, plan: Plan) -> dict[str, str]:
    """Why each claim that is exploratory by its history is so, by claim. A change that was undone no longer counts."""
    changed = changed_design(study, plan)
    found: dict[str, list[str]] = {}
    for claim in study.claims:
        frozen = plan.claims[claim.id]
        reasons = [frozen.late] if frozen.late else []
        for edit in plan.edits:
            if claim.id not in edit.claims:
                continue
            stands = {
                "claim": frozen.hash != claim_hash(claim) == edit.value,
                "design": edit.key in changed and changed[edit.key][1] == edit.value,
                "arm": True,
            }
            if stands[edit.kind]:
                reasons.append(f"{edit.what} (seen {edit.at}, after the runs began)")
        if reasons:
            found[claim.id] = reasons
    return {name: "; ".join(reasons) for name, reasons in found.items()}


def differing(one: Any, other: Any, path: str = "") -> tuple[str, ...]:
    """Dotted paths at which two canonical configs differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return () if one == other else (path,)
    absent = object()
    found: list[str] = []
    for key in sorted({*one, *other}):
        found += differing(one.get(key, absent), other.get(key, absent), f"{path}.{key}" if path else str(key))
    return tuple(found)


def _late(study: Study, claim: Claim, results: Mapping[tuple[str, int], str]) -> str | None:
    """Why a claim that is first seen now comes after its results: every arm that it names already had some."""
    latest = ""
    for arm in claim.all_arms:
        times = [results[arm, seed] for seed in study.seeds if (arm, seed) in results]
        if not times:
            return None
        latest = max(latest, min(times))
    return f"it was claimed when every arm that it names already had results (since {latest})"

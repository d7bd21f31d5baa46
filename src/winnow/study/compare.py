"""From records to verdicts: which runs count, what is wrong with them, what the claims come to. Needs no torch.

A claim is invalid where a run that it rests on has an `invalid` finding, where two of its arms are bit-identical
although their configs differ, or where its runs cannot be compared. Everything else is said beside the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from winnow.errors import InputError
from winnow.records.run import Finding, RunRecord
from winnow.records.store import RunStore
from winnow.study.budget import budget_of
from winnow.study.dead_axes import recorded_dead_axes
from winnow.study.events import RunKey
from winnow.study.ledger import arm_identity, ledger, noise_key
from winnow.study.mixture import Runs, Unsound, unlike
from winnow.study.noise import Prior
from winnow.study.observations import Better, Observations
from winnow.study.parents import Parents
from winnow.study.plan import Plan, exploratory, load_plan, now, plan_lock, save_plan, seen, stale_arms, without_arms
from winnow.study.spec import Study
from winnow.study.succession import Succession, Successions
from winnow.study.verdict import Verdict, judge_claims
from winnow.train import health


@dataclass(frozen=True)
class Comparison:
    """Where a study stands."""

    study: Study
    plan: Plan
    runs: Runs
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]
    """What was noticed, most severe first."""
    stale: tuple[str, ...] = ()
    """Arms whose text changed since they were resolved: their runs are unknown until the next `run` or `check`."""
    observations: Mapping[str, Observations] = field(default_factory=dict[str, Observations])
    """What was judged, by metric."""
    succession: Succession = field(default_factory=Succession)
    """What the study replaces, and what it is replaced by: it is then withdrawn, and so is every verdict."""

    @property
    def recorded(self) -> frozenset[tuple[str, int]]:
        """(arm, seed) of every run that has a result."""
        return frozenset(
            (arm, seed) for arm, by_seed in self.runs.items() for seed, record in by_seed.items() if _has_result(record)
        )

    @property
    def frozen(self) -> str:
        """When the claims were frozen, as a sentence; empty where there are none, or nothing has frozen them yet.

        A study may find runs that an earlier one made: they are older than its claims, and are counted.
        """
        at = self.plan.started
        if at is None or not self.verdicts:
            return ""
        times = [record.provenance.started for by_seed in self.runs.values() for record in by_seed.values()]
        older = sum(time[:_SECONDS] < at[:_SECONDS] for time in times)
        if not older:
            return f"Claims frozen {at}, before the first run."
        return f"Claims frozen {at}; {older} of the runs {'is' if older == 1 else 'are'} older."

    @property
    def missing(self) -> tuple[RunKey, ...]:
        """Runs of the study that have no result yet, in the order of arms and seeds."""
        return tuple(
            RunKey(arm, seed, self.plan.run(arm, seed))
            for arm in self.study.arms
            if arm in self.plan.arms and arm not in self.stale
            for seed in self.study.seeds[: self.study.looks[-1]]
            if seed not in self.runs[arm] or not _has_result(self.runs[arm][seed])
        )


def compare(
    study: Study, store: RunStore, successions: Successions | None = None, *, plan: Plan | None = None
) -> Comparison:
    """Judge what is recorded. Raises InputError where the study was never resolved, or a record is damaged.

    plan: the study's, as it was just read from the store; None: it is read.
    successions: which studies replace which; None: as the store's plans say, which takes a look at each of them.
    An edit of the study since its runs began is noted in the plan the first time it is seen.
    """
    plan = plan or load_plan(store, study)
    if plan is None:
        if study.runs == "winnow":
            mend = "give `winnow run` or `winnow check` first: they resolve the arms"
            raise InputError(f"study {study.id!r} has no plan in {store.root}", file=study.file, mend=mend)
        plan = without_arms(study)
    found, problems = find_runs(study, plan, store)
    noted = _noted(study, plan, found)
    if noted != plan:
        with plan_lock(store, study):
            noted = _noted(study, load_plan(store, study) or plan, found)
            save_plan(store, study, noted)
    known = successions or Successions(store, declared={study.id: study.supersedes})
    return _placed(judge(study, noted, found, store, problems), known.of(study.id))


def _placed(comparison: Comparison, succession: Succession) -> Comparison:
    """The comparison with its study's place among those that replace each other."""
    new = succession.replaced_by
    verdicts = comparison.verdicts
    if new is not None:
        verdicts = tuple(
            verdict.replace(
                {
                    "status": "withdrawn",
                    "reason": f"withdrawn, replaced by {new.study}; it was {verdict.reason}",
                    "more_seeds": None,
                    "expected": True,
                }
            )
            for verdict in verdicts
        )
    return replace(comparison, verdicts=verdicts, succession=succession)


def _noted(study: Study, plan: Plan, runs: Runs) -> Plan:
    return seen(study, plan, _times(runs), now())


def _times(runs: Runs) -> dict[tuple[str, int], str]:
    return {
        (arm, seed): record.provenance.started
        for arm, by_seed in runs.items()
        for seed, record in by_seed.items()
        if _has_result(record)
    }


def find_runs(study: Study, plan: Plan, store: RunStore) -> tuple[dict[str, dict[int, RunRecord]], list[Finding]]:
    """Ended runs of every arm that is not stale, and what is wrong with recorded ones."""
    if study.runs == "recorded":
        return _recorded(study, store)
    stale = stale_arms(study, plan, Parents(store, study.changes).changed)
    digests = {(arm, seed): plan.run(arm, seed) for arm in study.arms if arm not in stale for seed in study.seeds}
    records = store.records(digests.values())
    runs: dict[str, dict[int, RunRecord]] = {arm: {} for arm in study.arms}
    for (arm, seed), digest in digests.items():
        if digest in records:
            runs[arm][seed] = records[digest]
    return runs, []


def result_times(study: Study, store: RunStore, plan: Plan) -> dict[tuple[str, int], str]:
    """When each run that has a result was made, by arm and seed."""
    return _times(find_runs(study, plan, store)[0])


def _recorded(study: Study, store: RunStore) -> tuple[dict[str, dict[int, RunRecord]], list[Finding]]:
    """Runs of `winnow.record`: those labelled with study and arm, whose config holds what the arm's table says."""
    runs: dict[str, dict[int, RunRecord]] = {arm: {} for arm in study.arms}
    problems: list[Finding] = []
    for record in store.records().values():
        arm, seed = record.label.arm, record.seed
        if record.label.study != study.id or arm not in runs or seed not in study.seeds:
            continue
        written = {**study.base, **study.arms[arm]}
        other = [key for key, value in written.items() if key not in record.config or record.config[key] != value]
        if other:
            message = f"seed {seed} was recorded with another {other[0]} than the arm says"
            problems.append(Finding(rule="other-config", severity="invalid", message=message, where=arm))
        before = runs[arm].get(seed)
        if before is not None and _has_result(before) and _has_result(record):
            message = f"seed {seed} was recorded twice, with different configs"
            problems.append(Finding(rule="recorded-twice", severity="invalid", message=message, where=arm))
        if before is None or _has_result(record):
            runs[arm][seed] = record
    return runs, problems


def judge(study: Study, plan: Plan, runs: Runs, store: RunStore, problems: list[Finding]) -> Comparison:
    """Verdicts and findings on these runs."""
    changed = Parents(store, study.changes).changed
    stale = () if study.runs == "recorded" else stale_arms(study, plan, changed)
    ended = {arm: {s: r for s, r in by_seed.items() if _has_result(r)} for arm, by_seed in runs.items()}
    invalid: dict[str, str] = {}
    findings = [*problems]
    for finding in problems:
        if finding.severity == "invalid" and finding.where is not None:
            invalid.setdefault(finding.where, f"{finding.where}: {finding.message}")
    for finding, claims in (*_unsound(study, ended), *recorded_dead_axes(study, ended), *unlike(study, ended, store)):
        findings.append(finding)
        for name in claims:
            invalid.setdefault(name, finding.message)
    findings += _said(study, plan, runs, stale)
    metrics = dict.fromkeys((study.endpoint.metric, *(claim.metric for claim in study.claims)))
    observations: dict[str, Observations] = {}
    for metric in metrics:
        values, unmeasured = _values(study, metric, ended, store)
        for finding, claims in unmeasured:
            findings.append(finding)
            invalid |= dict.fromkeys(claims, finding.message)
        observations[metric] = Observations(
            values, metric, _better(study, plan, metric), study.seeds, control=study.control
        )
    reasons = exploratory(study, plan)
    claims = [claim.replace({"exploratory": True}) if claim.id in reasons else claim for claim in study.claims]
    verdicts = judge_claims(
        claims,
        observations,
        study.rule,
        judged_looks(study, plan),
        prior={} if study.rule.paired else _priors(plan, ended, store, list(metrics)),
        invalid=invalid,
        budget={claim.id: budget_of([ended[arm] for arm in claim.all_arms]) for claim in claims},
        twins={pair for claim in claims for pair in claim.pairs if _twins(*(ended[arm] for arm in pair))},
    )
    verdicts = tuple(
        verdict.replace({"notes": (*verdict.notes, f"exploratory: {reasons[verdict.claim.id]}")})
        if verdict.claim.id in reasons
        else verdict
        for verdict in verdicts
    )
    order = ("invalid", "warning", "notice")
    ordered = sorted(dict.fromkeys(findings), key=lambda item: order.index(item.severity))
    return Comparison(study, plan, runs, verdicts, tuple(ordered), stale, observations)


def _twins(one: Mapping[int, RunRecord], other: Mapping[int, RunRecord]) -> bool:
    """Whether one arm goes on with the runs that the other made without a break, or both with the same ones."""
    common = [seed for seed in one if seed in other]
    return bool(common) and all(health.goes_on(one[seed], other[seed]) for seed in common)


def judged_looks(study: Study, plan: Plan) -> tuple[int, ...]:
    """The looks by which claims are read: the frozen ones where looks were only added at the end.

    Seeds beyond the last frozen look are then read by the e-process, which permits them.
    """
    frozen = tuple(int(look) for look in plan.design.get("looks", "").split(", ") if look)
    return frozen if frozen and study.looks[: len(frozen)] == frozen else study.looks


def _has_result(record: RunRecord) -> bool:
    return record.status in ("finished", "diverged")


def _better(study: Study, plan: Plan, metric: str) -> Better:
    if metric == study.endpoint.metric:
        return study.endpoint.better
    for arm in plan.arms.values():
        if metric in arm.metrics:
            return arm.metrics[metric]
    raise study.lines.error(
        f"nothing says whether {metric} is better lower or higher",
        ("claims", next(claim.id for claim in study.claims if claim.metric == metric)),
        f"make it the endpoint, or claim on {study.endpoint.metric}",
    )


def _values(
    study: Study, metric: str, ended: Runs, store: RunStore
) -> tuple[dict[str, dict[int | str, float | None]], list[Unsound]]:
    values: dict[str, dict[int | str, float | None]] = {}
    unmeasured: list[Unsound] = []
    for arm, by_seed in ended.items():
        values[arm] = {}
        claims = tuple(claim.id for claim in study.claims if claim.metric == metric and arm in claim.all_arms)
        for seed, record in by_seed.items():
            value = _value(record, metric, study.endpoint.step, store)
            if value is None or not math.isnan(value):
                values[arm][seed] = value
            elif claims:
                message = f"{arm} seed {seed} never measured {metric}"
                message += "" if study.endpoint.step is None else f" at step {study.endpoint.step}"
                finding = Finding(rule="unmeasured", severity="invalid", message=message)
                unmeasured.append((finding, claims))
    return values, unmeasured


def _value(record: RunRecord, metric: str, step: int | None, store: RunStore) -> float | None:
    """The run's outcome: a number, None where it diverged, NaN where it was not measured."""
    if step is None:
        return record.outcome(metric) if metric in record.final or record.status == "diverged" else math.nan
    found = next((row[metric] for row in store.metrics(record.digest) if row["step"] == step and metric in row), None)
    if found is None:
        return None if record.status == "diverged" else math.nan
    return float(found) if math.isfinite(found) else None


_SECONDS = len("2026-01-01T00:00:00")
"""Times are ISO text in UTC; up to the seconds they sort as the times do."""


def _priors(plan: Plan, ended: Runs, store: RunStore, metrics: list[str]) -> dict[str, Prior]:
    """The ledger's word on each metric as it was when the study began, from arms of other studies than these.

    Runs that were made later would move verdicts that have been given.
    """
    own = [record for by_seed in ended.values() for record in by_seed.values()]
    if not own:
        return {}
    began = (plan.started or min(record.provenance.started for record in own))[:_SECONDS]
    earlier = (record for record in store.records().values() if record.provenance.started[:_SECONDS] < began)
    known = ledger(earlier, metrics)
    excluded = {arm_identity(record) for record in own}
    found = {metric: known.prior(noise_key(own[0], metric), excluded) for metric in metrics}
    return {metric: prior for metric, prior in found.items() if prior is not None}


# What makes claims invalid


def _unsound(study: Study, ended: Runs) -> Iterator[Unsound]:
    """Invalid findings of runs, settings without effect, options of an arm that were never read."""
    for arm, by_seed in ended.items():
        claims = tuple(claim.id for claim in study.claims if arm in claim.all_arms)
        for item in _once(arm, by_seed, invalid=True):
            yield item, claims
    for item in health.no_effect(ended):
        pair = set((item.where or "").split(", "))
        yield item, tuple(claim.id for claim in study.claims if any(set(two) == pair for two in claim.pairs))
    for claim in study.claims:
        for one, other in claim.pairs:
            for a, b in ((one, other), (other, one)):
                common = [seed for seed in ended[a] if seed in ended[b]]
                for item in health.unread_by_arm(ended[a][common[0]], ended[b][common[0]]) if common else ():
                    message = f"{a} was not what was written: {item.message}"
                    yield item.model_copy(update={"message": message}), (claim.id,)
            common = [seed for seed in ended[one] if seed in ended[other]]
            for item in health.initial_spread(ended[one][common[0]], ended[other][common[0]]) if common else ():
                yield item, (claim.id,)


# What is said beside the verdicts


def _said(study: Study, plan: Plan, runs: Runs, stale: tuple[str, ...]) -> Iterator[Finding]:
    records = [record for by_seed in runs.values() for record in by_seed.values()]
    measured = any(name.startswith("inside/") for record in records for name in record.final)
    for arm in stale:
        message = f"arm {arm} was written anew since it was resolved; its runs are not known yet"
        mend = "`winnow run` or `winnow check` resolves it"
        where = study.lines.where(("arms", arm))
        yield Finding(rule="stale-arm", severity="warning", message=message, where=where, mend=mend)
    for arm, by_seed in runs.items():
        failed = [seed for seed, record in by_seed.items() if not _has_result(record)]
        if failed:
            lines = (by_seed[failed[0]].error or by_seed[failed[0]].status).strip().splitlines()
            message = f"{_count(failed)} failed ({lines[-1]})"
            mend = "`winnow run` tries again; `winnow show` has the traceback"
            yield Finding(rule="failed-runs", severity="warning", message=message, where=arm, mend=mend)
        diverged = [seed for seed, record in by_seed.items() if record.status == "diverged"]
        if diverged:
            message = f"{_count(diverged)} diverged; divergence is an outcome of its own, not a missing number"
            yield Finding(rule="diverged-runs", severity="warning", message=message, where=arm)
        if any(not record.watched for record in by_seed.values()):
            message = "made by another program: health could not look inside"
            yield Finding(rule="unwatched", severity="notice", message=message, where=arm)
        for item in _once(arm, by_seed, invalid=False):
            if not (item.rule == "nothing-inside" and measured):  # softmax beside a mechanism that can be looked into
                yield item
    yield from _unequal(study, runs)
    for edit in plan.edits:
        message = f"{edit.what} (seen {edit.at}, after the runs began)"
        yield Finding(rule="edited-after-start", severity="notice", message=message, where=edit.key)
    if judged_looks(study, plan) != study.looks:
        message = f"looks were added after the runs began: seeds beyond {judged_looks(study, plan)[-1]} are read by the"
        yield Finding(rule="looks-added", severity="notice", message=f"{message} e-process, which permits them")


def _once(arm: str, by_seed: Mapping[int, RunRecord], *, invalid: bool) -> Iterator[Finding]:
    """Findings of an arm's runs that make claims invalid, or the others: each once, with the seeds that have it.

    A run may have one twice, at its start and at its end; what is worse at the end is another finding.
    """
    seeds: dict[str, dict[int, None]] = {}
    first: dict[str, Finding] = {}
    for seed, record in by_seed.items():
        for item in record.findings:
            if (item.severity == "invalid") == invalid:
                key = f"{item.rule} {item.where} {item.severity}"
                first.setdefault(key, item)
                seeds.setdefault(key, {})[seed] = None
    for key, item in first.items():
        yield item.model_copy(update={"message": f"{arm}, {_count(list(seeds[key]))}: {item.message}"})


def _unequal(study: Study, runs: Runs) -> Iterator[Finding]:
    """Arms of a claim whose seeds differ, other than by the looks: those give some arms the first few only."""
    for claim in study.claims:
        have = {arm: {seed for seed, record in runs[arm].items() if _has_result(record)} for arm in claim.all_arms}
        common = len(set.intersection(*have.values()))
        fewest = max(map(len, have.values())) if study.runs == "recorded" else min(map(len, have.values()))
        if common < fewest and all(have.values()):
            counts = ", ".join(f"{arm} {len(seeds)}" for arm, seeds in have.items())
            message = f"the arms of claim {claim.id} have unequal seeds ({counts}): {common} are common"
            where = study.lines.where(("claims", claim.id))
            yield Finding(rule="unequal-seeds", severity="notice", message=message, where=where)


def _count(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def plain(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON data, for scripts."""
    return {
        "study": comparison.study.id,
        "supersedes": comparison.study.supersedes,
        "withdrawn": None if (new := comparison.succession.replaced_by) is None else {"by": new.study},
        "verdicts": [verdict.dump() for verdict in comparison.verdicts],
        "findings": [finding.dump() for finding in comparison.findings],
        "missing": [[key.arm, key.seed, key.digest] for key in comparison.missing],
        "stale": list(comparison.stale),
    }

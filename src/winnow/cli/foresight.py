"""What a study will cost and what it can see, before anything runs: `winnow plan`, and the head of `winnow run`."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from winnow.cli import output
from winnow.records.provenance import hardware_class
from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.study.claims import Claim
from winnow.study.compare import compare
from winnow.study.ledger import Pairing, ledger, pairing
from winnow.study.needs import open_arms
from winnow.study.noise import NoiseKey, Prior
from winnow.study.plan import Plan, load_plan
from winnow.study.planning import plan_design
from winnow.study.spec import Study


@dataclass(frozen=True)
class Foresight:
    """Cost of a study and the smallest effect that each claim can show."""

    study: str
    arms: int
    looks: tuple[int, ...]
    recorded: int
    """Runs of the study that have a result."""
    missing: tuple[int, ...]
    """Runs still to do up to each look, if no further claim is decided."""
    tokens: int
    """Training tokens of the missing runs up to the last look."""
    seconds: tuple[float, ...] | None
    """Compute time of the missing runs up to each look, one run at a time; None until a run of each arm was timed."""
    claims: tuple[ClaimForesight, ...]
    warnings: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {**vars(self), "claims": [vars(claim) for claim in self.claims]}


@dataclass(frozen=True)
class ClaimForesight:
    """The smallest effect that a claim detects at the last look with 80 % power."""

    claim: str
    metric: str
    seeds: int
    in_sd: float
    """In standard deviations of the seeds."""
    effect: float | None
    """In units of the metric; None while the noise ledger knows too little."""
    seed_sd: float | None
    """What the ledger expects of the seeds."""
    ledger_arms: int
    """Arms that this rests on."""
    rho: float | None
    """Pairing correlation, as runs of this kind in the store have shown it; None: unknown, and taken to be 0."""
    rho_pairs: int
    """Pairs of arms that this rests on."""


def foresee(
    study: Study,
    plan: Plan,
    store: RunStore,
    *,
    device: str = "cpu",
    threads: int = 1,
    seeds: Collection[int] | None = None,
) -> Foresight:
    """Cost and power of a study that has been resolved. The device decides which noise and which speed is known.

    seeds: only these are run now; None: as the looks say. An arm that no open claim needs is run at the first look
    alone, as a launch does.
    """
    arms = [arm for arm in study.arms if arm in plan.arms]
    digests = {(arm, seed): plan.run(arm, seed) for arm in arms for seed in study.seeds}
    records = store.records(digests.values())
    done = {key for key, run in digests.items() if run in records and records[run].status in ("finished", "diverged")}
    wanted = [seed for seed in study.seeds if seeds is None or seed in seeds]
    needed = _needed(study, plan, store)
    missing: list[list[tuple[str, int]]] = []
    for look in study.looks:
        now = [arm for arm in arms if arm in needed or look == study.looks[0]]
        runs = [(arm, seed) for arm in now for seed in study.seeds[:look] if seed in wanted and (arm, seed) not in done]
        missing.append(list(dict.fromkeys([*(missing[-1] if missing else ()), *runs])))
    per_run = {arm: int(plan.arms[arm].facts.get("tokens", 0)) for arm in arms}
    hardware = hardware_class(device, threads)
    everything = store.records() if study.claims or missing[-1] else {}
    speed = {arm: _seconds(plan, arm, list(everything.values()), hardware) for arm in arms}
    seconds = None
    if all(speed[arm] is not None for arm, _ in missing[-1]):
        seconds = tuple(sum(speed[arm] or 0.0 for arm, _ in runs) for runs in missing)
    known = ledger(everything.values(), dict.fromkeys(claim.metric for claim in study.claims))
    claims: list[ClaimForesight] = []
    warnings: list[str] = []
    shared: dict[NoiseKey, Pairing | None] = {}
    for claim in study.claims:
        key = _key(plan, claim, hardware) if _key_known(plan, claim) else None
        prior = None if key is None else known.prior(key)
        if key is not None and key not in shared:
            shared[key] = pairing(everything.values(), key) if study.rule.paired else None
        found, more = _claim(study, claim, prior, None if key is None else shared[key])
        if found is not None:
            claims.append(found)
        warnings += more
    return Foresight(
        study=study.id,
        arms=len(study.arms),
        looks=study.looks,
        recorded=len(done),
        missing=tuple(len(runs) for runs in missing),
        tokens=sum(per_run[arm] for arm, _ in missing[-1]),
        seconds=seconds,
        claims=tuple(claims),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def foresight_lines(found: Foresight, *, jobs: int) -> list[str]:
    """For people."""
    seeds = ", ".join(map(str, found.looks))
    lines = [f"  {found.arms} arms, judged at {seeds} seeds each"]
    first, last = found.missing[0], found.missing[-1]
    if not last:
        lines.append(f"  runs to do: none ({found.recorded} recorded)")
    else:
        to_do = (
            str(first)
            if first == last
            else f"{first} for the first look, at most {last}"
            if first
            else f"at most {last}"
        )
        lines.append(f"  runs to do: {to_do} ({found.recorded} recorded), {output.count(found.tokens)} tokens in all")
        if found.seconds is not None:
            low, high = (output.duration(seconds / jobs) for seconds in (found.seconds[0], found.seconds[-1]))
            span = (
                high if first == last else f"{low} for the first look, at most {high}" if first else f"at most {high}"
            )
            lines.append(f"  time: {span}, by the runs that are recorded, {jobs} at once")
        else:
            lines.append("  time: not known yet; it is measured before the first run")
    if found.claims:
        known = [claim for claim in found.claims if claim.seed_sd is not None]
        arms = max((claim.ledger_arms for claim in known), default=0)
        source = f"noise ledger of {arms} arms" if known else "no ledger yet: in seed standard deviations"
        rhos = sorted({f"{claim.rho:.2f}" for claim in found.claims if claim.rho is not None})
        pairs = max(claim.rho_pairs for claim in found.claims)
        help_ = (
            f"paired at rho {' to '.join(dict.fromkeys((rhos[0], rhos[-1])))} of {pairs} measured pairs"
            if rhos
            else "without help from pairing"
        )
        lines.append(f"  smallest detectable effect, 80 % power, {help_} ({source})")
        lines += output.columns([[claim.claim, _effect(claim), claim.metric] for claim in found.claims], indent="    ")
    return lines + [f"  note: {text}" for text in found.warnings]


def _effect(claim: ClaimForesight) -> str:
    if claim.effect is not None:
        return f"{claim.effect:.2g}"
    return f"{claim.in_sd:.1f} sd" if math.isfinite(claim.in_sd) else "none at one seed"


def _claim(
    study: Study, claim: Claim, prior: Prior | None, shared: Pairing | None
) -> tuple[ClaimForesight | None, tuple[str, ...]]:
    if not claim.pairs:
        return None, ()
    pairs = {frozenset(pair) for each in study.claims for pair in each.pairs}
    pairs |= {frozenset((arm, study.control)) for arm in study.arms if arm != study.control}
    design = plan_design(
        study.looks,
        paired=study.rule.paired,
        pairs=len(pairs),
        claims=sum(each.confirmatory for each in study.claims),
        alpha=study.rule.alpha,
        prior=prior.weight if prior is not None else 0,
        sd=prior.sd if prior is not None else None,
        rho=0.0 if shared is None else shared.rho,
        equalities=(claim.within,) if claim.within is not None else (),
    )
    found = ClaimForesight(
        claim=claim.id,
        metric=claim.metric,
        seeds=design.seeds,
        in_sd=design.detectable_in_sd,
        effect=design.detectable,
        seed_sd=prior.sd if prior is not None else None,
        ledger_arms=prior.arms if prior is not None else 0,
        rho=None if shared is None else shared.rho,
        rho_pairs=0 if shared is None else shared.pairs,
    )
    return found, design.warnings


def _needed(study: Study, plan: Plan, store: RunStore) -> tuple[str, ...]:
    """Arms that go beyond the first look: those of claims that the records leave open."""
    stored = load_plan(store, study)
    known = stored is not None and all(
        arm in stored.arms and stored.run(arm, 0) == plan.run(arm, 0) for arm in plan.arms
    )
    if not known:  # nothing is recorded of what these arms mean now
        claimed = {arm for claim in study.claims for arm in claim.all_arms}
        return tuple(arm for arm in study.arms if arm in claimed or not claimed)
    return open_arms(study, compare(study, store).verdicts)


def _key_known(plan: Plan, claim: Claim) -> bool:
    return claim.all_arms[0] in plan.arms and "val_digest" in plan.arms[claim.all_arms[0]].facts


def _key(plan: Plan, claim: Claim, hardware: str) -> NoiseKey:
    """Under which the ledger keeps the noise of a claim's arms; as `winnow.study.ledger` does for records."""
    facts = plan.arms[claim.all_arms[0]].facts
    return NoiseKey(
        metric=claim.metric,
        validation=str(facts["val_digest"]),
        parameters=NoiseKey.near(int(facts.get("trainable", 0))),
        tokens=NoiseKey.near(int(facts.get("tokens", 0))),
        hardware=hardware,
        deterministic=True,
    )


def _seconds(plan: Plan, arm: str, records: Sequence[RunRecord], hardware: str) -> float | None:
    """Seconds that a run of this arm took, or one of the same size and budget, on this class of machine; a median."""
    facts = plan.arms[arm].facts
    alike = ("flops_per_token", "tokens")
    times = sorted(
        float(record.facts["seconds"])
        for record in records
        if record.provenance.hardware == hardware
        and "seconds" in record.facts
        and all(record.facts.get(name) == facts.get(name) for name in alike)
    )
    return times[len(times) // 2] if times else None

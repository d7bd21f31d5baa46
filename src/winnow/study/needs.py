"""Which arms are worth more seeds: those that an open claim needs."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable

from winnow.study.spec import Study
from winnow.study.verdict import Verdict


def missing_runs(
    study: Study,
    verdicts: Iterable[Verdict],
    recorded: Container[tuple[str, int]],
    *,
    seeds: Collection[int] | None = None,
    also: Collection[tuple[str, int]] = (),
) -> tuple[tuple[str, int], ...]:
    """(arm, seed) of every run that is still to be made if no further claim is decided, look by look.

    recorded: (arm, seed) that have a result. seeds: only these. also: runs that are wanted whatever the claims need.
    """
    needed = open_arms(study, verdicts)
    found: dict[tuple[str, int], None] = {}
    for number, look in enumerate(study.looks):
        for arm in study.arms:
            for seed in study.seeds[:look]:
                run = (arm, seed)
                wanted = number == 0 or arm in needed or run in also
                if wanted and run not in recorded and (seeds is None or seed in seeds):
                    found[run] = None
    return tuple(found)


def open_arms(study: Study, verdicts: Iterable[Verdict], failed: Collection[str] = ()) -> tuple[str, ...]:
    """Arms that a claim needs which is still undecided; all arms where nothing is claimed.

    failed: arms of which a run could not be made. More seeds of the others would not help a claim on such an arm.
    """
    if not study.claims:
        return tuple(arm for arm in study.arms if arm not in failed)
    needed = {
        arm
        for verdict in verdicts
        if verdict.status == "undecided" and not any(arm in failed for arm in verdict.claim.all_arms)
        for arm in verdict.claim.all_arms
    }
    return tuple(arm for arm in study.arms if arm in needed)

"""Which arms are worth more seeds: those that an open claim needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from winnow.study.spec import Study
from winnow.study.verdict import Verdict


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

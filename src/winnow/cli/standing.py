"""Where studies stand: runs by state, claims by answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from winnow.cli import output
from winnow.cli.verdict_text import say_verdicts
from winnow.errors import InputError
from winnow.records.artifacts import arrived
from winnow.records.remote import Remote
from winnow.records.store import RunStore
from winnow.study.compare import Comparison, compare
from winnow.study.parents import Parents
from winnow.study.plan import Plan, load_plan, stale_arms
from winnow.study.spec import Study

NOT_UPLOADED = "finished, not uploaded"
"""A run that has its record, where the study asks for uploads and this one has not arrived."""
STATES = ("finished", NOT_UPLOADED, "running", "interrupted", "failed", "diverged", "missing", "stale")


def say_comparison(comparison: Comparison) -> None:
    """A block per claim, then what was noticed."""
    if comparison.verdicts:
        say_verdicts(comparison.verdicts)
    else:
        output.say(f"{comparison.study.id} claims nothing")
    if comparison.findings:
        output.say("\nfindings")
        for item in comparison.findings:
            output.say(f"  {output.finding_line(item.severity, item.rule, item.message, item.where, item.mend)}")


def study_rows(study: Study, records: RunStore) -> dict[str, Any]:
    """Runs of each arm by state, and every claim's status, as JSON data."""
    plan = load_plan(records, study)
    arms: dict[str, dict[str, Any]] = {}
    comparison = None
    if plan is None and study.runs == "winnow":
        arms = {arm: {"missing": list(study.seeds)} for arm in study.arms}
    else:
        comparison = compare(study, records)
        stale = () if plan is None else stale_arms(study, plan, Parents(records, study.changes).changed)
        url = place_of(study, plan)
        for arm in study.arms:
            found = arms[arm] = {}
            for seed in study.seeds:
                record = comparison.runs.get(arm, {}).get(seed)
                if record is not None:
                    state = record.status
                    if state == "finished" and url is not None and not arrived(records, record.digest, url):
                        state = NOT_UPLOADED
                elif arm in stale:
                    state = "stale"
                elif plan is None or arm not in plan.arms:
                    state = "missing"
                else:
                    state = records.state(plan.run(arm, seed))
                found.setdefault(state, []).append(seed)
    verdicts = () if comparison is None else comparison.verdicts
    known = {verdict.claim.id: verdict.status for verdict in verdicts}
    return {
        "study": study.id,
        "question": study.question,
        "arms": arms,
        "claims": {claim.id: known.get(claim.id, "undecided") for claim in study.claims},
        "unanswered": sum(known.get(claim.id, "undecided") == "undecided" for claim in study.claims),
        "started": None if plan is None else plan.started,
    }


def place_of(study: Study, plan: Plan | None) -> str | None:
    """Where the study's runs are to be uploaded, without credentials: its own key, else what `run` was last told."""
    if study.artifacts is not None:
        return Remote(study.artifacts).url
    return None if plan is None else plan.artifacts


def say_studies(found: Sequence[dict[str, Any]]) -> None:
    """The rows of `study_rows`, for people."""
    for number, study in enumerate(found):
        if number:
            output.say()
        output.say(f"{output.bold(study['study'])}{': ' + study['question'] if study['question'] else ''}")
        shown = [state for state in STATES if any(state in arm for arm in study["arms"].values())]
        rows = [[arm, *(str(len(states.get(state, []))) for state in shown)] for arm, states in study["arms"].items()]
        for line in output.columns(rows, header=["arm", *shown], indent="  "):
            output.say(line)
        for claim, status in study["claims"].items():
            output.say(f"  {claim}: {output.word(status)}")
        if study["claims"]:
            output.say(f"  {study['unanswered']} of {len(study['claims'])} claims have no answer yet")


def store_rows(records: RunStore) -> list[dict[str, Any]]:
    """Every run of a store, as JSON data."""
    known = records.records()
    rows: list[dict[str, Any]] = []
    for digest in records.digests():
        found = known.get(digest)
        about = found if found is not None else _identity(records, digest)
        rows.append(
            {
                "run": digest,
                "study": None if about is None else about.label.study,
                "arm": None if about is None else about.label.arm,
                "seed": None if about is None else about.seed,
                "state": found.status if found is not None else records.state(digest),
            }
        )
    return sorted(rows, key=lambda row: (str(row["study"]), str(row["arm"]), row["seed"] or 0))


def _identity(records: RunStore, digest: str):
    try:
        return records.identity(digest)
    except InputError:
        return None  # a damaged file: the run is listed by its digest, `winnow show` says what is wrong


def say_store(records: RunStore, rows: Sequence[dict[str, Any]]) -> None:
    """The rows of `store_rows`, for people."""
    if not rows:
        output.say(f"no runs in {records.root}")
        return
    cells = [[row["run"], f"{row['study']}/{row['arm']}/{row['seed']}", output.word(row["state"])] for row in rows]
    for line in output.columns(cells, header=["run", "label", "state"]):
        output.say(line)

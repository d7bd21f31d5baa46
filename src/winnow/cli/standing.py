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
from winnow.study.needs import missing_runs
from winnow.study.plan import Plan, load_plan, rewritten_keys
from winnow.study.spec import Study
from winnow.study.succession import Successions

NOT_UPLOADED = "finished, not uploaded"
"""A run that has its record, where the study asks for uploads and this one has not arrived."""
PLANNED = "planned"
"""A run that is still to be made, if no further claim is decided before."""
NOT_NEEDED = "not needed"
"""A run that no claim needs any more."""
STATES = ("finished", NOT_UPLOADED, "running", "interrupted", "failed", "diverged", PLANNED, "stale", NOT_NEEDED)


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


def study_rows(study: Study, records: RunStore, successions: Successions) -> dict[str, Any]:
    """Runs of each arm by state, every claim's answer and the state of its runs, as JSON data."""
    plan = load_plan(records, study)
    comparison = None if plan is None and study.runs == "winnow" else compare(study, records, successions)
    states = _states(study, plan, comparison, records)
    verdicts = {} if comparison is None else {verdict.claim.id: verdict for verdict in comparison.verdicts}
    new = successions.of(study.id).replaced_by
    unjudged = "undecided" if new is None else "withdrawn"
    claims: dict[str, dict[str, Any]] = {}
    for claim in study.claims:
        verdict = verdicts.get(claim.id)
        status = unjudged if verdict is None else verdict.status
        claims[claim.id] = {
            "claim": claim.text,
            "status": status,
            "exploratory": claim.exploratory if verdict is None else verdict.exploratory,
            # A claim that is written to show that something is dead has its answer where it is.
            "answered": status in ("supported", "refuted") or (status == "invalid" and claim.expect == "invalid"),
            "runs": state_of([states[arm, seed] for arm in claim.all_arms for seed in study.seeds]),
        }
    arms: dict[str, dict[str, list[int]]] = {arm: {} for arm in study.arms}
    for (arm, seed), state in states.items():
        arms[arm].setdefault(state, []).append(seed)
    return {
        "study": study.id,
        "question": study.question,
        "state": "withdrawn" if new is not None else state_of(list(states.values())),
        "supersedes": study.supersedes,
        "superseded_by": None if new is None else new.study,
        "arms": arms,
        "claims": claims,
        "unanswered": [name for name, claim in claims.items() if not claim["answered"] and new is None],
        "started": None if plan is None else plan.started,
        "rewritten": {} if comparison is None else _rewritten(comparison),
        "edits": [] if comparison is None else [edit.dump() for edit in comparison.plan.edits],
    }


def _states(
    study: Study, plan: Plan | None, comparison: Comparison | None, records: RunStore
) -> dict[tuple[str, int], str]:
    """The state of every run that the study could have."""
    if comparison is None:
        return {(arm, seed): PLANNED for arm in study.arms for seed in study.seeds}
    url = place_of(study, plan)
    missing = set(missing_runs(study, comparison.verdicts, comparison.recorded))
    found: dict[tuple[str, int], str] = {}
    for arm in study.arms:
        for seed in study.seeds:
            record = comparison.runs.get(arm, {}).get(seed)
            if record is not None:
                state = record.status
                if state == "finished" and url is not None and not arrived(records, record.digest, url):
                    state = NOT_UPLOADED
            elif arm in comparison.stale:
                state = "stale"
            else:
                known = plan is not None and arm in plan.arms and study.runs == "winnow"
                state = records.state(plan.run(arm, seed)) if known and plan is not None else "missing"
                if state == "missing":
                    wanted = study.runs == "recorded" or (arm, seed) in missing
                    state = PLANNED if wanted else NOT_NEEDED
            found[arm, seed] = state
    return found


def _rewritten(comparison: Comparison) -> dict[str, tuple[str, ...] | None]:
    """What was rewritten of each arm that was resolved before; None = not known. An arm that was added is none."""
    study, plan = comparison.study, comparison.plan
    return {arm: rewritten_keys(study, plan, arm) for arm in comparison.stale if arm in plan.arms}


def state_of(runs: Sequence[str]) -> str:
    """One word for several runs: what most needs attention, else how far they are."""
    for state in ("running", "stale", "failed", "interrupted"):
        if state in runs:
            return state
    left = PLANNED in runs
    begun = any(state not in (PLANNED, NOT_NEEDED) for state in runs)
    return ("in progress" if begun else PLANNED) if left else "finished"


def place_of(study: Study, plan: Plan | None) -> str | None:
    """Where the study's runs are to be uploaded, without credentials: its own key, else what `run` was last told."""
    if study.artifacts is not None:
        return Remote(study.artifacts).url
    return None if plan is None else plan.artifacts


def say_studies(found: Sequence[dict[str, Any]]) -> None:
    """The rows of `study_rows`, for people, and over all studies the claims that have no answer."""
    for number, study in enumerate(found):
        if number:
            output.say()
        new = study["superseded_by"]
        state = output.word(study["state"]) + (f", replaced by {new}" if new else "")
        output.say(f"{output.bold(study['study'])} ({state}){': ' + study['question'] if study['question'] else ''}")
        shown = [state for state in STATES if any(state in arm for arm in study["arms"].values())]
        rows = [[arm, *(str(len(states.get(state, []))) for state in shown)] for arm, states in study["arms"].items()]
        for line in output.columns(rows, header=["arm", *shown], indent="  "):
            output.say(line)
        for name, claim in study["claims"].items():
            mark = " (exploratory)" if claim["exploratory"] else ""
            output.say(f"  {name}: {output.word(claim['status'])}{mark}; runs {output.word(claim['runs'])}")
        _say_edits(study)
    claims = sum(len(study["claims"]) for study in found)
    withdrawn = sum(claim["status"] == "withdrawn" for study in found for claim in study["claims"].values())
    open_ = [f"{study['study']}/{name}" for study in found for name in study["unanswered"]]
    if claims:
        said = f"{len(open_)} of {claims} claims have no answer yet{': ' if open_ else ''}{', '.join(open_)}"
        output.say(f"\n{said}{f'; {withdrawn} withdrawn' if withdrawn else ''}")


def _say_edits(study: dict[str, Any]) -> None:
    """What was rewritten: first what no run has been resolved from yet, then what was seen after the runs began."""
    for arm, keys in study["rewritten"].items():
        what = "its keys are not known" if keys is None else ", ".join(keys) or "the same settings in other places"
        output.say(f"  {arm} was rewritten since it was resolved: {what}")
    for edit in study["edits"]:
        output.say(f"  {edit['what']} (seen {edit['at']}, after the runs began)")


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

"""What a page says of one study, as plain texts and numbers: verdicts, arms, pictures, findings, provenance, runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from winnow.analysis.pictures import Drawing, study_drawings
from winnow.analysis.reproduce import AGAIN, command, provisos
from winnow.records.provenance import known_commits
from winnow.records.run import Finding, RunRecord
from winnow.records.store import RunStore
from winnow.study.compare import Comparison
from winnow.study.needs import missing_runs
from winnow.study.ranking import shown_ranking
from winnow.study.spec import Study
from winnow.study.succession import Place
from winnow.study.tables import effect_and_interval, rows, text_columns
from winnow.study.verdict import Verdict


@dataclass(frozen=True)
class ClaimLine:
    """One claim as a page shows it."""

    study: str
    id: str
    text: str
    status: str
    mark: str
    """What qualifies the status: "exploratory", "unexpected", "as the author expects"; empty = nothing."""
    effect: str = ""
    interval: str = ""
    n: int = 0
    reason: str = ""
    """Without the status in front."""
    notes: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return f"{self.study}.{self.id}"


@dataclass(frozen=True)
class RunLine:
    """One recorded run."""

    arm: str
    seed: int
    digest: str
    status: str
    value: str
    """Of the endpoint."""
    steps: int
    started: str
    weights: str
    """Start of the SHA-256 of its final weights; empty = not watched."""
    command: str


@dataclass(frozen=True)
class Linked:
    """Another study, and the address of its results from the page; empty = not known."""

    study: str
    address: str


@dataclass(frozen=True)
class Section:
    """Everything that a page says of one study."""

    id: str
    question: str
    written: str
    """The study as its file declares it."""
    standing: str
    claims: tuple[ClaimLine, ...]
    heads: Sequence[str] = ()
    arms: Sequence[Sequence[str]] = ()
    ranking: str = ""
    """How to read the letters of the arms' table, or why there are none; empty where none are shown."""
    drawings: Mapping[str, Drawing] | None = None
    metric: str = ""
    findings: tuple[Finding, ...] = ()
    provenance: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What is known of how the runs were made: a name, and every value that occurs."""
    runs: tuple[RunLine, ...] = ()
    provisos: tuple[str, ...] = ()
    replaced_by: Linked | None = None
    """The study that withdraws this one."""
    replaces: Linked | None = None
    again: str = AGAIN

    @property
    def anchor(self) -> str:
        """Its id in the page: that of its block in a notebook."""
        return f"study-{self.id}"


def section(
    comparison: Comparison,
    store: RunStore,
    written: str,
    settings: Sequence[str] = (),
    address: Callable[[Place], str] = lambda _: "",
) -> Section:
    """A study that has a plan. written: its text; settings: `--set` as given; address: of another study's results."""
    study = comparison.study
    records = [record for by_seed in comparison.runs.values() for record in by_seed.values()]
    new, old = comparison.succession.replaced_by, comparison.succession.replaces
    order = shown_ranking(comparison) if records else None
    heads, arms = text_columns(comparison, rows(comparison), order)
    known = None
    if records and study.file is not None:
        known = known_commits(study.folder, {made.commit for r in records if (made := r.provenance).commit})
    return Section(
        id=study.id,
        question=study.question,
        written=written,
        standing=_standing(comparison, len(records)),
        claims=tuple(claim_line(study, verdict) for verdict in comparison.verdicts),
        heads=heads,
        arms=arms,
        ranking="" if order is None else order.text,
        drawings=study_drawings(comparison, store),
        metric=study.endpoint.metric,
        findings=tuple(_placed(finding) for finding in comparison.findings),
        provenance=_provenance(records),
        runs=tuple(_run_lines(comparison, store, settings)),
        provisos=provisos(records, known),
        replaced_by=None if new is None else Linked(new.study, address(new)),
        replaces=None if old is None else Linked(old.study, address(old)),
    )


def unplanned(study: Study, written: str) -> Section:
    """A study that was never resolved: a question and claims without answers."""
    return Section(study.id, study.question, written, "Nothing has run yet.", open_claims(study))


def open_claims(study: Study) -> tuple[ClaimLine, ...]:
    """Its claims before anything has run."""
    return tuple(
        ClaimLine(study.id, claim.id, claim.text, "undecided", "", reason="nothing has run yet")
        for claim in study.claims
    )


def claim_line(study: Study, verdict: Verdict) -> ClaimLine:
    """One verdict."""
    effect, interval = effect_and_interval(verdict)
    marks = ["exploratory"] if verdict.exploratory and verdict.status != "invalid" else []
    if not verdict.expected:
        marks.append("unexpected")
    elif verdict.status == "invalid":
        marks.append("as the author expects")
    notes = list(verdict.notes)
    if verdict.effect_in_sd is not None and verdict.sd is not None:
        notes.insert(0, f"effect {verdict.effect_in_sd:+.1f} standard deviations of the seeds ({verdict.sd:.2g})")
    if verdict.rho is not None:
        notes.insert(0, f"correlation of the two arms over common seeds {verdict.rho:.2f}")
    reason = verdict.reason.removeprefix(verdict.status).lstrip(":, ")
    claim = verdict.claim
    return ClaimLine(
        study.id, claim.id, claim.text, verdict.status, ", ".join(marks), effect, interval, verdict.n, reason,
        tuple(notes),
    )  # fmt: skip


def _standing(comparison: Comparison, n_runs: int) -> str:
    study = comparison.study
    arms = f"{len(study.arms)} arm{'' if len(study.arms) == 1 else 's'}"
    endpoint = study.endpoint
    text = f"{n_runs} run{'' if n_runs == 1 else 's'} of {arms}; {endpoint.metric}, {endpoint.better} is better."
    text += f" {comparison.frozen}" if comparison.frozen else ""
    if study.runs == "winnow" and comparison.succession.replaced_by is None:
        planned = len(missing_runs(study, comparison.verdicts, comparison.recorded))
        text += f" In progress: {planned} run{'' if planned == 1 else 's'} still planned." if planned else ""
    return text


def _placed(finding: Finding) -> Finding:
    """With the file's name alone: its path depends on where the command was given."""
    if finding.where is None:
        return finding
    return finding.model_copy(update={"where": finding.where.replace("\\", "/").rpartition("/")[2]})


def _provenance(records: Sequence[RunRecord]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    made = [record.provenance for record in records]
    packages = {f"{name} {version}" for each in made for name, version in each.packages.items()}
    days = sorted(each.started[:19].replace("T", " ") for each in made)
    named: dict[str, set[str]] = {
        "code": {each.code for each in made},
        "commit": {f"{each.commit}{' with changes' if each.dirty else ''}" for each in made if each.commit},
        "commit of Winnow": {
            f"{each.package_commit}{' with changes' if each.package_dirty else ''}"
            for each in made
            if each.package_commit
        },
        "python": {each.python for each in made},
        "packages": packages,
        "machine": {each.hardware for each in made},
        "platform": {each.platform for each in made},
        "device": {each.device for each in made},
        "threads": {str(each.threads) for each in made},
        "kernels": {f"{name}: {ran}" for each in made for name, ran in each.kernels.items()},
        "not repeatable bit for bit": {"; ".join(each.notes) or "yes" for each in made if not each.deterministic},
        "data": {record.data for record in records if record.data},
        "validation data": {str(found) for record in records if (found := record.facts.get("val_digest"))},
        "files of the study (use)": {f"{name} {digest}" for r in records for name, digest in r.sources.items()},
        "started (UTC)": set() if not days else {days[0]} if days[0] == days[-1] else {f"{days[0]} to {days[-1]}"},
    }
    return tuple((name, tuple(sorted(values))) for name, values in named.items() if values)


def _run_lines(comparison: Comparison, store: RunStore, settings: Sequence[str]) -> list[RunLine]:
    study, plan = comparison.study, comparison.plan
    observed = comparison.observations[study.endpoint.metric].values
    found: list[RunLine] = []
    for arm in study.arms:
        for seed, record in sorted(comparison.runs[arm].items()):
            value = observed.get(arm, {}).get(seed)
            found.append(
                RunLine(
                    arm=arm,
                    seed=seed,
                    digest=record.digest,
                    status=record.status,
                    value="" if value is None else f"{value:.6g}",
                    steps=record.steps_done,
                    started=record.provenance.started[:16].replace("T", " "),
                    weights=(record.weights or "")[:12],
                    command=command(study, record, seed, plan.arms.get(arm), store, settings),
                )
            )
    return found

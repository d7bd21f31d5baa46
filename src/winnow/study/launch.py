"""Run what is missing of a study, look by look, until every claim is decided or the seeds are used up.

    resolve -> audit (refuse) -> plan into the store -> preflight -> for each look: missing runs, then verdicts

At a look only those arms get more seeds that an undecided claim still needs (at the first look all arms do), and none
whose claim has an arm that failed in this launch. Claims are frozen when the first run starts, after the preflight has
shown that it can. Everything is resumable: the same call goes on where the last one ended.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

from winnow.errors import InputError
from winnow.records.files import size
from winnow.records.remote import Remote
from winnow.records.run import Finding, Label, RunIdentity
from winnow.records.store import RunStore
from winnow.study.audit import audit, different_settings, refuse
from winnow.study.capacity import default_jobs, free_memory
from winnow.study.compare import Comparison, compare, result_times
from winnow.study.crew import Crew, Job, Stopped
from winnow.study.events import (
    Event,
    LookEnded,
    LookStarted,
    Noticed,
    PreflightEnded,
    PreflightStarted,
    RunEnded,
    RunKey,
    RunStarted,
)
from winnow.study.freshness import keep_basis
from winnow.study.needs import open_arms
from winnow.study.options import Options
from winnow.study.parents import Parents, missing_parents
from winnow.study.plan import Plan, load_plan, now, plan_lock, rewritten, save_plan, seen
from winnow.study.resolve import Resolved, resolve
from winnow.study.spec import Study
from winnow.study.uploads import Uploads, await_arrival, note_place
from winnow.study.workers import terminable
from winnow.train.config import rank_rows

PREFLIGHT_STEPS: Final = 3
"""Updates that are tried of each arm: the first compiles and allocates, the others are timed."""
MEMORY_SHARE: Final = 0.8
"""Part of the free memory that the workers together may take."""


@dataclass(frozen=True)
class Outcome:
    """What a launch did and where the study stands."""

    comparison: Comparison
    ran: tuple[RunKey, ...]
    """Runs that ended in this launch, well or badly."""
    failed: tuple[RunKey, ...]
    stopped: bool
    """Whether it was stopped by Ctrl-C; the same command goes on."""
    findings: tuple[Finding, ...]
    """Of audit and preflight."""
    artifacts: str | None = None
    """Where the runs were to be uploaded, without credentials; None = nowhere."""
    not_uploaded: Mapping[RunKey, str] = field(default_factory=dict[RunKey, str])
    """Runs with a record that has not arrived there, and why."""
    waiting: tuple[RunKey, ...] = ()
    """Runs of the next look that could not start, since a run that one of them starts from is not there."""


def silent(event: Event) -> None:
    """Events that nobody watches."""


def run_study(
    study: Study,
    store: RunStore,
    options: Options | None = None,
    on_event: Callable[[Event], None] = silent,
    *,
    resolved: Resolved | None = None,
) -> Outcome:
    """Run what is missing and judge. Raises InputError where the study is wrong or is refused by the audit.

    resolved: the study as `resolve` has found it just now, so that its data is not read a second time.
    """
    return _Launch(study, store, options or Options(), on_event).go(resolved)


def register(study: Study, store: RunStore, plan: Plan) -> Plan:
    """Put freshly resolved arms into the store's plan, with its history and the claims as they stand. Returns it."""
    with plan_lock(store, study):
        at = now()
        stored = load_plan(store, study)
        if stored is not None:
            digests = [run for arm in stored.arms.values() for run in arm.runs.values()]
            ended = {run for run, record in store.records(digests).items() if record.status != "failed"}
            plan = rewritten(study, stored, plan, ended, at)
        plan = seen(study, plan, result_times(study, store, plan), at)
        save_plan(store, study, plan)
        keep_basis(store, study, plan)
        return plan


class _Launch:
    def __init__(self, study: Study, store: RunStore, options: Options, on_event: Callable[[Event], None]) -> None:
        if study.runs == "recorded":
            raise study.lines.error(
                "the runs of this study come from winnow.record", ("runs",), "judge them with `winnow compare`"
            )
        self.study, self.store, self.options = study, store, options
        self._on_event = on_event
        self._findings: list[Finding] = []
        self._ran: list[RunKey] = []
        self._failed: list[RunKey] = []
        self._waiting: tuple[RunKey, ...] = ()
        url = options.artifacts or study.artifacts
        self._uploads = None if url is None else Uploads(store, Remote(url))
        unknown = [seed for seed in options.seeds or () if seed not in study.seeds]
        if unknown:
            raise InputError(f"seed {unknown[0]} is not the study's", key="--seeds", mend=f"permitted: {study.seeds}")

    def go(self, resolved: Resolved | None) -> Outcome:
        parents = Parents(self.store, self.study.changes)
        resolved = resolved or resolve(self.study, trust=self.options.trust, parents=parents)
        assert resolved.study is self.study
        stored = load_plan(self.store, self.study)
        found = audit(self.study, resolved.plan, stored)
        refuse(self.study, found)
        for finding in (*resolved.findings, *(item.finding for item in found)):
            self._notice(finding)
        self.plan = register(self.study, self.store, resolved.plan)
        self._check_ranks()
        self.plan = note_place(self.store, self.study, self.plan, self._uploads)
        crew: Crew | None = None
        stopped = False
        missing: dict[RunKey, str] = {}
        with terminable():
            try:
                for work in self._work():
                    if not self._parents_there(work, first=crew is None):
                        break
                    if crew is None:
                        if self._uploads is not None:
                            self._uploads.check()
                        crew = self._crew()
                        self._preflight(crew, work.missing)
                        self._start()
                    self._emit(work)
                    crew.run([self._job(key) for key in work.missing])
                    self._emit(LookEnded(work.look, work.looks, self._judged().verdicts))
                missing = await_arrival(self._uploads, self.study, self.plan, self._emit)
            except (Stopped, KeyboardInterrupt):
                stopped = True
            finally:
                if crew is not None:
                    crew.close()
                if self._uploads is not None:
                    self._uploads.abandon()
        ran, failed, findings = tuple(self._ran), tuple(self._failed), tuple(self._findings)
        url = None if self._uploads is None else self._uploads.url
        return Outcome(self._judged(), ran, failed, stopped, findings, url, missing, self._waiting)

    def _check_ranks(self) -> None:
        """Raises InputError where an arm's updates do not divide by the ranks."""
        for name, arm in self.plan.arms.items():
            rows = int(arm.config["train"]["tokens_per_update"]) // int(arm.config["task"]["context"])
            try:
                rank_rows(rows, self.options.ranks)
            except InputError as error:
                raise InputError(f"arm {name}: {error.message}", key=error.key, mend=error.mend) from None

    def _emit(self, event: Event) -> None:
        if isinstance(event, RunStarted) and self._uploads is not None:
            self._uploads.begin(event.run.digest)
        if isinstance(event, RunEnded):
            self._ran.append(event.run)
            if event.status in ("failed", "refused"):
                self._failed.append(event.run)
            if self._uploads is not None:
                self._uploads.end([event.run.digest])
        self._on_event(event)

    def _notice(self, finding: Finding) -> None:
        self._findings.append(finding)
        self._emit(Noticed(finding))

    # Which runs

    def _work(self) -> Iterator[LookStarted]:
        """The looks at which runs are missing, each judged anew when it is reached."""
        looks = self.study.looks
        for number, look in enumerate(looks, 1):
            arms = tuple(self.study.arms) if number == 1 else self._open_arms()
            seeds = [seed for seed in self.study.seeds[:look] if self._options_want(seed)]
            wanted = [
                (arm, seed)
                for seed in seeds
                for arm in self.study.arms
                if arm in arms or (arm, seed) in self.options.also
            ]
            missing = self._missing([RunKey(arm, seed, self.plan.run(arm, seed)) for arm, seed in wanted])
            if missing:
                yield LookStarted(number, len(looks), look, arms, missing)

    def _parents_there(self, work: LookStarted, *, first: bool) -> bool:
        """Whether every run that these start from is there. Raises InputError before anything has run."""
        lacking = missing_parents(self.plan, work.missing, self.store)
        if lacking is None:
            return True
        where = self.study.lines.where(tuple((lacking.key or "").split(".")))
        if first:
            raise InputError(lacking.message, file=where, mend=lacking.mend)
        self._waiting = work.missing
        message = f"look {work.look} of {work.looks} waits: {lacking.message}"
        self._notice(
            Finding(rule="parent-missing", severity="warning", message=message, where=where, mend=lacking.mend)
        )
        return False

    def _options_want(self, seed: int) -> bool:
        return self.options.seeds is None or seed in self.options.seeds

    def _open_arms(self) -> tuple[str, ...]:
        """Arms that are worth more seeds; one that could not run in this launch waits for the next."""
        verdicts = self._judged().verdicts if self.study.claims else ()
        return open_arms(self.study, verdicts, {key.arm for key in self._failed})

    def _missing(self, runs: Sequence[RunKey]) -> tuple[RunKey, ...]:
        """Runs that have no result and have not been tried in this launch."""
        records = self.store.records(key.digest for key in runs)
        done = {digest for digest, record in records.items() if record.status in ("finished", "diverged")}
        done.update(key.digest for key in self._ran)
        return tuple(key for key in runs if key.digest not in done)

    def _judged(self) -> Comparison:
        return compare(self.study, self.store)

    def _job(self, key: RunKey, preflight: int | None = None) -> Job:
        arm = self.plan.arms[key.arm]
        label = Label(study=self.study.id, arm=key.arm)
        identity = RunIdentity(
            digest=key.digest,
            config=arm.config,
            seed=key.seed,
            data=arm.data,
            sources=self.plan.sources,
            label=label,
            parent=None if arm.parent is None else arm.parent.run(key.seed),
        )
        message: dict[str, Any] = {
            **identity.dump(),
            "use": [str(self.study.folder / name) for name in self.study.use],
            "store": str(self.store.root),
            "device": self.options.device,
            "threads": self.options.threads,
            "ranks": self.options.ranks,
            "parallel": self.options.parallel,
        }
        if preflight is not None:
            message["preflight_steps"] = preflight
        return Job(key, message, identity)

    def _start(self) -> None:
        """Freeze the claims: the first run is about to start."""
        with plan_lock(self.store, self.study):
            current = load_plan(self.store, self.study) or self.plan
            self.plan = current if current.started else current.replace({"started": now()})
            save_plan(self.store, self.study, self.plan)

    # Preflight

    def _crew(self) -> Crew:
        options = self.options
        jobs = options.jobs or default_jobs(options.device, options.ranks)
        return Crew(self.store, self._emit, jobs=jobs, threads=options.threads, command=options.worker)

    def _preflight(self, crew: Crew, missing: Sequence[RunKey]) -> None:
        """Try a few steps of every arm. Raises InputError where no arm can run here, or the disk is too full."""
        first = {key.arm: key for key in reversed(missing)}
        if not self.options.preflight:
            return
        self._emit(PreflightStarted(tuple(first)))
        answers = crew.ask([self._job(key, PREFLIGHT_STEPS) for key in first.values()])
        if all(answer.get("status") == "refused" for answer in answers.values()):
            raise InputError(str(next(iter(answers.values()))["error"]))
        trials: dict[str, dict[str, Any]] = {}
        blind = sum("nothing-inside" in _rules(answer) for answer in answers.values())
        for arm, answer in answers.items():
            if answer["event"] != "done":
                self._refused(arm, str(answer.get("error")))
            else:
                trials[arm] = answer["preflight"]
                for item in answer["findings"]:
                    finding = Finding.model_validate(item)
                    if finding.rule == "nothing-inside" and blind < len(self.study.arms):
                        continue  # another arm can be looked into, which is what was asked for
                    self._notice(finding.model_copy(update={"message": f"preflight of {arm}: {finding.message}"}))
        self._same_so_far(trials)
        # Measured at rank 0; the others need as much.
        peak = self.options.ranks * max((int(trial["peak_bytes"]) for trial in trials.values()), default=0)
        crew.jobs = self._jobs_in_memory(crew.jobs, peak)
        self._check_disk(missing, trials)
        seconds = {arm: self._run_seconds(arm, trial) for arm, trial in trials.items()}
        self._emit(PreflightEnded(seconds, peak, crew.jobs))

    def _refused(self, arm: str, error: str) -> None:
        message = f"preflight of {arm} failed: {error.strip().splitlines()[-1]}"
        mend = "the run will say more: its record keeps the traceback"
        where = self.study.lines.where(("arms", arm))
        self._notice(Finding(rule="preflight-failed", severity="warning", message=message, where=where, mend=mend))

    def _same_so_far(self, trials: dict[str, dict[str, Any]]) -> None:
        """Arms that are bit-identical after a few steps: a notice, since some settings act late."""
        for (one, a), (other, b) in combinations(trials.items(), 2):
            if a["weights"] == b["weights"]:
                settings = ", ".join(different_settings(self.plan.arms[one].identity, self.plan.arms[other].identity))
                message = f"{one} and {other} are bit-identical after {a['steps']} steps although {settings} differs"
                mend = "it may act later; if it never does, claims on this pair will be invalid"
                where = self.study.lines.where(("arms", other))
                self._notice(Finding(rule="same-so-far", severity="notice", message=message, where=where, mend=mend))

    def _jobs_in_memory(self, jobs: int, peak: int) -> int:
        if self.options.device != "cpu" or not peak:
            return jobs
        fitting = max(1, int(MEMORY_SHARE * free_memory() / peak))
        if fitting < jobs:
            message = f"{fitting} runs at once instead of {jobs}: each takes {size(peak)} of memory"
            self._notice(Finding(rule="memory", severity="notice", message=message))
        return min(jobs, fitting)

    def _check_disk(self, missing: Sequence[RunKey], trials: dict[str, dict[str, Any]]) -> None:
        # While a new checkpoint is written, the two before it are still there, and that of a start from another run; at
        # the end one is left.
        largest = max((int(trial["checkpoint_bytes"]) for trial in trials.values()), default=0)
        kept = sum(1 + len(self.plan.arms[key.arm].config["train"].get("keep", ())) for key in missing)
        beside = 2 + any(self.plan.arms[key.arm].config.get("init_from") for key in missing)
        needed = largest * (
            kept + beside * (self.options.jobs or default_jobs(self.options.device, self.options.ranks))
        )
        free = shutil.disk_usage(self.store.root).free
        if free < needed:
            raise InputError(
                f"the disk has {size(free)} free, and these runs need {size(needed)}",
                file=self.store.root,
                mend="free some space, or choose another store with --store",
            )

    def _run_seconds(self, arm: str, trial: dict[str, Any]) -> float:
        config = self.plan.arms[arm].config
        start = config.get("init_from") or {}
        done = int(start.get("step") or 0) if start.get("mode") == "resume" else 0
        steps, every = int(config["train"]["steps"]) - done, int(config["evaluation"]["every"])
        evaluations = math.ceil(steps / every) + 1
        inside = config["evaluation"].get("inside")
        looking = 0.0 if inside is None else (math.ceil(steps / int(inside)) + 1) * float(trial["seconds_per_look"])
        evaluating = evaluations * float(trial["seconds_per_evaluation"])
        return steps * float(trial["seconds_per_step"]) + evaluating + looking


def _rules(answer: dict[str, Any]) -> set[str]:
    return {item["rule"] for item in answer.get("findings", ())}

"""`winnow run` on every study of a file: what is missing is run, what is recorded is read, results are written.

A study of which everything is recorded costs one look at its records: no torch, no data, no worker. Its results, like
those of its neighbours, go into the file in one write. While a study runs, its results are written as they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from winnow.cli import output
from winnow.cli.standing import say_comparison
from winnow.cli.verdict_text import unexpectedly_invalid
from winnow.cli.writing import results_of
from winnow.errors import InputError
from winnow.notebook.execute import Results, Source, Written, relatives, results_path, write_results
from winnow.records.store import RunStore
from winnow.study.audit import AuditFinding, audit, refuse
from winnow.study.compare import Comparison, compare, plain
from winnow.study.events import Event, LookEnded, LookStarted, RunEnded
from winnow.study.freshness import is_fresh
from winnow.study.needs import missing_runs
from winnow.study.options import Options
from winnow.study.parents import Parents, needed_by, needed_in_store
from winnow.study.plan import Plan, load_plan, stale_arms, without_arms
from winnow.study.spec import Study
from winnow.study.succession import Successions

if TYPE_CHECKING:
    from winnow.study.launch import Outcome
    from winnow.study.resolve import Resolved

SHARE = 0.05
"""Part of the time of a launch that writing results in between may take."""


class Runner:
    """The studies of one file, one after the other."""

    def __init__(self, source: Source, store: RunStore, options: Options, *, quiet: bool, asked: bool) -> None:
        """quiet: say nothing on stdout. asked: the studies were named, so that withdrawn ones are run too.

        Raises InputError where any of the studies cannot be run.
        """
        self.source, self.store, self.options, self.quiet, self.asked = source, store, options, quiet, asked
        self.successions = Successions(store, source.studies, file=source.path, declared=source.declared)
        self.reports: list[dict[str, Any]] = []
        self._parents = Parents(store, source.studies[0].changes)
        self._plans = {study.id: planned(study, store, options.trust, self._parents) for study in source.studies}
        plans = [(self._plans[study.id][0], study.seeds[: study.looks[-1]]) for study in source.studies]
        self._children = [pair for pair in plans if any(arm.parent is not None for arm in pair[0].arms.values())]
        self._waiting: list[tuple[Study, Comparison, Outcome | None]] = []
        """Studies that are done, whose results are still to be written and said."""
        self._audits: dict[str, tuple[AuditFinding, ...]] = {}
        self._bad = False

    def run(self, study: Study) -> Outcome | None:
        """Run what is missing of a study; None where nothing was."""
        plan, resolved = self._plans[study.id]
        launch = self._launch_options(study)
        standing = self._standing(study, plan, launch)
        if standing is not None:
            self._waiting.append((study, standing, None))
            return None
        self._write()  # what is done stands in the file before something long begins
        outcome = self._launch(study, plan, launch, resolved)
        self._waiting.append((study, outcome.comparison, outcome))
        self._write()
        return outcome

    def conclude(self) -> bool:
        """Write what is left; whether a run failed or a verdict is unexpectedly invalid."""
        self._write()
        return self._bad

    def _launch_options(self, study: Study) -> Options:
        also = needed_by(self._children, study.id)
        if self.options.seeds is not None:  # asked for by name: also for studies that stand elsewhere
            also |= needed_in_store(self.store, study.id)
        return replace(self.options, also=also)

    def _standing(self, study: Study, plan: Plan, launch: Options) -> Comparison | None:
        """Where a study stands of which nothing is to be run or uploaded; None where something is, or may be."""
        if study.runs == "recorded":
            return compare(study, self.store, self.successions)
        # A study that was resolved just now is new, or has changed: its plan is not the store's.
        changed = self._plans[study.id][1] is not None
        stored = load_plan(self.store, study) if changed else plan
        if self.successions.of(study.id).replaced_by is not None and not launch.also and not self.asked:
            if stored is None:
                from winnow.study.launch import register

                register(study, self.store, plan)
            return compare(study, self.store, self.successions)
        if stored is None or changed:
            return None
        self._audits[study.id] = audit(study, stored, stored)
        refuse(study, self._audits[study.id])
        if launch.artifacts or study.artifacts or stored.artifacts or not is_fresh(self.store, study, stored):
            return None
        found = compare(study, self.store, self.successions, plan=stored)
        if found.stale or missing_runs(study, found.verdicts, found.recorded, seeds=launch.seeds, also=launch.also):
            return None
        return found

    def _launch(self, study: Study, plan: Plan, launch: Options, resolved: Resolved | None) -> Outcome:
        from winnow.cli.foresight import foresee, foresight_lines
        from winnow.cli.progress import watching
        from winnow.study.capacity import default_jobs
        from winnow.study.launch import run_study

        _head(study)
        found = foresee(study, plan, self.store, device=launch.device, threads=launch.threads, seeds=launch.seeds)
        for line in foresight_lines(found, jobs=launch.jobs or default_jobs(launch.device, launch.ranks)):
            output.note(line)
        scribe = Scribe(lambda: self._write_between(study))
        with watching(study.endpoint.metric) as watcher:

            def heard(event: Event) -> None:
                watcher(event)
                scribe(event)

            outcome = run_study(study, self.store, launch, heard, resolved=resolved)
        return replace(outcome, comparison=compare(study, self.store, self.successions))

    def _write_between(self, study: Study) -> None:
        comparison = compare(study, self.store, self.successions)
        self._note(self._write_results({study.id: results_of(self.source, comparison, self.store)}))

    def _write(self) -> None:
        """Results of all that is done into the file, in one go; then say them."""
        if not self._waiting:
            return
        results = {study.id: results_of(self.source, found, self.store) for study, found, _ in self._waiting}
        written = self._write_results(results)
        for study, comparison, outcome in self._waiting:
            self._bad |= self._say(study, comparison, outcome, results[study.id])
        self._note(written)
        self._waiting.clear()
        self._write_relatives()

    def _write_relatives(self) -> None:
        """The results of studies that were not asked for, yet speak of those that were."""
        if not self.source.is_notebook or self.source.changed:
            return
        others = relatives(self.source)
        for study in others.studies:
            if study.runs == "winnow" and load_plan(self.store, study) is None:
                continue
            results = results_of(self.source, compare(study, self.store, self.successions), self.store)
            self._note(write_results(others, {study.id: results}, self.store.root / "studies"))

    def _write_results(self, results: dict[str, Results]) -> Written:
        return write_results(self.source, results, self.store.root / "studies")

    def _note(self, written: Written) -> None:
        for text in written.notes:
            output.note(f"note: {text}")

    def _say(self, study: Study, comparison: Comparison, outcome: Outcome | None, results: Results) -> bool:
        """Say and report where a study stands; whether a run failed or a verdict is unexpectedly invalid."""
        failed = [] if outcome is None else [str(key) for key in outcome.failed]
        waiting = [] if outcome is None else [str(key) for key in outcome.waiting]
        missing = {} if outcome is None else {str(key): why for key, why in outcome.not_uploaded.items()}
        pictures = [self.source.path.with_name(name) for name in results.pictures]
        files = [str(path) for path in (results_path(self.source, study), *pictures)]
        self.reports.append(
            {
                **plain(comparison),
                "ran": 0 if outcome is None else len(outcome.ran),
                "failed": failed,
                "waiting": waiting,
                "stopped": outcome is not None and outcome.stopped,
                "artifacts": None if outcome is None else outcome.artifacts,
                "not_uploaded": missing,
                "files": files,
            }
        )
        if outcome is None:
            _head(study)
            self._say_nothing_to_do(study, comparison)
        if not self.quiet:
            say_comparison(comparison)
            output.say()
            for name in failed:
                output.say(f"failed: {name}; winnow show {study.id}/... tells why, the same command tries again")
            if waiting:
                more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
                output.say(
                    f"waiting: {', '.join(waiting[:3])}{more}; the same command goes on when their parents are there"
                )
            output.say("results: " + ", ".join(files))
            output.say(f"records: {self.store.root}")
        if outcome is not None and missing:
            _say_missing(self.source, outcome.artifacts or "", missing)
        return bool(failed or waiting or missing) or unexpectedly_invalid(comparison.verdicts)

    def _say_nothing_to_do(self, study: Study, comparison: Comparison) -> None:
        if study.runs == "recorded":
            return
        new = comparison.succession.replaced_by
        why = (
            "" if new is None else f"; it is withdrawn, replaced by {new.study}: --only {study.id} runs it all the same"
        )
        output.note(f"  runs to do: none ({len(comparison.recorded)} recorded){why}")
        for item in self._audits.get(study.id, ()):
            output.note(output.finding_line(item.finding.severity, item.finding.rule, item.finding.message))


class Scribe:
    """Writes results in between: at every look, and after runs as often as the time for it allows."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._free_at = 0.0

    def __call__(self, event: Event) -> None:
        """Write, where the event is one to write at."""
        at_look = isinstance(event, LookStarted | LookEnded)
        ended = isinstance(event, RunEnded) and event.status != "interrupted"
        if not at_look and (not ended or time.monotonic() < self._free_at):
            return
        began = time.monotonic()
        try:
            self._write()
        except InputError as error:
            # Somebody is in the midst of an edit, perhaps. What ran is recorded; the last write says what is wrong.
            output.note(f"note: results are not written yet: {error}")
        now = time.monotonic()
        self._free_at = now + (now - began) / SHARE


def planned(study: Study, store: RunStore, trust: bool, parents: Parents) -> tuple[Plan, Resolved | None]:
    """The plan: from the store where the arms have not changed, else resolved anew. Refuses an unsound study."""
    if study.runs == "recorded":
        return without_arms(study), None
    stored = load_plan(store, study)
    if stored is not None and not stale_arms(study, stored, parents.changed):
        parents.add(study, stored)
        return stored, None
    from winnow.study.resolve import resolve

    resolved = resolve(study, trust=trust, parents=parents)
    parents.add(study, resolved.plan)
    refuse(study, audit(study, resolved.plan, stored))
    return resolved.plan, resolved


def _head(study: Study) -> None:
    output.note(f"{output.bold(study.id)}{f': {study.question}' if study.question else ''}")


def _say_missing(source: Source, url: str, missing: dict[str, str]) -> None:
    """What has not arrived, why, and the command that mends it."""
    reasons = dict.fromkeys(missing.values())
    runs = f"{len(missing)} run{'' if len(missing) == 1 else 's'}"
    output.note(f"error: {runs} not uploaded to {url}: {', '.join(missing)}")
    for reason in list(reasons)[:3]:
        output.note(f"  {reason}")
    output.note(f"  nothing is lost here; winnow push {source.path} --to {url}, or the same command, tries again")

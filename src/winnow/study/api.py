"""The same from Python: `winnow.load_study(path).run().verdicts()` (`winnow.notebook.load` opens the file).

Nothing here prints; progress comes through `on_event`. Results are plain records: `pandas.DataFrame(found.rows())`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from winnow.records.store import RunStore
from winnow.study.compare import Comparison, compare
from winnow.study.ranking import shown_ranking
from winnow.study.spec import Study
from winnow.study.table_text import Format
from winnow.study.tables import rows, table
from winnow.study.verdict import Verdict

if TYPE_CHECKING:
    from winnow.records.run import Finding, RunRecord
    from winnow.study.events import Event


@dataclass(frozen=True)
class OpenStudy:
    """A study and the store that holds its runs."""

    study: Study
    store: RunStore

    def run(
        self,
        *,
        jobs: int | None = None,
        seeds: tuple[int, ...] | None = None,
        device: str = "cpu",
        trust: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> Results:
        """Run what is missing, look by look, and judge.

        jobs: runs at once (None = one per core, as memory allows); seeds: only these; trust: run the study's `use`
        files. Raises InputError where the study is wrong or its audit refuses it. After Ctrl-C it returns where
        things stand, `stopped`; the same call goes on.
        """
        from winnow.study.launch import Options, run_study, silent  # torch, which judging does not need

        options = Options(jobs=jobs, seeds=seeds, device=device, trust=trust)
        outcome = run_study(self.study, self.store, options, on_event or silent)
        return Results(outcome.comparison, self.store, outcome.stopped)

    def compare(self) -> Results:
        """Judge what is recorded, without running anything."""
        return Results(compare(self.study, self.store), self.store)

    def verdicts(self) -> tuple[Verdict, ...]:
        """A verdict on each claim, from what is recorded."""
        return self.compare().verdicts()

    def rows(self) -> list[dict[str, Any]]:
        """Every recorded run of the study as one flat row."""
        return self.compare().rows()


@dataclass(frozen=True)
class Results:
    """What a study has come to."""

    comparison: Comparison
    store: RunStore
    stopped: bool = False
    """Whether the launch was stopped before it was done."""

    def verdicts(self) -> tuple[Verdict, ...]:
        """A verdict on each claim, in the order of the study."""
        return self.comparison.verdicts

    def verdict(self, claim: str) -> Verdict:
        """The verdict on one claim; InputError for a name that the study does not have."""
        wanted = self.comparison.study.claim(claim)
        return next(verdict for verdict in self.comparison.verdicts if verdict.claim.id == wanted.id)

    def findings(self) -> tuple[Finding, ...]:
        """What was noticed, most severe first."""
        return self.comparison.findings

    def records(self) -> tuple[RunRecord, ...]:
        """Every ended run, by arm and seed, failed ones too."""
        return tuple(record for runs in self.comparison.runs.values() for record in runs.values())

    def rows(self) -> list[dict[str, Any]]:
        """Every ended run as one flat row, under the names that this study gives its arms."""
        study = self.comparison.study
        return [
            {**record.row(), "study": study.id, "arm": arm, "seed": seed}
            for arm, runs in self.comparison.runs.items()
            for seed, record in runs.items()
        ]

    def summary(self) -> list[dict[str, Any]]:
        """One row per arm: mean, sd, paired difference, cost."""
        return [row.dump() for row in rows(self.comparison)]

    def table(self, form: Format = "markdown") -> str:
        """The results table as Markdown, CSV, LaTeX, HTML or JSON."""
        return table(self.comparison, form, shown_ranking(self.comparison))

    def curves(self, metric: str | None = None) -> dict[str, dict[int, list[tuple[int, float]]]]:
        """(step, value) of a metric (default: the endpoint) by arm and seed."""
        name = metric or self.comparison.study.endpoint.metric
        return {
            arm: {
                seed: [(int(row["step"]), float(row[name])) for row in self.store.metrics(record.digest) if name in row]
                for seed, record in runs.items()
            }
            for arm, runs in self.comparison.runs.items()
        }

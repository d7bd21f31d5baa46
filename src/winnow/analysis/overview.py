"""`winnow index` as a page: claims of many notebooks, open questions, and where studies contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from winnow.analysis.page import render
from winnow.analysis.reports import counts
from winnow.analysis.sections import ClaimLine
from winnow.study.agreement import SameComparison, Statement
from winnow.study.table_text import decimals


@dataclass(frozen=True)
class Listed:
    """One study of a file."""

    id: str
    question: str
    claims: tuple[ClaimLine, ...]
    problem: str = ""
    """Why it could not be judged; empty = it could."""

    @property
    def open(self) -> tuple[ClaimLine, ...]:
        """Claims without an answer."""
        return tuple(claim for claim in self.claims if claim.status == "undecided")


@dataclass(frozen=True)
class Entry:
    """One notebook or study file."""

    name: str
    """Its path from the folder of the index, as it is shown."""
    link: str
    """The same as an address from the page."""
    report: str
    """Address of its report; empty = it has none."""
    title: str
    date: str = ""
    tags: tuple[str, ...] = ()
    studies: tuple[Listed, ...] = ()
    damage: str = ""
    """Why it could not be read; empty = it could."""

    @property
    def claims(self) -> tuple[ClaimLine, ...]:
        """Those of all its studies."""
        return tuple(claim for study in self.studies for claim in study.claims)

    @property
    def counts(self) -> list[tuple[str, int]]:
        """How many claims have each status that occurs."""
        return counts(self.claims)

    def place(self, claim: ClaimLine) -> str:
        """Address of a claim: in the report where there is one, else the file."""
        return f"{self.report}#{claim.anchor}" if self.report else self.link


def index_html(title: str, entries: Sequence[Entry], same: Sequence[SameComparison]) -> str:
    """The page. entries: in the order of their names; same: from `agreement`, whose places are the entries' names."""
    claims = [(entry, claim) for entry in entries for claim in entry.claims]
    found = counts(claim for _, claim in claims)
    by_name = {entry.name: entry for entry in entries}
    order = [status for status, _ in found]
    return render(
        "index.html",
        title=title,
        entries=entries,
        counts=found,
        claims=sorted(claims, key=lambda row: order.index(row[1].status)),
        open_studies=[(entry, study) for entry in entries for study in entry.studies if study.open or study.problem],
        damaged=[entry for entry in entries if entry.damage],
        same={kind: [_shown(each, by_name) for each in same if each.kind == kind] for kind in _HEADINGS},
        headings=_HEADINGS,
    )


_HEADINGS = {
    "contradiction": (
        "Contradictions",
        "The same two arms on the same data at the same budget, and verdicts that cannot stand side by side.",
    ),
    "budget": (
        "Depends on the budget",
        "The same two arms on the same data; the answer changes with the steps, the batch, the warm-up or the rate.",
    ),
    "agreement": (
        "Said more than once, in agreement",
        "The same two arms on the same data, decided by several studies.",
    ),
}


def _shown(each: SameComparison, by_name: dict[str, Entry]) -> dict[str, Any]:
    """One comparison for the template."""
    first = each.statements[0]
    return {
        "metric": each.metric,
        "one": first.one,
        "other": first.other,
        "compatible": each.compatible,
        "statements": [
            {
                "said": statement,
                "entry": by_name[statement.place],
                "claim": next(
                    claim
                    for claim in by_name[statement.place].claims
                    if (claim.study, claim.id) == (statement.study, statement.claim)
                ),
                "figures": _figures(statement),
            }
            for statement in each.statements
        ],
    }


def _figures(statement: Statement) -> str:
    """Effect and interval, in the direction of the first statement's arms."""
    if statement.effect is None:
        return ""
    if statement.low is None or statement.high is None:
        return f"{statement.effect:+.4g}"
    digits = decimals((statement.high - statement.low) / 2)
    return f"{statement.effect:+.{digits}f} [{statement.low:+.{digits}f}, {statement.high:+.{digits}f}]"

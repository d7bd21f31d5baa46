"""`winnow report` as a page: verdicts first, then the notebook with the results of each study in their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from winnow.analysis.page import SYMBOLS, render
from winnow.analysis.sections import ClaimLine, Section


@dataclass(frozen=True)
class Passage:
    """Prose of a notebook as HTML that is safe already."""

    html: str


def report_html(title: str, about: str, parts: Sequence[Passage | Section]) -> str:
    """The page. about: a line under the title; parts: in the order of the notebook."""
    from markupsafe import Markup

    sections = [part for part in parts if isinstance(part, Section)]
    claims = [claim for part in sections for claim in part.claims]
    return render(
        "report.html",
        title=title,
        about=about,
        claims=claims,
        counts=counts(claims),
        parts=[{"prose": Markup(part.html)} if isinstance(part, Passage) else part for part in parts],
        n_runs=len({run.digest for part in sections for run in part.runs}),
    )


def counts(claims: Iterable[ClaimLine]) -> list[tuple[str, int]]:
    """How many claims have each status that occurs."""
    found = [claim.status for claim in claims]
    return [(status, found.count(status)) for status in SYMBOLS if status in found]

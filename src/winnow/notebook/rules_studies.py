"""Rules about study cells and what Winnow wrote under them."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping

from winnow.errors import InputError
from winnow.notebook.document import CLOSING, OPENING, Block, Cell, Document
from winnow.notebook.frontmatter import FrontMatter
from winnow.notebook.results import escape
from winnow.notebook.rules import Found, Reading, rule
from winnow.notebook.statements import Hypothesis
from winnow.study.spec import Study

_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_UNANSWERED = re.compile(r"^\| \*\*(?P<claim>[^*]+)\*\*:.*?\| \*\*undecided\*\*", re.MULTILINE)


def _line(study: Study, cell: Cell, *path: str) -> int:
    return study.lines.line(path) or cell.opening_line


def _blocks(reading: Reading) -> Mapping[str, Block]:
    return {block.study: block for block in reading.blocks}


@rule("front-matter", "error", "a title, date or tags at the top of the page that Winnow refuses", "mend them")
def front_matter(reading: Reading) -> Iterator[Found]:
    front = reading.front
    if isinstance(front, InputError):
        said = f"{front.key}: {front.message}" if front.key else front.message
        yield Found(front.line or 1, said, mend=front.mend)


@rule("front-matter-key", "notice", "a key at the top of the page that looks like one of Winnow's misspelt", "mend it")
def front_matter_key(reading: Reading) -> Iterator[Found]:
    if isinstance(reading.front, FrontMatter):
        for line, message, mend in reading.front.notes:
            yield Found(line, message, mend=mend)


@rule("study-invalid", "error", "a study cell that Winnow refuses", "mend the cell")
def study_invalid(reading: Reading) -> Iterator[Found]:
    document = reading.document
    if (
        isinstance(document, InputError)
        and not isinstance(reading.front, InputError)
        and not _at_marker(reading, document)
    ):
        yield Found(document.line or 1, document.message, mend=document.mend)
    for item in reading.cells:
        if item.error is not None:
            said = f"{item.error.key}: {item.error.message}" if item.error.key else item.error.message
            yield Found(item.error.line or item.cell.opening_line, said, mend=item.error.mend)


def _at_marker(reading: Reading, error: InputError) -> bool:
    """Whether what is wrong stands on a line that Winnow writes around results."""
    text = reading.page.lines[(error.line or 1) - 1]
    return OPENING.match(text) is not None or text.rstrip() == CLOSING


@rule(
    "results-marker",
    "error",
    "a line that opens or ends results without its partner, or results in two places",
    "restore what is missing, or remove the line",
)
def results_marker(reading: Reading) -> Iterator[Found]:
    document = reading.document
    if isinstance(document, InputError) and _at_marker(reading, document):
        yield Found(document.line or 1, document.message, mend=document.mend)


@rule(
    "results-edited",
    "error",
    "what Winnow wrote was changed by hand",
    "write your own text outside the markers; the next run puts the old text into a file beside the notebook",
)
def results_edited(reading: Reading) -> Iterator[Found]:
    for block in reading.blocks:
        if block.edited:
            yield Found(block.opening_line, f"the results of {block.study!r} are not what was written")


@rule(
    "results-orphaned",
    "warning",
    "results whose study is not on the page",
    "restore the study's cell, or remove the results with their markers",
)
def results_orphaned(reading: Reading) -> Iterator[Found]:
    document = reading.document
    if isinstance(document, Document):
        for block in document.blocks:
            if document.cell(block.study) is None:
                yield Found(block.opening_line, f"no cell declares {block.study!r}")


@rule(
    "results-stale",
    "error",
    "results that judge other claims than the cell now makes",
    "give `winnow run` again: it writes what holds for the cell as it is",
)
def results_stale(reading: Reading) -> Iterator[Found]:
    blocks = _blocks(reading)
    for _, study in reading.studies:
        block = blocks.get(study.id)
        if block is None or block.edited or "| claim |" not in block.content:
            continue
        now = {f"**{escape(claim.id)}**: {escape(claim.text)}" for claim in study.claims}
        then = set(re.findall(r"^\| (\*\*.+?\*\*: .*?) \| \*\*\w+\*\*", block.content, re.MULTILINE))
        changed = sorted(now ^ then)
        if changed:
            yield Found(block.opening_line, f"claims differ from the cell's, first {changed[0]}")


@rule(
    "results-picture",
    "warning",
    "a picture of the results that is not there",
    "give `winnow run` again: it draws what is missing",
)
def results_picture(reading: Reading) -> Iterator[Found]:
    folder = reading.page.path.parent
    for block in reading.blocks:
        for line, text in enumerate(block.content.split("\n"), block.opening_line + 1):
            for name in _PICTURE.findall(text):
                if "://" not in name and not (folder / name).exists():
                    yield Found(line, f"no file {name!r} beside the notebook")


@rule("study-without-claims", "notice", "a study that claims nothing", "say what would decide its question")
def study_without_claims(reading: Reading) -> Iterator[Found]:
    for cell, study in reading.studies:
        if not study.claims:
            yield Found(cell.opening_line, f"{study.id!r} has {len(study.arms)} arms and no claim")


@rule("study-without-question", "notice", "a study without a question", "write the question down in one sentence")
def study_without_question(reading: Reading) -> Iterator[Found]:
    for cell, study in reading.studies:
        if not study.question:
            yield Found(cell.opening_line, f"{study.id!r} does not say what it asks")


@rule(
    "claim-without-smallest",
    "notice",
    "a claim without a smallest effect of interest: it can hardly be refuted",
    "end it with `smallest s`, s the smallest effect that would matter",
)
def claim_without_smallest(reading: Reading) -> Iterator[Found]:
    for cell, study in reading.studies:
        for claim in study.claims:
            if claim.smallest is None and claim.kind not in ("equal", "proxy"):
                yield Found(_line(study, cell, "claims", claim.id), f"{claim.id!r}: {claim.text}")


@rule("study-single-seed", "warning", "a study on one or two seeds", "give three seeds or more, eight if you can")
def study_single_seed(reading: Reading) -> Iterator[Found]:
    for cell, study in reading.studies:
        if len(study.seeds) < 3 and study.claims:
            n = len(study.seeds)
            yield Found(
                _line(study, cell, "seeds"), f"{study.id!r} has {n} seed{'s' * (n > 1)}: no claim can be decided"
            )


@rule(
    "claim-unanswered",
    "notice",
    "a claim that never got an answer",
    "give `winnow run`, or add the seeds that it asks for",
)
def claim_unanswered(reading: Reading) -> Iterator[Found]:
    """A study that another one replaces is withdrawn, and needs no answer."""
    blocks = _blocks(reading)
    replaced = {study.supersedes for _, study in reading.studies if study.supersedes != study.id}
    for cell, study in reading.studies:
        if study.id in replaced:
            continue
        block = blocks.get(study.id)
        undecided = set() if block is None else set(_UNANSWERED.findall(block.content))
        for claim in study.claims:
            if block is None or escape(claim.id) in undecided:
                why = "has not been judged" if block is None else "is undecided"
                yield Found(_line(study, cell, "claims", claim.id), f"{claim.id!r} {why}")


@rule(
    "hypothesis-without-claim",
    "notice",
    "a hypothesis in prose beside a study that makes no claim of it",
    'write it into the cell: claims.h1 = "A better-than B on METRIC smallest s"',
)
def hypothesis_without_claim(reading: Reading) -> Iterator[Found]:
    """Beside: in the same section, where the study has fewer claims than the section has hypotheses."""
    hypotheses: dict[int, list[Hypothesis]] = {}
    for item in reading.statements.hypotheses:
        hypotheses.setdefault(item.section, []).append(item)
    starts = [section.line for section in reading.page.sections]
    studies: dict[int, list[Study]] = {}
    for cell, study in reading.studies:
        studies.setdefault(bisect.bisect_right(starts, cell.opening_line) - 1, []).append(study)
    for section, beside in studies.items():
        claims = sum(len(study.claims) for study in beside)
        for item in hypotheses.get(section, [])[claims:]:
            yield Found(item.line, f"the studies of this section make {claims} claim{'s' * (claims != 1)}")


@rule(
    "supersedes-unknown",
    "notice",
    "a study that replaces one that is not on the page: another notebook of the store has it, or none",
    "see whether `winnow check` knows it",
)
def supersedes_unknown(reading: Reading) -> Iterator[Found]:
    known = {item.cell.study for item in reading.cells}
    for cell, study in reading.studies:
        if study.supersedes is not None and study.supersedes not in known:
            yield Found(_line(study, cell, "supersedes"), f"no cell declares {study.supersedes!r}")


@rule(
    "supersedes-refused",
    "error",
    "a study that replaces itself, one that is replaced already, or one that replaces it in turn",
    "leave one of these keys out",
)
def supersedes_refused(reading: Reading) -> Iterator[Found]:
    """Of rivals the later one, of a circle its last cell."""
    lines = {study.id: _line(study, cell, "supersedes") for cell, study in reading.studies}
    replaces = {study.id: study.supersedes for _, study in reading.studies if study.supersedes is not None}
    first: dict[str, str] = {}
    for study, old in replaces.items():
        rival = first.setdefault(old, study)
        if rival != study:
            mend = f"supersede {rival!r}, or drop one of the two"
            yield Found(lines[study], f"{old!r} is superseded by {rival!r} already", (lines[rival],), mend)
    settled: set[str] = set()
    for start in replaces:
        chain: dict[str, None] = {}
        place: str | None = start
        while place is not None and place not in settled and place not in chain:
            chain[place] = None
            place = replaces.get(place)
        if place is not None and place in chain:
            names = list(chain)
            circle = names[names.index(place) :]
            *others, last = sorted(lines[name] for name in circle)
            if others:
                yield Found(
                    last, f"studies supersede each other: {' supersedes '.join([*circle, place])}", tuple(others)
                )
            else:
                yield Found(last, f"study {place!r} supersedes itself", mend="name the earlier study")
        settled.update(chain)

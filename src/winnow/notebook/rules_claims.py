"""Rules about hypotheses, results and what a reader needs to believe them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from winnow.notebook.pages import Fence, Prose
from winnow.notebook.rules import OUTDATED, Found, Reading, rule
from winnow.notebook.statements import ABOVE, LINK, Hypothesis, alike, words_of

_NUMBER = re.compile(r"(?<![\w.=-])[-+]?\d+(?:[.,]\d+)*(?:e-?\d+)?\s?%?(?![\w=])|\b\d+(?:\.\d+)?x\b")
_METRIC = re.compile(
    r"\b(?:loss(?:es)?|ce|perplexity|p?plx|ppl|accuracy|error|bpb|bits|nats|curves?|throughput|speed|time|grad\w*|score)\b",
    re.I,
)
_DIRECTION = re.compile(
    r"\b(?:better|worse|best|worst|lower|higher|less|more|smaller|larger|bigger|faster|slower|beats?|beat|wins?|match\w*|"
    r"equal\w*|identical\w*|same|diverge\w*|bad(?:ly)?|good|equivalent|indistinguishable|degrad\w+|improv\w+|increas\w+|decreas\w+)\b",
    re.I,
)
_SEEDS = re.compile(r"\bseeds?\b|\bruns\b|\bn ?= ?\d|±|\bstd\b|\bsd\b|\bconfidence\b", re.I)
_OPEN = re.compile(
    r"\bunclear\b|\bidk\b|\bI (?:still |acc |actually )*do(?:n't| not) (?:still |acc |actually )*know\b|\bnot sure\b"
    r"|\binconclusive\b|\bhard to (?:say|tell)\b|\bcan(?:'t|not) tell\b|\bmay(?:be)? (?:just )?be noise\b"
    r"|\bjust noise\b|\bwait (?:on|for) (?:the|a) longer\b|\bmore seeds later\b|\bto be seen\b",
    re.I,
)
_LOST = re.compile(
    r"\b(?:didn't|did not|forgot to|failed to|couldn't) (?:upload|save|record|log)\b"
    r"|\baccidentally (?:deleted|removed|overwrote)\b|\blost the (?:model|weights|checkpoint|log)"
    r"|\b(?:don't|do not|no longer) have the (?:model|artefact|artifact|weights|checkpoint|log)",
    re.I,
)
_DIFFERENCE = re.compile(r"\bdifferen(?:ce|t)\b", re.I)
_NO_DIFFERENCE = re.compile(r"\b(?:no|not|hardly|barely|without|\w+n't)\b[^.]{0,30}\bdifferen", re.I)
_STOPPED = re.compile(
    r"\bstopp(?:ed|ing)\b[^.!?]{0,40}\bruns?\b[^.!?]{0,40}\b(?:early|partial)\b|\bstopped early\b", re.I
)
_ITSELF = re.compile(
    r"(?:\b(?:the|all|all the|every) )?"
    r"\b(?P<one>[\w=.-]*\w(?: (?:runs?|models?|heads?|arms?|seeds?|inits?|baselines?))?) "
    r"(?:is|are|was|were|seems?|seem|looks?|look|did|does|do|performs?|performed)\b[^.;:()!?]{0,50}?"
    r"\b(?:than|vs\.?|versus) (?:all |the |all the |every )?(?P=one)(?![\w-])",
    re.I,
)
_WITHOUT_DIRECTION = re.compile(
    r"\b(?:had|has|have|got|gets|is|was|at) (?:a )?(?:much|slightly|a lot|a bit|a little|way|far)\s+"
    r"((?:\w+ ){1,3})than\b",
    re.I,
)
_COMPARATIVE = re.compile(r"\b(?:more|less|fewer|better|worse|rather|other|further|\w+er)\b", re.I)
_NOT_RUN = re.compile(
    r"\b(?:didn't|did not|never|haven't|have not) (?:acc |actually |end up )?r[ua]n\b|\bnot run\b", re.I
)
_THAN = re.compile(
    r"\b(?:than|identical to|same as|as good as|as bad as|equal to|match(?:es|ed)?) (?:the |a |an )?"
    r"((?:[\w=.-]+ ?){1,6})",
    re.I,
)


@rule(
    "hypothesis-unanswered",
    "warning",
    "a hypothesis that never got an answer",
    "end it as supported, refuted, undecided, invalid or not run; or make it a claim of a study",
)
def hypothesis_unanswered(reading: Reading) -> Iterator[Found]:
    for item in reading.statements.hypotheses:
        if item.result is None and item.verdict is None:
            yield Found(item.line, f"nothing on the page answers {_short(item.text)}")


@rule(
    "hypothesis-not-run",
    "warning",
    "a hypothesis whose runs were never made",
    "run it, or strike it out",
)
def hypothesis_not_run(reading: Reading) -> Iterator[Found]:
    for item in reading.statements.hypotheses:
        if item.result is not None and _NOT_RUN.search(LINK.sub("", item.result.text.split("\n\n")[0])):
            yield Found(item.line, "its result says that nothing was run", (item.result.line,))


@rule(
    "prediction-unanswered",
    "notice",
    "a prediction in passing that nothing answers",
    "write down what came of it, or make it a claim of a study",
)
def prediction_unanswered(reading: Reading) -> Iterator[Found]:
    """Answered: by any outcome in its section, below it or above the block."""
    for item in reading.statements.predictions:
        if not _has_outcome(reading, item.section):
            yield Found(item.line, f"nothing in its section answers {_short(item.text)}")


@rule(
    "section-without-result",
    "warning",
    "a section of runs that says nothing of how they came out",
    "write the outcome under them",
)
def section_without_result(reading: Reading) -> Iterator[Found]:
    for index, section in enumerate(reading.page.sections):
        runs, _ = reading.by_section[index]
        if not runs or OUTDATED.search(section.title) or _has_outcome(reading, index):
            continue
        blocks = f"{len(runs)} block{'s' * (len(runs) > 1)} and no outcome"
        yield Found(section.line, f"{blocks} in {_short(section.title)}", tuple(run.line for run in runs))


def _has_outcome(reading: Reading, index: int) -> bool:
    """A labelled result, a table below a block, or words of an outcome.

    The words stand in prose about no single block, in one that begins with "update", or in the next heading.
    """
    items = reading.page.sections[index].items
    fences = [number for number, item in enumerate(items) if isinstance(item, Fence)]
    tables = (isinstance(item, Prose) and item.kind == "table" for item in items[fences[0] :]) if fences else ()
    if index in reading.sections_with_results or any(tables):
        return True
    runs, here = reading.by_section[index]
    leads = {item.line for run in runs for item in run.launch.lead}
    loose = [item.text for item in here if item.line not in leads or re.match(r"\s*update\b", item.text, re.I)]
    following = reading.page.sections[index + 1].title if index + 1 < len(reading.page.sections) else ""
    said = re.match(r"(?:OK|so|well|hm+|update)\b[^.?!]*\b(?:seems?|is|it's|was|were|did)\b", following, re.I)
    return bool(said) or any(_DIRECTION.search(LINK.sub("", text)) or "](http" in text for text in loose)


@rule(
    "run-without-result",
    "warning",
    "a run for a hypothesis of its section that never got an answer",
    "write down how it came out, or that it was not run",
)
def run_without_result(reading: Reading) -> Iterator[Found]:
    """The hypothesis that shares most of its words with a block's prose is taken for the block's."""
    loose: dict[int, list[Hypothesis]] = {}
    for item in reading.statements.hypotheses:
        if not item.launches:
            loose.setdefault(item.section, []).append(item)
    for run in reading.runs:
        candidates = loose.get(run.launch.section, [])
        said = words_of(run.lead)
        if not candidates or not said:
            continue
        scored = [(_overlap(item, said), item) for item in candidates]
        best = max(score for score, _ in scored)
        found = [item for score, item in scored if score == best]
        if best >= 0.6 and all(item.result is None and item.verdict is None for item in found):
            yield Found(run.line, f"nothing answers the hypothesis on line {found[0].line}", (found[0].line,))


def _overlap(item: Hypothesis, said: tuple[str, ...]) -> float:
    """Share of the block's words that stand in the hypothesis."""
    words = words_of(item.text)
    return sum(alike(words, word) for word in said) / len(said)


@rule(
    "result-incomplete",
    "notice",
    "a result that does not say what was measured, by how much, or on how many seeds",
    "give metric, direction, value with its unit, and seeds",
)
def result_incomplete(reading: Reading) -> Iterator[Found]:
    for _, result in reading.results:
        text = LINK.sub(" ", result.text)
        if not text.strip(" \n.,:;()") or _NOT_RUN.search(text) or ABOVE.match(text):
            continue
        lacks = [
            name
            for name, pattern in (("metric", _METRIC), ("direction", _DIRECTION), ("value", _NUMBER), ("seeds", _SEEDS))
            if not pattern.search(text)
        ]
        if lacks:
            yield Found(
                result.line, f"says no {' and no '.join([', no '.join(lacks[:-1]), lacks[-1]] if lacks[1:] else lacks)}"
            )


@rule(
    "result-empty", "warning", "a result with nothing behind its label", "write the outcome down, or take the label out"
)
def result_empty(reading: Reading) -> Iterator[Found]:
    for _, result in reading.statements.results:
        if not LINK.sub("x", result.text).strip():
            yield Found(result.line, "the label stands alone")


@rule(
    "result-open",
    "notice",
    "a result that leaves the question open",
    "end it as undecided, with what would decide it",
)
def result_open(reading: Reading) -> Iterator[Found]:
    for _, result in reading.results:
        for line, text in reading.numbered(result):
            match = _OPEN.search(text)
            if match:
                yield Found(line, f"{match.group()!r}")
                break


@rule(
    "result-of-another",
    "notice",
    "a hypothesis that compares with one arm and a result that compares with another",
    "say how it came out against the arm that the hypothesis names",
)
def result_of_another(reading: Reading) -> Iterator[Found]:
    for item in reading.statements.hypotheses:
        if item.result is None:
            continue
        named = [set(words_of(match[1])) for match in _THAN.finditer(item.text.split(". ")[0])]
        if _WON.search(item.result.text):
            continue
        answered = [set(words_of(match[1])) for match in _EQUALLED.finditer(item.result.text)]
        heard = {word for words in answered for word in words} - set(_COMMON)
        if named and heard and not any(alike(heard, word) for words in named for word in words if word not in _COMMON):
            yield Found(
                item.result.line, f"compares with another arm than the hypothesis on line {item.line}", (item.line,)
            )


_WON = re.compile(r"\b(?:better|worse|lower|higher|beats?)\b", re.I)
_EQUALLED = re.compile(r"\b(?:identical to|same as|equal to|match(?:es|ed)) (?:the |a |an )((?:[\w=.-]+ ?){1,6})", re.I)
_COMMON = (
    "one",
    "run",
    "runs",
    "model",
    "other",
    "others",
    "experiment",
    "experiments",
    "baseline",
    "loss",
    "much",
    "than",
    "better",
)


@rule(
    "compared-with-itself",
    "error",
    "a sentence that compares an arm with itself",
    "name the other arm",
)
def compared_with_itself(reading: Reading) -> Iterator[Found]:
    for line, text in _lines(reading):
        match = _ITSELF.search(LINK.sub(" ", text))
        if match and match["one"].casefold() not in ("it", "that", "this", "they", "one", "ones", "there"):
            yield Found(line, _short(match.group(), 70))


@rule(
    "comparison-without-direction",
    "warning",
    "a comparison in which the word for its direction is missing",
    "say whether it is lower or higher",
)
def comparison_without_direction(reading: Reading) -> Iterator[Found]:
    for line, text in _lines(reading):
        for match in _WITHOUT_DIRECTION.finditer(text):
            if not _COMPARATIVE.search(match[1]):
                yield Found(line, repr(match.group()))


@rule(
    "difference-without-direction",
    "notice",
    "a summary that speaks of a difference and not of its direction",
    "say which of the two is better",
)
def difference_without_direction(reading: Reading) -> Iterator[Found]:
    for _, result in reading.results:
        text = LINK.sub(" ", result.text)
        if _DIFFERENCE.search(text) and not _NO_DIFFERENCE.search(text) and not _DIRECTION.search(text):
            yield Found(result.line, _short(re.sub(r"\s+", " ", text).strip(), 60))


@rule(
    "artefact-lost",
    "notice",
    "a result whose weights or logs are gone",
    "run it again, or count it as not run",
)
def artefact_lost(reading: Reading) -> Iterator[Found]:
    for line, text in _lines(reading):
        match = _LOST.search(text)
        if match:
            yield Found(line, repr(match.group()))


@rule(
    "stopped-early",
    "warning",
    "runs that were stopped by looking at them: what is left of them is chosen by its outcome",
    "declare when to look and what stops a run, before it starts",
)
def stopped_early(reading: Reading) -> Iterator[Found]:
    for line, text in _lines(reading):
        match = _STOPPED.search(text)
        if match:
            yield Found(line, _short(match.group(), 60))


@rule("section-empty", "notice", "a heading with nothing under it", "write what belongs there, or take it out")
def section_empty(reading: Reading) -> Iterator[Found]:
    sections = reading.page.sections
    for index, section in enumerate(sections):
        if section.heading is None or section.items or "\n" in section.title:
            continue
        below = sections[index + 1] if index + 1 < len(sections) else None
        above = reading.page.lines[section.line - 2] if section.line > 1 else ""
        # A `#` amid lines of text is a comment of code that lost its fence.
        crowded = bool(above.strip()) or (below is not None and below.line == section.line + 1)
        if not crowded and (below is None or below.level <= section.level):
            yield Found(section.line, _short(section.title))


@rule("arm-empty", "notice", "an arm that is named and nothing more", "give its command and its hypothesis, or drop it")
def arm_empty(reading: Reading) -> Iterator[Found]:
    """A paragraph of one line that ends in a colon, where the next one is another, or the section ends."""
    for section in reading.page.sections:
        items = section.items
        for index, item in enumerate(items):
            after = items[index + 1] if index + 1 < len(items) else None
            if _is_name(item) and (after is None or _is_name(after)):
                assert isinstance(item, Prose)
                yield Found(item.line, _short(item.text))


def _is_name(item) -> bool:
    return (
        isinstance(item, Prose)
        and item.kind == "paragraph"
        and bool(re.fullmatch(r"[^\n\[\](){}=]{3,80}:\s*", item.text))
    )


@rule(
    "evidence-missing",
    "warning",
    "hypotheses and results with no command and no study: nothing can be run again",
    "write the commands down, or a study cell for each comparison",
)
def evidence_missing(reading: Reading) -> Iterator[Found]:
    found = reading.statements
    if found.hypotheses and found.results and not reading.runs and not _has_study(reading):
        n = len(found.results)
        yield Found(found.hypotheses[0].line, f"{len(found.hypotheses)} hypotheses, {n} results, no command")


def _has_study(reading: Reading) -> bool:
    return any(
        [word.casefold() for word in fence.info.split()[:2]] == ["toml", "study"] for fence in reading.page.fences()
    )


def _lines(reading: Reading) -> Iterator[tuple[int, str]]:
    for _, item in reading.prose:
        yield from item.numbered()


def _short(text: str, longest: int = 50) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= longest else line[: longest - 3] + "...")

"""What a notebook's prose claims: hypotheses, what became of them, and predictions made in passing.

Nothing is understood, only found by form: a label (`Hypothesis:`, `Result:`), a list under a line that announces
hypotheses, a summary whose entries quote or name what they judge. A summary's entry is linked to the hypothesis of its
section that shares most of its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from winnow.notebook.launches import GROUPS, NAMES, SEEDS, Launch
from winnow.notebook.pages import Fence, Page, Prose, Section

_LABEL = r"^\s*[*_]{0,3}%s[*_]{0,3}\s*:[*_]{0,3}(?=\s|$)\s*"
HYPOTHESIS = re.compile(_LABEL % r"(?:hypothesis|prediction)(?: #?\d+)?", re.IGNORECASE)
RESULT = re.compile(_LABEL % r"(?:(?:[\w-]+ )?results?|conclusions?|outcome|verdict)(?: #?\d+)?", re.IGNORECASE)
_ANNOUNCED = re.compile(r"\b(?:hypotheses|predictions)\s*:\s*$", re.IGNORECASE)
_SUMMARY = re.compile(r"\b(?:results?|findings|conclusions?)\b[^:]*:\s*$", re.IGNORECASE)
ABOVE = re.compile(r"\s*(?:see|as) above\b", re.IGNORECASE)
_PREDICTION = re.compile(
    r"\bI(?:'d| would| do)?(?: fully| kinda)? (?:expect|predict|bet|hypothesi[sz]e|suspect)\b"
    r"|\bshould (?:(?:hopefully|probably|also|roughly|still|~|be (?:identical|equal|equally|equivalent|equiv|super|"
    r"slightly|much|better|worse|the same)|match|reproduce|do everything|act like|look like)\b|~match)",
    re.IGNORECASE,
)
LINK = re.compile(r"!?\[[^\]]*\]\([^)]*\)|https?://\S+")
_MARK = re.compile(r"""\s*<(?:a id="[^"]*"></a>|sub>[^<]*</sub>)""")
"""An anchor, or small print: what `winnow import` puts behind a line is not what its author said."""
_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_STOP = (
    "a", "an", "and", "as", "at", "be", "by", "for", "i", "in", "is", "it", "its", "of", "on", "or", "s", "so", "that",
    "the", "this", "to", "vs", "will", "with", "would",
)  # fmt: skip
_COVERED = 0.6
"""Share of a summary entry's words that a hypothesis, its block's prose and its options must have."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was written about an outcome, from its label to the next label, fence, rule or heading."""

    text: str
    line: int
    last_line: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A hypothesis in prose, without its label."""

    text: str
    line: int
    section: int
    """Index of its section in the page."""
    launches: tuple[int, ...]
    """Launches of the fence right after it; none where a rule or another heading comes between."""
    result: Result | None = None
    """Its own."""
    verdict: Result | None = None
    """An entry of its section's summary that judges it."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A sentence in passing that says what a run will show."""

    text: str
    line: int
    section: int
    launches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Statements:
    """Everything found on a page."""

    hypotheses: tuple[Hypothesis, ...]
    predictions: tuple[Prediction, ...]
    results: tuple[tuple[int, Result], ...]
    """Labelled results with the index of their section, whether a hypothesis owns them or not."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a summary: what it names, and the judgement."""

    words: tuple[str, ...]
    result: Result


def statements(page: Page, launches: Sequence[Launch]) -> Statements:
    """Read the prose of a page. launches: those of the same page."""
    hypotheses: list[Hypothesis] = []
    predictions: list[Prediction] = []
    results: list[tuple[int, Result]] = []
    by_fence: dict[int, list[int]] = {}
    for index, launch in enumerate(launches):
        by_fence.setdefault(launch.line, []).append(index)
    for number, section in enumerate(page.sections):
        found, own = _section(section, number, by_fence)
        entries = list(_entries(section))
        said = (replace(item, text=_MARK.sub("", item.text)) for item in found)
        hypotheses += [_judged(item, entries, section, launches) for item in said]
        results += [(number, result) for result in own]
        taken = [(item.line, item.line + item.text.count("\n")) for item in found]
        taken += [(result.line, result.last_line) for result in own]
        predictions += _predictions(section, number, by_fence, taken)
    return Statements(tuple(hypotheses), tuple(predictions), tuple(results))


def _section(section: Section, number: int, by_fence: dict[int, list[int]]) -> tuple[list[Hypothesis], list[Result]]:
    found: list[Hypothesis] = []
    results: list[Result] = []
    items = section.items
    for position, item in enumerate(items):
        if not isinstance(item, Prose) or not item.is_text:
            continue
        for start, kind, text in _labelled(item):
            launches = _next_launches(items, position, by_fence)
            if kind == "hypothesis":
                found.append(Hypothesis(text, start, number, launches))
            else:
                result = _result(items, position, start, text)
                results.append(result)
                if found and found[-1].result is None and _answered(section, found[-1].line, start) is None:
                    found[-1] = replace(found[-1], result=result)
        if _ANNOUNCED.search(item.text):
            found += _announced(items, position, number)
    # A hypothesis of a list knows better where its result ends: before the next one.
    own = {each.result.line: each.result for each in found if each.result is not None}
    return sorted(found, key=lambda each: each.line), [own.get(result.line, result) for result in results]


def _answered(section: Section, first: int, last: int) -> int | None:
    """Line of another result's label between two lines; None where there is none."""
    for item in section.items:
        if isinstance(item, Prose) and item.is_text and item.last_line > first and item.line < last:
            for line, kind, _ in _labelled(item):
                if first < line < last and kind == "result":
                    return line
    return None


def _labelled(item: Prose) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of every labelled part of a paragraph."""
    parts: list[tuple[int, str, list[str]]] = []
    for line, text in item.numbered():
        for kind, label in (("hypothesis", HYPOTHESIS), ("result", RESULT)):
            match = label.match(text)
            if match:
                parts.append((line, kind, [text[match.end() :]]))
                break
        else:
            if parts:
                parts[-1][2].append(text)
    return ((line, kind, "\n".join(texts)) for line, kind, texts in parts)


def _result(items: Sequence[Prose | Fence], position: int, line: int, text: str) -> Result:
    """A result goes on over the paragraphs that follow its label."""
    item = items[position]
    parts, last = [text], item.last_line
    labels = [start for start, _, _ in _labelled(item) if start > line] if isinstance(item, Prose) else []
    if labels:
        return Result(text, line, labels[0] - 1)
    for later in items[position + 1 :]:
        if not isinstance(later, Prose) or later.is_break or later.kind == "html" or any(_labelled(later)):
            break
        parts.append(later.text)
        last = later.last_line
    return Result("\n\n".join(parts), line, last)


def _next_launches(items: Sequence[Prose | Fence], position: int, by_fence: dict[int, list[int]]) -> tuple[int, ...]:
    for later in items[position + 1 :]:
        if isinstance(later, Fence):
            return tuple(by_fence.get(later.opening_line, ()))
        if later.is_break:
            break
    return ()


def _announced(items: Sequence[Prose | Fence], position: int, number: int) -> Iterator[Hypothesis]:
    """Hypotheses under a line that ends in `hypotheses:`: list items, or paragraphs that a result follows."""
    following: list[Prose] = []
    for later in items[position + 1 :]:
        if not isinstance(later, Prose) or later.is_break:
            break
        following.append(later)
    listed = [item for item in following if item.kind == "item"]
    for index, item in enumerate(following):
        if item.kind == "item":
            if item.depth == listed[0].depth and not any(_labelled(item)):
                yield Hypothesis(item.text, item.line, number, ())
        elif not listed and not any(_labelled(item)):
            after = following[index + 1] if index + 1 < len(following) else None
            answer = after is not None and next((part for part in _labelled(after) if part[1] == "result"), None)
            above = after is not None and ABOVE.match(after.text)
            if answer and after:
                where = items.index(after)
                # Its words end where the next hypothesis begins: the paragraph before the next result.
                end = next((n for n in range(index + 2, len(following)) if _is_result(following[n])), len(following))
                until = items[: items.index(following[end - 1])] if end < len(following) else items
                yield Hypothesis(item.text, item.line, number, (), _result(until, where, answer[0], answer[2]))
            elif above and after:
                yield Hypothesis(item.text, item.line, number, (), Result(after.text, after.line, after.last_line))
            elif index == 0:
                yield Hypothesis(item.text, item.line, number, ())


def _is_result(item: Prose) -> bool:
    return bool(ABOVE.match(item.text)) or any(kind == "result" for _, kind, _ in _labelled(item))


def _entries(section: Section) -> Iterator[_Entry]:
    """Entries of the section's summary: list items that quote, and paragraphs that begin by naming a comparison."""
    inside = False
    quoted: list[Prose] = []
    for item in [*section.items, None]:
        stop = item is None or isinstance(item, Fence) or item.is_break
        if quoted and (stop or (isinstance(item, Prose) and item.depth <= quoted[0].depth)):
            yield _quoted(quoted)
            quoted = []
        if stop:
            inside = False
        elif isinstance(item, Prose) and item.is_text:
            if _SUMMARY.search(item.text):
                inside = True
            elif quoted:
                quoted.append(item)
            elif inside and re.match(r'\s*["“]', item.text):
                quoted = [item]
            elif inside and item.kind == "paragraph":
                head = re.split(r"\.\s|\s?[-–]\s|\s\[|\. ?\[|\n", item.text, maxsplit=1)[0]
                if re.search(r"\bvs\b\.?|\bversus\b", head):
                    yield _Entry(words_of(head), Result(item.text, item.line, item.last_line))


def _quoted(items: Sequence[Prose]) -> _Entry:
    head = re.match(r'\s*["“](.*?)["”]', items[0].text, re.DOTALL)
    said = head[1] if head else items[0].text
    rest = items[0].text[head.end() :] if head else ""
    text = "\n".join(part for part in [rest.strip(), *(item.text for item in items[1:])] if part)
    return _Entry(words_of(said), Result(text, items[0].line, items[-1].last_line))


def _judged(item: Hypothesis, entries: Sequence[_Entry], section: Section, launches: Sequence[Launch]) -> Hypothesis:
    """The hypothesis with the summary's entry that covers it best."""
    if item.result is not None or not entries:
        return item
    said = set(words_of(item.text))
    options: set[str] = set()
    for index in item.launches:
        launch = launches[index]
        said.update(word for prose in launch.lead for word in words_of(prose.text))
        for option in launch.options:
            if option.name not in (*NAMES, *GROUPS, *SEEDS):
                options.update(words_of(f"{option.name} {option.value or ''}"))
    best: tuple[float, int] = (0.0, 0)
    chosen: Result | None = None
    for entry in entries:
        by_options = sum(alike(options, word) for word in entry.words)
        score = sum(alike(said | options, word) for word in entry.words) / max(len(entry.words), 1)
        if score >= _COVERED and len(entry.words) > 1 and (score, by_options) > best:
            best, chosen = (score, by_options), entry.result
    return replace(item, verdict=chosen)


def words_of(text: str) -> tuple[str, ...]:
    """The words and numbers of a text that say something, each once, in small letters."""
    return tuple(dict.fromkeys(word for word in _WORD.findall(_MARK.sub("", text).casefold()) if word not in _STOP))


def alike(words: Iterable[str], wanted: str) -> bool:
    """Whether a word is there, in another form perhaps: one that begins like it."""
    if wanted in words:
        return True
    if len(wanted) < 3 or wanted[0].isdigit():
        return False
    beginning = wanted[:3]
    return any(word[:3] == beginning and (word.startswith(wanted) or wanted.startswith(word)) for word in words)


def _predictions(
    section: Section, number: int, by_fence: dict[int, list[int]], taken: Sequence[tuple[int, int]]
) -> Iterator[Prediction]:
    for position, item in enumerate(section.items):
        if not isinstance(item, Prose) or not item.is_text:
            continue
        launches = _next_launches(section.items, position, by_fence)
        if not launches:
            continue
        for line, text in item.numbered():
            match = _PREDICTION.search(text)
            if match and not text.rstrip().endswith("?") and not any(first <= line <= last for first, last in taken):
                yield Prediction(text.strip(), line, number, launches)

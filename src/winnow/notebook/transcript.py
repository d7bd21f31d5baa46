"""An imported notebook as Markdown: the source's prose, study cells, what each command became, and a count at the end.

Credentials in links are taken out; nothing else of the prose is changed. Lines that are named are those of the source.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from winnow.notebook.cells import LONGEST_LINE, entries, shared, toml
from winnow.notebook.gathering import ImportedArm, ImportedRun, ImportedStudy
from winnow.notebook.importer import Imported, Refused, reasons
from winnow.notebook.launches import Launch
from winnow.notebook.pages import Fence
from winnow.notebook.results import escape, table
from winnow.notebook.statements import Hypothesis
from winnow.records.remote import public_url

SECTIONS = ("task", "model", "train", "init_from", "graft")
"""What an arm may hold, in the order in which a cell says it."""
_URL = re.compile(r"https?://[^\s)>\"'\]]+")
APART = "\0"
"""Stands for a blank line that is there at most once; no source holds a NUL."""
_SHOWN = 160
"""Characters of a hypothesis that the list at the end shows."""


def transcript(imported: Imported) -> str:
    """The notebook."""
    page = imported.page
    lines = _apart(_prose(imported))
    text = "\n".join([*lines[: page.front], *_opening(imported), *lines[page.front :], *_closing(imported)])
    return text.rstrip("\n") + "\n"


def _apart(lines: Iterable[str]) -> list[str]:
    """The lines, with one blank line wherever APART stands, unless there is one already."""
    found: list[str] = []
    wanted = False
    for line in lines:
        if line == APART:
            wanted = True
            continue
        if wanted and line.strip() and found and found[-1].strip():
            found.append("")
        elif wanted and not line.strip() and found and not found[-1].strip():
            continue
        found.append(line)
        wanted = False
    return found


def cell(imported: Imported, study: ImportedStudy) -> str:
    """The TOML of a study."""
    tables = [_ordered(imported, arm) for arm in study.arms]
    base, rests = shared(tables)
    base["evaluation"] = study.evaluation
    sizes = [len(_leaves(rest)) for rest in rests]
    control = study.arms[sizes.index(min(sizes))].name
    title = imported.page.sections[study.section].title
    lines = [f"id = {toml(study.id)}"]
    lines += [f"question = {toml(title)}"] if title else []
    lines += [f"seeds = {toml(list(study.seeds))}", f"control = {toml(control)}"]
    for key, value in base.items():
        lines += entries(key, value, "base")
    for arm, rest in zip(study.arms, rests, strict=True):
        said = entries(arm.name, rest, "arms")
        short = len(said) == 1 and len(said[0]) + len(_ran(arm)) < LONGEST_LINE
        lines += [f"{said[0]}  # {_ran(arm)}"] if short else [f"# {_ran(arm)}", *said]
    return "\n".join(lines)


def _ordered(imported: Imported, arm: ImportedArm) -> dict[str, Any]:
    full = arm.full()
    full["task"] = {**imported.task, **full["task"]}
    return {key: full[key] for key in SECTIONS if key in full}


def _ran(arm: ImportedArm) -> str:
    """Which commands of the source an arm stands for."""
    lines = ", ".join(str(run.line) for run in arm.runs)
    seeds = ", ".join(map(str, arm.seeds))
    many = "s" if len(arm.runs) > 1 else ""
    return f"line{many} {lines}; seed{'s' if len(arm.seeds) > 1 else ''} {seeds}"


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [value]


def _opening(imported: Imported) -> list[str]:
    page = imported.page
    digest = hashlib.sha256(page.data).hexdigest()[:16]
    parts = [
        f"# {escape(page.path.stem)}, imported",
        f"From `{page.path.name}` (SHA-256 `{digest}...`). The prose is the source's; lines that are named are its "
        "lines. Each command gave way to the run that it became, or to the reason why it became none; counts and lists "
        "stand at the [end](#what-was-imported).",
    ]
    if imported.studies:
        parts.append(f"Size: **{imported.scale.name}**: {imported.scale.about}.")
        if imported.task["source"] == "stdlib":
            parts.append(
                "> **Not the source's text.** No text was given (`--source`), so every run reads the Python standard "
                "library, byte by byte. Losses here cannot be compared with losses that the prose reports; only "
                "differences between arms can be."
            )
    return [*"\n\n".join(parts).split("\n"), ""]


def _prose(imported: Imported) -> Iterator[str]:
    """The lines of the source, its commands replaced."""
    page = imported.page
    blocks: dict[int, list[int]] = {}
    for index, launch in enumerate(imported.launches):
        blocks.setdefault(launch.line, []).append(index)
    fences = {fence.opening_line: fence for fence in page.fences()}
    opened = {id(study.launch): study for study in imported.studies}
    marks = _marks(imported)
    number = 1
    while number <= page.n_lines:
        fence = fences.get(number)
        if fence is None:
            yield _clean(page.lines[number - 1]) + marks.get(number, "")
            number += 1
            continue
        if number in blocks:
            for index in blocks[number]:
                launch, outcome = imported.launches[index], imported.outcomes[index]
                study = opened.get(id(launch))
                if study is not None:
                    yield from [APART, "```toml study", *cell(imported, study).split("\n"), "```", APART]
                yield from [APART, *_said(launch, outcome, imported.name(launch)), APART]
        else:
            yield from _kept(fence, page.lines)
        number = fence.last_line + 1


def _kept(fence: Fence, lines: Sequence[str]) -> Iterator[str]:
    """A fence that starts no program; an open one is closed, or it would swallow what follows."""
    yield from (_clean(line) for line in lines[fence.opening_line - 1 : fence.last_line])
    if not fence.closed:
        yield fence.markup


def _said(launch: Launch, outcome: ImportedRun | Refused, called: str | None) -> list[str]:
    """What a command became, as a quotation."""
    state = "" if launch.state is None else f", there {_code(launch.state.text)}"
    if isinstance(outcome, tuple):
        name = f" {_code(called)}" if called else ""
        lines = [f"**Not imported**{name} (line {launch.line}{state})"]
        lines += [f"- line {item.line}: {escape(item.message)}" for item in outcome]
    else:
        again = "" if outcome.repeats is None else f": the run of line {outcome.repeats.line} again"
        lines = [f"**Run** `{outcome.place}` (line {launch.line}{state}){again}"]
        if outcome.settled.name != outcome.arm.name:
            lines[0] += f"; called {_code(outcome.settled.name)} there"
        lines += [f"- {escape(note)}" for note in outcome.notes]
    return [f"> {line}" for line in lines]


def _code(text: str) -> str:
    """A word of the source's as code; as text where it holds what would end the code or a column."""
    return f"`{text}`" if text and not set(text) & set("`|\n") else escape(text)


def _marks(imported: Imported) -> dict[int, str]:
    """What is put behind lines of prose: the number of a hypothesis, and which one a summary answers."""
    found: dict[int, str] = {}
    for number, item in enumerate(imported.hypotheses, 1):
        last = item.line + item.text.rstrip("\n").count("\n")
        found[last] = found.get(last, "") + f' <a id="h{number}"></a><sub>[H{number}](#hypotheses)</sub>'
        if item.result is None and item.verdict is not None:
            line = item.verdict.line
            found[line] = found.get(line, "") + f" <sub>answers [H{number}](#h{number})</sub>"
    return found


def _clean(line: str) -> str:
    """A line without credentials in its links."""
    return _URL.sub(lambda match: public_url(match.group()), line)


def _closing(imported: Imported) -> Iterator[str]:
    yield from ["", "## What was imported", "", *_wrapped(summary(imported)), ""]
    if imported.refused:
        yield from ["### Not imported", "", *_refusals(imported), ""]
    if imported.equal:
        yield from ["### One run under several names", ""]
        yield "The same settings and seed, defaults filled in: run once here. What they differ in there, the version of"
        yield "the code say, is not imported."
        yield from ["", *(f"- {_places(runs)}" for runs in imported.equal), ""]
    if imported.hypotheses:
        yield from ["### Hypotheses", ""]
        if imported.studies:
            yield "Notes, until somebody writes a claim on the arms of a study, in its cell:"
            yield from ['`claims.h1 = "a better-than b on val/ce smallest 0.01"`.', ""]
        yield from [*_hypotheses(imported), ""]


def summary(imported: Imported) -> list[str]:
    """What was found and what became of it, a sentence each."""
    found: list[str] = []
    counts = imported.outline.plain()
    if counts["experiments"]:
        arms, hypotheses = _many(counts["arms"], "arm"), _many(counts["hypotheses"], "hypothesis", "hypotheses")
        results = _many(counts["results"], "result")
        found.append(f"{_many(counts['experiments'], 'experiment')}, {arms}, {hypotheses}, {results}.")
        for lines, what in (
            (counts["silent_arms"], "Nothing stands under the arm"),
            (counts["empty_experiments"], "Nothing stands under the experiment"),
        ):
            if lines:
                found.append(f"{what}{'s' if len(lines) > 1 else ''} of line {', '.join(map(str, lines))}.")
    commands, runs = len(imported.launches), imported.runs
    if not commands:
        return [*found, "No command trains anything, so there is no study."]
    different = _many(len({run.digest for run in runs}), "different run")
    arms = _many(sum(len(study.arms) for study in imported.studies), "arm")
    studies = _many(len(imported.studies), "study", "studies")
    found.append(
        f"{_many(commands, 'command')}: {len(runs)} imported as {different} of {arms} in {studies}, "
        f"{len(imported.refused)} not imported."
    )
    found += [f"Not imported because of {why}: {number}." for why, number in reasons(imported)]
    answers = [imported.answer(item) for item in imported.hypotheses]
    if answers:
        found.append(
            f"{_many(len(answers), 'hypothesis', 'hypotheses')}: {answers.count('own result')} with a result of their "
            f"own, {answers.count('summary')} answered in a summary, {answers.count('none')} never answered."
        )
    return found


def _wrapped(sentences: Iterable[str]) -> list[str]:
    return [f"- {escape(sentence)}" for sentence in sentences]


def _many(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _refusals(imported: Imported) -> list[str]:
    rows = [
        [str(item.line), _code(imported.name(launch) or ""), escape(item.message)]
        for launch, refused in imported.refused
        for item in refused
    ]
    return table(["line", "run", "why"], rows).split("\n")


def _places(runs: Sequence[ImportedRun]) -> str:
    """Lines and places of one run; places that are the same are said once."""
    places = dict.fromkeys(run.place for run in runs)
    lines = ", ".join(str(run.line) for run in runs)
    return f"lines {lines}: {', '.join(f'`{place}`' for place in places)}"


def _hypotheses(imported: Imported) -> list[str]:
    rows = [
        [f"[H{number}](#h{number})", str(item.line), escape(_short(item.text)), _on(imported, item), _answer(item)]
        for number, item in enumerate(imported.hypotheses, 1)
    ]
    return table(["", "line", "hypothesis", "runs below it", "answer"], rows).split("\n")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN].rsplit(' ', 1)[0]} ..."


def _on(imported: Imported, item: Hypothesis) -> str:
    return ", ".join(f"`{run.place}`" for run in imported.runs_of(item)) or "-"


def _answer(item: Hypothesis) -> str:
    if item.result is not None:
        return f"line {item.result.line}"
    return f"summary, line {item.verdict.line}" if item.verdict is not None else "**none**"

"""A notebook of commands as a notebook of studies.

The prose stays where and as it is. A block of commands gives way to the name of the run that each command became, or
to the reason why it is none; above the first run of a study stands its cell. Hypotheses are marked, and linked with
what answers them; they are notes until somebody writes a claim. Needs no torch: what the settings mean is for
`winnow check`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import InputError
from winnow.notebook.arms import Choices, Refusal, settle
from winnow.notebook.document import CLOSING, OPENING
from winnow.notebook.frontmatter import read_front_matter
from winnow.notebook.gathering import Gathering, ImportedRun, ImportedStudy
from winnow.notebook.launches import Launch, launches
from winnow.notebook.outline import Outline, outline
from winnow.notebook.pages import Page
from winnow.notebook.program import Program, Role, program_of
from winnow.notebook.scale import Scale
from winnow.notebook.statements import Hypothesis, statements

Refused = tuple[Refusal, ...]


@dataclass(frozen=True)
class Imported:
    """What a notebook of commands says, in Winnow's words."""

    page: Page
    scale: Scale
    task: Mapping[str, Any]
    """What every run reads, context apart."""
    launches: tuple[Launch, ...]
    outcomes: tuple[ImportedRun | Refused, ...]
    """What each launch became."""
    studies: tuple[ImportedStudy, ...]
    equal: tuple[tuple[ImportedRun, ...], ...]
    """Runs under several names: the same settings and seed."""
    hypotheses: tuple[Hypothesis, ...]
    outline: Outline
    """Of a notebook without commands: experiments and arms by their headings."""
    programs: tuple[Program, ...]
    """What was known of programs."""

    @property
    def runs(self) -> tuple[ImportedRun, ...]:
        return tuple(each for each in self.outcomes if isinstance(each, ImportedRun))

    @property
    def refused(self) -> tuple[tuple[Launch, Refused], ...]:
        """Launches that became no run, and why."""
        pairs = zip(self.launches, self.outcomes, strict=True)
        return tuple((launch, each) for launch, each in pairs if isinstance(each, tuple))

    def name(self, launch: Launch) -> str | None:
        """How a launch calls its run."""
        return _said(launch, "name", self.programs)

    def answer(self, hypothesis: Hypothesis) -> str:
        """How a hypothesis was answered: "own result", "summary", or "none"."""
        if hypothesis.result is not None:
            return "own result"
        return "none" if hypothesis.verdict is None else "summary"

    def runs_of(self, hypothesis: Hypothesis) -> tuple[ImportedRun, ...]:
        """The runs that stand under a hypothesis."""
        found = (self.outcomes[index] for index in hypothesis.launches)
        return tuple(each for each in found if isinstance(each, ImportedRun))

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        commands: list[dict[str, Any]] = []
        for launch, outcome in zip(self.launches, self.outcomes, strict=True):
            state = None if launch.state is None else launch.state.text
            group = _said(launch, "group", self.programs)
            about = {"line": launch.line, "group": group, "name": self.name(launch), "state": state}
            if isinstance(outcome, ImportedRun):
                repeats = None if outcome.repeats is None else outcome.repeats.line
                run = {"study": outcome.study.id, "arm": outcome.arm.name, "seed": outcome.seed}
                commands.append({**about, **run, "digest": outcome.digest, "repeats": repeats, "notes": outcome.notes})
            else:
                why = [{"line": r.line, "option": r.option, "reason": r.reason, "message": r.message} for r in outcome]
                commands.append({**about, "refused": why})
        return {
            "file": str(self.page.path),
            "sha256": hashlib.sha256(self.page.data).hexdigest(),
            "preset": self.scale.name,
            "source": self.task["source"],
            "commands": commands,
            "studies": {
                study.id: {"seeds": list(study.seeds), "arms": {arm.name: list(arm.seeds) for arm in study.arms}}
                for study in self.studies
            },
            "equal": [[run.line for run in runs] for runs in self.equal],
            "hypotheses": [
                {
                    "line": item.line,
                    "text": item.text,
                    "runs": [run.place for run in self.runs_of(item)],
                    "answer": self.answer(item),
                    "answer_line": (item.result or item.verdict or item).line if self.answer(item) != "none" else None,
                }
                for item in self.hypotheses
            ],
            "outline": self.outline.plain(),
        }


def import_page(
    page: Page,
    programs: Sequence[Program],
    choices: Choices,
    scale: Scale,
    *,
    source: str = "stdlib",
    start: Path | None = None,
) -> Imported:
    """Read a notebook of commands.

    source: what the runs read, as in `task.source`; start: folder from which relative checkpoints are looked for (None:
    that of the notebook). Raises InputError for a notebook that is Winnow's already, or whose front matter, which
    becomes that of the new notebook, is refused.
    """
    read_front_matter(page.lines, page.path)
    for number, line in enumerate(page.lines, 1):
        if OPENING.match(line) or line.rstrip() == CLOSING:
            raise InputError(
                "is a notebook of Winnow's already", file=page.path, line=number, mend="winnow run runs it"
            )
    for fence in page.fences():
        if fence.info.casefold().split()[:2] == ["toml", "study"]:
            message, line = "has a study cell: it is a notebook of Winnow's already", fence.opening_line
            raise InputError(message, file=page.path, line=line, mend="winnow run runs it")
    found = launches(page)
    folder = page.path.resolve().parent if start is None else start
    gathering = Gathering(scale, folder, [section.title for section in page.sections])
    outcomes: list[ImportedRun | Refused] = []
    for launch in found:
        outcome = _outcome(launch, programs, choices, gathering)
        if isinstance(outcome, tuple):
            gathering.refuse(launch, _said(launch, "name", programs))
        outcomes.append(outcome)
    gathering.finish()
    return Imported(
        page=page,
        scale=scale,
        task=_task(source, folder),
        launches=found,
        outcomes=tuple(outcomes),
        studies=tuple(gathering.studies),
        equal=tuple(tuple(runs) for runs in gathering.equal()),
        hypotheses=statements(page, found).hypotheses,
        outline=outline(page),
        programs=tuple(programs),
    )


def _said(launch: Launch, role: Role, programs: Sequence[Program]) -> str | None:
    """What a launch gives for the option of a role; where its program is not described, for the usual one."""
    program = program_of(launch.module, programs)
    if program is None:
        return launch.name if role == "name" else launch.group
    option = launch.option(program.with_role(role) or "")
    return None if option is None else option.value


def _outcome(
    launch: Launch, programs: Sequence[Program], choices: Choices, gathering: Gathering
) -> ImportedRun | Refused:
    program = program_of(launch.module, programs)
    if program is None:
        message = f"no description of the program {launch.module} is known: give one with --program"
        return (Refusal(launch.command.line, "program", message),)
    settled = settle(launch, program, choices)
    if isinstance(settled, tuple):
        return settled
    added = gathering.add(settled)
    return (added,) if isinstance(added, Refusal) else added


def _task(source: str, folder: Path) -> dict[str, Any]:
    if (folder / source / "manifest.json").is_file():  # prepared shards bring their tokenizer
        return {"kind": "corpus", "source": source, "tokenizer": {"kind": "manifest"}}
    return {"kind": "corpus", "source": source}


def reasons(imported: Imported) -> list[tuple[str, int]]:
    """Why launches were refused, each with their number, most frequent first."""
    words = {
        "state": "a block state that is none",
        "program": "a program that is not described",
        "argument": "an argument that is no option",
        "name": "no name",
        "start": "a start that is not there",
    }
    found = {
        (launch.command.line, words.get(item.reason) or f"--{item.option}: {_WHY[item.reason]}")
        for launch, refusals in imported.refused
        for item in refusals
    }
    by_reason = Counter(reason for _, reason in found)
    return sorted(by_reason.items(), key=lambda pair: (-pair[1], pair[0]))


_WHY = {
    "unknown": "unknown",
    "value": "a value that it does not take",
    "effect": "without effect",
    "meaning": "its meaning has changed",
    "unbuilt": "a part that is not built",
    "size": "an update that does not divide",
}

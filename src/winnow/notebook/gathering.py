"""Settled launches as studies: which arm and seed each run is, and which run it starts from.

A study is what one group compares on one context; runs without a group belong to their section. Launches that differ
in their seed alone are seeds of one arm; one that repeats an earlier one is that run again. A run that starts from
another needs a study of its own below the parent's. Nothing here knows Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from winnow.config import digest
from winnow.notebook.arms import Refusal, Settled, Start, shown
from winnow.notebook.launches import Launch
from winnow.notebook.scale import Scale

INSIDE_EVERY = 200
"""Updates between looks at the inside, where the source looked."""
LONGEST = 100
"""Characters of a name; stores permit a few more, for numbers and sizes after it."""


@dataclass
class ImportedArm:
    """Runs of a study that differ in nothing but their seed."""

    table: dict[str, Any]
    """`task`, `model`, `train`, `graft`; without where it starts."""
    attention: dict[str, Any]
    """Of the model that runs."""
    published: dict[str, Any]
    """The model that runs, attention apart, at the source's size and with the heads that were added."""
    start: ImportedRun | str | None
    """The run or the file that it starts from. None: fresh values."""
    start_step: int | None
    resume: bool
    identity: str = field(init=False)
    """Equal for arms whose runs differ at most in their seed."""
    runs: list[ImportedRun] = field(default_factory=list["ImportedRun"])
    keep: set[int] = field(default_factory=set[int])
    """Steps from whose checkpoints other runs start."""
    name: str = ""

    def __post_init__(self) -> None:
        start = self.start
        origin = [start.arm.identity, start.seed] if isinstance(start, ImportedRun) else start
        self.identity = digest([self.table, origin, self.start_step, self.resume])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that the source ran, in its order."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    def init_from(self) -> dict[str, Any] | None:
        """As a study writes it."""
        if self.start is None:
            return None
        found: dict[str, Any] = {"path": self.start} if isinstance(self.start, str) else {"run": self.start.place}
        if self.start_step is not None:
            found["step"] = self.start_step
        return {**found, "mode": "resume" if self.resume else "restart"}

    def full(self) -> dict[str, Any]:
        """Every setting of the arm."""
        start = self.init_from()
        keep = {"keep": sorted(self.keep)} if self.keep else {}
        found = {**self.table, "train": {**self.table["train"], **keep}}
        return found if start is None else {**found, "init_from": start}


@dataclass
class ImportedRun:
    """One launch."""

    settled: Settled
    study: ImportedStudy
    arm: ImportedArm
    repeats: ImportedRun | None = None
    """An earlier launch that is this very run."""
    notes: list[str] = field(default_factory=list[str])

    @property
    def seed(self) -> int:
        return self.settled.seed

    @property
    def line(self) -> int:
        return self.settled.launch.line

    @property
    def place(self) -> str:
        """Study, arm and seed, as commands name a run."""
        return f"{self.study.id}/{self.arm.name}/{self.seed}"

    @property
    def digest(self) -> str:
        """Of every setting as written, and the seed: equal digests, the same run (but for files)."""
        return digest([self.arm.identity, self.study.evaluation, self.seed])[:16]


@dataclass
class ImportedStudy:
    """A study in the making."""

    id: str
    group: str | None
    section: int
    """Section of its first launch."""
    launch: Launch
    """Its first launch: the cell stands there."""
    evaluation: dict[str, Any]
    arms: list[ImportedArm] = field(default_factory=list[ImportedArm])
    runs: list[ImportedRun] = field(default_factory=list["ImportedRun"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that some arm ran, rising."""
        return tuple(sorted({run.seed for run in self.runs}))


class Gathering:
    """Collects launches in the order of the notebook."""

    def __init__(self, scale: Scale, folder: Path, titles: Sequence[str]) -> None:
        """folder: where relative checkpoints are looked for; titles: of the page's sections."""
        self.scale = scale
        self.folder = folder
        self.titles = titles
        self.studies: list[ImportedStudy] = []
        self.runs: list[ImportedRun] = []
        self._refused: dict[str, Launch] = {}

    def refuse(self, launch: Launch, name: str | None) -> None:
        """Remember a launch that was refused: what starts from it is refused too."""
        if name is not None:
            self._refused[name] = launch

    def add(self, settled: Settled) -> ImportedRun | Refusal:
        """The run that a launch becomes."""
        arm = self._arm(settled)
        if isinstance(arm, Refusal):
            return arm
        study = self._study(settled, arm)
        same = next((known for known in study.arms if known.identity == arm.identity), None)
        if same is None:
            study.arms.append(arm)
        else:
            arm = same
        run = ImportedRun(settled, study, arm, notes=list(settled.notes))
        if isinstance(arm.start, str):
            for option in settled.sizes.values():
                run.notes.append(f"{shown(option)} (line {option.line}): the model is that of {arm.start}")
        run.repeats = next((known for known in arm.runs if known.seed == run.seed), None)
        if settled.inside:
            study.evaluation["inside"] = max(1, round(INSIDE_EVERY * self.scale.steps))
        self._say_overwritten(run)
        arm.runs.append(run)
        study.runs.append(run)
        self.runs.append(run)
        if isinstance(arm.start, ImportedRun) and arm.start_step is not None:
            parent = arm.start.arm
            if arm.start_step != parent.table["train"]["steps"]:
                parent.keep.add(arm.start_step)
        return run

    def finish(self) -> None:
        """Give every arm its name, and say of each study in which of its runs the inside was not looked at."""
        for study in self.studies:
            taken: set[str] = set()
            for arm in study.arms:
                arm.name = _free(_common([run.settled.name for run in arm.runs], taken), taken)
                taken.add(arm.name.casefold())
            without = [run for run in study.runs if not run.settled.inside]
            if "inside" in study.evaluation and without:
                for run in without:
                    run.notes.append("there the inside was not looked at, unlike in other runs of the study")

    def equal(self) -> Iterator[list[ImportedRun]]:
        """Runs that are one run: the same settings and seed, whatever their names and what is looked at."""
        classes: dict[tuple[str, int], list[ImportedRun]] = {}
        for run in self.runs:
            classes.setdefault((run.arm.identity, run.seed), []).append(run)
        return (found for found in classes.values() if len(found) > 1)

    def _arm(self, settled: Settled) -> ImportedArm | Refusal:
        settings = settled.settings
        start = settled.start
        parent: ImportedRun | str | None = None
        step = None
        if start is not None:
            found = self._parent(settled, start)
            if isinstance(found, Refusal):
                return found
            parent, published = found
            step = None if published is None else self.scale.step(published)
            problem = self._agrees(settled, parent)
            if problem is not None:
                return problem
            if isinstance(parent, ImportedRun):
                settings = {**settings, "model": parent.arm.published}
        table = self.scale.applied(settings)
        attention = table.pop("attention")
        table.pop("evaluation")
        model = table.pop("model")
        if isinstance(parent, ImportedRun):
            problem = self._step(settled, parent, step, table["train"])
            if problem is not None:
                return problem
        grafts: list[dict[str, Any]] = [] if settled.heads is None else [dict(settled.heads)]
        if parent is None:
            table["model"] = {**model, "attention": attention} if attention else model
        else:
            before = parent.arm.attention if isinstance(parent, ImportedRun) else {"kind": "softmax"}
            if attention and attention != before:
                grafts.append({"kind": "switch-attention", "attention": attention})
        if grafts:
            table["graft"] = grafts
        if grafts and start is not None and start.resume:
            return Refusal(start.line, "start", f"{start.path}: its optimizer does not fit another model")
        published = dict(settings["model"])
        if settled.heads is not None and "n_heads" in published:
            published["n_heads"] += 1
        return ImportedArm(table, attention, published, parent, step, start is not None and start.resume)

    def _agrees(self, settled: Settled, parent: ImportedRun | str) -> Refusal | None:
        """Whether the sizes that a command gives are those of the weights that it loads."""
        if not isinstance(parent, ImportedRun):
            return None
        for key, option in settled.sizes.items():
            wanted, found = settled.settings["model"][key], parent.arm.published.get(key)
            if found is not None and wanted != found:
                message = f"{shown(option)}: the run of line {parent.line}, from which it starts, has {key} {found}"
                return Refusal(option.line, "start", message, option.name)
        return None

    def _parent(self, settled: Settled, start: Start) -> tuple[ImportedRun | str, int | None] | Refusal:
        """What a checkpoint's path names: a run of this notebook and a step, or a file."""
        parts = [part for part in start.path.split("/") if part]
        pattern = settled.program.checkpoint
        match = None
        if pattern is not None and len(parts) > 1:
            match = re.fullmatch(re.escape(pattern).replace(r"\{step\}", r"0*(\d+)"), parts[-1])
        if match is not None:
            name, step = parts[-2], int(match[1])
            run = next((run for run in reversed(self.runs) if run.settled.name == name), None)
            if run is not None:
                return run, step
            if name in self._refused:
                message = f"{start.path}: starts from the run of line {self._refused[name].line}, which is not imported"
                return Refusal(start.line, "start", message)
        if "://" in start.path:
            return start.path, None
        if (self.folder / start.path).exists():
            return start.path, None
        return Refusal(start.line, "start", f"{start.path}: no such file, and no run above writes it")

    def _step(self, settled: Settled, parent: ImportedRun, step: int | None, train: dict[str, Any]) -> Refusal | None:
        assert settled.start is not None
        line, ends = settled.start.line, parent.arm.table["train"]["steps"]
        if step is not None and step > ends:
            return Refusal(line, "start", f"{settled.start.path}: line {parent.line} trains for fewer steps")
        if settled.start.resume and settled.seed != parent.seed:
            message = f"{settled.start.path}: goes on from seed {parent.seed} with seed {settled.seed}"
            return Refusal(line, "start", message)
        if settled.start.resume and train["steps"] <= (step or ends):
            return Refusal(line, "start", f"{settled.start.path}: the run ends where its parent did")
        return None

    def _study(self, settled: Settled, arm: ImportedArm) -> ImportedStudy:
        """The study of an arm: its group's on this context, if that stands below what the arm starts from."""
        launch = settled.launch
        base = _slug(settled.group or self.titles[launch.section].lower()) or "runs"
        if self.scale.plain:
            base = f"{base}-{self.scale.name}"
        evaluation = dict(self.scale.applied(settled.settings)["evaluation"])
        context = arm.table["task"]["context"]
        same = [
            study
            for study in self.studies
            if study.group == settled.group and (settled.group is not None or study.section == launch.section)
        ]
        for study in same:
            fits = study.arms[0].table["task"]["context"] == context
            if fits and _above(arm.start, study, self.studies) and _no_longer(study.evaluation) == evaluation:
                return study
        other = any(study.arms[0].table["task"]["context"] == context for study in same)
        name = f"{base}-context-{context}" if same and not other else f"{base}-continued" if same else base
        name = _free(name, {study.id.casefold() for study in self.studies})
        found = ImportedStudy(name, settled.group, launch.section, launch, evaluation)
        self.studies.append(found)
        return found

    def _say_overwritten(self, run: ImportedRun) -> None:
        lost = [old for old in self.runs if old.settled.name == run.settled.name]
        why = run.settled.program.overwrites
        if lost and why is not None:
            lines = ", ".join(str(old.line) for old in lost)
            many = "runs" if len(lost) > 1 else "run"
            run.notes.append(
                f"there it replaced the {many} of line {lines}, which had the same name ({why}); here each is kept"
            )


def _no_longer(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in evaluation.items() if key != "inside"}


def _above(start: ImportedRun | str | None, study: ImportedStudy, studies: Sequence[ImportedStudy]) -> bool:
    """Whether what an arm starts from stands above a study."""
    if not isinstance(start, ImportedRun):
        return True
    return studies.index(start.study) < studies.index(study)


def _slug(text: str) -> str:
    """A name for studies and arms: letters, digits, `.`, `_`, `-`."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    return words if len(words) <= LONGEST else words[:LONGEST].rsplit("-", 1)[0].rstrip("-._")


def _free(name: str, taken: Iterable[str]) -> str:
    """The name, with a number where it is taken; letters' case does not tell names apart."""
    known = set(taken)
    if name.casefold() not in known:
        return name
    number = 2
    while f"{name}-{number}".casefold() in known:
        number += 1
    return f"{name}-{number}"


def _common(names: Sequence[str], taken: Iterable[str]) -> str:
    """One name for runs that differ in their seed: what their names share, numbers of the runs left out."""
    first = _slug(names[0]) or "arm"
    parts = [name.split("_") for name in dict.fromkeys(names)]
    if len(parts) == 1:
        return first
    shortest = min(parts, key=len)
    if all(part == shortest or (part[:-1] == shortest and part[-1].isdigit()) for part in parts):
        return _slug("_".join(shortest)) or first
    if len({len(part) for part in parts}) > 1:
        return first
    kept: list[str] = []
    for column in zip(*parts, strict=True):
        if len(set(column)) == 1:
            kept.append(column[0])
        elif not all(item.isdigit() for item in column):
            return first
        elif kept and kept[-1] == "run":
            kept.pop()
    shared = _slug("_".join(kept))
    return shared if shared and shared.casefold() not in set(taken) else first

"""Notebooks of commands, made up for tests, and what is imported from them at a size that trains in a moment."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch

from winnow.notebook.arms import Choices, Refusal
from winnow.notebook.execute import open_source
from winnow.notebook.gathering import ImportedRun
from winnow.notebook.importer import Imported, import_page
from winnow.notebook.pages import Page
from winnow.notebook.program import known_programs
from winnow.notebook.scale import AS_PUBLISHED, Scale
from winnow.notebook.transcript import transcript
from winnow.records.run import Label, RunIdentity, RunRecord
from winnow.records.store import RunStore
from winnow.study.parents import Parents
from winnow.study.resolve import Resolved, resolve
from winnow.train.parents import read_parent
from winnow.train.trainer import train

TEXT = "text.py"
"""What they read, beside the notebook."""
TINY = Scale(
    "tiny",
    "as small as it can be",
    n_layers=2,
    width=Fraction(1, 16),
    context=Fraction(1, 64),
    tokens=Fraction(1, 8192),
    evaluation=Fraction(1, 1280),
    steps=Fraction(1, 1250),
    lr=5.0,
    plain=True,
)
"""Heads of 4 channels, 16 tokens, 2 steps where the source has 2,500."""


def command(*options: str, module: str = "context_compression.train", launcher: str = "torchrun -m") -> str:
    """A command over several lines."""
    return " \\\n  ".join([f"{launcher} {module}", *options])


def block(text: str, state: str = "", fence: str = "```") -> str:
    """A fenced block."""
    return f"{fence}{state}\n{text}\n{fence}\n"


def run(name: str, *options: str, group: str | None = "one", state: str = "") -> str:
    """The block of a run."""
    grouped = [] if group is None else [f"--group {group}"]
    return block(command(*grouped, f"--log_dir {name}", *options), state)


def read(
    *blocks: str,
    scale: Scale = AS_PUBLISHED,
    semantics: Sequence[str] = (),
    source: str = "stdlib",
    folder: Path | None = None,
) -> Imported:
    """A notebook of these blocks, imported."""
    text = "# Some runs\n\n" + "\n".join(blocks)
    programs = known_programs()
    path = Path("commands.md") if folder is None else folder / "commands.md"
    choices = Choices.parse(semantics, programs)
    return import_page(Page.parse(text.encode(), path), programs, choices, scale, source=source, start=folder)


def only(imported: Imported) -> ImportedRun:
    """The one run of a notebook."""
    (outcome,) = imported.outcomes
    assert isinstance(outcome, ImportedRun), outcome
    return outcome


def refusals(imported: Imported) -> list[Refusal]:
    """Why commands were refused."""
    return [item for _, refused in imported.refused for item in refused]


def settings(imported: Imported) -> dict[str, object]:
    """Every setting of the one run, by dotted key."""
    return dict(_flat(only(imported).arm.full(), ""))


def _flat(value: object, path: str):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def write(imported: Imported, folder: Path) -> Path:
    """The imported notebook in a folder, with the text that its runs read."""
    shutil.copy(Path(argparse.__file__), folder / TEXT)
    path = folder / "imported.md"
    path.write_text(transcript(imported), encoding="utf-8")
    return path


def resolve_all(path: Path, parents: Parents | None = None) -> list[Resolved]:
    """Every study of a notebook, resolved."""
    parents = parents or Parents()
    found: list[Resolved] = []
    for study in open_source(path).studies:
        found.append(resolve(study, parents=parents))
        parents.add(study, found[-1].plan)
    return found


def train_all(path: Path) -> dict[str, RunRecord]:
    """Every arm of every study of a notebook, trained on its first seed in this process; records by study/arm."""
    store = RunStore(path.parent / "store")
    found: dict[str, RunRecord] = {}
    for resolved in resolve_all(path, Parents(store)):
        study = resolved.study
        for arm, config in resolved.configs.items():
            planned, seed = resolved.plan.arms[arm], study.seeds[0]
            digest = resolved.plan.run(arm, seed)
            parent = None if planned.parent is None else planned.parent.run(seed)
            record = store.record(digest)
            if record is None:
                label = Label(study=study.id, arm=arm)
                about = RunIdentity(
                    digest=digest, config=planned.config, seed=seed, data=planned.data, label=label, parent=parent
                )
                claimed = store.claim(about)
                assert claimed is not None
                with claimed as opened:
                    record = train(
                        config,
                        opened,
                        seed=seed,
                        device=torch.device("cpu"),
                        parent=lambda config=config, seed=seed, parent=parent: read_parent(config, seed, parent, store),
                    )
            found[f"{study.id}/{arm}"] = record
    return found

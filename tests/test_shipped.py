"""Every study that ships, run for real at toy size, and the results that ship with a notebook, read again."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import pytest

from winnow.notebook.execute import Source, open_source
from winnow.records.store import RunStore
from winnow.study.compare import compare
from winnow.study.launch import Options, run_study

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "notebooks").glob("*.md"), *(ROOT / "examples").glob("*.toml")])
NOTEBOOKS = [path for path in FILES if path.suffix == ".md"]
TOY = {
    "base.train.steps": 3,
    "base.train.warmup": 1,
    "base.task.context": 64,
    "base.train.tokens_per_update": 128,
    "base.evaluation.every": 3,
    "base.evaluation.tokens": 256,
    # The whole standard library would be read and hashed for three updates.
    "base.task.source": "text.py",
}

# Steps that an arm or one study of a notebook names.
STEPS = {r"\bkeep = \[\d+\]": "keep = [2]", r"\bstep = \d+": "step = 2", r"\btrain\.steps = \d+": "train.steps = 3"}


def opened(path: Path, folder: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    for written, toy in STEPS.items():
        text = re.sub(written, toy, text)
    (folder / path.name).write_text(text, encoding="utf-8")
    shutil.copy(Path(argparse.__file__), folder / "text.py")
    return open_source(folder / path.name, TOY)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_runs_at_toy_size(path: Path, tmp_path: Path) -> None:
    source = opened(path, tmp_path)
    assert source.studies
    store = RunStore(tmp_path / "store")
    for study in source.studies:
        if study.runs == "recorded":  # what another command measures of runs
            continue
        outcome = run_study(study, store, Options(seeds=study.seeds[:1], jobs=2, preflight=False))
        assert not outcome.failed, study.id
        # Studies that differ in their budget alone are one study at toy size: the second finds its runs.
        assert all(set(outcome.comparison.runs[arm]) == {study.seeds[0]} for arm in study.arms)
        assert len(outcome.comparison.verdicts) == len(study.claims)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_shipped_verdicts_follow_from_shipped_records(path: Path, tmp_path: Path) -> None:
    """The records in the tree give the verdicts that the notebook shows."""
    # In a copy: reading makes an index, and the tree should not gain files by being tested.
    shutil.copytree(path.parent / "winnow-store", tmp_path / "winnow-store")
    shutil.copy(path, tmp_path / path.name)
    store = RunStore(tmp_path / "winnow-store")
    text = path.read_text(encoding="utf-8")
    for study in open_source(tmp_path / path.name).studies:
        comparison = compare(study, store)
        assert sum(len(by_seed) for by_seed in comparison.runs.values()) > 0
        for verdict in comparison.verdicts:
            assert f"| **{verdict.claim.id}**: {verdict.claim.text} | **{verdict.status}** |" in text

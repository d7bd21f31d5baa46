"""`winnow.load_study` on notebooks: the same objects as from a `.toml` file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.study.planned import TEXT, made_up, run_all

import winnow


def notebook(folder: Path, *studies: str) -> Path:
    path = folder / "lab.md"
    path.write_text("# Lab\n" + "".join(f"\n```toml study\n{text}```\n" for text in studies))
    return path


def test_the_only_study_of_a_notebook_is_opened_with_its_store(tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    opened = winnow.load_study(notebook(tmp_path, TEXT))
    (tmp_path / "made-up.toml").write_text(TEXT)
    same = winnow.load_study(tmp_path / "made-up.toml")
    assert opened.verdicts() == same.verdicts()
    assert opened.verdicts()[0].status == "supported"
    assert opened.store.root == same.store.root == store.root.resolve()
    line = 1 + (tmp_path / "lab.md").read_text().split("\n").index("arms.good = { model.width = 2 }")
    assert opened.study.lines.line(("arms", "good")) == line, "errors name the notebook's line"


def test_one_of_several_studies_must_be_chosen(tmp_path: Path):
    path = notebook(tmp_path, TEXT, TEXT.replace("made-up", "another"))
    with pytest.raises(winnow.InputError, match=r"lab\.md: only: has 2 studies; choose 'made-up' or 'another'"):
        winnow.load_study(path)
    assert winnow.load_study(path, only="another").study.id == "another"
    with pytest.raises(winnow.InputError, match="did you mean 'another'"):
        winnow.load_study(path, only="anothr")


def test_changes_and_the_store_are_those_that_were_given(tmp_path: Path):
    path = notebook(tmp_path, TEXT)
    opened = winnow.load_study(path, {"train.steps": 3}, store=tmp_path / "other")
    assert opened.study.base["train"]["steps"] == 3
    assert opened.store.root == (tmp_path / "other").resolve()

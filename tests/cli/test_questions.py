"""Through the real command line: a study on programs, and what does not go with a task that has no running text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.tiny import winnow

STUDY = """\
id = "programs"
question = "Does width help to carry out programs?"
seeds = [0]
looks = [1]
endpoint = { metric = "val/sample_error", better = "lower" }
base.task = { kind = "programs", items = 3, operations = 1, alphabet = 6, validation = { questions = 64 } }
base.model = { kind = "gpt", d_model = 16, n_layers = 1, n_heads = 2, positions = "learned" }
base.train = { steps = 6, tokens_per_update = 88, warmup = 2, lr = 0.01 }
base.evaluation = { every = 3, train_window = 16 }
arms.control = {}
arms.wide = { model.d_model = 32 }
claims.h1 = "wide better-than control on val/mask_error smallest 1"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study, whose runs are done."""
    found = tmp_path_factory.mktemp("programs")
    (found / "programs.toml").write_text(STUDY)
    ended = winnow("run", "programs.toml", cwd=found)
    assert ended.code == 0, ended.out + ended.err
    return found


def test_a_study_is_run_and_shown_with_its_metrics(folder: Path) -> None:
    ended = winnow("table", "programs.toml", "--metric", "val/mask_error", "--metric", "train/sample_error", cwd=folder)
    assert ended.code == 0, ended.err
    assert "val/mask_error" in ended.out
    assert "train/sample_error" in ended.out
    assert "invalid" not in winnow("compare", "programs.toml", cwd=folder).out
    again = winnow("run", "programs.toml", cwd=folder)
    assert again.code == 0
    assert "finished" not in again.out + again.err  # no run is done twice


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("generate", "programs/control/0", "--prompt", "ABC:"), "was not trained on text that goes on"),
        (("masks", "programs/control/0", "--prompt", "ABC:"), "was not trained on text"),
        (("prune", "programs/control/0", "--keep", "1/2", "--tokens", "100"), "no whole number of the set's 64"),
    ],
)
def test_what_needs_a_text_says_so(folder: Path, command: tuple[str, ...], says: str) -> None:
    ended = winnow(*command, cwd=folder)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err


def test_a_cache_is_pruned_on_the_questions(folder: Path) -> None:
    ended = winnow("prune", "programs/control/0", "--keep", "1/2", "--policy", "window", cwd=folder)
    assert ended.code == 0, ended.err
    assert "window" in ended.out


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"val/sample_error"', '"val/bpb"', "programs.toml:5"),
        ("every = 3", "every = 3, bytes = 100", "questions are no running text"),
        ("every = 3", "every = 3, tokens = 100", "leave it out for all 704, or use a multiple of 11"),
        ("tokens_per_update = 88", "tokens_per_update = 64", "no whole number of sequences of 11"),
        ("operations = 1", "operations = [3, 1]", "holds no number"),
        ("questions = 64", "question = 64", "did you mean 'questions'"),
    ],
)
def test_wrong_studies_name_line_and_mend(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in STUDY
    (tmp_path / "programs.toml").write_text(STUDY.replace(old, new))
    ended = winnow("check", "programs.toml", cwd=tmp_path)
    assert ended.code == 2
    assert says in ended.err
    assert "programs.toml:" in ended.err


def test_an_arm_may_not_have_questions_of_its_own(tmp_path: Path) -> None:
    more = "arms.easy = { task.validation.operations = 1 }\n"
    (tmp_path / "programs.toml").write_text(STUDY + more)
    ended = winnow("check", "programs.toml", cwd=tmp_path)
    assert ended.code == 2
    assert "belongs to the study" in ended.err + ended.out

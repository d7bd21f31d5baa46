"""Bisection: which commit is called the first bad one, from what evidence, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.study.commits import FakeRuns, git, make_repository

from winnow.errors import InputError
from winnow.records.files import FileLock
from winnow.study.bisect import FOLDER, Question, Ran, Result, ask, bisect, open_repository
from winnow.study.commit_runs import study_text
from winnow.study.spec import Study, parse_study
from winnow.study.worktrees import Commit, Repository

TEXT = """\
id = "walk"
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
looks = [4, 8, 12]
arms.control = {}
arms.wide = { model.d_ff = 64 }
claims.h1 = "wide better-than control on val/ce smallest 0.05"
"""
N = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A repository of twelve commits."""
    folder = tmp_path_factory.mktemp("made") / "repo"
    return folder, make_repository(folder, [{"scale.txt": str(number)} for number in range(N)])


@pytest.fixture
def commits(tmp_path: Path, made: tuple[Path, list[str]]) -> list[str]:
    """The same in `repo`, a file with local changes in it."""
    shutil.copytree(made[0], tmp_path / "repo")
    (tmp_path / "repo" / "scale.txt").write_text("being edited")
    return made[1]


def opened(tmp_path: Path, text: str = TEXT, **changes: Any) -> tuple[Study, Repository]:
    study = parse_study(text, tmp_path / "repo" / "walk.toml", changes=changes)
    return study, open_repository(study)


def asked(tmp_path: Path, commits: Sequence[str], **changes: Any) -> tuple[Question, Repository]:
    study, repository = opened(tmp_path, **changes)
    return ask(study, repository, commits[0], commits[-1]), repository


def walk(tmp_path: Path, commits: Sequence[str], runs: Any, **options: Any) -> Result:
    return bisect(*asked(tmp_path, commits), runs, **options)


def judged(result: Result, commits: Sequence[str]) -> dict[int, str | None]:
    return {commits.index(trial.commit): trial.judgement for trial in result.trials}


def state(repo: Path) -> tuple[str, ...]:
    """What belongs to the user: branch, files, worktrees, other bisections."""
    files = sorted((path.name, path.read_text()) for path in repo.glob("*.txt"))
    return (
        git(repo, "status", "--short", "--branch"),
        str(files),
        git(repo, "for-each-ref"),
        git(repo, "worktree", "list"),
    )


def check_found(result: Result, commits: Sequence[str], place: int) -> None:
    assert result.outcome == "found"
    assert result.first_bad is not None
    assert (result.first_bad.sha, result.first_bad.subject) == (commits[place], f"change {place}")


@pytest.mark.parametrize("first", [1, 6, 11])
def test_finds_the_commit_wherever_it_is(tmp_path: Path, commits: list[str], first: int):
    before = state(tmp_path / "repo")
    result = walk(tmp_path, commits, FakeRuns(commits, {first: 0.2}))
    check_found(result, commits, first)
    assert all((judgement == "bad") == (place >= first) for place, judgement in judged(result, commits).items())
    assert len(result.trials) <= 1 + 4, "bad, and log2 of the others"
    assert all(trial.n >= 4 for trial in result.trials), "several seeds per commit"
    assert state(tmp_path / "repo") == before, "what is checked out is the user's"


def test_a_bisection_of_the_users_own_goes_on_undisturbed(tmp_path: Path, commits: list[str]):
    repo = tmp_path / "repo"
    git(repo, "checkout", "--quiet", "--", ".")
    git(repo, "bisect", "start", commits[-1], commits[0])
    before, log = state(repo), git(repo, "bisect", "log")
    check_found(walk(tmp_path, commits, FakeRuns(commits, {9: 0.2})), commits, 9)
    assert (state(repo), git(repo, "bisect", "log")) == (before, log)


def test_commits_that_do_not_run_are_left_out(tmp_path: Path, commits: list[str]):
    runs = FakeRuns(commits, {4: 0.2}, broken=[5, 6])
    result = walk(tmp_path, commits, runs)
    check_found(result, commits, 4)
    skipped = [trial for trial in result.trials if trial.judgement == "skip"]
    assert skipped
    assert all(trial.reason == "SyntaxError: planted" for trial in skipped)
    asked = len(runs.asked)
    assert judged(walk(tmp_path, commits, runs), commits) == judged(result, commits)
    assert len(runs.asked) == asked, "nothing is run twice"
    runs.broken = ()
    again = walk(tmp_path, commits, runs, retry=True)
    check_found(again, commits, 4)
    assert "skip" not in judged(again, commits).values()


def test_where_only_such_commits_are_left_it_names_them_all(tmp_path: Path, commits: list[str]):
    result = walk(tmp_path, commits, FakeRuns(commits, {6: 0.2}, broken=[5, 6]))
    assert (result.outcome, result.first_bad) == ("skipped", None)
    assert [commit.sha for commit in result.suspects] == [commits[7], commits[6], commits[5]]


def test_a_commit_without_effect_is_not_called_bad(tmp_path: Path, commits: list[str]):
    for world in range(2):
        shutil.rmtree(tmp_path / "repo" / FOLDER, ignore_errors=True)
        runs = FakeRuns(commits, {8: 0.12}, sd=0.04, rho=0.5, world=world)
        result = walk(tmp_path, commits, runs)
        wrong = {place: judgement for place, judgement in judged(result, commits).items()
                 if judgement not in ("bad" if place >= 8 else "good", "skip")}  # fmt: skip
        assert not wrong, world
        assert any(len(trial.values) > 4 for trial in result.trials), "one look does not decide such noise"


def test_without_a_regression_there_is_nothing_to_look_for(tmp_path: Path, commits: list[str]):
    runs = FakeRuns(commits, {11: 0.004})
    result = walk(tmp_path, commits, runs)
    assert (result.outcome, result.suspects) == ("no-regression", ())
    assert [trial.judgement for trial in result.trials] == ["good"]
    assert {place for place, _ in runs.asked} == {0, 11}


def test_a_regression_that_is_real_and_too_small_is_none(tmp_path: Path, commits: list[str]):
    result = walk(tmp_path, commits, FakeRuns(commits, {11: 0.01}, sd=0.001))
    assert result.outcome == "no-regression"
    assert "supported, smaller than 0.05" in result.trials[0].reason


def test_equal_values_need_no_further_seeds(tmp_path: Path, commits: list[str]):
    """Most commits change nothing that is computed: noise, however large, does not matter to them."""

    class Exact(FakeRuns):
        def value(self, place: int, seed: int) -> float:
            return super().value(6 if place >= 6 else 0, seed)

    runs = Exact(commits, {6: 0.2}, sd=0.05)
    result = walk(tmp_path, commits, runs)
    check_found(result, commits, 6)
    _, *others = result.trials
    assert {trial.n for trial in others} == {4}
    assert {trial.reason for trial in others} <= {
        f"the same values as {it} at each of 4 seeds" for it in ("good", "bad")
    }


def test_divergence_is_an_outcome(tmp_path: Path, commits: list[str]):
    result = walk(tmp_path, commits, FakeRuns(commits, {}, diverging=range(7, N)))
    assert set(result.trials[0].values.values()) == {None}
    assert result.trials[0].judgement != "good"


class Stops(FakeRuns):
    """Ctrl-C at the third commit."""

    limit = 3

    def __call__(self, commit: Commit, seeds: Sequence[int]) -> Ran:
        if len({place for place, _ in self.asked} | {self.commits.index(commit.sha)}) > self.limit:
            raise KeyboardInterrupt
        return super().__call__(commit, seeds)


def test_stopped_it_leaves_nothing_behind_and_goes_on(tmp_path: Path, commits: list[str]):
    before = state(tmp_path / "repo")
    stopping = Stops(commits, {5: 0.2})
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path, commits, stopping)
    assert state(tmp_path / "repo") == before
    trees = tmp_path / "repo" / FOLDER / "trees"
    assert not list(trees.iterdir())
    runs = FakeRuns(commits, {5: 0.2})
    check_found(walk(tmp_path, commits, runs), commits, 5)
    assert not {place for place, _ in runs.asked} & {place for place, _ in stopping.asked}


def test_what_a_killed_process_left_is_removed(tmp_path: Path, commits: list[str]):
    before = state(tmp_path / "repo")
    trees = tmp_path / "repo" / FOLDER / "trees"
    trees.mkdir(parents=True)
    git(tmp_path / "repo", "worktree", "add", "--quiet", "--detach", str(trees / commits[3][:10]), commits[3])
    git(tmp_path / "repo", "worktree", "add", "--quiet", "--detach", str(trees / "bisect"), commits[-1])
    shutil.rmtree(trees / "bisect")
    (trees / "half").mkdir()
    check_found(walk(tmp_path, commits, FakeRuns(commits, {5: 0.2})), commits, 5)
    assert state(tmp_path / "repo") == before
    assert not list(trees.iterdir())


def test_one_at_a_time(tmp_path: Path, commits: list[str]):
    (tmp_path / "repo" / FOLDER).mkdir()
    lock = FileLock(tmp_path / "repo" / FOLDER / ".lock")
    assert lock.try_acquire()
    with pytest.raises(InputError, match="another bisection is under way"):
        walk(tmp_path, commits, FakeRuns(commits, {5: 0.2}))
    lock.release()


def test_a_worktree_holds_the_commit_and_no_hook_runs(tmp_path: Path, commits: list[str]):
    _, repository = opened(tmp_path)
    hook = tmp_path / "repo" / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    with repository.checked_out(repository.commit(commits[3], "")) as tree:
        assert (tree / "scale.txt").read_text() == "3"
        assert git(tree, "rev-parse", "HEAD") == commits[3]
    assert not tree.exists()
    assert not (tmp_path / "ran").exists()


def test_the_question_is_the_studys(tmp_path: Path, commits: list[str]):
    question, repository = asked(tmp_path, commits)
    assert question.claim("x").text == "x worse-than good on val/ce smallest 0.05"
    assert (question.arm, question.commits) == ("control", 11)
    assert question.rule.alpha == pytest.approx(0.05 / 5), "bad and at most four others share it"
    assert question.folder.parent == tmp_path / "repo" / FOLDER
    study = question.study
    others = [
        ask(study, repository, commits[1], commits[-1]),
        ask(study, repository, commits[0], commits[-1], arm="wide"),
        ask(study, repository, commits[0], commits[-1], smallest=0.1),
        asked(tmp_path, commits, **{"train.steps": 7})[0],
        asked(tmp_path, commits, looks=[4, 12])[0],
    ]
    assert len({question.folder, *(other.folder for other in others)}) == 6


@pytest.mark.parametrize(
    ("good", "bad", "changes", "words"),
    [
        ("nowhere", "HEAD", {}, ("--good", "'nowhere' is no commit")),
        ("HEAD", "--all", {}, ("--bad", "'--all' is no commit")),
        ("HEAD", "HEAD", {}, ("--good", "does not descend")),
        ("HEAD", "HEAD~3", {}, ("--good", "does not descend", "merge-base")),
        ("HEAD~3", "HEAD", {"arm": "wide2"}, ("--arm", "'wide2' is no arm", "wide")),
        ("HEAD~3", "HEAD", {"smallest": -1.0}, ("--smallest",)),
    ],
)
def test_what_cannot_be_asked(tmp_path, commits, good: str, bad: str, changes: dict[str, Any], words: tuple[str, ...]):
    study, repository = opened(tmp_path)
    with pytest.raises(InputError) as caught:
        ask(study, repository, good, bad, **changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("place", ["base", "arms.control"])
def test_an_arm_that_starts_from_another_run_is_refused_with_the_reason(tmp_path, commits, place: str):
    start = "arms.control = {}\n" if place == "base" else ""
    text = TEXT.replace("arms.control = {}\n", f'{start}{place}.init_from = {{ run = "first/self" }}\n')
    study, repository = opened(tmp_path, text + 'arms.alone = { init_from = "off" }\n')
    with pytest.raises(
        InputError, match=r"control starts from runs of another study.*--arm.*init_from\.path"
    ) as caught:
        ask(study, repository, commits[0], commits[-1])
    assert (caught.value.line, caught.value.key) == (5 if place == "base" else 4, f"{place}.init_from")
    assert ask(study, repository, commits[0], commits[-1], arm="alone").arm == "alone"


def test_the_smallest_regression_must_be_said_somewhere(tmp_path: Path, commits: list[str]):
    study, repository = opened(tmp_path, TEXT.replace(" smallest 0.05", ""))
    with pytest.raises(InputError, match="--smallest"):
        ask(study, repository, commits[0], commits[-1])


def test_outside_a_repository(tmp_path: Path):
    study = parse_study(TEXT, tmp_path / "walk.toml")
    with pytest.raises(InputError, match="no git repository"):
        open_repository(study)


def test_a_good_revision_that_does_not_run_is_said(tmp_path: Path, commits: list[str]):
    with pytest.raises(InputError, match=r"cannot be judged: SyntaxError: planted"):
        walk(tmp_path, commits, FakeRuns(commits, {5: 0.2}, broken=[0]))


def test_what_was_found_is_kept_whole_or_refused(tmp_path: Path, commits: list[str]):
    question, repository = asked(tmp_path, commits)
    runs = FakeRuns(commits, {5: 0.2})
    bisect(question, repository, runs)
    file = question.folder / "found.json"
    data = json.loads(file.read_text())
    assert data["question"]["good"] == commits[0]
    assert len(data["good"]["values"]) >= 4
    file.write_text(json.dumps({**data, "version": 2}))
    with pytest.raises(InputError, match="newer"):
        bisect(question, repository, runs)
    file.write_text(json.dumps({**data, "trials": 3}))
    with pytest.raises(InputError, match="trials"):
        bisect(question, repository, runs)


def test_the_text_of_one_arm_means_the_same(tmp_path: Path, commits: list[str]):
    text = TEXT + 'base.train = { lr = 1e-05, clip = 2.0, steps = 6, names = ["a\\"b", "ü", "\\u007f"], on = true }\n'
    study, repository = opened(tmp_path, text + 'use = ["scale.txt", "../elsewhere.py"]\n')
    tree = tmp_path / "tree"
    again = parse_study(study_text(study, "wide", tree, repository.root), study.file)
    assert again.use == (str(tree / "scale.txt"), str(tmp_path / "elsewhere.py"))
    assert (again.base, again.seeds, again.looks, again.endpoint) == (
        study.base, study.seeds, study.looks, study.endpoint)  # fmt: skip
    assert again.arms == {"wide": study.arms["wide"]}
    assert again.control == "wide"

"""`winnow bisect` for real: commits checked out, their code run in processes of its own, the first bad one named.

Most histories are of a package `winnow` that is small enough to start in a moment: what runs is that of the commit.
One is of a mechanism file, with the real package.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.cli import tiny
from tests.cli.test_bad_input import one_line
from tests.cli.tiny import WINNOW, Ended
from tests.study.commits import git, make_repository

from winnow.study.bisect import ask, open_repository
from winnow.study.commit_runs import CommitRuns, Means
from winnow.study.spec import load_study

STUDY = """\
id = "walk"
seeds = [0, 1, 2, 3, 4, 5, 6, 7]
looks = [4, 8]
base.train = { steps = 5 }
arms.control = {}
claims.h1 = "control better-than other on val/ce smallest 0.05"
arms.other = {}
"""
STORE = "class RunStore:\n    def __init__(self, root):\n        self.root = root\n"
SPEC = """\
import tomllib
def parse_study(text, file):
    return tomllib.loads(text)
"""
LAUNCH = """\
import random, subprocess, time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace as Names
from winnow.effect import EFFECT, SECONDS

@dataclass(frozen=True)
class Options:
    jobs: object; seeds: object; device: str; threads: int; preflight: bool; trust: bool

class RunEnded:
    def __init__(self, seed):
        self.run, self.status = Names(seed=seed), "finished"

def head(folder):
    return subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()

def run_study(study, store, options, on_event):
    (arm,) = study["arms"]
    assert study["base"]["train"]["steps"] == 5
    made = Names(commit=head(Path.cwd()), dirty=False, package_commit=head(Path(__file__).parent))
    values, runs, stopped = {}, {}, False
    for seed in options.seeds:
        try:
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            stopped = True
            break
        noise = random.Random(seed).gauss(0, 0.01) + random.Random(f"{seed} {EFFECT}").gauss(0, 0.002)
        values[seed] = 2.0 + EFFECT + noise
        runs[seed] = Names(status="finished", error=None, findings=(), provenance=made)
        on_event(RunEnded(seed))
    observed = Names(values={arm: values})
    return Names(stopped=stopped, comparison=Names(runs={arm: runs}, observations={"val/ce": observed}))
"""
N, FIRST, BROKEN = 12, 7, 5


def version(number: int, first: int = FIRST, seconds: float = 0.0) -> dict[str, str]:
    effect = 0.2 if number >= first else 0.0
    return {
        "src/winnow/__init__.py": "",
        "src/winnow/errors.py": "",
        "src/winnow/records/__init__.py": "",
        "src/winnow/records/store.py": STORE,
        "src/winnow/study/__init__.py": "",
        "src/winnow/study/spec.py": SPEC,
        "src/winnow/study/launch.py": LAUNCH,
        "src/winnow/effect.py": "EFFECT = (" if number == BROKEN else f"EFFECT, SECONDS = {effect}, {seconds}\n",
        "notes.txt": f"{number}\n",
    }


@pytest.fixture
def package(tmp_path: Path) -> list[str]:
    """Twelve commits of a package; the sixth does not even compile."""
    commits = make_repository(tmp_path / "repo", [version(number) for number in range(N)])
    (tmp_path / "repo" / "walk.toml").write_text(STUDY)
    return commits


def refused(ended: Ended, *words: str) -> None:
    """The input is wrong, which the last line says."""
    assert ended.code == 2, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(word in last for word in words), last


def state(repo: Path) -> list[str]:
    return [
        git(repo, *command) for command in (["status", "--short", "--branch"], ["worktree", "list"], ["for-each-ref"])
    ]


def test_the_first_bad_commit_of_a_package(winnow, tmp_path: Path, package: list[str]):
    file, before = tmp_path / "repo" / "walk.toml", state(tmp_path / "repo")
    ended = winnow("bisect", file, "--good", package[0], "--bad", "main")
    assert ended.code == 0, ended.err
    assert f"first bad commit: {package[FIRST]} change {FIRST}: val/ce +0.2" in ended.out
    assert "11 commits, about 4 to be judged" in ended.err
    assert "COMMIT worse-than good on val/ce smallest 0.05" in ended.err
    table = {line.split()[0]: line for line in ended.out.splitlines()[1:7] if line}
    assert " good " in table[package[0][:10]]
    assert " bad " in table[package[-1][:10]]
    if package[BROKEN][:10] in table:
        assert "skip" in table[package[BROKEN][:10]]
        assert "SyntaxError" in table[package[BROKEN][:10]]
    assert state(tmp_path / "repo") == before

    again = winnow("bisect", file, "--good", package[0], "--bad", "main", "--json")
    found = json.loads(again.out)
    assert found["outcome"] == "found"
    assert found["first_bad"] == {"commit": package[FIRST], "subject": f"change {FIRST}"}
    trial = next(trial for trial in found["trials"] if trial["commit"] == package[FIRST])
    assert (trial["judgement"], trial["n"], len(trial["values"])) == ("bad", 4, 4)
    assert 0 < trial["low"] < trial["effect"] < trial["high"]
    assert "seed" not in again.err, "nothing is run twice"


def test_a_commit_that_does_not_run_gives_its_reason(winnow, tmp_path: Path, package: list[str]):
    file = tmp_path / "repo" / "walk.toml"
    ended = winnow("bisect", file, "--good", package[BROKEN - 1], "--bad", package[BROKEN + 2], "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    skipped = {trial["commit"]: trial["reason"] for trial in found["trials"] if trial["judgement"] == "skip"}
    assert found["first_bad"]["commit"] == package[FIRST]
    assert all(reason.startswith("SyntaxError") for reason in skipped.values())
    log = Path(found["folder"]) / "runs" / package[BROKEN] / "log.txt"
    assert (package[BROKEN] in skipped) == log.exists()
    ended = winnow("bisect", file, "--good", package[BROKEN], "--bad", package[FIRST])
    refused(ended, "--good", "cannot be judged: SyntaxError")


def test_without_a_regression_it_says_so_and_ends_with_1(winnow, tmp_path: Path, package: list[str]):
    ended = winnow("bisect", tmp_path / "repo" / "walk.toml", "--good", package[0], "--bad", package[FIRST - 1])
    assert ended.code == 1
    assert "no regression" in ended.out
    assert "the same values as good" in ended.out


def test_runs_that_were_made_with_another_commit_are_refused(winnow, tmp_path: Path):
    lying = LAUNCH.replace("commit=head(Path.cwd())", 'commit="0" * 40')
    versions = [{**version(number, 1), "src/winnow/study/launch.py": lying} for number in (0, 1)]
    commits = make_repository(tmp_path / "repo", versions)
    (tmp_path / "repo" / "walk.toml").write_text(STUDY)
    ended = winnow("bisect", tmp_path / "repo" / "walk.toml", "--good", commits[0])
    refused(ended, f"for commit {commits[0][:10]} was made with {'0' * 40}", "remove")


def test_mistakes(winnow, tmp_path: Path, package: list[str]):
    repo = tmp_path / "repo"
    one_line(winnow("bisect", repo / "walk.toml", "--good", "nowhere"), "--good", "'nowhere' is no commit")
    other = make_repository(tmp_path / "other", [{"a.txt": "1"}, {"a.txt": "2"}])
    (tmp_path / "other" / "walk.toml").write_text(STUDY)
    ended = winnow("bisect", tmp_path / "other" / "walk.toml", "--good", other[0])
    one_line(ended, "runs nothing of this repository", "--repo")
    (tmp_path / "other" / "walk.toml").write_text(STUDY + 'use = ["a.txt"]\n')
    one_line(winnow("bisect", tmp_path / "other" / "walk.toml", "--good", other[0]), "use", "--trust")
    ended = winnow("bisect", tmp_path / "other" / "walk.toml", "--good", package[0], "--repo", repo, "--trust", "--set",
                   "use=[]", "--bad", package[FIRST])  # fmt: skip
    assert ended.code == 0, "a study may lie elsewhere"


def bisecting(file: Path, good: str) -> subprocess.Popen[str]:
    command = [*WINNOW, "bisect", str(file), "--good", good]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, pattern: str) -> None:
    end = time.monotonic() + 300
    while not list(path.rglob(pattern)):
        assert time.monotonic() < end, pattern
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak), signal.SIGKILL])
def test_stopped_or_killed_it_goes_on(winnow, tmp_path: Path, how: signal.Signals):
    commits = make_repository(tmp_path / "repo", [version(number, 2, seconds=0.3) for number in range(4)])
    file = tmp_path / "repo" / "walk.toml"
    file.write_text(STUDY)
    before = state(tmp_path / "repo")
    process = bisecting(file, commits[0])
    folder = tmp_path / "repo" / "winnow-bisect"
    wait_for(folder, f"{commits[-1]}/log.txt")  # good is done, bad is being run
    process.send_signal(how)
    _, said = process.communicate(timeout=300)
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, said
        assert "the same command goes on" in said
        assert state(tmp_path / "repo") == before
        assert not list((folder / "trees").iterdir())
    ended = winnow("bisect", file, "--good", commits[0], "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["first_bad"]["commit"] == commits[2]
    assert commits[0][:10] not in ended.err, "what good gave is known"
    assert state(tmp_path / "repo") == before


MECHANISM = '''
"""Attention whose output is scaled."""

from typing import Literal

from winnow.attention import AttentionConfig, Shape
from winnow.attention.softmax import SoftmaxAttention, softmax_attention


class ScaledConfig(AttentionConfig):
    """Softmax attention."""

    kind: Literal["scaled"] = "scaled"

    def build(self, shape: Shape):
        return Scaled(shape)


class Scaled(SoftmaxAttention):
    def mix(self, q, k, v, state):
        return {scale} * softmax_attention(q, k, v, state), {{}}

    def oracle(self, q, k, v):
        return {scale} * super().oracle(q, k, v)
'''


def mechanism(number: int, first: int, broken: Sequence[int]) -> dict[str, str]:
    text = MECHANISM.format(scale="300" if number >= first else "1") + f"# version {number}\n"
    return {"scaled.py": text.replace("def mix(self", "def mix(self,,") if number in broken else text}


def history_of_a_mechanism(folder: Path, n: int, first: int, broken: Sequence[int]) -> tuple[Path, list[str]]:
    commits = make_repository(folder, [mechanism(number, first, broken) for number in range(n)])
    more = 'use = ["scaled.py"]\nclaims.h = "control better-than scaled on val/ce smallest 0.02"\n'
    more += 'arms.scaled = { model.attention = { kind = "scaled" } }\n'
    changes = {"seeds = [0, 1, 2]": f"seeds = {list(range(12))}", "looks = [2, 3]": "looks = [12]"}
    return tiny.write_study(folder, more, changes=changes), commits


def test_a_commit_of_a_mechanism_file_is_what_its_runs_are_made_with(tmp_path: Path):
    file, commits = history_of_a_mechanism(tmp_path / "repo", 3, 2, [])
    repository = open_repository(load_study(file))
    question = ask(load_study(file), repository, commits[0], commits[2], arm="scaled")
    runs = CommitRuns(question, repository, Means(jobs=1))
    ran = runs(repository.commit(commits[1], ""), [0, 3])
    assert ran.failure is None
    assert all(value is not None and value > 0 for value in ran.values.values())
    assert set(ran.values) == {0, 3}
    records = [json.loads(path.read_text()) for path in (question.folder / "runs" / commits[1]).rglob("run.json")]
    assert {(record["provenance"]["commit"], record["provenance"]["dirty"]) for record in records} == {
        (commits[1], False)
    }
    source = hashlib.sha256(mechanism(1, 2, [])["scaled.py"].encode()).hexdigest()
    assert {record["sources"]["scaled.py"] for record in records} == {source}, "that commit's, not what is checked out"


@pytest.mark.soak
def test_twelve_commits_of_a_mechanism_file(tmp_path: Path):
    file, commits = history_of_a_mechanism(tmp_path / "repo", 12, 8, [5, 7])
    before = state(tmp_path / "repo")
    given = ["--good", commits[0], "--arm", "scaled", "--trust", "--json"]
    ended = tiny.winnow("bisect", file, *given, cwd=file.parent)
    assert ended.code == 1, ended.err
    found = json.loads(ended.out)
    assert found["outcome"] == "skipped"
    assert found["suspects"] == [commits[8], commits[7]]
    reasons = {trial["commit"]: trial["reason"] for trial in found["trials"]}
    assert "invalid syntax" in reasons[commits[7]]
    assert "the same values as good at each of 12 seeds" in reasons.values(), "a comment changes no bit"
    assert state(tmp_path / "repo") == before
    assert os.listdir(tmp_path / "repo" / "winnow-bisect" / "trees") == []

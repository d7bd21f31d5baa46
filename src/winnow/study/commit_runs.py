"""The runs of a commit, made by the code of that commit in a process of its own.

The commit is checked out in a worktree. Its `src/winnow` (or `winnow`) is what runs, where it has one; so are those
of the study's `use` files that lie in the repository. The study itself is today's, so that the question stays the
same, and so is its data. Every commit has a store of its own: the digest of a run says what was asked for, and two
commits may answer it differently.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from winnow.errors import InputError
from winnow.records.files import make_folder, writing
from winnow.records.provenance import COMMAND_VARIABLE, command_line, redact
from winnow.study import at_commit
from winnow.study.bisect import Question, Ran
from winnow.study.spec import Study
from winnow.study.worktrees import Commit, Repository, outside_git

PROGRAM: Final = Path(at_commit.__file__)
PATIENCE: Final = 60.0
"""Seconds that interrupted runs get to save themselves."""


@dataclass(frozen=True)
class Means:
    """How runs are made; none of it is identity."""

    jobs: int | None = None
    """Runs at once; None: one per core."""
    device: str = "cpu"
    threads: int = 1


class CommitRuns:
    """Runs commits for a question."""

    def __init__(
        self,
        question: Question,
        repository: Repository,
        means: Means | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Raises InputError where nothing that the study runs lies in the repository."""
        self.question, self.repository, self.means, self.say = question, repository, means or Means(), say
        packages = ("src/winnow/__init__.py", "winnow/__init__.py")
        own = any(repository.holds(question.bad, path) for path in packages)
        if not own and not any(_inside(path, repository.root) for path in _use(question.study)):
            mend = "bisect in the repository that holds a `use` file, or Winnow itself; --repo names one"
            raise InputError("runs nothing of this repository: it would be the same at every commit",
                             file=question.study.file, mend=mend)  # fmt: skip

    def __call__(self, commit: Commit, seeds: Sequence[int]) -> Ran:
        """Make the runs of these seeds. Raises KeyboardInterrupt, all saved, when Ctrl-C comes."""
        with self.repository.checked_out(commit) as tree:
            answer = self._answer(commit, tree, seeds)
        if answer["event"] == "failed":
            return Ran({}, str(answer["error"]))
        values: dict[int, float | None] = {}
        failure = None
        for seed in seeds:
            found = answer["runs"].get(str(seed))
            if found is None:
                continue
            self._check_commit(commit, seed, found, answer["package"])
            if found["status"] not in ("finished", "diverged"):
                failure = failure or f"seed {seed} {found['status']}: {found['error']}"
            elif found["invalid"]:
                failure = failure or f"seed {seed} is invalid: {found['invalid'][0]}"
            elif found["measured"]:
                values[seed] = found["value"]
        return Ran(values, failure)

    def _check_commit(self, commit: Commit, seed: int, found: dict[str, Any], package: bool) -> None:
        """The commit that was checked out is the one that its runs say they were made with.

        package: whether Winnow itself was the commit's.
        """
        others = {found["commit"], *([found["package_commit"]] if package else [])} - {commit.sha}
        if others or found["dirty"]:
            made = "changed files" if not others else str(next(iter(others)))
            mend = f"remove {self._folder(commit)} and give the command again"
            raise InputError(f"the run of seed {seed} for commit {commit.short} was made with {made}", mend=mend)

    def _folder(self, commit: Commit) -> Path:
        return self.question.folder / "runs" / commit.sha

    def _answer(self, commit: Commit, tree: Path, seeds: Sequence[int]) -> dict[str, Any]:
        folder = self._folder(commit)
        make_folder(folder)
        package = next((part for part in (tree / "src", tree) if (part / "winnow" / "__init__.py").is_file()), None)
        request = {
            "study": study_text(self.question.study, self.question.arm, tree, self.repository.root),
            "file": str(self.question.study.folder / f"{self.question.study.id}.toml"),
            "store": str(folder / "winnow-store"),
            "arm": self.question.arm,
            "metric": self.question.study.endpoint.metric,
            "seeds": list(seeds),
            "jobs": self.means.jobs,
            "device": self.means.device,
            "threads": self.means.threads,
            "package": None if package is None else str(package),
        }
        log = folder / "log.txt"
        with writing(log):
            errors = log.open("ab")
        with errors:
            # -P: the program's own folder, which is today's, is no place to import from.
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=tree,
                env=environment(package),
                start_new_session=True,
            )
            try:
                answer = self._listen(process, request)
            except KeyboardInterrupt:
                _interrupt(process)
            except BaseException:
                process.kill()
                raise
            finally:
                for stream in (process.stdin, process.stdout):
                    with suppress(BrokenPipeError):
                        if stream is not None:
                            stream.close()
                process.wait()
        if answer is None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return {"event": "failed", "error": lines[-1] if lines else f"ended with status {process.returncode}"}
        if answer["event"] == "stopped":  # somebody else stopped it
            raise KeyboardInterrupt
        return {**answer, "package": package is not None}

    def _listen(self, process: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any] | None:
        """The last word of the program; None if it died without one."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it is dead already: its log says why
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        answer: dict[str, Any] | None = None
        for line in process.stdout:
            try:
                data = json.loads(line)
            except ValueError:
                continue
            if data["event"] == "run":
                self.say(f"  seed {data['seed']} {data['status']}")
            else:
                answer = data
        return answer


def study_text(study: Study, arm: str, tree: Path, root: Path) -> str:
    """One arm of the study as TOML, with the `use` files that lie in the repository taken from the worktree."""
    use = [str(tree / path.relative_to(root) if _inside(path, root) else path) for path in _use(study)]
    table = {
        "id": study.id,
        "seeds": list(study.seeds),
        "looks": list(study.looks),
        "endpoint": {name: value for name, value in study.endpoint.dump().items() if value is not None},
        "base": dict(study.base),
        "arms": {arm: dict(study.arms[arm])},
        "control": arm,
        **({"use": use} if use else {}),
    }
    return "".join(f"{name} = {toml(value)}\n" for name, value in table.items())


def toml(value: Any) -> str:
    """A plain value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    # JSON's texts, numbers and truths are TOML's too, but for one character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def environment(package: Path | None) -> dict[str, str]:
    """What the program runs in: the commit's package first, and no word of git's about another folder."""
    found = outside_git()
    if package is not None:
        found["PYTHONPATH"] = os.pathsep.join([str(package), *filter(None, [found.get("PYTHONPATH")])])
    found.pop("WINNOW_STORE", None)
    return {**found, COMMAND_VARIABLE: json.dumps(redact(command_line()))}


def _use(study: Study) -> list[Path]:
    return [(study.folder / name).resolve() for name in study.use]


def _inside(path: Path, root: Path) -> bool:
    return path.is_relative_to(root)


def _interrupt(process: subprocess.Popen[bytes]) -> NoReturn:
    """Let the runs save themselves, then go on with the interruption."""
    process.send_signal(signal.SIGINT)
    end = time.monotonic() + PATIENCE
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    finally:  # a second Ctrl-C, or out of patience
        if process.poll() is None:
            process.kill()
    raise KeyboardInterrupt

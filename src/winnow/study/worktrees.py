"""Commits of a repository, each in a git worktree of its own: what somebody has checked out is never touched.

`History` drives `git bisect` in a worktree that holds no files. Git keeps the state of a bisection by worktree, so
one that the user has going elsewhere in the repository is not disturbed. All worktrees lie in one folder; they go when
the block that made them ends, and what a killed process left there goes when the next one begins.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from winnow.errors import InputError

Judgement = Literal["good", "bad", "skip"]

_OWN: Final = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "advice.detachedHead=false")
"""Hooks of the repository stay silent: a checkout of ours is none of theirs."""

_OF_HOOKS: Final = frozenset(
    {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE"}
    | {"GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH"}
)


@dataclass(frozen=True)
class Commit:
    """One commit."""

    sha: str
    subject: str
    """First line of its message."""

    @property
    def short(self) -> str:
        return self.sha[:10]

    def __str__(self) -> str:
        return f"{self.short} ({self.subject})" if self.subject else self.short


class Repository:
    """A git repository, and a folder for worktrees of its commits."""

    def __init__(self, inside: Path, trees: Path) -> None:
        """inside: any folder of the repository. Raises InputError without git, or where there is no repository."""
        self.root, self.trees = repository_root(inside), trees

    def commit(self, revision: str, key: str) -> Commit:
        """What a revision names. Raises InputError; key: the option that gave it."""
        sha = git(self.root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        if sha is None:
            mend = "give a commit, branch or tag of it"
            raise InputError(f"{revision!r} is no commit of {self.root}", key=key, mend=mend)
        return Commit(sha, self._ask("log", "-1", "--format=%s", sha))

    def between(self, good: Commit, bad: Commit) -> int:
        """Commits that are in `bad` and not in `good`, `bad` included. Raises InputError unless bad follows good."""
        if good.sha == bad.sha or git(self.root, "merge-base", "--is-ancestor", good.sha, bad.sha) is None:
            mend = "a good commit from which the bad one descends: git merge-base GOOD BAD finds one"
            raise InputError(f"{bad.short} does not descend from {good.short}", key="--good", mend=mend)
        return int(self._ask("rev-list", "--count", bad.sha, f"^{good.sha}"))

    def holds(self, commit: Commit, path: str) -> bool:
        """Whether the commit has such a file."""
        return git(self.root, "cat-file", "-e", f"{commit.sha}:{path}") is not None

    @contextmanager
    def checked_out(self, commit: Commit) -> Iterator[Path]:
        """The commit's files in a worktree of their own, for the time of the block."""
        with self._worktree(commit.short, "--detach", commit.sha) as tree:
            found = _ask(tree, "rev-parse", "HEAD")
            assert found == commit.sha, f"{found} was checked out for {commit.sha}"
            yield tree

    @contextmanager
    def bisection(self, good: Commit, bad: Commit) -> Iterator[History]:
        """`git bisect` between the two, in a worktree without files."""
        with self._worktree("bisect", "--detach", "--no-checkout", bad.sha) as tree:
            _ask(tree, "bisect", "start", "--no-checkout", bad.sha, good.sha)
            yield History(tree)

    def clear(self) -> None:
        """Remove what a killed process left."""
        for tree in sorted(self.trees.iterdir()) if self.trees.is_dir() else ():
            self._remove(tree)

    @contextmanager
    def _worktree(self, name: str, *arguments: str) -> Iterator[Path]:
        tree = self.trees / name
        self._remove(tree)
        try:
            # --force: its place in git's list may still be taken by one whose folder was deleted by hand.
            self._ask("worktree", "add", "--quiet", "--force", *arguments[:-1], str(tree), arguments[-1])
            yield tree
        finally:
            self._remove(tree)

    def _remove(self, tree: Path) -> None:
        if not tree.exists():
            return
        if git(self.root, "worktree", "remove", "--force", "--force", str(tree)) is None:
            shutil.rmtree(tree)

    def _ask(self, *arguments: str) -> str:
        return _ask(self.root, *arguments)


class History:
    """A bisection under way."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._skipped: set[str] = set()

    def suspects(self) -> tuple[Commit, ...]:
        """Commits one of which is the first bad one as far as is known, the latest first."""
        good = _ask(self._tree, "for-each-ref", "--format=^%(objectname)", "refs/bisect/good-*").split()
        lines = _ask(self._tree, "log", "--format=%H %s", "refs/bisect/bad", *good, "--").splitlines()
        return tuple(Commit(sha, subject) for sha, _, subject in (line.partition(" ") for line in lines))

    def next(self) -> Commit | None:
        """The commit that is to be judged now; None once nothing more can be found out."""
        bad, *others = self.suspects()
        if all(commit.sha in self._skipped for commit in others):
            return None
        head = _ask(self._tree, "rev-parse", "BISECT_HEAD")
        return next(commit for commit in (bad, *others) if commit.sha == head)

    def say(self, commit: Commit, judgement: Judgement) -> None:
        """What was found of a commit."""
        if judgement == "skip":
            self._skipped.add(commit.sha)
        # Its last word, that only skipped commits are left, has a status other than 0.
        git(self._tree, "bisect", judgement, commit.sha)


def repository_root(inside: Path) -> Path:
    """The repository's main folder. Raises InputError without git, or where there is no repository."""
    if shutil.which("git") is None:
        raise InputError("git is not installed", mend="install it: a bisection is a walk through its commits")
    root = git(inside, "rev-parse", "--show-toplevel")
    if not root:
        raise InputError("is in no git repository", file=inside, mend="name one with --repo")
    return Path(root)


def outside_git() -> dict[str, str]:
    """The environment without what git tells its own hooks, which would name another repository or folder."""
    return {name: value for name, value in os.environ.items() if name not in _OF_HOOKS}


def git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None if it fails."""
    done = _run(folder, arguments)
    return done.stdout.strip() if done.returncode == 0 else None


def _ask(folder: Path, *arguments: str) -> str:
    """The same of a command that has no reason to fail. Raises InputError with git's own words if it does."""
    done = _run(folder, arguments)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise InputError(f"git {arguments[0]} failed: {said}", file=folder)
    return done.stdout.strip()


def _run(folder: Path, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    environment = {**outside_git(), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    # In a session of its own: Ctrl-C must not cut a checkout short.
    return subprocess.run(
        ["git", "-C", str(folder), *_OWN, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )

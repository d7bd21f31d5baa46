"""Little git repositories, and runs of their commits that nobody trains."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from winnow.study.bisect import Ran
from winnow.study.worktrees import Commit

AUTHOR = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "A"), ("EMAIL", "a@b"))}  # fmt: skip  # noqa: E501
"""Nobody's own settings count."""


def git(folder: Path, *arguments: str) -> str:
    """What git prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {**AUTHOR, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def make_repository(folder: Path, versions: Sequence[Mapping[str, str]]) -> list[str]:
    """A repository with a commit for each version, its files by name; returns the commits."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    found: list[str] = []
    for number, files in enumerate(versions):
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--allow-empty", "--message", f"change {number}")
        found.append(git(folder, "rev-parse", "HEAD"))
    return found


class FakeRuns:
    """Runs by the commit's place in the history: an effect, noise that is paired or its own, some that fail."""

    def __init__(
        self,
        commits: Sequence[str],
        effects: Mapping[int, float],
        *,
        sd: float = 0.01,
        rho: float = 0.8,
        world: int = 0,
        broken: Sequence[int] = (),
        diverging: Sequence[int] = (),
    ) -> None:
        """effects: what is added from this place on, until the next; sd: of one run; rho: shared by a seed's runs."""
        self.commits, self.effects = list(commits), dict(effects)
        self.sd, self.rho, self.world = sd, rho, world
        self.broken, self.diverging = broken, diverging
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        """Place and seeds of every call."""

    def __call__(self, commit: Commit, seeds: Sequence[int]) -> Ran:
        place = self.commits.index(commit.sha)
        self.asked.append((place, tuple(seeds)))
        if place in self.broken:
            return Ran({}, "SyntaxError: planted")
        if place in self.diverging:
            return Ran(dict.fromkeys(seeds))
        return Ran({seed: self.value(place, seed) for seed in seeds})

    def value(self, place: int, seed: int) -> float:
        started = max((start for start in self.effects if start <= place), default=None)
        shared = random.Random(f"{self.world} {seed}").gauss(0, 1)
        own = random.Random(f"{self.world} {seed} {place}").gauss(0, 1)
        noise = self.sd * (self.rho**0.5 * shared + (1 - self.rho) ** 0.5 * own)
        return 2.0 + (0.0 if started is None else self.effects[started]) + noise

"""The command that makes a recorded run again, and how to tell that it did.

A run is made again into an empty store: in the store that has it, `winnow run` would find it and train nothing. The
parents that it starts from come first. The new run has the same digest, and with the same code, packages and hardware
class the same SHA-256 of its weights.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.study.plan import PlannedArm, read_plan
from winnow.study.spec import Study

AGAIN = "again"
"""Name of the store that the commands make the run in."""
_RANKS = re.compile(r"(\d+) ranks, (ddp|fsdp)")


def command(
    study: Study, record: RunRecord, seed: int, arm: PlannedArm | None, store: RunStore, settings: Iterable[str] = ()
) -> str:
    """One line for a shell, given at the top of the repository; for a run of another program the line that it notes.

    arm: as planned, None for runs of other programs. settings: `--set` as it was written.
    """
    made = record.provenance
    if study.runs == "recorded":
        return shlex.join(made.argv)
    given = [word for text in settings for word in ("--set", text)]
    how = ["--trust"] if study.use else []
    how += [] if made.device == "cpu" else ["--device", made.device.partition(":")[0]]
    how += [] if made.threads == 1 else ["--threads", str(made.threads)]
    for note in made.notes:
        ranks = _RANKS.search(note)
        if ranks is not None:
            how += ["--ranks", ranks[1], "--parallel", ranks[2]]
            break
    lines = [f"git checkout {made.commit[:12]}"] if made.commit else []
    for name, file, parent_seed in _parents(arm, seed, store):
        lines.append(_run(file or in_repository(study.file), name, parent_seed, [*given, *how]))
    lines.append(_run(in_repository(study.file), study.id, seed, [*given, *how]))
    return " && ".join(lines)


def _run(file: str, study: str, seed: int, how: list[str]) -> str:
    return shlex.join(["winnow", "run", file, "--only", study, "--seeds", str(seed), *how, "--store", AGAIN])


def _parents(arm: PlannedArm | None, seed: int, store: RunStore) -> list[tuple[str, str | None, int]]:
    """Study, file and seed of the runs that a run descends from, the oldest first."""
    found: list[tuple[str, str | None, int]] = []
    while arm is not None and arm.parent is not None:
        parent = arm.parent
        seed = seed if parent.seed is None else parent.seed
        plan = read_plan(store, parent.study)
        file = None if plan is None or plan.file is None else in_repository(Path(plan.file))
        if (parent.study, file, seed) in found:
            break
        found.insert(0, (parent.study, file, seed))
        arm = None if plan is None else plan.arms.get(parent.arm)
    return found


def in_repository(path: Path | None) -> str:
    """The file's path from the top of the repository that it lies in; its name alone where it lies in none."""
    if path is None:
        return "FILE"
    whole = path.resolve()
    top = next((folder for folder in whole.parents if (folder / ".git").exists()), None)
    return whole.name if top is None else whole.relative_to(top).as_posix()


def provisos(records: Iterable[RunRecord], known: frozenset[str] | None = None) -> tuple[str, ...]:
    """What the commands cannot promise: code that no commit holds, and commits that are not here.

    known: commits that the repository of the study has; None = nobody asked.
    """
    made = [record.provenance for record in records]
    notes: list[str] = []
    dirty = sorted({each.diff_sha256[:12] for each in made if each.dirty and each.diff_sha256})
    if dirty:
        notes.append(
            "Some of these runs were made with changes that were not committed (SHA-256 of the difference "
            f"{', '.join(dirty)}): the commit alone does not give their code."
        )
    if any(each.commit is None for each in made):
        notes.append("Some of these runs were made outside a git repository: no commit can be named for them.")
    lost = sorted({each.commit[:12] for each in made if each.commit and known is not None and each.commit not in known})
    if lost:
        notes.append(
            f"Not in this repository: {', '.join(lost)}. Its history may have been rewritten, or the runs were made "
            "elsewhere. The digest of the code under Provenance tells whether another commit is the same code."
        )
    own = sorted({e.package_commit[:12] for e in made if e.package_commit and e.package_commit != e.commit})
    if own:
        notes.append(f"Winnow itself ran from a checkout at {', '.join(own)}.")
    released = sorted({e.packages["winnow-lab"] for e in made if not e.package_commit and "winnow-lab" in e.packages})
    if released:
        commands = ", ".join(f"pip install winnow-lab=={version}" for version in released)
        notes.append(f"Winnow was installed: {commands}.")
    return tuple(notes)

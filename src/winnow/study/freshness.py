"""Whether a stored plan would come out the same if it were resolved now. Needs no torch, and reads no data.

What an arm means depends on its text (`plan.stale_arms` watches that), on Winnow's own sources, on Python and on the
files of the data. Of these the sizes, times and inodes at the last resolution are kept beside the plan, in
`studies/.<id>.basis`. Where they still agree nothing is read again; where they do not, or anything is not known, the
study is resolved anew, which costs time and is always right. The file is derived and may be deleted.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

import winnow.tasks  # noqa: F401 (the kinds of task, which need no torch before they make a batch)
from winnow.config import canonical_json, digest
from winnow.errors import InputError
from winnow.records.files import write_atomic
from winnow.records.store import RunStore
from winnow.study.plan import Plan
from winnow.study.spec import Study
from winnow.tasks.base import TaskConfig

_BEGAN = time.time_ns()
_Mark = tuple[str, int, int, int]
"""Path, size in bytes, modification time in ns, inode."""


def is_fresh(store: RunStore, study: Study, plan: Plan) -> bool:
    """Whether resolving the study again would give this plan, its text being unchanged."""
    try:
        kept = _path(store, study).read_text()
    except OSError:
        return False  # never kept, or not readable
    return kept == basis(plan)


def keep_basis(store: RunStore, study: Study, plan: Plan) -> None:
    """Note what the study has been resolved from by this process. Raises InputError if the disk refuses.

    Data that was written after the process began may have been read before: then nothing is noted.
    """
    found = None if _newest_data(plan) >= _BEGAN else basis(plan)
    path = _path(store, study)
    if found is None:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, found)


def basis(plan: Plan) -> str | None:
    """Digest of everything but the study's text that the plan rests on; None where it is not all known."""
    marks: list[object] = [sys.version, _own_sources()]
    for name, arm in plan.arms.items():
        marks.append([name, arm.written, arm.identity, arm.data])
        start = arm.config.get("init_from")
        if start is not None and start.get("path") is not None:
            return None  # weights of other programs: reading them is the only way to know them
        found = _data_marks(canonical_json(arm.config["task"])) if "task" in arm.config else None
        if found is None:
            return None
        marks.append(found)
    return digest(marks)


def _newest_data(plan: Plan) -> int:
    """Modification time (ns) of the file of the data that was changed last; 0 where no file is known."""
    marks = [_data_marks(canonical_json(arm.config["task"])) for arm in plan.arms.values() if "task" in arm.config]
    return max((changed for found in marks if found is not None for _, _, changed, _ in found), default=0)


def _path(store: RunStore, study: Study) -> Path:
    return store.root / "studies" / f".{study.plan_name}.basis"


@functools.lru_cache(maxsize=1024)
def _data_marks(task: str) -> tuple[_Mark, ...] | None:
    """Marks of a task's files, looked up once in a process: many arms read the same text."""
    try:
        files = TaskConfig.model_validate(json.loads(task)).files()
    except (ValidationError, InputError):
        return None  # a kind that a `use` file defines, or a file that has gone
    return None if files is None else _marks(files)


@functools.cache
def _own_sources() -> str:
    package = Path(__file__).parents[1]
    return digest(_marks(sorted(package.rglob("*.py"))))


def _marks(paths: Iterable[Path]) -> tuple[_Mark, ...]:
    found: list[_Mark] = []
    for path in paths:
        status = os.stat(path)
        found.append((str(path), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)

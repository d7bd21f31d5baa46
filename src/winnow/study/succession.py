"""Studies that replace earlier ones: `supersedes = "earlier-id"`. The earlier one is then withdrawn. Needs no torch.

The replacing study says so, in its text and so in its plan; nothing is ever written about the earlier one. Who has
replaced a study is found among the studies of the file at hand and the plans of the store. A study may be replaced
once; its replacement may be replaced in turn.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from winnow.errors import InputError, nearest
from winnow.records.store import RunStore
from winnow.study.plan import read_plan, stored_plans
from winnow.study.spec import Study

_SUPERSEDES = re.compile(rb'"supersedes":\s*"')


@dataclass(frozen=True)
class Place:
    """A study and the file that declares it."""

    study: str
    file: Path | None
    """Absolute; None where it is not known."""


@dataclass(frozen=True)
class Succession:
    """What one study replaces, and what it is replaced by."""

    replaces: Place | None = None
    replaced_by: Place | None = None


class Successions:
    """Which studies replace which, in one file and in the store that its runs are in."""

    def __init__(
        self,
        store: RunStore,
        studies: Iterable[Study] = (),
        *,
        file: Path | None = None,
        declared: Mapping[str, str | None] | None = None,
    ) -> None:
        """studies: those at hand, which are checked. file, declared: a file, and what each of its studies supersedes.

        Raises InputError, with the line, where one of `studies` supersedes itself, something unknown, something that
        another file or an earlier study of this one supersedes already, or goes round in a circle.
        """
        self._store = store
        studies = tuple(studies)
        own = None if file is None else file.resolve()
        known = {**(declared or {}), **{study.id: study.supersedes for study in studies}}
        self._files: dict[str, Path | None] = dict.fromkeys(known, own)
        for study in studies:
            if study.file is not None:
                self._files[study.id] = study.file.resolve()
        # In the order of the claim to an earlier study: other files have been run, then come the cells from the top.
        self._replaces: dict[str, str] = {}
        for name, old, place in _stored(store):
            # What the file says now goes before what its last run has said; a cell that has gone says nothing.
            if name not in known and (own is None or place != own):
                self._replaces[name] = old
                self._files[name] = place
        self._replaces |= {name: old for name, old in known.items() if old is not None}
        self._replaced_by: dict[str, str] = {}
        for study in studies:
            self._check(study)
        for name, old in self._replaces.items():
            self._replaced_by.setdefault(old, name)

    def of(self, study: str) -> Succession:
        """Where a study stands in its chain."""
        old, new = self._replaces.get(study), self._replaced_by.get(study)
        return Succession(None if old is None else self._place(old), None if new is None else self._place(new))

    def _check(self, study: Study) -> None:
        old = study.supersedes
        if old is None:
            return

        def refused(message: str, mend: str) -> InputError:
            return study.lines.error(message, ("supersedes",), mend)

        if old == study.id:
            raise refused(f"study {old!r} supersedes itself", "name the earlier study")
        if old not in self._files and not self._store_knows(old):
            names = dict.fromkeys([*self._files, *stored_plans(self._store)])
            raise refused(f"there is no study {old!r} to supersede", nearest(old, [n for n in names if n != study.id]))
        first = next(name for name, other in self._replaces.items() if other == old)
        if first != study.id:
            raise refused(f"{old!r} is superseded by {first!r} already", f"supersede {first!r}, or drop one of the two")
        chain = [study.id]
        while (following := self._replaces.get(chain[-1])) is not None:
            if following in chain:
                circle = " supersedes ".join([*chain, following])
                raise refused(f"studies supersede each other: {circle}", "leave one of these keys out")
            chain.append(following)

    def _store_knows(self, study: str) -> bool:
        return study in stored_plans(self._store)

    def _place(self, study: str) -> Place:
        if study not in self._files:
            plan = read_plan(self._store, study) if self._store_knows(study) else None
            self._files[study] = None if plan is None or plan.file is None else Path(plan.file)
        return Place(study, self._files[study])


def _stored(store: RunStore) -> Iterable[tuple[str, str, Path | None]]:
    """(study, what it supersedes, its file) of every plan in the store that supersedes something."""
    for name in stored_plans(store):
        try:
            text = (store.root / "studies" / f"{name}.json").read_bytes()
            if not _SUPERSEDES.search(text):
                continue
            plan: Any = json.loads(text)
        except (OSError, ValueError):
            continue  # whoever needs that plan says what is wrong with it
        if plan.get("id") == name:  # with --set a study keeps a plan of its own, which replaces nothing
            file = plan.get("file")
            yield name, plan["supersedes"], None if file is None else Path(os.path.normpath(store.root / file))

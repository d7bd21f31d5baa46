"""`winnow.load_study`: a study from Python, whether it stands in a `.toml` file or in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from winnow.errors import InputError
from winnow.notebook.execute import open_source
from winnow.records.store import RunStore, find_store
from winnow.study.api import OpenStudy


def load_study(
    path: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    only: str | None = None,
    store: str | Path | None = None,
) -> OpenStudy:
    """The study in a `.toml` file or a `.md` notebook, with its store.

    changes: settings instead of the file's, by dotted key; only: id of the study, needed where a notebook has several;
    store: folder of the runs (None = $WINNOW_STORE, else `winnow-store` beside the file). Running it writes records,
    not results: the file stays as it is. Raises InputError with the place and the mend.
    """
    source = open_source(Path(path), changes, only)
    study, *others = source.studies
    if others:
        names = " or ".join(repr(each.id) for each in source.studies)
        raise InputError(f"has {len(source.studies)} studies", file=path, key="only", mend=f"choose {names}")
    root = find_store(None if store is None else Path(store), beside=source.path)
    return OpenStudy(study, RunStore(root))

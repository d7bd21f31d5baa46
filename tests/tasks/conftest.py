"""A cache of its own for these tests, and small texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache folder, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "winnow"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with 60 small text files, all different."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(60):
        words = " ".join(hashlib.sha256(f"{i} {j}".encode()).hexdigest()[:6] for j in range(20 + i))
        (folder / f"{i:02d}.txt").write_text(f"Page {i}, naïve “text” {i * i}\n{words}\n", encoding="utf-8")
    return folder

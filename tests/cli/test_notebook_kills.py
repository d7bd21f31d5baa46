"""A notebook that is run and killed at random instants: whole at every moment, and in the end as if undisturbed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.cli.notebook_kills import kill_until_done
from tests.cli.tiny import winnow, write_study

from winnow.notebook.document import Document
from winnow.records.store import RunStore

BEFORE = "---\ntitle: Killed\ntags: [kills]\n---\n# Lab\r\n\r\n\tMy *own* words"
AFTER = "\r\n\r\nMore of my words, without a newline at the end"


def write_notebook(folder: Path) -> Path:
    folder.mkdir()
    study = write_study(
        folder,
        'arms.wide = { model.d_ff = 128 }\nclaims.wide = "wide better-than control on val/ce smallest 0.01"\n',
        changes={"steps = 6": "steps = 60", "every = 3": "every = 20"},
    )
    path = folder / "lab.md"
    path.write_bytes(f"{BEFORE}\n\n```toml study\n{study.read_text()}```{AFTER}".encode())
    study.unlink()
    return path


def own_words(path: Path) -> bytes:
    """The notebook without Winnow's part."""
    return re.sub(rb"\n\n<!-- winnow:tiny -->.*<!-- /winnow -->", b"", path.read_bytes(), flags=re.DOTALL)


def without_times(path: Path) -> str:
    """The results without what a second making of the same runs changes: when, and how many seconds."""
    block = Document.read(path).block("tiny")
    assert block is not None
    assert not block.edited
    text = re.sub(r"frozen \S+,", "frozen,", block.content)
    return re.sub(r"\| [^|]* \|$", "|", text, flags=re.MULTILINE)


def killed(tmp_path: Path, kills: int) -> None:
    calm = write_notebook(tmp_path / "calm")
    assert winnow("run", "lab.md", "--jobs", "2", cwd=calm.parent).code == 0
    path = write_notebook(tmp_path / "killed")
    written = path.read_bytes()
    store = RunStore(path.parent / "winnow-store")
    finished: dict[str, bytes] = {}

    def look() -> None:
        Document.read(path)
        assert own_words(path) == written
        for digest, record in finished.items():
            assert (store.path(digest) / "run.json").read_bytes() == record, "what has finished is never made again"
        for digest in store.digests():
            if (store.path(digest) / "run.json").exists():
                finished.setdefault(digest, (store.path(digest) / "run.json").read_bytes())

    hits = kill_until_done(path, kills, 3.0, look)
    assert hits > 0
    assert len(finished) >= 4
    assert not list(store.runs.glob("*/superseded-*"))
    assert without_times(path) == without_times(calm)
    # The results are a function of the records: a copy of the notebook that has never seen a kill gets the same bytes.
    done = path.read_bytes()
    path.write_bytes(written)
    assert winnow("run", "lab.md", cwd=path.parent).code == 0
    assert path.read_bytes() == done


def test_a_few_kills(tmp_path: Path):
    killed(tmp_path, 3)


@pytest.mark.soak
@pytest.mark.parametrize("round_", range(10))
def test_many_kills(tmp_path: Path, round_: int):
    killed(tmp_path, 10)

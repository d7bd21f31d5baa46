"""docs/continuing.md: its notebook, run as it stands, from pre-training to grafted children."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.tiny import winnow, write_study

from winnow.records.store import RunStore

GUIDE = Path(__file__).parents[2] / "docs" / "continuing.md"


def test_the_notebook_of_the_guide(tmp_path: Path) -> None:
    write_study(tmp_path)  # for its text
    notebook = tmp_path / "notebook.md"
    notebook.write_bytes(GUIDE.read_bytes())
    ended = winnow("run", notebook, "--seeds", "0", "--json", cwd=tmp_path)
    assert ended.code == 0, ended.err
    first, second = json.loads(ended.out)
    assert (first["study"], first["ran"], second["study"], second["ran"]) == ("pretrain", 3, "again", 4)
    store = RunStore(tmp_path / "winnow-store")
    records = {(record.label.study, record.label.arm): record for record in store.records().values()}
    parent = records["pretrain", "self"]
    rows = {arm: store.metrics(records["again", arm].digest) for arm in ("resume", "restart", "head", "selective")}
    before = store.metrics(parent.digest)
    assert [row["step"] for row in rows["resume"]] == [5, 6, 7, 8]
    for name in ("train/ce", "train/ce_smooth", "train/lr", "train/grad_norm"):
        assert [row[name] for row in rows["resume"][:-1]] == [row[name] for row in before[5:-1]]
    assert records["again", "resume"].weights == parent.weights
    assert rows["restart"][0]["train/ce"] == before[5]["train/ce"]
    assert abs(rows["head"][0]["val/ce"] - rows["restart"][0]["val/ce"]) < 1e-5, "a ko_zero head changes nothing yet"
    assert all(records["again", arm].facts["parent"] == parent.digest for arm in rows)
    bad = [item for record in records.values() for item in record.findings if item.severity == "invalid"]
    assert bad == []
    text = notebook.read_text()
    assert "again" in text[text.index("arms.resume") :]
    removed = winnow("rm", "pretrain/self/0", cwd=tmp_path)
    assert "again/resume/0" in removed.err
    assert "start from" in removed.err
    kept = winnow("gc", "--yes", cwd=tmp_path)
    assert kept.code == 0
    assert (store.path(parent.digest) / "checkpoints" / "step-00000005").is_dir()

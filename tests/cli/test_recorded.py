"""Studies whose runs other programs make: `check` before the first run freezes the claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.tiny import winnow

import winnow as package

STUDY = """\
id = "depth"
runs = "recorded"
seeds = [0, 1, 2]
endpoint = { metric = "loss" }
arms.control = { depth = 4 }
arms.deep = { depth = 8 }
claims.h1 = "deep better-than control on loss smallest 0.01"
"""


def record(folder: Path) -> None:
    for arm, depth in (("control", 4), ("deep", 8)):
        for seed in range(3):
            where = folder / "winnow-store"
            with package.record({"depth": depth}, seed, study="depth", arm=arm, store=where) as run:
                run.log(step=0, loss=5.0)
                run.log(step=1, loss=2.0 - depth / 10 + seed / 100 + depth * seed**2 / 10_000)


@pytest.mark.parametrize("checked", [True, False])
def test_claims_that_were_checked_before_the_runs_are_confirmatory(tmp_path: Path, checked: bool):
    (tmp_path / "depth.toml").write_text(STUDY)
    if checked:
        ended = winnow("check", "depth.toml", cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert "depth: 2 arms, 1 claim, 3 seeds" in ended.out
        plan = json.loads((tmp_path / "winnow-store/studies/depth.json").read_text())
        assert plan["claims"]["h1"]["text"] == "deep better-than control on loss smallest 0.01"
    record(tmp_path)
    ended = winnow("compare", "depth.toml", "--json", cwd=tmp_path)
    verdict = json.loads(ended.out)[0]["verdicts"][0]
    assert (ended.code, verdict["status"], verdict["exploratory"]) == (0, "supported", not checked)
    text = winnow("compare", "depth.toml", cwd=tmp_path).out
    assert "notice: deep: unwatched: made by another program" in text


def test_check_audits_them_too(tmp_path: Path):
    (tmp_path / "depth.toml").write_text(STUDY.replace(" smallest 0.01", "").replace("deep", "Control"))
    ended = winnow("check", "depth.toml", cwd=tmp_path)
    assert ended.code == 2
    assert "differ in case only" in ended.err
    assert "no-smallest" in ended.out


def test_a_claim_that_changes_after_the_runs_is_exploratory(tmp_path: Path):
    file = tmp_path / "depth.toml"
    file.write_text(STUDY)
    assert winnow("check", "depth.toml", cwd=tmp_path).code == 0
    record(tmp_path)
    file.write_text(STUDY.replace("smallest 0.01", "smallest 0.3"))
    assert winnow("check", "depth.toml", cwd=tmp_path).code == 0
    text = winnow("compare", "depth.toml", cwd=tmp_path).out
    assert "exploratory: the claim was" in text

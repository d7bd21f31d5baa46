"""`winnow judge` on tables of other programs: the worked example of the statistics, and what is wrong with a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

# The worked example: FineWeb validation losses of a base and a variant, three seeds each.
BASE, A = (3.2793, 3.2781, 3.2786), (3.2769, 3.2762, 3.2775)
ROWS = [("base", s, v) for s, v in enumerate(BASE)] + [("A", s, v) for s, v in enumerate(A)]


def write(folder: Path, rows=ROWS, *, separator: str = ",", header=("arm", "seed", "val_loss")) -> Path:
    path = folder / "results.csv"
    path.write_text("\n".join(separator.join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def test_a_claim_is_judged_in_pairs(winnow, tmp_path: Path):
    claim = "A better-than base on val_loss smallest 0.001"
    common = [write(tmp_path), "--metric", "val_loss", "--claim", claim, "--looks", "3,5,8", "--json"]
    paired = json.loads(winnow("judge", *common, "--pair", "seed").out)["verdicts"][0]
    assert paired["effect"] == pytest.approx(sum(A) / 3 - sum(BASE) / 3)
    assert paired["n"] == 3
    assert paired["low"] < paired["effect"] < paired["high"]
    unpaired = json.loads(winnow("judge", *common).out)["verdicts"][0]
    assert unpaired["rho"] is None
    assert unpaired["high"] - unpaired["low"] != paired["high"] - paired["low"]


def test_without_a_claim_every_arm_is_compared_and_called_exploratory(winnow, tmp_path: Path):
    ended = winnow("judge", write(tmp_path, separator="\t"), "--metric", "val_loss", "--pair", "seed")
    assert ended.code == 0
    assert "A better-than base on val_loss" in ended.out
    assert "exploratory" in ended.out


def test_higher_is_better_turns_the_verdict(winnow, tmp_path: Path):
    claim = ["--claim", "A worse-than base on val_loss smallest 0.0001", "--json", "--metric", "val_loss"]
    found = winnow("judge", write(tmp_path), *claim, "--better", "higher", "--pair", "seed")
    assert json.loads(found.out)["verdicts"][0]["status"] == "supported"
    found = winnow("judge", write(tmp_path), *claim, "--better", "lower", "--pair", "seed")
    assert json.loads(found.out)["verdicts"][0]["status"] != "supported"


def test_identical_arms_are_unexpectedly_invalid(winnow, tmp_path: Path):
    rows = [(arm, seed, 1.0 + seed) for arm in ("a", "b") for seed in range(3)]
    ended = winnow("judge", write(tmp_path, rows), "--metric", "val_loss", "--pair", "seed")
    assert ended.code == 1
    assert "unexpected" in ended.out


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*ROWS, ("A", 2, 3.0)], "results.csv:8: "),
        ([*ROWS, ("A", 3, "x")], "results.csv:8: val_loss: 'x'"),
        ([*ROWS, ("A", 3)], "results.csv:8: "),
        ([], "holds no rows"),
    ],
)
def test_a_table_that_is_wrong_names_its_line(winnow, tmp_path: Path, rows, words: str):
    ended = winnow("judge", write(tmp_path, rows), "--metric", "val_loss", "--pair", "seed")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert words in ended.err


def test_a_claim_need_not_say_the_metric_again(winnow, tmp_path: Path):
    given = ["judge", write(tmp_path), "--metric", "val_loss", "--pair", "seed"]
    claims = [f"A better-than base{on} smallest 0.01" for on in (" on val_loss", "")]
    said = [winnow(*given, "--claim", claim) for claim in claims]
    assert said[0].code == said[1].code == 0, said[1].err
    assert said[0].out == said[1].out


def test_a_column_that_is_missing_has_its_nearest_name(winnow, tmp_path: Path):
    ended = winnow("judge", write(tmp_path), "--metric", "val_los", "--pair", "seed")
    assert ended.code == 2
    assert "did you mean 'val_loss'" in ended.err

"""`winnow table` and what `check` says of a grid, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.study.planned import made_up, run_all
from tests.study.studies import TEXT as SMALL
from tests.study.studies import write_study

GRID = """\
id = "made-up"
seeds = [0, 1, 2]
looks = [3]
control = "a_n-1"
grid.model.name = ["a", "b"]
grid.model.n = [1, 2]
claims."n-{name}" = "{name}_n-2 better-than {name}_n-1 on val/ce smallest 0.5"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    study, store = made_up(tmp_path, GRID)
    run_all(study, store, 3)
    assert study.file is not None
    study.file.write_text(GRID)
    return study.file


def test_a_table_as_it_is_asked_for(winnow, file: Path):
    ended = winnow(
        "table", file, "--columns", "name, n,val/ce", "--columns", "seconds:max", "-s", "name,n-", "-f", "csv"
    )
    assert ended.out.splitlines()[0] == "name,n,val/ce,seconds (max)"
    assert [line.split(",")[:2] for line in ended.out.splitlines()[1:]] == [
        ["a", "3"],
        ["a", "3"],
        ["b", "3"],
        ["b", "3"],
    ]
    ended = winnow("table", file, "--runs", "--exclude", "minutes,throughput", "--rename", "val/ce=loss")
    assert ended.out.splitlines()[0].split("|")[1:-1][-2].strip() == "loss"
    assert len(ended.out.splitlines()) == 2 + 12


def test_letters_are_said_under_the_table_or_beside_it(winnow, file: Path):
    plain = winnow("table", file)
    assert "| letter |" in plain.out
    assert "Arms that share a letter are not shown to differ in val/ce; 0 of 6 pairs do differ" in plain.out
    ranked = winnow("table", file, "--rank", "-f", "csv")
    assert ranked.out.splitlines()[0].split(",")[6] == "letter"
    assert "0 of 6 pairs" in ranked.err
    means = [float(line.split(",")[4]) for line in ranked.out.splitlines()[1:]]
    assert means == sorted(means)
    assert json.loads(winnow("table", file, "-f", "json").out)["ranking"]["letters"]["a_n-1"] == "a"


def test_what_is_wrong_with_an_option_is_one_line(winnow, file: Path):
    for options, words in (
        (["--metric", "val/ce", "--runs"], "--metric: a table of metrics by arm has no other columns"),
        (["--rename", "loss"], "--rename: 'loss' is no title; write NAME=TITLE"),
        (["--sort", "name+"], "--sort: no column is called 'name+'; did you mean 'name'"),
    ):
        ended = winnow("table", file, *options)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert words in ended.err


def test_check_says_what_a_grid_makes(winnow, tmp_path: Path):
    arms = SMALL.index("[arms]")
    grid = '[grid]\nmodel.attention.kind = ["softmax", "selective"]\ntrain.lr = [4e-3, 8e-3]\nfilter = "{}"\n'
    text = 'control = "softmax_lr-0.004"\n' + SMALL[:arms] + grid.format("not (attention == 'softmax' and lr > 0.005)")
    file = write_study(tmp_path, text)
    ended = winnow("check", file)
    assert ended.code == 0, ended.err
    line = "grid: 2 attention x 2 lr = 4 combinations, 1 dropped by the filter: 3 arms, at most 15 runs"
    assert line in ended.out
    wrong = winnow("check", write_study(tmp_path, text.replace("lr > 0.005", "lr > 0.00.5")))
    assert "small.toml:18: grid.filter: " in wrong.err
    assert "at ^ in" in wrong.err

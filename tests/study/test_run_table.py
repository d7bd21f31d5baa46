"""Tables as somebody asks for them: which columns, what they add up to, in which order, in every form."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from tests.study.planned import made_up, planned, run

from winnow.errors import InputError
from winnow.study.compare import Comparison, compare
from winnow.study.plan import save_plan
from winnow.study.run_table import Layout, run_table

ERRORS = {
    "dpfp": (0.22890, 1.23408, 0.17914, 0.18909, 1.15446),
    "elu-1": (0.79617, 0.88574, 0.44785, 0.19904, 1.05494),
}
"""Sample errors in percent of two activations at five seeds, as a public page prints them one run a row."""
PUBLISHED = {"dpfp": (0.597134, 0.17914, 1.23408, 0.54615), "elu-1": (0.676752, 0.19904, 1.05494, 0.346975)}
"""Mean, smallest, largest and standard deviation that it prints of them."""
SECONDS = {"dpfp": 101.4, "elu-1": 90.6}

TEXT = """\
id = "made-up"
seeds = [1, 2, 3, 4, 5]
looks = [5]
control = "elu-1"
endpoint = { metric = "val/sample_error", better = "lower" }
base.model = { d_model = 64, layers = [3, 5, 1] }
[grid]
act.dpfp = { model.attention = { activation = "dpfp" } }
act."elu-1" = { model.attention = { activation = "elu+1" } }
"""


def found(folder: Path, text: str = TEXT) -> Comparison:
    study, store = made_up(folder, text)
    for arm, values in ERRORS.items():
        for seed, value in zip(study.seeds, values, strict=True):
            facts = {"parameters": 229_632, "seconds": SECONDS[arm] + seed, "tokens": 23_000_000, "context": 23}
            final = {"val/sample_error": value, "val/loss": value / 500, "inside/2/live": 0.5, "inside/10/live": 1.0}
            run(study, store, arm, seed, final=final, facts=facts)
    return compare(study, store)


def read(comparison: Comparison, **layout: object) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run_table(comparison, Layout(**layout)).text("csv"))))  # type: ignore[arg-type]


def test_the_arithmetic_of_the_published_tables(tmp_path: Path):
    rows = read(
        found(tmp_path), spread=["val/sample_error"], exclude=["val/sample_error:sd"], sort=["val/sample_error-"]
    )
    assert [row["act"] for row in rows] == ["elu-1", "dpfp"]
    for row in rows:
        mean, low, high, sd = PUBLISHED[row["arm"]]
        assert float(row["val/sample_error"]) == pytest.approx(mean, abs=1e-5)
        assert float(row["val/sample_error (min)"]) == low
        assert float(row["val/sample_error (max)"]) == high
        assert float(row["val/sample_error (sd)"]) == pytest.approx(sd, abs=2e-5), "n - 1"
        assert (row["n"], row["parameters"]) == ("5", "229632")


def test_the_shape_of_the_published_tables(tmp_path: Path):
    layout = Layout(
        columns=["act", "val/loss", "val/sample_error", "parameters", "minutes", "throughput"],
        spread=["val/sample_error"],
        rename={"val/sample_error": "sample error %", "parameters": "model params"},
        sort=["-val/sample_error"],
    )
    lines = [line.split("|")[1:-1] for line in run_table(found(tmp_path), layout).text("markdown").splitlines()]
    assert [cell.strip() for cell in lines[0]] == [
        "act", "val/loss", "sample error %", "sample error % (min)", "sample error % (max)", "sample error % (sd)",
        "model params", "minutes", "throughput",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[2]] == [
        "elu-1", "0.0013535", "0.68", "0.20", "1.05", "0.35", "229,632", "1.56", "245,783"
    ]  # fmt: skip


def test_one_row_a_run(tmp_path: Path):
    rows = read(found(tmp_path), runs=True, sort=["val/sample_error-"])
    assert [(row["seed"], row["act"]) for row in rows][:3] == [("2", "dpfp"), ("5", "dpfp"), ("5", "elu-1")]
    assert [float(row["val/sample_error"]) for row in rows] == sorted(sum(ERRORS.values(), ()), reverse=True)
    assert "status" not in rows[0], "every run finished"
    mean = statistics.mean(float(row["val/sample_error"]) for row in rows if row["arm"] == "dpfp")
    assert mean == pytest.approx(PUBLISHED["dpfp"][0], abs=1e-5)


def test_rows_are_ordered_by_several_keys_each_its_own_way(tmp_path: Path):
    def order(*sort: str) -> list[tuple[str, str]]:
        return [(row["act"], row["seed"]) for row in read(found(tmp_path), runs=True, sort=sort)]

    assert order("act", "seed-")[:2] == [("dpfp", "5"), ("dpfp", "4")]
    assert order("act-", "seed")[:2] == [("elu-1", "1"), ("elu-1", "2")]
    assert order("seed", "act-")[:3] == [("elu-1", "1"), ("dpfp", "1"), ("elu-1", "2")]
    assert order("parameters", "minutes-")[0] == ("dpfp", "5"), "a key need not be shown"


def test_runs_that_were_lost_are_counted_apart_and_come_last(tmp_path: Path):
    comparison = found(tmp_path)
    study, store = made_up(tmp_path)
    run(study, store, "good", 0, status="diverged", final={"val/ce": 1e9})
    run(study, store, "good", 1, status="failed", error="no", final={})
    run(study, store, "good", 2, 5.0)
    comparison = compare(study, store)
    good = next(row for row in read(comparison) if row["arm"] == "good")
    assert "val/ce (sd)" not in good, "one run has no spread, and no other arm has any"
    assert (good["n"], good["lost"], good["val/ce"]) == ("1", "1 diverged, 1 failed", "5.0")
    for sort in ("val/ce", "val/ce-"):
        rows = read(comparison, runs=True, sort=[sort])
        assert [row["status"] for row in rows] == ["finished", "diverged", "failed"]


def test_what_a_column_may_be(tmp_path: Path):
    names = [
        "arm",
        "inside/*/live",
        "model.attention.activation",
        "model.layers",
        "seconds:max",
        "val/loss:n",
        "samples/s",
    ]
    row = read(found(tmp_path), columns=names)[0]
    assert list(row) == [
        "arm", "inside/2/live", "inside/10/live", "model.attention.activation", "model.layers", "seconds (max)",
        "val/loss (n)", "samples/s",
    ]  # fmt: skip
    assert (row["model.attention.activation"], row["model.layers"]) == ("dpfp", "[3, 5, 1]")
    assert (float(row["seconds (max)"]), row["val/loss (n)"]) == (106.4, "5")
    per_run = [1e6 / (SECONDS["dpfp"] + seed) for seed in range(1, 6)]
    assert float(row["samples/s"]) == pytest.approx(statistics.mean(per_run))


def test_an_axis_shows_its_values_and_a_hand_written_arm_none(tmp_path: Path):
    text = (
        'id = "made-up"\ncontrol = "one"\narms.one = {}\n[grid]\ntrain.lr = [0.01, 0.002]\ntrain.tied = [true, false]\n'
    )
    rows = read(compare(*made_up(tmp_path, text)), columns=["arm", "lr", "tied", "train.tied"], sort=["lr"])
    assert [row["lr"] for row in rows] == ["0.002", "0.002", "0.01", "0.01", ""]
    assert (rows[0]["tied"], rows[0]["train.tied"]) == ("tied-true", "true")


def test_costs_are_told_before_anything_has_run(tmp_path: Path):
    study, store = made_up(tmp_path)
    plan = planned(study)
    arms = {name: arm.replace({"facts": {"parameters": 98_304}}) for name, arm in plan.arms.items()}
    save_plan(store, study, plan.replace({"arms": arms}))
    rows = read(compare(study, store))
    assert list(rows[0]) == ["arm", "n", "parameters"]
    assert rows[0]["parameters"] == "98304"


def test_every_form(tmp_path: Path):
    made = run_table(
        found(tmp_path, TEXT.replace("dpfp = {", 'third = { model.x = "<b>" }\nact.dpfp = {')), Layout(rank=True)
    )
    assert "No ranking: 10 of 15 runs are recorded." in made.text("markdown")
    page = made.text("html")
    assert page.startswith("<table>\n<caption>made-up</caption>")
    assert "<p>No ranking: 10 of 15 runs are recorded.</p>" in page
    assert '<td style="text-align: right">229,632</td>' in page
    assert "% No ranking" in made.text("latex")
    data = json.loads(made.text("json"))
    assert data["ranking"]["why_not"] == "10 of 15 runs are recorded"
    assert data["rows"][0]["val/sample_error"] == pytest.approx(statistics.mean(ERRORS["dpfp"]))
    escaped = run_table(found(tmp_path), Layout(columns=["arm"], rename={"arm": "<i>&"}))
    assert '<th style="text-align: left">&lt;i&gt;&amp;</th>' in escaped.text("html")


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(columns=["arm", "val/los"]), r"--columns: no column is called 'val/los'; did you mean 'val/loss'"),
        (Layout(columns=["model.layer"]), r"did you mean 'model.layers'.*settings such as"),
        (Layout(add=["nothing/*"]), r"--add: no column is called 'nothing/\*'"),
        (Layout(sort=["seconds:mex"]), r"--sort: 'seconds:mex' asks for no statistic; did you mean 'max'"),
        (Layout(add=["act:sd"]), r"'act' has no sd"),
        (Layout(columns=["seed"]), r"an arm has no 'seed'; give --runs"),
        (Layout(exclude=["seconds"]), r"--exclude: 'seconds' is not in the table"),
        (Layout(columns=["arm"], exclude=["arm"]), r"every column is excluded"),
        (Layout(rename={"val/loss": "x"}), r"--rename: no column is called 'val/loss'"),
        (Layout(runs=True, spread=["val/loss"]), r"--spread: a row of one run has no spread"),
        (Layout(runs=True, columns=["n"]), r"a row of one run has no statistics"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, layout: Layout, words: str):
    with pytest.raises(InputError, match=words):
        run_table(found(tmp_path), layout)

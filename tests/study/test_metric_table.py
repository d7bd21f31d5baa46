"""Recorded metrics by arm: numbers against plain sums, patterns, order, every format."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from tests.study.planned import made_up, run

from winnow.errors import InputError
from winnow.study.compare import Comparison, compare
from winnow.study.metric_table import Cell, cells, metric_table

LIVE = {"control": (0.5, 0.75, 0.7), "good": (0.25,)}


def found(folder: Path) -> Comparison:
    study, store = made_up(folder)
    for arm, values in LIVE.items():
        for seed, value in enumerate(values):
            run(study, store, arm, seed, final={"inside/10/live": 1.0, "inside/2/live": value, "val/ce": 2.0})
    run(study, store, "good", 1, status="diverged", final={"inside/2/live": 99.0})
    return compare(study, store)


def test_cells_are_means_over_finished_runs(tmp_path: Path):
    by_place = {(cell.metric, cell.arm): cell for cell in cells(found(tmp_path), ["inside/*"])}
    control, good = by_place["inside/2/live", "control"], by_place["inside/2/live", "good"]
    assert control.mean == pytest.approx(statistics.mean(LIVE["control"]), rel=1e-12)
    assert control.sd == pytest.approx(statistics.stdev(LIVE["control"]), rel=1e-9)
    assert (control.n, control.text) == (3, "0.65 ± 0.13")
    assert (good.n, good.mean, good.sd, good.text) == (1, 0.25, None, "0.25")
    assert by_place["inside/10/live", "control"].text == "1 ± 0"


def test_small_numbers_are_written_with_exponents():
    assert Cell("max_diff", "a", 3, 1.446e-5, 5.3e-7).text == "1.45e-05 ± 5.3e-07"
    assert Cell("loss", "a", 3, 1.23456, 0.0021).text == "1.2346 ± 0.0021"


def test_patterns_choose_and_layers_are_in_order(tmp_path: Path):
    comparison = found(tmp_path)
    text = metric_table(comparison, ["inside/*/live"])
    assert text.index("inside/2/live") < text.index("inside/10/live")
    assert "val/ce" not in text
    assert "control (n 3)" in text
    assert "val/ce" in metric_table(comparison, ["inside/2/live", "val/ce"])


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"no run recorded a metric 'inside/2/life'.*did you mean 'inside/2/live'"):
        metric_table(found(tmp_path), ["val/ce", "inside/2/life"])


def test_csv_and_json_hold_full_precision(tmp_path: Path):
    comparison = found(tmp_path)
    lines = list(csv.DictReader(io.StringIO(metric_table(comparison, ["inside/2/live"], "csv"))))
    assert [(line["arm"], line["n"], float(line["mean"])) for line in lines] == [
        ("control", "3", 0.65),
        ("good", "1", 0.25),
    ]
    data = json.loads(metric_table(comparison, ["inside/2/live"], "json"))
    assert [cell["mean"] for cell in data["metrics"]] == [pytest.approx(0.65), 0.25]
    assert metric_table(comparison, ["inside/2/live"], "latex").startswith("\\begin{tabular}{lrr}")

"""Tables: numbers against plain sums, the same bytes for the same records, every format."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from scipy import stats
from tests.study.planned import TEXT, made_up, noisy, planned, run, run_all

from winnow import load_study
from winnow.study import api
from winnow.study.compare import Comparison, compare
from winnow.study.plan import save_plan
from winnow.study.table_text import FORMATS
from winnow.study.tables import rows, table, verdict_lines


def found(folder: Path) -> Comparison:
    study, store = made_up(folder, TEXT.replace("arms.dead", "arms.a_b").replace("dead better", "a_b better"))
    run_all(study, store, 5)
    run(study, store, "good", 5, status="diverged", final={})
    run(study, store, "good", 6, status="failed", error="no", final={})
    return compare(study, store)


def test_the_numbers_are_those_of_plain_sums(tmp_path: Path):
    control, good, _ = rows(found(tmp_path))
    assert (control.arm, good.arm) == ("control", "good")
    a, b = [[noisy(arm, seed) for seed in range(5)] for arm in ("good", "control")]
    assert good.mean == pytest.approx(statistics.mean(a), rel=1e-12)
    assert good.sd == pytest.approx(statistics.stdev(a), rel=1e-9)
    assert (good.n, good.pairs, good.diverged, good.failed) == (5, 5, 1, 1)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert good.difference == pytest.approx(statistics.mean(a) - statistics.mean(b), rel=1e-9)
    assert (good.low, good.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert (control.difference, control.pairs) == (None, 0)
    assert (good.parameters, good.tokens, good.seconds) == (1000, 640, 2.0)
    assert (good.flops_per_token, good.kv_bytes_per_token, good.flops) == (123_456, 512, 640 * 123_456)


def test_an_unpaired_study_has_welch_s_interval(tmp_path: Path):
    study, store = made_up(tmp_path, TEXT.replace("looks = [3, 5, 8]", "looks = [3, 5, 8]\nrule.paired = false"))
    run_all(study, store, 3)
    run(study, store, "good", 3)
    good = next(row for row in rows(compare(study, store)) if row.arm == "good")
    a, b = [noisy("good", seed) for seed in range(4)], [noisy("control", seed) for seed in range(3)]
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert good.difference == pytest.approx(statistics.mean(a) - statistics.mean(b), rel=1e-9)
    assert (good.low, good.high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert good.pairs == 3


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_records_give_the_same_bytes(tmp_path: Path, form: str):
    comparison = found(tmp_path)
    assert table(comparison, form) == table(compare(comparison.study, api.RunStore(tmp_path / "winnow-store")), form)  # type: ignore[arg-type]
    assert table(comparison, form).endswith("\n")  # type: ignore[arg-type]


def test_markdown_has_aligned_columns_and_no_empty_ones(tmp_path: Path):
    comparison = found(tmp_path)
    lines = table(comparison).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "1 diverged, 1 failed" in lines[3]
    assert "| minus control" in lines[0].replace("  ", " ")
    assert lines[1].startswith("| ----")
    heads, good = ([cell.strip() for cell in lines[row].strip("|").split("|")] for row in (0, 3))
    assert heads[-5:] == ["parameters", "FLOPs/token", "KV bytes/token", "tokens", "seconds"]
    assert good[-5:] == ["1000", "0.12 M", "512", "640", "2.0"], "compact where it is read, exact in JSON and CSV"
    study, store = made_up(tmp_path / "empty")
    empty = table(compare(study, store))
    assert empty.splitlines()[0].split() == ["|", "arm", "|", "n", "|"]


def test_costs_are_told_before_anything_has_run(tmp_path: Path):
    study, store = made_up(tmp_path)
    facts = {"parameters": 98_304, "flops_per_token": 1_200_000_000, "kv_bytes_per_token": 4096, "tokens": 1000}
    plan = planned(study)
    arms = {name: arm.replace({"facts": facts}) for name, arm in plan.arms.items()}
    save_plan(store, study, plan.replace({"arms": arms}))
    text = table(compare(study, store))
    for cell in ("| 98.3 k |", "| 1.20 G |", "| 4096 |", "| 1000 |"):
        assert cell in " ".join(text.split()), text


def test_csv_and_json_hold_full_precision(tmp_path: Path):
    comparison = found(tmp_path)
    expected = [row.dump() for row in rows(comparison)]
    read = list(csv.DictReader(io.StringIO(table(comparison, "csv"))))
    assert [float(row["mean"]) for row in read] == [row["mean"] for row in expected]
    assert {row["flops_per_token"] for row in read} == {"123456"}
    assert read[0]["difference"] == ""
    data = json.loads(table(comparison, "json"))
    assert data["rows"] == expected
    assert data["verdicts"][0]["status"] == "supported"


def test_latex_escapes_and_has_real_minus_signs(tmp_path: Path):
    text = table(found(tmp_path), "latex")
    assert r"a\_b" in text
    assert "$-$0." in text
    assert r"95\%, one look" in text
    assert text.count(r"\\") == 4


def test_verdict_lines(tmp_path: Path):
    comparison = found(tmp_path)
    text = verdict_lines(comparison.verdicts)
    assert "supported" in text.splitlines()[2]
    assert text.splitlines()[-1].startswith("- **h2** ")
    assert verdict_lines(()) == ""


def test_the_api_reads_the_same(tmp_path: Path):
    comparison = found(tmp_path)
    file = tmp_path / "made-up.toml"
    file.write_text(TEXT.replace("arms.dead", "arms.a_b").replace("dead better", "a_b better"))
    opened = load_study(file)
    assert opened.store.root == (tmp_path / "winnow-store").resolve()
    assert opened.verdicts() == comparison.verdicts
    results = opened.compare()
    assert results.verdict("h1").status == "supported"
    assert len(results.records()) == len(results.rows()) == 17
    assert {row["arm"] for row in opened.rows()} == {"control", "good", "a_b"}
    assert results.table() == table(comparison)
    assert results.summary()[0]["arm"] == "control"
    assert results.curves()["good"][0] == []
    assert results.findings() == comparison.findings

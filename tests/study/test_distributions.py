"""Student t, F, noncentral t and Fisher's test against scipy.stats; what is shipped against what is computed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats

from winnow.study import distributions
from winnow.study.distributions import f_quantile, fisher_exact, student_cdf, student_power, student_upper


@pytest.mark.parametrize("df", [1, 2, 3, 4, 16, 61, 300])
def test_student(df: int) -> None:
    for t in (-30.0, -2.5, -0.1, 0.0, 0.7, 3.0, 11.8):
        assert student_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), rel=1e-10)
    for tail in (0.4, 0.05, 0.025, 1e-4, 1e-9):
        assert student_upper(tail, df) == pytest.approx(stats.t.isf(tail, df), rel=1e-9)


def test_f_quantile() -> None:
    for df1, df2 in [(1, 1), (2, 49), (4, 2), (2, 4), (7, 49), (15, 300)]:
        for p in (0.05, 0.8, 0.99):
            assert f_quantile(p, df1, df2) == pytest.approx(stats.f.ppf(p, df1, df2), rel=1e-9)


def test_fisher_exact() -> None:
    for a, of_a, b, of_b in [(0, 3, 0, 3), (1, 3, 0, 3), (6, 8, 0, 8), (2, 5, 4, 9), (8, 8, 0, 8)]:
        expected = stats.fisher_exact([[a, of_a - a], [b, of_b - b]])[1]
        assert fisher_exact(a, of_a, b, of_b) == pytest.approx(expected, rel=1e-9)


def test_student_power() -> None:
    for df in (2, 4, 14, 60):
        for shift in (0.0, 1.0, 3.0, 8.0):
            for critical in (1.96, 4.3, 12.7):
                expected = stats.nct.sf(critical, df, shift) if shift else stats.t.sf(critical, df)
                assert student_power(shift, critical, df) == pytest.approx(expected, abs=1e-6)


def test_what_is_shipped_is_what_scipy_says() -> None:
    computed = distributions.make_table()
    shipped = distributions._shipped()
    assert shipped.keys() == computed.keys()
    assert all(shipped[name] == pytest.approx(value, rel=1e-12) for name, value in computed.items())


ASK = """
import sys
from winnow.study.distributions import f_quantile, student_cdf, student_power, student_upper
print(f_quantile(0.8, 3, 7), student_cdf(1.5, 7.25), student_power(2.0, 2.5, 9), student_upper(0.01, 4))
print("scipy" in sys.modules)
"""


def test_values_are_computed_once_and_remembered(tmp_path: Path) -> None:
    def ask() -> str:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    first = ask()
    assert first.endswith("True")
    assert ask() == first.replace("True", "False")
    (tmp_path / "winnow" / "numbers.json").write_text("{ not json")
    assert ask() == first, "a damaged memory is made anew"
    assert ask() == first.replace("True", "False")


def test_usual_quantiles_load_no_scipy() -> None:
    program = """
import sys
from winnow.study.distributions import f_quantile, student_upper
student_upper(0.025, 7), f_quantile(0.80, 2, 10), f_quantile(0.80, 7, 35.0)
sys.exit("scipy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""Student t, F, noncentral t and Fisher's test against scipy.stats; what is shipped against what is computed."""

from __future__ import annotations

import subprocess
import sys

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


def test_usual_quantiles_load_no_scipy() -> None:
    program = """
import sys
from winnow.study.distributions import f_quantile, student_upper
student_upper(0.025, 7), f_quantile(0.80, 2, 10), f_quantile(0.80, 7, 35.0)
sys.exit("scipy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

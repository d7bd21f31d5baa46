"""Own t, F, Fisher and noncentral t against scipy."""

from __future__ import annotations

import pytest
from scipy import special, stats

from winnow.study.distributions import f_quantile, fisher_exact, student_cdf, student_power, student_upper


@pytest.mark.parametrize("df", [1, 2, 3, 4, 16, 61, 300])
def test_student(df: int) -> None:
    for t in (-30.0, -2.5, -0.1, 0.0, 0.7, 3.0, 11.8):
        assert student_cdf(t, df) == pytest.approx(float(special.stdtr(df, t)), rel=1e-11)
    for tail in (0.4, 0.05, 0.025, 1e-4, 1e-9):
        assert student_upper(tail, df) == pytest.approx(stats.t.isf(tail, df), rel=1e-9)


def test_f_quantile() -> None:
    for df1, df2 in [(1, 1), (2, 49), (4, 2), (7, 49), (15, 300)]:
        for p in (0.05, 0.8, 0.99):
            assert f_quantile(p, df1, df2) == pytest.approx(stats.f.ppf(p, df1, df2), rel=1e-9)


def test_fisher_exact() -> None:
    for a, of_a, b, of_b in [(0, 3, 0, 3), (1, 3, 0, 3), (6, 8, 0, 8), (2, 5, 4, 9), (8, 8, 0, 8)]:
        expected = stats.fisher_exact([[a, of_a - a], [b, of_b - b]])[1]
        assert fisher_exact(a, of_a, b, of_b) == pytest.approx(expected, rel=1e-9)


def test_student_power() -> None:
    for df in (1, 2, 4, 14, 60):
        for shift in (0.0, 1.0, 3.0, 8.0):
            for critical in (1.96, 4.3, 12.7):
                expected = 1 - float(special.nctdtr(df, shift, critical))
                assert student_power(shift, critical, df) == pytest.approx(expected, abs=3e-5)

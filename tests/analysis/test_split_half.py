"""The A/A check: equal halves are called different about as often as declared, by rules that are calibrated."""

from __future__ import annotations

import random

import pytest

from winnow.analysis.split_half import split_half
from winnow.errors import InputError


def test_rates_on_gaussian_noise():
    draws = random.Random(1)
    found = split_half([draws.gauss(3.0, 0.01) for _ in range(200)], n=3, splits=400, seed=2)
    assert found.calibrated
    assert found.rates["winnow"] <= 0.085, "0.05 and three binomial deviations"
    assert found.rates["the best seed wins"] == 1.0
    assert found.rates["1 sd bars do not overlap"] == pytest.approx(0.04, abs=0.05)
    assert found.rates["Welch t test"] <= 0.075


def test_few_runs_are_refused_and_few_splits_are_counted():
    with pytest.raises(InputError, match="needs 4"):
        split_half([1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="do not make two halves of 3"):
        split_half([1.0, 2.0, 3.0, 4.0], n=3)
    found = split_half([1.0, 2.0, 3.0, 4.5], splits=20)
    assert (found.n, found.distinct) == (2, 3)
    assert found.error > 0.1, "three splits tell little, however often they are drawn"

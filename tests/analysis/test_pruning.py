"""Searches for the smallest memory at a loss; summaries; the picture of a curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from winnow.analysis.pruning import Kept, Pruner, ratio_summary, summary
from winnow.analysis.pruning_plot import PruningCurve, part, pruning_png
from winnow.attention.prune import VotesConfig

LAYERS: tuple[str, ...] = ("first", "second", "third")
VOTES = VotesConfig()


class Sketch(Pruner):
    """A run whose loss is a formula: the first layer needs 20 keys, the second 3, the third none."""

    def __init__(self) -> None:
        self.context, self.layers, self.unpruned, self.asked = 64, list(LAYERS), 1.0, 0

    def measure(self, policy: Any, budgets: int | Mapping[str, int]) -> Kept:
        self.asked += 1
        given = budgets if isinstance(budgets, Mapping) else dict.fromkeys(LAYERS, budgets)
        missing = max(0, 20 - given["first"]) * 0.01 + max(0, 3 - given["second"]) * 0.1
        return Kept(policy.kind, dict(given), 1.0 + missing, sum(given.values()) / 192)


def test_the_smallest_budget_of_all_layers() -> None:
    for target, budget in ((1.0, 20), (1.05, 15), (1.175, 3), (9.0, 1)):
        run = Sketch()
        found = run.uniform(VOTES, target)
        assert found is not None
        assert found.budget == budget
        assert run.asked <= 7
    assert Sketch().uniform(VOTES, 0.99) is None


@pytest.mark.parametrize("step", [1, 8, 50])
def test_layers_are_lowered_where_it_hurts_least(step: int) -> None:
    heard: list[Kept] = []
    found = Sketch().by_layer(VOTES, 1.0, step, heard.append)
    assert found is not None
    assert found.budgets == {"first": 20, "second": 3, "third": 1}
    assert heard[-1] == found
    assert all(kept.loss <= 1.0 for kept in heard)
    found = Sketch().by_layer(VOTES, 1.035, step)
    assert found is not None
    assert found.budgets == {"first": 17, "second": 3, "third": 1}
    assert Sketch().by_layer(VOTES, 0.99, step) is None


def test_summaries() -> None:
    one = summary([2.0])
    assert (one.mean, one.sd, one.low, one.high) == (2.0, 0.0, 2.0, 2.0)
    three = summary([1.0, 2.0, 3.0])
    assert (three.mean, three.sd) == (2.0, 1.0)
    assert three.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # Student's t, 2 degrees of freedom
    ratio = ratio_summary([0.1, 0.4])
    assert ratio.mean == pytest.approx(0.2)
    assert ratio.low * ratio.high == pytest.approx(0.04)
    assert ratio.low > 0


def test_parts_as_people_write_them() -> None:
    assert [part(keep) for keep in (1.0, 0.5, 1 / 3, 0.125, 0.3, 0.75)] == ["1", "1/2", "1/3", "1/8", "0.3", "0.75"]


def test_equal_numbers_draw_equal_pictures() -> None:
    curves = [
        PruningCurve("plain", "votes", [{1.0: 2.0, 0.5: 2.01, 0.25: 2.1}, {1.0: 2.1, 0.5: 2.1, 0.25: 2.3}]),
        PruningCurve("penalty", "h2o", [{1.0: 2.0, 0.5: 2.2, 0.25: math.inf}]),
    ]
    png = pruning_png(curves, 2.05, "Pruning", "band")
    assert png.startswith(b"\x89PNG")
    assert png == pruning_png(curves, 2.05, "Pruning", "band")
    assert png != pruning_png(curves, None, "Pruning", "band")
    assert pruning_png([PruningCurve("plain", "votes", [{1.0: 2.0}])], None, "One point", "").startswith(b"\x89PNG")

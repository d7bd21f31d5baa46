"""Rankings: which differences are shown, after Holm over all pairs, and when there is no ranking at all."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from tests.study.judged import arms as made
from tests.study.judged import observed, small_tables  # noqa: F401 - a fixture
from tests.study.planned import made_up, run, run_all

from winnow.records.run import Finding
from winnow.study.compare import compare
from winnow.study.ranking import differing_pairs, ranking, shown_ranking
from winnow.study.sequential import Sequencer
from winnow.study.tables import table

GRID = """\
id = "made-up"
seeds = [0, 1, 2, 3, 4, 5, 6, 7]
looks = [8]
control = "one"
grid.model.name = ["one", "two", "three", "four"]
"""
EFFECTS = {"two": 0.0, "three": -0.4, "four": -0.4}


def sequencer(values: dict[str, list[float]], looks: tuple[int, ...] = (8,), *, paired: bool = True) -> Sequencer:
    beside = [(arm, "control") for arm in values if arm != "control"]
    return Sequencer(observed(values), looks, paired=paired, pairs=beside)


def graded(folder: Path, text: str = GRID, **fields: object):
    study, store = made_up(folder, text)
    for arm in study.arms:
        for seed in study.seeds:
            noise = ((seed * 7 + len(arm) * 3) % 5 - 2) * 0.01
            run(study, store, arm, seed, 2.0 + EFFECTS.get(arm, 0.0) + 0.05 * seed + noise, **fields)
    return study, store


@pytest.mark.parametrize("paired", [True, False])
def test_false_differences_are_as_rare_as_the_level_says(paired: bool):
    """Six arms that are the same: without a correction a third of the studies would show a difference."""
    false = 0
    for seed in range(100):
        values = made(seed, w=0.0)
        values["v"] = made(seed + 10_000, w=0.0)["w"]
        false += bool(differing_pairs(sequencer(values, paired=paired), list(values), 0.05))
    assert false <= 100 * 0.05 + 4 * (100 * 0.05 * 0.95) ** 0.5


def test_looks_are_paid_for():
    """Looking five times at the plain multiplier would err too often."""
    looks = (3, 4, 5, 6, 8)
    false = sum(bool(differing_pairs(sequencer(made(seed), looks), list(made(seed)), 0.05)) for seed in range(60))
    assert false <= 60 * 0.05 + 4 * (60 * 0.05 * 0.95) ** 0.5


def test_holm_goes_on_after_what_was_shown():
    """The middle gap is between alpha / 3 and alpha / 2: it is shown because a wider one was."""
    base = [0.0, 0.3, -0.2, 0.1, -0.3, 0.2, -0.1, 0.0]
    noise = [0.9, -1.1, 0.4, -0.2, 1.0, -0.8, 0.3, -0.5]
    for shift in (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1):
        near = [x + y - shift for x, y in zip(base, noise, strict=True)]
        alone = {"control": base, "near": near, "far": [x + 0.01 * y for x, y in zip(base, noise[::-1], strict=True)]}
        with_far = {**alone, "far": [x - 50 + 0.01 * y for x, y in zip(base, noise[::-1], strict=True)]}
        counts = [
            ("near", "control") in differing_pairs(sequencer(each), list(each), 0.05) for each in (alone, with_far)
        ]
        assert counts[1] >= counts[0]
        if counts == [False, True]:
            return
    pytest.fail("no shift told the steps apart")


def test_letters_of_a_study(tmp_path: Path):
    study, store = graded(tmp_path)
    found = ranking(compare(study, store))
    assert (found.why, found.pairs, found.looks) == ("", 6, (8,))
    assert {frozenset(pair) for pair in found.different} == {
        frozenset(pair) for pair in combinations(study.arms, 2) if EFFECTS.get(pair[0], 0) != EFFECTS.get(pair[1], 0)
    }
    assert all(EFFECTS.get(one, 0) < EFFECTS.get(other, 0) for one, other in found.different), "the better one first"
    assert found.letters == {"three": "a", "four": "a", "one": "b", "two": "b"}
    assert "4 of 6 pairs do differ (Holm at 0.05, paired by seed, read at 8 seeds)" in found.text
    assert "| letter |" in table(compare(study, store), "markdown", found)


def test_higher_may_be_better(tmp_path: Path):
    study, store = graded(tmp_path, GRID + 'endpoint = { metric = "val/ce", better = "higher" }\n')
    assert ranking(compare(study, store)).letters == {"one": "a", "two": "a", "three": "b", "four": "b"}


def test_a_part_of_a_grid_draws_no_ranking(tmp_path: Path):
    study, store = made_up(tmp_path, GRID)
    run_all(study, store, 5)
    found = ranking(compare(study, store))
    assert (found.letters, found.text) == ({}, "No ranking: 20 of 32 runs are recorded.")
    assert "letter" not in table(compare(study, store), "markdown", found)


def test_what_was_not_written_has_no_place(tmp_path: Path):
    study, store = made_up(tmp_path, GRID)
    spoilt = Finding(rule="dead-parameter", severity="invalid", message="it never moved")
    run_all(study, store, 8)
    for seed in study.seeds:
        run(study, store, "four", seed, findings=[spoilt])
        run(study, store, "three", seed, status="diverged", final={})
    found = ranking(compare(study, store))
    assert found.why == "2 arms can be compared, which is no order"
    assert found.left_out == {
        "three": "every run diverged or measured nothing",
        "four": "invalid, dead-parameter",
    }


def test_arms_that_diverge_differently_are_not_told_apart(tmp_path: Path):
    study, store = graded(tmp_path)
    run(study, store, "four", 3, status="diverged", final={})
    found = ranking(compare(study, store))
    assert not any("four" in pair for pair in found.different)
    assert ("three", "one") in found.different


def test_only_grids_and_claims_of_an_order_show_letters_unasked(tmp_path: Path):
    plain = GRID.replace('grid.model.name = ["one", "two", "three", "four"]\n', "").replace('control = "one"\n', "")
    plain += "".join(f"arms.{name} = {{ model.name = '{name}' }}\n" for name in ("control", "x", "y"))
    study, store = made_up(tmp_path / "plain", plain)
    assert shown_ranking(compare(study, store)) is None
    study, store = made_up(tmp_path / "rank", f'{plain}claims.h = "rank x, y, control on val/ce"\n')
    assert shown_ranking(compare(study, store)) is not None

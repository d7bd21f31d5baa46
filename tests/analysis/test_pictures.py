"""Pictures of a study that is on disk: drawn from the records, taken as they are when nothing has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.study.planned import TEXT, made_up, run

from winnow.analysis import pictures
from winnow.analysis.pictures import differences, loss_curves, study_pictures
from winnow.study.compare import compare


def test_unchanged_pictures_are_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, store = made_up(tmp_path)
    assert study_pictures(compare(study, store), store) == {}
    for seed in range(3):
        run(study, store, "control", seed, 2.0 + 0.01 * seed)
        run(study, store, "good", seed, 1.9 + 0.011 * seed)
    comparison = compare(study, store)
    drawn = study_pictures(comparison, store)
    assert "made-up.differences.png" in drawn

    def refuse(*_: object, **__: object) -> bytes:
        raise AssertionError("drawn again")

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "differences_png", refuse)
        patch.setattr(pictures, "curves_png", refuse)
        assert study_pictures(comparison, store, drawn) == drawn
    run(study, store, "good", 3, 1.7)
    run(study, store, "control", 3, 2.0)
    assert study_pictures(compare(study, store), store, drawn) != drawn


def test_differences_are_taken_seed_by_seed(tmp_path: Path):
    study, store = made_up(tmp_path)
    for seed, (a, b) in enumerate([(2.0, 1.9), (2.5, 2.7)]):
        run(study, store, "control", seed, a)
        run(study, store, "good", seed, b)
    run(study, store, "good", 2, 1.0)
    observed = compare(study, store).observations["val/ce"]
    assert differences(observed, "good", "control") == pytest.approx({0: -0.1, 1: 0.2})


TOKENS = {"base.train = { steps = 10 }": "base.train = { steps = 10, tokens_per_update = 64 }"}
"""Of a study's text: its runs are ours."""


@pytest.mark.parametrize(
    ("control", "good", "dead", "places", "label"),
    [
        # (first step, tokens before) of each arm. Nothing goes on: as ever.
        ((0, None), (0, None), (0, None), ((0, 640), (0, 640), (0, 640)), "training tokens"),
        # From nothing; resumed at step 5; restarted from it, where the control ends at the same number of tokens.
        (
            (0, None),
            (5, 320),
            (0, 320),
            ((0, 640), (320, 640), (320, 960)),
            "training tokens, the parent's included",
        ),
        # An arm that shares no number of tokens with the control: each from its own start.
        (
            (0, None),
            (5, 320),
            (0, 6400),
            ((0, 640), (0, 320), (0, 640)),
            "training tokens since the start of the run",
        ),
    ],
)
def test_a_run_that_goes_on_is_drawn_where_its_parent_stood(
    tmp_path: Path,
    control: tuple[int, int | None],
    good: tuple[int, int | None],
    dead: tuple[int, int | None],
    places: tuple[tuple[float, float], ...],
    label: str,
):
    (old, new), *_ = TOKENS.items()
    study, store = made_up(tmp_path, TEXT.replace(old, new))
    for arm, (first, before) in {"control": control, "good": good, "dead": dead}.items():
        facts = {"tokens": (10 - first) * 64, **({} if before is None else {"tokens_before": before})}
        rows = [{"step": step, "val/ce": 2.0} for step in (*range(first, 10, 5), 10)]
        run(study, store, arm, 0, 2.0, facts=facts, metrics=rows, steps_done=10)
    curves, said = loss_curves(compare(study, store), store)
    drawn = {curve.arm: tuple(curve.seeds[0]) for curve in curves}
    assert said == label
    assert [(drawn[arm][0], drawn[arm][-1]) for arm in ("control", "good", "dead")] == list(places)

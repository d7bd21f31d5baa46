"""Pictures of a study that is on disk: drawn from the records, taken as they are when nothing has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.study.planned import made_up, run

from winnow.analysis import pictures
from winnow.analysis.pictures import differences, study_pictures
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

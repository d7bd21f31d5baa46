"""Pictures: equal numbers give equal bytes, whatever the user's settings; odd numbers never break a picture."""

from __future__ import annotations

import itertools
import math
import statistics
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.analysis.plots import (
    Band,
    Contrast,
    Curve,
    band,
    curves_png,
    differences_png,
    drawn_range,
    paired,
    spread,
    tokens_text,
)


def curve(arm: str, shift: float, seeds: int = 3) -> Curve:
    values = {s: {float(t): 5.0 / (1 + t) + shift + 0.01 * s for t in range(0, 50, 10)} for s in range(seeds)}
    return Curve(arm, values)


CURVES = [curve("control", 0.0), curve("selective", -0.1), curve("other", 0.2, seeds=1)]
CONTRASTS = [
    Contrast("h1", "selective - control", {0: -0.1, 1: -0.12}, -0.11, -0.2, -0.02, 0.05, 0.01, "supported"),
    Contrast("h2", "other - control", {0: 0.0}, None, None, None, status="invalid"),
]


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_bytes_are_equal_whatever_the_users_settings():
    import matplotlib

    first = curves_png(CURVES, "control", "val/ce", "nats per token", "A question?")
    other = differences_png(CONTRASTS, "val/ce", "nats per token", "A question?")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 40, "lines.linewidth": 9}):
        assert curves_png(CURVES, "control", "val/ce", "nats per token", "A question?") == first
        assert differences_png(CONTRASTS, "val/ce", "nats per token", "A question?") == other
    assert b"Software" not in first, "a version of matplotlib would change the bytes"
    assert size(first)[0] == size(other)[0] == 1440
    assert curves_png(CURVES[:2], "control", "val/ce", "nats per token", "A question?") != first


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [Curve("control", {})],
        [Curve("control", {0: {0.0: math.nan}})],
        [Curve("control", {0: {0.0: 1.0}}), Curve("b", {0: {0.0: 1.0, 10.0: math.inf}})],
        [Curve("a $x_1$ {", {0: {0.0: 1.0, 10.0: 1.0}}, note="1 diverged")],
        [curve(f"arm-with-a-very-long-name-{i}", 0.0) for i in range(20)],
    ],
)
def test_odd_studies_are_drawn(curves: list[Curve]):
    assert size(curves_png(curves, "control", "val/ce", "", "$ 'odd' _^ title " + "x" * 300))[0] == 1440


def test_odd_contrasts_are_drawn():
    assert size(differences_png([], "m", "", "t"))[0] == 1440
    odd = [
        Contrast("a" * 80, "b" * 90, {0: math.nan}, 0.0, 0.0, 0.0),
        Contrast("c", "d", {}, 1e-12, -1e-12, 2e-12, smallest=1e-13),
    ]
    assert size(differences_png(odd, "m", "", "t"))[0] == 1440


def test_band_is_the_mean_and_sample_sd_over_finite_seeds():
    found = band([{0.0: 1.0, 10.0: 2.0}, {0.0: 4.0, 10.0: math.nan}, {0.0: 2.5}])
    assert found[0.0] == pytest.approx((2.5, statistics.stdev([1.0, 4.0, 2.5])))
    assert found[10.0] == (2.0, 0.0)
    assert list(found) == [0.0, 10.0]


@pytest.mark.parametrize(
    ("begins", "ends", "expected"),
    [
        ({"control": 0, "a": 800}, {"control": 1600, "a": 1600}, (0, 1600)),
        # What an arm did before the control began has nothing beside it.
        ({"control": 800, "a": 0}, {"control": 1600, "a": 1600}, (800, 1600)),
        # But no arm is left out.
        ({"control": 800, "a": 100, "b": 0}, {"control": 1600, "a": 700, "b": 1600}, (0, 1600)),
        ({"a": 800}, {"a": 1600}, (0, 1600)),
        ({"control": 5}, {"control": 5}, (0, 5)),
        ({}, {}, (0, 1)),
    ],
)
def test_panels_begin_with_the_control(begins: dict[str, float], ends: dict[str, float], expected: tuple[float, float]):
    bands: dict[str, Band] = {arm: {first: (1.0, 0.0), ends[arm]: (1.0, 0.0)} for arm, first in begins.items()}
    assert drawn_range(bands | {"without": {}}, "control") == expected


def test_many_arms_make_a_higher_picture():
    few, many = ([curve(f"arm-{i}", 0.1 * i) for i in range(n)] for n in (15, 30))
    heights = [size(curves_png(curves, "arm-0", "val/ce", "", "?"))[1] for curves in (few, many)]
    assert heights == [688, 1142]


def test_paired_differences_use_shared_seeds_and_tokens_only():
    one, base = Curve("a", {0: {0.0: 3.0, 5.0: 1.0}, 7: {0.0: 9.0}}), Curve("control", {0: {0.0: 1.0}, 1: {0.0: 2.0}})
    assert paired(one, base) == [{0.0: 2.0}]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_labels_never_overlap_and_stay_in_order(values: list[float]):
    values = sorted(values, reverse=True)
    places = spread(values, 0.08, 0.0, 1.0)
    assert all(above - below >= 0.08 - 1e-9 for above, below in itertools.pairwise(places))
    if 0.08 * len(values) <= 1.0:
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)


@pytest.mark.parametrize(
    ("tokens", "text"), [(0, "0"), (409600, "410 k"), (1.2e9, "1.2 B"), (999, "999"), (2e6, "2 M")]
)
def test_tokens_are_said_in_words(tokens: float, text: str):
    assert tokens_text(tokens) == text

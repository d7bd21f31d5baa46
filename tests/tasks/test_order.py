"""The order of training windows, against a plain count of what an epoch must hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.tasks.order import WindowOrder

Place = tuple[int, int]


def places(order: WindowOrder, seed: int, first: int, n: int) -> list[Place]:
    which, start = order.locate(seed, np.arange(first, first + n, dtype=np.int64))
    return list(zip(which.tolist(), start.tolist(), strict=True))


streams = st.lists(st.integers(1, 90), min_size=1, max_size=4)


@given(lengths=streams, context=st.integers(1, 20), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_an_epoch_visits_every_window_once(lengths: list[int], context: int, seed: int, epoch: int) -> None:
    order = WindowOrder(lengths, context, "digest")
    n = order.n_windows
    # A stream that holds a window is used; from two contexts on, at most one window and the phase are given up.
    fitting = [(length - 1) // context for length in lengths]
    assert sum(fitting) >= n >= sum(max(k - 1, int(k > 0)) for k in fitting)
    if n == 0:
        return
    found = places(order, seed, epoch * n, n)
    assert len(set(found)) == n
    for index, length in enumerate(lengths):
        starts = sorted(start for which, start in found if which == index)
        assert (len(starts) > 0) == (length > context)
        # Consecutive, not overlapping in what they predict, and inside their stream.
        assert all(b - a == context for a, b in itertools.pairwise(starts))
        assert all(start >= 0 and start + context + 1 <= length for start in starts)


@given(lengths=streams, context=st.integers(1, 20), seed=st.integers(0, 2**40), data=st.data())
def test_a_position_depends_on_nothing_that_was_asked_before(
    lengths: list[int], context: int, seed: int, data: st.DataObject
) -> None:
    order = WindowOrder(lengths, context, "digest")
    if order.n_windows == 0:
        return
    asked = data.draw(st.lists(st.integers(0, 5 * order.n_windows), min_size=1, max_size=20))
    together = order.locate(seed, np.array(asked, dtype=np.int64))
    order.locate(seed + 1, np.array([0], dtype=np.int64))
    for i in data.draw(st.permutations(range(len(asked)))):
        alone = WindowOrder(lengths, context, "digest").locate(seed, np.array([asked[i]], dtype=np.int64))
        again = order.locate(seed, np.array([asked[i]], dtype=np.int64))
        assert (together[0][i], together[1][i]) == (alone[0][0], alone[1][0]) == (again[0][0], again[1][0])


def test_seeds_epochs_and_data_each_change_the_order() -> None:
    order = WindowOrder([1000], 10, "digest")
    n = order.n_windows
    orders = [
        places(order, 0, 0, n),
        places(order, 1, 0, n),
        places(order, 0, n, n),
        places(WindowOrder([1000], 10, "other"), 0, 0, n),
    ]
    assert len({tuple(found) for found in orders}) == 4


def test_phases_reach_every_token() -> None:
    order = WindowOrder([43], 10, "digest")
    phases = {min(start for _, start in places(order, 0, e * order.n_windows, order.n_windows)) for e in range(300)}
    last = {max(start for _, start in places(order, 0, e * order.n_windows, order.n_windows)) for e in range(300)}
    assert min(phases) == 0
    assert max(last) + 10 == 42


def test_windows_are_shuffled_evenly() -> None:
    """Each of 8 windows comes first in about one epoch of 8 (chi-squared, 7 degrees of freedom, p about 1e-6)."""
    order = WindowOrder([8 * 4 + 4], 4, "digest")
    assert order.n_windows == 8
    counts = np.zeros(8)
    for epoch in range(800):
        found = places(order, 3, epoch * 8, 8)
        counts[sorted(found).index(found[0])] += 1
    assert ((counts - 100) ** 2 / 100).sum() < 40


def test_the_order_is_what_it_was() -> None:
    """Recorded on 22 November 2026: a change here changes what every recorded run was trained on."""
    assert places(WindowOrder([100, 50], 8, "digest"), 7, 0, 6) == [
        (0, 66),
        (1, 12),
        (0, 18),
        (0, 58),
        (0, 10),
        (1, 20),
    ]


@pytest.mark.parametrize(("length", "windows"), [(10, 0), (11, 1), (20, 1), (21, 1), (29, 1), (30, 2), (31, 2)])
def test_window_counts(length: int, windows: int) -> None:
    assert WindowOrder([length], 10, "digest").n_windows == windows

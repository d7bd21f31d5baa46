"""Verdicts: what must not change one, and how it must change when the question does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.study.judged import LEDGER, arms, judge, observed, small_tables

from winnow.study.verdict import DecisionRule, Verdict

__all__ = ["small_tables"]  # a fixture of the whole module

TEXTS = st.sampled_from(
    ["a better-than b on m smallest 1", "a worse-than b on m by 0.5", "a equal-to b on m within 1", "rank a, b, c on m"]
)
DATA = st.tuples(st.integers(0, 10**6), st.sampled_from([3, 5, 8]), st.floats(-3, 3), st.booleans())


def sample(data: tuple[int, int, float, bool]) -> tuple[dict[str, list[float]], DecisionRule]:
    seed, n, effect, paired = data
    return arms(seed=seed, n=n, a=effect, b=0.0, c=1.0, rho=0.5), DecisionRule(paired=paired)


def same(one: Verdict, other: Verdict, scale: float = 1.0) -> None:
    assert (one.status, one.look, one.n, one.more_seeds) == (other.status, other.look, other.n, other.more_seeds)
    for mine, theirs in ((one.effect, other.effect), (one.low, other.low), (one.high, other.high)):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert theirs == pytest.approx(scale * mine, rel=1e-6, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(DATA, TEXTS, st.permutations(range(3)))
def test_order_of_seeds_within_a_look_does_not_matter(data, text, order) -> None:  # type: ignore[no-untyped-def]
    values, rule = sample(data)
    swapped = {arm: [row[place] for place in order] + row[3:] for arm, row in values.items()}
    same(judge(text, observed(values), rule, prior=LEDGER), judge(text, observed(swapped), rule, prior=LEDGER))


@settings(max_examples=40, deadline=None)
@given(DATA, TEXTS, st.floats(-5, 5), st.sampled_from([0.25, 4.0, 1024.0]))
def test_affine_maps_of_the_metric_map_the_verdict(data, text, shift, scale) -> None:  # type: ignore[no-untyped-def]
    values, rule = sample(data)
    words = [f"{float(word) * scale!r}" if word in ("1", "0.5") else word for word in text.split()]
    mapped = {arm: [scale * value + shift for value in row] for arm, row in values.items()}
    one = judge(text, observed(values), rule, prior=LEDGER)
    other = judge(" ".join(words), observed(mapped), rule, prior=LEDGER.replace({"variance": scale**2}))
    same(one, other, scale)


@settings(max_examples=40, deadline=None)
@given(DATA, TEXTS)
def test_higher_is_better_is_the_mirror_image(data, text) -> None:  # type: ignore[no-untyped-def]
    values, rule = sample(data)
    mirrored = {arm: [-value for value in row] for arm, row in values.items()}
    one = judge(text, observed(values), rule, prior=LEDGER)
    other = judge(text, observed(mirrored, "higher"), rule, prior=LEDGER)
    assert (one.status, one.look, one.more_seeds) == (other.status, other.look, other.more_seeds)
    if one.effect is not None and one.low is not None and one.high is not None:
        assert (other.effect, other.low, other.high) == pytest.approx((-one.effect, -one.high, -one.low))


@settings(max_examples=40, deadline=None)
@given(DATA, st.sampled_from(["smallest 1", "by 0.5", "by 0.5 smallest 1", ""]))
def test_swapping_the_arms_swaps_better_and_worse(data, numbers) -> None:  # type: ignore[no-untyped-def]
    values, rule = sample(data)
    one = judge(f"a better-than b on m {numbers}", observed(values), rule, prior=LEDGER)
    other = judge(f"b worse-than a on m {numbers}", observed(values), rule, prior=LEDGER)
    assert (one.status, one.look, one.smaller_than_smallest) == (other.status, other.look, other.smaller_than_smallest)
    if one.low is not None and one.high is not None:
        assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


@settings(max_examples=40, deadline=None)
@given(DATA, st.floats(0.1, 3), st.floats(1.0, 3))
def test_a_wider_equality_is_never_less_supported(data, within, factor) -> None:  # type: ignore[no-untyped-def]
    values, rule = sample((*data[:2], data[2] / 3, data[3]))
    narrow = judge(f"a equal-to b on m within {within!r}", observed(values), rule, prior=LEDGER)
    wide = judge(f"a equal-to b on m within {within * factor!r}", observed(values), rule, prior=LEDGER)
    if narrow.status == "supported":
        assert wide.status == "supported"
        assert wide.look <= narrow.look

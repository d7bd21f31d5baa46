"""Compact letters: two arms share one if and only if they are not shown to differ; brute force as the oracle."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.study.letters import compact_letters


def cliques(arms: list[str], different: set[frozenset[str]]) -> set[frozenset[str]]:
    """Largest sets of arms of which no two differ, by going through every subset."""
    sets = [
        frozenset(some)
        for size in range(1, len(arms) + 1)
        for some in combinations(arms, size)
        if not any(frozenset(pair) in different for pair in combinations(some, 2))
    ]
    return {one for one in sets if not any(one < other for other in sets)}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.booleans(), min_size=21, max_size=21))))
def test_arms_share_a_letter_if_and_only_if_they_do_not_differ(drawn: tuple[int, list[bool]]):
    k, coins = drawn
    arms = [f"arm-{number}" for number in range(k)]
    pairs = list(combinations(arms, 2))
    different = {frozenset(pair) for pair, coin in zip(pairs, coins, strict=False) if coin}
    letters = compact_letters(arms, different)
    assert letters is not None
    for one, other in pairs:
        assert bool(set(letters[one]) & set(letters[other])) == (frozenset((one, other)) not in different)
    by_letter = {
        letter: frozenset(arm for arm in arms if letter in letters[arm]) for letter in "".join(letters.values())
    }
    assert set(by_letter.values()) == cliques(arms, different), "no letter is there for nothing"


def test_letters_begin_with_the_best_arm():
    found = compact_letters(["best", "middle", "worst"], {frozenset(("best", "worst"))})
    assert found == {"best": "a", "middle": "ab", "worst": "b"}
    assert compact_letters(["x", "y"], set()) == {"x": "a", "y": "a"}


def test_more_than_26_groups_and_more_than_there_are_letters():
    many = [f"arm-{number}" for number in range(30)]
    found = compact_letters(many, {frozenset(pair) for pair in combinations(many, 2)})
    assert found is not None
    assert (found["arm-0"], found["arm-25"], found["arm-26"], found["arm-29"]) == ("a", "z", "aa", "ad")
    assert len(set(found.values())) == 30
    pairs = {frozenset((f"arm-{number}", f"arm-{number + 1}")) for number in range(0, 24, 2)}
    assert compact_letters(many, pairs) is None, "2 to the power of 12 groups"


@pytest.mark.parametrize("order", [["a", "b", "c", "d"], ["d", "c", "b", "a"]])
def test_the_order_of_the_pairs_does_not_matter(order: list[str]):
    different = [frozenset("ac"), frozenset("bd"), frozenset("ad")]
    assert compact_letters(order, different) == compact_letters(order, different[::-1])

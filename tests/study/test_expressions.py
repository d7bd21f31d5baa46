"""Conditions: what they mean, what is refused and where the caret stands, and that nothing is ever executed."""

from __future__ import annotations

import pytest

from winnow.errors import InputError
from winnow.study.expressions import LONGEST, Expression

VALUES = {"a": "x", "n": 3, "rate": 0.5, "model.dilation": [3, 5, 1], "on": True, "clip": "off"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a == 'x'", True),
        ("a != 'x' or n == 3", True),
        ("not a == 'x' and n == 3", False),
        ("a in ['x', 'y'] and 'z' not in ['x', 'y']", True),
        ("len(model.dilation) == n", True),
        ("1 in model.dilation", True),
        ("1 < n <= 3", True),
        ("1 < n < 3", False),
        ("n * 2 - 1 == 5 and n // 2 == 1 and n % 2 == 1 and n / 2 == 1.5 and -n == -3", True),
        ("on and on == true and clip == 'off'", True),
        ("on == false", False),
        ("rate >= 0.5\n  and n > 2", True),
        ("a > 'w'", True),
    ],
)
def test_what_a_condition_means(text: str, expected: bool):
    assert Expression(text).holds(VALUES.__getitem__) is expected


@pytest.mark.parametrize(
    ("text", "words", "before_caret"),
    [
        ("a = 'x'", "invalid syntax", ""),
        ("a ==", "invalid syntax", ""),
        ("n == 3 and __import__('os').system('true')", "not permitted", "n == 3 and "),
        ("(lambda: 1)() == 1", "not permitted", ""),
        ("n ** 9 == 1", "not permitted", ""),
        ("a.format(n) == 'x'", "not permitted", ""),
        ("model.dilation[0] == 3", "not permitted", ""),
        ("[i for i in model.dilation] == 1", "not permitted", ""),
        ("(n := 4) == 4", "not permitted", "("),
        ("n == None", "not permitted", "n == "),
        ("f'{n}' == 'x'", "not permitted", ""),
        ("'ü' != a and n is 3", "not permitted", "'ü' != a and "),
        ("a == 'y' or 'z'", "neither true nor false", "a == 'y' or "),
        ("n + 1", "neither true nor false", ""),
        ("a + 'y' == 'xy'", "is no number", ""),
        ("'x' * 9 == n", "is no number", ""),
        ("n < 'y'", "have no order", "n < "),
        ("on < 2", "have no order", "on < "),
        ("len(n) == 1", "no length", "len("),
        ("n / 0 == 1", "worked out", ""),
        ("a in n", "no list", "a in "),
        ("'x'.upper == 1", "only a name", ""),
    ],
)
def test_what_is_refused_has_its_place(text: str, words: str, before_caret: str):
    with pytest.raises(InputError, match=words) as caught:
        Expression(text).holds(VALUES.__getitem__)
    assert f"{before_caret}^" in caught.value.message


def test_a_text_that_is_too_deep_or_too_long_is_no_crash():
    for text in ("(" * 400 + "n" + ")" * 400 + " == 3", "not " * 240 + "on", "-" * 900 + "n == 3", "n == 3 " * LONGEST):
        with pytest.raises(InputError):
            Expression(text)


def test_names_and_constants_with_their_places():
    condition = Expression("attn == 'T' and ('QK' != qkv or model.n in [1, 2])")
    assert [name for name, _ in condition.names()] == ["attn", "qkv", "model.n"]
    assert [(name, value) for name, value, _ in condition.compared()] == [
        ("attn", "T"),
        ("qkv", "QK"),
        ("model.n", 1),
        ("model.n", 2),
    ]

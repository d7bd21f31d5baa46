"""Rules that contradict themselves or their call are refused by name; the others survive as text."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from winnow.errors import InputError
from winnow.kernels.rule import Rule

PLAIN = Rule(spread=(0, 0))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"spread": ()}, "spread"),
        ({"spread": (0, -1)}, "spread"),
        ({"leak": -0.1}, "leak"),
        ({"leak": math.inf}, "leak"),
        ({"leak": math.nan}, "leak"),
        ({"protection_slope": -1.0}, "protection_slope"),
        ({"protection_scale": -1.0}, "protection_scale"),
        ({"protection_offset": math.inf}, "protection_offset"),
        ({"protection_bias": math.nan}, "protection_bias"),
        ({"leak": 0.1, "protection": "scores"}, "leak"),
        ({"relu_after": True, "protection": "constant"}, "relu_after"),
    ],
)
def test_a_rule_that_contradicts_itself(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(PLAIN, **changes)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("changes", "call", "key"),
    [
        ({}, {"n_heads": 3}, "spread"),
        ({}, {"n_masks": 3}, "select"),
        ({"spread": (0, 1)}, {}, "spread"),
        ({}, {"n_masks": 2}, "spread"),
        ({"protection": "scores"}, {}, "protect"),
        ({}, {"protector": True}, "protect"),
        ({"protection": "constant"}, {"protector": True}, "protect"),
        ({"leak": 0.1}, {"compaction": "exact"}, "compaction"),
        ({"leak": 1.0, "relu_after": True}, {"compaction": "exact"}, "compaction"),
    ],
)
def test_a_rule_that_does_not_fit_its_call(changes: dict[str, Any], call: dict[str, Any], key: str) -> None:
    given = {"n_heads": 2, "n_masks": 1, "protector": False, "compaction": None} | call
    with pytest.raises(InputError) as caught:
        replace(PLAIN, **changes).check(given.pop("n_heads"), given.pop("n_masks"), **given)
    assert caught.value.key == key
    PLAIN.check(2, 1, protector=False, compaction="exact")


def test_as_text_and_back() -> None:
    rule = Rule(
        spread=(1, 0, 1),
        protect_bos=False,
        allow_self_masking=True,
        protection="leaky",
        protection_slope=0.1,
        protection_offset=-0.05,
        protection_scale=3.0,
        protection_bias=-1e-7,
        algorithm="tree",
        accumulate="bfloat16",
    )
    assert Rule.decode(rule.code) == rule
    assert Rule.decode(replace(PLAIN, leak=0.3, relu_after=True).code) == replace(PLAIN, leak=0.3, relu_after=True)
    assert Rule.decode(PLAIN.code) != rule


def test_masks_and_monotony() -> None:
    assert Rule(spread=(2, 0, 1)).n_masks == 3
    assert PLAIN.monotone
    assert replace(PLAIN, protection="constant").monotone
    assert not replace(PLAIN, leak=0.1).monotone

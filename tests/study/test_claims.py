"""The claim grammar: what it accepts, what it refuses and where it points."""

from __future__ import annotations

import pytest

from winnow.errors import InputError
from winnow.study.claims import Claim, parse_claim


@pytest.mark.parametrize(
    ("text", "kind", "arms", "numbers"),
    [
        ("no-bos worse-than control on val/ce by 0.002 smallest 0.005", "worse", ("no-bos", "control"), (0.002, 0.005)),
        ("a better-than b on val/ce", "better", ("a", "b"), (0.0, None)),
        ("a better-than b on val/ce smallest 1e-2 by .5", "better", ("a", "b"), (0.5, 0.01)),
        ("rank a, b ,c on val/bpb smallest 0.1", "rank", ("a", "b", "c"), (0.0, 0.1)),
        ("b best-of a, b, c on val/ce", "best", ("b", "a", "c"), (0.0, None)),
        ("rank better-than proxy on val/ce", "better", ("rank", "proxy"), (0.0, None)),
    ],
)
def test_reads_each_form(text: str, kind: str, arms: tuple[str, ...], numbers: tuple[float, float | None]) -> None:
    claim = parse_claim("h1", text)
    assert (claim.kind, claim.arms) == (kind, arms)
    assert (claim.margin, claim.smallest) == numbers


def test_equality_and_proxy() -> None:
    equal = parse_claim("h1", "a equal-to b on val/ce within 0.01")
    assert (equal.kind, equal.within) == ("equal", 0.01)
    proxy = parse_claim("h2", "proxy a, b, c, d predicts A, B, C, D on val/ce")
    assert (proxy.arms, proxy.targets, proxy.pairs) == (("a", "b", "c", "d"), ("A", "B", "C", "D"), ())


def test_pairs_are_the_differences_that_decide() -> None:
    assert parse_claim("h", "rank a, b, c on m").pairs == (("a", "b"), ("b", "c"))
    assert parse_claim("h", "b best-of a, b, c on m").pairs == (("b", "a"), ("b", "c"))


@pytest.mark.parametrize(
    "text",
    [
        "a better-than b on val/ce by 0.002 smallest 0.005",
        "a worse-than b on val/ce",
        "a equal-to b on val/ce within 0.01",
        "rank a, b, c on val/ce smallest 0.1",
        "b best-of b, a, c on val/ce",
        "proxy a, b, c, d predicts A, B, C, D on val/ce",
    ],
)
def test_normal_spelling_reads_back(text: str) -> None:
    claim = parse_claim("h1", text)
    assert claim.text == text
    assert parse_claim("h1", claim.text).digest() == claim.digest()


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("a beter-than b on m", "a ^beter-than b on m"),
        ("a better-than b", "a better-than b^"),
        ("a better-than b on m by x", "a better-than b on m by ^x"),
        ("a better-than b on m smallest 0", "a better-than b on m smallest ^0"),
        ("a better-than b on m by nan", "a better-than b on m by ^nan"),
        ("a better-than b on m by -1", "a better-than b on m by ^-1"),
        ("a better-than b on m within 1", "a better-than b on m ^within 1"),
        ("a better-than b on m by 1 by 2", "a better-than b on m by 1 ^by 2"),
        ("a better-than a on m", "a better-than ^a on m"),
        ("a equal-to b on m", "a equal-to b on m^"),
        ("rank a, a on m", "rank a, ^a on m"),
        ("rank a on m", "rank a ^on m"),
        ("a best-of b, c on m", "a best-of b, ^c on m"),
        ("a! better-than b on m", "^a! better-than b on m"),
        ("proxy a, b, c predicts A, B, C on m", "proxy a, b, c ^predicts A, B, C on m"),
        ("proxy a, b, c, d predicts A, B, C, D, E on m", "proxy a, b, c, d predicts A, B, C, D, ^E on m"),
        ("", "^"),
    ],
)
def test_points_at_the_mistake(text: str, marked: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_claim("h1", text)
    assert repr(marked) in str(caught.value)
    assert str(caught.value).startswith("claims.h1: ")
    assert "A better-than B on METRIC [by m] [smallest s]" in str(caught.value)


def test_table_form() -> None:
    claim = parse_claim("h1", {"claim": "a better-than b on m", "expect": "invalid", "exploratory": True})
    assert (claim.expect, claim.exploratory) == ("invalid", True)
    for table, message in [
        ({"claim": "a better-than b on m", "expcet": "invalid"}, "did you mean 'expect'"),
        ({"claim": "a better-than b on m", "expect": "wrong"}, "permitted: supported"),
        ({"expect": "invalid"}, "no `claim` sentence"),
        ({"claim": "a better-than b on m", "exploratory": "yes"}, "true or false"),
    ]:
        with pytest.raises(InputError, match=message):
            parse_claim("h1", table)


def test_every_edit_changes_the_digest() -> None:
    text = "a better-than b on m by 0.1 smallest 0.2"
    edits = [
        text.replace("0.1", "0.11"),
        text.replace("0.2", "0.3"),
        text.replace("a ", "c "),
        text.replace("on m", "on k"),
    ]
    digests = {parse_claim("h", each).digest() for each in [text, *edits, text.replace("better", "worse")]}
    digests.add(parse_claim("h", {"claim": text, "exploratory": True}).digest())
    assert len(digests) == 7
    assert parse_claim("h", text.replace(" on ", "  on   ")).digest() == parse_claim("h", text).digest()


def test_unknown_arm_and_metric_name_the_nearest() -> None:
    claim = parse_claim("h1", "selectiv better-than control on val/ce")
    with pytest.raises(InputError, match="did you mean 'selective'"):
        claim.check(["control", "selective"], ["val/ce"])
    with pytest.raises(InputError, match="did you mean 'val/bpb'"):
        parse_claim("h1", "a better-than b on val/bp").check(["a", "b"], ["val/bpb", "val/ce"])


def test_round_trip() -> None:
    claim = parse_claim("h1", {"claim": "rank a, b, c on m smallest 0.1", "expect": "supported"})
    assert Claim.model_validate(claim.dump()) == claim

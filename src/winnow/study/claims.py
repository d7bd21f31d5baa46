"""Claims: one sentence each, with the numbers that decide it, written before the first result.

    A better-than B on METRIC [by m] [smallest s]     A beats B by more than m; s is the smallest effect of interest
    A worse-than B on METRIC [by m] [smallest s]      the mirror image
    A equal-to B on METRIC within e                   the difference is inside (-e, e)
    rank A, B, C on METRIC [smallest s]               best first
    A best-of A, B, C on METRIC [smallest s]          A beats each of the others
    proxy a, b, c, d predicts A, B, C, D on METRIC    the small runs order the arms as the full ones do

m, s and e are in units of the metric. A claim's digest is what freezes it. How each kind is decided stands in
`winnow.study.evidence`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Literal, NoReturn, cast

from winnow.config import Config
from winnow.errors import InputError, nearest

Status = Literal["supported", "refuted", "undecided", "invalid"]
ClaimKind = Literal["better", "worse", "equal", "rank", "best", "proxy"]

FORMS = (
    "A better-than B on METRIC [by m] [smallest s]",
    "A worse-than B on METRIC [by m] [smallest s]",
    "A equal-to B on METRIC within e",
    "rank A, B, C on METRIC [smallest s]",
    "A best-of A, B, C on METRIC [smallest s]",
    "proxy a, b, c, d predicts A, B, C, D on METRIC",
)
FEWEST_FOR_PROXY = 4
"""With three arms the exact permutation floor of Kendall's tau is .167: no proxy claim could ever be supported."""

_TOKEN = re.compile(r",|[^\s,]+")
_ARM = re.compile(r"[A-Za-z0-9._-]+")
_COMPARISONS: dict[str, ClaimKind] = {"better-than": "better", "worse-than": "worse", "equal-to": "equal"}


class Claim(Config):
    """One claim; its digest, taken before the first result, shows later edits."""

    id: str
    """The claim's name in the study."""
    kind: ClaimKind
    """Which rule decides it."""
    arms: tuple[str, ...]
    """A and B; for `rank` best first; for `best` the claimed one first; for `proxy` the small runs."""
    targets: tuple[str, ...] = ()
    """`proxy` only: the full-size arm that each small run stands for, in the same order."""
    metric: str
    """The metric that decides."""
    margin: float = 0.0
    """`by m`: better or worse by more than this (metric units)."""
    smallest: float | None = None
    """Smallest effect of interest (metric units); None: refuted only when the opposite is shown."""
    within: float | None = None
    """`equal` only: the half-width of equality (metric units)."""
    expect: Status | None = None
    """The status that the author expects; None: anything but invalid."""
    exploratory: bool = False
    """Judged at the plain level, outside the family that is corrected for several claims."""

    @property
    def text(self) -> str:
        """The claim in the grammar, in its normal spelling."""
        first, *rest = self.arms
        words = {
            "better": lambda: f"{first} better-than {rest[0]}",
            "worse": lambda: f"{first} worse-than {rest[0]}",
            "equal": lambda: f"{first} equal-to {rest[0]}",
            "rank": lambda: f"rank {', '.join(self.arms)}",
            "best": lambda: f"{first} best-of {', '.join(self.arms)}",
            "proxy": lambda: f"proxy {', '.join(self.arms)} predicts {', '.join(self.targets)}",
        }[self.kind]()
        text = f"{words} on {self.metric}"
        text += f" by {self.margin:g}" if self.margin else ""
        text += f" within {self.within:g}" if self.within is not None else ""
        return text + (f" smallest {self.smallest:g}" if self.smallest is not None else "")

    @cached_property
    def all_arms(self) -> tuple[str, ...]:
        """Every arm the claim speaks of, each once."""
        return tuple(dict.fromkeys(self.arms + self.targets))

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The differences that decide it: (A, B) means A minus B. None for `proxy`."""
        if self.kind == "proxy":
            return ()
        if self.kind == "best":
            return tuple((self.arms[0], other) for other in self.arms[1:])
        return tuple(zip(self.arms, self.arms[1:], strict=False))

    @cached_property
    def confirmatory(self) -> bool:
        """Counted in the family; a claim written to be invalid (a dead setting shown dead) is not."""
        return not self.exploratory and self.expect != "invalid"

    def check(self, arms: Iterable[str], metrics: Iterable[str]) -> None:
        """Raise InputError if the claim names an arm or a metric that does not exist."""
        known = list(arms)
        for arm in self.all_arms:
            if arm not in known:
                raise InputError(f"no arm is called {arm!r}", key=f"claims.{self.id}", mend=nearest(arm, known))
        names = list(metrics)
        if self.metric not in names:
            raise InputError(
                f"no metric is called {self.metric!r}", key=f"claims.{self.id}", mend=nearest(self.metric, names)
            )


def parse_claim(name: str, value: str | Mapping[str, Any], metric: str | None = None) -> Claim:
    """A claim from its sentence, or from a table `{ claim = "...", expect = "invalid", exploratory = true }`.

    metric: what decides a sentence without `on METRIC`; None: every sentence must name it.
    Raises InputError with the place in the sentence and the permitted forms.
    """
    key = f"claims.{name}"
    if isinstance(value, str):
        return _Reader(name, value, metric).claim()
    permitted = ("claim", "expect", "exploratory")
    for field in value:
        if field not in permitted:
            raise InputError(f"unknown key {field!r}", key=key, mend=nearest(str(field), permitted))
    sentence = value.get("claim")
    if not isinstance(sentence, str):
        raise InputError("has no `claim` sentence", key=key, mend='write { claim = "A better-than B on METRIC" }')
    expect, exploratory = value.get("expect"), value.get("exploratory", False)
    statuses = ("supported", "refuted", "undecided", "invalid")
    if expect is not None and expect not in statuses:
        raise InputError(f"{expect!r} is not permitted", key=f"{key}.expect", mend=f"permitted: {', '.join(statuses)}")
    if not isinstance(exploratory, bool):
        raise InputError("should be true or false", key=f"{key}.exploratory")
    claim = _Reader(name, sentence, metric).claim()
    return claim.replace({"expect": cast(Status | None, expect), "exploratory": exploratory})


class _Reader:
    """One pass over a sentence's tokens, remembering where each stands."""

    def __init__(self, name: str, text: str, metric: str | None = None) -> None:
        self.name, self.text, self.metric = name, text, metric
        self.tokens = [(match.group(), match.start()) for match in _TOKEN.finditer(text)]
        self.place = 0

    def claim(self) -> Claim:
        first = self.peek()
        # An arm may itself be called `rank` or `proxy`: the word after it tells.
        second = self.tokens[1][0] if len(self.tokens) > 1 else ""
        if first == "rank" and second not in _COMPARISONS and second != "best-of":
            self.place = 1
            return self.finish("rank", self.arms("an arm", fewest=2))
        if first == "proxy" and second not in _COMPARISONS and second != "best-of":
            return self.proxy()
        arm = self.arm()
        verb = self.peek()
        if verb == "best-of":
            self.place += 1
            return self.best(arm)
        if verb not in _COMPARISONS:
            self.fail("expected better-than, worse-than, equal-to or best-of")
        self.place += 1
        other = self.arm()
        if other == arm:
            self.place -= 1
            self.fail(f"{arm!r} cannot be compared with itself")
        return self.finish(_COMPARISONS[verb], (arm, other))

    def best(self, arm: str) -> Claim:
        listed = self.arms("an arm", fewest=2)
        if arm not in listed:
            self.place -= 1
            self.fail(f"the list of best-of must contain {arm!r}")
        return self.finish("best", (arm, *(other for other in listed if other != arm)))

    def proxy(self) -> Claim:
        self.place = 1
        small = self.arms("a small run", fewest=FEWEST_FOR_PROXY)
        self.word("predicts")
        full = self.arms("a full run", fewest=FEWEST_FOR_PROXY)
        if len(full) != len(small):
            self.place -= 1
            self.fail(f"{len(small)} small runs cannot stand for {len(full)} full ones")
        return self.finish("proxy", small, targets=full)

    def finish(self, kind: ClaimKind, arms: tuple[str, ...], targets: tuple[str, ...] = ()) -> Claim:
        if self.metric is not None and self.peek() != "on":
            metric = self.metric
        else:
            self.word("on")
            metric = self.take("a metric")
        permitted = {"better": ("by", "smallest"), "worse": ("by", "smallest"), "equal": ("within",)}.get(
            kind, ("smallest",) if kind in ("rank", "best") else ()
        )
        numbers: dict[str, float] = {}
        while self.place < len(self.tokens):
            word = self.peek()
            if word not in permitted or word in numbers:
                ends = ", ".join(option for option in permitted if option not in numbers)
                self.fail(f"expected {ends} or the end" if ends else "expected the end")
            self.place += 1
            numbers[word] = self.number(positive=word != "by")
        if kind == "equal" and "within" not in numbers:
            self.fail("equal-to needs `within e`: no finite number of seeds shows exact equality")
        return Claim(
            id=self.name,
            kind=kind,
            arms=arms,
            targets=targets,
            metric=metric,
            margin=numbers.get("by", 0.0),
            smallest=numbers.get("smallest"),
            within=numbers.get("within"),
        )

    def arms(self, what: str, fewest: int) -> tuple[str, ...]:
        names = [self.arm(what)]
        while self.peek() == ",":
            self.place += 1
            name = self.arm(what)
            if name in names:
                self.place -= 1
                self.fail(f"{name!r} is listed twice")
            names.append(name)
        if len(names) < fewest:
            self.fail(f"needs at least {fewest} arms")
        return tuple(names)

    def arm(self, what: str = "an arm") -> str:
        name = self.take(what)
        if not _ARM.fullmatch(name):
            self.place -= 1
            self.fail(f"{name!r} is no arm's name (letters, digits, '.', '_' and '-')")
        return name

    def word(self, word: str) -> None:
        if self.peek() != word:
            self.fail(f"expected {word!r}")
        self.place += 1

    def number(self, positive: bool) -> float:
        text = self.take("a number")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            self.place -= 1
            self.fail(f"{text!r} is no {'positive ' if positive else ''}number")
        return value

    def take(self, what: str) -> str:
        token = self.peek()
        if token in ("", ","):
            self.fail(f"expected {what}")
        self.place += 1
        return token

    def peek(self) -> str:
        return self.tokens[self.place][0] if self.place < len(self.tokens) else ""

    def fail(self, message: str) -> NoReturn:
        start = self.tokens[self.place][1] if self.place < len(self.tokens) else len(self.text)
        marked = f"{self.text[:start]}^{self.text[start:]}"
        raise InputError(
            f"{message} at ^ in {marked!r}", key=f"claims.{self.name}", mend=f"permitted forms: {' | '.join(FORMS)}"
        )

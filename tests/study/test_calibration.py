"""Calibration: simulated studies of known truth through the real judge; false verdicts stay below their ceilings.

Sizes here find gross mistakes (the mutants at the end are planted ones); `bench/calibration.py` and the soak test run
the full sizes and keep their table under bench/results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.study.simulated import LOOKS, Design, simulate, slack

from winnow.study import boundaries, intervals, noise
from winnow.study.boundaries import bounds

BETTER = "a1 better-than control on m"
SIZED = f"{BETTER} smallest 2"
EQUAL = "a1 equal-to control on m within 2"
UNPAIRED = Design((BETTER,), paired=False, varying=True)
PAIRED = Design((BETTER,))
STUDIES = 1500


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def assert_at_most(rate: float, ceiling: float, studies: int) -> None:
    assert rate <= ceiling + slack(ceiling, studies)


def false_supports(design: Design, studies: int, seed: int = 1) -> float:
    """False supports and false refutations of "better" without a smallest effect, per direction."""
    found = simulate(design, studies, seed)
    return (found.rate("supported") + found.rate("refuted")) / 2


DESIGNS = {
    "unpaired, ledger": UNPAIRED,
    "paired, rho .8": PAIRED,
    "paired, rho 0": Design((BETTER,), rho=0.0),
    "paired, one other pair": Design((BETTER,), effects=(0.0, 0.0, 0.0)),
    "paired, lone pair": Design((BETTER,), effects=(0.0, 0.0)),
    "unpaired, one look at 3": Design((BETTER,), paired=False, varying=True, looks=(3,)),
    "unpaired, open-ended up to 16": Design((BETTER,), paired=False, open_ended=True, looks=(16,)),
    "heavy tails": Design((BETTER,), paired=False, heavy=True),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_no_effect_is_found_no_more_often_than_stated(name: str) -> None:
    assert_at_most(false_supports(DESIGNS[name], STUDIES), 0.025, STUDIES)


STRESS = {
    "one arm 1.5x as noisy": (Design((BETTER,), paired=False, sds=(1, 1.5, 1, 1)), 0.065),
    "one arm 2x as noisy": (Design((BETTER,), paired=False, sds=(1, 2, 1, 1)), 0.076),
    "one arm 3x as noisy": (Design((BETTER,), paired=False, sds=(1, 3, 1, 1)), 0.089),
    "shares no seeds though the others do": (Design((BETTER,), lonely=(1,)), 0.085),
    "differences of sd .03 beside .01": (Design((BETTER,), rho=0.0, sds=(0.001, 0.03, 0.01, 0.01)), 0.085),
}


@pytest.mark.parametrize("name", STRESS)
def test_stress_stays_below_its_ceiling(name: str) -> None:
    design, ceiling = STRESS[name]
    assert_at_most(2 * false_supports(design, STUDIES), ceiling, STUDIES)


def test_false_equality_at_the_edge() -> None:
    found = simulate(Design((EQUAL,), effects=(0.0, 2.0, 0.0, 0.0), paired=False, varying=True), STUDIES)
    assert_at_most(found.rate("supported"), 0.025, STUDIES)


@pytest.mark.parametrize(
    ("effect", "supported", "refuted"),
    [(0.0, None, 0.958), (-1.0, 0.470, None), (-2.0, 0.960, None), (-3.0, 1.0, None)],
)
def test_power_is_kept(effect: float, supported: float | None, refuted: float | None) -> None:
    """The published rates are without the guard, at constant noise; 3 points and the simulation's error are allowed."""
    found = simulate(Design((SIZED,), effects=(0.0, effect, 0.0, 0.0), paired=False), 600)
    for status, pin in (("supported", supported), ("refuted", refuted)):
        if pin is not None:
            assert found.rate(status) >= pin - 0.03 - slack(pin, 600)


@pytest.mark.parametrize("name", ["unpaired, ledger", "paired, rho .8", "paired, lone pair"])
@pytest.mark.parametrize("effect", [0.0, -1.0])
def test_intervals_cover_the_truth(name: str, effect: float) -> None:
    """The interval that is read, at whatever look the claim stopped, holds the true difference 95 times in 100."""
    design = replace(DESIGNS[name], effects=(0.0, effect, *DESIGNS[name].effects[2:]))
    missed = simulate(design, 800, 3).missed(effect)
    assert_at_most(missed, 0.05, 800)
    assert missed > 0, "an interval that never misses says nothing"


def test_the_e_process_is_dear_but_finds_large_effects() -> None:
    """Published: power .88 at two sigma within ten seeds per arm, where declared looks reach .986."""
    design = Design((BETTER,), (0.0, -2.0, 0.0, 0.0), paired=False, open_ended=True, looks=(10,))
    assert simulate(design, 400).rate("supported") >= 0.88 - 0.03 - slack(0.88, 400)


def test_pairing_pays() -> None:
    """At one sigma and rho .8, five paired seeds find what unpaired ones find half as often (.91 against .45)."""
    one = {"effects": (0.0, -1.0, 0.0, 0.0), "looks": (5,), "alpha": 0.10}
    paired = simulate(Design((BETTER,), **one), 600).rate("supported")
    unpaired = simulate(Design((BETTER,), paired=False, **one), 600).rate("supported")
    assert paired >= 0.91 - 0.03 - slack(0.91, 600)
    assert unpaired >= 0.45 - 0.03 - slack(0.45, 600)


def test_several_claims_together_keep_alpha() -> None:
    """Four claims with no effect that are easily refuted: one freed by another's refutation would err too often."""
    claims = tuple(f"a{k} better-than control on m smallest 2.2" for k in range(1, 5))
    design = Design(claims, effects=(0.0,) * 5, paired=False, correction="holm")
    found = simulate(design, STUDIES)
    assert_at_most(found.any({f"h{k}": "supported" for k in range(4)}), 0.025, STUDIES)
    assert sum(found.rate("refuted", f"h{k}") for k in range(4)) / 4 > 0.8


def _mutant_fails(design: Design, ceiling: float, studies: int = 800) -> bool:
    """Whether the suite's own criterion rejects what is now installed."""
    bounds.cache_clear()
    return false_supports(design, studies) > ceiling + slack(ceiling, studies)


def test_the_suite_sees_a_missing_spending(monkeypatch: pytest.MonkeyPatch) -> None:
    real = intervals.multiplier

    def every_look_at_full_alpha(design: boundaries.Design, alpha: float) -> float:
        return boundaries.student_upper(alpha / 2, design.degrees()) if design.degrees() else real(design, alpha)

    design = Design((BETTER,), paired=False, looks=(2, 3, 4, 5, 6, 8, 10))
    assert not _mutant_fails(design, 0.025)
    monkeypatch.setattr(intervals, "multiplier", every_look_at_full_alpha)
    assert _mutant_fails(design, 0.025)


def test_the_suite_sees_a_missing_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    design = Design((BETTER,), paired=False, sds=(1, 3, 1, 1))
    assert not _mutant_fails(design, 0.089 / 2)
    monkeypatch.setattr(intervals.Guard, "fired", False)
    assert _mutant_fails(design, 0.089 / 2)


def test_the_suite_sees_n_for_n_minus_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(values: list[float]) -> tuple[float, float]:
        mean, variance = noise.moments(values)
        return mean, variance * (len(values) - 1) / len(values)

    design = Design((BETTER,), effects=(0.0, 0.0), looks=(2,), alpha=0.2)
    assert not _mutant_fails(design, 0.1, 3000)
    monkeypatch.setattr(intervals, "moments", biased)
    assert _mutant_fails(design, 0.1, 3000)


@pytest.mark.soak
def test_full_size_sees_the_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size the suite's own designs reject each mutant."""
    studies, limit = 20_000, 0.025 + slack(0.025, 40_000)

    def fails(design: Design, ceiling: float) -> bool:
        bounds.cache_clear()
        return false_supports(design, studies) > ceiling

    with monkeypatch.context() as patch:
        patch.setattr(
            intervals, "multiplier", lambda design, alpha: boundaries.student_upper(alpha / 2, design.degrees())
        )
        assert fails(UNPAIRED, limit), "every look at full alpha"
    with monkeypatch.context() as patch:
        patch.setattr(intervals.Guard, "fired", False)
        for name in ("one arm 3x as noisy", "differences of sd .03 beside .01"):
            design, ceiling = STRESS[name]
            assert fails(design, ceiling / 2 + slack(ceiling / 2, 2 * studies)), f"no guard: {name}"
    with monkeypatch.context() as patch:
        patch.setattr(
            intervals,
            "moments",
            lambda values: (noise.moments(values)[0], noise.moments(values)[1] * (len(values) - 1) / len(values)),
        )
        assert fails(DESIGNS["paired, lone pair"], limit), "n for n - 1"


@pytest.mark.soak
def test_full_size_power_and_coverage() -> None:
    studies = 5_000
    for effect, pin in ((-1.0, 0.470), (-2.0, 0.960), (-3.0, 1.0)):
        found = simulate(Design((SIZED,), (0.0, effect, 0.0, 0.0), paired=False), studies)
        assert found.rate("supported") >= pin - 0.03 - slack(pin, studies), effect
    for name in ("unpaired, ledger", "paired, rho .8", "paired, rho 0", "paired, one other pair", "paired, lone pair"):
        assert simulate(DESIGNS[name], studies, 3).missed(0.0) <= 0.05 + slack(0.05, studies), name


@pytest.mark.soak
def test_full_size() -> None:
    studies = 20_000
    for name, design in DESIGNS.items():
        rate = false_supports(design, studies)
        assert rate <= 0.025 + slack(0.025, 2 * studies), name
    for name, (design, ceiling) in STRESS.items():
        rate = 2 * false_supports(design, studies)
        assert rate <= ceiling + slack(ceiling, studies), name
    edge = simulate(Design((EQUAL,), effects=(0.0, 2.0, 0.0, 0.0), paired=False, varying=True), studies)
    assert edge.rate("supported") <= 0.025 + slack(0.025, studies)
    assert LOOKS == (3, 5, 8)

"""Verdicts: the worked example, the decision table, looks, several claims, divergences, one seed, identical runs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from tests.study.judged import LEDGER, LOOKS, arms, judge, observed, small_tables

from winnow.errors import InputError
from winnow.study.boundaries import bounds, standard_design
from winnow.study.claims import parse_claim
from winnow.study.noise import Prior
from winnow.study.observations import Observations, Seed
from winnow.study.verdict import DecisionRule, Verdict, judge_claims

__all__ = ["small_tables"]  # a fixture of the whole module

UNPAIRED = DecisionRule(paired=False)
NOISE = [[0.0008 * (1 + 1e-6 * k), -0.0008, 0.0] for k in range(50)]
"""Differences of fifty other pairs, each with sd .0008 (and no two alike)."""


def test_worked_example() -> None:
    base, arm = [3.2793, 3.2781, 3.2786], [3.2769, 3.2762, 3.2775]
    values = {"control": base, "A": arm}
    text = "A better-than control on m smallest 0.002"
    ledger = Prior(variance=0.0011**2, degrees=12.0, arms=9)
    found = judge(text, observed(values), UNPAIRED, prior=ledger, budget="at 0.4 M tokens")
    assert found.reason == (
        "undecided at look 1 of 3 at 0.4 M tokens: A - control = -0.0018 m, interval [-0.0041, +0.0005]; "
        "if the trend holds, 2 more seeds per arm decide (half-width 0.0016 at 5)"
    )
    assert (found.status, found.n, found.look, found.more_seeds) == ("undecided", 3, 1, 2)
    # The same numbers with shared seeds. Other pairs that are known well decide; one more pair of three seeds does not.
    known = {f"x{k}": [x + (-1) ** k * y for x, y in zip(base, noise, strict=True)] for k, noise in enumerate(NOISE)}
    paired = judge(text, observed({**values, **known}))
    assert paired.reason == "supported at look 1 of 3: A - control = -0.0018 m, interval [-0.0031, -0.0005]"
    values["other"] = [base[0] - 0.0008, base[1] + 0.0008, base[2]]
    assert judge(text, observed(values)).status == "undecided"


@pytest.mark.parametrize(
    ("text", "mean", "status"),
    [
        ("a better-than control on m smallest 2", -3.0, "supported"),
        ("a better-than control on m smallest 2", 0.0, "refuted"),
        ("a better-than control on m by 1", -3.0, "supported"),
        ("a better-than control on m by 5", -3.0, "refuted"),
        ("a better-than control on m", 3.0, "refuted"),
        ("a better-than control on m", 0.0, "undecided"),
        ("a worse-than control on m smallest 2", 3.0, "supported"),
        ("a worse-than control on m smallest 2", 0.0, "refuted"),
        ("a worse-than control on m by 5", 3.0, "refuted"),
        ("a equal-to control on m within 2", 0.0, "supported"),
        ("a equal-to control on m within 1", 3.0, "refuted"),
        ("a equal-to control on m within 1", -3.0, "refuted"),
        ("a equal-to control on m within 0.1", 0.0, "undecided"),
        ("rank a, control, b on m", -3.0, "supported"),
        ("rank control, a, b on m", -3.0, "refuted"),
        ("rank x, y, z on m", 0.0, "undecided"),
        ("a best-of a, control, b on m", -3.0, "supported"),
        ("control best-of a, control, b on m", -3.0, "refuted"),
    ],
)
@pytest.mark.parametrize("paired", [True, False])
def test_decision_table(text: str, mean: float, status: str, paired: bool) -> None:
    values = observed(arms(seed=3, a=mean, b=3.0, rho=0.95 if paired else 0.0, n=8))
    rule = DecisionRule(paired=paired)
    if paired or status != "undecided":
        assert judge(text, values, rule, prior=LEDGER.replace({"variance": 0.5})).status == status


def test_supported_though_smaller_than_the_smallest_effect() -> None:
    values = observed(arms(seed=1, a=-1.0, rho=0.99))
    found = judge("a better-than control on m smallest 5", values)
    assert found.status == "supported"
    assert found.smaller_than_smallest
    assert found.reason.endswith("supported, smaller than 5")
    assert not judge("a better-than control on m smallest 0.1", values).smaller_than_smallest


def test_first_crossing_stands_and_later_seeds_are_shown() -> None:
    values = arms(seed=2, a=-6.0, rho=0.9)
    three = judge("a better-than control on m", observed({arm: row[:3] for arm, row in values.items()}))
    assert (three.status, three.look) == ("supported", 1)
    # Whatever the later seeds say, the verdict and its interval are those of the first crossing.
    values["a"][3:] = [50.0] * 5
    later = judge("a better-than control on m", observed(values))
    assert (later.status, later.look, later.n) == ("supported", 1, 3)
    assert (later.low, later.high) == (three.low, three.high)
    assert "5 later seeds per arm are shown, not judged" in later.notes
    assert later.numbers["all_seeds"][0]["n"] == 8
    assert later.numbers["all_seeds"][0]["effect"] > 0


def test_between_looks_the_last_look_counts() -> None:
    values = arms(seed=5, a=-0.3)
    three, four = (
        judge("a better-than control on m", observed({arm: row[:n] for arm, row in values.items()})) for n in (3, 4)
    )
    assert (four.low, four.high, four.look) == (three.low, three.high, 1)


def test_before_the_first_look_and_with_one_seed() -> None:
    values = arms(seed=5, a=-9.0)
    found = judge("a better-than control on m", observed({arm: row[:1] for arm, row in values.items()}))
    assert (found.status, found.look, found.low) == ("undecided", 0, None)
    assert any("one seed per arm" in note for note in found.notes)
    single = judge_claims(
        [parse_claim("h", "a better-than control on m")], observed({k: v[:1] for k, v in values.items()})
    )
    assert single[0].status == "undecided"
    assert judge("a better-than control on m", observed({"control": [1.0, 2.0]})).status == "undecided"


def test_identical_runs_are_invalid_and_lend_no_noise() -> None:
    values = arms(seed=6, a=0.0)
    values["a"] = list(values["control"])
    found = judge("a equal-to control on m within 1", observed(values))
    assert found.status == "invalid"
    assert "no effect" in found.reason
    assert not found.expected
    # A copy of an arm, or of the control, changes nothing for the others: neither noise nor a second helping of it.
    plain = arms(seed=6)
    for copied in ("control", "x"):
        more = observed({**plain, "copy": list(plain[copied])})
        text = "x better-than control on m"
        assert judge(text, more).numbers["pairs"] == judge(text, observed(plain)).numbers["pairs"]
        assert judge(text, more, UNPAIRED).numbers["pairs"] == judge(text, observed(plain), UNPAIRED).numbers["pairs"]


def test_twins_that_are_identical_are_equal_and_others_are_judged_by_their_noise() -> None:
    """By construction the same: 0 is then the difference itself, whatever noise other pairs would lend."""
    values = arms(seed=6, a=0.0)
    values["a"] = list(values["control"])
    twins = [("a", "control")]
    found = judge("a equal-to control on m within 0.001", observed(values), twins=twins)
    assert (found.status, found.effect, found.low, found.high) == ("supported", 0.0, 0.0, 0.0)
    assert judge("a better-than control on m smallest 0.1", observed(values), twins=twins).status == "refuted"
    assert judge("a better-than control on m", observed(values), twins=twins).status == "undecided"
    others = "x better-than control on m"
    assert judge(others, observed(values), twins=twins).numbers == judge(others, observed(values)).numbers
    values["a"][0] += 0.5
    apart = "a equal-to control on m within 0.001"
    assert judge(apart, observed(values), twins=twins).numbers == judge(apart, observed(values)).numbers


def test_one_identical_pair_makes_a_ranking_invalid() -> None:
    values = arms(seed=6)
    values["y"] = list(values["x"])
    assert judge("rank x, y, z on m", observed(values)).status == "invalid"


def test_given_reasons_make_invalid_and_lend_no_noise() -> None:
    values = observed(arms(seed=7, a=-3.0))
    text = "a better-than control on m"
    for name in ("h", "a", "control"):
        found = judge(text, values, invalid={name: "the setting had no effect"})
        assert (found.status, found.reason) == ("invalid", "invalid: the setting had no effect")
    without = {arm: row for arm, row in arms(seed=7, a=-3.0).items() if arm != "z"}
    assert judge(text, values, invalid={"z": "dead"}).low == judge(text, observed(without)).low


def test_expectation() -> None:
    values = observed(arms(seed=8, a=-4.0))
    for expect, expected in (("supported", True), ("refuted", False), ("invalid", False)):
        claim = parse_claim("h", {"claim": "a better-than control on m", "expect": expect})
        assert judge_claims([claim], values, None, LOOKS)[0].expected == expected


def test_divergences_block_means_while_they_differ() -> None:
    values: dict[str, list[float | None]] = {arm: list(row) for arm, row in arms(seed=9, a=-4.0).items()}
    values["a"][1] = None
    found = judge("a better-than control on m", observed(values))
    assert found.status == "undecided"
    assert "1 of 8 runs of a diverged and 0 of 8 of control (Fisher exact p = 1)" in found.reason
    assert "a: diverged at seed 1, excluded from means" in found.notes
    values["control"][6] = None
    # Once both arms have lost one, means over the remaining pairs are compared, at the look where that is so.
    even = judge("a better-than control on m", observed(values))
    assert (even.status, even.look, even.n) == ("supported", 3, 6)
    assert even.numbers["pairs"][0]["divergences"] == {"a": 1, "of_a": 8, "b": 1, "of_b": 8, "p": 1.0}


def test_nan_is_a_divergence() -> None:
    values: dict[str, list[float | None]] = {arm: list(row) for arm, row in arms(seed=9, a=-4.0).items()}
    values["a"][0] = float("nan")
    assert "diverged" in judge("a better-than control on m", observed(values)).reason


def test_unequal_seeds_are_paired_on_the_common_ones() -> None:
    values = arms(seed=10, a=-30.0)
    table: dict[str, dict[Seed, float | None]] = {arm: dict(enumerate(row)) for arm, row in values.items()}
    del table["a"][1]
    found = judge("a better-than control on m", Observations(table, "m", control="control"))
    assert "control: seed 1 has no partner and is not compared" in found.notes
    del table["control"][1]
    without = judge("a better-than control on m", Observations(table, "m", seeds=tuple(range(8)), control="control"))
    assert found.numbers["pairs"][0]["differences"] == without.numbers["pairs"][0]["differences"]


def test_holm_frees_error_within_one_direction_only() -> None:
    strong = arms(seed=11, a=-9.0, b=-1.35, rho=0.5)
    weak = parse_claim("weak", "b better-than control on m")
    helpers = {
        "supports": parse_claim("s", "a better-than control on m"),
        "refutes": parse_claim("r", "a worse-than control on m smallest 1"),
    }
    levels = {}
    for name, helper in helpers.items():
        verdicts = judge_claims([helper, weak], observed(strong), None, LOOKS)
        assert verdicts[0].status == ("supported" if name == "supports" else "refuted")
        levels[name] = verdicts[1].numbers["levels"]
    assert levels["supports"] == {"support": 0.05, "refute": 0.025}
    assert levels["refutes"] == {"support": 0.025, "refute": 0.05}
    alone = judge_claims([weak], observed(strong), None, LOOKS)[0].numbers["levels"]
    assert alone == {"support": 0.05, "refute": 0.05}


def test_exploratory_claims_neither_pay_nor_cost() -> None:
    values = observed(arms(seed=12, a=-1.0))
    plain = parse_claim("h", "a better-than control on m")
    extra = parse_claim("e", {"claim": "x better-than control on m", "exploratory": True})
    dead = parse_claim("d", {"claim": "y better-than control on m", "expect": "invalid"})
    with_others = judge_claims([plain, extra, dead], values, None, LOOKS)
    # They keep their arms running, which then lend more noise; at one look nothing but the levels could differ.
    assert with_others[0].numbers["levels"] == judge_claims([plain], values, None, LOOKS)[0].numbers["levels"]
    one_look = judge_claims([plain, extra, dead], values, None, (8,))
    assert one_look[0] == judge_claims([plain], values, None, (8,))[0]
    assert with_others[1].exploratory
    assert any(note.startswith("exploratory") for note in with_others[1].notes)


def test_order_of_claims_does_not_matter() -> None:
    values = observed(arms(seed=13, a=-1.2, b=1.0, c=-0.8))
    texts = {name: f"{name} better-than control on m smallest 1" for name in ("a", "b", "c", "x")}
    claims = [parse_claim(name, text) for name, text in texts.items()]
    forward = {each.claim.id: each for each in judge_claims(claims, values, None, LOOKS)}
    backward = {each.claim.id: each for each in judge_claims(claims[::-1], values, None, LOOKS)}
    assert forward == backward


def test_screen_is_benjamini_hochberg_at_the_last_look() -> None:
    from scipy.stats import false_discovery_control, ttest_ind

    generator = np.random.default_rng(14)
    rule = DecisionRule(correction="screen", paired=False)
    values = {"control": generator.normal(size=8).tolist()}
    values |= {f"a{k}": (generator.normal(size=8) - 0.3 * k).tolist() for k in range(8)}
    claims = [parse_claim(f"a{k}", f"a{k} better-than control on m") for k in range(8)]
    verdicts = judge_claims(claims, observed(values), rule, LOOKS, prior=LEDGER.replace({"degrees": 1e-9}))
    p = [float(np.asarray(ttest_ind(values[f"a{k}"], values["control"], alternative="less"))[1]) for k in range(8)]
    oracle = false_discovery_control(p) <= 0.1
    # The engine pools the noise of all arms, the oracle of two: compare where both are clear.
    clear = [k for k in range(8) if p[k] < 0.01 or p[k] > 0.3]
    assert [verdicts[k].status == "supported" for k in clear] == [bool(oracle[k]) for k in clear]
    early = judge_claims(claims, observed({arm: row[:5] for arm, row in values.items()}), rule, LOOKS)
    assert {each.status for each in early} == {"undecided"}
    assert any(note.startswith("screen") for note in verdicts[0].notes)


def test_beyond_the_last_look_the_e_process_judges() -> None:
    values = arms(seed=16, n=60, a=-0.5, rho=0.5)
    short = judge("a better-than control on m", observed({arm: row[:8] for arm, row in values.items()}))
    assert short.status == "undecided"
    assert "beyond the declared looks" in short.reason
    found = judge("a better-than control on m", observed(values))
    assert found.status == "supported"
    assert found.look > 3
    assert any("judged by an e-process" in note for note in found.notes)
    open_ended = judge("a better-than control on m", observed(values), DecisionRule(open_ended=True))
    assert (open_ended.status, open_ended.looks) == ("supported", ())


def test_forecast_is_the_first_look_whose_half_width_is_small_enough() -> None:
    for seed in range(40):
        values = {arm: row[:3] for arm, row in arms(seed=seed, a=-0.9, rho=0.6).items()}
        found = judge("a better-than control on m", observed(values))
        if found.status == "undecided" and found.more_seeds == 5:
            break
    else:
        pytest.fail("no sample is forecast to decide at the third look")
    (pair,) = found.numbers["pairs"]
    s = max(error["standard_error"] * 3**0.5 for error in pair["errors"])
    c = bounds(standard_design(LOOKS, 4, True, lenders=3), 0.05)
    assert found.effect is not None
    assert c[2] * s / 8**0.5 < -found.effect < c[1] * s / 5**0.5
    assert found.numbers["forecast"]["half_width"] == pytest.approx(c[2] * s / 8**0.5)


def test_proxy() -> None:
    generator = np.random.default_rng(17)
    values: dict[str, list[float]] = {}
    for place, name in enumerate("abcde"):
        values[name] = (4.0 * place + generator.normal(size=8)).tolist()
        values[name.upper()] = (4.0 * place + generator.normal(size=8)).tolist()
    good = "proxy a, b, c, d, e predicts A, B, C, D, E on m"
    assert judge(good, observed(values), UNPAIRED).status == "supported"
    assert judge("proxy a, b, c, d, e predicts E, D, C, B, A on m", observed(values)).status == "refuted"
    close = {name: (np.array(row) / 10 + generator.normal(size=8)).tolist() for name, row in values.items()}
    unclear = judge(good, observed(close), UNPAIRED)
    assert unclear.status == "undecided"
    assert unclear.low is not None
    assert unclear.low < 0.6
    assert judge(good, observed(values)) == judge(good, observed(values))


def test_rank_probabilities() -> None:
    values = observed(arms(seed=18, a=-5.0, b=5.0))
    found = judge("rank a, control, b on m", values).numbers
    assert found["best"] == ["a"]
    assert sum(found["rank_probability"]["a"]) == pytest.approx(1)
    even = judge("rank x, y, z on m", observed(arms(seed=20))).numbers
    assert even["best"] == []


def test_reports_in_seed_deviations() -> None:
    values = arms(seed=19, a=-2.0)
    found = judge_claims([parse_claim("h", "a better-than control on m")], observed(values))[0]
    pooled = np.sqrt((np.var(values["a"], ddof=1) + np.var(values["control"], ddof=1)) / 2)
    assert found.sd == pytest.approx(pooled)
    assert found.effect_in_sd == pytest.approx((np.mean(values["a"]) - np.mean(values["control"])) / pooled)
    assert found.rho == pytest.approx(np.corrcoef(values["a"], values["control"])[0, 1])


@pytest.mark.parametrize("paired", [True, False])
def test_a_verdict_does_not_depend_on_when_somebody_looked(paired: bool) -> None:
    """Seeds added look by look for open claims, as a launch adds them, give what all seeds at once give."""
    rule = DecisionRule(paired=paired)
    claims = [
        parse_claim("one", "a better-than control on m smallest 1"),
        parse_claim("two", "b better-than control on m smallest 1"),
        parse_claim("three", "c worse-than a on m smallest 1").replace({"exploratory": True}),
    ]
    early = 0
    for seed in range(60):
        values = arms(seed=seed, a=-3.0 * (seed % 3), b=-1.0, c=0.5)
        have = dict.fromkeys(values, LOOKS[0])
        verdicts: tuple[Verdict, ...] = ()
        for look in range(len(LOOKS)):
            seen = {arm: row[: have[arm]] for arm, row in values.items()}
            verdicts = judge_claims(claims, observed(seen), rule, LOOKS)
            open_arms = {arm for verdict in verdicts if verdict.status == "undecided" for arm in verdict.claim.all_arms}
            early += len(values.keys() - open_arms) if look < len(LOOKS) - 1 else 0
            have |= dict.fromkeys(open_arms, LOOKS[min(look + 1, len(LOOKS) - 1)])
        everything = judge_claims(claims, observed(values), rule, LOOKS)
        for then, now in zip(verdicts, everything, strict=True):
            assert (then.status, then.look, then.low, then.high) == (now.status, now.look, now.low, now.high)
    assert early > 20, "arms must have stopped early for this to test anything"


def test_verdicts_are_json_and_come_back() -> None:
    values = observed(arms(seed=21, a=-1.0, b=1.0))
    for text in ("a better-than control on m smallest 1", "rank a, x, b on m", "a equal-to b on m within 0.1"):
        found = judge(text, values)
        assert Verdict.model_validate(json.loads(json.dumps(found.dump()))) == found


def test_bad_input() -> None:
    claim = parse_claim("h", "a better-than control on m")
    with pytest.raises(InputError, match="do not rise"):
        judge_claims([claim], observed(arms()), None, (3, 3))
    with pytest.raises(InputError, match="no values of 'other'"):
        judge_claims([parse_claim("h", "a better-than b on other")], observed(arms()))
    with pytest.raises(InputError, match="were not declared"):
        Observations({"a": {7: 1.0}}, "m", seeds=(0, 1))


@pytest.mark.parametrize(("effect", "status", "loaded"), [(-9.0, "supported", "[]"), (-0.01, "undecided", "['numpy']")])
def test_nothing_heavy_is_imported(effect: float, status: str, loaded: str) -> None:
    """A decided verdict reads shipped numbers alone; a forecast needs scipy.special, never scipy.stats or torch."""
    code = (
        "import sys\n"
        "from winnow.study.claims import parse_claim\n"
        "from winnow.study.observations import Observations\n"
        "from winnow.study.verdict import judge_claims\n"
        "noise = [0.0, 0.1, 0.3, 0.05, 0.2]\n"
        f"a = {{i: {effect} + x for i, x in enumerate(noise)}}\n"
        "o = Observations({'a': a, 'b': dict(enumerate(noise[::-1]))}, 'm')\n"
        "found = judge_claims([parse_claim('h', 'a better-than b on m smallest 0.1')], o, None, (3, 5, 8))[0]\n"
        "print(found.status, [m for m in ('torch', 'scipy.stats', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{status} {loaded}\n"

"""The same comparison in several studies: found by what was run, whatever it is called, and judged as it stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.study.planned import made_up, run

from winnow.study.agreement import SameComparison, same_comparisons
from winnow.study.compare import Comparison, compare

TEXT = """\
id = "{id}"
seeds = [0, 1, 2, 3]
looks = [4]
{more}
base.train = {{ steps = {steps}, lr = 0.01, clip = {clip}, micro_batch = {split} }}
arms.{control} = {{}}
arms.{arm} = {{ model.width = 2 }}
control = "{control}"
claims.h = "{claim}"
"""


def study(
    folder: Path,
    effect: float,
    claim: str = "wide better-than control on val/ce smallest 0.02",
    *,
    arm: str = "wide",
    control: str = "control",
    steps: int = 10,
    clip: float = 1.0,
    split: int = 4,
    more: str = "",
    spread: float = 0.001,
) -> tuple[str, Comparison]:
    """A study of one claim, in a file of its own, whose first arm is `effect` above the control at every seed."""
    folder.mkdir()
    text = TEXT.format(
        id=folder.name, steps=steps, clip=clip, split=split, control=control, arm=arm, claim=claim, more=more
    )  # fmt: skip
    found, store = made_up(folder, text)
    for seed in found.seeds:
        base = 2.0 + 0.01 * seed
        for name, value in ((control, base), (arm, base + effect + spread * (seed - 1.5))):
            run(found, store, name, seed, final={"val/ce": value, "val/ppl": value})
    return folder.name, compare(found, store)


def only(*found: tuple[str, Comparison]) -> SameComparison:
    same = same_comparisons(found)
    assert len(same) == 1
    return same[0]


def test_opposite_effects_contradict_whatever_the_arms_are_called(tmp_path: Path):
    one = study(tmp_path / "a", -0.1)
    other = study(tmp_path / "b", +0.1, "big worse-than plain on val/ce", arm="big", control="plain", split=2)
    assert [each.status for _, found in (one, other) for each in found.verdicts] == ["supported", "supported"]
    found = only(one, other)
    assert found.kind == "contradiction"
    assert not found.compatible
    assert [(said.one, said.other) for said in found.statements] == [("wide", "control"), ("big", "plain")]
    assert [said.effect for said in found.statements] == pytest.approx([-0.1, 0.1])


def test_the_mirror_image_of_a_claim_agrees(tmp_path: Path):
    one = study(tmp_path / "a", -0.1)
    other = study(tmp_path / "b", -0.1, "control worse-than wide on val/ce smallest 0.02")
    found = only(one, other)
    assert found.kind == "agreement"
    assert [said.effect for said in found.statements] == pytest.approx([-0.1, -0.1]), "in one direction"
    for said in found.statements:
        assert said.low is not None
        assert said.effect is not None
        assert said.high is not None
        assert said.low < said.effect < said.high


def test_another_budget_makes_it_depend_on_the_budget(tmp_path: Path):
    found = only(study(tmp_path / "a", -0.1), study(tmp_path / "b", +0.1, steps=40))
    assert found.kind == "budget"


def test_one_contradiction_at_one_budget_is_enough(tmp_path: Path):
    three = [
        study(tmp_path / name, effect, steps=steps)
        for name, effect, steps in (("a", -0.1, 10), ("b", 0.1, 40), ("c", -0.1, 40))
    ]
    assert only(*three).kind == "contradiction"


@pytest.mark.parametrize("changed", [{"clip": 2.0}, {"claim": "wide better-than control on val/ppl smallest 0.02"}])
def test_another_base_or_metric_is_another_comparison(tmp_path: Path, changed: dict):
    one = study(tmp_path / "a", -0.1)
    folder = tmp_path / "b"
    if "claim" in changed:
        changed["more"] = 'endpoint = { metric = "val/ppl" }'
    other = study(folder, 0.1, **changed)
    assert other[1].verdicts[0].status == "refuted"
    assert same_comparisons([one, other]) == ()


def test_a_budget_that_the_arms_differ_in_is_what_is_compared(tmp_path: Path):
    found = []
    for name, steps in (("a", 20), ("b", 40)):
        folder = tmp_path / name
        folder.mkdir()
        text = TEXT.format(
            id=name, steps=10, clip=1.0, split=4, control="control", arm="wide", more="",
            claim="wide better-than control on val/ce smallest 0.02",
        ).replace("model.width = 2", f"train.steps = {steps}")  # fmt: skip
        made, store = made_up(folder, text)
        for seed in made.seeds:
            run(made, store, "control", seed, 2.0 + 0.01 * seed)
            run(made, store, "wide", seed, 1.9 + 0.011 * seed)
        found.append((name, compare(made, store)))
    assert same_comparisons(found) == (), "20 steps less 10 is not 40 less 10"


def test_words_that_differ_while_one_effect_fits_are_said_to_be_compatible(tmp_path: Path):
    """Better by 0.01: more than nothing, and less than the 0.02 of interest."""
    claim = "wide better-than control on val/ce smallest 0.02"
    one = study(tmp_path / "a", -0.011, claim)
    other = study(tmp_path / "b", -0.008, claim, spread=0.0055)
    assert [each.status for _, found in (one, other) for each in found.verdicts] == ["supported", "refuted"]
    found = only(one, other)
    assert (found.kind, found.compatible) == ("contradiction", True)


def test_other_margins_are_another_proposition(tmp_path: Path):
    one = study(tmp_path / "a", -0.03, "wide better-than control on val/ce by 0.01")
    other = study(tmp_path / "b", -0.03, "wide better-than control on val/ce by 0.05")
    assert [each.status for _, found in (one, other) for each in found.verdicts] == ["supported", "refuted"]
    assert only(one, other).kind == "agreement"


def test_what_cannot_both_hold_contradicts_although_no_interval_excludes_zero(tmp_path: Path):
    one = study(tmp_path / "a", 0.0, "wide equal-to control on val/ce within 0.005", spread=0.0005)
    other = study(tmp_path / "b", -0.05, "wide better-than control on val/ce by 0.01")
    assert [each.status for _, found in (one, other) for each in found.verdicts] == ["supported", "supported"]
    assert only(one, other).kind == "contradiction"


def test_invalid_verdicts_and_arms_that_were_rewritten_say_nothing(tmp_path: Path):
    one = study(tmp_path / "a", -0.1)
    name, comparison = study(tmp_path / "b", 0.1)
    assert only(one, (name, comparison)).kind == "contradiction"
    invalid = [each.replace({"status": "invalid"}) for each in comparison.verdicts]
    assert same_comparisons([one, (name, replace(comparison, verdicts=tuple(invalid)))]) == ()
    assert same_comparisons([one, (name, replace(comparison, stale=("wide",)))]) == ()


def test_one_study_alone_is_no_repetition(tmp_path: Path):
    assert same_comparisons([study(tmp_path / "a", -0.1)]) == ()


def test_ranks_join_by_their_pairs(tmp_path: Path):
    one = study(tmp_path / "a", -0.1, "rank wide, control on val/ce smallest 0.02")
    other = study(tmp_path / "b", 0.1)
    assert only(one, other).kind == "contradiction"


def test_higher_may_be_better(tmp_path: Path):
    more = 'endpoint = { metric = "val/ce", better = "higher" }'
    one = study(tmp_path / "a", 0.03, "wide better-than control on val/ce by 0.01", more=more)
    other = study(tmp_path / "b", 0.0, "wide equal-to control on val/ce within 0.005", more=more, spread=0.0005)
    assert [each.status for _, found in (one, other) for each in found.verdicts] == ["supported", "supported"]
    assert only(one, other).kind == "contradiction"
    third = study(tmp_path / "c", 0.03, "control worse-than wide on val/ce by 0.01", more=more)
    assert only(one, third).kind == "agreement"
    fourth = study(tmp_path / "d", 0.03, "wide equal-to control on val/ce within 0.005", more=more)
    assert fourth[1].verdicts[0].status == "refuted"
    assert only(one, fourth).kind == "agreement", "more than 0.01, and not within 0.005"

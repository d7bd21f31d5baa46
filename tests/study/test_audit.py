"""Every rule of the audit, planted; and a clean study, on which it is silent."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.study.studies import TEXT, small

from winnow.errors import InputError
from winnow.study.audit import audit, different_settings, refuse
from winnow.study.plan import load_plan, save_plan
from winnow.study.resolve import resolve
from winnow.study.spec import load_study

SAME = 'same = { model.norm = { kind = "rmsnorm" } }'
H2 = 'h2 = "same better-than control on val/ce smallest 0.004"'


def test_a_clean_study_yields_no_finding(tmp_path: Path):
    study, _ = small(tmp_path)
    assert audit(study, resolve(study).plan) == ()


PLANTED = [
    # (rule, severity, what is replaced, by what, line, claims made invalid)
    ("equal-arms", "invalid", SAME, "same = {}", 17, ("h2",)),
    ("equal-arms", "warning", SAME, f"{SAME}\nspare = {{ train.lr = 0.004 }}", 18, ()),
    ("evaluation-overridden", "invalid", SAME, "same = { evaluation.every = 2 }", 17, ()),
    ("evaluation-overridden", "invalid", SAME, "same = { task.context = 32 }", 17, ()),
    ("evaluation-overridden", "invalid", SAME, "same = { task.validation_fraction = 0.2 }", 17, ()),
    ("name-collision", "invalid", SAME, f"{SAME}\nSame = {{ train.lr = 0.001 }}", 18, ()),
    ("name-collision", "invalid", H2, H2 + "\n" + H2.replace("h2", "H2"), 22, ()),
    ("warmup-outlasts-run", "warning", "warmup = 2", "warmup = 6", 5, ()),
    ("no-control", "warning", 'id = "small"', 'id = "small"\ncontrol = "contrl"', 2, ()),
    ("one-seed", "warning", "seeds = [0, 1, 2, 3, 4]\nlooks = [3, 5]", "seeds = [0]", 2, ()),
    ("no-smallest", "warning", "control on val/ce smallest 0.004", "control on val/ce", 21, ()),
    ("no-claims", "notice", TEXT[TEXT.index("[claims]") :], "", None, ()),
    ("several-settings", "notice", SAME, SAME.replace("{ model", "{ train.lr = 0.001, model", 1), 21, ()),
    ("unequal-parameters", "notice", SAME, "same = { model.d_ff = 100 }", 21, ()),
    ("unused-seeds", "notice", "looks = [3, 5]", "looks = [3]", 3, ()),
    ("repeated-data", "notice", "steps = 6", "steps = 60000", 4, ()),
    ("lone-pair", "notice", f"{SAME}\n\n[claims]", "\n[claims]", 14, ()),
    ("not-comparable", "invalid", SAME, 'same = { task.tokenizer = { kind = "bpe", vocab_size = 300 } }', 21, ("h2",)),
]


@pytest.mark.parametrize(("rule", "severity", "old", "new", "line", "claims"), PLANTED)
def test_a_planted_defect_is_found(
    tmp_path: Path, rule: str, severity: str, old: str, new: str, line: int | None, claims: tuple[str, ...]
):
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    if rule == "lone-pair":
        text = text.replace(H2, "")
    study, _ = small(tmp_path, text)
    found = [item for item in audit(study, resolve(study).plan) if item.finding.rule == rule]
    assert found, "the rule is silent"
    assert {item.finding.severity for item in found} == {severity}
    where = str(tmp_path / "small.toml") + ("" if line is None else f":{line}")
    assert found[0].finding.where == where
    assert {claim for item in found for claim in item.claims} == set(claims)
    if severity == "invalid":
        with pytest.raises(InputError, match=rule):
            refuse(study, tuple(found))
    else:
        refuse(study, tuple(found))


def test_an_expected_invalid_claim_is_no_reason_to_refuse(tmp_path: Path):
    text = TEXT.replace(SAME, "same = {}").replace(
        H2, 'h2 = { claim = "same better-than control on val/ce smallest 0.004", expect = "invalid" }'
    )
    study, _ = small(tmp_path, text)
    found = audit(study, resolve(study).plan)
    assert [item.finding.rule for item in found] == ["equal-arms"]
    refuse(study, found)


def test_an_id_that_another_file_uses(tmp_path: Path):
    study, store = small(tmp_path)
    plan = resolve(study).plan
    save_plan(store, study, plan)
    assert audit(study, plan, load_plan(store, study)) == ()
    (tmp_path / "copy.toml").write_text(TEXT.replace("steps = 6", "steps = 7"))
    copy = load_study(tmp_path / "copy.toml")
    found = audit(copy, resolve(copy).plan, load_plan(store, copy))
    assert [item.finding.rule for item in found] == ["name-collision"]
    with pytest.raises(InputError, match=r"copy\.toml:1: name-collision"):
        refuse(copy, found)
    (tmp_path / "small.toml").unlink()
    assert audit(copy, resolve(copy).plan, load_plan(store, copy)) == (), "a file that was renamed keeps its study"


def test_another_kind_counts_as_one_setting():
    one = {"model": {"attention": {"kind": "softmax"}, "d": 1}, "train": {"lr": 1}}
    other = {"model": {"attention": {"kind": "selective", "protect": True}, "d": 2}, "train": {"lr": 1}}
    assert different_settings(one, other) == ("model.attention", "model.d")
    assert different_settings(one, one) == ()

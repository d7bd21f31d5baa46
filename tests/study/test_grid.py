"""Grids: axes, names, the filter, claims for each value, what is refused where, and axes along which nothing moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.study.planned import made_up, planned, run

from winnow.errors import InputError
from winnow.study.audit import audit, refuse
from winnow.study.compare import compare
from winnow.study.plan import Plan, written_digest
from winnow.study.run_table import Layout, run_table
from winnow.study.spec import Study, parse_study

TEXT = """\
id = "grid"
control = "h1_QK"
seeds = [0, 1, 2]
base.model = { d_model = 64, n_layers = 3 }
arms.plain = {}

[grid]
attn.h1 = { model.attention = { kind = "softmax", n_heads = 1 } }
attn.T = { model.attention = { kind = "linear" } }
model.letters = ["QK", "QV", "KV"]
filter = "not (attn == 'T' and letters == 'KV')"

[claims]
"{attn}-qk" = "{attn}_QK better-than {attn}_QV on val/ce smallest 0.01"
"{attn}-{letters}" = { claim = "{attn}_{letters} worse-than plain on val/ce", exploratory = true }
"{letters}" = "h1_{letters} better-than T_{letters} on val/ce smallest 0.01"
"""


def grid(text: str = "", **changes: Any) -> Study:
    return parse_study(f'id = "g"\n[grid]\n{text}' if text else TEXT, "study.toml", changes=changes)


def test_the_product_less_what_the_filter_drops():
    study = grid()
    assert list(study.arms) == ["plain", "h1_QK", "h1_QV", "h1_KV", "T_QK", "T_QV"]
    assert study.arms["T_QV"] == {"model": {"attention": {"kind": "linear"}, "letters": "QV"}}
    assert study.grid is not None
    assert study.grid.dropped == ("T_KV",)
    assert study.grid.sizes() == "2 attn x 3 letters = 6 combinations"
    assert list(study.grid.lines("attn")) == [("h1_QK", "T_QK"), ("h1_QV", "T_QV")]
    assert study.grid.label("plain", "attn") is None
    assert study.grid.plain() == {
        "axes": {"attn": ["h1", "T"], "letters": ["QK", "QV", "KV"]},
        "arms": {arm: arm.split("_") for arm in study.arms if arm != "plain"},
        "dropped": ["T_KV"],
    }


def test_a_claim_for_each_value_that_is_left():
    claims = {claim.id: claim for claim in grid().claims}
    assert list(claims) == [
        *("h1-qk", "T-qk"),
        *("h1-QK", "h1-QV", "h1-KV", "T-QK", "T-QV"),
        *("QK", "QV"),
    ]
    assert claims["T-qk"].text == "T_QK better-than T_QV on val/ce smallest 0.01"
    assert claims["T-QV"].exploratory


def test_an_arm_of_a_grid_is_the_arm_that_one_would_write():
    by_hand = 'id = "h"\nbase.model = { d_model = 64, n_layers = 3 }\n'
    by_hand += 'arms.x = { model.attention = { kind = "linear" }, model.letters = "QV" }'
    assert written_digest(grid(), "T_QV", {}) == written_digest(parse_study(by_hand), "x", {})


def test_places_are_those_of_what_is_written():
    lines = grid().lines
    assert lines.where(("arms", "T_QV")) == "study.toml:7"
    assert lines.where(("arms", "T_QV", "model", "attention", "kind")) == "study.toml:9"
    assert lines.where(("arms", "h1_QV", "model", "attention", "n_heads")) == "study.toml:8"
    assert lines.where(("arms", "T_QV", "model", "letters")) == "study.toml:10"
    assert lines.where(("arms", "plain")) == "study.toml:5"
    assert lines.where(("claims", "T-qk")) == "study.toml:14"
    assert lines.depth(("arms", "T_QV", "train")) == 2


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("train.lr = [1e-3, 3e-3]", ["lr-0.001", "lr-0.003"]),
        ("model.tied = [true, false]\ntrain.steps = [5]", ["tied-true", "tied-false"]),
        ("train.steps = [5]", ["steps-5"]),
        ("model.dilation = [[3, 5], [1, 1]]", ["dilation-3-5", "dilation-1-1"]),
        ('model.attention.kind = ["softmax", "elu+1"]', ["softmax", "elu-1"]),
        ('model.norm = [{ kind = "a", eps = 1e-5 }, { kind = "b" }]', ["a-eps-1e-05", "b"]),
        ("train.lr = [1, 2]\nlr.x = { train.steps = 3 }\nlr.y = {}", ["lr-1_x", "lr-1_y", "lr-2_x", "lr-2_y"]),
        ("graft = [[], [{ kind = 'add-heads' }]]", ["graft-none", "graft-add-heads"]),
        ("task.n = [1, 2]\nmodel.n = [3]\nevaluation.n = [4, 5]", ["n-1_n-4", "n-1_n-5", "n-2_n-4", "n-2_n-5"]),
    ],
)
def test_names_are_the_values_that_vary(text: str, names: list[str]):
    assert list(grid(text).arms) == names


def test_axes_are_told_apart_by_as_much_of_their_key_as_it_takes():
    kinds = 'model.norm.kind = ["a", "b"]\nmodel.attention.kind = ["a", "b"]\n'
    study = grid(f"{kinds}train.kind.k = [1]\nmodel.k = [2]\ntask.n = [1]")
    assert study.grid is not None
    assert [axis.name for axis in study.grid.axes] == ["norm", "attention", "model.k", "kind.k", "task.n"]


def test_a_filter_reads_settings_that_are_no_axes():
    text = "model.dilation = [[3, 5, 1], [1, 1]]\ntrain.lr = [1e-3]\nfilter = 'len(dilation) == model.n_layers'\n"
    study = parse_study(f'id = "g"\nbase.model.n_layers = 3\n[grid]\n{text}')
    assert list(study.arms) == ["dilation-3-5-1"]
    assert list(grid("model.a.b = [1]\ntrain.clip = ['off', 1.0]\nfilter = \"train.clip == 'off'\"").arms) == ["off"]


def test_settings_of_the_command_line_reach_the_grid():
    assert list(grid(**{"grid.model.letters": ["QK"], "grid.filter": "attn == 'h1'", "claims": {}}).arms) == [
        "plain",
        "h1",
    ]


def test_runs_of_other_programs():
    study = parse_study('id = "r"\nruns = "recorded"\ngrid.depth = [4, 8]\ngrid.size.small = { width = 2 }\n')
    assert study.arms == {"depth-4": {"depth": 4, "width": 2}, "depth-8": {"depth": 8, "width": 2}}


LETTERS = 'model.letters = ["QK", "QV", "KV"]'
WRONG = [
    ("attn.T = {", "'T.x' = {", 9, r'grid."T\.x"', "cannot name an axis", ""),
    ('attn.T = {', 'attn."elu+1" = {', 9, 'grid.attn."elu.1"', "not permitted", "letters"),
    ("attn.T = {", "seed.T = {", 9, "grid.seed", "cannot name an axis", "none of arm, seed"),
    (LETTERS, 'model.letters = "QK"', 10, "grid.model.letters", "one value", "base.model.letters"),
    (LETTERS, "model.letters = []", 10, "grid.model.letters", "leaves no arm", ""),
    (LETTERS, "model.letters = ['a', 'a']", 10, "grid.model.letters.1", "given twice", "drop"),
    (LETTERS, "model.letters = ['a+', 'a']", 10, "grid.model.letters.1", "both called", "axis of"),
    (LETTERS, f"model.letters = ['{'a' * 50}']", 10, "grid.model.letters.0", "short name", ""),
    (LETTERS, "mdel.letters = [1]", 10, "grid.mdel.letters", "should be a table", "'model'"),
    (LETTERS, "modl = [1]", 10, "grid.modl", "unknown key", "did you mean 'model'"),
    (LETTERS, "model.attention.kind = ['a']", 10, "grid.model.attention.kind", "both set", "one axis"),
    (LETTERS, f"model.letters = {list(range(3000))}", 7, "grid", "6,000 combinations", "4,096"),
    (LETTERS, "filtr = 'x'", 10, "grid.filtr", "unknown key", "did you mean 'filter'"),
    ("attn == 'T'", "atn == 'T'", 11, "grid.filter", "called 'atn' and no arm sets it at", "did you mean 'attn'"),
    ("attn == 'T'", "attn == 't'", 11, "grid.filter", "axis attn has no value 't' at", "'h1', 'T'"),
    ("attn == 'T'", "attn in ['T', 'x']", 11, "grid.filter", "no value 'x' at", ""),
    ("not (attn", "(attn != 'T' and attn", 11, "grid.filter", "none of 6 combinations is left", "loosen"),
    ("arms.plain", "arms.T_QK", 5, "arms.T_QK", "the grid has an arm 'T_QK' too", "rename"),
    ('"{attn}-qk"', '"qk"', 14, "claims.qk", "different axes in braces", "best-"),
    ("{attn}_QK better", "{atn}_QK better", 14, 'claims."{attn}-qk"', "different axes", ""),
    ("h1_{letters} better-than T_{letters}", "{x} better-than plain", 16, 'claims."{letters}"', "different axes", ""),
    ('"{attn}-qk" = "{attn}_QK', '"{atn}-qk" = "{atn}_QK', 14, 'claims."{atn}-qk"', "different axes", ""),
    ("better-than {attn}_QV", "better-than {attn}_QK", 14, "claims.h1-qk", "compared with itself", ""),
    ("better-than {attn}_QV", "better-than {attn}_QX", 14, "claims.h1-qk", "an arm 'h1_QX' that is not given", ""),
    ("worse-than plain", "worse-than T_KV", 15, 'claims."{attn}-{letters}"', "the filter drops every", ""),
    ('"{letters}" = "h1_{letters}', '"T-qk" = "h1_QK', 14, "claims", "two claims are called 'T-qk'", ""),
    ("[claims]", "changes.parameters = ['atn']\n[claims]", 13, "grid.changes.parameters.0", "no axis", "'attn'"),
    ("[claims]", "changes = 3\n[claims]", 13, "grid.changes", "should be a table", ""),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "key", "words", "mend"), WRONG)
def test_what_is_refused_has_its_place(old: str, new: str, line: int, key: str, words: str, mend: str):
    assert old in TEXT
    with pytest.raises(InputError) as caught:
        parse_study(TEXT.replace(old, new, 1), "study.toml")
    error = caught.value
    assert words in error.message, error
    assert mend in (error.mend or ""), error
    assert error.line == line, error
    assert (error.key or "").startswith(key.split("\\")[0].rstrip(".")[:8]), error


def test_a_claim_may_not_name_what_the_filter_drops():
    with pytest.raises(InputError, match=r"names 'T_KV', which the grid's filter drops"):
        parse_study(TEXT + 'x = "T_KV better-than plain on val/ce"\n')


# Axes along which nothing moves

SIZED = """\
id = "made-up"
seeds = [0, 1, 2]
looks = [3]
control = "a_x"
grid.model.kind_of = ["a", "b"]
grid.model.letters = ["x", "y"]
claims.h = "a_x better-than a_y on val/ce smallest 0.1"
"""


def sized(study: Study, sizes: dict[str, int]) -> Plan:
    plan = planned(study)
    arms = {
        name: arm.replace({"facts": {"parameters": sizes[name], "flops_per_token": 9, "val_digest": "v"}})
        for name, arm in plan.arms.items()
    }
    return plan.replace({"arms": arms})


def rules(study: Study, plan: Plan) -> list[str]:
    return [item.finding.rule for item in audit(study, plan)]


def test_an_axis_without_a_trace_is_a_notice(tmp_path: Path):
    study, _ = made_up(tmp_path, SIZED)
    plan = sized(study, {"a_x": 100, "a_y": 100, "b_x": 120, "b_y": 120})
    found = [item.finding for item in audit(study, plan) if item.finding.rule == "axis-without-trace"]
    assert [item.severity for item in found] == ["notice"]
    assert "axis letters (x, y)" in found[0].message
    assert "parameters 100" in found[0].message
    refuse(study, audit(study, plan))
    assert "axis-without-trace" not in rules(study, sized(study, {"a_x": 100, "a_y": 101, "b_x": 120, "b_y": 120}))


def test_a_fact_that_must_change_and_does_not_stops_the_study(tmp_path: Path):
    study, _ = made_up(tmp_path, SIZED + 'grid.changes.parameters = ["letters"]\n')
    moves = sized(study, {"a_x": 100, "a_y": 110, "b_x": 120, "b_y": 130})
    refuse(study, audit(study, moves))
    stands = sized(study, {"a_x": 100, "a_y": 100, "b_x": 120, "b_y": 130})
    with pytest.raises(InputError, match="parameters must change along letters and is 100 in a_x, a_y alike"):
        refuse(study, audit(study, stands))
    assert "axis-without-trace" not in rules(study, stands), "said once"


def test_runs_in_which_it_does_not_change_get_no_verdict(tmp_path: Path):
    study, store = made_up(tmp_path, SIZED + 'grid.changes.parameters = ["letters"]\n')
    for arm in study.arms:
        for seed in study.seeds:
            run(study, store, arm, seed)
    found = compare(study, store)
    assert found.verdicts[0].status == "invalid"
    assert "parameters must change along letters and is 1,000" in found.verdicts[0].reason
    table = run_table(found, Layout(rank=True)).text("markdown")
    assert "parameters must change along letters" in table
    assert "No ranking: parameters must change" in table


def test_runs_that_differ_show_that_an_axis_acts(tmp_path: Path):
    study, store = made_up(tmp_path, SIZED)
    for arm in study.arms:
        for seed in study.seeds:
            run(study, store, arm, seed, weights=f"{arm[-1]} {seed}", facts={"parameters": 7})
    said = [item.message for item in compare(study, store).findings if item.rule == "axis-without-trace"]
    assert len(said) == 1
    assert "axis kind_of (a, b)" in said[0], "letters made other weights, kind_of did not"


def test_equal_arms_of_a_grid_are_named_together(tmp_path: Path):
    study, _ = made_up(tmp_path, 'id = "made-up"\ngrid.train.n = [1, 2, 3]\ngrid.model.n = [1, 2]\n')
    plan = planned(study)
    arms = {name: arm.replace({"identity": {"n": name[-1]}}) for name, arm in plan.arms.items()}
    found = [item.finding for item in audit(study, plan.replace({"arms": arms})) if item.finding.rule == "equal-arms"]
    assert [item.severity for item in found] == ["warning", "warning"]
    assert found[0].message.startswith("arms n-1_n-1, n-2_n-1 and n-3_n-1 are the same experiment")


def test_a_filter_that_drops_nothing_is_said(tmp_path: Path):
    study, _ = made_up(tmp_path, SIZED + 'grid.filter = "letters != kind_of"\n')
    assert "idle-filter" in rules(study, planned(study))
    study, _ = made_up(tmp_path / "b", SIZED + "grid.filter = \"letters == 'x' or kind_of == 'a'\"\n")
    assert "idle-filter" not in rules(study, planned(study))

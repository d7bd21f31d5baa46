"""What arms mean: merging against a plain model of it, digests, and errors at the line that caused them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.study.studies import TEXT, small, write_study

from winnow.errors import InputError
from winnow.study.overlay import merge
from winnow.study.resolve import resolve
from winnow.study.spec import load_study

NAMES = st.sampled_from(["a", "b", "c", "kind", "preset"])
SETTINGS = st.recursive(
    st.integers(0, 3) | st.just("off") | st.booleans() | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(NAMES, SETTINGS, max_size=4)


def flat(table: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every table and value by path: another way to hold the same settings than the product's."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in table.items():
        found[(*path, key)] = "a table" if isinstance(value, dict) else None if value == "off" else value
        if isinstance(value, dict):
            found |= flat(value, (*path, key))
    return found


@given(TABLES, TABLES)
def test_merging_agrees_with_a_plain_model(base: dict[str, Any], arm: dict[str, Any]):
    expected = flat(base)
    for path, value in flat(arm).items():
        replaced = value != "a table" or expected.get(path) != "a table"
        table: Any = arm
        for part in path:
            table = table[part]
        if replaced or "kind" in table or "preset" in table:
            expected = {other: kept for other, kept in expected.items() if other[: len(path)] != path}
        expected[path] = value
    before = deepcopy((base, arm))
    assert flat(merge(base, arm)) == expected
    assert (base, arm) == before, "the study's own tables stay as they are"


@given(TABLES)
def test_merging_nothing_changes_nothing(base: dict[str, Any]):
    assert flat(merge(base, {})) == flat(base)
    assert merge(merge(base, {}), {}) == merge(base, {})


def test_arms_share_what_they_do_not_set(tmp_path: Path):
    study, _ = small(tmp_path)
    resolved = resolve(study)
    control, better = resolved.configs["control"], resolved.configs["better"]
    assert better.model.dump() == {**control.model.dump(), "attention": better.model.dump()["attention"]}
    assert (better.task, better.train, better.evaluation) == (control.task, control.train, control.evaluation)
    assert control.train.clip == 1.0
    plan = resolved.plan
    assert len({plan.run(arm, seed) for arm in study.arms for seed in study.seeds}) == 15
    assert plan.arms["control"].facts["parameters"] == sum(p.numel() for p in control.model.build(256, 16).parameters())
    assert plan.arms["control"].facts["tokens"] == 6 * 64
    assert plan.arms["control"].metrics["val/ce"] == "lower"


def test_off_is_none_and_another_kind_starts_anew(tmp_path: Path):
    text = TEXT.replace(
        'better = { model.attention = { kind = "selective" } }',
        'better = { train.clip = "off", model.attention = { kind = "selective" } }',
    ).replace('positions = "rotary"', 'positions = "rotary"\nattention = { kind = "selective", protect_bos = false }')
    study, _ = small(tmp_path, text)
    configs = resolve(study).configs
    assert configs["better"].train.clip is None
    assert configs["control"].model.dump()["attention"]["protect_bos"] is False
    assert configs["better"].model.dump()["attention"]["protect_bos"] is True, "a default, not the base's value"


def test_the_folder_of_the_study_is_no_part_of_the_identity(tmp_path: Path):
    plans = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        study, _ = small(tmp_path / name)
        plans.append(resolve(study).plan)
    assert plans[0].run("control", 0) == plans[1].run("control", 0)
    assert plans[0].arms["control"].config["task"]["source"] != plans[1].arms["control"].config["task"]["source"]


def test_the_text_is_part_of_the_identity(tmp_path: Path):
    study, _ = small(tmp_path)
    before = resolve(study).plan.run("control", 0)
    with (tmp_path / "corpus.txt").open("a") as corpus:
        corpus.write("\n\none more paragraph of some length, and a few words more\n" * 30)
    assert resolve(study).plan.run("control", 0) != before


WRONG = [
    ("steps = 6", "stesp = 6", 5, "base.train.stesp", "did you mean 'steps'"),
    ("steps = 6", 'steps = "6"', 5, "base.train.steps", ""),
    ("tokens_per_update = 64", "tokens_per_update = 65", 5, "base.train.tokens_per_update", "use 64 or 80"),
    ('positions = "rotary"', 'positions = "rotory"', 12, "base.model.positions", "permitted"),
    ('kind = "selective" }', 'kind = "selectiv" }', 16, "arms.better.model.attention", "did you mean 'selective'"),
    ('kind = "selective" }', 'kind = "selective", x = 1 }', 16, "arms.better.model.attention.x", "permitted"),
    ("control = {}", "control = { train.steps = 0 }", 15, "arms.control.train.steps", ""),
    ('source = "corpus.txt"', 'source = "nothing.txt"', 4, "base.task.source", ""),
    ("context = 16", "context = 16, validation_fraction = 2", 4, "base.task.validation_fraction", ""),
    ("tokens = 128", "tokens = 12800000", 6, "base.evaluation.tokens", "ask for 1 to"),
    ("d_model = 16", "d_model = 17", 8, "base.model", "multiple"),
    ("looks = [3, 5]", 'looks = [3, 5]\nendpoint.metric = "val/cr"', 4, "endpoint.metric", "did you mean 'val/ce'"),
    ("looks = [3, 5]", 'looks = [3, 5]\nendpoint.better = "higher"', 4, "endpoint.better", "lower"),
    ("looks = [3, 5]", "looks = [3, 5]\nendpoint.step = 4", 4, "endpoint.step", "multiple of evaluation.every (3)"),
    ("control on val/ce smallest 0.005", "control on val/acc", 20, "claims.h1", "permitted: val/bpb"),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "words"), WRONG)
def test_an_error_stands_where_it_was_written(tmp_path: Path, old: str, new: str, line: int, key: str, words: str):
    assert old in TEXT
    study = load_study(write_study(tmp_path, TEXT.replace(old, new, 1)))
    with pytest.raises(InputError) as caught:
        resolve(study)
    error = caught.value
    assert (error.file, error.line, error.key) == (str(tmp_path / "small.toml"), line, key)
    assert words in str(error)


DECAY = """
from typing import Literal
from winnow.attention.softmax import SoftmaxConfig

class Mine(SoftmaxConfig):
    kind: Literal["mine"] = "mine"
"""


def test_files_of_the_study_run_only_when_trusted(tmp_path: Path):
    text = 'use = ["mine.py"]\n' + TEXT.replace('kind = "selective"', 'kind = "mine"')
    study = load_study(write_study(tmp_path, text))
    with pytest.raises(InputError, match=r"small\.toml:1: use\.0: 'mine\.py' cannot be read"):
        resolve(study, trust=True)
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InputError, match="--trust"):
        resolve(study)
    (tmp_path / "mine.py").write_text(DECAY)
    plan = resolve(study, trust=True).plan
    assert plan.arms["better"].config["model"]["attention"]["kind"] == "mine"
    (tmp_path / "mine.py").write_text(DECAY + "# another byte\n")
    assert resolve(study, trust=True).plan.run("better", 0) != plan.run("better", 0)

"""Cells: base and arms give back the full tables, and what is written reads as the same values."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from winnow.notebook.cells import entries, entry, shared, toml
from winnow.study.overlay import merge

KEYS = st.sampled_from(["kind", "a", "b", "c"])
LEAVES = st.one_of(st.integers(-3, 3), st.booleans(), st.sampled_from(["x", "y"]), st.lists(st.integers(0, 2)))
TABLES = st.recursive(
    st.dictionaries(KEYS, LEAVES, max_size=3), lambda inner: st.dictionaries(KEYS, LEAVES | inner, max_size=3)
)


def sound(table: Any) -> Any:
    """A table whose kinds are texts, as those of settings are."""
    if not isinstance(table, dict):
        return table
    return {key: str(value) if key == "kind" else sound(value) for key, value in table.items()}


@given(st.lists(st.dictionaries(st.sampled_from(["task", "model"]), TABLES.map(sound)), min_size=1, max_size=4))
def test_base_and_arm_give_the_table_back(tables: list[dict[str, Any]]):
    base, rests = shared(tables)
    for table, rest in zip(tables, rests, strict=True):
        assert merge(base, rest) == table


def test_what_is_shared_is_said_once():
    tables = [{"train": {"lr": 1, "steps": steps}, "model": {"kind": "gpt"}} for steps in (1, 2)]
    base, rests = shared(tables)
    assert base == {"train": {"lr": 1}, "model": {"kind": "gpt"}}
    assert rests == [{"train": {"steps": 1}}, {"train": {"steps": 2}}]


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.one_of(st.text(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, width=64)),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_what_is_written_reads_as_the_same(table: dict[str, Any]):
    text = "\n".join(entry(key, value, "arms") for key, value in table.items())
    assert tomllib.loads(text).get("arms", {}) == table
    assert tomllib.loads(f"x = {toml(table)}")["x"] == table
    lines = [line for key, value in table.items() for line in entries(key, value, "arms")]
    assert tomllib.loads("\n".join(lines)).get("arms", {}) == table


def test_a_long_line_is_taken_apart():
    grafts = [{"kind": "add-heads", "init": "ko_zero"}, {"kind": "switch-attention", "attention": {"kind": "x" * 50}}]
    said = entries("one", {"train": {"lr": 1.0}, "graft": grafts}, "arms")
    assert said[:2] == ["arms.one.train.lr = 1.0", "arms.one.graft = ["]
    assert max(map(len, said)) <= 110
    assert tomllib.loads("\n".join(said))["arms"]["one"]["graft"] == grafts

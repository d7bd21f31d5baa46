"""Records: on disk and back without a bit lost, damage and newer versions refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.fakes import fake_provenance

from winnow.errors import InputError
from winnow.records.run import RECORD_VERSION, Finding, Label, RunRecord, Spread, parse_record, seal, unseal

FILE = Path("runs/ab/run.json")
texts = st.text(max_size=8).filter(lambda text: text not in ("NaN", "Infinity", "-Infinity"))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
findings = st.builds(
    Finding,
    rule=texts,
    severity=st.sampled_from(["notice", "warning", "invalid"]),
    message=texts,
    where=st.none() | texts,
    mend=st.none() | texts,
)
records = st.builds(
    RunRecord,
    digest=st.just("ab"),
    status=st.sampled_from(["finished", "failed", "diverged", "interrupted"]),
    label=st.builds(Label, study=texts, arm=texts),
    config=st.dictionaries(texts, plain, max_size=3),
    seed=st.integers(),
    data=texts,
    sources=st.dictionaries(texts, texts, max_size=2),
    steps_asked=st.integers(),
    steps_done=st.integers(),
    final=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
    facts=st.dictionaries(texts, st.integers() | st.floats(allow_nan=False) | texts, max_size=3),
    findings=st.lists(findings, max_size=2).map(tuple),
    provenance=st.just(fake_provenance(argv=("winnow", "run"), notes=("x",))),
    error=st.none() | st.text(),
    watched=st.booleans(),
)


def a_record(**changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "digest": "ab",
        "status": "finished",
        "label": Label(study="s", arm="a"),
        "config": {"model": {"width": 3}, "sizes": [1, 2]},
        "seed": 1,
        "data": "d",
        "steps_asked": 2,
        "steps_done": 2,
        "final": {"val/ce": 1.25},
        "facts": {"parameters": 10, "digest": "hidden"},
        "provenance": fake_provenance(),
    }
    return RunRecord(**{**fields, **changes})


@given(records)
@settings(max_examples=60, deadline=None)
def test_a_sealed_record_comes_back_equal(record: RunRecord) -> None:
    again = unseal(seal(record), FILE)
    assert again == record
    assert [type(value) for _, value in sorted(again.facts.items())] == [
        type(value) for _, value in sorted(record.facts.items())
    ]


def test_non_finite_results_come_back_and_the_file_is_valid_json() -> None:
    text = seal(a_record(final={"a": math.nan, "b": math.inf, "c": -math.inf}, facts={"loss": math.inf}))
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = unseal(text, FILE)
    assert math.isnan(again.final["a"])
    assert (again.final["b"], again.final["c"], again.facts["loss"]) == (math.inf, -math.inf, math.inf)


def test_any_changed_character_of_a_value_is_noticed() -> None:
    text = seal(a_record())
    same = unseal(text, FILE)
    for position, letter in enumerate(text):
        changed = text[:position] + ("7" if letter != "7" else "8") + text[position + 1 :]
        try:
            found = unseal(changed, FILE)
        except InputError as error:
            assert "damaged" in str(error) or "version" in str(error)  # noqa: PT017
        else:
            assert letter.isspace(), (position, letter)
            assert found == same
    for length in range(0, len(text) - 2, 11):
        with pytest.raises(InputError, match=r"run\.json: is damaged .*winnow rm ab"):
            unseal(text[:length], FILE)


@pytest.mark.parametrize("text", ["[]", "3", '{"digest": NaN, "crc": "0"}', "{}", "\x00"])
def test_what_is_no_record_is_damaged(text: str) -> None:
    with pytest.raises(InputError, match="is damaged"):
        unseal(text, FILE)


def test_a_record_of_a_newer_version_is_refused_by_name() -> None:
    newer, known = RECORD_VERSION + 1, RECORD_VERSION
    with pytest.raises(InputError, match=rf"version {newer}; this Winnow reads up to {known}; install a newer"):
        unseal(seal(a_record(version=newer)), FILE)


def test_an_older_record_has_no_spread_of_initial_values() -> None:
    fields = a_record(version=2).dump()
    del fields["initial"]
    assert parse_record(json.dumps(fields), FILE).initial == {}
    spread = {"w": Spread(std=0.02, n=12)}
    assert unseal(seal(a_record(initial=spread)), FILE).initial == spread


def test_records_are_closed_strict_and_frozen() -> None:
    with pytest.raises(ValidationError):
        a_record(stpes_done=3)
    with pytest.raises(ValidationError):
        a_record(seed="1")
    with pytest.raises(ValidationError, match="frozen"):
        a_record().seed = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_an_outcome_is_a_number_a_divergence_or_an_error() -> None:
    assert a_record().outcome("val/ce") == 1.25
    assert a_record(final={"val/ce": math.inf}).outcome("val/ce") is None
    assert a_record(status="diverged").outcome("val/ce") is None
    assert a_record(status="diverged", final={}).outcome("val/ce") is None
    with pytest.raises(KeyError):
        a_record().outcome("val/bpb")


def test_a_row_is_flat_and_nothing_hides_the_identity() -> None:
    row = a_record(findings=(Finding(rule="first-loss", severity="notice", message="m"),)).row()
    assert row["digest"] == "ab"
    assert row["val/ce"] == 1.25
    assert row["parameters"] == 10
    assert row["config.model.width"] == 3
    assert row["config.sizes"] == [1, 2]
    assert row["findings"] == "first-loss"
    assert not any(isinstance(value, dict) for value in row.values())

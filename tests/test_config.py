"""Configs: closed, immutable, and with a digest that changes when, and only when, the experiment does."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from winnow.config import (
    Config,
    Variant,
    canonical_json,
    canonical_value,
    digest,
    input_errors,
    run_digest,
    stream,
    watch_reads,
)
from winnow.errors import InputError


class Mechanism(Variant):
    """A family for these tests."""


class PlainMechanism(Mechanism):
    kind: Literal["plain"] = "plain"
    width: int = 1


class TwinMechanism(Mechanism):
    """The same fields as the plain one: only its kind tells them apart."""

    kind: Literal["twin"] = "twin"
    width: int = 1


class GatedMechanism(Mechanism):
    kind: Literal["gated"] = "gated"
    gate: float | None = None
    inner: Mechanism | None = None
    sizes: tuple[int, ...] = ()


class Experiment(Config):
    mechanism: Mechanism = PlainMechanism()
    more: tuple[Mechanism, ...] = ()
    named: dict[str, Mechanism] = Field(default_factory=dict)
    lr: float = 1e-3
    steps: int = 10
    schedule: Literal["cosine", "constant"] = "cosine"
    note: str | None = None
    flag: bool = False


numbers = st.floats(allow_nan=False, allow_infinity=False)
mechanisms: st.SearchStrategy[dict[str, Any]] = st.deferred(
    lambda: st.one_of(
        st.fixed_dictionaries({"kind": st.sampled_from(["plain", "twin"])}, optional={"width": st.integers()}),
        st.fixed_dictionaries(
            {"kind": st.just("gated")},
            optional={
                "gate": st.none() | numbers,
                "inner": st.none() | mechanisms,
                "sizes": st.lists(st.integers(), max_size=3),
            },
        ),
    )
)
experiments = st.fixed_dictionaries(
    {},
    optional={
        "mechanism": mechanisms,
        "more": st.lists(mechanisms, max_size=3),
        "named": st.dictionaries(st.text(max_size=5), mechanisms, max_size=3),
        "lr": numbers,
        "steps": st.integers(),
        "schedule": st.sampled_from(["cosine", "constant"]),
        "note": st.none() | st.text(),
        "flag": st.booleans(),
    },
)
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def shuffled(value: Any) -> Any:
    """The same data with the keys of every table in reverse order."""
    if isinstance(value, dict):
        return {key: shuffled(item) for key, item in reversed(value.items())}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


def normal(value: Any) -> Any:
    """An oracle for what makes two tables one experiment: numbers compare by value, but true is not 1."""
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    return (isinstance(value, bool), value) if isinstance(value, bool | int | float) else value


def the_error(schema: type[Config], table: Mapping[str, Any]) -> InputError:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(table)
    errors = input_errors(caught.value)
    assert len(errors) == 1, [str(error) for error in errors]
    return errors[0]


# Round trips and digests


@given(experiments)
@settings(max_examples=60, deadline=None)
def test_a_dump_makes_an_equal_config(table: dict[str, Any]) -> None:
    config = Experiment.model_validate(table)
    text = json.dumps(config.dump())
    again = Experiment.model_validate(json.loads(text))
    assert again == config
    assert again.digest() == config.digest()
    assert json.dumps(again.dump()) == text


@given(experiments)
@settings(max_examples=60, deadline=None)
def test_the_order_of_keys_is_no_part_of_the_digest(table: dict[str, Any]) -> None:
    assert Experiment.model_validate(shuffled(table)).digest() == Experiment.model_validate(table).digest()


@given(experiments, experiments)
@settings(max_examples=100, deadline=None)
def test_digests_are_equal_exactly_when_configs_are(one: dict[str, Any], two: dict[str, Any]) -> None:
    a, b = Experiment.model_validate(one), Experiment.model_validate(two)
    assert (a.digest() == b.digest()) == (normal(a.dump()) == normal(b.dump()))


@given(
    experiments, st.sampled_from(["lr", "steps", "schedule", "note", "flag", "mechanism", "more", "named"]), st.data()
)
@settings(max_examples=60, deadline=None)
def test_every_field_is_in_the_digest(table: dict[str, Any], field: str, data: st.DataObject) -> None:
    config = Experiment.model_validate(table)
    other = Experiment.model_validate({**config.dump(), field: data.draw(experiments).get(field, config.dump()[field])})
    changed = normal(other.dump()[field]) != normal(config.dump()[field])
    assert (other.digest() != config.digest()) == changed


def test_members_of_a_family_with_the_same_fields_differ() -> None:
    one = Experiment.model_validate({"mechanism": {"kind": "plain"}})
    two = Experiment.model_validate({"mechanism": {"kind": "twin"}})
    assert one.digest() != two.digest()
    assert two.dump()["mechanism"] == {"kind": "twin", "width": 1}


def test_fields_of_the_member_are_dumped_though_the_field_has_the_family_s_type() -> None:
    inner = {"kind": "gated", "gate": 0.5, "inner": {"kind": "twin", "width": 3}, "sizes": [1, 2]}
    config = Experiment.model_validate({"mechanism": inner, "more": [inner], "named": {"x": inner}})
    dumped = config.dump()
    assert dumped["mechanism"] == dumped["more"][0] == dumped["named"]["x"] == inner


def test_a_whole_float_is_the_integer() -> None:
    assert Experiment(lr=1).digest() == Experiment(lr=1.0).digest()
    assert Experiment(lr=-0.0).digest() == Experiment(lr=0).digest()
    assert Experiment(lr=1.5).digest() != Experiment(lr=1).digest()
    assert canonical_value({"a": (1.0, [2.0])}) == {"a": [1, [2]]}
    assert canonical_json(canonical_value([2.0, True])) == "[2,true]"


def test_true_is_not_one() -> None:
    assert digest({"a": True}) != digest({"a": 1})


def test_canonical_json_is_one_text() -> None:
    assert canonical_json({"b": [1, None], "a": "ü"}) == '{"a":"ü","b":[1,null]}'
    assert digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
    with pytest.raises(TypeError):
        canonical_json({"a": object()})


class Released(Config):
    width: int = 1


class Extended(Config):
    legacy: ClassVar[Mapping[str, Any]] = {"gain": 1.0, "scope": ()}
    outside_identity: ClassVar[frozenset[str]] = frozenset({"cache"})

    width: int = 1
    gain: float = 2.0
    scope: tuple[str, ...] = ("all",)
    cache: str = "here"


class Revised(Config):
    revision: ClassVar[int] = 2

    width: int = 1


def test_a_new_field_at_its_legacy_value_leaves_the_digest_alone() -> None:
    assert Extended(gain=1.0, scope=()).digest() == Released().digest()
    assert Extended(gain=1.0, scope=()).canonical() == {"width": 1}
    assert Extended(scope=()).digest() != Released().digest()
    assert Extended(gain=1.0).digest() != Released().digest()


def test_fields_outside_the_identity_are_dumped_but_not_digested() -> None:
    assert Extended(cache="there").digest() == Extended().digest()
    assert Extended(cache="there").dump()["cache"] == "there"


def test_a_revision_changes_the_digest_of_what_uses_it_only() -> None:
    assert Revised().canonical() == {"width": 1, "~revision": 2}
    assert Revised().digest() != Released().digest()
    assert "~revision" not in Released().canonical()


def test_the_form_of_the_canonical_config_is_pinned() -> None:
    """Changing this orphans every recorded run: only with a new store version."""
    config = Experiment.model_validate({"mechanism": {"kind": "gated", "gate": 2.0, "sizes": [3]}, "lr": 0.5})
    assert canonical_json(config.canonical()) == (
        '{"flag":false,"lr":0.5,"mechanism":{"gate":2,"inner":null,"kind":"gated","sizes":[3]},"more":[],"named":{},'
        '"note":null,"schedule":"cosine","steps":10}'
    )
    assert run_digest(config.canonical(), 3, "da7a", {"decay.py": "ab"}) == "561269446e1a9ece"


@given(plain_data.filter(lambda value: isinstance(value, dict)), st.integers(0, 2**31), st.text(max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_run_s_digest_depends_on_each_of_its_parts(config: dict[str, Any], seed: int, data: str) -> None:
    own = run_digest(config, seed, data, {})
    assert len(own) == 16
    assert own == run_digest(shuffled(config), seed, data, {})
    assert own != run_digest(config, seed + 1, data, {})
    assert own != run_digest(config, seed, data + "x", {})
    assert own != run_digest(config, seed, data, {"decay.py": "ab"})
    assert own != run_digest({**config, "one more": 1}, seed, data, {})


def test_digests_and_streams_are_the_same_in_every_process() -> None:
    program = (
        "from winnow.config import run_digest, stream\n"
        "print(run_digest({'b': {'y': 1.5, 'x': [1, None]}, 'a': 'ü'}, 7, 'd', {'f': 'g'}), stream(7, 'init', 'w', 3))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1")
    }
    here = run_digest({"a": "ü", "b": {"x": [1, None], "y": 1.5}}, 7, "d", {"f": "g"})
    assert answers == {f"{here} {stream(7, 'init', 'w', 3)}\n"}


@given(st.lists(st.tuples(st.integers(0, 99), st.text(max_size=3), st.text(max_size=3)), unique=True, min_size=2))
@settings(max_examples=50, deadline=None)
def test_streams_of_different_addresses_differ(addresses: list[tuple[int, str, str]]) -> None:
    keys = [stream(*address) for address in addresses]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)
    assert stream(0, "a", "bc") != stream(0, "ab", "c")
    assert stream(0, "1") != stream(0, 1)


# Closed and immutable


def test_a_config_cannot_be_changed() -> None:
    config = Experiment()
    with pytest.raises(ValidationError, match="frozen"):
        config.lr = 2.0  # pyright: ignore[reportAttributeAccessIssue]
    assert config.replace({"lr": 2.0}).lr == 2.0
    assert config.lr == 1e-3
    with pytest.raises(ValidationError):
        config.replace({"lr": "fast"})


@given(experiments)
@settings(max_examples=20, deadline=None)
def test_copies_and_pickles_keep_the_digest(table: dict[str, Any]) -> None:
    config = Experiment.model_validate(table)
    assert pickle.loads(pickle.dumps(config)).digest() == copy.deepcopy(config).digest() == config.digest()


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            {"stepz": 3},
            "stepz: unknown key 'stepz'; did you mean 'steps'? "
            "permitted: flag, lr, mechanism, more, named, note, schedule, steps",
        ),
        (
            {"mechanism": {"kind": "gated", "gaet": 1.0}},
            "mechanism.gaet: unknown key 'gaet'; did you mean 'gate'? permitted: gate, inner, kind, sizes",
        ),
        # Another member's field is not permitted, and is not offered.
        (
            {"mechanism": {"kind": "plain", "gate": 1.0}},
            "mechanism.gate: unknown key 'gate'; permitted: kind, width",
        ),
        (
            {"mechanism": {"kind": "gated", "inner": {"kind": "twin", "wdth": 1}}},
            "mechanism.inner.wdth: unknown key 'wdth'; did you mean 'width'? permitted: kind, width",
        ),
        (
            {"more": [{"kind": "plain"}, {"kind": "plain", "wdth": 1}]},
            "more.1.wdth: unknown key 'wdth'; did you mean 'width'? permitted: kind, width",
        ),
        (
            {"named": {"x": {"kind": "plain", "wdth": 1}}},
            "named.x.wdth: unknown key 'wdth'; did you mean 'width'? permitted: kind, width",
        ),
        ({"mechanism": {"kind": "plian"}}, "mechanism: kind 'plian' is unknown; did you mean 'plain'? permitted: "),
        ({"mechanism": {}}, "mechanism: no kind is given; permitted: gated, plain, twin"),
        ({"mechanism": "plain"}, "mechanism: 'plain' should be a table with a kind"),
        ({"schedule": "cosin"}, "schedule: 'cosin' is not permitted; permitted: 'cosine' or 'constant'"),
        ({"steps": 3.5}, "steps: 3.5 should be a valid integer"),
        ({"steps": "3"}, "steps: '3' should be a valid integer"),
        ({"flag": 1}, "flag: 1 should be a valid boolean"),
        ({"lr": float("nan")}, "lr: nan should be a finite number"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_permitted(table: dict[str, Any], text: str) -> None:
    assert str(the_error(Experiment, table)).startswith(text)


class Needy(Config):
    depth: int
    inner: Released = Released()


def test_missing_keys_and_wrong_tables_are_named() -> None:
    assert str(the_error(Needy, {})) == "depth: is missing; give it a value"
    assert str(the_error(Needy, {"depth": 1, "inner": 3})) == "inner: 3 should be a table"


class Preset(Config):
    depth: int
    width: int

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("preset") == "mini":
            return {"depth": 2, "width": 3, **{key: item for key, item in value.items() if key != "preset"}}
        return value

    @model_validator(mode="after")
    def _agree(self) -> Preset:
        if self.depth == 13:
            raise InputError("depth 13 is unlucky", key="depth", mend="take 12")
        return self


def test_a_config_may_expand_keys_of_its_own_before_they_are_checked() -> None:
    assert Preset.model_validate({"preset": "mini", "width": 5}) == Preset(depth=2, width=5)
    assert str(the_error(Preset, {"preset": "maxi", "depth": 1, "width": 1})).startswith("preset: unknown key")


def test_an_input_error_inside_a_config_keeps_its_key_and_mend() -> None:
    assert str(the_error(Preset, {"depth": 13, "width": 1})) == "depth: depth 13 is unlucky; take 12"


# Variants


def test_a_kind_is_defined_once() -> None:
    class Shapes(Variant):
        pass

    class Round(Shapes):
        kind: Literal["round"] = "round"

    assert Shapes.members == {"round": Round}
    with pytest.raises(ValueError, match="kind 'round' is defined by"):

        class AlsoRound(Shapes):
            kind: Literal["round"] = "round"


def test_an_abstract_step_of_a_family_is_no_member() -> None:
    class Tools(Variant):
        pass

    class Sharp(Tools):
        edge: int = 1

    class Knife(Sharp):
        kind: Literal["knife"] = "knife"

    assert Tools.members == {"knife": Knife}
    assert Tools.model_validate({"kind": "knife", "edge": 2}) == Knife(edge=2)


def test_a_member_given_whole_is_kept() -> None:
    member = GatedMechanism(gate=0.5)
    assert Experiment(mechanism=member).mechanism is member
    assert Mechanism.model_validate({"kind": "gated", "gate": 0.5}) == member


# Reads and walks


def test_reads_are_seen_and_dumps_and_digests_are_none() -> None:
    config = Experiment.model_validate({"mechanism": {"kind": "gated"}, "named": {"x": {"kind": "plain"}}})
    gated = config.mechanism
    with watch_reads() as seen:
        config.dump()
        config.digest()
        config.replace({"lr": 3.0})
        assert config == Experiment.model_validate(config.dump())
        repr(config)
        pickle.dumps(config)
        assert [path for path, _ in config.walk()] == ["", "mechanism", "named.x"]
        assert not seen
        assert config.steps == 10
        assert isinstance(gated, GatedMechanism)
        assert gated.gate is None
    assert seen == {(id(config), "steps"), (id(gated), "gate")}
    before = set(seen)
    assert config.lr == 1e-3
    assert seen == before, "reads after the block do not count"


def _read_and_fail(config: Experiment) -> None:
    raise InputError(f"lr is {config.lr}")


def test_watches_nest_and_end_after_an_error() -> None:
    config = Experiment()
    with watch_reads() as outer:
        with pytest.raises(InputError), watch_reads() as inner:
            _read_and_fail(config)
        assert inner == {(id(config), "lr")}
        assert config.steps
    assert outer == {(id(config), "steps")}


def test_walk_finds_configs_in_tables_and_lists() -> None:
    config = Experiment.model_validate(
        {
            "mechanism": {"kind": "gated", "inner": {"kind": "plain"}},
            "more": [{"kind": "plain"}, {"kind": "gated", "inner": {"kind": "twin"}}],
            "named": {"x": {"kind": "plain"}},
        }
    )
    assert [path for path, _ in config.walk()] == [
        "",
        "mechanism",
        "mechanism.inner",
        "more.0",
        "more.1",
        "more.1.inner",
        "named.x",
    ]

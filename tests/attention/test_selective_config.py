"""Configs of the family: identity, presets of the source's option values, what is refused and how it is said."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.attention.variants import VARIANTS, protect, selective

from winnow.attention import AttentionConfig, SelectiveConfig
from winnow.attention.selection import grouped
from winnow.attention.selective_presets import PRESETS
from winnow.config import input_errors
from winnow.errors import InputError
from winnow.models import ModelConfig


def test_runs_of_the_first_release_keep_their_identity() -> None:
    """Digests of SelectiveConfig() and SelectiveConfig(protect_bos=False) as version 0.1.0 computed them."""
    assert SelectiveConfig().digest() == "60da4462238a5cd09ccec2527ee9adb9b931847d224aceba27abcac0cf9cee18"
    assert SelectiveConfig().canonical() == {
        "kind": "selective",
        "protect_bos": True,
        "allow_self_masking": False,
        "selection": True,
    }


def test_every_variant_has_a_digest_of_its_own() -> None:
    assert len({selective(**table).digest() for table in VARIANTS.values()}) == len(VARIANTS)


def protecting(kind: str, dtype: str = "float32", **source: Any) -> dict[str, Any]:
    return {"accumulate": {**protect(kind, **source), "dtype": dtype}}


def summed(algorithm: str, dtype: str = "float32") -> dict[str, Any]:
    return {"accumulate": {"kind": "sum", "algorithm": algorithm, "dtype": dtype}}


def combination(init: str, bias: bool = False) -> dict[str, Any]:
    return {"scores": {"kind": "linear_combination", "init": init, "bias": bias}}


# Rows S1-40 to S1-49, S1-63 to S1-68, S1-80 to S1-84 and S1-15: what each option value of the source means.
MEANT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "true": ({}, combination("random")),
    "with_head_zero": ({}, combination("first")),
    "with_head_zero_and_bias": ({}, combination("first", bias=True)),
    "one_mask_per_head": ({"scores": {"n_heads": 12}}, {"scores": {"kind": "selectors", "n_heads": 12}}),
    "two_masks": ({}, {"scores": {"kind": "selectors", "n_heads": 2}}),
    "n_sliced_masks": ({"scores": {"n_slices": 4}}, {"scores": {"kind": "selectors", "n_slices": 4}}),
    "n_latent_masks": ({"scores": {"n": 8}}, {"scores": {"kind": "latent", "n": 8}}),
    "head_two": ({}, protecting("head", head=1)),
    "linear_combo": ({}, protecting("linear_combination", init="random")),
    "linear_combo_head_two": ({}, protecting("linear_combination", init="second")),
    "leaky_relu": (
        {"accumulate": {"source": {"slope": 0.1, "offset": -0.05}}},
        protecting("leaky", slope=0.1, offset=-0.05),
    ),
    "zero": ({}, protecting("zero")),
    "big_constant": ({}, protecting("constant", value=50.0)),
    "none_torch_cumsum": ({}, summed("library")),
    "none_custom_cumsum": ({}, summed("sequential")),
    "none_custom_cumsum_parallel": ({}, summed("tree")),
    "none_custom_cumsum_bliasson": ({}, summed("tree")),
    "selective_with_memory_penalty": ({}, {"penalty": {"epsilon": 0.1, "tau": 1.0, "form": "max"}}),
}
DOUBLE = [name for name, (_, table) in MEANT.items() if "accumulate" in table]


@pytest.mark.parametrize("name", MEANT)
def test_presets_mean_what_the_source_meant(name) -> None:
    given, meant = MEANT[name]
    assert selective(preset=name, **given) == selective(**meant)


@pytest.mark.parametrize("name", DOUBLE)
def test_double_presets_sum_in_fp64(name) -> None:
    """S1-84."""
    given, meant = MEANT[name]
    table = {"accumulate": {**meant["accumulate"], "dtype": "float64"}}
    assert selective(preset=f"{name}_fp64", **given) == selective(**table)


def test_all_presets_are_tested() -> None:
    assert set(PRESETS) == {*MEANT, *(f"{name}_fp64" for name in DOUBLE)}


def test_presets_combine_yield_to_the_table_and_leave_no_trace() -> None:
    found = selective(
        preset=["with_head_zero", "head_two_fp64"], scores={"scale": 0.1}, accumulate={"bias": -0.5}, protect_bos=False
    )
    assert found == selective(
        scores={"kind": "linear_combination", "scale": 0.1},
        accumulate={**protect("head", bias=-0.5), "dtype": "float64"},
        protect_bos=False,
    )
    assert "preset" not in found.dump()
    assert selective(preset="head_two", accumulate={"source": {"head": 3}}) == selective(
        accumulate=protect("head", head=3)
    )


def refusal(table: dict[str, Any]) -> InputError:
    with pytest.raises((ValidationError, InputError)) as caught:
        ModelConfig.model_validate(table)
    if isinstance(caught.value, InputError):
        return caught.value
    (error,) = input_errors(caught.value)
    return error


SMALL = {"d_model": 32, "n_layers": 2, "n_heads": 4}  # heads of 8
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "leak under protection": ({"gate": {"leak": 0.1}, "accumulate": protect("zero")}, "gate.leak", "plain sum"),
    "relu after damage": ({"gate": {"relu_after": True}, "accumulate": protect("zero")}, "gate.relu_after", "false"),
    "negative leak": ({"gate": {"leak": -0.1}}, "gate.leak", "greater than or equal to 0"),
    "no such head": ({"scores": {"kind": "head", "head": 4}}, "scores.head", "use 0 to 3"),
    "no such protector": ({"accumulate": protect("head", head=7)}, "accumulate.source.head", "use 0 to 3"),
    "more masks than heads": ({"scores": {"kind": "selectors", "n_heads": 5}}, "scores", "at most 4"),
    "more slices than heads": (
        {"scores": {"kind": "selectors", "n_heads": 3, "n_slices": 2}},
        "scores",
        "at most 4",
    ),
    "slices": ({"scores": {"kind": "selectors", "n_slices": 3}}, "scores.n_slices", "divisor"),
    "latent slices": ({"scores": {"kind": "latent", "n": 5}}, "scores.n", "divisor"),
    "no slices": ({"scores": {"kind": "latent", "n": 0}}, "scores.n", "greater than 0"),
    "scale of nothing": ({"scores": {"kind": "linear_combination", "scale": 0.0}}, "scores.scale", "greater than 0"),
    "penalty of nothing": ({"selection": False, "penalty": {}}, "penalty", "drop it"),
    "residual of nothing": ({"selection": False, "residual_scores": True}, "residual_scores", "drop it"),
    "zero penalty": ({"penalty": {"epsilon": 0.0}}, "penalty.epsilon", "greater than 0"),
    "short spread": ({"spread": [0, 0]}, "spread", "one mask per head"),
    "spread over nothing": ({"spread": [0, 0, 1, 0]}, "spread", "each of 0 to 0"),
    "unread mask": (
        {"scores": {"kind": "selectors", "n_heads": 2}, "spread": [1, 1, 1, 1]},
        "spread",
        "each of 0 to 1",
    ),
    # S1-66: the two options belong to this kind alone.
    "slope elsewhere": ({"accumulate": protect("head", slope=0.1)}, "accumulate.source.slope", "permitted: head"),
    "negative scale": ({"accumulate": protect("zero", scale=-1.0)}, "accumulate.scale", "greater than or equal"),
    "algorithm": ({"accumulate": {"kind": "sum", "algorithm": "fast"}}, "accumulate.algorithm", "sequential"),
    # S1-85: the thin wrapper was never a legal value.
    "custom_cumsum": ({"preset": "custom_cumsum"}, "preset", "none_torch_cumsum"),
    "unknown preset": ({"preset": "head_too"}, "preset", "head_two"),
    "two of a kind": ({"preset": ["true", "two_masks"]}, "preset", "keep one"),
    "nothing left": ({"preset": "two_masks", "scores": {"kind": "head"}}, "scores.kind", "drop one"),
    "nothing left inside": (
        {"preset": "head_two", "accumulate": {"source": {"kind": "zero"}}},
        "accumulate.source.kind",
        "drop one",
    ),
    "open preset": ({"preset": "n_sliced_masks"}, "scores.n_slices", "divisor"),
    "open leaky": ({"preset": "leaky_relu"}, "accumulate.source.slope", "slope"),
    "half open leaky": (
        {"preset": "leaky_relu", "accumulate": {"source": {"slope": 0.1}}},
        "accumulate.source.offset",
        "-0.05",
    ),
    "no table beside a preset": ({"preset": "n_sliced_masks", "scores": 3}, "scores", "a table"),
    "no name of a preset": ({"preset": 3}, "preset", "permitted"),
    "spread by name": ({"spread": "group"}, "spread", "grouped"),
    "negative spread": ({"spread": [0, 0, -1, 0]}, "spread", "counted from 0"),
    "fractions of a mask": ({"spread": [0.0, 0.0, 0.0, 0.0]}, "spread", "counted from 0"),
    "scale of zero": ({"accumulate": protect("zero", scale=2.0)}, "accumulate.scale", "drop it"),
    "backend": ({"backend": "cpu"}, "backend", "permitted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_where_it_is_written(name) -> None:
    table, key, mend = REFUSED[name]
    error = refusal({**SMALL, "attention": {"kind": "selective", **table}})
    assert error.key == f"attention.{key}" or error.key == f"attention.selective.{key}"
    assert mend in str(error)


def test_slices_of_rotary_heads_keep_pairs_together() -> None:
    table = {**SMALL, "attention": {"kind": "selective", "scores": {"kind": "latent", "n": 8}}}
    ModelConfig.model_validate(table)
    assert refusal({**table, "positions": "rotary"}).key == "attention.scores.n"


def test_a_lone_head_has_no_second() -> None:
    linear = protect("linear_combination", init="second")
    table = {"d_model": 8, "n_layers": 1, "n_heads": 1, "attention": {"kind": "selective", "accumulate": linear}}
    assert refusal(table).key == "attention.accumulate.source.init"


def test_a_lone_layer_has_none_below() -> None:
    table = {"d_model": 8, "n_layers": 1, "n_heads": 1, "attention": {"kind": "selective", "residual_scores": True}}
    assert refusal(table).key == "attention.residual_scores"


def test_building_alone_refuses_as_well() -> None:
    from tests.attention.test_contract import make

    with pytest.raises(InputError, match="use 0 to 3"):
        make(selective(scores={"kind": "head", "head": 9}))


def test_mask_to_head_map() -> None:
    """S1-50."""
    assert grouped(2, 12) == (0,) * 6 + (1,) * 6
    assert grouped(2, 13) == (0,) * 6 + (1,) * 6 + (0,)
    assert grouped(5, 12) == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 1)
    assert grouped(12, 12) == tuple(range(12))
    assert grouped(1, 3) == (0, 0, 0)


def test_explicit_spread_equals_grouped() -> None:
    from tests.attention.test_contract import inputs, make

    from winnow.attention import MixerState

    masks = {"kind": "selectors", "n_heads": 3}
    a = make(selective(scores=masks))(inputs(), MixerState()).y
    assert (a == make(selective(scores=masks, spread=[0, 1, 2, 0]))(inputs(), MixerState()).y).all()
    assert (a != make(selective(scores=masks, spread=[0, 1, 2, 1]))(inputs(), MixerState()).y).any()


def test_kinds_are_known_by_their_family() -> None:
    assert AttentionConfig.members["selective"] is SelectiveConfig

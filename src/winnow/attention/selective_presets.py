"""Option values of the program behind the first published notebooks on this family, as tables of SelectiveConfig.

`preset = "head_two_fp64"`, or several: `preset = ["with_head_zero", "head_two"]`. What a preset says, the table's own
fields override, nested tables field by field, but for their kind. A preset is only a short way to write a table: it
leaves no trace.

Options that were flags or numbers there are fields here: docs/selective.md lists them all. A value means what its
notebook meant by it; where that program did something else, the definition is built (docs/selective.md, "Traps").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from winnow.errors import InputError, nearest

Table = Mapping[str, Any]


def _protect(source: Table) -> Table:
    return {"accumulate": {"kind": "protect", "source": source}}


def _sum(algorithm: str) -> Table:
    return {"accumulate": {"kind": "sum", "algorithm": algorithm}}


def _combination(init: str, *, bias: bool = False) -> Table:
    return {"scores": {"kind": "linear_combination", "init": init, "bias": bias}}


_SCORES: Mapping[str, Table] = {
    "none": {},  # S1-40, S1-80: head 0 selects, the plain sum
    "true": _combination("random"),  # S1-41
    "with_head_zero": _combination("first"),  # S1-42
    "with_head_zero_and_bias": _combination("first", bias=True),  # S1-43
    "one_mask_per_head": {"scores": {"kind": "selectors"}},  # S1-46; as many as there are heads
    "two_masks": {"scores": {"kind": "selectors", "n_heads": 2}},  # S1-47
    "n_sliced_masks": {"scores": {"kind": "selectors"}},  # S1-48
    "n_latent_masks": {"scores": {"kind": "latent"}},  # S1-49
}
_PROTECTION: Mapping[str, Table] = {
    "head_two": _protect({"kind": "head", "head": 1}),  # S1-63
    "linear_combo": _protect({"kind": "linear_combination", "init": "random"}),  # S1-64
    "linear_combo_head_two": _protect({"kind": "linear_combination", "init": "second"}),  # S1-65
    "leaky_relu": _protect({"kind": "leaky"}),  # S1-66
    "zero": _protect({"kind": "zero"}),  # S1-67
    "big_constant": _protect({"kind": "constant", "value": 50.0}),  # S1-68
    "none_torch_cumsum": _sum("library"),  # S1-80
    "none_custom_cumsum": _sum("sequential"),  # S1-81
    "none_custom_cumsum_parallel": _sum("tree"),  # S1-82
    "none_custom_cumsum_bliasson": _sum("tree"),  # S1-83
}
_DOUBLE = "_fp64"

PRESETS: Mapping[str, Table] = {
    **_SCORES,
    **_PROTECTION,
    # S1-84: the same, summed in fp64
    **{
        name + _DOUBLE: {"accumulate": {**table["accumulate"], "dtype": "float64"}}
        for name, table in _PROTECTION.items()
    },
    "selective_with_memory_penalty": {"penalty": {}},  # S1-15
}

NEEDS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "one_mask_per_head": ("scores", ("n_heads",), "as many as the model has heads"),
    "n_sliced_masks": ("scores", ("n_slices",), "a divisor of the head's width"),
    "n_latent_masks": ("scores", ("n",), "a divisor of the head's width"),
    "leaky_relu": ("accumulate.source", ("slope", "offset"), "slope = 0.1 and offset = -0.05, the source's values"),
}
"""Presets that mean nothing without values: table, fields, and what they should be."""

REFUSED: Mapping[str, str] = {
    "custom_cumsum": "was never a legal value: it named a wrapper of the library's sum, which adds nothing",
}


def expand(table: dict[str, Any]) -> dict[str, Any]:
    """A table of SelectiveConfig with its `preset` replaced by the presets' values, which the table's own override.

    Raises InputError for an unknown preset, for two that set the same part, for one whose value is missing or whose
    part the table makes of another kind, so that nothing of it would be left.
    """
    if "preset" not in table:
        return table
    given = table["preset"]
    own = {key: value for key, value in table.items() if key != "preset"}
    merged: dict[str, Any] = {}
    for name in cast("list[Any]", list(given) if isinstance(given, list | tuple) else [given]):
        if not isinstance(name, str) or name not in PRESETS:
            reason = REFUSED.get(name) if isinstance(name, str) else None
            mend = 'use "none_torch_cumsum" or "none_custom_cumsum"' if reason else nearest(str(name), PRESETS)
            raise InputError(f"{name!r} {reason or 'is unknown'}", key="preset", mend=mend)
        twice = sorted(merged.keys() & PRESETS[name].keys())
        if twice:
            raise InputError(f"two presets set {twice[0]}", key="preset", mend="keep one of them")
        merged.update(PRESETS[name])
        if name.removesuffix(_DOUBLE) in NEEDS:
            place, fields, what = NEEDS[name.removesuffix(_DOUBLE)]
            for field in _missing(own, place, fields):
                raise InputError(f"preset {name} leaves this open", key=f"{place}.{field}", mend=f"give {what}")
    return _overridden(merged, own)


def _missing(own: Mapping[str, Any], place: str, fields: tuple[str, ...]) -> list[str]:
    """Of `fields`, those that the table at `place` does not give. What is no table is refused by the config later."""
    table: Any = own
    for part in place.split("."):
        table = cast("Mapping[str, Any]", table).get(part, {})
        if not isinstance(table, Mapping):
            return []
    return [field for field in fields if field not in table]


def _overridden(table: Mapping[str, Any], own: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """`own` over `table`, tables field by field."""
    found = dict(table)
    for key, value in own.items():
        found[key] = value
        if isinstance(value, Mapping) and isinstance(found_below := table.get(key), Mapping):
            inner, below = cast("Mapping[str, Any]", value), cast("Mapping[str, Any]", found_below)
            if inner.get("kind", below.get("kind")) != below.get("kind"):
                what = f"the preset says {below['kind']!r} and the table {inner['kind']!r}"
                raise InputError(what, key=f"{place}{key}.kind", mend="drop one of them")
            found[key] = _overridden(below, inner, f"{place}{key}.")
    return found

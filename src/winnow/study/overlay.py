"""How one table of settings is laid over another. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

OFF: Final = "off"
"""How a study writes None."""


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` laid over `base`; a table that sets `kind` or `preset` replaces the one it stands over."""
    merged = {key: _value(value) for key, value in base.items()}
    for key, value in override.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, dict) and not {"kind", "preset"} & value.keys():
            merged[key] = merge(cast(dict[str, Any], below), cast(Mapping[str, Any], value))
        else:
            merged[key] = _value(value)
    return merged


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(item) if isinstance(item, Mapping) else item for item in cast(list[Any], value)]
    if isinstance(value, Mapping):
        return {key: _value(item) for key, item in cast(Mapping[str, Any], value).items()}
    return None if value == OFF else value

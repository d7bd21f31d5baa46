"""Named sizes. A preset is only a short way to write a table: it is expanded before validation and leaves no trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.errors import InputError, nearest

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # 2 layers x 64: seconds on a laptop; tests and first looks.
    "tiny": {"kind": "gpt", "d_model": 64, "n_layers": 2, "n_heads": 4},
    # 4 layers x 256: minutes on a laptop, for contexts of about 256 tokens.
    "mini": {"kind": "gpt", "d_model": 256, "n_layers": 4, "n_heads": 4},
    # The smallest released GPT-2: 124,439,808 parameters with its vocabulary of 50,257 (Radford et al. 2019).
    "gpt2-124m": {"kind": "gpt", "d_model": 768, "n_layers": 12, "n_heads": 12, "max_seq_len": 1024},
}


def expand(table: dict[str, Any]) -> dict[str, Any]:
    """A model table with its `preset` replaced by the preset's values, which the table's own override.

    Raises InputError for an unknown preset.
    """
    if "preset" not in table:
        return {"kind": "gpt", **table}
    name = table["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown", mend=nearest(str(name), PRESETS))
    return {**PRESETS[name], **{key: value for key, value in table.items() if key != "preset"}}

"""Named values of `train` and `evaluation`. A preset is only a short way to write a table: it leaves no trace.

`as_published` is how the notebook "Very Selective Copying" trained and measured on `programs`, so that its
numbers can be laid beside ours:

    train        1,000,000 texts in batches of 64, 23 positions each; AdamW with its library's defaults, no clipping; a
                 cosine from 5e-4 to 0. Its log shows a warm-up that was never applied: the preset has none.
    evaluation   metrics are plain means of the means of batches of 64 (the last of 10,000 texts holds 16), each padded
                 to its own longest text; training errors are means of the last whole window of 1,000 texts or more
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from winnow.errors import InputError, nearest

Presets = Mapping[str, Mapping[str, Any]]

TRAIN: Presets = {
    "as_published": {
        "steps": 15625,
        "tokens_per_update": 64 * 23,
        "lr": 5e-4,
        "schedule": "cosine",
        "warmup": 0,
        "min_lr_fraction": 0.0,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "decay_on": "all",
        "clip": None,
    }
}
EVALUATION: Presets = {"as_published": {"batch_means": 64, "train_window": 1000}}


def expand(table: dict[str, Any], presets: Presets) -> dict[str, Any]:
    """A table with its `preset` replaced by the preset's values, which the table's own override.

    Raises InputError for an unknown preset.
    """
    if "preset" not in table:
        return table
    name = table["preset"]
    if not isinstance(name, str) or name not in presets:
        raise InputError(f"preset {name!r} is unknown", key="preset", mend=nearest(str(name), presets))
    return {**presets[name], **{key: value for key, value in table.items() if key != "preset"}}

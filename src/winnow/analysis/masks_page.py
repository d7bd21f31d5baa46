"""What `winnow.analysis.masks` found, as one HTML page that works offline.

Nothing is fetched and nothing but the page's own script can run: a policy in the page allows one script and one style
by their SHA-256. Everything that comes from a run or a text is data in JSON, which the script only ever writes as text.

Numbers travel as bfloat16, the lower triangle row by row, in base64: within 0.4 % of the exact ones, at any size. That
is what tooltips with two digits need, at 2.7 bytes a number.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from winnow.analysis.masks import Layer, Matrix, View
from winnow.errors import InputError

LIMIT = 64_000_000
"""Bytes of numbers in a page: 12 layers of 12 heads at 512 tokens."""
BYTES = 8 / 3
"""Of a number: 2, in base64."""


def page(views: Sequence[View]) -> str:
    """The page of one run, or of two on the same tokens. ASCII, so that it reads the same in any encoding.

    Raises InputError where the runs cut the text into different tokens.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    assert 1 <= len(views) <= 2
    same_tokens(views)
    folder = files("winnow.analysis") / "pages"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("masks.css", "masks.js"))
    environment = Environment(
        loader=PackageLoader("winnow.analysis", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("masks.html").render(
        title=" and ".join(view.name for view in views),
        views=views,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(_json(_table(views))),
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def same_tokens(views: Sequence[View]) -> None:
    """Raises InputError where two runs do not read the same tokens: nothing could be selected in both."""
    first, last = views[0], views[-1]
    if first.tokens != last.tokens:
        lengths = f"{len(first.tokens)} and {len(last.tokens)}"
        raise InputError(
            f"{first.name} and {last.name} cut the text into different tokens, {lengths} of them",
            mend="give two runs with the same tokenizer, or make a page of each",
        )


def fits(n_tokens: int, matrices: Sequence[int]) -> bool:
    """Whether so many tokens of layers with so many matrices (all runs together) stay below `LIMIT`."""
    return n_tokens * (n_tokens + 1) // 2 * sum(matrices) * BYTES <= LIMIT


def packed(matrix: Matrix) -> str:
    """(n, T, T) as bfloat16 in base64: little-endian, of each of the n the lower triangle, row by row."""
    rows, columns = np.tril_indices(matrix.shape[-1])
    bits = np.ascontiguousarray(matrix[:, rows, columns], dtype="<f4").view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    return base64.b64encode(rounded.astype("<u2").tobytes()).decode()


def unpacked(text: str, n_tokens: int) -> npt.NDArray[np.float32]:
    """(n, T, T) of what `packed` made: what the page's script reads."""
    half = np.frombuffer(base64.b64decode(text), dtype="<u2").astype("<u4") << 16
    rows, columns = np.tril_indices(n_tokens)
    found = np.zeros((half.size // len(rows), n_tokens, n_tokens), dtype=np.float32)
    found[:, rows, columns] = half.view("<f4").reshape(-1, len(rows))
    return found


def _table(views: Sequence[View]) -> dict[str, Any]:
    return {"tokens": views[0].tokens, "runs": [_run(view) for view in views]}


def _run(view: View) -> dict[str, Any]:
    return {
        "name": view.name,
        "layers": [_layer(layer) for layer in view.layers],
        "following": [[[text, _short(chance)] for text, chance in row] for row in view.following],
        "truth": [_short(chance) for chance in view.truth],
    }


def _layer(layer: Layer) -> dict[str, Any]:
    table: dict[str, Any] = {"index": layer.index, "heads": len(layer.weights), "spread": layer.spread}
    return {**table, **{name: packed(matrix) for name, matrix in layer.matrices.items()}}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _json(value: Any) -> str:
    """JSON that stays inside a script element whatever its strings hold, U+2028 among them."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

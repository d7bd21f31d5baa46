"""The picture of `winnow numerics`: errors against length, one line per accumulation and backend.

One row of panels for sums and one for protection; one column each for the mask, the outputs, the gradients. Both axes
are logarithmic. Not every way is drawn: fp64 and bf16 sums are shown once, and the backends by their default sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from winnow.analysis.plots import COLOURS, CONTROL_COLOUR, Line, clip, drawing_style, new_figure, png_bytes, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from winnow.analysis.numerics import Row

Series = Mapping[int, float]
"""{length: error}"""

LINES: Mapping[tuple[str, str, str], tuple[str, Line]] = {
    ("reference", "library", "float32"): ("library", (COLOURS[0], "-")),
    ("reference", "sequential", "float32"): ("sequential", (COLOURS[1], "-")),
    ("reference", "tree", "float32"): ("tree", (COLOURS[2], "-")),
    ("reference", "blocked", "float32"): ("blocked", (COLOURS[3], "-")),
    ("reference", "blocked", "float64"): ("fp64 sums", (CONTROL_COLOUR, (0, (1.5, 1.5)))),
    ("reference", "sequential", "bfloat16"): ("bf16 sums", ("#8a8a8a", "-")),
    ("chunked", "blocked", "float32"): ("chunked", (COLOURS[4], (0, (5, 2)))),
    ("cpu", "blocked", "float32"): ("cpu", (COLOURS[5], (0, (5, 2)))),
    ("triton", "blocked", "float32"): ("triton", ("#7a3fa0", (0, (5, 2)))),
}
"""What is drawn of (backend, algorithm, accumulate), under which name and how."""

FLOOR = 1e-9
"""Smaller errors, and none at all, are drawn here."""


def errors_png(rows: Sequence[Row], title: str, caption: str) -> bytes:
    """Errors of one dtype of inputs."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    with drawing_style():
        figure = new_figure(1.0 + 2.65 * max(len(kinds), 1))
        grid = figure.subplots(max(len(kinds), 1), 3, squeeze=False, gridspec_kw={"wspace": 0.24, "hspace": 0.34})
        for kind, axes in zip(kinds, grid, strict=False):
            own = [row for row in rows if row.kind == kind]
            for panel, name in zip(axes, ("mask_live", "output", "gradient"), strict=True):
                found = series(own, name)
                _draw(panel, found)
                panel.set_title(f"{_TITLES[name]}: {kind}")
                if name == "gradient":
                    _label(panel, found)
            if kind == kinds[-1]:
                for panel in axes:
                    panel.set_xlabel("tokens", fontsize=8.5)
        if not rows:
            for panel in grid[0]:
                panel.set_axis_off()
        return png_bytes(figure, title, caption, "", left=0.06, right=0.885, top=0.74)


_TITLES = {"mask_live": "F, nats", "output": "outputs, relative", "gradient": "gradients, relative"}


def series(rows: Sequence[Row], name: str) -> dict[str, tuple[Line, Series]]:
    """{label: (line, {length: error})} of what is drawn."""
    found: dict[str, tuple[Line, dict[int, float]]] = {}
    for row in rows:
        drawn = LINES.get((row.way.backend, row.way.algorithm, row.way.accumulate))
        if drawn is not None:
            label, line = drawn
            value = {"mask_live": row.mask_live, "output": row.output, "gradient": row.gradient}[name]
            found.setdefault(label, (line, {}))[1][row.length] = value
    return dict(found)


def _draw(axes: Axes, found: Mapping[str, tuple[Line, Series]]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for (colour, dash), values in found.values():
        x = [length for length, value in values.items() if math.isfinite(value)]
        y = [max(values[length], FLOOR) for length in x]
        axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.7, marker="o", markersize=2.6)
    lengths = sorted({length for _, values in found.values() for length in values})
    # Every length has its tick; with many, every other one its name, the longest always.
    step = 1 if len(lengths) <= 7 else 2
    names = [str(length) if (len(lengths) - 1 - n) % step == 0 else "" for n, length in enumerate(lengths)]
    axes.set_xticks(lengths, names)
    axes.minorticks_off()


def _label(axes: Axes, found: Mapping[str, tuple[Line, Series]]) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    low, high = (math.log10(end) for end in axes.get_ylim())
    ends = [
        (math.log10(max(values[max(values)], FLOOR)), label, line[0], max(values))
        for label, (line, values) in found.items()
        if values and math.isfinite(values[max(values)])
    ]
    ends.sort(reverse=True)
    places = spread([end[0] for end in ends], (high - low) * 0.082, low, high)
    left, right = (math.log2(end) for end in axes.get_xlim())
    for (y, label, colour, x), place in zip(ends, places, strict=True):
        at = 2 ** (right + 0.05 * (right - left))
        axes.text(at, 10**place, clip(label, 16), color=colour, fontsize=8.5, va="center", ha="left")
        lead = 2 ** (right + 0.035 * (right - left))
        axes.plot([x, lead], [10**y, 10**place], color=colour, linewidth=0.7, alpha=0.6, clip_on=False)
    axes.set_xlim(2**left, 2**right)
    axes.set_ylim(10**low, 10**high)

"""`winnow.analysis.masks` as a picture for a notebook: of each layer the heat map of F, and the text coloured by what
its last token feels. A run without masks shows attention, the mean over heads, in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from winnow.analysis.masks import Layer, Matrix, View
from winnow.analysis.plots import clip, drawing_style, new_figure, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MASKS, WEIGHTS = "#D55E00", "#0072B2"
COLUMNS, LINES = 84, 14
"""Characters of text beside a heat map, line ends of its own left aside; what does not fit is left out at the front."""
FULL = 50.0
"""Nats of F that have the full colour."""
ROW = 2.2
"""Inches of height for a layer."""
FONT = "DejaVu Sans Mono"


def masks_png(views: Sequence[View], title: str) -> bytes:
    """One row of panels per run and layer. With several masks a layer shows its first."""
    rows = [(view, layer) for view in views for layer in view.layers]
    height = 0.95 + ROW * len(rows)
    with drawing_style():
        figure = new_figure(height)
        grid = figure.subplots(
            len(rows), 2, squeeze=False, gridspec_kw={"width_ratios": [1, 3.1], "wspace": 0.05, "hspace": 0.3}
        )
        for (view, layer), (left, right) in zip(rows, grid, strict=True):
            shown, colour, name = _of(layer)
            left.set_title(clip(f"{view.name}, layer {layer.index}: {name}", 90))
            _heat_map(left, shown, colour)
            _text(right, view.tokens, strengths(shown[-1], colour), colour)
        caption = (
            f"left: queries down, keys across; right: what the last token feels. Orange: F, full at {FULL:.0f} nats; "
        )
        caption += "blue: attention of a run without masks"
        return png_bytes(figure, title, caption, "", left=0.03, right=0.985, top=0.62)


def _of(layer: Layer) -> tuple[Matrix, str, str]:
    """What is drawn of a layer: (T, T) numbers, a colour and a name."""
    if layer.masks is None:
        return layer.weights.mean(0), WEIGHTS, "attention, mean over heads (no masks)"
    several = f", mask 0 of {len(layer.masks)}" if len(layer.masks) > 1 else ""
    return layer.masks[0], MASKS, f"F, nats{several}"


def strengths(values: Matrix, colour: str) -> Matrix:
    """How strongly values are coloured, 0 to 1: masks by the logarithm of 1 + F, attention by its square root."""
    if colour == WEIGHTS:
        return np.sqrt(values)
    return np.minimum(np.log1p(np.maximum(values, 0)) / np.log1p(FULL), 1)


def _heat_map(axes: Axes, values: Matrix, colour: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    T = len(values)
    shades = LinearSegmentedColormap.from_list("shades", ["white", colour])
    past = np.tril(np.ones((T, T), dtype=bool))
    axes.imshow(
        np.ma.array(strengths(values, colour), mask=~past), cmap=shades, vmin=0, vmax=1, interpolation="nearest"
    )
    axes.grid(visible=False)
    axes.set_anchor("NW")
    axes.locator_params(nbins=4, integer=True)
    axes.tick_params(labelsize=7)


def _text(axes: Axes, tokens: Sequence[str], strong: Matrix, colour: str) -> None:
    from matplotlib.patches import Rectangle

    axes.set_axis_off()
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(LINES, 0)
    pieces = placed(tokens)
    first = max(0, max((piece.line for piece in pieces), default=0) - LINES + 1)
    for piece in pieces:
        if piece.line < first:
            continue
        place = (piece.column, piece.line - first)
        axes.add_patch(
            Rectangle(place, len(piece.text), 1, facecolor=colour, alpha=0.85 * float(strong[piece.token]), linewidth=0)
        )
        bold = "bold" if piece.token == len(tokens) - 1 else "normal"
        style = {"family": FONT, "size": 7.2, "weight": bold}
        for offset, character in enumerate(_drawable(piece.text)):
            # Letter by letter, so that boxes and letters agree whatever the font's width is.
            x, y = place[0] + offset + 0.5, place[1] + 0.52
            axes.text(x, y, character, fontdict=style, va="center", ha="center", parse_math=False)


def _drawable(text: str) -> str:
    """The text with a box for every character that the font lacks."""
    known = _known()
    return "".join(character if ord(character) in known else "□" for character in text)


@lru_cache(maxsize=1)
def _known() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


class Piece(NamedTuple):
    """A part of a token on one line of the picture."""

    token: int
    line: int
    column: int
    text: str


def placed(tokens: Sequence[str]) -> list[Piece]:
    """Every piece of the text on lines of `COLUMNS` characters."""
    found: list[Piece] = []
    line = column = 0
    for n, token in enumerate(tokens):
        part = token.replace("\n", "")
        while part:
            if column == COLUMNS:
                line, column = line + 1, 0
            piece, part = part[: COLUMNS - column], part[COLUMNS - column :]
            found.append(Piece(n, line, column, piece))
            column += len(piece)
    return found

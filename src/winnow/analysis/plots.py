"""Pictures of a study: loss curves with seed bands, and paired differences with their intervals.

Plain numbers in, PNG bytes out. Equal numbers give equal bytes (own style, bundled font, no date), so a picture can
be compared and committed. Colours are Okabe and Ito's (2008), told apart by colour-blind readers; every line is
labelled where it ends. matplotlib is imported on the first call.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Band = Mapping[float, tuple[float, float]]
"""Mean and standard deviation over seeds at each number of tokens."""

Dash = str | tuple[int, tuple[float, float]]
Line = tuple[str, Dash]
"""Colour and dash of an arm's line."""

CONTROL_COLOUR = "#3b3b3b"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
"""A seventh arm takes the first colour again, dashed."""
STATUS_COLOURS = {
    "supported": "#009E73",
    "refuted": "#D55E00",
    "undecided": "#0072B2",
    "invalid": "#8a8a8a",
    "withdrawn": "#8a8a8a",
}
DPI = 160
WIDTH = 9.0
"""Inches; 1440 pixels, sharp at the width of a README column."""
HEIGHT, MARGINS = 4.3, 1.4
"""Inches: of a picture of curves, and what of it lies above and below the panels. Many arms make it higher."""
LABEL = 0.1914
"""Inches from one label to the next."""


@dataclass(frozen=True)
class Curve:
    """One arm: for each seed, the metric after so many training tokens."""

    arm: str
    seeds: Mapping[int, Mapping[float, float]]
    """{seed: {tokens: value}}; values that are not finite are left out of the picture."""
    note: str = ""
    """Said beside the arm's name, for example "1 diverged"."""


@dataclass(frozen=True)
class Contrast:
    """One comparison of two arms: the difference of every seed, and the interval that the verdict read."""

    claim: str
    """The claim's id."""
    text: str
    """What is compared, for example "selective - control"."""
    differences: Mapping[int | str, float]
    """{seed: difference}, in units of the metric."""
    effect: float | None
    low: float | None
    high: float | None
    margin: float = 0.0
    """The margin claimed; 0 = none."""
    smallest: float | None = None
    """The smallest effect of interest; None = not declared."""
    status: Literal["supported", "refuted", "undecided", "invalid", "withdrawn"] = "undecided"


class Drawn(NamedTuple):
    """A figure with its axes filled, before it is lettered and saved; to be used inside `drawing_style`."""

    figure: Figure
    caption: str
    """What its marks mean."""
    left: float = 0.055
    """Where the axes begin and end: fractions of the width, and inches under the upper edge."""
    right: float = 0.845
    top: float = 0.78


def curves_png(
    curves: Sequence[Curve],
    control: str,
    metric: str,
    unit: str,
    title: str,
    *,
    x_label: str = "training tokens",
    key: str = "",
) -> bytes:
    """`draw_curves` as a PNG with a title. key: a text that the PNG carries, by which its inputs can be told."""
    with drawing_style():
        drawn = draw_curves(curves, control, metric, unit, x_label)
        return png_bytes(drawn.figure, title, drawn.caption, key, drawn.left, drawn.right, drawn.top)


def differences_png(contrasts: Sequence[Contrast], metric: str, unit: str, title: str, *, key: str = "") -> bytes:
    """`draw_differences` as a PNG with a title. key: as in `curves_png`."""
    with drawing_style():
        drawn = draw_differences(contrasts, metric, unit)
        return png_bytes(drawn.figure, title, drawn.caption, key, drawn.left, drawn.right, drawn.top)


def draw_curves(curves: Sequence[Curve], control: str, metric: str, unit: str, x_label: str) -> Drawn:
    """Two panels: the metric against training tokens, and each arm's paired difference from the control.

    Bands are one standard deviation over seeds; an arm without a finite value is left out. Both panels begin where the
    control does, as long as something of every arm lies beyond.
    """
    bands = {curve.arm: band(list(curve.seeds.values())) for curve in curves}
    figure = new_figure(max(HEIGHT, MARGINS + LABEL * sum(map(bool, bands.values()))))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.66})
    styles = _styles([curve.arm for curve in curves], control)
    base = next((curve for curve in curves if curve.arm == control), None)
    first, last = drawn_range(bands, control)
    for curve in curves:
        _draw_band(left, bands[curve.arm], styles[curve.arm], is_control=curve.arm == control)
    _limits(left, bands, first, last)
    _label_ends(left, {curve.arm: (bands[curve.arm], _named(curve), styles[curve.arm]) for curve in curves})
    left.set_title(f"{metric} ({unit})" if unit else metric)
    differences = {} if base is None else {c.arm: band(paired(c, base)) for c in curves if c.arm != control}
    differences = {arm: found for arm, found in differences.items() if found}
    if differences:
        right.axhline(0.0, color=CONTROL_COLOUR, linewidth=1.2)
        for arm, found in differences.items():
            _draw_band(right, found, styles[arm], is_control=False)
        _limits(right, differences, first, last, around_zero=True)
        _label_ends(right, {arm: (found, arm, styles[arm]) for arm, found in differences.items()})
        right.set_title(f"difference from {control}, same seeds")
    else:
        right.set_axis_off()
    for axes in (left, right):
        _token_axis(axes, x_label)
    return Drawn(figure, f"band: ± 1 sd over {_seed_counts(curves)}")


def draw_differences(contrasts: Sequence[Contrast], metric: str, unit: str) -> Drawn:
    """One row per comparison, each on its own scale: seeds as dots, the interval as a bar, the effect as a tick.

    The shaded part is what is smaller than the smallest effect of interest.
    """
    rows = max(len(contrasts), 1)
    figure = new_figure(0.6 + 0.88 * rows)
    all_axes = figure.subplots(rows, 1, squeeze=False, gridspec_kw={"hspace": 1.05})[:, 0]
    for axes, contrast in zip(all_axes, contrasts, strict=False):
        _draw_contrast(axes, contrast)
    if not contrasts:
        all_axes[0].set_axis_off()
    caption = f"difference in {metric}{f' ({unit})' if unit else ''}; dot: one seed; bar: interval of the verdict"
    if any(contrast.smallest for contrast in contrasts):
        caption += "; shaded: smaller than of interest"
    return Drawn(figure, caption, left=0.25, right=0.9, top=0.5)


def band(seeds: Sequence[Mapping[float, float]]) -> Band:
    """Mean and standard deviation over the seeds that have a finite value, at each number of tokens."""
    found: dict[float, list[float]] = {}
    for seed in seeds:
        for tokens, value in seed.items():
            if math.isfinite(value):
                found.setdefault(tokens, []).append(value)
    return {tokens: _mean_sd(values) for tokens, values in sorted(found.items())}


def paired(curve: Curve, base: Curve) -> list[dict[float, float]]:
    """Per shared seed: the curve less the base wherever both have a value."""
    return [
        {tokens: value - base.seeds[seed][tokens] for tokens, value in series.items() if tokens in base.seeds[seed]}
        for seed, series in curve.seeds.items()
        if seed in base.seeds
    ]


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@contextmanager
def drawing_style() -> Iterator[None]:
    """Our own settings, whatever the user's matplotlibrc says."""
    from matplotlib import style

    settings = {
        "font.family": "DejaVu Sans",  # ships with matplotlib
        "font.size": 9.0,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 8.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#9a9a9a",
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.8,
        "xtick.color": "#4d4d4d",
        "ytick.color": "#4d4d4d",
        "xtick.major.size": 3.0,
        "ytick.major.size": 0.0,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "axes.labelcolor": "#4d4d4d",
        "text.color": "#1f1f1f",
    }
    with style.context(["default", settings]):
        yield


def new_figure(height: float) -> Figure:
    """An empty figure, `height` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(
    figure: Figure, title: str, caption: str, key: str, left: float = 0.055, right: float = 0.845, top: float = 0.78
) -> bytes:
    """The figure with a title and a caption, as a PNG; margins are fractions of the width, `top` in inches."""
    height = figure.get_figheight()
    figure.subplots_adjust(left=left, right=right, top=1 - top / height, bottom=0.62 / height)
    figure.text(0.012, 1 - 0.12 / height, clip(title, 110), fontsize=11, fontweight="bold", va="top", ha="left")
    figure.text(0.012, 0.10 / height, caption, fontsize=8, color="#5f5f5f", va="bottom", ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None} | ({"Inputs": key} if key else {}))
    return buffer.getvalue()


def _styles(arms: Sequence[str], control: str) -> dict[str, Line]:
    """Colour and dash of each arm; an arm keeps its own whatever happens to the others."""
    others = [arm for arm in arms if arm != control]
    found: dict[str, Line] = {control: (CONTROL_COLOUR, "-")}
    for index, arm in enumerate(others):
        found[arm] = (COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)])
    return found


def _draw_band(axes: Axes, found: Band, style: Line, is_control: bool) -> None:
    if not found:
        return
    x = list(found)
    mean = [found[tokens][0] for tokens in x]
    low = [found[tokens][0] - found[tokens][1] for tokens in x]
    high = [found[tokens][0] + found[tokens][1] for tokens in x]
    colour, dash = style
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    marker = "o" if len(x) == 1 else None
    axes.plot(x, mean, color=colour, linestyle=dash, linewidth=2.2 if is_control else 1.7, marker=marker)


def drawn_range(bands: Mapping[str, Band], control: str) -> tuple[float, float]:
    """Tokens at which the panels begin and end: from the control's first, unless an arm would not be seen then."""
    drawn = [found for found in bands.values() if found]
    last = max((max(found) for found in drawn), default=0.0) or 1.0
    begins = min(bands.get(control) or [0.0])
    if begins >= last or any(max(found) <= begins for found in drawn):
        begins = min((min(found) for found in drawn), default=0.0)
    return (begins, last) if begins < last else (0.0, last)


def _limits(axes: Axes, bands: Mapping[str, Band], first: float, last: float, around_zero: bool = False) -> None:
    """Both axes; upwards the range of what happens after the first tenth, since a fall from step 0 would flatten the
    rest. Values of arms that go on from trained weights do not fall so, and are shown from their start."""
    axes.set_xlim(first, last)
    seen = first if first > 0 and not around_zero else first + 0.1 * (last - first)
    late = [
        value
        for found in bands.values()
        for tokens, (mean, sd) in found.items()
        if tokens >= seen
        for value in (mean - sd, mean + sd)
    ]
    if not late:
        return
    low, high = min(late), max(late)
    if around_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    space = 0.06 * (high - low) or abs(high) * 0.01 or 1e-6
    axes.set_ylim(low - space, high + space)


def _label_ends(axes: Axes, arms: Mapping[str, tuple[Band, str, Line]]) -> None:
    """Each line's name at its end, moved apart where they would overlap, with a thin lead where they were moved.

    A piece of the line itself stands before the name where colours alone do not tell the lines apart.
    """
    low, high = axes.get_ylim()
    ends: list[tuple[float, float, str, Line]] = []
    for found, name, style in arms.values():
        if found:
            x = max(found)
            ends.append((min(max(found[x][0], low), high), x, name, style))
    ends.sort(key=lambda end: end[:3], reverse=True)
    figure = axes.get_figure(root=True)
    assert figure is not None
    gap = (high - low) * LABEL / (figure.get_figheight() - MARGINS)
    places = spread([end[0] for end in ends], gap, low, high)
    first, right = axes.get_xlim()
    wide = right - first
    dashed = any(dash != "-" for _, _, _, (_, dash) in ends)
    for (y, x, name, (colour, dash)), place in zip(ends, places, strict=True):
        label = right + wide * 0.035
        axes.plot([x, right + wide * 0.028], [y, place], color=colour, linewidth=0.7, alpha=0.6, clip_on=False)
        if dashed:
            end = label + wide * 0.08
            axes.plot([label, end], [place, place], color=colour, linestyle=dash, linewidth=1.7, clip_on=False)
            label = end + wide * 0.02
        length, size = (19, 7.5) if dashed else (25, 8.5)
        axes.text(label, place, clip(name, length), color=colour, fontsize=size, va="center", ha="left")


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels at falling values: at least `gap` apart, inside [low, high] where there is room."""
    places = list(values)
    for index in range(1, len(places)):
        places[index] = min(places[index], places[index - 1] - gap)
    if places and places[-1] < low:
        places[-1] = low
        for index in range(len(places) - 2, -1, -1):
            places[index] = max(places[index], places[index + 1] + gap)
    if places and places[0] > high and len(places) * gap > high - low:
        shift = (places[0] + places[-1] - high - low) / 2
        places = [place - shift for place in places]
    return places


def _draw_contrast(axes: Axes, contrast: Contrast) -> None:
    colour = STATUS_COLOURS[contrast.status]
    values = [value for value in contrast.differences.values() if math.isfinite(value)]
    points = [*values, 0.0]
    points += [value for value in (contrast.low, contrast.high, contrast.effect) if value is not None]
    if contrast.smallest:
        points += [-contrast.smallest, contrast.smallest]
        axes.axvspan(-contrast.smallest, contrast.smallest, color="#efefef", linewidth=0)
    axes.axvline(0.0, color="#7a7a7a", linewidth=1.0)
    if contrast.margin:
        axes.axvline(contrast.margin, color="#7a7a7a", linewidth=1.0, linestyle=(0, (3, 2)))
        points.append(contrast.margin)
    if contrast.low is not None and contrast.high is not None:
        axes.plot([contrast.low, contrast.high], [0.34, 0.34], color=colour, linewidth=5, solid_capstyle="butt")
    if contrast.effect is not None:
        axes.plot([contrast.effect] * 2, [0.14, 0.54], color="#1f1f1f", linewidth=2)
    axes.scatter(values, [0.78] * len(values), s=20, color=colour, alpha=0.75, linewidths=0, zorder=3)
    reach = max(abs(point) for point in points) * 1.1 or 1e-6
    low, high = min(points), max(points)
    space = max(0.08 * (high - low), 0.02 * reach)
    axes.set_xlim(low - space, high + space)
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=7)
    axes.tick_params(axis="x", labelsize=8)
    axes.text(-0.03, 0.72, clip(contrast.claim, 26), transform=axes.transAxes, ha="right", va="center", weight="bold")
    axes.text(-0.03, 0.22, clip(contrast.text, 34), transform=axes.transAxes, ha="right", va="center", fontsize=8)
    axes.text(1.02, 0.5, contrast.status, transform=axes.transAxes, ha="left", va="center", color=colour, weight="bold")


def _token_axis(axes: Axes, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens_text(value)))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(label, fontsize=8.5)


def tokens_text(tokens: float) -> str:
    """A number of tokens as people say it: 409600 is "410 k", 1.2e9 is "1.2 B"."""
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{name}"
    return f"{tokens:.3g}"


def _named(curve: Curve) -> str:
    return f"{curve.arm} ({curve.note})" if curve.note else curve.arm


def _seed_counts(curves: Sequence[Curve]) -> str:
    counts = sorted({len(curve.seeds) for curve in curves})
    if not counts:
        return "no seeds"
    shown = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{shown} seed{'s' if counts[-1] != 1 else ''}"


def clip(text: str, length: int) -> str:
    """Text on one line, cut to `length` characters."""
    # A dollar sign would start mathematical text.
    text = " ".join(text.split()).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"

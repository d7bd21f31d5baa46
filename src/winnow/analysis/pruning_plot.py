"""The pruning curve as a picture: loss against the part of the cache that is kept, with seed bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from winnow.analysis.plots import COLOURS, DASHES, Line, band, clip, drawing_style, new_figure, png_bytes, spread


@dataclass(frozen=True)
class PruningCurve:
    """One arm under one policy."""

    arm: str
    policy: str
    seeds: Sequence[Mapping[float, float]]
    """Of each seed, the loss (nats per token) by the part that is kept."""


def pruning_png(curves: Sequence[PruningCurve], target: float | None, title: str, caption: str) -> bytes:
    """Less memory lies to the right. target: a loss to be kept up with, drawn across; None: there is none."""
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    policies = list(dict.fromkeys(curve.policy for curve in curves))
    by_arm = len(arms) > 1  # colours tell arms apart, or the policies of a lone one
    with drawing_style():
        figure = new_figure(4.3)
        axes = figure.subplots()
        ends: list[tuple[float, str, Line]] = []
        last = 0.0
        for curve in curves:
            arm, policy = arms.index(curve.arm), policies.index(curve.policy)
            line = COLOURS[(arm if by_arm else policy) % len(COLOURS)], DASHES[(policy if by_arm else 0) % len(DASHES)]
            found = band(curve.seeds)
            x = [-math.log2(keep) for keep in sorted(found, reverse=True)]
            mean, sd = zip(*(found[keep] for keep in sorted(found, reverse=True)), strict=True)
            low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=line[0], alpha=0.16 if len(curves) < 4 else 0.09, linewidth=0)
            axes.plot(x, mean, color=line[0], linestyle=line[1], linewidth=1.7, marker="o", markersize=2.6)
            names = ([curve.arm] if by_arm else []) + ([curve.policy] if len(policies) > 1 or not by_arm else [])
            ends.append((mean[-1], ", ".join(names), line))
            last = max(last, x[-1])
        if target is not None:
            axes.axhline(target, color="#3b3b3b", linewidth=1.2)
            axes.annotate("target", (0, target), (3, 3), textcoords="offset points", fontsize=8, color="#3b3b3b")
        axes.set_xlim(0, last or 1)
        keeps = sorted({keep for curve in curves for seed in curve.seeds for keep in seed}, reverse=True)
        axes.set_xticks([-math.log2(keep) for keep in keeps], [part(keep) for keep in keeps])
        axes.set_xlabel("part of the context that every layer keeps", fontsize=8.5)
        axes.set_title("validation loss (nats per token)")
        ends.sort(reverse=True, key=lambda end: end[0])
        floor, ceiling = axes.get_ylim()
        places = spread([end[0] for end in ends], (ceiling - floor) * 0.06, floor, ceiling)
        for (y, label, (colour, _)), place in zip(ends, places, strict=True):
            axes.text(last * 1.03, place, clip(label, 34), color=colour, fontsize=8.5, va="center", ha="left")
            axes.plot([last, last * 1.02], [y, place], color=colour, linewidth=0.7, alpha=0.6, clip_on=False)
        right = 0.72 if by_arm and len(policies) > 1 else 0.86
        return png_bytes(figure, title, caption, "", left=0.065, right=right)


def part(keep: float) -> str:
    """A part of the whole as people write it: 1/8, else 0.3."""
    whole = round(1 / keep)
    if whole == 1 and keep == 1:
        return "1"
    return f"1/{whole}" if abs(keep * whole - 1) < 1e-9 else f"{keep:g}"

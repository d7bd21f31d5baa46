"""A figure as an `<svg>` element that stands in an HTML page: text stays text, colours follow the page's theme.

Every colour that `plots` draws with becomes `var(--p-RRGGBB, #RRGGBB)`: a page that defines the variable for its dark
theme recolours the picture; elsewhere the colour stands. Ids are made unique by the picture's name, since several
pictures share one page. Equal figures give equal text.
"""

from __future__ import annotations

import io
import re

from winnow.analysis.plots import Drawn

_TAG = re.compile(r"<[^>]+>")
_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_OWN_ID = re.compile(r'(\bid="|url\(#|href="#)')
_UNWANTED = re.compile(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_FONT = re.compile(r"'DejaVu Sans'(?:, [^;\"]*)?")
ABOVE, BELOW = 0.32, 0.5
"""Inches over and under the axes: the page says title and caption."""


def svg_text(drawn: Drawn, name: str) -> str:
    """The element. name: unlike that of any other picture on the page; inside `drawing_style`."""
    from matplotlib import rc_context

    figure = drawn.figure
    height = figure.get_figheight()
    figure.subplots_adjust(left=drawn.left, right=drawn.right, top=1 - ABOVE / height, bottom=BELOW / height)
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    element = text.getvalue()
    element = _UNWANTED.sub("", element[element.index("<svg") :]).rstrip()
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    return _TAG.sub(lambda tag: _themed(tag[0], prefix), element)


def _themed(tag: str, prefix: str) -> str:
    """One tag; what stands between tags is somebody's text and stays as it is."""
    tag = _OWN_ID.sub(rf"\g<1>{prefix}-", tag)
    tag = _FONT.sub("var(--font, sans-serif)", tag)
    return _COLOUR.sub(lambda found: f"var(--p-{found[1]}, #{found[1]})", tag)

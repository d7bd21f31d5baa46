"""Tables as text: Markdown, CSV, LaTeX, HTML. Heads and cells are plain text; each form escapes them as it must."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

Format = Literal["markdown", "csv", "latex", "html", "json"]
FORMATS: tuple[Format, ...] = ("markdown", "csv", "latex", "html", "json")


def decimals(scale: float) -> int:
    """Decimals that show two digits of a number of this size."""
    return 4 if scale <= 0 or not math.isfinite(scale) else min(8, max(0, 1 - math.floor(math.log10(scale))))


def text_table(heads: Sequence[str], cells: Sequence[Sequence[str]], form: Format, caption: str = "") -> str:
    """A table that is meant to be read: Markdown, LaTeX or HTML."""
    if form == "html":
        return html_table(heads, cells, caption)
    return latex_table(heads, cells) if form == "latex" else markdown_table(heads, cells)


def markdown_table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers to the right."""
    lines = [heads, *cells]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[place]) for line in escaped)) for place in range(len(heads))]
    left = [place == 0 or not _numeric([line[place] for line in cells]) for place in range(len(heads))]
    text = [_padded(line, widths, left) for line in escaped]
    rule = ["-" * width if to_left else "-" * (width - 1) + ":" for width, to_left in zip(widths, left, strict=True)]
    return "\n".join([text[0], "| " + " | ".join(rule) + " |", *text[1:]]) + "\n"


def _padded(line: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    cells = (
        cell.ljust(width) if to_left else cell.rjust(width)
        for cell, width, to_left in zip(line, widths, left, strict=True)
    )
    return "| " + " | ".join(cells) + " |"


def _numeric(column: Sequence[str]) -> bool:
    return all(not cell or cell[0] in "+-0123456789[" for cell in column)


def latex_table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A booktabs table."""
    kinds = "".join("l" if place == 0 else "r" for place in range(len(heads)))
    lines = [f"\\begin{{tabular}}{{{kinds}}}", "\\toprule", _tex(heads), "\\midrule", *map(_tex, cells)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "-": "$-$",
}  # fmt: skip


def _tex(line: Sequence[str]) -> str:
    return " & ".join(_tex_cell(cell) for cell in line) + r" \\"


def _tex_cell(cell: str) -> str:
    # A hyphen is a minus only where a number follows.
    return "".join(
        char if char == "-" and not cell[place + 1 : place + 2].isdigit() else _TEX.get(char, char)
        for place, char in enumerate(cell)
    )


def noted(notes: Sequence[str], form: Format) -> str:
    """Sentences that belong under a table."""
    shapes = {"html": lambda note: f"<p>{html.escape(note)}</p>\n", "latex": lambda note: f"% {note}\n"}
    return "".join(map(shapes.get(form, lambda note: f"\n{note}\n"), notes))


def html_table(heads: Sequence[str], cells: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table for a page, columns of numbers to the right."""
    right = [place > 0 and _numeric([line[place] for line in cells]) for place in range(len(heads))]
    lines = [_html_line("th", heads, right), *(_html_line("td", line, right) for line in cells)]
    titled = [f"<caption>{html.escape(caption)}</caption>"] if caption else []
    body = ["<thead>", lines[0], "</thead>", "<tbody>", *lines[1:], "</tbody>"]
    return "\n".join(["<table>", *titled, *body, "</table>"]) + "\n"


def _html_line(tag: str, line: Sequence[str], right: Sequence[bool]) -> str:
    plain = ' style="text-align: left"' if tag == "th" else ""
    styles = (' style="text-align: right"' if to_right else plain for to_right in right)
    cells = (f"<{tag}{style}>{html.escape(cell)}</{tag}>" for cell, style in zip(line, styles, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def csv_text(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """CSV in full precision, lines ended by a line feed; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()

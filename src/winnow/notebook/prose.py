"""A notebook as parts of a page: its prose as HTML, and the places of its cells and results.

Raw HTML is never passed on: comments vanish, as they do on any page, and other tags show as text. Pictures beside the
notebook are put into the page; a picture from elsewhere becomes a link, since reading a page asks nobody for anything.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from winnow.notebook.document import Document

_COMMENT = re.compile(r"\s*<!--(?:(?!-->).)*-->\s*", re.DOTALL)
_BREAK = re.compile(r"<br */?>", re.IGNORECASE)
_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp", ".svg": "svg+xml"}
_LARGEST = 4 * 2**20
"""Bytes of a picture that is put into a page."""
_CUT = "***"
"""A thematic break: it ends whatever stands before it, a list or a paragraph, as a fence or a comment would."""


@dataclass(frozen=True)
class Prose:
    """What the author wrote, as HTML that is safe to put into a page."""

    html: str


@dataclass(frozen=True)
class Place:
    """Where the results of a study stand."""

    study: str


@dataclass(frozen=True)
class Page:
    """A notebook, read for a page."""

    title: str
    """Its first heading, which `parts` then lack; where it has none the front matter's title; else empty."""
    date: str
    tags: tuple[str, ...]
    """Both from the front matter; empty where it says nothing."""
    parts: Sequence[Prose | Place]


def page_of(document: Document) -> Page:
    """Prose and places in the order of the notebook.

    The results of a study stand where its block does; under its cell where it has none. Cells themselves are left out:
    who shows the results shows what was declared.
    """
    from markdown_it import MarkdownIt

    lines, cuts = _without_cells(document)
    front = document.front
    lines[: front.last_line] = [""] * front.last_line
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    folder = document.path.resolve().parent
    parser.add_render_rule("html_block", _raw_block)
    parser.add_render_rule("html_inline", _raw_inline)
    parser.add_render_rule("image", _picture(folder))
    parser.add_render_rule("link_open", _link)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    environment: dict[str, Any] = {}
    tokens = parser.parse("\n".join(lines), environment)
    title = front.title or ""
    if len(tokens) > 2 and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        title = _text(tokens[1])
        del tokens[:3]
    parts: list[Prose | Place] = []
    start = 0

    def close(stop: int) -> None:
        html = parser.renderer.render(tokens[start:stop], parser.options, environment)
        if html.strip():
            parts.append(Prose(html))

    for index, token in enumerate(tokens):
        if token.type == "hr" and token.level == 0 and token.map and token.map[0] in cuts:
            close(index)
            start = index + 1
            study = cuts[token.map[0]]
            if study is not None:
                parts.append(Place(study))
    close(len(tokens))
    return Page(title, front.date or "", front.tags, tuple(parts))


def _without_cells(document: Document) -> tuple[list[str], dict[int, str | None]]:
    """The notebook's lines with cells and blocks blanked, and the lines (from 0) where each was cut out.

    The value of a cut is the study whose results stand there, or None.
    """
    lines = re.split(r"\r\n|\n|\r", document.text)
    cuts: dict[int, str | None] = {}
    with_block = {block.study for block in document.blocks}
    regions = [
        (cell.opening_line, cell.last_line, None if cell.study in with_block else cell.study) for cell in document.cells
    ]
    regions += [(block.opening_line, block.closing_line, block.study) for block in document.blocks]
    for first, last, study in regions:
        lines[first - 1 : last] = [_CUT, *[""] * (last - first)]
        cuts[first - 1] = study
    return lines, cuts


def _text(token: Any) -> str:
    """What an inline token says, without markup."""
    return "".join(
        child.content for child in token.children or () if child.type in ("text", "code_inline", "softbreak")
    )


def _raw_block(renderer: Any, tokens: Any, index: int, options: Any, environment: Any) -> str:
    content = tokens[index].content
    return "" if _COMMENT.fullmatch(content) else f"<pre>{escape(content)}</pre>\n"


def _raw_inline(renderer: Any, tokens: Any, index: int, options: Any, environment: Any) -> str:
    content = tokens[index].content
    if _COMMENT.fullmatch(content):
        return ""
    return "<br>" if _BREAK.fullmatch(content) else escape(content)


def _link(renderer: Any, tokens: Any, index: int, options: Any, environment: Any) -> str:
    tokens[index].attrSet("rel", "noreferrer")
    return renderer.renderToken(tokens, index, options, environment)


def _table_open(renderer: Any, tokens: Any, index: int, options: Any, environment: Any) -> str:
    return '<div class="box" tabindex="0"><table>\n'


def _table_close(renderer: Any, tokens: Any, index: int, options: Any, environment: Any) -> str:
    return "</table></div>\n"


def _picture(folder: Path) -> Any:
    """The rule for pictures of a notebook in `folder`."""

    def rule(renderer: Any, tokens: Any, index: int, options: Any, environment: Any) -> str:
        token = tokens[index]
        source, text = str(token.attrGet("src") or ""), escape(_text(token))
        data = source if source.startswith("data:image/") else _embedded(folder, source)
        if data is not None:
            return f'<img alt="{text}" src="{escape(data)}">'
        return f'<a href="{escape(source)}" rel="noreferrer">{text or escape(source)}</a>'

    return rule


def _embedded(folder: Path, source: str) -> str | None:
    """A picture that lies in the notebook's folder or below, as a data URI; None for any other."""
    kind = _KINDS.get(Path(source).suffix.lower())
    if kind is None or "://" in source:
        return None
    try:
        path = (folder / unquote(source)).resolve()
        if not path.is_relative_to(folder) or path.stat().st_size > _LARGEST:
            return None
        data = path.read_bytes()
    except (OSError, ValueError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

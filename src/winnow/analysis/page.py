"""HTML pages in one file each: styles and pictures inside, no script, nothing from elsewhere.

Every text that comes from a study, a record or a notebook is escaped by the templates; what is markup already (pictures
drawn here, prose rendered with its HTML escaped) is passed as `Markup`. A content security policy forbids what an
oversight might let through. Equal inputs give equal bytes: no page says when it was written.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.errors import InputError
from winnow.records.files import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
MARK = '<meta name="generator" content="winnow">'
"""By this a page of ours is known: no other file is ever replaced by one."""
SYMBOLS = {"supported": "✓", "refuted": "✗", "undecided": "?", "invalid": "!", "withdrawn": "–"}
"""Told apart without colour."""
_FOLDER = Path(__file__).with_name("pages")


def render(template: str, **values: Any) -> str:
    """The page that a template of `pages/` makes of these values."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["svg"] = Markup  # of a drawing, whose texts matplotlib has escaped
    environment.globals.update(
        policy=POLICY,
        mark=Markup(MARK),
        symbols=SYMBOLS,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
    )
    return environment


def check_target(path: Path) -> None:
    """Raise InputError where a page at `path` would replace a file that is not one of ours."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{str(path)!r} is not the name of a page", key="--out", mend="give a name that ends in .html")
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise InputError("is a folder", file=path, key="--out", mend="give the name of a file in it") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path, key="--out") from None
    if start.strip() and MARK.encode() not in start:
        raise InputError("is no page of Winnow's", file=path, key="--out", mend="give another name, or move it away")


def write_page(path: Path, html: str) -> bool:
    """Write a page, whole or not at all; whether any byte has changed. Raises InputError if the disk refuses."""
    data = html.encode()
    try:
        if path.read_bytes() == data:
            return False
    except OSError:
        pass  # absent: writing says what else is wrong
    write_atomic(path, data)
    return True

"""What is asked of every page: well-formed, nothing from elsewhere, nothing that runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}
LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href"}


class Checked(HTMLParser):
    """Reads a page and fails where a tag is left open, an id occurs twice, or something would be loaded or run."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        inside = [link[1:] for link in self.links if link.startswith("#")]
        assert set(inside) <= self.ids, f"links to nowhere: {set(inside) - self.ids}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base"), tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            found = value or ""
            if name == "id":
                assert found not in self.ids, f"twice: {found}"
                self.ids.add(found)
            if name in LOADING or (name == "href" and tag != "a"):
                assert found.startswith(("data:", "#")), (tag, name, found)
            if name == "href" and tag == "a":
                assert not re.match(r"\s*(javascript|data|vbscript):", found, re.IGNORECASE), found
                self.links.append(found)
            if name == "style":
                assert "url(" not in found or "url(#" in found, found
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID
        assert self.open, f"closed but never opened: {tag}"
        assert self.open.pop() == tag, f"{tag} closes another tag, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """Everything that is read, on one line."""
        return " ".join(" ".join(self.texts).split())

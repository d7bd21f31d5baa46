"""A notebook as parts of a page: what the author wrote, in order, and nothing that runs or loads."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tests.pages import Checked

from winnow.notebook.document import Document, render_block
from winnow.notebook.prose import Page, Place, Prose, page_of

CELL = '```toml study\nid = "{0}"\narms.control = {{}}\n```\n'


def read(folder: Path, text: str) -> Page:
    path = folder / "lab.md"
    path.write_text(text)
    return page_of(Document.read(path))


def html(page: Page) -> str:
    found = "".join(part.html for part in page.parts if isinstance(part, Prose))
    Checked(found)
    return found


def order(page: Page) -> list[str]:
    return [part.study if isinstance(part, Place) else "prose" for part in page.parts]


def test_results_stand_where_their_block_does_and_under_the_cell_without_one(tmp_path: Path):
    cells = [CELL.format(name) for name in ("a", "b")]
    text = f"# A question\n\nfirst\n\n{cells[0]}\nbetween\n\n{cells[1]}\n{render_block('a', 'old')}\n\nend\n"
    page = read(tmp_path, text)
    assert page.title == "A question"
    assert order(page) == ["prose", "prose", "b", "a", "prose"]
    assert "A question" not in html(page), "the title is the page's"
    assert "old" not in html(page)
    assert "toml" not in html(page)


def test_front_matter_is_no_prose(tmp_path: Path):
    page = read(tmp_path, '---\ntitle: "Other"\ndate: 2026-01-02\ntags: [a, b c]\n---\ntext\n')
    assert (page.title, page.date, page.tags) == ("Other", "2026-01-02", ("a", "b c"))
    assert html(page) == "<p>text</p>\n"
    assert "<hr>" in html(read(tmp_path, "text\n\n---\n\nmore\n")) or "<hr />" in html(
        read(tmp_path, "a\n\n---\n\nb\n")
    )


def test_a_list_around_a_cell_is_two_lists(tmp_path: Path):
    page = read(tmp_path, f"- one\n\n{CELL.format('a')}\n- two\n")
    assert order(page) == ["prose", "a", "prose"]
    assert html(page).count("<ul>") == 2


def test_links_that_are_defined_elsewhere_are_found(tmp_path: Path):
    page = read(tmp_path, f"[one][x]\n\n{CELL.format('a')}\n[x]: https://example.org\n")
    assert 'href="https://example.org"' in html(page)


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "text <img src=x onerror=alert(1)> text",
        "<!-- --><script>alert(1)</script>",
        "<!-- a --> <b onclick=x()>",
        "text <!-- --><script>alert(1)</script> text",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](data:text/html,<script>alert(1)</script>)",
        "![x](javascript:alert(1))",
        "<svg onload=alert(1)>",
        "<div>\n<iframe src='//x'></iframe>\n</div>",
        '![a" onerror="alert(1)](x.png)',
        '![a](x.png" onerror="alert(1))',
        '<https://example.org/"onclick=alert(1)>',
        "```html\n<script>alert(1)</script>\n```",
        "| <script> |\n| --- |\n| <script>alert(1)</script> |",
        "</div></main><script>alert(1)</script>",
    ],
)
def test_nothing_of_a_notebook_runs(tmp_path: Path, hostile: str):
    found = html(read(tmp_path, hostile + "\n"))  # refuses scripts, handlers, frames, and tags that are left open
    assert "<script" not in found
    assert "<iframe" not in found


def test_comments_vanish_and_a_break_stays(tmp_path: Path):
    found = html(read(tmp_path, "a <!-- not said --> b<br>c\n\n<!--\nneither\n\nthis\n-->\n\nend\n"))
    assert "said" not in found
    assert "neither" not in found
    assert "<br>c" in found
    assert "between" in html(read(tmp_path, "<!-- one --> between <!-- two -->\n")), "only comments vanish"
    assert "end" in found


def test_pictures_beside_the_notebook_are_put_in_and_others_are_links(tmp_path: Path):
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / "a b.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (lab / "notes.txt").write_text("notes")
    text = (
        "![mine](a%20b.png) ![far](https://example.org/x.png) ![up](../secret.png) ![text](notes.txt) ![gone](gone.png)"
    )
    found = html(read(lab, text))
    assert f"data:image/png;base64,{base64.b64encode(b'picture').decode()}" in found
    assert found.count("<img") == 1
    assert '<a href="https://example.org/x.png" rel="noreferrer">far</a>' in found
    assert base64.b64encode(b"secret").decode() not in found
    (lab / "link.png").symlink_to(tmp_path / "secret.png")
    assert "<img" not in html(read(lab, "![x](link.png)"))

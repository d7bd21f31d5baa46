"""Markdown as sections of prose and fences: whatever the file, lines are right and nothing breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.notebook.document import Document
from winnow.notebook.launches import launches
from winnow.notebook.pages import Fence, Page, Prose
from winnow.notebook.statements import statements

PATH = Path("page.md")


def page(text: str) -> Page:
    return Page.parse(text.encode(), PATH)


def fences(text: str) -> list[tuple[str, int, int, bool, tuple[str, ...]]]:
    return [(f.info, f.opening_line, f.last_line, f.closed, f.lines) for f in page(text).fences()]


def test_sections_and_items_know_their_lines():
    found = page("before\n\n# One\ntext\nmore\n\n- a\n  - b\n\n> said\n\n| x |\n|---|\n| 1 |\n\n***\n\nTwo\n===\n")
    first, one, two = found.sections
    assert (first.title, first.level, first.line, first.last_line) == ("", 0, 1, 2)
    assert (one.title, one.level, one.line, one.last_line) == ("One", 1, 3, 17)
    assert (two.title, two.line) == ("Two", 18)
    kinds = [(item.kind, item.line, item.last_line, item.depth) for item in one.items if isinstance(item, Prose)]
    assert kinds == [
        ("paragraph", 4, 5, 0),
        ("item", 7, 7, 1),
        ("item", 8, 8, 2),
        ("quote", 10, 10, 1),
        ("table", 12, 14, 0),
        ("rule", 16, 16, 0),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_newlines_count_as_an_editor_counts_them(newline: str):
    text = newline.join(["a", "", "```sh", "x", "```", "", "# H", ""])
    assert fences(text) == [("sh", 3, 5, True, ("x",))]
    assert page(text).sections[1].line == 7
    assert page(text).n_lines == 7


def test_fences_as_the_page_shows_them():
    assert fences("```a\nx\n````\n") == [("a", 1, 3, True, ("x",))]
    assert next(page("```a\nx\n````\n").fences()).closing == "````"
    assert fences("````\n```\nx\n```\n````") == [("", 1, 5, True, ("```", "x", "```"))]
    assert fences("~~~ x\n```\n~~~\n") == [("x", 1, 3, True, ("```",))]
    assert fences("```\nx\n") == [("", 1, 2, False, ("x",))]
    assert fences("```") == [("", 1, 1, False, ())]
    assert fences("```\n```") == [("", 1, 2, True, ())]
    assert fences("- ```\n  x\n  ```\n") == [("", 1, 3, True, ("x",))]
    assert fences("- ```\n  x\n\nout\n")[0][1:4] == (1, 3, False)
    assert fences("```not a fence```\n") == []
    assert fences("\t```\n\tx\n") == []


def test_front_matter_is_no_heading():
    found = page("---\ntags: [a]\n---\n\n# One\n")
    assert found.front == 3
    assert [section.title for section in found.sections] == ["One"]
    assert found.sections[0].line == 5
    assert page("---\n\n# No end\n").front == 0


@pytest.mark.parametrize(
    "text",
    [
        "---\ntitle: x\n---\n\n# One\n",
        "---\n# a comment\ntitle: x\n---\n# One\n",
        "---\nauthors:\n" + "- name: me\n" * 120 + "---\n# One\n",
        "---\ndescription: |\n  a\n  ...\n---\n# One\n",
        "---\n\nprose\n\n---\n\n# One\n",
        "---\n---\n# One\n",
        "---\nonly a rule and a line of prose\n# One\n",
        "----\ntitle: x\n----\n# One\n",
    ],
)
def test_front_matter_ends_where_check_says(text: str):
    last = Document(text.encode(), PATH).front.last_line
    found = page(text)
    assert found.front == last
    assert all(section.line > last for section in found.sections)
    assert found.sections[-1].title == "One"


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"a\nb\xff\n", "page.md:2: byte 0xff is not UTF-8"), (b"a\r\nb\0c", "page.md:2: holds a NUL byte")],
)
def test_what_is_no_text_is_refused_with_its_line(data: bytes, said: str):
    with pytest.raises(InputError) as caught:
        Page.parse(data, PATH)
    assert str(caught.value).startswith(said)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        Page.read(tmp_path / "none.md")


PIECES = st.sampled_from(
    [
        "```", "````", "~~~", "```sh", "```vast:finished", "```x y", "- ", "> ", "  ", "\t", "# a", "---", "<hr>",
        "<!-- winnow:a -->", "| a |", "|---|", "Hypothesis: b", "Result: c", "Hypotheses:", '- "q"', "\\", " \\ ",
        "torchrun -m t.train --group g --log_dir r \\", "python x.py --seed 1", "'", '"', "$(", "&& ", "; ", "--lr 1",
        './r.sh 12 "a && python b.py --c 1', "\r", "\r\n", "\x0b", "\u2028", "é", "<<EOF", "EOF",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=40).map("\n".join), st.lists(PIECES, max_size=30).map("".join), st.text()))
def test_any_text_is_read_and_every_line_is_in_the_file(text: str):
    data = text.encode("utf-8", "surrogatepass")
    if b"\0" in data or b"\xed" in data:  # no text, or a surrogate alone
        data = data.replace(b"\0", b"").decode("utf-8", "replace").encode()
    found = Page.parse(data, PATH)
    last = len(found.lines)
    for section in found.sections:
        assert 1 <= section.line <= last
        for item in section.items:
            first = item.opening_line if isinstance(item, Fence) else item.line
            assert 1 <= first <= item.last_line <= last
    started = launches(found)
    for launch in started:
        for option in [*launch.options, *launch.lost]:
            assert launch.fence.opening_line < option.line <= launch.fence.last_line
    for hypothesis in statements(found, started).hypotheses:
        assert 1 <= hypothesis.line <= last

"""Front matter: title, date and tags, with the line of what is wrong; other programs' keys are none of our business."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.notebook.document import Document
from winnow.notebook.frontmatter import LARGEST, read_front_matter

PATH = Path("lab.md")
CELL = '```toml study\nid = "a"\nseeds = [0]\n```\n'


def front(text: str):
    return read_front_matter(text.split("\n"), PATH)


def test_title_date_and_tags():
    found = front("---\ntitle: Does it last?\ndate: 2026-11-22\ntags: [selective, budget]\n---\n# Lab")
    assert (found.title, found.date, found.tags) == ("Does it last?", "2026-11-22", ("selective", "budget"))
    assert (found.last_line, found.notes) == (5, ())


@pytest.mark.parametrize(
    ("line", "date"),
    [
        ("2026-11-22", "2026-11-22"),
        ('"2026-11-22"', "2026-11-22"),
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00+00:00"),
        ("2026-11-22 10:00:00", "2026-11-22T10:00:00"),
    ],
)
def test_dates_as_people_write_them(line: str, date: str):
    assert front(f"---\ndate: {line}\n---\n").date == date


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Lab\n\n---\ntitle: x\n---\n",  # not at the top
        "---\n\nprose: with a colon\n\n---\n",  # a rule, prose, a rule
        "---\nonly a rule and a line of prose\n",
        " ---\ntitle: x\n---\n",
        "----\ntitle: x\n----\n",
    ],
)
def test_what_is_no_front_matter(text: str):
    assert front(text).last_line == 0


def test_empty_front_matter_is_one():
    assert front("---\n---\n# Lab").last_line == 2
    assert front("---\n# a comment\n---  \n").last_line == 3


def test_keys_of_other_programs_stay_and_misspelt_ones_are_remarked_on():
    found = front(
        "---\nlayout: post\nsubtitle: more\nauthor: {name: me}\nfilters: [!expr x]\nTitle: T\ndat: 2026-01-01\n---\n"
    )
    assert (found.title, found.date) == (None, None)
    assert found.notes == (
        (6, "'Title' is ignored", "did you mean 'title'?"),
        (7, "'dat' is ignored", "did you mean 'date'?"),
    )
    assert front("---\ntitle: T\nTitle: other\n---\n").notes == (), "the right one is there"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("---\ntitle: one\ntags: []\ntitle: two\n---\n", 4, "'title' is given twice"),
        ("---\nlayout: a\nlayout: b\n---\n", 3, "'layout' is given twice"),
        ("---\ntitle: 2026\n---\n", 2, "'2026' is not text for YAML"),
        ("---\ntitle: yes\n---\n", 2, 'put it in quotes: "yes"'),
        ("---\ntitle:\n---\n", 2, "title"),
        ("---\ntitle: [a, b]\n---\n", 2, "title should be text"),
        ("---\ndate: soon\n---\n", 2, "'soon' is not a date"),
        ("---\ndate: 2026-13-45\n---\n", 2, "is not a date"),
        ("---\ndate: 20261122\n---\n", 2, "is not a date"),
        ("---\ndate: [2026-11-22]\n---\n", 2, "is not a date"),
        ("---\ntags: selective\n---\n", 2, "tags should be a list"),
        ("---\ntags:\n  - a\n  - 1\n---\n", 4, "'1' is not text"),
        ("---\ntitle: a: b\n---\n", 2, "not valid YAML"),
        ("---\ntags: [a\n---\n", 2, "not valid YAML"),
        ("---\n- a\n- b\n---\n", 2, "no list of keys"),
        ("---\ntitle: x\n\n# Lab\n", 1, "never closed"),
        ("---\ntitle: \x00\n---\n", 1, "not valid YAML"),
        ("---\nx: " + "[" * 900 + "\n---\n", None, "not valid YAML"),
        ("---\nx: " + "y" * LARGEST + "\n---\n", 1, "too long"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, line: int | None, words: str):
    with pytest.raises(InputError) as caught:
        front(text)
    assert words in str(caught.value)
    assert caught.value.line == line or line is None


def test_yaml_can_make_no_object_and_no_bomb():
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert front(f"---\n{bomb}title: T\nevil: !!python/object/apply:os.system [exit 1]\n---\n").title == "T"


def test_a_cell_shown_in_front_matter_is_text_and_lines_still_count():
    text = '---\ntitle: |-\n  x\n  ```toml study\n  id = "no"\n  ```\n---\n' + CELL
    document = Document(text.encode(), PATH)
    (cell,) = document.cells
    assert (cell.study, cell.opening_line) == ("a", 8)
    crlf = Document(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), PATH)
    assert crlf.front == document.front
    assert crlf.with_results({}) == crlf.data


def test_a_heading_is_not_made_of_the_last_key():
    """CommonMark alone would read `title: x` over `---` as a heading, and a fence after it as usual."""
    document = Document(("---\ntitle: x\n---\n" + CELL).encode(), PATH)
    assert document.front.title == "x"
    assert [cell.study for cell in document.cells] == ["a"]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_is_read_or_refused_with_a_line(text: str):
    lines = ["---", *text.splitlines(), "---", "# Lab"]
    try:
        found = read_front_matter(lines, PATH)
    except InputError as error:
        line = error.line
    else:
        line = found.last_line + 1
    assert line is not None
    assert 1 <= line <= len(lines)

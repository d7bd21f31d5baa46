"""Notebooks: which fences are cells, where their lines are, and that nothing outside the markers ever changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.notebook.document import CLOSING, Document, render_block, seal

PATH = Path("lab.md")
CELL = '```toml study\nid = "a"\nseeds = [0]\n```\n'


def parse(text: str | bytes) -> Document:
    return Document(text.encode() if isinstance(text, str) else text, PATH)


def test_a_cell_has_the_line_numbers_of_the_file():
    document = parse("# Title\n\nprose\n\n" + CELL + "\nmore\n")
    (cell,) = document.cells
    assert (cell.opening_line, cell.first_line, cell.last_line) == (5, 6, 8)
    assert cell.study == "a"
    assert cell.text == 'id = "a"\nseeds = [0]\n'


@pytest.mark.parametrize(
    "text",
    [
        "````markdown\n" + CELL + "````\n",  # shown, not declared
        "~~~\n" + CELL + "~~~\n",
        "<!--\n" + CELL + "-->\n",
        '```toml\nid = "a"\n```\n',
        '```study toml\nid = "a"\n```\n',
        '    ```toml study\n    id = "a"\n    ```\n',  # indented code
        "`` ```toml study `` inline\n",
        "",
        "\n\n",
    ],
)
def test_what_only_shows_a_cell_is_no_cell(text: str):
    assert parse(text).cells == ()


@pytest.mark.parametrize("fence", ["````", "~~~", "~~~~~"])
def test_longer_and_tilde_fences_are_cells(fence: str):
    (cell,) = parse(f'{fence}toml study\nid = "a"\nnote = "```"\n{fence}\n').cells
    assert cell.study == "a"


def test_several_cells_and_info_string_in_capitals():
    document = parse(CELL + "\ntext\n" + CELL.replace('"a"', '"b"').replace("toml study", "TOML  Study"))
    assert [cell.study for cell in document.cells] == ["a", "b"]
    assert document.cells[1].first_line == 8


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("final", [True, False])
def test_write_back_keeps_newlines_mark_and_ending(newline: str, bom: bytes, final: bool):
    text = ("# T\n\n\ttabs \t\n\n" + CELL + "\nafter  \n\x0bend\u2028x").replace("\n", newline) + (
        newline if final else ""
    )
    before = bom + text.encode()
    document = parse(before)
    written = document.with_results({"a": "Supported.\n\n| x |\n|---|"})
    block = newline * 2 + render_block("a", "Supported.\n\n| x |\n|---|", newline)
    assert written.count(block.encode()) == 1
    assert written.replace(block.encode(), b"") == before
    assert b"Supported." + newline.encode() * 2 + b"| x |" in written
    again = parse(written)
    assert again.with_results({"a": "Supported.\n\n| x |\n|---|"}) == written
    assert not again.blocks[0].edited


def test_a_cell_that_ends_the_file_without_a_newline():
    written = parse(CELL.rstrip("\n")).with_results({"a": "R"})
    assert written.decode() == CELL.rstrip("\n") + "\n\n" + render_block("a", "R")


def test_results_are_replaced_where_the_author_moved_them():
    moved = render_block("a", "old")
    written = parse(CELL + "\n## Results\n\n" + moved + "\nprose\n").with_results({"a": "new"})
    assert written.decode() == CELL + "\n## Results\n\n" + render_block("a", "new") + "\nprose\n"


def test_an_edit_inside_the_block_is_noticed():
    written = parse(CELL).with_results({"a": "one\n\ntwo"}).decode()
    assert not parse(written).blocks[0].edited
    assert not parse(written.replace("\n", "\r\n")).blocks[0].edited, "a checkout with other newlines is no edit"
    assert parse(written.replace("two", "three")).blocks[0].edited
    assert parse(re.sub("<!-- sealed.*-->\n", "", written)).blocks[0].edited
    assert not parse(f"<!-- winnow:a -->\n\n{CLOSING}\n").blocks[0].edited, "an empty pair holds nothing to lose"


def test_an_open_fence_in_an_edited_block_does_not_swallow_the_next_cell():
    text = CELL + "\n<!-- winnow:a -->\n```\nlost\n" + CLOSING + "\n\n" + CELL.replace('"a"', '"b"')
    document = parse(text)
    assert [cell.study for cell in document.cells] == ["a", "b"]
    assert "lost" not in document.with_results({"a": "x"}).decode()


def test_markers_inside_fences_are_text():
    text = "```html\n<!-- winnow:a -->\n" + CLOSING + "\n```\n" + CELL
    assert parse(text).blocks == ()
    assert parse(text).with_results({"a": "R"}).startswith(text.rstrip("\n").encode())


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('x\n\n```toml study\nid = "a"\n', 3, "never closed"),
        ('```python\nprint()\n\n```toml study\nid = "a"\n', 1, "hides the study cell on line 4"),
        ('- item\n\n  ```toml study\n  id = "a"\n  ```\n', 3, "inside a list"),
        ('> ```toml study\n> id = "a"\n> ```\n', 1, "inside a list or a quotation"),
        (CELL + CELL, 5, "declared twice, first on line 1"),
        (CELL + "<!-- winnow:a -->\ntext\n", 5, "have no end"),
        (CELL + "<!-- winnow:a -->\n<!-- winnow:b -->\n" + CLOSING + "\n", 5, "have no end"),
        (CELL + CLOSING + "\n", 5, "without an opening marker"),
        (CELL + (render_block("a", "x") + "\n\n") * 2, 11 + 1, "results in two places"),
        (b"fine\r\nbad \xff\n", 2, "0xff is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str | bytes, line: int, words: str):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"lab.md:{line}:")
    assert caught.value.mend


def test_binary_and_huge_files_are_refused():
    with pytest.raises(InputError, match="binary file"):
        parse(b"\x89PNG\0\0\xff")
    with pytest.raises(InputError, match="holds a NUL byte") as caught:
        parse(b"a\r\n" + CELL.encode() + b"\0")
    assert caught.value.line == 2 + CELL.count("\n")
    with pytest.raises(InputError, match="too long"):
        parse(b"x" * (64 * 2**20 + 1))


@pytest.mark.parametrize(
    "text",
    [
        "```toml study```\nprose\n",  # a code span, on one line
        "``` ```toml study\n",
        "prose with ```toml study``` inside\n",
        "`````\n````toml study\nid = 1\n````\n`````\n",
        '\t```toml study\n\tid = "a"\n\t```\n',  # a tab is four columns: indented code
        "```toml studyhall\n```\n",
    ],
)
def test_fences_that_look_like_cells(text: str):
    document = parse(text)
    assert document.cells == ()
    assert document.with_results({}) == text.encode()


def test_tabs_in_a_cell_are_kept_and_may_stand_in_the_info_string():
    document = parse('```toml\tstudy\nid\t=\t"a"\t\n```\t\n')
    assert document.cells[0].text == 'id\t=\t"a"\t\n'
    assert document.cells[0].study == "a"


def test_content_on_the_opening_line_is_no_part_of_the_cell():
    (cell,) = parse('```toml study id = "b"\nid = "a"\n```\n').cells
    assert (cell.study, cell.text) == ("a", 'id = "a"\n')


def test_fifty_megabytes_are_read_and_written_back():
    """Length is no reason to fail: prose, fences and a table around two cells, 50 MB of it."""
    part = "# Title\n\n" + ("Words of prose that go on and on, with `code` and <b>HTML</b>. " * 40 + "\n") * 150
    part += "\n```text\n" + ("output " * 60 + "\n") * 300 + "```\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n"
    many = part * (50_000_000 // (2 * len(part)) + 1)
    text = many + CELL + "\n" + many + CELL.replace('"a"', '"b"')
    assert len(text) > 50_000_000
    document = parse(text)
    assert [cell.study for cell in document.cells] == ["a", "b"]
    line = text[: text.index(CELL)].count("\n") + 1
    assert document.cells[0].opening_line == line
    written = document.with_results({"a": "R"})
    assert (
        written
        == (many + CELL.rstrip("\n") + "\n\n" + render_block("a", "R") + text[len(many) + len(CELL) - 1 :]).encode()
    )


def test_results_may_not_hold_a_marker():
    with pytest.raises(ValueError, match="opens a block"):
        render_block("a", "fine\n" + CLOSING + "\nbad")


FRAGMENTS = st.sampled_from(
    [
        "",
        "prose <b>x</b>",
        "\tcode",
        "```",
        "````\n```toml study\n````",
        "~~~\nshown\n~~~",
        'PUT```toml study\nid = "a"\n```',
        'PUT~~~toml study\nid = "b"\nnote = "```"\n~~~',
        "- item",
        "> quote",
        "  ",
        "<div>",
        "<!-- winnow:a -->\nmine\n" + CLOSING,
        "<!-- winnow:b -->\n```\nan open fence\n<!-- sealed:0123456789abcdef -->\n" + CLOSING,
        CLOSING,
        "| a | b |",
        "\x0c\u2028",
        "---\ntitle: T\n---",
        "---\n```toml study\n---",
        "---",
        "\t```toml study\n\tid = 1\n\t```",
        "```inline ``` ticks ```",
        "``` content on the opening line",
        "`````md\n````\n```toml study\n````\n`````",
        "~~~ toml study\n```\n~~~~",
        "<details>\n\n```\nshown\n```\n\n</details>",
        "[x]: /y\n",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(FRAGMENTS, max_size=12, unique_by=lambda text: text if len(text) > 16 else object()),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40),
)
def test_parse_write_parse_is_identity_outside_the_markers(parts: list[str], newline: str, bom: bool, prose: str):
    text = "\n".join([*parts, prose]).replace("PUT", "")
    data = (b"\xef\xbb\xbf" if bom else b"") + text.replace("\n", newline).encode()
    try:
        document = parse(data)
    except InputError:
        return  # refused, so nothing is written
    results = {cell.study: f"Result of {cell.study}." for cell in document.cells if cell.study}
    assert document.with_results({}) == data
    written = document.with_results(results)
    after = parse(written)
    assert [cell.text for cell in after.cells] == [cell.text for cell in document.cells]
    assert after.with_results(results) == written, "a second write changes no byte"
    restored = written
    lines = re.split(r"\r\n|\n|\r", document.text)
    for study, content in results.items():
        new, old = render_block(study, content, newline), document.block(study)
        assert restored.count(new.encode()) == 1
        if old is None:
            restored = restored.replace((newline * 2 + new).encode(), b"")
        else:
            before = newline.join(lines[old.opening_line - 1 : old.closing_line])
            restored = restored.replace(new.encode(), before.encode())
        block = after.block(study)
        assert block is not None
        assert (block.content.strip(), block.seal) == (content, seal(content))
    assert restored == data, "every byte outside the markers is the author's"

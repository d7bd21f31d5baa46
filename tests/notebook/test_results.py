"""Text from studies and records is shown as it is: whatever it holds, it stays one cell of one line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from winnow.notebook.document import Document
from winnow.notebook.results import decimals, escape, table

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40) | st.sampled_from(
    ["<!-- /winnow -->", "<script>x</script>", "a | b", "`code`", "**b**", "[x](http://y)", "__a__ a_b", "\\|", "&lt;"]
)


@given(TEXT)
def test_escaped_text_is_shown_as_it_is(text: str):
    inline = MarkdownIt("commonmark", {"html": True}).parseInline("x " + escape(text))[0]
    children = inline.children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children).split() == ["x", *text.split()]


@given(TEXT, TEXT)
def test_a_cell_stays_a_cell(one: str, other: str):
    html = (
        MarkdownIt("commonmark").enable("table").render(table(["a", "b"], [[escape(one) or "x", escape(other) or "y"]]))
    )
    assert html.count("<td>") == 2


@given(TEXT)
def test_no_text_can_end_the_block(text: str):
    cell = '```toml study\nid = "a"\n```\n'
    document = Document(cell.encode(), __file__)  # type: ignore[arg-type]
    written = document.with_results({"a": f"- {escape(text)}"})
    again = Document(written, __file__)  # type: ignore[arg-type]
    assert len(again.blocks) == 1
    assert not again.blocks[0].edited


def test_decimals_show_two_digits_of_a_half_width():
    assert [decimals(width) for width in (0.002, 0.05, 3.0, 0.0, None)] == [4, 3, 1, 4, 4]

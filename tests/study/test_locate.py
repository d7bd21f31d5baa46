"""The line of every key: written texts with known places, and texts generated together with their places."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.study.locate import KeyLines, dotted, load_toml

TEXT = '''\
# a comment with = and [brackets] and "quotes"
id = "a#b"          # not a comment: "a#b"
text = """
one = 1
[two]
"""
literal = \'\'\'
three = 3\'\'\'
base.task = { kind = "corpus", context = 64 }

arms.control = {}
arms."no bos" = { model.attention = { protect_bos = false, list = [1, 2] }, train.lr = 1e-3 }
seeds = [
  0,
  1,  # one
  # two is missing
  3,
]

[claims]
h1 = "a better-than b"
  [claims.'h 2']
  claim = "x"

[[things]]
name = 1
[[things]]
name = 2
[things.inner]
deep = "} ] #"
'''


def test_places_in_a_written_text():
    _, lines = load_toml(TEXT)
    expected = {
        ("id",): 2,
        ("text",): 3,
        ("literal",): 7,
        ("base", "task", "context"): 9,
        ("arms", "control"): 11,
        ("arms", "no bos", "model", "attention", "protect_bos"): 12,
        ("arms", "no bos", "model", "attention", "list", "1"): 12,
        ("arms", "no bos", "train", "lr"): 12,
        ("seeds",): 13,
        ("seeds", "0"): 14,
        ("seeds", "2"): 17,
        ("claims", "h1"): 21,
        ("claims", "h 2"): 22,
        ("claims", "h 2", "claim"): 23,
        ("things", "1", "name"): 28,
        ("things", "1", "inner", "deep"): 30,
    }
    assert {path: lines.line(path) for path in expected} == expected
    assert lines.line(("one",)) is None
    assert lines.line(("arms", "control", "model", "x")) == 11, "the nearest table around a key that is not written"


def test_a_text_in_the_middle_of_a_file():
    _, lines = load_toml("a = 1\nb = 2\n", "book.md", first_line=40)
    assert lines.where(("b",)) == "book.md:41"
    assert lines.where(("c",)) == "book.md"
    assert KeyLines().where(("c",)) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = \n", 11), ("a = 1\na = 2\n", 11), ("a = 1\n\n[x\n", 12), ('s = """\nnever ends\n', 12), ("=", 10)],
)
def test_a_syntax_error_has_its_line(text: str, line: int):
    with pytest.raises(InputError) as caught:
        load_toml(text, "s.toml", first_line=10)
    assert caught.value.file == "s.toml"
    assert caught.value.line == line
    assert "at line" not in str(caught.value)


def test_windows_line_ends():
    _, lines = load_toml("a = 1\r\n\r\n[t]\r\nb = 2\r\n")
    assert lines.line(("t", "b")) == 4


KEYS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\x7f", exclude_categories=("Cs", "Cc")), max_size=5),
)
SCALARS = st.sampled_from(
    ["1", "-2.5e3", "true", '"a # b"', "'c = [d'", '"\\"]}"', "1979-05-27 07:32:00Z", '"""\nx = 1\n"""', "'''\n#\n'''"]
)


@dataclass
class Writer:
    """Writes TOML and notes, on its own, where each key went."""

    text: str = ""
    places: dict[tuple[str, ...], int] = field(default_factory=dict)

    def put(self, text: str) -> None:
        self.text += text

    def note(self, path: tuple[str, ...]) -> None:
        self.places.setdefault(path, self.text.count("\n") + 1)


@st.composite
def documents(draw: st.DrawFn) -> Writer:
    writer = Writer()

    def value(path: tuple[str, ...], depth: int) -> None:
        shape = draw(st.sampled_from(["scalar", "scalar", "array", "inline"] if depth < 3 else ["scalar"]))
        if shape == "scalar":
            writer.put(draw(SCALARS))
        elif shape == "array":
            writer.put("[")
            for index in range(draw(st.integers(0, 3))):
                writer.put(draw(st.sampled_from([" ", "\n", " # ] note\n"])))
                writer.note((*path, str(index)))
                value((*path, str(index)), depth + 1)
                writer.put(" ,")
            writer.put(draw(st.sampled_from(["]", "\n]"])))
        else:
            writer.put("{ ")
            for index, key in enumerate(draw(st.lists(KEYS, max_size=3, unique=True))):
                writer.put(", " if index else "")
                writer.note((*path, key))
                writer.put(f"{dotted([key])} = ")
                value((*path, key), depth + 1)
            writer.put(" }")

    for table in [(), *(tuple(names) for names in draw(st.lists(st.lists(KEYS, min_size=1, max_size=2), max_size=3)))]:
        if table:
            writer.put(draw(st.sampled_from(["", "\n", "# [no]\n"])))
            for length in range(len(table)):
                writer.note(table[: length + 1])
            writer.put("[" + dotted(table) + "]\n")
        for key in draw(st.lists(KEYS, max_size=3, unique=True)):
            writer.note((*table, key))
            writer.put(f"{dotted([key])} = ")
            value((*table, key), 0)
            writer.put(draw(st.sampled_from(["\n", " # x\n", "\n\n"])))
    return writer


@given(documents())
def test_places_in_generated_texts(writer: Writer):
    try:
        tomllib.loads(writer.text)
    except tomllib.TOMLDecodeError:
        with pytest.raises(InputError):  # a key drawn twice, say: refused, and never a crash of the scanner
            load_toml(writer.text)
        return
    _, lines = load_toml(writer.text)
    assert {path: lines.lines.get(path) for path in writer.places} == writer.places


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str):
    try:
        load_toml(text)
        line = 1
    except InputError as error:
        line = error.line or 0
    assert 1 <= line <= text.count("\n") + 1

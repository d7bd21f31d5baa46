"""Metric journals: what is written is read, whatever is cut off the end; damage elsewhere is named."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.records.journal import Journal, journal_line, parse_line, read_journal

values = (
    st.floats()
    | st.integers()
    | st.booleans()
    | st.none()
    | st.text(max_size=8).filter(lambda text: text not in ("NaN", "Infinity", "-Infinity"))
)
rows_of_anything = st.lists(
    st.dictionaries(st.text(max_size=6).filter(lambda key: key != "crc"), values, min_size=1, max_size=4), max_size=6
)
ROWS: list[dict[str, Any]] = [{"step": step, "val/ce": 5.0 - step / 7} for step in range(5)]


def same(one: Any, two: Any) -> bool:
    """Equality in which NaN is NaN and types count."""
    if isinstance(one, float) and isinstance(two, float) and math.isnan(one):
        return math.isnan(two)
    return type(one) is type(two) and one == two


def written(path: Path, rows: list[dict[str, Any]]) -> bytes:
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for row in rows:
        journal.append(row)
    journal.close()
    return path.read_bytes()


@given(rows_of_anything)
@settings(max_examples=60, deadline=None)
def test_rows_come_back_as_they_went(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "metrics.0.jsonl"
    data = written(path, rows)
    again = read_journal(path)
    assert [row.keys() for row in again] == [row.keys() for row in rows]
    assert all(same(a[key], b[key]) for a, b in zip(again, rows, strict=True) for key in b)
    for line in data.decode().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_the_form_of_a_line_is_pinned() -> None:
    body = b'{"step": 3, "train/ce": 5.1, "grad": "NaN"}'
    line = journal_line({"step": 3, "train/ce": 5.1, "grad": math.nan})
    assert line == body[:-1] + b', "crc": "%08x"}\n' % zlib.crc32(body)


def test_every_cut_leaves_the_whole_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.0.jsonl"
    data = written(path, ROWS)
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        whole = data[:length].count(b"\n")
        assert read_journal(path) == ROWS[:whole]
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        whole = data[:length].count(b"\n")
        journal = Journal(path)
        assert journal.rows == whole
        journal.append({"step": 99})
        journal.close()
        assert read_journal(path) == [*ROWS[:whole], {"step": 99}]


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.0.jsonl"
    data = written(path, ROWS)
    last_line = data.rfind(b"\n", 0, -1) + 1
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        if position < last_line - 1:
            line = data[:position].count(b"\n") + 1
            with pytest.raises(InputError, match=f"metrics.0.jsonl:{line}: the line is damaged"):
                read_journal(path)
            with pytest.raises(InputError, match="damaged"):
                Journal(path)
        else:
            # At the very end it cannot be told from a torn write; `RunStore.metrics` counts the rows besides.
            assert read_journal(path) == ROWS[: 3 if position == last_line - 1 else 4]


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"step": 1}', b'"crc": "00000000"}', b', "crc": "00000000"}', b"\xff" * 30]
)
def test_what_is_no_row_is_none(line: bytes) -> None:
    assert parse_line(line) is None


def test_truncate_goes_back_to_a_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.0.jsonl"
    journal = Journal(path)
    journal.append(ROWS[0])
    offset = journal.offset()
    assert offset == path.stat().st_size
    journal.append(ROWS[1])
    journal.sync()
    with pytest.raises(InputError, match="no row that ends at byte"):
        journal.truncate(offset + 1)
    with pytest.raises(InputError, match="no row that ends at byte"):
        journal.truncate(journal.offset() + 1)
    journal.truncate(offset)
    assert (journal.rows, journal.offset()) == (1, offset)
    journal.append(ROWS[2])
    journal.close()
    journal.close()
    assert read_journal(path) == [ROWS[0], ROWS[2]]


def test_a_reader_sees_a_row_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.0.jsonl")
    journal.append(ROWS[0])
    assert read_journal(journal.path) == [ROWS[0]]
    journal.close()


def test_a_row_may_not_use_the_journal_s_own_key() -> None:
    with pytest.raises(AssertionError):
        journal_line({"crc": 1})

"""Reading text, cutting it and splitting it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from winnow.errors import InputError
from winnow.tasks.documents import (
    BLOCK_BYTES,
    blocks,
    find_files,
    in_validation,
    read_text,
    split_documents,
    stdlib_documents,
    text_fault,
)

documents = st.lists(st.binary(max_size=6), max_size=40)


@given(documents, st.floats(0.01, 0.99))
def test_the_split_parts_all_documents_and_shares_none(found: list[bytes], fraction: float) -> None:
    split = split_documents(found, fraction)
    assert sorted(split.training + split.validation) == sorted(document for document in found if document)
    assert not set(split.training) & set(split.validation)
    assert all(in_validation(document, fraction) for document in split.validation)
    assert not any(in_validation(document, fraction) for document in split.training)


@given(documents, st.floats(0.01, 0.99), st.randoms(use_true_random=False), documents)
def test_neither_order_nor_other_documents_move_a_document(
    found: list[bytes], fraction: float, random: Random, others: list[bytes]
) -> None:
    shuffled = sorted(found, key=lambda _: random.random())
    split = split_documents(found, fraction)
    assert split_documents(shuffled, fraction) == split
    more = split_documents(found + others, fraction)
    assert set(split.validation) <= set(more.validation)
    assert set(split.training) <= set(more.training)


def test_the_fraction_is_met() -> None:
    split = split_documents([str(i).encode() for i in range(20_000)], 0.1)
    assert 1850 < len(split.validation) < 2150  # five standard deviations of a fair draw


def test_a_document_of_validation_is_known_by_its_sha256() -> None:
    """An oracle of its own: the first eight bytes of the SHA-256 as a fraction of one."""
    for i in range(200):
        document = f"document {i}".encode()
        share = int(hashlib.sha256(document).hexdigest()[:16], 16) / 16**16
        assert in_validation(document, 0.3) == (share < 0.3)


lines = st.lists(
    st.sampled_from(["", " ", "word " * 300, "é" * 400, "x" * 20_000, "x" + "é" * 12_000, "\r", "short"]), max_size=60
)


@given(lines)
def test_blocks_are_the_text_cut_outside_characters(found: list[str]) -> None:
    text = "\n".join(found).encode()
    cut = blocks(text)
    assert b"".join(cut) == text
    for block in cut:
        assert block.decode().encode() == block
        assert 0 < len(block) <= 2 * BLOCK_BYTES + 3
    assert all(len(block) >= BLOCK_BYTES for block in cut[:-1])


def test_blocks_end_at_blank_lines() -> None:
    paragraph = b"one line\nanother line\n\n"
    cut = blocks(paragraph * 2000)
    assert len(cut) > 3
    assert all(block.endswith(b"line\n\n") for block in cut)


def test_blocks_without_blank_lines_end_at_lines() -> None:
    cut = blocks(b"one line and more\n" * 4000)
    assert len(cut) > 3
    assert all(block.endswith(b"more\n") for block in cut)


def test_the_standard_library_is_the_running_one() -> None:
    found = stdlib_documents()
    assert found == stdlib_documents()
    assert sum(map(len, found)) > 5_000_000
    assert all(text_fault(document) is None for document in found)
    assert Path(os.__file__).read_bytes() in found


def test_the_standard_library_is_without_tests_packages_and_generated_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b.py", "a/z.py", "a/__init__.py", "a.py"]
    left_out = [
        "test/t.py",
        "a/tests/t.py",
        "a/idle_test/t.py",
        "site-packages/p.py",
        "_sysconfigdata__linux.py",
        "config-3.11/c.py",
        "note.txt",
    ]
    for name in names + left_out:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*- \xe4")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert stdlib_documents() == [b"# a.py", b"# b.py", b"# a/__init__.py", b"# a/z.py"]
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "test" / "none")})
    with pytest.raises(InputError, match="no standard library sources"):
        stdlib_documents()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"text\0more", "a NUL at byte 4"),
        ("häuser".encode("latin-1"), "not UTF-8 at byte 1"),
        ("häuser".encode("utf-16"), "a NUL at byte 3"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8 at byte 0"),
    ],
)
def test_binary_files_are_refused(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="binary file, not text") as caught:
        read_text(path)
    assert caught.value.file == str(path)
    assert fault in caught.value.message


def test_files_are_found_sorted_and_once(texts: Path) -> None:
    found = find_files([str(texts / "1*.txt"), str(texts / "10.txt"), str(texts / "**" / "00.txt")])
    assert [path.name for path in found] == ["00.txt", *(f"1{i}.txt" for i in range(10))]


def test_missing_files_are_refused(texts: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        find_files([str(texts / "absent.txt")])
    with pytest.raises(InputError, match="matches no file"):
        find_files([str(texts / "*.rst")])
    with pytest.raises(InputError, match=r"is a folder; name its files"):
        find_files([str(texts)])

"""Tokenizers: exact bytes, determinism, the cache, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from winnow.errors import InputError
from winnow.tasks import BPEConfig, BytesConfig, FileConfig
from winnow.tasks.cache import cached
from winnow.tasks.tokenizer import Tokenizer

TRAINING = [f"the cat number {i} sat on the mat, naïvely: “{i * i}”\n".encode() for i in range(200)]
characters = st.characters(exclude_characters="\0", exclude_categories=("Cs",))
documents = st.lists(
    st.one_of(st.text(characters), st.just("<|endoftext|>"), st.just("a <|endoftext|>\r\n\u2028 b")), max_size=8
)


@pytest.fixture(scope="session")
def pairs() -> Tokenizer:
    return BPEConfig(vocab_size=320).for_text(TRAINING)


def write_tokenizer(path: Path, **parts: Any) -> Path:
    """A trained byte-level tokenizer with some parts exchanged."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = parts.get("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.decoder = decoders.ByteLevel()
    if "normalizer" in parts:
        made.normalizer = parts["normalizer"]
    alphabet = parts.get("alphabet", pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[parts.get("end", "<|endoftext|>")],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator([text.decode() for text in TRAINING], trainer)
    made.save(str(path))
    return path


def ended(found: list[bytes]) -> bytes:
    """The bytes that encoded documents stand for: one NUL before each."""
    text = b""
    for document in found:
        text += b"\0" + document
    return text


@settings(max_examples=60)
@given(documents)
def test_ids_stand_for_exactly_the_bytes(pairs: Tokenizer, found: list[str]) -> None:
    texts = [text.encode() for text in found]
    for tokenizer in (BytesConfig().for_text([]), pairs):
        ids = tokenizer.encode(texts)
        assert ids.dtype == "uint16"
        assert tokenizer.decode(ids) == ended(texts)
        assert (ids == 0).sum() == len(texts), "id 0 ends documents and nothing else"
        assert len(ids) == 0 or ids.max() < tokenizer.vocab_size


def test_pairs_are_merged(pairs: Tokenizer) -> None:
    assert pairs.vocab_size == 320
    assert len(pairs.encode(TRAINING)) < 0.6 * len(ended(TRAINING))


def test_training_gives_the_same_bytes_in_another_process_without_threads(cache: Path, tmp_path: Path) -> None:
    BPEConfig(vocab_size=310).for_text(TRAINING)
    code = f"from winnow.tasks import BPEConfig\nBPEConfig(vocab_size=310).for_text({TRAINING!r})\n"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    (made,) = (tmp_path / "winnow").glob("bpe-*.json")
    assert made.read_bytes() == (cache / made.name).read_bytes()


def test_the_cache_is_used_and_damage_is_mended(cache: Path) -> None:
    calls: list[int] = []

    def make() -> bytes:
        calls.append(1)
        return b"content " * 10

    assert cached("thing-1", make).tobytes() == cached("thing-1", make).tobytes() == b"content " * 10
    assert len(calls) == 1
    path = cache / "thing-1"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole[:70] + b"X" + whole[71:], b"0" + whole[1:]):
        path.write_bytes(damaged)
        assert cached("thing-1", make).tobytes() == b"content " * 10
        assert path.read_bytes() == whole
    assert len(calls) == 6


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the cache is not kept"):
        assert cached("thing", lambda: b"content").tobytes() == b"content"


def test_a_tokenizer_file_does_what_it_did(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = FileConfig(path=str(path)).for_text([])
    expected = tokenizers.Tokenizer.from_file(str(path)).encode("the cat sat").ids
    assert tokenizer.encode([b"the cat sat"]).tolist() == [0, *expected]
    assert tokenizer.decode(tokenizer.encode([b"the cat"])) == b"\0the cat"


def test_the_digest_is_what_a_tokenizer_does(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    first = FileConfig(path=str(path)).for_text([]).digest
    compact = tmp_path / "compact.json"
    compact.write_text(json.dumps(json.loads(path.read_text())))
    assert FileConfig(path=str(compact)).for_text([]).digest == first
    found = json.loads(path.read_text())
    merges = found["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    compact.write_text(json.dumps(found))
    assert FileConfig(path=str(compact)).for_text([]).digest != first


def test_the_end_of_document_may_have_another_name(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json", end="<eod>")
    tokenizer = FileConfig(path=str(path), end_of_document="<eod>").for_text([])
    assert tokenizer.decode(tokenizer.encode([b"a <|endoftext|> <eod>"])) == b"\0a <|endoftext|> <eod>"
    with pytest.raises(InputError, match=r"no token '<\|endoftext\|>'; its special tokens: <eod>"):
        FileConfig(path=str(path)).for_text([])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "changes the text"),
        ({"normalizer": normalizers.Lowercase()}, "changes the text"),
        ({"alphabet": ["é", "東"]}, "is not a string of bytes"),
        ({"alphabet": ["a"]}, "changes the text"),
    ],
)
def test_tokenizers_that_are_not_byte_level_are_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json", **parts)
    with pytest.raises(InputError, match=message) as caught:
        FileConfig(path=str(path)).for_text([]).encode([b"Some \xc3\xa9 text \x7f"])
    assert caught.value.file == str(path)
    assert "byte-level" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"{}", "is no tokenizer"), (b"\xff", "is no")]
)
def test_missing_and_damaged_tokenizer_files_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        FileConfig(path=str(path)).for_text([])

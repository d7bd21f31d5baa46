"""The corpus task: rows, the split, validation windows and their counts, identity, bad input."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.config import watch_reads
from winnow.errors import InputError
from winnow.tasks import BPEConfig, BytesConfig, CorpusConfig, Score, Task, TaskConfig, Validation
from winnow.tasks.windows import Windows

REAL_TEXTS = Path(__file__).parents[2].parent / "shared" / "data"


def corpus(source: Path | str, **changes: Any) -> Task:
    return CorpusConfig.model_validate(
        {"context": 16, "validation_fraction": 0.3, "source": str(source), **changes}
    ).build()


def predicted(validation: Validation, rows: int) -> list[int]:
    """All targets that count, in order, with plain loops."""
    found: list[int] = []
    for batch in validation.batches(rows):
        mask = torch.ones_like(batch.targets) if batch.mask is None else batch.mask
        for i in range(batch.targets.shape[0]):
            for j in range(batch.targets.shape[1]):
                if mask[i, j]:
                    found.append(int(batch.targets[i, j]))
    return found


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 12), max_size=5),
    step=st.integers(0, 400),
    seed=st.integers(0, 2**31),
    stride=st.integers(1, 4),
)
def test_a_row_is_fixed_by_seed_step_and_index(
    shared_texts: Path, cuts: list[int], step: int, seed: int, stride: int
) -> None:
    """However a step's rows are cut into micro batches or dealt to ranks, and whatever ran before."""
    task, other = corpus(shared_texts / "*.txt"), corpus(shared_texts / "*.txt")
    whole = task.batch(seed, step, range(12), 12)
    edges = sorted({0, 12, *cuts})
    parts = [other.batch(seed, step, range(a, b), 12) for a, b in itertools.pairwise(edges)]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))
    for rank in range(stride):
        dealt = other.batch(seed, step, range(rank, 12, stride), 12)
        assert torch.equal(whole.tokens[rank::stride], dealt.tokens)


@pytest.fixture(scope="session")
def shared_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"Text {i}: " + "".join(chr(97 + (i * j) % 26) for j in range(40)))
    return folder


def test_rows_are_windows_of_the_training_text(texts: Path) -> None:
    task = corpus(texts / "*.txt")
    batch = task.batch(3, 5, range(8), 8)
    assert batch.tokens.shape == batch.targets.shape == (8, 16)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.mask is None
    everything = b"\0".join(path.read_bytes() for path in texts.iterdir())
    for row, target in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert row[1:] == target[:-1]
        for piece in bytes([*row, target[-1]]).split(b"\0"):
            assert piece in everything


def test_consecutive_steps_go_on_in_the_epoch(texts: Path) -> None:
    """Without repetition: an epoch's rows predict different positions of the text."""
    task = corpus(texts / "*.txt", context=60)
    windows = int(task.facts()["windows_per_epoch"])
    steps = windows // 4
    rows = [tuple(row) for s in range(steps) for row in task.batch(0, s, range(4), 4).targets.tolist()]
    assert len(set(rows)) == len(rows) == steps * 4
    assert rows != [tuple(row) for s in range(steps) for row in task.batch(1, s, range(4), 4).targets.tolist()]


def test_no_document_stands_in_both_splits(texts: Path) -> None:
    for i in range(20):
        shutil.copy(texts / f"{i:02d}.txt", texts / f"copy-{i}.txt")
    task = corpus(texts / "*.txt", context=4)
    facts = task.facts()
    tokens, windows = int(facts["validation_tokens"]), int(facts["windows_per_epoch"])
    held_out = bytes(predicted(task.validation(tokens), 8)).split(b"\0")
    trained = b"".join(
        bytes(row) for epoch in range(3) for row in task.batch(0, epoch, range(windows), windows).tokens.tolist()
    )
    heads = [document.split(b",")[0] for document in held_out]
    assert len(heads) == facts["validation_documents"]
    assert 5 < len(set(heads)) < 60
    # 20 texts stand there twice: both copies are on one side.
    assert int(facts["documents"]) + int(facts["validation_documents"]) == 80
    sides = [len([head for head in heads if head == f"Page {i}".encode()]) for i in range(60)]
    assert all(count in ((0, 2) if i < 20 else (0, 1)) for i, count in enumerate(sides))
    # Windows cut documents, so the training text is searched for the pages' numbered heads, whole in some window.
    for i, count in enumerate(sides):
        if count:
            assert b"\0Page %d," % i not in trained


def test_validation_predicts_every_token_once_for_any_batching(texts: Path) -> None:
    task = corpus(texts / "*.txt")
    for n in (1, 15, 16, 17, 160, 333):
        validation = task.validation(n)
        assert validation.n_tokens == validation.n_bytes == n
        found = [predicted(validation, rows) for rows in (1, 3, 100)]
        assert isinstance(validation, Windows)
        assert found[0] == found[1] == found[2] == validation.stream[1:].tolist()
        assert all(batch.tokens.shape[1] == 16 for batch in validation.batches(3))
    first = next(iter(task.validation(160).batches(10)))
    assert first.mask is None
    assert first.tokens[0, 0] == 0, "the first token of a document is predicted too"
    assert first.tokens[1, 0] == first.targets[0, -1], "windows meet without a gap"


def test_bits_per_byte_of_a_uniform_model_is_eight(texts: Path) -> None:
    validation = corpus(texts / "*.txt").validation(200)
    found = validation.metrics(Score(ce=200 * math.log(256), targets=200))
    assert found["val/bpb"] == pytest.approx(8, abs=1e-12)
    assert found["val/ppl"] == pytest.approx(256, rel=1e-12)


@pytest.mark.parametrize("n_bytes", [60, 100, 999, 2500])
def test_tokenizers_are_judged_on_the_same_bytes(texts: Path, n_bytes: int) -> None:
    by_bytes = corpus(texts / "*.txt")
    by_pairs = corpus(texts / "*.txt", tokenizer={"kind": "bpe", "vocab_size": 300})
    one, other = by_bytes.validation_bytes(n_bytes), by_pairs.validation_bytes(n_bytes)
    assert one.n_bytes == other.n_bytes
    assert one.n_bytes is not None
    assert 0 < one.n_bytes <= n_bytes
    assert other.n_tokens < one.n_tokens == one.n_bytes
    assert one.digest == other.digest
    assert by_bytes.validation_digest == by_pairs.validation_digest
    assert by_bytes.digest != by_pairs.digest
    assert bytes(predicted(one, 4))[-1:] in b"\n\0", "cut at the end of a line"
    # The front is the front: a longer text begins with the shorter one.
    assert bytes(predicted(by_bytes.validation_bytes(3000), 4)).startswith(bytes(predicted(one, 4)))


def test_the_digest_is_the_contents_and_not_the_names(texts: Path, tmp_path: Path) -> None:
    first = corpus(texts / "*.txt")
    moved = tmp_path / "moved"
    moved.mkdir()
    for i, path in enumerate(sorted(texts.iterdir())):
        shutil.copy(path, moved / f"{99 - i}.md")
    second = corpus(moved / "*.md")
    assert (first.digest, first.validation_digest) == (second.digest, second.validation_digest)
    assert torch.equal(first.batch(0, 0, range(4), 4).tokens, second.batch(0, 0, range(4), 4).tokens)
    (moved / "99.md").write_text("Page 0, changed")
    changed = corpus(moved / "*.md")
    assert changed.digest != first.digest
    assert corpus(texts / "*.txt", validation_fraction=0.4).digest != first.digest


def test_identity_leaves_out_where_the_text_lies() -> None:
    here = CorpusConfig(context=8, source="a.txt")
    there = CorpusConfig(context=8, source=("b.txt", "c/*.txt"))
    assert here.digest() == there.digest() != CorpusConfig(context=9).digest()
    assert BPEConfig(vocab_size=300).digest() != BPEConfig(vocab_size=301).digest() != BytesConfig().digest()
    assert TaskConfig.model_validate(there.dump()) == there


def test_relative_sources_are_taken_from_the_study(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    config = CorpusConfig.model_validate(
        {"context": 8, "source": ["texts/*.txt"], "tokenizer": {"kind": "file", "path": "t.json"}}
    )
    located = config.located(tmp_path)
    assert located.source == (str(texts / "*.txt"),)
    assert located.tokenizer.dump()["path"] == str(tmp_path / "t.json")
    assert located.located(Path("/elsewhere")) == located
    assert CorpusConfig(context=8).located(tmp_path).source == "stdlib"


def test_every_option_is_read(texts: Path) -> None:
    config = CorpusConfig(context=8, source=str(texts / "*.txt"), tokenizer=BPEConfig(vocab_size=270))
    with watch_reads() as read:
        config.build()
    for member in (config, config.tokenizer):
        assert {name for at, name in read if at == id(member)} >= set(type(member).model_fields) - {"kind"}


def test_one_file_is_cut_into_blocks(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Paragraph {i} {'la ' * 80}\n\n" for i in range(800)))
    facts = corpus(path).facts()
    assert int(facts["documents"]) + int(facts["validation_documents"]) > 15
    with pytest.raises(InputError, match=r'split is empty: 1 documents.* or set document = "block"'):
        corpus(path, document="file")
    path.write_text("short")
    with pytest.raises(InputError, match=r"split is empty.*; change the fraction or give more text$"):
        corpus(path, document="block")


@pytest.mark.parametrize(
    ("content", "changes", "message", "key"),
    [
        (b"", {}, "the corpus is empty (zero bytes)", "task.source"),
        (b"one line\n", {}, "split is empty: 1 documents", "task.validation_fraction"),
        (b"a\0b", {}, "binary file, not text", "task.source"),
        (
            b"text",
            {"tokenizer": {"kind": "manifest"}, "document": "block"},
            "split is empty",
            "task.validation_fraction",
        ),
    ],
)
def test_bad_text_is_refused(tmp_path: Path, content: bytes, changes: dict[str, Any], message: str, key: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        corpus(path, **changes)
    assert message in caught.value.message
    assert caught.value.key == key
    assert caught.value.mend


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 100_000}, "training text is shorter than one window"),
        ({"context": 8_000}, "validation text is shorter than one window"),
        ({"tokenizer": {"kind": "ids", "vocab_size": 256}}, '"ids" is for token shards'),
        ({"tokenizer": {"kind": "manifest"}}, '"manifest" is for prepared shards'),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 60_000}}, "yields only"),
    ],
)
def test_settings_that_do_not_fit_the_text_are_refused(texts: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        corpus(texts / "*.txt", validation_fraction=0.15, **changes)
    assert caught.value.key
    assert caught.value.mend


@pytest.mark.parametrize("asked", [0, -1, 10**9])
def test_more_validation_than_there_is_is_refused(texts: Path, asked: int) -> None:
    task = corpus(texts / "*.txt")
    available = task.facts()["validation_tokens"]
    with pytest.raises(InputError, match=f"the corpus holds {available}") as caught:
        task.validation(asked)
    assert caught.value.key == "evaluation.tokens"
    with pytest.raises(InputError, match="asked for") as caught:
        task.validation_bytes(asked)
    assert caught.value.key == "evaluation.bytes"
    with pytest.raises(InputError, match="hold no whole line"):
        task.validation_bytes(3)


def test_the_standard_library_as_bytes() -> None:
    task = CorpusConfig(context=64).build()
    assert task.vocab_size == 256
    assert task.validation(100_000).n_bytes == 100_000
    assert b"import" in bytes(predicted(task.validation(20_000), 64))


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wikitext2-valid.txt"])
def test_real_texts(name: str) -> None:
    path = REAL_TEXTS / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    task = CorpusConfig(context=128, source=str(path)).build()
    validation = task.validation_bytes(50_000)
    assert validation.n_bytes is not None
    assert 45_000 < validation.n_bytes <= 50_000
    text = path.read_bytes()
    for document in bytes(predicted(validation, 32)).split(b"\0"):
        assert document in text

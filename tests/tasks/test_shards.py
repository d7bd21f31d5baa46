"""Token shards against a reader and a writer of their own, and everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from winnow.errors import InputError
from winnow.tasks import CorpusConfig, IdsConfig, ManifestConfig, Score, Task
from winnow.tasks.prepare import TextFiles, prepare_shards
from winnow.tasks.shards import open_shard, write_shard
from winnow.tasks.windows import Windows


def plain_shard(tokens: list[int], magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    """The format of llm.c, written with `struct` alone."""
    head = struct.pack("<3i", magic, version, len(tokens) if count is None else count)
    return head + b"\0" * (1024 - len(head)) + struct.pack(f"<{len(tokens)}H", *tokens)


def ids(n: int, start: int = 0) -> list[int]:
    """n ids, of which 500 is the largest."""
    return [500, *((start + 7 * i * i) % 501 for i in range(n - 1))]


@pytest.fixture
def fineweb(tmp_path: Path) -> Path:
    """Shards named like the public ones, without a manifest."""
    folder = tmp_path / "fineweb"
    folder.mkdir()
    for name, n in (("train_000001", 300), ("train_000002", 200), ("val_000000", 150), ("val_000001", 100)):
        (folder / f"fineweb_{name}.bin").write_bytes(plain_shard(ids(n, n)))
    return folder


def build(source: Path, **changes: Any) -> Task:
    table = {"context": 10, "source": str(source), "tokenizer": {"kind": "ids", "vocab_size": 501}, **changes}
    return CorpusConfig.model_validate(table).build()


def test_the_format_is_llm_c_s(tmp_path: Path) -> None:
    tokens = [0, 1, 50256, 65535]
    (tmp_path / "read.bin").write_bytes(plain_shard(tokens))
    shard = open_shard(tmp_path / "read.bin")
    assert shard.tokens.tolist() == tokens
    assert shard.largest == 65535
    sha256 = write_shard(tmp_path / "written.bin", np.array(tokens))
    assert (tmp_path / "written.bin").read_bytes() == plain_shard(tokens)
    assert sha256 == shard.sha256
    assert isinstance(shard.tokens, np.memmap)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no token shard: 0 bytes, the header alone has 1024"),
        (plain_shard([1, 2])[:1000], "is no token shard: 1000 bytes"),
        (b"text " * 400, "is no token shard: it begins with 1954047348, not 20240520"),
        (plain_shard([1, 2], magic=20240801), "it begins with 20240801"),
        (plain_shard([1, 2], version=7), "is a token shard of version 7, only version 1"),
        (plain_shard([1, 2, 3])[:-2], "is truncated: the header says 3 tokens, the file holds 2"),
        (plain_shard([1, 2, 3])[:-1], "is truncated: the header says 3 tokens, the file holds 2"),
        (plain_shard([1, 2, 3], count=2), "is mislabelled: the header says 2 tokens, the file holds 3"),
        (plain_shard([1, 2, 3]) + b"x", "the header says 3 tokens, the file holds 3 and a half"),
        (plain_shard([1, 2], count=-1), "is mislabelled: the header says -1 tokens"),
        (plain_shard([]), "holds no tokens"),
    ],
)
def test_damaged_shards_are_refused(fineweb: Path, content: bytes, message: str) -> None:
    path = fineweb / "fineweb_train_000002.bin"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        build(fineweb / "*.bin")
    assert message in caught.value.message
    assert caught.value.file == str(path)
    assert caught.value.mend


def test_shards_are_split_by_name_and_windows_stay_inside_one(fineweb: Path) -> None:
    task = build(fineweb / "*.bin")
    assert task.facts() == {
        "shards": 2,
        "validation_shards": 2,
        "training_tokens": 500,
        "validation_tokens": 249,
        "windows_per_epoch": 29 + 19,
    }
    shards = [ids(300, 300), ids(200, 200)]
    windows = [shard[i : i + 11] for shard in shards for i in range(len(shard) - 10)]
    batch = task.batch(0, 0, range(48), 48)
    for row, target in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert [*row, target[-1]] in windows
    # Validation reads its shards as one stream.
    validation = task.validation(249)
    assert isinstance(validation, Windows)
    assert validation.stream.tolist() == ids(150, 150) + ids(100, 100)
    assert validation.n_bytes is None
    assert validation.metrics(Score(ce=1.0, targets=1)).keys() == {"val/ce", "val/ppl"}
    with pytest.raises(InputError, match="not known as bytes"):
        task.validation_bytes(100)


def test_the_digest_is_the_shards_content(fineweb: Path) -> None:
    before = build(fineweb / "*.bin").digest
    path = fineweb / "fineweb_val_000001.bin"
    shutil.copytree(fineweb, fineweb.parent / "copy")
    assert build(fineweb.parent / "copy" / "*.bin").digest == before
    changed = ids(100, 100)
    changed[50] ^= 1
    path.write_bytes(plain_shard(changed))
    assert build(fineweb / "*.bin").digest != before
    assert build(fineweb.parent / "copy" / "*.bin", tokenizer={"kind": "ids", "vocab_size": 501}).digest == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {"kind": "bytes"}}, "holds token id 500, the tokenizer has 256 ids"),
        ({"tokenizer": {"kind": "ids", "vocab_size": 500}}, "holds token id 500, the tokenizer has 500 ids"),
        ({"tokenizer": {"kind": "bpe"}}, '"bpe" is trained on text'),
        ({"tokenizer": {"kind": "manifest"}}, "holds no manifest.json"),
        ({"validation_fraction": 0.2}, "has no effect on token shards"),
        ({"document": "file"}, "has no effect on token shards"),
        ({"context": 300}, "training text is shorter than one window"),
    ],
)
def test_settings_that_do_not_fit_shards_are_refused(fineweb: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(fineweb / "*.bin", **changes)
    assert caught.value.mend


def test_sets_of_shards_that_make_no_sense_are_refused(fineweb: Path) -> None:
    with pytest.raises(InputError, match="the validation split is empty: none of 2 shards"):
        build(fineweb / "*train*.bin")
    with pytest.raises(InputError, match="the training split is empty: none of 2 shards"):
        build(fineweb / "*val*.bin")
    (fineweb / "note.txt").write_text("text")
    with pytest.raises(InputError, match="is a token shard among text files"):
        build(fineweb / "*")
    shutil.copy(fineweb / "fineweb_train_000001.bin", fineweb / "fineweb_val_000007.bin")
    with pytest.raises(InputError, match="is a training shard too") as caught:
        build(fineweb / "*.bin")
    assert caught.value.file == str(fineweb / "fineweb_val_000007.bin")


@pytest.fixture
def prepared(tmp_path: Path, texts: Path) -> Path:
    folder = tmp_path / "prepared"
    prepare_shards(
        TextFiles((str(texts / "*.txt"),)), folder, tokenizer="bytes", shard_tokens=4000, validation_fraction=0.3
    )
    return folder


def test_prepared_shards_are_the_same_text(prepared: Path, texts: Path) -> None:
    task = CorpusConfig(context=10, source=str(prepared), tokenizer=ManifestConfig()).build()
    direct = CorpusConfig(context=10, source=str(texts / "*.txt"), validation_fraction=0.3).build()
    n = int(task.facts()["validation_tokens"])
    assert n == direct.facts()["validation_tokens"]
    assert task.facts()["training_tokens"] == direct.facts()["training_tokens"]
    sides = [side.validation(n) for side in (task, direct)]
    found, expected = (
        sorted(bytes(side.stream.tolist()).split(b"\0")[1:]) for side in sides if isinstance(side, Windows)
    )
    assert found == expected
    validation = task.validation_bytes(1000)
    assert validation.n_bytes is not None
    assert 0 < validation.n_bytes <= 1000
    first = next(iter(validation.batches(1)))
    assert isinstance(validation, Windows)
    assert first.targets[0].tolist() == validation.stream[1:11].tolist()


def test_shards_that_differ_from_their_manifest_are_refused(prepared: Path) -> None:
    config = CorpusConfig(context=10, source=str(prepared), tokenizer=ManifestConfig())
    with pytest.raises(InputError, match="is not the tokenizer that these shards were made with"):
        CorpusConfig(context=10, source=str(prepared), tokenizer=IdsConfig(vocab_size=256)).build()
    path = prepared / "text_train_000001.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    with pytest.raises(InputError, match=r"is damaged: its SHA-256 is not that in manifest.json") as caught:
        config.build()
    assert (caught.value.file, caught.value.key) == (str(path), "task.source"), "at the line of the source"
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        config.build()
    path.write_bytes(whole)
    (prepared / "more.bin").write_bytes(plain_shard([1, 2]))
    config.build()  # the folder means what its manifest names
    with pytest.raises(InputError, match=r"is not in its folder's manifest.json"):
        config.replace({"source": str(prepared / "*.bin")}).build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"complete": False}, "these shards are not all prepared"),
        ({"version": 2}, "has version 2, this Winnow knows version 1"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"shards": [{}]}, "shards.0.file: "),
        ({"format": "other"}, "is a folder"),
    ],
)
def test_manifests_that_cannot_be_used_are_refused(prepared: Path, changes: dict[str, Any], message: str) -> None:
    path = prepared / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=message) as caught:
        build(prepared, tokenizer={"kind": "manifest"})
    assert caught.value.key == "task.source"

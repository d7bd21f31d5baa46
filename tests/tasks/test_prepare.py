"""Preparing shards: what is in them, going on after a kill, datasets and tokenizers of the hub (a local server)."""

from __future__ import annotations

import errno
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from winnow.errors import InputError
from winnow.records import files
from winnow.records.files import FileLock
from winnow.tasks import BPEConfig, CorpusConfig, ManifestConfig
from winnow.tasks.prepare import HuggingFaceDataset, Progress, TextFiles, open_tokenizer, prepare_shards

SETTINGS: dict[str, Any] = {"tokenizer": "bytes", "shard_tokens": 2000, "validation_fraction": 0.3}


SHARD_BEGINS = (20240520).to_bytes(4, "little")


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, whose content is its last owner."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def documents(path: Path) -> list[bytes]:
    """The documents of a shard of bytes, without the product's reader."""
    return np.fromfile(path, dtype="<u2", offset=1024).astype(np.uint8).tobytes().split(b"\0")[1:]


@pytest.fixture
def source(texts: Path) -> TextFiles:
    return TextFiles((str(texts / "*.txt"),))


@pytest.fixture
def bpe(cache: Path, tmp_path: Path) -> Path:
    """A `tokenizer.json`."""
    training = [f"page {i} of word{i}, naïve\n".encode() for i in range(300)]
    BPEConfig(vocab_size=290).for_text(training)
    kept = max(cache.glob("bpe-*.json"), key=lambda path: path.stat().st_mtime_ns)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(kept.read_bytes()[64:])
    return path


def test_every_document_is_in_one_shard(source: TextFiles, texts: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    manifest = prepare_shards(source, tmp_path / "out", on_progress=seen.append, **SETTINGS)
    assert manifest.complete
    assert manifest.read == 60
    assert len(manifest.shards) > 8
    found = [document for entry in manifest.shards for document in documents(tmp_path / "out" / entry.file)]
    assert sorted(found) == sorted(path.read_bytes() for path in texts.iterdir())
    for entry in manifest.shards:
        assert len(documents(tmp_path / "out" / entry.file)) == entry.documents
        assert (tmp_path / "out" / entry.file).stat().st_size == 1024 + 2 * entry.tokens
        assert ("_val_" in entry.file) == (entry.split == "validation")
    training = [entry.tokens for entry in manifest.shards if entry.split == "training"]
    assert all(2000 <= tokens < 5000 for tokens in training[:-1])
    assert seen[-1].documents == 60
    assert seen[-1].training_tokens + seen[-1].validation_tokens == sum(entry.tokens for entry in manifest.shards)
    assert [one.documents for one in seen] == sorted(one.documents for one in seen)


def test_blocks_may_be_documents(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Paragraph {i} {'la ' * 80}\n\n" for i in range(800)))
    manifest = prepare_shards(TextFiles((str(path),), "block"), tmp_path / "block", **SETTINGS)
    assert manifest.read > 15
    assert prepare_shards(TextFiles((str(path),)), tmp_path / "single", **SETTINGS) == manifest, "as the corpus task"


@pytest.mark.parametrize("there", [False, True])
def test_an_empty_split_leaves_nothing_behind(tmp_path: Path, there: bool) -> None:
    path, out = tmp_path / "book.txt", tmp_path / "out"
    path.write_text("Once\n")
    if there:
        out.mkdir()
    with pytest.raises(InputError, match=r"split is empty: 1 documents; .* --document block"):
        prepare_shards(TextFiles((str(path),), "file"), out, **SETTINGS)
    assert out.exists() == there
    assert not there or not any(out.iterdir())
    with pytest.raises(InputError, match="split is empty") as caught:
        prepare_shards(TextFiles((str(path),)), out, **SETTINGS)
    assert "block" not in str(caught.value), "blocks it has"


def test_enough_is_enough(source: TextFiles, tmp_path: Path) -> None:
    for shard_tokens in (2000, 100_000):
        settings = {**SETTINGS, "shard_tokens": shard_tokens, "max_tokens": 5000}
        manifest = prepare_shards(source, tmp_path / f"out-{shard_tokens}", **settings)
        training = [entry.tokens for entry in manifest.shards if entry.split == "training"]
        assert 5000 <= sum(training) < 9000
        assert 0 < manifest.read < 60


def test_a_tokenizer_file_is_kept_beside_the_shards(source: TextFiles, bpe: Path, tmp_path: Path) -> None:
    prepare_shards(source, tmp_path / "out", **{**SETTINGS, "tokenizer": str(bpe)})
    bpe.unlink()
    config = CorpusConfig(context=16, source=str(tmp_path / "out"), tokenizer=ManifestConfig())
    task = config.build()
    assert task.vocab_size == 290
    assert task.validation(400).n_bytes is not None
    assert int(task.validation(400).n_bytes or 0) > 400
    beside = tmp_path / "out" / "tokenizer.json"
    assert (
        CorpusConfig.model_validate(
            {"context": 16, "source": str(tmp_path / "out"), "tokenizer": {"kind": "file", "path": str(beside)}}
        )
        .build()
        .digest
        == task.digest
    )


class StopError(Exception):
    pass


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 8])
def test_what_was_stopped_goes_on_to_the_same_bytes(source: TextFiles, tmp_path: Path, calls: int) -> None:
    prepare_shards(source, tmp_path / "whole", **SETTINGS)
    count = 0

    def stop(progress: Progress) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise StopError

    with pytest.raises(StopError):
        prepare_shards(source, tmp_path / "parts", on_progress=stop, **SETTINGS)
    with pytest.raises(InputError, match="not all prepared"):
        CorpusConfig(context=10, source=str(tmp_path / "parts"), tokenizer=ManifestConfig()).build()
    seen: list[Progress] = []
    prepare_shards(source, tmp_path / "parts", on_progress=seen.append, **SETTINGS)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert (seen[0].shards > 0) == (calls > 2), "finished rounds are not made again"


def test_killed_processes_leave_nothing_half(source: TextFiles, texts: Path, tmp_path: Path) -> None:
    """SIGKILL at instants spread over the work, in one folder, until it is done."""
    prepare_shards(source, tmp_path / "whole", **SETTINGS)
    whole = content(tmp_path / "whole")
    folder = tmp_path / "killed"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from winnow.tasks.prepare import TextFiles, prepare_shards\n"
        "print('ready', flush=True)\n"
        f"prepare_shards(TextFiles(({str(texts / '*.txt')!r},)), Path({str(folder)!r}),\n"
        f"    on_progress=lambda _: time.sleep(0.01), **{SETTINGS!r})\n"
    )
    for attempt in range(5):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.03 + 0.06 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if folder.is_dir():
            for name, found in content(folder).items():
                assert name.endswith((".tmp", ".json")) or found == whole[name]
    prepare_shards(source, folder, **SETTINGS)
    assert content(folder) == whole


def test_a_full_disk_leaves_no_half_shard(source: TextFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_shards(source, tmp_path / "whole", **SETTINGS)
    writes = 0

    def half(descriptor: int, data: bytes) -> None:
        nonlocal writes
        writes += data.startswith(SHARD_BEGINS)
        os.write(descriptor, data if writes < 4 else data[: len(data) // 2])
        if writes == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", half)
        with pytest.raises(InputError, match="free some disk space"):
            prepare_shards(source, tmp_path / "full", **SETTINGS)
    whole = content(tmp_path / "whole")
    found = {name: data for name, data in content(tmp_path / "full").items() if name != "manifest.json"}
    assert found
    assert all(whole[name] == data for name, data in found.items())
    (tmp_path / "full" / ".text_train_000001.bin.0123abcd.tmp").write_bytes(b"of a killed process")
    prepare_shards(source, tmp_path / "full", **SETTINGS)
    assert content(tmp_path / "full") == whole


def test_finished_shards_are_checked_and_not_made_again(source: TextFiles, tmp_path: Path) -> None:
    first = prepare_shards(source, tmp_path / "out", **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.bin")}
    assert prepare_shards(source, tmp_path / "out", **SETTINGS) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.bin")} == before
    path = tmp_path / "out" / first.shards[0].file
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="is truncated"):
        prepare_shards(source, tmp_path / "out", **SETTINGS)


def test_a_folder_in_other_use_is_left_alone(source: TextFiles, texts: Path, tmp_path: Path) -> None:
    prepare_shards(source, tmp_path / "out", **SETTINGS)
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=r"another preparation \(other shard_tokens\)"):
        prepare_shards(source, tmp_path / "out", **{**SETTINGS, "shard_tokens": 3000})
    (texts / "00.txt").write_text("changed")
    with pytest.raises(InputError, match=r"another preparation \(other source\)"):
        prepare_shards(source, tmp_path / "out", **SETTINGS)
    assert content(tmp_path / "out") == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds other files \(mine.bin\)"):
        prepare_shards(source, tmp_path / "foreign", **SETTINGS)
    (tmp_path / "busy").mkdir()
    with FileLock(tmp_path / "busy" / ".lock"), pytest.raises(InputError, match="another process"):
        prepare_shards(source, tmp_path / "busy", **SETTINGS)


@pytest.mark.parametrize(
    "changes",
    [{"shard_tokens": 0}, {"max_tokens": 0}, {"validation_fraction": 1.0}, {"name": "../x"}, {"tokenizer": "no.json"}],
)
def test_bad_settings_are_refused(source: TextFiles, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        prepare_shards(source, tmp_path / "out", **{**SETTINGS, **changes})
    assert not (tmp_path / "out").exists()


class Rows(list[dict[str, Any]]):
    def skip(self, n: int) -> Rows:
        return Rows(self[n:])


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """A stand-in for the package `datasets`, which this test suite does not need."""
    rows = Rows({"text": f"Row {i} {'word ' * (i % 50)}", "id": i} for i in range(200))
    rows[3]["text"], rows[4]["text"], rows[5]["text"] = "", "with a \0", "half \ud800 of a pair"

    def load_dataset(name: str, subset: str | None, *, split: str, streaming: bool, revision: str | None) -> Rows:
        assert streaming
        if split != "train":
            raise ValueError(f"Bad split: {split}")
        return rows

    module = ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return rows


def test_a_dataset_is_streamed_and_what_is_no_text_is_counted(datasets: Rows, tmp_path: Path) -> None:
    source = HuggingFaceDataset(str(tmp_path))
    calls: list[Progress] = []

    def stop(progress: Progress) -> None:
        calls.append(progress)
        if len(calls) == 6:
            raise StopError

    whole = prepare_shards(source, tmp_path / "whole", **SETTINGS)
    with pytest.raises(StopError):
        prepare_shards(source, tmp_path / "parts", on_progress=stop, **SETTINGS)
    assert prepare_shards(source, tmp_path / "parts", **SETTINGS) == whole
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert (whole.read, whole.left_out) == (200, 3)
    assert sum(entry.documents for entry in whole.shards) == 197
    with pytest.raises(InputError, match=r"no text column 'body'; its columns: text, id"):
        prepare_shards(HuggingFaceDataset(str(tmp_path), column="body"), tmp_path / "column", **SETTINGS)
    with pytest.raises(InputError, match=r"cannot be read \(ValueError: Bad split: other\)"):
        prepare_shards(HuggingFaceDataset(str(tmp_path), split="other"), tmp_path / "split", **SETTINGS)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'winnow-lab\[data\]'"):
        prepare_shards(HuggingFaceDataset(str(tmp_path)), tmp_path / "out", **SETTINGS)


def test_the_real_package_reads_a_local_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    (tmp_path / "data").mkdir()
    rows = [json.dumps({"text": f"Row {i} {'word ' * (i % 50)}"}) for i in range(200)]
    (tmp_path / "data" / "rows.jsonl").write_text("\n".join(rows))
    manifest = prepare_shards(HuggingFaceDataset(str(tmp_path / "data")), tmp_path / "out", **SETTINGS)
    assert manifest.read == 200


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(bpe: Path) -> Iterator[str]:
    """A local server that answers as the hub does for one tokenizer and one dataset."""
    text = bpe.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            known = {f"/lab/model/resolve/{revision}/tokenizer.json": text for revision in ("main", COMMIT)} | {
                "/api/datasets/lab/data": json.dumps({"id": "lab/data", "sha": COMMIT}).encode()
            }
            body = known.get(self.path.split("?")[0])
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"etag"')
            self.end_headers()
            if body is not None and self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it overrides
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_names_on_the_hub(hub: str, bpe: Path, tmp_path: Path) -> None:
    """In a process of its own: the library reads the server's address when it is imported."""
    code = """
from winnow.errors import InputError
from winnow.tasks.prepare import HuggingFaceDataset, open_tokenizer
print(open_tokenizer("lab/model")[0].digest)
print(HuggingFaceDataset("lab/data", column="body").pinned({}).revision)
print(HuggingFaceDataset("lab/data").pinned({"name": "lab/data", "revision": "begun"}).revision)
for call in (lambda: open_tokenizer("lab/absent"), lambda: HuggingFaceDataset("lab/absent").pinned({})):
    try:
        call()
    except InputError as error:
        print(error.message.split(" (")[0])
"""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        open_tokenizer(str(bpe))[0].digest,
        COMMIT,
        "begun",
        "tokenizer 'lab/absent' cannot be read",
        "dataset 'lab/absent' cannot be read",
    ]

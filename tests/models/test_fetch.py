"""Weights that a URL names, from servers on this machine that speak the hub's and a bucket's protocols."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.models.gpt2_files import ARGS, prefixed, raw_tensors, write_huggingface
from tests.models.small_hub import COMMIT, Hub, serving
from tests.models.test_export import a_run
from tests.records.s3_server import Fault, S3Server

from winnow.errors import InputError
from winnow.models.fetch import Wanted, fetch, wanted
from winnow.models.interchange import read_weights
from winnow.records.remote import Remote

SECRET = "hf_averysecrettokenofthetests"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def gpt2_files(folder: Path, scale: float = 1.0, form: str = "model.safetensors") -> dict[str, bytes]:
    raw = {name: tensor * scale for name, tensor in raw_tensors(inputs_first=True).items()}
    return contents(write_huggingface(folder, raw, form=form))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with a GPT-2 at its root and one in parts below, and no network else."""
    from huggingface_hub import constants

    files = gpt2_files(tmp_path / "served")
    files |= {"tf_model.h5": b"much", "README.md": b"text", "onnx/model.onnx": b"more"}
    parts = gpt2_files(tmp_path / "parts", 0.5, "model.safetensors.index.json")
    files |= {f"small/gpt/{name}": content for name, content in parts.items()}
    torch.save({"model": prefixed(raw_tensors(inputs_first=False)), "model_args": ARGS}, tmp_path / "model.pt")
    files["runs/model.pt"] = (tmp_path / "model.pt").read_bytes()
    with serving(Hub(files=files, older=gpt2_files(tmp_path / "older", 2.0))) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # its patience between attempts
        yield hub


def test_a_folder_on_the_hub_comes_without_what_is_not_needed(hub: Hub, tmp_path: Path) -> None:
    found = fetch("hf://lab/gpt", tmp_path / "cache")
    assert read_weights(found).weights.keys() == read_weights(tmp_path / "served").weights.keys()
    assert read_weights(found).sha256 == read_weights(tmp_path / "served").sha256
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors"]
    assert fetch("hf://lab/gpt/", tmp_path / "cache") == found
    assert fetch("hf://lab/gpt/model.safetensors", tmp_path / "cache") == found
    assert len(hub.downloads()) == 2  # what is there does not come again
    assert COMMIT in str(found)


def test_parts_single_files_and_revisions(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    parts = read_weights(fetch("hf://lab/gpt/small/gpt", cache))
    assert torch.equal(parts.weights["embedding.weight"], raw_tensors(inputs_first=True)["wte.weight"] * 0.5)
    assert [name for name in hub.downloads() if name.startswith("small/gpt/model-0")] == [
        "small/gpt/model-00001-of-00002.safetensors",
        "small/gpt/model-00002-of-00002.safetensors",
    ]
    single = fetch("hf://lab/gpt/runs/model.pt", cache)
    assert single.name == "model.pt"
    assert read_weights(single).layout == "nanogpt"
    assert fetch("hf://lab/gpt/runs", cache) == single
    older = read_weights(fetch("hf://lab/gpt@v1", cache))
    assert torch.equal(older.weights["embedding.weight"], raw_tensors(inputs_first=True)["wte.weight"] * 2)


def test_what_is_not_there_is_named(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for url, message in (
        ("hf://lab/absent", "there is no such repository"),
        ("hf://lab/gpt@v2", "there is no such revision"),
        ("hf://lab/gpt/absent/model.pt", r"there is no 'absent/model.pt'; it holds README.md, config.json"),
        ("hf://lab/gpt/onnx", r"'onnx' holds no model that can be read; it holds model.onnx"),
        ("hf://lab", "names no repository"),
        ("hf://lab/gpt?revision=v1", "names no repository"),
        ("ftp://lab/gpt", "of no kind that can be read"),
    ):
        with pytest.raises(InputError, match=message):
            fetch(url, cache)
    assert hub.downloads() == []


def test_a_download_that_breaks_off(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = 3
    found = fetch("hf://lab/gpt", tmp_path / "cache")
    assert hub.cuts == 0
    assert read_weights(found).sha256 == read_weights(tmp_path / "served").sha256
    hub.cuts = 10**9
    with pytest.raises(InputError, match=r"hf://lab/gpt/\S+: cannot be read") as broken:
        fetch("hf://lab/gpt", tmp_path / "other")
    assert "give the same command again" in str(broken.value.mend)
    hub.cuts = 0
    again = fetch("hf://lab/gpt", tmp_path / "other")
    assert read_weights(again).sha256 == read_weights(tmp_path / "served").sha256


def test_bytes_that_are_not_the_announced_ones(hub: Hub, tmp_path: Path) -> None:
    """A byte that flips on the way keeps the length, which is all that the hub's client looks at."""
    hub.spoilt = 1
    found = fetch("hf://lab/gpt", tmp_path / "cache")
    assert read_weights(found).sha256 == read_weights(tmp_path / "served").sha256
    assert len(hub.downloads()) == 3
    hub.spoilt = 10**9
    with pytest.raises(InputError, match="what arrives is not what the hub announces"):
        fetch("hf://lab/gpt", tmp_path / "other")


def test_a_cache_that_has_rotted_is_mended(hub: Hub, tmp_path: Path) -> None:
    found = fetch("hf://lab/gpt", tmp_path / "cache") / "model.safetensors"
    data = bytearray(found.read_bytes())
    data[-3] ^= 1
    found.resolve().write_bytes(bytes(data))
    assert read_weights(fetch("hf://lab/gpt", tmp_path / "cache")).sha256 == read_weights(tmp_path / "served").sha256


def test_without_a_network_what_came_before_is_used(hub: Hub, tmp_path: Path) -> None:
    found = fetch("hf://lab/gpt", tmp_path / "cache")
    hub.down = True
    assert fetch("hf://lab/gpt", tmp_path / "cache") == found
    for url, cache in (("hf://lab/gpt", "other"), ("hf://lab/gpt/small/gpt", "cache")):
        with pytest.raises(InputError, match="cannot be read"):
            fetch(url, tmp_path / cache)


def test_a_token_is_sent_and_never_written(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.token = SECRET
    said: list[str] = []
    with pytest.raises(InputError, match=r"no such repository that you may read; .*HF_TOKEN"):
        fetch("hf://lab/gpt", tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    fetch("hf://lab/gpt", tmp_path / "cache")
    hub.cuts = 10**9
    with pytest.raises(InputError) as broken:
        fetch("hf://lab/gpt/small/gpt", tmp_path / "cache")
    said.append(str(broken.value))
    for url in (f"hf://lab/gpt?token={SECRET}", f"hf://me:{SECRET}@lab/gpt", f"s3://me:{SECRET}@bucket/gpt"):
        with pytest.raises(InputError, match=r"credential|names no") as refused:
            fetch(url, tmp_path / "cache")
        said.append(str(refused.value))
    captured = capfd.readouterr()
    said += [captured.out, captured.err]
    assert not any(SECRET in text for text in said)
    kept = contents(tmp_path)
    assert any(name.endswith("model.safetensors") for name in kept)
    assert not [name for name, content in kept.items() if SECRET.encode() in content or SECRET in name]


def test_local_paths_and_file_urls_pass_through(tmp_path: Path) -> None:
    assert fetch("weights/model.pt") == Path("weights/model.pt")
    assert fetch(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert fetch("~/gpt2") == Path.home() / "gpt2"


# Buckets


class Bucket:
    """A bucket on a server that speaks S3."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        server.bucket("lab")

    def put(self, files: dict[str, bytes]) -> None:
        remote = Remote(f"s3://lab?endpoint={self.server.endpoint}")
        remote.put({name: io.BytesIO(content) for name, content in files.items()})
        self.server.requests.clear()

    def url(self, path: str) -> str:
        return f"s3://lab/{path}?endpoint={self.server.endpoint}"

    def downloads(self) -> list[str]:
        return sorted({path for path in self.server.sent("GET") if path.count("/") > 1 and not path.endswith("/")})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    server = S3Server()
    yield Bucket(server)
    server.close()


def test_a_folder_and_a_file_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    files = gpt2_files(tmp_path / "gpt2")
    bucket.put({f"models/gpt2/{name}": content for name, content in files.items()} | {"models/gpt2/tf_model.h5": b"x"})
    found = fetch(bucket.url("models/gpt2"), tmp_path / "cache")
    assert contents(found) == files
    assert read_weights(found).sha256 == read_weights(tmp_path / "gpt2").sha256
    assert [path.rpartition("/")[2] for path in bucket.downloads()] == ["config.json", "model.safetensors"]
    bucket.server.requests.clear()
    assert fetch(bucket.url("models/gpt2/model.safetensors"), tmp_path / "cache") == found
    assert bucket.downloads() == []
    other = gpt2_files(tmp_path / "other", 3.0)
    bucket.put({"models/gpt2/model.safetensors": other["model.safetensors"]})  # of the same size
    again = fetch(bucket.url("models/gpt2"), tmp_path / "cache")
    assert read_weights(again).sha256 == read_weights(tmp_path / "other").sha256
    assert not [name for name, content in contents(tmp_path).items() if SECRET.encode() in content]


def test_a_checkpoint_in_a_bucket_comes_with_its_run(bucket: Bucket, tmp_path: Path) -> None:
    a_run(tmp_path / "run", (3, 12))
    bucket.put({f"lab/runs/r/{name}": content for name, content in contents(tmp_path / "run").items()})
    for path, step in (("lab/runs/r", 12), ("lab/runs/r/checkpoints/step-00000003", 3)):
        found = read_weights(fetch(bucket.url(path), tmp_path / "cache"))
        local = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        assert found.sha256 == read_weights(local).sha256
        assert found.checkpoint is not None
        assert contents(found.checkpoint) == contents(local)


def test_a_bucket_that_fails(bucket: Bucket, tmp_path: Path) -> None:
    files = gpt2_files(tmp_path / "gpt2")
    bucket.put({f"gpt2/{name}": content for name, content in files.items()})
    for url, message in (
        (bucket.url("absent"), "there is no 'absent'"),
        (bucket.url("gpt2").replace("s3://lab", "s3://other"), "there is no 'gpt2'"),
        (bucket.url(""), "names no file or folder"),
        (bucket.url("../gpt2"), "names no file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            fetch(url, tmp_path / "cache")
    bucket.server.faults.append(Fault("drop", "GET", "model.safetensors"))
    with pytest.raises(InputError, match=r"model\.safetensors:? cannot be read"):
        fetch(bucket.url("gpt2"), tmp_path / "cache")
    assert contents(tmp_path / "cache") == {}  # nothing half done
    bucket.server.faults.clear()
    assert contents(fetch(bucket.url("gpt2"), tmp_path / "cache")) == files


RUN = {
    "run/config.json",
    "run/run.json",
    "run/checkpoints/latest",
    *(
        f"run/checkpoints/step-{step}/{name}"
        for step in ("00000003", "00000012", "100000000")
        for name in ("manifest.json", "moments.safetensors", "progress.json", "weights.safetensors")
    ),
    "run/checkpoints/step-00000003/COMPLETE",
    "run/checkpoints/step-00000012/COMPLETE",
}


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("run", "00000012"),  # the newest whole one
        ("run/checkpoints/step-00000003", "00000003"),
        ("run/checkpoints/step-00000003/weights.safetensors", "00000003"),
    ],
)
def test_a_checkpoint_comes_whole(path: str, step: str) -> None:
    folder = f"run/checkpoints/step-{step}"
    assert wanted(RUN, path, "there") == Wanted(
        (
            f"{folder}/COMPLETE",
            f"{folder}/manifest.json",
            f"{folder}/moments.safetensors",
            f"{folder}/progress.json",
            f"{folder}/weights.safetensors",
            "run/config.json",
        ),
        folder,
    )


def test_which_form_of_the_weights_comes() -> None:
    both = {"config.json", "pytorch_model.bin", "model.safetensors", "ckpt.pt"}
    assert wanted(both, "", "there") == Wanted(("config.json", "model.safetensors"), "")
    assert wanted({"m/model.json", "m/weights.safetensors", "m/README.md"}, "m", "there").names == (
        "m/model.json",
        "m/weights.safetensors",
    )
    parts = {f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)}
    found = wanted({"config.json", "pytorch_model.bin.index.json", *parts, "other.bin"}, "", "there")
    assert found.names == ("config.json", "pytorch_model.bin.index.json", *sorted(parts))
    with pytest.raises(InputError, match="no model that can be read"):
        wanted({"a.pt", "b.pt"}, "", "there")

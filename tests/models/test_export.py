"""What Winnow writes: the same bits when it reads them, the same function when others do, and nothing written over."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.models.gpt2_files import built
from tests.oracles import gpt2 as oracle
from torch import Tensor

from winnow.errors import InputError
from winnow.models import GPTConfig, Model, ModelConfig
from winnow.models.interchange import export_gpt2, read_weights, weights_sha256, write_model
from winnow.records.run import Label, RunIdentity
from winnow.train import checkpoint
from winnow.train.losses import tensors_of

V, T = 21, 8
GPT2 = {"d_model": 12, "n_layers": 2, "n_heads": 3}
TOKENS = [4, 0, 20, 7, 7, 3, 11, 2]


def model_of(table: Mapping[str, Any] = GPT2, seed: int = 0) -> tuple[ModelConfig, Model]:
    """A model whose every parameter is random."""
    config = ModelConfig.model_validate(dict(table))
    model = config.build(V, T)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return config, model


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


KINDS: list[dict[str, Any]] = [
    GPT2,
    {**GPT2, "tied": False, "d_ff": 20},
    {**GPT2, "activation": "gelu"},
    {**GPT2, "max_seq_len": 11},
]
OTHERS: list[dict[str, Any]] = [
    {**GPT2, "attention": {"kind": "selective"}, "positions": "rotary", "norm": {"kind": "rmsnorm"}},
    {**GPT2, "n_kv_heads": 1, "d_head": 6, "bias": False},
    {**GPT2, "norm": {"kind": "layernorm", "shift": False}},
]


@pytest.mark.parametrize("table", KINDS)
def test_an_exported_gpt2_is_the_function_that_others_read(tmp_path: Path, table: dict[str, Any]) -> None:
    config, model = model_of(table)
    export_gpt2(tmp_path / "gpt2", config, tensors_of(model), V, T)
    raw = safetensors.torch.load_file(tmp_path / "gpt2" / "model.safetensors")
    assert all(name.startswith(("transformer.", "lm_head.")) for name in raw)
    settings = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    expected = oracle.logits(
        TOKENS,
        {name.removeprefix("transformer."): tensor for name, tensor in raw.items()},
        n_layer=settings["n_layer"],
        n_head=settings["n_head"],
        inputs_first=True,
        exact={"gelu_new": False, "gelu": True}[settings["activation_function"]],
    )
    with torch.no_grad():
        logits = model.logits(torch.tensor([TOKENS]))[0]
    assert logits.std() > 0.3
    assert torch.allclose(logits.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("table", KINDS)
def test_what_is_exported_reads_back_bit_for_bit(tmp_path: Path, table: dict[str, Any]) -> None:
    config, model = model_of(table)
    export_gpt2(tmp_path / "gpt2", config, tensors_of(model), V, T)
    found = read_weights(tmp_path / "gpt2")
    assert found.config == config.replace({"max_seq_len": table.get("max_seq_len", T)})
    assert (found.vocab_size, found.context) == (V, table.get("max_seq_len", T))
    assert same(found.weights, tensors_of(model))
    assert found.said == ()
    export_gpt2(tmp_path / "again", found.config, found.weights, found.vocab_size, found.context)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "gpt2" / name).read_bytes()


@pytest.mark.parametrize("table", [*KINDS, *OTHERS])
def test_a_folder_of_our_own_holds_any_model(tmp_path: Path, table: dict[str, Any]) -> None:
    config, model = model_of(table)
    write_model(tmp_path / "own", config, tensors_of(model), V, T)
    found = read_weights(tmp_path / "own")
    assert (found.config, found.vocab_size, found.context, found.layout) == (config, V, T, "winnow")
    assert same(found.weights, tensors_of(model))
    assert found.sha256 == weights_sha256(tmp_path / "own") == checkpoint.weights_digest(tensors_of(model))
    assert same(tensors_of(built(found)), tensors_of(model))


@pytest.mark.parametrize("table", KINDS)
def test_transformers_reads_it(tmp_path: Path, table: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `bench` is not installed")
    config, model = model_of(table)
    export_gpt2(tmp_path / "gpt2", config, tensors_of(model), V, T)
    reference, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", output_loading_info=True)
    assert not any(report.values()), report
    assert sum(p.numel() for p in reference.parameters()) == sum(p.numel() for p in model.parameters())
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        logits = reference.eval()(input_ids=tokens).logits
        assert torch.allclose(logits, model.logits(tokens), rtol=0, atol=1e-5)


def test_what_gpt2_has_not_is_named(tmp_path: Path) -> None:
    table = {
        **GPT2,
        "n_kv_heads": 1,
        "d_head": 6,
        "bias": False,
        "positions": "rotary",
        "norm": {"kind": "rmsnorm", "affine": False},
        "attention": {"kind": "selective"},
    }
    config, model = model_of(table)
    with pytest.raises(InputError, match="is no GPT-2") as refused:
        export_gpt2(tmp_path / "gpt2", config, tensors_of(model), V, T)
    for what in (
        "'rotary'",
        "'rmsnorm'",
        "without scale",
        "without biases",
        "'selective'",
        "1 heads of keys for 3",
        "3 heads of 6 beside a width of 12",
    ):
        assert what in refused.value.message
    config, model = model_of({**GPT2, "norm": {"kind": "layernorm", "shift": False}})
    with pytest.raises(InputError, match=r"is no GPT-2: norms without a shift;"):
        export_gpt2(tmp_path / "gpt2", config, tensors_of(model), V, T)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_model, export_gpt2])
def test_nothing_is_written_over_and_nothing_is_left_half_done(tmp_path: Path, write: Any) -> None:
    config, model = model_of()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write(tmp_path / "there", config, tensors_of(model), V, T)
    assert (tmp_path / "there" / "mine").read_text() == "mine"
    short = {name: tensor for name, tensor in tensors_of(model).items() if name != "norm.bias"}
    with pytest.raises(InputError, match=r"norm\.bias: is not what the config says"):
        write(tmp_path / "short", config, short, V, T)
    with pytest.raises(InputError, match=r"embedding\.weight: is not"):
        write(tmp_path / "wide", config, tensors_of(model), V + 1, T)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        write(tmp_path / "file" / "below", config, tensors_of(model), V, T)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_a_fault_in_the_midst_of_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = model_of()

    def fail(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save", fail)
    with pytest.raises(InputError, match=re.compile("no space left", re.IGNORECASE)):
        write_model(tmp_path / "own", config, tensors_of(model), V, T)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_our_own_that_is_not_whole(tmp_path: Path) -> None:
    config, model = model_of()
    folder = tmp_path / "own"
    write_model(folder, config, tensors_of(model), V, T)
    weights, about = folder / "weights.safetensors", folder / "model.json"
    data, text = weights.read_bytes(), about.read_text()
    flipped = bytearray(data)
    flipped[-5] ^= 1
    weights.write_bytes(bytes(flipped))
    with pytest.raises(InputError, match=r"not the file that model\.json names"):
        read_weights(folder)
    weights.write_bytes(data)
    for wrong, message in (
        ({"version": 2}, "version 2 is not known"),
        ({"vocab_size": "many"}, "no vocab_size"),
        ({"vocab_size": V + 1}, r"embedding\.weight: has shape \[21, 12\]"),
        ({"model": {**config.dump(), "kind": "mamba"}}, "'mamba' is unknown"),
        ({"model": {**config.dump(), "tied": False}}, r"readout\.weight: is missing"),
        ({"model": {**config.dump(), "positions": "none"}}, r"positions\.weight: is no part"),
    ):
        about.write_text(json.dumps({**json.loads(text), **wrong}))
        with pytest.raises(InputError, match=message):
            read_weights(folder)


# Runs


def a_run(folder: Path, steps: tuple[int, ...], table: dict[str, Any] = GPT2, **more: Any) -> list[Model]:
    """A run's folder with checkpoints of made-up weights, as the trainer writes them."""
    digest = "0123456789abcdef"
    folder.mkdir()
    config = {"task": {"kind": "corpus", "context": T}, "model": ModelConfig.model_validate(table).dump(), **more}
    identity = RunIdentity(digest=digest, config=config, seed=0, data="d", label=Label(study="s", arm="a"))
    (folder / "config.json").write_text(json.dumps(identity.dump()))
    models: list[Model] = []
    for step in steps:
        models.append(model_of(table, seed=step)[1])
        snapshot = checkpoint.Snapshot(step, 0, tensors_of(models[-1]), {}, {})
        checkpoint.save(folder / "checkpoints", digest, snapshot, keep=9)
    return models


def test_a_runs_newest_checkpoint_or_one_by_its_folder(tmp_path: Path) -> None:
    early, late = a_run(tmp_path / "run", (3, 12))
    found = read_weights(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    assert same(found.weights, tensors_of(late))
    assert (found.checkpoint, found.layout, found.said) == (newest, "winnow", ())
    assert (found.vocab_size, found.context, found.config) == (V, T, GPTConfig.model_validate(GPT2))
    assert found.sha256 == weights_sha256(tmp_path / "run") == checkpoint.weights_digest(tensors_of(late))
    for path in (newest.with_name("step-00000003"), newest.with_name("step-00000003") / "weights.safetensors"):
        assert same(read_weights(path).weights, tensors_of(early))
    assert list((tmp_path / "run" / "checkpoints").rglob("*.tmp")) == []


def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    early, _ = a_run(tmp_path / "run", (3, 12))
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    data = bytearray((newest / "weights.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "weights.safetensors").write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"weights\.safetensors is damaged"):
        read_weights(newest)
    found = read_weights(tmp_path / "run")
    assert same(found.weights, tensors_of(early))
    assert re.search(r"passed over step-00000012: weights\.safetensors is damaged", found.said[0])
    assert found.sha256 == weights_sha256(tmp_path / "run")
    (newest.with_name("step-00000003") / "COMPLETE").unlink()
    with pytest.raises(InputError, match=r"no whole checkpoint: step-00000012: .*; step-00000003: not complete"):
        read_weights(tmp_path / "run")


def test_a_grafted_run_is_the_grown_model(tmp_path: Path) -> None:
    grown = {**GPT2, "n_heads": 4, "d_head": 4}
    (model,) = a_run(tmp_path / "run", (3,), grown, graft=[{"kind": "add-heads", "n": 1}])
    identity = json.loads((tmp_path / "run" / "config.json").read_text())
    identity["config"]["model"] = GPTConfig.model_validate(GPT2).dump()
    (tmp_path / "run" / "config.json").write_text(json.dumps(identity))
    found = read_weights(tmp_path / "run")
    assert found.config == GPTConfig.model_validate(grown)
    assert same(found.weights, tensors_of(model))


def test_a_checkpoint_that_is_alone_or_of_another_run(tmp_path: Path) -> None:
    a_run(tmp_path / "run", (3,))
    step = tmp_path / "run" / "checkpoints" / "step-00000003"
    alone = step.rename(tmp_path / "step-00000003")
    with pytest.raises(InputError, match="a checkpoint alone does not say what model it is"):
        read_weights(alone)
    alone.rename(step)
    identity = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**identity, "digest": "f" * 16}))
    with pytest.raises(InputError, match="is of run 0123456789abcdef, and the run's folder is of ffff"):
        read_weights(step)
    with pytest.raises(InputError, match="no whole checkpoint: step-00000003: belongs to run 0123456789abcdef"):
        read_weights(tmp_path / "run")

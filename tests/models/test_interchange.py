"""Weights of others: the same logits as an oracle on the raw tensors gives, and nothing that a file says is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.gpt2_files import ARGS, SETTINGS, built, prefixed, raw_tensors, save, write_huggingface
from tests.oracles import gpt2 as oracle
from torch import Tensor

from winnow.errors import InputError
from winnow.models import GPTConfig, Model, ModelConfig
from winnow.models.interchange import Foreign, read_weights, weights_sha256

TOKENS = [3, 22, 0, 3, 7, 1, 15, 9, 3]


def agrees(found: Foreign, raw: dict[str, Tensor], *, inputs_first: bool, exact: bool = False) -> None:
    """The logits of what was read are those of the raw tensors, to 1e-5 (fp32 against fp64)."""
    expected = oracle.logits(TOKENS, raw, n_layer=2, n_head=3, inputs_first=inputs_first, exact=exact)
    with torch.no_grad():
        logits = built(found).logits(torch.tensor([TOKENS]))[0]
    assert logits.std() > 0.5  # numbers that could differ
    assert torch.allclose(logits.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "form",
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"],
)
def test_a_hugging_face_folder(tmp_path: Path, form: str) -> None:
    raw = raw_tensors(inputs_first=True)
    folder = write_huggingface(tmp_path / "gpt2", prefixed(raw), form=form)
    found = read_weights(folder)
    agrees(found, raw, inputs_first=True)
    assert (found.layout, found.vocab_size, found.context) == ("huggingface", 23, 9)
    assert found.config == GPTConfig(d_model=12, n_layers=2, n_heads=3, max_seq_len=9)  # type: ignore[call-arg]
    assert found.said == ("dropout (resid_pdrop) is left out: Winnow's GPT has none",)
    assert found.checkpoint is None


def test_forms_that_the_hub_really_has(tmp_path: Path) -> None:
    """The released GPT-2: no prefix, the causal mask among the tensors, no `model.` of the readout, half precision."""
    raw = raw_tensors(inputs_first=True)
    masks = {f"h.{i}.attn.bias": torch.ones(9, 9).tril()[None, None] for i in range(2)}
    more = {**masks, "h.0.attn.masked_bias": torch.tensor(-1e4)}
    agrees(read_weights(write_huggingface(tmp_path / "masks", {**raw, **more})), raw, inputs_first=True)
    half = {name: tensor.half() for name, tensor in raw.items()}
    found = read_weights(write_huggingface(tmp_path / "half", half))
    agrees(found, half, inputs_first=True)
    assert "tensors of float16 are converted to float32" in found.said
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in found.weights.values())
    tied = {**prefixed(raw), "lm_head.weight": raw["wte.weight"].clone()}
    agrees(read_weights(write_huggingface(tmp_path / "tied", tied)), raw, inputs_first=True)
    old = write_huggingface(tmp_path / "old", raw, n_positions="left out", n_ctx=9)
    assert read_weights(old / "model.safetensors").context == 9


def test_settings_that_change_the_function(tmp_path: Path) -> None:
    raw = raw_tensors(inputs_first=True, tied=False, inner=20)
    changes = {"tie_word_embeddings": False, "n_inner": 20, "activation_function": "gelu"}
    found = read_weights(write_huggingface(tmp_path / "a", prefixed(raw), **changes))
    agrees(found, raw, inputs_first=True, exact=True)
    assert isinstance(found.config, GPTConfig)
    assert (found.config.tied, found.config.d_ff, found.config.activation) == (False, 20, "gelu")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["transformer.", "_orig_mod.transformer.", "module._orig_mod.transformer."])
def test_a_nanogpt_file(tmp_path: Path, bias: bool, prefix: str) -> None:
    raw = raw_tensors(inputs_first=False, bias=bias)
    state = prefixed(raw, prefix)
    state[f"{prefix.removesuffix('transformer.')}lm_head.weight"] = state[f"{prefix}wte.weight"]
    state[f"{prefix}h.0.attn.bias"] = torch.ones(9, 9).tril()[None, None]
    file = tmp_path / "ckpt.pt"
    rest = {"optimizer": {"state": {}}, "iter_num": 5, "best_val_loss": torch.tensor(1.0), "config": {"batch_size": 2}}
    torch.save({"model": state, "model_args": {**ARGS, "bias": bias}, **rest}, file)
    found = read_weights(file)
    agrees(found, raw, inputs_first=False, exact=True)
    assert found.layout == "nanogpt"
    assert found.weights.keys() == dict(built(found).named_parameters()).keys()
    assert any("which GELU" in line for line in found.said)
    assert read_weights(tmp_path).sha256 == found.sha256  # a folder that holds one such file


@pytest.mark.parametrize(
    ("table", "exact"),
    [
        ({"model_args": ARGS}, True),
        ({"model_args": {**ARGS, "activation": "gelu_new"}}, False),
        ({"model_args": {name: value for name, value in ARGS.items() if name != "bias"}}, False),  # before GELU came
        ({"config": {name: value for name, value in ARGS.items() if name != "bias"}}, False),  # its relatives
        ({"config": {**ARGS, "activation": "gelu"}}, True),
    ],
)
def test_which_gelu_a_nanogpt_file_has(tmp_path: Path, table: dict[str, Any], exact: bool) -> None:
    raw = raw_tensors(inputs_first=False)
    torch.save({"model": prefixed(raw), **table}, tmp_path / "model.pt")
    found = read_weights(tmp_path / "model.pt")
    agrees(found, raw, inputs_first=False, exact=exact)
    with pytest.raises(AssertionError):
        agrees(found, raw, inputs_first=False, exact=not exact)
    said = any("which GELU" in line for line in found.said)
    assert said == ("activation" not in next(iter(table.values())))


def test_padded_vocabularies_keep_their_rows(tmp_path: Path) -> None:
    raw = raw_tensors(inputs_first=True)
    raw["wte.weight"] = torch.cat([raw["wte.weight"], torch.zeros(9, 12)])
    found = read_weights(write_huggingface(tmp_path / "a", raw, vocab_size=32))
    assert found.vocab_size == 32
    assert torch.equal(found.weights["embedding.weight"], raw["wte.weight"])


def test_the_digest_is_of_the_files_of_weights(tmp_path: Path) -> None:
    raw = raw_tensors(inputs_first=True)
    one = write_huggingface(tmp_path / "one", raw)
    assert read_weights(one).sha256 == hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    two = write_huggingface(tmp_path / "two", raw, form="model.safetensors.index.json")
    assert len({read_weights(one).sha256, read_weights(two).sha256}) == 2
    for folder in (one, two):
        assert weights_sha256(folder) == read_weights(folder).sha256
    before = weights_sha256(two)
    save(two / "model-00002-of-00002.safetensors", {name: raw[name] + 1 for name in sorted(raw)[1::2]})
    assert weights_sha256(two) != before


# Nothing in a file is run


@dataclass
class Config:
    """What a program may have saved beside its weights."""

    n_layer: int = 2


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused_with_what_it_would_run(tmp_path: Path, protocol: int) -> None:
    """Of any protocol: torch itself names but an operand that it does not know."""
    ran = tmp_path / "ran"
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"model": Payload(ran)}, protocol=protocol))
    with pytest.raises(InputError, match=r"reading it would run posix\.system, and a file of weights need run nothing"):
        read_weights(tmp_path / "model.pt")
    assert not ran.exists()


def test_a_pickle_that_calls_nothing_by_name_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"model": {"a": frozenset()}}, protocol=4))
    with pytest.raises(InputError, match=r"it is a pickle, and not of the kind that torch\.save writes") as refused:
        read_weights(tmp_path / "model.pt")
    assert "torch.save(" in str(refused.value.mend)


@pytest.mark.parametrize("force", ["", "1"])
@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_an_unsafe_pickle_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, force: str
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    ran = tmp_path / "ran"
    folder = write_huggingface(tmp_path / "folder", {"wte.weight": torch.ones(1)}, form="pytorch_model.bin")
    torch.save({"model": {"wte.weight": torch.ones(1)}, "model_args": ARGS, "more": Payload(ran)}, folder / name)
    with pytest.raises(InputError, match=r"is refused: .*posix\.system") as refused:
        read_weights(folder / name)
    assert refused.value.file == str(folder / name)
    assert not ran.exists()
    torch.load(folder / name, weights_only=False)  # the payload is a real one
    assert ran.exists()


def test_a_config_object_is_refused_by_its_name_with_the_mend(tmp_path: Path) -> None:
    torch.save({"model": prefixed(raw_tensors(inputs_first=False)), "config": Config()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"would run .*test_interchange\.Config") as refused:
        read_weights(tmp_path / "model.pt")
    assert "'model_args': vars(config)" in str(refused.value.mend)


def test_classes_that_a_config_names_are_not_imported(tmp_path: Path) -> None:
    raw = raw_tensors(inputs_first=True)
    auto = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    folder = write_huggingface(tmp_path / "a", raw, auto_map=auto, architectures=["evil.Model"])
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    agrees(read_weights(folder), raw, inputs_first=True)
    assert not (tmp_path / "ran").exists()


# What is wrong is said


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [None, b"", b"no weights at all, but a text that is long enough"])
def test_a_file_that_is_not_whole(tmp_path: Path, form: str, content: bytes | None) -> None:
    folder = write_huggingface(tmp_path / "a", raw_tensors(inputs_first=True), form=form)
    if content is None:
        cut(folder / form)
    else:
        (folder / form).write_bytes(content)
    with pytest.raises(InputError, match=r"is no whole|is refused|cannot be read") as wrong:
        read_weights(folder)
    assert wrong.value.file == str(folder / form)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda raw: {**raw, name: change(raw[name])}


def spoilt(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("change", "tensor", "message"),
    [
        (changed("h.1.mlp.c_fc.weight", lambda t: t.T), "h.1.mlp.c_fc.weight", r"shape \[48, 12\].* \[12, 48\]"),
        (changed("wte.weight", lambda t: t[:-1]), "wte.weight", r"\[22, 12\]"),
        (changed("ln_f.bias", spoilt), "ln_f.bias", "not finite"),
        (changed("ln_f.bias", lambda t: t.int()), "ln_f.bias", "torch.int32"),
        (lambda raw: {n: t for n, t in raw.items() if n != "h.0.ln_2.bias"}, "h.0.ln_2.bias", "is missing"),
        (lambda raw: {**raw, "h.0.attn.q_norm.weight": torch.ones(4)}, "h.0.attn.q_norm.weight", "no part"),
        (lambda raw: {**raw, "lm_head.weight": raw["wte.weight"] + 1}, "lm_head.weight", "another matrix"),
        (lambda raw: {**raw, "h.0.attn.bias": torch.ones(1, 1, 9, 9)}, "h.0.attn.bias", "not the causal mask"),
        (lambda raw: {**raw, "transformer.wpe.weight": raw["wpe.weight"]}, "wpe.weight", "twice"),
        (lambda raw: {n: t for n, t in raw.items() if not n.startswith("h.1.")}, None, "1 layers, .* say 2"),
    ],
)
def test_tensors_that_are_not_what_the_settings_say(
    tmp_path: Path, change: Any, tensor: str | None, message: str
) -> None:
    folder = write_huggingface(tmp_path / "a", change(raw_tensors(inputs_first=True)))
    with pytest.raises(InputError, match=message) as wrong:
        read_weights(folder)
    assert wrong.value.key == tensor
    assert wrong.value.file == str(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"model_type": "llama"}, None, "'llama', not 'gpt2'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon", "1e-06"),
        ({"scale_attn_weights": False}, "scale_attn_weights", "False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx", "True"),
        ({"add_cross_attention": True}, "add_cross_attention", "True"),
        ({"activation_function": "relu"}, "activation_function", "known: gelu_new, gelu"),
        ({"n_head": 5}, None, "not a multiple of n_heads 5"),
        ({"n_layer": 10**9}, None, "2 layers, the settings say 1000000000"),
        ({"n_embd": "12"}, "n_embd", "no whole number"),
        ({"n_head": True}, "n_head", "no whole number"),
        ({"vocab_size": "left out"}, "vocab_size", "is missing"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings", "neither true nor false"),
        ({"tie_word_embeddings": False}, "lm_head.weight", "is missing"),
    ],
)
def test_settings_that_are_not_ours(tmp_path: Path, changes: dict[str, Any], key: str | None, message: str) -> None:
    folder = write_huggingface(tmp_path / "a", raw_tensors(inputs_first=True), **changes)
    with pytest.raises(InputError, match=message) as wrong:
        read_weights(folder)
    assert key is None or wrong.value.key == key
    assert str(wrong.value.file).startswith(str(folder))


def test_an_index_that_leads_elsewhere(tmp_path: Path) -> None:
    raw = raw_tensors(inputs_first=True)
    form = "model.safetensors.index.json"
    folder = write_huggingface(tmp_path / "a", raw, form=form)
    index = json.loads((folder / form).read_text())
    outside = tmp_path / "outside.safetensors"
    save(outside, raw)
    for wrong, message in (
        ({**index["weight_map"], "wte.weight": "../outside.safetensors"}, "is not permitted"),
        ({**index["weight_map"], "wte.weight": str(outside)}, "is not permitted"),
        ({**index["weight_map"], "wte.weight": "absent.safetensors"}, "cannot be read"),
        ({**index["weight_map"], "wte.weight": index["weight_map"]["wpe.weight"]}, "not where the index says|missing"),
        ({**index["weight_map"], "more.weight": index["weight_map"]["wpe.weight"]}, "the index names it"),
        ({}, "has no weight_map"),
    ):
        (folder / form).write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(InputError, match=message):
            read_weights(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"weights": {}}, "has no `model`"),
        (prefixed(raw_tensors(inputs_first=False)), "has no `model`: how many heads"),
        ({"model": {}, "model_args": ARGS}, "model is no table of tensors"),
        ({"model": {"wte.weight": 1.0}, "model_args": ARGS}, "'wte.weight', which is no tensor"),
        ({"model": prefixed(raw_tensors(inputs_first=False))}, "has no `model_args`"),
        ({"model": prefixed(raw_tensors(inputs_first=False)), "config": {"lr": 1.0}}, "has no `model_args`"),
        ({"model": prefixed(raw_tensors(inputs_first=True)), "model_args": ARGS}, "has shape"),  # transposed maps
        ({"model": prefixed(raw_tensors(inputs_first=False)), "model_args": {**ARGS, "bias": False}}, "no part"),
        ({"model": prefixed(raw_tensors(inputs_first=False)), "model_args": {**ARGS, "activation": "relu"}}, "relu"),
    ],
)
def test_nanogpt_files_that_are_none(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "ckpt.pt")


def test_places_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_weights(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no model: nothing"):
        read_weights(tmp_path)
    (tmp_path / "README.md").write_text("")
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(InputError, match=r"holds no model: README.md, config.json"):
        read_weights(tmp_path)
    save(tmp_path / "other.safetensors", raw_tensors(inputs_first=True))
    save(tmp_path / "model.safetensors", raw_tensors(inputs_first=True))
    with pytest.raises(InputError, match=r"not what its folder's settings are of \(model.safetensors\)"):
        read_weights(tmp_path / "other.safetensors")


def test_transformers_own_files(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `bench` is not installed")
    torch.manual_seed(0)
    sizes = {name: SETTINGS[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    reference.save_pretrained(tmp_path / "whole")
    reference.save_pretrained(tmp_path / "parts", max_shard_size="6KB")
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        expected = reference(input_ids=tokens).logits
        for folder in ("whole", "parts"):
            found: Model = built(read_weights(tmp_path / folder))
            assert torch.allclose(found.logits(tokens), expected, rtol=0, atol=1e-5)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1


def test_a_config_reads_back(tmp_path: Path) -> None:
    found = read_weights(write_huggingface(tmp_path / "a", raw_tensors(inputs_first=True)))
    assert ModelConfig.model_validate(found.config.dump()) == found.config

"""Folders of weights that Winnow writes: its own for any model, and Hugging Face's for a GPT-2."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from winnow.errors import InputError
from winnow.models.base import ModelConfig
from winnow.models.gpt import GPTConfig
from winnow.models.layouts import huggingface_settings, lacks, shapes_of, to_huggingface
from winnow.models.tensor_files import sha256_of
from winnow.records.files import make_folder, sync_folder, write_atomic, writing

MODEL, WEIGHTS, CONFIG = "model.json", "weights.safetensors", "config.json"
MODEL_VERSION = 1
"""Version of the form of `model.json`; a reader refuses a higher one."""
THEIRS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Hugging Face's files of weights, the preferred first."""


def write_model(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], vocab_size: int, context: int
) -> None:
    """Write Winnow's own folder: the model, and what it was built for. The folder appears whole or not at all.

    Its file of weights is the one that a checkpoint has: the SHA-256 is the run's `weights`.

    Raises InputError where it exists already, the weights are not the config's, or the disk refuses.
    """
    _check_complete(config, weights, vocab_size, context)

    def write(draft: Path) -> None:
        _write_safetensors(draft / WEIGHTS, weights)
        about = {
            "version": MODEL_VERSION,
            "model": config.dump(),
            "vocab_size": vocab_size,
            "context": context,
            "sha256": sha256_of([draft / WEIGHTS]),
        }
        _write_json(draft / MODEL, about)

    _write_folder(folder, write)


def export_gpt2(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], vocab_size: int, context: int
) -> None:
    """Write a Hugging Face folder from which `transformers` loads the same function. It appears whole or not at all.

    Raises InputError where the model has what GPT-2 has not (each thing is named), the folder exists already, the
    weights are not the config's, or the disk refuses.
    """
    missing = lacks(config)
    if missing:
        raise InputError(
            f"is no GPT-2: {'; '.join(missing)}", key="model", mend="write Winnow's own folder: --layout winnow"
        )
    assert isinstance(config, GPTConfig)
    _check_complete(config, weights, vocab_size, context)

    def write(draft: Path) -> None:
        # transformers wants to be told that the tensors are PyTorch's
        _write_safetensors(draft / THEIRS[0], to_huggingface(config, weights), {"format": "pt"})
        _write_json(draft / CONFIG, huggingface_settings(config, vocab_size, config.max_seq_len or context))

    _write_folder(folder, write)


def _check_complete(config: ModelConfig, weights: Mapping[str, Tensor], vocab_size: int, context: int) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != (expected := shapes_of(config, vocab_size, context)):
        wrong = sorted({*found.items()} ^ {*expected.items()})[0][0]
        raise InputError("is not what the config says", key=wrong)


def _write_safetensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(file, safetensors.torch.save(owned, metadata=metadata))


def _write_json(file: Path, value: Any) -> None:
    write_atomic(file, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    if folder.exists() or folder.is_symlink():
        raise InputError("exists already", file=folder, mend="give the name of a new folder: nothing is written over")
    make_folder(folder.parent)
    draft = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    with writing(folder):
        try:
            draft.mkdir()
            write(draft)
            os.rename(draft, folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

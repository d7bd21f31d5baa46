"""Weights that are not this run's own: Winnow's folders, Hugging Face's GPT-2 folders and nanoGPT's files.

    read_weights     a model's config and weights from a local folder or file
    write_model      Winnow's own folder, for any model:   model.json, weights.safetensors
    export_gpt2      Hugging Face's folder, for a GPT-2:   config.json, model.safetensors

Nothing that a file names is imported or run, and nothing is written over. The last two stand in `model_folders`;
`winnow.models.fetch` brings what a URL names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from winnow.config import input_errors
from winnow.errors import InputError
from winnow.models.base import ModelConfig
from winnow.models.gpt import GPTConfig
from winnow.models.grafts import GraftConfig, grow
from winnow.models.layouts import (
    Described,
    Layout,
    of_huggingface,
    of_nanogpt,
    shapes_of,
    translated,
)
from winnow.models.model_folders import CONFIG, MODEL, MODEL_VERSION, THEIRS, WEIGHTS, export_gpt2, write_model
from winnow.models.tensor_files import (
    RESAVE,
    Tensors,
    plain,
    read_pickle,
    read_safetensors,
    sha256_of,
    state_dict_of,
)
from winnow.records.checkpoints import MANIFEST, DamagedError, Manifest, check, read_file, read_manifest, step_folders
from winnow.records.files import read_json, safe_name
from winnow.records.run import RunIdentity

__all__ = ["Foreign", "export_gpt2", "read_weights", "weights_sha256", "write_model"]

CHECKPOINTS = "checkpoints"
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_PERMITTED = (
    f"permitted: a folder with {MODEL}, a run or its checkpoint, a Hugging Face GPT-2 folder, or a nanoGPT file"
)


@dataclass(frozen=True)
class Foreign:
    """A model from files.

    weights: CPU tensors by the names of a checkpoint of ours; context: rows of the table of positions, tokens;
    sha256: of the file of weights (see `tensor_files.sha256_of`); said: what was converted, assumed or passed over;
    checkpoint: the folder of the checkpoint that this is, with the optimizer's state beside the weights; None: the
    weights are all there is.
    """

    config: ModelConfig
    weights: dict[str, Tensor]
    vocab_size: int
    context: int
    layout: Layout
    sha256: str
    said: tuple[str, ...] = ()
    checkpoint: Path | None = None


@dataclass(frozen=True)
class _Found:
    """What a path holds: how to read it, and its files of weights."""

    read: Callable[[], Foreign]
    files: tuple[Path, ...]


def read_weights(path: Path) -> Foreign:
    """The model in a local folder or file: Winnow's own, Hugging Face's GPT-2 or nanoGPT's.

    A run's folder means its newest checkpoint that is whole, optimizer and all, and of this run. Numbers become fp32.
    Raises InputError, naming file and tensor, for anything that is not whole, not safe, or not what its own settings
    say.
    """
    return _look(path).read()


def weights_sha256(path: Path) -> str:
    """`Foreign.sha256` of what `read_weights` would read, without reading it into tensors. Raises InputError."""
    return sha256_of(_look(path).files)


def _look(path: Path) -> _Found:
    if path.is_dir():
        return _look_into(path)
    if not path.exists():
        raise InputError("does not exist", file=path, mend=_PERMITTED)
    if path.suffix == ".safetensors" or path.name.startswith(THEIRS[2].partition(".")[0]):
        found = _look_into(path.parent)
        if path.resolve() not in [file.resolve() for file in found.files]:
            names = ", ".join(file.name for file in found.files)
            raise InputError(f"is not what its folder's settings are of ({names})", file=path, mend="name the folder")
        return found
    return _Found(lambda: _read_nanogpt(path), (path,))


def _look_into(folder: Path) -> _Found:
    if (folder / MODEL).exists():
        return _Found(lambda: _read_model(folder), (folder / WEIGHTS,))
    if (folder / MANIFEST).exists():
        return _Found(lambda: _read_checkpoint(folder), (folder / WEIGHTS,))
    if (folder / CHECKPOINTS).is_dir():
        newest, skipped = _newest(folder)
        return _Found(lambda: _saying(_read_checkpoint(newest), skipped), (newest / WEIGHTS,))
    theirs = next((folder / name for name in THEIRS if (folder / name).exists()), None)
    if theirs is not None and (folder / CONFIG).exists():
        files = _shards(theirs) if theirs.suffix == ".json" else {}
        parts = tuple(sorted(set(files.values()))) or (theirs,)
        return _Found(lambda: _read_huggingface(folder, parts, files), parts)
    single = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES and path.is_file()]
    if theirs is None and len(single) == 1:
        return _Found(lambda: _read_nanogpt(single[0]), (single[0],))
    names = sorted(path.name for path in folder.iterdir())
    holds = ", ".join(names[:6]) + (" and more" if len(names) > 6 else "") if names else "nothing"
    raise InputError(f"holds no model: {holds}", file=folder, mend=_PERMITTED)


def _saying(found: Foreign, more: tuple[str, ...]) -> Foreign:
    return replace(found, said=(*more, *found.said))


# Winnow's own


def _read_model(folder: Path) -> Foreign:
    file = folder / MODEL
    about = read_json(file)
    version = about.get("version")
    if not isinstance(version, int) or version > MODEL_VERSION:
        raise InputError(f"version {version!r} is not known", file=file, mend="install a newer winnow-lab")
    sizes = [about.get(name) for name in ("vocab_size", "context")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InputError("has no vocab_size or no context", file=file)
    vocab_size, context = cast("list[int]", sizes)
    digest = sha256_of([folder / WEIGHTS])
    if digest != about.get("sha256"):
        raise InputError(f"is not the file that {MODEL} names: its SHA-256 is {digest[:12]}", file=folder / WEIGHTS)
    config = _config(about.get("model"), file)
    tensors = read_safetensors(folder / WEIGHTS)
    weights = _ours(tensors, config, vocab_size, context, folder / WEIGHTS)
    return Foreign(config, weights, vocab_size, context, "winnow", digest)


def _read_checkpoint(folder: Path) -> Foreign:
    """A checkpoint; what model it is stands in `config.json` of its run's folder."""
    identity = _identity(folder)
    manifest = _whole(folder)
    if manifest.digest != identity.digest:
        message = f"is of run {manifest.digest}, and the run's folder is of {identity.digest}"
        raise InputError(message, file=folder)
    try:
        data = read_file(folder, manifest, WEIGHTS)
    except DamagedError as damage:
        raise InputError(f"is damaged: {damage}", file=folder) from damage
    tensors = safetensors.torch.load(data)
    file = folder.parent.parent / CONFIG
    config = _config(identity.config.get("model"), file)
    try:
        config = grow(config, [GraftConfig.model_validate(graft) for graft in identity.config.get("graft", ())])
    except ValidationError as error:
        raise input_errors(error)[0].at(file=file) from None
    vocab_size, context = _sizes(tensors, config, identity, folder / WEIGHTS)
    weights = _ours(tensors, config, vocab_size, context, folder / WEIGHTS)
    sha256 = manifest.files[WEIGHTS]["sha256"]
    return Foreign(config, weights, vocab_size, context, "winnow", sha256, checkpoint=folder)


def _sizes(tensors: Tensors, config: ModelConfig, identity: RunIdentity, file: Path) -> tuple[int, int]:
    """(vocab_size, context) of a run's model: the one from its embedding, the other from its task."""
    embedding = tensors.get("embedding.weight")
    if embedding is None:
        raise InputError("is missing", file=file, key="embedding.weight")
    task = identity.config.get("task")
    asked = task.get("context") if isinstance(task, dict) else None
    longest = config.max_seq_len if isinstance(config, GPTConfig) else None
    return embedding.shape[0], longest or int(asked or 1)


def _identity(checkpoint: Path) -> RunIdentity:
    file = checkpoint.parent.parent / CONFIG
    try:
        return RunIdentity.model_validate_json(file.read_bytes())
    except OSError:
        mend = "give the whole run's folder, or write the model with `winnow export RUN --layout winnow`"
        raise InputError(
            f"a checkpoint alone does not say what model it is: {CONFIG} of its run is not at {file}",
            file=checkpoint,
            mend=mend,
        ) from None
    except ValidationError as error:
        raise InputError("is no run's config.json", file=file) from error


def _whole(folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except DamagedError as damage:
        raise InputError(f"is no whole checkpoint: {damage}", file=folder) from damage


def _newest(run: Path) -> tuple[Path, tuple[str, ...]]:
    """The newest whole checkpoint of a run's folder, and a sentence for each that was passed over."""
    skipped: list[str] = []
    for folder in step_folders(run / CHECKPOINTS):
        try:
            check(folder, _identity(folder).digest)
        except DamagedError as damage:
            skipped.append(f"{folder.name}: {damage}")
            continue
        return folder, tuple(f"passed over {line}" for line in skipped)
    found = f": {'; '.join(skipped)}" if skipped else ""
    raise InputError(f"has no whole checkpoint{found}", file=run, mend="run its study again")


def _config(table: Any, file: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(table)
    except ValidationError as error:
        raise input_errors(error)[0].at(file=file) from None


def _ours(tensors: Tensors, config: ModelConfig, vocab_size: int, context: int, file: Path) -> Tensors:
    """The tensors as the model has them. Raises InputError for one too many, too few, or of another shape."""
    shapes = shapes_of(config, vocab_size, context)
    for name in shapes:
        if name not in tensors:
            raise InputError("is missing", file=file, key=name)
    for name in tensors:
        if name not in shapes:
            raise InputError("is no part of such a model", file=file, key=name)
    return {name: plain(name, tensors[name], shape, file) for name, shape in shapes.items()}


# Others'


def _read_huggingface(folder: Path, parts: tuple[Path, ...], shards: Mapping[str, Path]) -> Foreign:
    described = of_huggingface(read_json(folder / CONFIG), folder / CONFIG)
    tensors: Tensors = {}
    places: dict[str, Path] = {}
    for part in parts:
        is_pickle = part.suffix in PICKLES
        found = state_dict_of(read_pickle(part), part) if is_pickle else read_safetensors(part)
        for name, tensor in found.items():
            if name in tensors or shards.get(name, part) != part:
                raise InputError("stands in more than one file, or not where the index says", file=part, key=name)
            tensors[name], places[name] = tensor, part
    for name, part in shards.items():
        if name not in tensors:
            raise InputError("is missing, and the index names it", file=part, key=name)
    return _foreign(tensors, described, "huggingface", parts, places.__getitem__)


def _shards(index: Path) -> dict[str, Path]:
    """The file that holds each tensor, by the index of a model in several files."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise InputError("has no weight_map", file=index)
    found: dict[str, Path] = {}
    for tensor, name in cast("dict[str, Any]", table).items():
        # A name in a file that anybody may have written: it must not lead out of the folder.
        found[tensor] = index.parent / safe_name(str(name), what="file")
    return found


def _read_nanogpt(file: Path) -> Foreign:
    value = read_pickle(file)
    if not isinstance(value, dict):
        raise InputError(f"holds a {type(value).__name__}, not a table with a `model`", file=file)
    table = cast("dict[Any, Any]", value)
    if "model" not in table:
        raise InputError("has no `model`: how many heads it has stands nowhere", file=file, mend=f"write {RESAVE}")
    tensors = state_dict_of(table["model"], file, "model")
    settings, current = table.get("model_args"), True
    if settings is None:
        settings, current = table.get("config"), False
    if not isinstance(settings, dict) or "n_head" not in settings:
        raise InputError(
            "has no `model_args`: how many heads its model has stands nowhere", file=file, mend=f"write {RESAVE}"
        )
    described = of_nanogpt(cast("dict[str, Any]", settings), file, current=current)
    return _foreign(tensors, described, "nanogpt", (file,), lambda _: file)


def _foreign(
    tensors: Tensors, described: Described, layout: Layout, files: tuple[Path, ...], place: Callable[[str], Path]
) -> Foreign:
    weights, said = translated(tensors, described, layout, place)
    return Foreign(
        described.config,
        weights,
        described.vocab_size,
        described.context,
        layout,
        sha256_of(files),
        (*described.said, *said),
    )

"""Tensors in files that others wrote, read so that nothing in a file can run and nothing wrong passes.

safetensors files hold numbers alone. PyTorch's files are pickles: they are read with `weights_only=True`, which makes
nothing but tensors and plain data, and never in any other way. What that refuses is refused here.
"""

from __future__ import annotations

import hashlib
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from winnow.errors import InputError
from winnow.records.files import storage_error

Tensors = dict[str, Tensor]

RESAVE = "torch.save({'model': model.state_dict(), 'model_args': vars(config)}, 'model.pt')"
"""How the program that has the classes writes a file that anybody may read."""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_AGAIN = "copy or download it again"


def sha256_of(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, that of the lines `SHA-256  NAME` in the order of their names.

    Raises InputError for one that cannot be read.
    """
    digests: list[tuple[str, str]] = []
    for file in files:
        try:
            with file.open("rb") as opened:
                digests.append((file.name, hashlib.file_digest(opened, "sha256").hexdigest()))
        except OSError as error:
            raise storage_error(error, file, "cannot be read") from error
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(digests)).encode()).hexdigest()


def read_safetensors(file: Path) -> Tensors:
    """The tensors of a safetensors file. Raises InputError where it is not whole."""
    try:
        return safetensors.torch.load_file(file)
    except OSError as error:
        raise storage_error(error, file, "cannot be read") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"is no whole safetensors file ({error})", file=file, mend=_AGAIN) from error


def read_pickle(file: Path) -> Any:
    """What a file of `torch.save` holds: tensors, numbers, texts, lists, tables.

    Raises InputError where it is not whole, or holds anything that would have to be made by running code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how old the file's form is
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise storage_error(error, file, "cannot be read") from error
    except pickle.UnpicklingError as error:
        raise _refused(file, str(error)) from error
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).strip().splitlines()[0].split(". ")[0] if str(error).strip() else type(error).__name__
        raise InputError(f"is no whole file of torch.save ({reason})", file=file, mend=_AGAIN) from error


def _refused(file: Path, reason: str) -> InputError:
    found = _GLOBAL.search(reason)
    named = found[1] if found is not None else _first_called(file)
    if named is None:
        what = "it is a pickle, and not of the kind that torch.save writes; reading such a one may run anything"
        return InputError(f"is refused: {what}", file=file, mend=f"if it is your own, write it again: {RESAVE}")
    return InputError(
        f"is refused: reading it would run {named}, and a file of weights need run nothing",
        file=file,
        mend=f"if it is your own, write it again as plain data, in the program that knows {named}: {RESAVE}",
    )


def _first_called(file: Path) -> str | None:
    """The first name that a bare pickle would look up to call, read from its opcodes alone; None: there is none."""
    texts: list[str] = []
    try:
        with file.open("rb") as opened:
            for opcode, argument, _ in pickletools.genops(opened):
                if opcode.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(texts[-2:]) or None
                if "UNICODE" in opcode.name:
                    texts.append(str(argument))
    except (OSError, ValueError):
        return None  # it is cut off, or no pickle at all
    return None


def state_dict_of(value: Any, file: Path, what: str = "it") -> Tensors:
    """`value` as tensors by name. Raises InputError where it is anything else."""
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{what} is no table of tensors", file=file)
    table = cast(Mapping[Any, Any], value)
    for name, tensor in table.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{what} holds {name!r}, which is no tensor", file=file)
    return dict(table)


def plain(name: str, tensor: Tensor, shape: Sequence[int], file: Path, *, transposed: bool = False) -> Tensor:
    """The tensor as the model holds it: dense, fp32, of its own memory, and of shape `shape` once it is transposed.

    Raises InputError, naming tensor and file, for another shape, no floating-point numbers, or a number that is not
    finite.
    """
    expected = tuple(reversed(shape)) if transposed else tuple(shape)
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _FLOATS:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise InputError(f"is of {kind}", file=file, key=name, mend="give it as float32, float16, bfloat16 or float64")
    if tuple(tensor.shape) != expected:
        raise InputError(f"has shape {list(tensor.shape)}, the config says {list(expected)}", file=file, key=name)
    found = (tensor.T if transposed else tensor).detach().to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(found).all():
        raise InputError("holds numbers that are not finite", file=file, key=name, mend=_AGAIN)
    return found


def of_dtypes(tensors: Mapping[str, Tensor]) -> str | None:
    """What is said of tensors that are not fp32; None: all are."""
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"})
    return f"tensors of {', '.join(dtypes)} are converted to float32" if dtypes else None

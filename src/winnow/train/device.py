"""Where a run computes: device, threads, denormals, autocast, peak memory, and what may be promised there.

Denormals: a probability below 1e-38 makes CPU arithmetic tens of times slower, so every thread that computes flushes
them to zero. The flag belongs to a thread and is inherited by the threads it starts: it has to be set before the first
parallel operation, which is why `prepare` is the first thing that a worker does.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from winnow.errors import InputError, nearest
from winnow.train.config import TrainConfig

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def prepare(threads: int) -> None:
    """Set this process up for a run with `threads` intra-op threads; call it before any tensor is computed."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)


def denormals_flushed() -> bool:
    """Whether every thread of the intra-op pool flushes denormals, by computing with some in each of them."""
    # By their bits (1e-39): a thread that flushes could not even write the number down. A pool thread takes at least
    # 32768 elements (at::internal::GRAIN_SIZE).
    tiny = torch.full((65536 * torch.get_num_threads(),), 0x000AE398, dtype=torch.int32).view(torch.float32)
    return not bool((tiny * 1.0).view(torch.int32).any())


def find_device(name: str) -> torch.device:
    """The device called `name`: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Raises InputError if it is not here."""
    accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if name == "auto":
        name = accelerator or "cpu"
    kind, _, index = name.partition(":")
    permitted = ["auto", "cpu"]
    if accelerator == "cuda":
        permitted += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    elif accelerator:
        permitted.append(accelerator)
    if name not in permitted:
        raise InputError(f"device {name!r} is not on this machine", key="device", mend=nearest(name, permitted))
    return torch.device(kind, int(index)) if index else torch.device(kind)


def rank_device(name: str, rank: int, ranks: int) -> torch.device:
    """The device of one of several ranks: all share a CPU, each has a GPU of its own. Raises InputError where there are
    too few, or `name` is one GPU."""
    device = find_device(name)
    if ranks == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise InputError(f"{ranks} ranks do not share {name}", key="--device", mend="use cuda, or cpu")
    if (here := torch.cuda.device_count()) < ranks:
        raise InputError(f"{ranks} ranks need a GPU each, here are {here}", key="--ranks", mend=f"at most {here}")
    return torch.device("cuda", rank)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass. Raises InputError where bf16 is asked for and the device has none."""
    if precision == "fp32":
        return contextlib.nullcontext()
    if not torch.amp.is_autocast_available(device.type) or (
        device.type == "cuda" and not torch.cuda.is_bf16_supported()
    ):
        raise InputError(f"{device} has no bf16", key="train.precision", mend='use precision = "fp32"')
    return torch.autocast(device.type, dtype=torch.bfloat16)


def exactness(
    train: TrainConfig, device: torch.device, threads: int, ranks: str = "1 rank"
) -> tuple[bool, tuple[str, ...]]:
    """Whether two runs on one machine are expected to be bit-identical, and what stands against it.

    ranks: as `Group.named` says them.
    """
    notes: list[str] = []
    if ranks != "1 rank":
        notes.append(f"{ranks}: not bit-exact unless verified")
    if train.compile:
        notes.append("compiled: not bit-exact")
    if device.type != "cpu":
        notes.append(f"{device.type}: not bit-exact unless verified")
    elif threads > 1:
        notes.append(f"{threads} threads: not bit-exact unless verified")
    return not notes, tuple(notes)


class PeakMemory:
    """Most memory used since this was made, in bytes.

    On CUDA what the allocator held for tensors; elsewhere the resident size of the process, interpreter included.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _CLEAR.exists():
            # Linux: the kernel forgets the peak of earlier runs of this process. A container may forbid it.
            with contextlib.suppress(PermissionError):
                _CLEAR.write_text("5")

    def read(self) -> int:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

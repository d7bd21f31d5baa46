"""Denormals in every thread, devices by name, and what may be promised where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from winnow.errors import InputError
from winnow.train.config import TrainConfig
from winnow.train.device import PeakMemory, autocast, exactness, find_device

PROBE = """
import json, sys, threading
import torch
from winnow.train.device import denormals_flushed, prepare

THREADS = 4
if sys.argv[1] == "late":
    torch.set_num_threads(THREADS)
    torch.zeros(1 << 20).add_(1.0)   # the pool's threads start here, before the flag is set
prepare(THREADS)

CHUNK = 1 << 18
# By their bits: a thread that flushes could not even write 1e-39 down.
tiny = torch.full((THREADS * CHUNK,), 0x000AE398, dtype=torch.int32).view(torch.float32)
assert tiny.view(torch.int32).ne(0).all()

def alive():
    # Elements that survive a multiplication, by the pool thread that computed them (the pool cuts evenly).
    bits = (tiny * 1.0).view(torch.int32).ne(0)
    return [int(part.sum()) for part in bits.chunk(THREADS)]

class InBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, grad):
        found["backward"] = alive()
        return grad

found = {"pool": alive(), "said": denormals_flushed()}
x = torch.ones(3, requires_grad=True)
InBackward.apply(x).sum().backward()
a = torch.full((256, 256), 1e-30)
found["matmul"] = int(((a * 1e-5) @ (a * 1e-5)).view(torch.int32).ne(0).sum())
found["threads"] = torch.get_num_threads()
print(json.dumps(found))
"""


def probe(when: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "OMP_DYNAMIC": "FALSE"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, when], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout)


def test_every_thread_flushes_denormals() -> None:
    found = probe("first")
    assert found["threads"] == 4
    assert found["pool"] == [0, 0, 0, 0]
    assert found["backward"] == [0, 0, 0, 0]
    assert found["matmul"] == 0
    assert found["said"] is True


def test_the_probe_sees_threads_that_do_not() -> None:
    """Set too late, the flag reaches the calling thread alone: the test above can fail, and the run would say so."""
    found = probe("late")
    assert found["pool"] == [0, 1 << 18, 1 << 18, 1 << 18]
    assert found["said"] is False


def test_unknown_devices_are_refused_with_what_there_is() -> None:
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"'gpu' is not on this machine.*permitted: auto, cpu"):
        find_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="not on this machine"):
            find_device("cuda:0")


def test_bf16_where_supported() -> None:
    with autocast(torch.device("cpu"), "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"train\.precision: meta has no bf16"):
        autocast(torch.device("meta"), "bf16")


def test_what_is_promised() -> None:
    cpu, train = torch.device("cpu"), TrainConfig()
    assert exactness(train, cpu, 1) == (True, ())
    assert exactness(train, cpu, 2) == (False, ("2 threads: not bit-exact unless verified",))
    assert exactness(train.replace({"compile": True}), cpu, 1) == (False, ("compiled: not bit-exact",))
    assert exactness(train, torch.device("cuda:0"), 1)[0] is False


def test_peak_memory_is_of_this_run() -> None:
    def peak(elements: int) -> int:
        memory = PeakMemory(torch.device("cpu"))
        torch.ones(elements)
        return memory.read()

    large, small = peak(64 << 20), peak(1)
    assert large - small > 200 << 20  # 256 MiB, less what the allocator had at hand

"""The measurements of bench/attention.py, each in a process of its own with a fixed number of threads.

python bench/attention_sections.py SECTION THREADS [--quick]      prints JSON on its last line
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from attention_inputs import DENSE, Function, H, Inputs, make, make_live, naive, sdpa
from winnow.kernels import compiled
from winnow.kernels.rule import Rule
from winnow.kernels.selective import Backend, calls, selection_usage, selective_attention
from winnow.train.config import RunConfig
from winnow.train.device import PeakMemory, prepare
from winnow.train.loop import Loop

B = 4
JUDGED = ("two masks", "protection", "memory penalty")
"""Variants that have a goal."""

GPT_TEXT = "A GPT of 4 layers and width 256 (4 heads of 64), rotary, T=512, 4 rows of bytes of the standard library"
GPT: dict[str, Any] = {
    "task": {"kind": "corpus", "source": "stdlib", "context": 512},
    "model": {"kind": "gpt", "d_model": 256, "n_layers": 4, "n_heads": 4, "positions": "rotary"},
    "train": {"steps": 1000, "tokens_per_update": 4 * 512, "lr": 1e-3},
    "evaluation": {"every": 1000, "tokens": 4096},
}


backend: Backend = "auto"
"""What the op runs on; as a model calls it, unless `--backend` says otherwise."""


def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The plain op."""
    return selective_attention(q, k, v, backend=backend)


def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in PyTorch alone."""
    return selective_attention(q, k, v, backend="chunked")


WAYS: Mapping[str, Function] = {"sdpa": sdpa, "op": op, "chunked": chunked, "naive": naive}


def turns(ways: Mapping[str, Callable[[], object]], rounds: Mapping[str, int], threads: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; a way sits out once it has had its number of rounds."""
    clock = time.process_time if threads == 1 else time.perf_counter
    for way in ways.values():
        way()  # the first call finds the allocator empty
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(max(rounds.values())):
        for name, way in ways.items():
            if number < rounds[name]:
                start = clock()
                way()
                times[name].append(clock() - start)
    return times


def ratios(times: Mapping[str, list[float]], one: str, other: str) -> list[float]:
    """One over the other in every round that both had."""
    return [a / b for a, b in zip(times[one], times[other], strict=False)]


def ran() -> str:
    """Backend of the op's latest calls, as the backends themselves count."""
    backends = {name.partition(".")[0] for name in calls}
    calls.clear()
    if "cpu" in backends:
        backends = (backends - {"cpu"}) | {f"cpu, {compiled.INSTANCES[compiled.instance()]}"}
    return "; ".join(sorted(backends))


def backend_of(inputs: Inputs) -> str:
    calls.clear()
    inputs.both(op)
    return ran()


def dense(threads: int, quick: bool, compiled: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for T in (128, 256) if quick else (256, 512, 1024, 2048):
        x = make(B, T, DENSE)
        many = 3 if quick else 15 if T < 2048 else 10
        few = 2 if quick else {256: 7, 512: 5, 1024: 3}.get(T, 1)
        ways = {
            "sdpa forward": lambda x=x: x.forward(sdpa),
            "forward": lambda x=x: x.forward(op),
            "sdpa both": lambda x=x: x.both(sdpa),
            "both": lambda x=x: x.both(op),
            "chunked": lambda x=x: x.both(chunked),
            "naive": lambda x=x: x.both(naive),
        }
        if compiled:
            fast = torch.compile(naive)
            ways["compiled"] = lambda x=x, fast=fast: x.both(fast)
        times = turns(ways, {name: few if name in ("chunked", "naive", "compiled") else many for name in ways}, threads)
        ratio = {name: statistics.median(ratios(times, name, "sdpa both")) for name in ways if "sdpa" not in name}
        ratio["forward"] = statistics.median(ratios(times, "forward", "sdpa forward"))
        quarters = statistics.quantiles(ratios(times, "both", "sdpa both"), n=4)
        found.append(
            {
                "T": T,
                "live": x.live,
                "backend": backend_of(x),
                "ratio": ratio,
                "quartiles": [quarters[0], quarters[2]],
            }
        )
    return found


def compacted(threads: int, quick: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for T in (512,) if quick else (1024, 2048):
        for share in (0.3, 0.15):
            x = make_live(B, T, share)
            ways = {
                "sdpa forward": lambda x=x: x.forward(sdpa),
                "forward": lambda x=x: x.forward(op),
                "sdpa both": lambda x=x: x.both(sdpa),
                "both": lambda x=x: x.both(op),
            }
            times = turns(ways, dict.fromkeys(ways, 3 if quick else 10), threads)
            ratio = {
                "forward": statistics.median(ratios(times, "forward", "sdpa forward")),
                "both": statistics.median(ratios(times, "both", "sdpa both")),
            }
            found.append({"T": T, "asked": share, "live": x.live, "backend": backend_of(x), "ratio": ratio})
    return found


def variant_ways(x: Inputs) -> dict[str, Callable[[], object]]:
    """The plain op and its variants, forward and backward, every key live."""
    B, T = x.q.shape[:2]
    apart = make(B, T, DENSE, seed=1)  # selectors that are no heads: only those of head 0 are shifted
    q1, k1 = (t[:, :, :1].detach().requires_grad_() for t in (apart.q, apart.k))
    q2, k2 = (t[:, :, :1].detach().repeat(1, 1, 2, 1).requires_grad_() for t in (apart.q, apart.k))
    heads = (x.q, x.k, x.v)
    run = partial(selective_attention, backend=backend)
    two = Rule(spread=tuple(h * 2 // H for h in range(H)))
    protected = Rule(spread=(0,) * H, protection="scores")
    slope = torch.ones(B, 1, T) / T

    def penalty() -> object:
        found = selection_usage(*heads, tau=1.0, backend=backend)
        return torch.autograd.grad((found.out, found.usage), heads, (x.slope, slope.to(found.usage)))

    def selected(q: Tensor, k: Tensor, rule: Rule | None) -> Callable[[], object]:
        inputs = (*heads, q, k)
        return lambda: torch.autograd.grad(run(*heads, select=(q, k), rule=rule), inputs, x.slope)

    return {
        "plain": lambda: x.both(op),
        "two masks": selected(q2, k2, two),
        "protection": lambda: x.both(lambda q, k, v: run(q, k, v, protect=1, rule=protected)),
        "memory penalty": penalty,
        "a selector of its own": selected(q1, k1, None),
    }


def variants(threads: int, quick: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for T in (128,) if quick else (512, 1024):
        x = make(B, T, DENSE)
        ways = variant_ways(x)
        calls.clear()
        times = turns(ways, dict.fromkeys(ways, 3 if quick else 12), threads)
        ratio = {name: statistics.median(ratios(times, name, "plain")) for name in ways if name != "plain"}
        found.append({"T": T, "backend": ran(), "ratio": ratio})
    return found


def lengths_of_memory(quick: bool) -> tuple[int, ...]:
    return (256,) if quick else (1024, 2048)


def memory(way: str, T: int) -> int:
    """Bytes by which one forward and backward pass raises the resident size of this process."""
    function = WAYS[way]
    make(1, 64, DENSE).both(function)  # libraries and thread pools stand
    x = make(B, T, DENSE)
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # memory that is free and resident would hide what the pass needs
    peak = PeakMemory(torch.device("cpu"))
    start = peak.read()
    x.both(function)
    found = peak.read() - start
    assert found > x.slope.nbytes, "less than one gradient: the peak was not measured"
    return found


def scaling(quick: bool) -> dict[str, float]:
    """Wall seconds of one row, by T."""
    found: dict[str, float] = {}
    for T in (256,) if quick else (1024, 2048):
        x = make(1, T, DENSE)
        times = turns({"op": lambda x=x: x.both(op)}, {"op": 5 if quick else 15}, threads=2)
        found[str(T)] = statistics.median(times["op"])
    return found


def training(threads: int, quick: bool) -> dict[str, Any]:
    """Tokens per second of the selective twin over those of the other."""
    updates: dict[str, Callable[[], object]] = {}
    for kind in ("softmax", "selective"):
        model = {**GPT["model"], "attention": {"kind": kind}}
        config = RunConfig.model_validate({**GPT, "model": model})
        updates[kind] = Loop(config, seed=0, device=torch.device("cpu")).update
    calls.clear()
    for update in updates.values():
        update()
    times = turns(updates, dict.fromkeys(updates, 3 if quick else 12), threads)
    found = ratios(times, "softmax", "selective")
    quarters = statistics.quantiles(found, n=4)
    return {
        "backend": ran(),
        "ratio": statistics.median(found),
        "quartiles": [quarters[0], quarters[2]],
    }


def check() -> str:
    """The op's answer against the definition in fp64, dense and compacted. Raises AssertionError where it is wrong."""
    worst = 0.0
    for x in (make(2, 130, DENSE), make(1, 513, 0.5)):
        wide = [t.detach().double().requires_grad_() for t in (x.q, x.k, x.v)]
        exact = (naive(*wide), *torch.autograd.grad(naive(*wide), wide, x.slope.double()))
        for function in (op, chunked):
            found = (x.forward(function), *x.both(function))
            again = x.both(function)
            assert all(torch.equal(a, b) for a, b in zip(found[1:], again, strict=True)), "gradients do not repeat"
            for mine, true in zip(found, exact, strict=True):
                worst = max(worst, float((mine.detach().double() - true.detach()).norm() / true.detach().norm()))
    assert worst < 2e-6, f"relative error {worst:.1e}: nothing is timed"
    return f"relative error against fp64 at most {worst:.0e}, gradients repeat bit for bit."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section")
    parser.add_argument("threads", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--way", default="op")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--backend", default="auto", choices=get_args(Backend))
    asked = parser.parse_args()
    global backend
    backend = asked.backend
    prepare(asked.threads)
    answers: dict[str, Callable[[], Any]] = {
        "check": check,
        "dense": lambda: dense(asked.threads, asked.quick, asked.compiled),
        "compacted": lambda: compacted(asked.threads, asked.quick),
        "variants": lambda: variants(asked.threads, asked.quick),
        "memory": lambda: memory(asked.way, asked.length),
        "scaling": lambda: scaling(asked.quick),
        "training": lambda: training(asked.threads, asked.quick),
    }
    print(json.dumps(answers[asked.section]()))


if __name__ == "__main__":
    main()

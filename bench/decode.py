"""One attention step of decoding with a pruned cache, against full-cache attention; then whole models.

    python bench/decode.py [--rounds N] [--no-model]

The step is everything between a layer's projections: making room for the key, writing it, attention, the query's votes.
Baseline: PyTorch's scaled_dot_product_attention of one query over all T keys, without writing any. Every round times
each of them in turn over caches that together exceed the processor's; CPU time of this process, medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import cycle

import torch
from torch.nn import functional as F

from report import heading, publish, table
from winnow.attention import Attention, LayerCache, MixerState, SelectiveConfig, Shape, SoftmaxConfig
from winnow.attention.prune import NoneConfig, VotesConfig
from winnow.models import ModelConfig
from winnow.parameters import initialise

T, H, D = 2048, 12, 64
KEPT = (16, 25, 47)
GOALS = {1: (10, 13, 18), 8: (13, 18, 30)}
MEMORY = 160 * 2**20
"""Bytes that the caches of one measurement take together: several times the processor's own."""


def layer(config: SoftmaxConfig | SelectiveConfig) -> Attention:
    shape = Shape(H * D, H, H, D, layer=0, n_layers=1, max_seq_len=T, bias=True, rotary=False)
    return config.build(shape)


def filled(cache: LayerCache) -> LayerCache:
    """As it stands before the last token of the context."""
    held = T - 1 if cache.policy.slots == T else cache.policy.slots
    cache.k[:, :, :held].normal_()
    cache.v[:, :, :held].normal_()
    cache.position[:, :held] = torch.arange(T - 1 - held, T - 1)
    cache.position[:, 0] = 0
    cache.newest.fill_(T - 2)
    cache.slot.fill_(held - 1)
    if cache.votes is not None:
        cache.votes[:, :, :held].uniform_(0, 20)
    return cache


def caches(attention: Attention, batch: int, part: int) -> list[LayerCache]:
    policy = NoneConfig() if part == 1 else VotesConfig()
    made = [filled(attention.cache(batch, T // part, T, policy))]
    copies = max(2, min(48, MEMORY // made[0].bytes))
    return made + [filled(attention.cache(batch, T // part, T, policy)) for _ in range(copies - 1)]


def step_of(attention: Attention, batch: int, part: int) -> Callable[[], object]:
    q = torch.randn(batch, 1, H, D)
    k, v = torch.randn(2, batch, 1, H, D)
    turns = cycle(caches(attention, batch, part))
    state = MixerState()

    def step() -> object:
        cache = next(turns)
        cache.newest.fill_(T - 2)
        cache.write(k, v)
        return attention.look(q, cache, state)

    return step


def full_attention(batch: int) -> Callable[[], object]:
    q = torch.randn(batch, H, 1, D)
    copies = max(2, min(48, MEMORY // (2 * batch * H * T * D * 4)))
    turns = cycle([torch.randn(2, batch, H, T, D) for _ in range(copies)])

    def step() -> object:
        k, v = next(turns)
        return F.scaled_dot_product_attention(q, k, v)

    return step


def medians(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU microseconds of one step of each, interleaved."""
    repeats: dict[str, int] = {}
    for name, step in steps.items():  # about 30 ms a turn, so that the clock's grain is nothing
        step()
        started = time.process_time()
        for _ in range(5):
            step()
        repeats[name] = max(3, round(0.03 / max((time.process_time() - started) / 5, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            for _ in range(repeats[name]):
                step()
            found[name].append((time.process_time() - started) / repeats[name] * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}


def attention_rows(rounds: int) -> Iterable[list[str]]:
    selective, softmax = layer(SelectiveConfig()), layer(SoftmaxConfig())
    for batch in GOALS:
        steps = {"full": full_attention(batch), "softmax": step_of(softmax, batch, 1)}
        steps |= {f"1/{part}": step_of(selective, batch, part) for part in (1, *KEPT)}
        found = medians(steps, rounds)
        base = found["full"]
        yield [f"{batch}", "SDPA, full cache, no write", f"{base:.0f}", "1", "", ""]
        yield [
            f"{batch}",
            "softmax step, full cache",
            f"{found['softmax']:.0f}",
            f"{base / found['softmax']:.2f}x",
            "",
            "",
        ]
        extra = (found["1/1"] / base - 1) * 100
        bytes_of = selective.cache(batch, T, T, NoneConfig()).bytes / (2 * batch * H * T * D * 4)
        yield [f"{batch}", "selective step, full cache", f"{found['1/1']:.0f}", f"{base / found['1/1']:.2f}x",
               f"votes at most +8 %: {extra:+.1f} %", f"{bytes_of:.4f}"]  # fmt: skip
        for part, goal in zip(KEPT, GOALS[batch], strict=True):
            cache = selective.cache(batch, T // part, T, VotesConfig())
            over = cache.bytes / (2 * batch * H * T * D * 4) / ((T // part + 1) / T)
            ratio = base / found[f"1/{part}"]
            yield [f"{batch}", f"selective step, 1/{part} kept ({T // part} keys)", f"{found[f'1/{part}']:.0f}",
                   f"{ratio:.1f}x", f"{goal}x: {'met' if ratio >= goal else 'missed'}",
                   f"{over:.4f} of (K + 1)/T"]  # fmt: skip


def model_rows(rounds: int) -> Iterable[list[str]]:
    """Whole steps of a model of GPT-2's smallest size, with a vocabulary of 8,192, at the end of its context."""
    sizes = {"d_model": H * D, "n_layers": 12, "n_heads": H, "positions": "none"}
    for batch in GOALS:
        steps: dict[str, Callable[[], object]] = {}
        for kind in ("softmax", "selective"):
            model = (
                ModelConfig.model_validate({"kind": "gpt", **sizes, "attention": {"kind": kind}}).build(8192, T).eval()
            )
            initialise(model, 0)
            token = torch.zeros(batch, 1, dtype=torch.int64)
            for part in (1,) if kind == "softmax" else (1, *KEPT):
                cache = model.cache(batch, T, T // part, None if part == 1 else VotesConfig())
                for of_layer in cache.layers.values():
                    filled(of_layer)

                def step(model=model, cache=cache, token=token) -> object:
                    for of_layer in cache.layers.values():
                        of_layer.newest.fill_(T - 2)
                    return F.linear(model.extend(token, cache).hidden, model.readout_weight.detach())

                steps[f"{kind}, {'full cache' if part == 1 else f'1/{part} kept'}"] = step
        found = medians(steps, rounds)
        base = found["softmax, full cache"]
        for name, time_of in found.items():
            yield [f"{batch}", name, f"{batch / time_of * 1e6:.1f}", f"{base / time_of:.2f}x"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-model", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    text = heading("Decoding with a pruned cache", "decode", threads=1)
    text += (
        f"\nfp32, T = {T}, H = {H}, D = {D}; CPU time, median of {asked.rounds} interleaved rounds. Selective steps "
        "run the C++ kernel, softmax ones PyTorch's operations.\n\n"
    )
    text += table(
        ["batch", "one attention step", "µs", "speed-up", "goal", "cache over full"], attention_rows(asked.rounds)
    )
    if not asked.no_model:
        text += (
            "\nWhole steps, 12 layers of 768 and a vocabulary of 8,192, at the end of a context of 2,048: tokens per "
            "second of CPU time, all rows together. Some 91 M weights are read for every step, whatever the cache.\n\n"
        )
        text += table(["batch", "model", "tokens/s", "over softmax"], model_rows(max(3, asked.rounds // 3)))
    publish("decode", text)


if __name__ == "__main__":
    main()

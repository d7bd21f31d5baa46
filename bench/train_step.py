"""A training step of Winnow's GPT against Hugging Face transformers' GPT-2: time and peak memory.

    python bench/train_step.py [--rounds 15] > bench/results/train_step.md

Same shape, number of parameters, batch, fp32, fused AdamW, denormals flushed, no dropout, SDPA on both sides; learned
positions, as GPT-2's (the other rows are what the quickstart trains). Models take turns within every round of one
process per thread count, and the median of the rounds' ratios is reported, so that a busy machine disturbs all alike;
with one thread the process's CPU time is taken, which a busy machine disturbs least, with two the wall time.
Before anything is timed, both models get the same weights and must give the same logits.

Peak memory: a fresh process builds one model, then trains five steps; what its largest resident size (ru_maxrss) grew
by since the model stood is gradients, optimizer state, activations and temporaries.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers  # pyright: ignore[reportMissingImports] (an extra: `bench`)
from torch import Tensor, nn
from torch.nn import functional

from winnow.kernels.linear import linear
from winnow.kernels.readout import linear_cross_entropy
from winnow.models import Model, ModelConfig
from winnow.parameters import initialise


@dataclass(frozen=True)
class Setting:
    """One shape to train."""

    name: str
    batch: int
    context: int
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int


SETTINGS = (
    Setting("quickstart", 32, 64, 256, 64, 2, 4),
    Setting("mini", 16, 256, 4096, 256, 4, 4),
)
ROWS: dict[str, dict[str, Any]] = {
    "learned positions": {},
    "rotary": {"positions": "rotary"},
    "rotary, RMSNorm": {"positions": "rotary", "norm": {"kind": "rmsnorm"}},
    "rotary, selective": {"positions": "rotary", "attention": {"kind": "selective"}},
}
BASELINE = "transformers"
GOAL = 1.5

Step = Callable[[Tensor, Tensor], None]


def ours(setting: Setting, changes: dict[str, Any]) -> Model:
    table = {"d_model": setting.d_model, "n_layers": setting.n_layers, "n_heads": setting.n_heads, **changes}
    model = ModelConfig.model_validate(table).build(setting.vocab_size, setting.context)
    initialise(model, 0)
    return model


def theirs(setting: Setting) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=setting.vocab_size,
        n_positions=setting.context,
        n_embd=setting.d_model,
        n_layer=setting.n_layers,
        n_head=setting.n_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    config._attn_implementation = "sdpa"
    return transformers.GPT2LMHeadModel(config).train()


def check_equal(setting: Setting) -> None:
    """Our GPT with GPT-2's weights gives GPT-2's logits; raises AssertionError otherwise."""
    model, reference = ours(setting, {}), theirs(setting)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters())
    names = {"wte": "embedding", "wpe": "positions", "ln_f": "norm", "h.": "blocks.", "ln_1": "norm1", "ln_2": "norm2"}
    names |= {"attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out", "c_fc": "up", "mlp.c_proj": "mlp.down"}
    weights: dict[str, Tensor] = {}
    for name, parameter in reference.named_parameters():
        transposed = ".c_" in name and name.endswith("weight")
        name = name.removeprefix("transformer.")
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = parameter.T if transposed else parameter
    model.load_state_dict(weights)
    tokens = torch.randint(setting.vocab_size, (2, setting.context))
    with torch.no_grad():
        expected = reference(input_ids=tokens).logits
        torch.testing.assert_close(model.logits(tokens), expected, rtol=1e-4, atol=1e-5)


def stepper(name: str, setting: Setting) -> Step:
    if name == BASELINE:
        reference = theirs(setting)

        def loss(tokens: Tensor, targets: Tensor) -> Tensor:
            return reference(input_ids=tokens, labels=targets).loss

        parameters = reference.parameters()
    else:
        model = ours(setting, ROWS[name])

        def loss(tokens: Tensor, targets: Tensor) -> Tensor:
            return linear_cross_entropy(model(tokens).hidden, model.readout_weight, targets)

        parameters = model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(tokens: Tensor, targets: Tensor) -> None:
        loss(tokens, targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def batch(setting: Setting) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(setting.vocab_size, (setting.batch, setting.context + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def measure_time(setting: Setting, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round's step, by row."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    clock = time.process_time if threads == 1 else time.perf_counter
    check_equal(setting)
    steps = {name: stepper(name, setting) for name in (BASELINE, *ROWS)}
    data = batch(setting)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):
        for name, step in steps.items():
            start = clock()
            step(*data)
            if number >= 3:  # the first steps find the allocator empty
                times[name].append(clock() - start)
    return times


def measure_linear(d_in: int, d_out: int, rounds: int) -> list[float]:
    """F.linear's CPU time over `kernels.linear`'s, forward and backward of 4,096 tokens on one thread, by round."""
    torch.set_num_threads(1)
    x, weight, bias = (torch.randn(size, requires_grad=True) for size in ((4096, d_in), (d_out, d_in), (d_out,)))
    slope = torch.randn(4096, d_out)
    ratios: list[float] = []
    for _ in range(rounds + 2):
        spent: list[float] = []
        for function in (functional.linear, linear):
            start = time.process_time()
            torch.autograd.grad(function(x, weight, bias), (x, weight, bias), slope)
            spent.append(time.process_time() - start)
        ratios.append(spent[0] / spent[1])
    return ratios[2:]


def measure_memory(setting: Setting, name: str) -> int:
    """Bytes by which five steps raise this process's largest resident size."""
    torch.set_num_threads(1)
    step, data = stepper(name, setting), batch(setting)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        step(*data)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def in_process(*arguments: str) -> Any:
    """This file's answer in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(rounds: int, date: str) -> None:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?: ?")
    print("# A training step against transformers' GPT-2\n")
    print(
        f"{date}. {cpu.split(': ', 1)[1]}, {os.cpu_count()} cores, {platform.system()}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}. fp32. Load average at the start "
        f"{os.getloadavg()[0]:.1f}. Written by `python bench/train_step.py`.\n"
    )
    for setting in SETTINGS:
        tokens = setting.batch * setting.context
        print(
            f"## {setting.name}: {setting.n_layers} layers x {setting.d_model}, context {setting.context}, vocabulary "
            f"{setting.vocab_size}, batch {setting.batch}\n"
        )
        memory = {name: in_process("--memory", setting.name, name) for name in (BASELINE, *ROWS)}
        print("| threads | model | tokens/s | ratio (median of rounds) | quartiles | peak memory, MB | ratio |")
        print("|---|---|---|---|---|---|---|")
        for threads in (1, 2):
            times = in_process("--time", setting.name, str(threads), "--rounds", str(rounds))
            for name, seconds in times.items():
                ratios = [base / own for base, own in zip(times[BASELINE], seconds, strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(
                    f"| {threads} | {name} | {tokens / statistics.median(seconds):,.0f} | {middle:.2f} | {low:.2f} to "
                    f"{high:.2f} | {memory[name] / 1e6:.0f} | {memory[name] / memory[BASELINE]:.2f} |",
                    flush=True,
                )
        print()
    print("## Linear maps: time of F.linear over Winnow's, forward and backward, 4,096 tokens, one thread\n")
    print("| map | ratio (median of rounds) | quartiles |\n|---|---|---|")
    for d_in, d_out in ((64, 256), (256, 768), (256, 1024), (1024, 256)):
        low, middle, high = statistics.quantiles(measure_linear(d_in, d_out, 2 * rounds), n=4)
        print(f"| {d_in} to {d_out} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)
    print(f"\nGoal: learned positions at least {GOAL} in tokens/s, at most 1 in memory. {rounds} rounds.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    parser.add_argument("--time", nargs=2, metavar=("SETTING", "THREADS"))
    parser.add_argument("--memory", nargs=2, metavar=("SETTING", "ROW"))
    options = parser.parse_args()
    settings = {setting.name: setting for setting in SETTINGS}
    warnings.simplefilter("ignore")
    if options.time:
        print(json.dumps(measure_time(settings[options.time[0]], int(options.time[1]), options.rounds)))
    elif options.memory:
        print(measure_memory(settings[options.memory[0]], options.memory[1]))
    else:
        report(options.rounds, options.date)


if __name__ == "__main__":
    main()

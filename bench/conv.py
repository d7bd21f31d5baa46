"""Training samples per second of a convolutional model, against a plain PyTorch loop written the obvious way.

    python bench/conv.py [--rounds 9] > bench/results/conv.md

The model: bytes, width 64, three layers with kernel 13 and dilations 3, 5, 1, the last with linear attention (elu + 1,
QK); 64 samples an update: five letters, one to three exchanges, the result; 15 to 23 bytes; fp32, AdamW at 5e-4.

    plain    nn.Conv1d, one-hot targets, samples drawn and encoded text by text, AdamW as PyTorch makes it by default
    winnow   `Loop.update` as every run does it, its health watch included

Winnow gives every run one thread and runs as many as there are cores; so two runs of one thread each stand against a
plain loop of two threads, and one run against a plain loop of one thread. Both take turns in every round, and the
median of the rounds' ratios is reported; with one thread of CPU time, which a busy machine disturbs least. Before
anything is timed, both models get the same weights and must give the same loss and gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from winnow.kernels.convolution import convolution
from winnow.kernels.readout import linear_cross_entropy
from winnow.models import ModelConfig
from winnow.parameters import initialise
from winnow.tasks import TaskConfig
from winnow.train.config import RunConfig
from winnow.train.device import prepare
from winnow.train.loop import Loop

ROWS, CONTEXT, WIDTH, DILATIONS = 64, 23, 64, (3, 5, 1)
STEPS = 20
"""Updates of one turn."""
GOAL = 1.5
MODEL: dict[str, Any] = {
    "kind": "conv",
    "d_model": WIDTH,
    "n_layers": len(DILATIONS),
    "kernel": 13,
    "dilation": list(DILATIONS),
    "attention": ["none", "none", {"kind": "linear", "qkv": "QK"}],
}


# The plain loop


class PlainLayer(nn.Module):
    def __init__(self, dilation: int, attention: bool) -> None:
        super().__init__()
        self.attention = attention
        outputs = 2 * WIDTH if attention else WIDTH
        self.conv = nn.Conv1d(WIDTH, outputs, 13, padding=6 * dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.attention:
            q, k = (functional.elu(part).permute(0, 2, 1) + 1 for part in y.split(WIDTH, dim=1))
            v = x.permute(0, 2, 1)
            y = (q @ (k.permute(0, 2, 1) @ v) / (v.shape[1] * v.shape[2])).permute(0, 2, 1)
        return functional.gelu(y) + x


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.layers = nn.Sequential(*(PlainLayer(d, d == DILATIONS[-1]) for d in DILATIONS))

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.layers(self.embedding(tokens).permute(0, 2, 1))
        return y.permute(0, 2, 1) @ self.embedding.weight.T


def plain_sample() -> tuple[str, str]:
    """The text that the model reads, and the whole text."""
    letters = random.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 5)
    result, operations = list(letters), []
    for _ in range(random.randint(1, 3)):
        i, j = random.sample(range(5), 2)
        result[i], result[j] = result[j], result[i]
        operations.append(f"{i + 1}>{j + 1}")
    question = "".join(letters) + ":" + " ".join(operations) + ":"
    return question + "\0" * 5, question + "".join(result)


def plain_batch() -> tuple[Tensor, Tensor]:
    """Bytes, and one-hot targets."""
    samples = [plain_sample() for _ in range(ROWS)]
    longest = max(len(text) for text, _ in samples)
    encoded = [
        torch.stack([torch.tensor(list(text.ljust(longest).encode())) for text in texts])
        for texts in zip(*samples, strict=True)
    ]
    return encoded[0], functional.one_hot(encoded[1], 256).float()


class PlainLoop:
    def __init__(self) -> None:
        self.model = Plain()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 15625)

    def update(self) -> float:
        tokens, targets = plain_batch()
        loss = functional.cross_entropy(self.model(tokens).flatten(0, 1), targets.flatten(0, 1))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


# Winnow


def winnow_loop() -> Loop:
    config = RunConfig.model_validate(
        {"task": {"kind": "programs"}, "model": MODEL, "train": {"preset": "as_published"}}
    )
    return Loop(config, seed=0, device=torch.device("cpu"))


# Measurement


def check_equal() -> None:
    """The same weights give the same loss and gradients; raises AssertionError otherwise."""
    plain = Plain()
    ours = ModelConfig.model_validate(MODEL).build(256, CONTEXT)
    initialise(ours, 0)
    of_plain, of_ours = dict(plain.named_parameters()), dict(ours.named_parameters())
    for name, parameter in of_plain.items():
        parameter.data.copy_(of_ours[name.replace("conv.", "")].data)
    batch = TaskConfig.model_validate({"kind": "programs"}).build().batch(0, 0, range(ROWS), ROWS)
    tokens, targets = batch.tokens, batch.targets
    expected = functional.cross_entropy(
        plain(tokens).flatten(0, 1), functional.one_hot(targets, 256).float().flatten(0, 1)
    )
    found = linear_cross_entropy(ours(tokens).hidden, ours.readout_weight, targets)
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    for name, parameter in of_plain.items():
        torch.testing.assert_close(of_ours[name.replace("conv.", "")].grad, parameter.grad, rtol=1e-3, atol=1e-5)


def child(what: str, threads: int) -> None:
    """Turns of updates on demand: a line in, the seconds (wall, CPU) out."""
    prepare(threads)
    loop: Any = PlainLoop() if what == "plain" else winnow_loop()
    for _ in range(3):
        loop.update()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            loop.update()
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


class Child:
    def __init__(self, what: str, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", what, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def start(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def seconds(self) -> tuple[float, float]:
        """Wall and CPU."""
        assert self.process.stdout is not None
        wall, cpu = json.loads(self.process.stdout.readline())
        return wall, cpu

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def turn(children: list[Child], clock: str) -> float:
    """Samples per second of children that work at the same time."""
    for one in children:
        one.start()
    spent = [one.seconds()[0 if clock == "wall" else 1] for one in children]
    return len(children) * STEPS * ROWS / max(spent)


def measure_layers(rounds: int) -> dict[str, list[float]]:
    """CPU time of F.conv1d over `kernels.convolution`'s, forward and backward, one thread, by layer and round."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    for outputs, dilation in ((64, 3), (64, 5), (128, 1)):
        x, weight, bias = (
            torch.randn(s, requires_grad=True) for s in ((CONTEXT, ROWS, 64), (outputs, 64, 13), (outputs,))
        )
        slope = torch.randn(CONTEXT, ROWS, outputs)

        def theirs(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
            y = functional.conv1d(x.permute(1, 2, 0), weight, bias, padding=6 * dilation, dilation=dilation)
            return y.permute(2, 0, 1)

        ratios: list[float] = []
        for _ in range(rounds + 2):
            spent: list[float] = []
            for function in (theirs, convolution):
                start = time.process_time()
                for _ in range(5):
                    torch.autograd.grad(function(x, weight, bias, dilation), (x, weight, bias), slope)
                spent.append(time.process_time() - start)
            ratios.append(spent[0] / spent[1])
        found[f"64 to {outputs}, dilation {dilation}"] = ratios[2:]
    return found


def report(rounds: int, date: str) -> None:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?: ?")
    check_equal()
    print("# Training a convolutional model against a plain PyTorch loop\n")
    print(
        f"{date}. {cpu.split(': ', 1)[1]}, {os.cpu_count()} cores, {platform.system()}; torch {torch.__version__}, "
        f"Python {platform.python_version()}. fp32, {ROWS} samples of up to {CONTEXT} bytes an update. Load average at "
        f"the start {os.getloadavg()[0]:.1f}. Written by `python bench/conv.py`.\n"
    )
    print(
        "| plain loop | Winnow | clock | plain, samples/s | Winnow, samples/s | ratio (median of rounds) | quartiles |"
    )
    print("|---|---|---|---|---|---|---|")
    plain, two_threads = Child("plain", 1), Child("plain", 2)
    ours = [Child("winnow", 1), Child("winnow", 1)]
    for names, theirs, runs, clock in (
        (("one thread", "a run of one thread"), plain, ours[:1], "cpu"),
        (("two threads", "two runs of one thread"), two_threads, ours, "wall"),
    ):
        pairs = [(turn([theirs], clock), turn(runs, clock)) for _ in range(rounds)]
        low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(
            f"| {names[0]} | {names[1]} | {clock} | {a:,.0f} | {b:,.0f} | {middle:.2f} | {low:.2f} to {high:.2f} |",
            flush=True,
        )
    for one in (plain, two_threads, *ours):
        one.stop()
    print("\n## Convolutions: CPU time of F.conv1d over Winnow's, forward and backward, one thread\n")
    print("| kernel 13, channels | ratio (median of rounds) | quartiles |\n|---|---|---|")
    for name, ratios in measure_layers(rounds).items():
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    print(f"\nGoal: at least {GOAL} on two cores. {rounds} rounds.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    parser.add_argument("--child", nargs=2, metavar=("LOOP", "THREADS"))
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]))
    else:
        report(options.rounds, options.date)


if __name__ == "__main__":
    main()

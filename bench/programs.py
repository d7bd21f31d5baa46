"""What a training text of the `programs` task costs, against a sampler that makes one string after another.

    python bench/programs.py [--rounds 15]

Both make the batches of a training loop: 64 texts of 1 to 3 exchanges on 5 letters, none of them asked by validation,
as tensors of input and target. The sampler of strings draws with Python's `random`, carries the program out on a list,
looks the text up in a set, and turns it into tensors; it is written as one would, not slowed down. Every program of
both is first carried out again here. One process, one thread, interleaved, medians of CPU time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import string
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from report import heading, publish, table
from winnow.tasks import Batch, ProgramsConfig, Task

WANTED = 20.0
"""Times as fast as the sampler of strings."""
ROWS = 64
BATCHES = 256
"""Batches of one measurement: several blocks of the task."""


def carried_out(text: str) -> str:
    """The answer of a program of exchanges."""
    question, operations, _ = text.split(":")
    items = list(question)
    for operation in operations.split(" "):
        i, j = (int(number) - 1 for number in operation.split(">"))
        items[i], items[j] = items[j], items[i]
    return "".join(items)


def draw(source: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    items = source.sample(string.ascii_uppercase, 5)
    question = "".join(items)
    operations: list[str] = []
    for _ in range(source.randint(1, 3)):
        i, j = source.sample(range(5), 2)
        items[i], items[j] = items[j], items[i]
        operations.append(f"{i + 1}>{j + 1}")
    return f"{question}:{' '.join(operations)}:", "".join(items)


def string_batch(source: random.Random, asked: set[str]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch, text by text."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < ROWS:
        question, answer = draw(source)
        if question + answer not in asked:
            pairs.append((question, answer))
    longest = max(len(question) + len(answer) for question, answer in pairs)
    targets = [(question + answer).ljust(longest).encode() for question, answer in pairs]
    inputs = [(question.encode() + b"\0" * len(answer)).ljust(longest) for question, answer in pairs]
    return torch.tensor([list(row) for row in inputs]), torch.tensor([list(row) for row in targets])


def check(tokens: Tensor, targets: Tensor) -> None:
    """Every text is right, and its answer is blanked out."""
    for read, row in zip(tokens.tolist(), targets.tolist(), strict=True):
        text = bytes(row).decode().rstrip(" ")
        answer = carried_out(text)
        assert text.endswith(f":{answer}"), text
        assert bytes(read) == (text[: -len(answer)].encode() + b"\0" * len(answer)).ljust(len(read))


def seconds(make: Callable[[int], object], first: int) -> float:
    """CPU time of a text, over some batches."""
    start = time.thread_time()
    for step in range(first, first + BATCHES):
        make(step)
    return (time.thread_time() - start) / (BATCHES * ROWS)


def asked_of(task: Task, config: ProgramsConfig) -> set[str]:
    """The texts of the validation set."""
    (batch,) = task.validation(config.validation_tokens).batches(config.validation.questions)
    return {bytes(row).decode() for row in batch.targets.tolist()}


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = ProgramsConfig()
    started = time.thread_time()
    task = config.build()
    building = time.thread_time() - started
    source, asked = random.Random(0), asked_of(task, config)

    def ours(step: int) -> Batch:
        return task.batch(0, step, range(ROWS), ROWS)

    batch = ours(0)
    check(batch.tokens, batch.targets)
    check(*string_batch(source, asked))
    by_round: list[tuple[float, float]] = []
    for index in range(options.rounds):
        by_round.append(
            (seconds(ours, index * BATCHES), seconds(lambda _: string_batch(source, asked), index * BATCHES))
        )
    mine, strings = (statistics.median(column) for column in zip(*by_round, strict=True))
    ratio = statistics.median(theirs / own for own, theirs in by_round)
    rows = [
        ("one string after another", f"{strings * 1e6:.2f}", "1"),
        ("`programs`, block by block", f"{mine * 1e6:.2f}", f"{ratio:.1f}"),
    ]
    publish(
        "programs",
        heading("What a training text of the `programs` task costs", "programs", threads=1, packages=("torch", "numpy"))
        + f"Batches of {ROWS} texts as tensors, {BATCHES} in each of {options.rounds} rounds, interleaved; medians of "
        "CPU time.\n\n"
        + table(["sampler", "µs for a text", "times as fast"], rows)
        + f"\nWanted: {WANTED:g} times or more. Building the task with its 10,000 questions: {building:.2f} s.\n",
    )
    if ratio < WANTED:
        sys.exit(1)


if __name__ == "__main__":
    main()

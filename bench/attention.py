"""Selective attention against the attention it replaces: time and memory as ratios within one run, and goals.

    python bench/attention.py                       everything, under 8 minutes on two quiet cores; writes the results
    python bench/attention.py dense memory          these sections only; prints, writes nothing
    python bench/attention.py --quick [SECTION...]  short sequences and few rounds, to see that it runs
    python bench/attention.py --compiled            torch.compile of the naive definition too
    python bench/attention.py --backend chunked     the op on another backend; writes nothing

fp32, B=4, 6 heads of 64 unless a section says otherwise. What is compared takes turns within every round of one
process per thread count, so that a busy machine disturbs all alike; a ratio is the median of the rounds' own. With
one thread CPU time is taken, which a busy machine disturbs least, with two the wall time. Before anything is timed
the op must agree with the definition in fp64 (`attention_sections.check`), or nothing is. Exit 1: a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import attention_sections as sections
from attention_inputs import D, H
from report import heading, publish, table

Found = dict[str, Any]
"""What a section measured, as JSON: ratios by name."""


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio."""

    text: str
    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    @property
    def bound(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


GOALS: Mapping[str, Goal] = {
    "C1": Goal("forward + backward over SDPA, every key live", 0.95),
    "C2": Goal("forward over SDPA, every key live, to T=1024", 1.0),
    "C2 long": Goal("forward over SDPA, every key live, T=2048", 1.1),
    "C3 512": Goal("naive over the op, forward + backward, T=512", 10, at_least=True),
    "C3 1024": Goal("naive over the op, forward + backward, T=1024", 15, at_least=True),
    "C4 512": Goal("compiled naive over the op, forward + backward, T=512", 8, at_least=True),
    "C4 1024": Goal("compiled naive over the op, forward + backward, T=1024", 12, at_least=True),
    "C5 30 %": Goal("forward over SDPA, 30 % of the keys live", 0.4),
    "C5 15 %": Goal("forward over SDPA, 15 % of the keys live", 0.25),
    "C6": Goal("forward + backward over SDPA, 30 % of the keys live", 0.55),
    "C7": Goal("extra memory over SDPA's, T=2048", 1.0),
    "C7 naive": Goal("naive's extra memory over the op's, T=2048", 20, at_least=True),
    "C8": Goal("chunked over naive, forward + backward", 1.0),
    "C8 memory": Goal("chunked's extra memory over naive's, T=2048", 0.25),
    "C9": Goal("a variant over plain, forward + backward", 1.25),
    "C10": Goal("one row: one thread over two, forward + backward", 1.7, at_least=True),
    "training": Goal("tokens/s of a selective GPT over its softmax twin's", 0.95, at_least=True),
}

Check = tuple[str, str, float]
"""Goal, where it was measured, value."""


def in_process(section: str, threads: int, *arguments: str) -> Any:
    """What `attention_sections.py` answers in a process of its own with so many threads."""
    command = [sys.executable, sections.__file__, section, str(threads), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def dense(options: Sequence[str]) -> tuple[str, list[Check]]:
    """C1 to C4, and the time of C8."""
    rows: list[list[str]] = []
    checks: list[Check] = []
    for threads in (1, 2):
        for found in in_process("dense", threads, *options):
            T, ratio = found["T"], found["ratio"]
            where = f"T={T}, {_threads(threads)}"
            checks += [("C1", where, ratio["both"]), ("C2 long" if T > 1024 else "C2", where, ratio["forward"])]
            checks += [
                (f"{goal} {T}", where, ratio[name] / ratio["both"])
                for goal, name in (("C3", "naive"), ("C4", "compiled"))
                if name in ratio and f"{goal} {T}" in GOALS
            ]
            checks.append(("C8", where, ratio["chunked"] / ratio["naive"]))
            cells = [f"{ratio['forward']:.2f}", f"**{ratio['both']:.2f}**", _range(found["quartiles"])]
            cells += [f"{ratio[name]:.1f}" if name in ratio else "-" for name in ("chunked", "naive", "compiled")]
            rows.append([str(threads), str(T), f"{found['live']:.2f}", found["backend"], *cells])
    header = ["threads", "T", "live", "op runs on", "op fwd", "op f+b", "quartiles"]
    header += ["chunked f+b", "naive f+b", "compiled naive f+b"]
    text = "## Every key live\n\nTime over that of SDPA for the same pass: fwd forward, f+b forward and backward.\n\n"
    return text + table(header, rows), checks


def compacted(options: Sequence[str]) -> tuple[str, list[Check]]:
    """C5 and C6."""
    rows: list[list[str]] = []
    checks: list[Check] = []
    for threads in (1, 2):
        for found in in_process("compacted", threads, *options):
            T, live, ratio = found["T"], found["live"], found["ratio"]
            where = f"T={T}, {_threads(threads)}"
            checks.append((f"C5 {100 * found['asked']:.0f} %", where, ratio["forward"]))
            if found["asked"] == 0.3:
                checks.append(("C6", where, ratio["both"]))
            cells = [f"**{ratio['forward']:.2f}**", f"**{ratio['both']:.2f}**"]
            rows.append([str(threads), str(T), f"{live:.3f}", found["backend"], *cells])
    header = ["threads", "T", "live", "op runs on", "op fwd", "op f+b"]
    text = (
        "## Keys that are voted out\n\nTime over that of SDPA for the same pass. Head 0's scores are shifted until the "
        "share of keys alive (measured by the op's own bound) is what is asked for. Plain random inputs "
        "have 29 % at T=1024 and 16 % at 2048 by themselves, trained models their own: these figures"
        " are no promise for yours.\n\n"
    )
    return text + table(header, rows), checks


def variants(options: Sequence[str]) -> tuple[str, list[Check]]:
    """C9."""
    rows: list[list[str]] = []
    checks: list[Check] = []
    for threads in (1, 2):
        for found in in_process("variants", threads, *options):
            for name, value in found["ratio"].items():
                rows.append([name, str(threads), str(found["T"]), found["backend"], f"{value:.2f}"])
                if name in sections.JUDGED:
                    checks.append(("C9", f"{name}, T={found['T']}, {_threads(threads)}", value))
    text = "## Variants, every key live\n\nTime of forward and backward over that of the plain op.\n\n"
    return text + table(["variant", "threads", "T", "runs on", "ratio"], rows), checks


def memory(options: Sequence[str]) -> tuple[str, list[Check]]:
    """C7, and the memory of C8."""
    rows: list[list[str]] = []
    checks: list[Check] = []
    for T in sections.lengths_of_memory("--quick" in options):
        used: dict[str, float] = {}
        for name in sections.WAYS:
            given = [*options, "--way", name, "--length", str(T)]
            used[name] = statistics.median(in_process("memory", 2, *given) for _ in range(1 if name == "naive" else 3))
        rows += [[name, str(T), f"{used[name] / 2**20:.0f}", f"{used[name] / used['sdpa']:.2f}"] for name in used]
        if T == 2048:
            checks.append(("C7", f"T={T}", used["op"] / used["sdpa"]))
            checks.append(("C7 naive", f"T={T}", used["naive"] / used["op"]))
            checks.append(("C8 memory", f"T={T}", used["chunked"] / used["naive"]))
    text = (
        "## Extra memory of one forward and backward pass\n\nBy how much the process's largest resident size exceeds "
        "what it was before the pass, outputs and gradients included; a fresh process each (median of three; naive: "
        "one), two threads.\n\n"
    )
    return text + table(["", "T", "MiB", "over SDPA"], rows), checks


def scaling(options: Sequence[str]) -> tuple[str, list[Check]]:
    """C10. Processes with one and two threads take turns; wall time."""
    found = [{n: in_process("scaling", n, *options) for n in (1, 2)} for _ in range(3)]
    rows: list[list[str]] = []
    checks: list[Check] = []
    for T in found[0][1]:
        ratios = sorted(pair[1][T] / pair[2][T] for pair in found)
        rows.append([T, f"{ratios[1]:.2f}"])
        checks.append(("C10", f"T={T}", ratios[1]))
    text = "## One row (B=1), every key live: one thread over two\n\n"
    return text + table(["T", "wall time of f+b, one thread over two"], rows), checks


def training(options: Sequence[str]) -> tuple[str, list[Check]]:
    """End to end."""
    rows: list[list[str]] = []
    checks: list[Check] = []
    for threads in (1, 2):
        found = in_process("training", threads, *options)
        rows.append([str(threads), found["backend"], f"{found['ratio']:.3f}", _range(found["quartiles"])])
        checks.append(("training", _threads(threads), found["ratio"]))
    text = (
        f"## Training end to end\n\n{sections.GPT_TEXT}, through the training loop, updates of the twins in turns. "
        "So early in training nearly every key is alive.\n\n"
    )
    header = ["threads", "runs on", "selective over softmax, tokens/s", "quartiles"]
    return text + table(header, rows), checks


SECTIONS = {
    "dense": dense,
    "compacted": compacted,
    "variants": variants,
    "memory": memory,
    "scaling": scaling,
    "training": training,
}


def judged(checks: Sequence[Check]) -> tuple[str, bool]:
    """The table of goals, each by its worst value, and whether one is missed."""
    rows: list[list[str]] = []
    for name, goal in GOALS.items():
        own = [(value, where) for goal_name, where, value in checks if goal_name == name]
        if own:
            value, where = (min if goal.at_least else max)(own)
            met = sum(goal.met(value) for value, _ in own)
            state = "met" if met == len(own) else f"**missed** ({met} of {len(own)} met)"
            rows.append([name, goal.text, goal.bound, f"{value:.3g}", where, state])
    if not rows:
        return "", False
    header = ["goal", "what", "bound", "worst", "where", ""]
    return "## Goals\n\n" + table(header, rows), any("missed" in row[-1] for row in rows)


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _range(quartiles: Sequence[float]) -> str:
    return f"{quartiles[0]:.2f} to {quartiles[1]:.2f}"


def allocator() -> str:
    """Of the process: naive's time depends on it, for it allocates and frees the most."""
    preloaded = os.environ.get("LD_PRELOAD")
    tuned = {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    return (preloaded or "-".join(platform.libc_ver()) + " malloc") + (f" with {tuned}" if tuned else "")


def main() -> None:
    """Measure the sections asked for; publish if it was all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--backend", default="auto", help="of the op; auto is what models get")
    asked = parser.parse_args()
    wrong = [name for name in asked.sections if name not in SECTIONS]
    if wrong:
        parser.error(f"no section {wrong[0]!r}: {', '.join(SECTIONS)}")
    options = [name for name, given in (("--quick", asked.quick), ("--compiled", asked.compiled)) if given]
    options += ["--backend", asked.backend]
    gate = in_process("check", 2, *options)
    text = heading("Selective attention against causal SDPA on CPU", "attention", threads=2)
    text = text.replace("2 threads", "1 and 2 threads") + (
        f"fp32, B=4, {H} heads of {D}, denormals flushed, {allocator()}. Medians over rounds in which what is compared "
        f"takes turns; CPU time with one thread, wall time with two. Gate: {gate}\n\n"
    )
    parts: list[str] = []
    checks: list[Check] = []
    for name in asked.sections or SECTIONS:
        part, found = SECTIONS[name](options)
        print(part, file=sys.stderr, flush=True)
        parts.append(part)
        checks += found
    goals, missed = judged(checks)
    text += "\n".join([goals, *parts])
    if asked.sections or asked.quick or asked.backend != "auto":
        print(text)
    else:
        publish("attention", text)
    sys.exit(missed)


if __name__ == "__main__":
    main()

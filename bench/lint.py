"""CPU seconds of parsing and linting generated notebooks: `python bench/lint.py [LINES] [MEGABYTES]`.

The first is a notebook of commands with the density of the first public one: prose, hypotheses and results, and a block
of a torchrun command with a dozen options every fourteen lines. The goal is 1 s for 10,000 lines; imports are not
counted. Then notebooks of studies with their results, twenty-four lines each: one a quarter as long, one as long; the
ratio of their times says whether lint is linear. MEGABYTES is the size of a large notebook of commands, for its time
and memory; 0 leaves it out.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from pathlib import Path

from winnow.notebook.document import render_block
from winnow.notebook.lint import lint_bytes


def notebook(lines: int) -> bytes:
    """A notebook of commands of about so many lines."""
    found: list[str] = []
    block = 0
    while len(found) < lines:
        if block % 9 == 0:
            found += [
                f"## Experiments {block // 9}: does width help?",
                "",
                "Some words on why, and what was seen before.",
                "",
            ]
        seed = 1337 + block % 3
        found += [
            f"Width {64 * (1 + block % 5)}, with seed {seed}.",
            "",
            "Hypothesis: this will be better than the narrow one, by train loss.",
            "",
            f"Result: validation loss lower by 0.0{1 + block % 8} nats on 3 seeds. [curves](https://example.org/{block})",
            "",
            "```vast:finished",
            "cd /workspace/lab && git pull && torchrun --nproc_per_node=gpu -m context_compression.train \\",
            f"  --group widths_{block // 9} \\",
            "  --max_steps 2500 \\",
            "  --attention_kind selective \\",
            f"  --log_dir widths_{block // 9}_{block}_seed_{seed} \\",
            f"  --n_heads {1 + block % 5} \\",
            "  --protection_kind none \\",
            f"  --random_seed {seed} \\",
            f"  &> widths_{block}.txt",
            "```",
            "",
        ]
        block += 1
    return "\n".join(found[:lines]).encode()


def studies(lines: int) -> bytes:
    """A notebook of studies of about so many lines; each but the first replaces the one before."""
    found: list[str] = []
    n = 0
    while len(found) < lines:
        claim = "wide better-than narrow on val/ce smallest 0.01"
        found += [
            f"## Question {n}",
            "",
            "Hypothesis: this will be better than the narrow one.",
            "",
            "```toml study",
            f'id = "width-{n}"',
            f'supersedes = "width-{n - 1}"' if n else "",
            'question = "Does width help?"',
            "seeds = [0, 1, 2]",
            "looks = [3]",
            "arms.narrow = {}",
            f"arms.wide = {{ model.width = {64 * (1 + n % 5)} }}",
            f'claims.h1 = "{claim}"',
            "```",
            "",
            *render_block(f"width-{n}", f"| claim | verdict |\n|---|---|\n| **h1**: {claim} | **undecided** |").split(
                "\n"
            ),
            "",
        ]
        n += 1
    return "\n".join(found).encode()


def seconds(data: bytes, repeats: int) -> tuple[float, int]:
    """Median CPU seconds, and findings."""
    times: list[float] = []
    n = 0
    for _ in range(repeats):
        started = time.process_time()
        n = len(lint_bytes(data, Path("generated.md")))
        times.append(time.process_time() - started)
    return statistics.median(times), n


def main() -> None:
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    megabytes = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    data = notebook(lines)
    lint_bytes(notebook(100), Path("warm.md"))
    took, n = seconds(data, 7)
    print(f"{lines} lines, {len(data) / 2**20:.2f} MB: {took:.2f} s of CPU time, {n} findings")
    for part in (lines // 4, lines):
        own = studies(part)
        took, n = seconds(own, 3)
        n_lines, n_studies = len(own.splitlines()), own.count(b"```toml study")
        print(f"{n_lines} lines, {n_studies} studies: {took:.2f} s of CPU time, {n} findings")
    if megabytes:
        per_line = len(data) / lines
        large = notebook(int(megabytes * 2**20 / per_line))
        took, n = seconds(large, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{len(large) / 2**20:.0f} MB: {took:.0f} s of CPU time, {n} findings, {peak:.1f} GiB at most")


if __name__ == "__main__":
    main()

"""The Triton backend on a real card: whether it is right, how fast it is, and what training with it costs.

    python bench/gpu.py check     against the definition in fp64, a case of each kind; and that gradients repeat
    python bench/gpu.py ops       time and memory against the faster of SDPA's flash and cuDNN kernels, same rounds
    python bench/gpu.py train     tokens/s of GPT-2 124M against its softmax twin, same rounds
    python bench/gpu.py all

Each under 8 minutes on one modern card; `--quick` for few rounds. Each part replaces its own section of
bench/results/gpu.md. What is compared takes turns within each round; a ratio is the median of the rounds' own. `ops`
and `train` first check one problem, or time nothing. Exit 1: wrong, or a goal is missed. Exit 2: no CUDA device.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tests.kernels.selective_cases import CASES
from torch import Tensor
from torch.nn.attention import SDPBackend

import gpu_inputs as on
from gpu_inputs import LIMITS, TOKENS, D, Function, H
from report import RESULTS, heading, publish, table
from winnow.kernels import selective_triton
from winnow.kernels.readout import linear_cross_entropy
from winnow.kernels.rule import calls
from winnow.models import ModelConfig
from winnow.parameters import initialise

CHECKED = (
    "T=1", "T=77", "T=513", "D=24", "D=128", "documents 513", "grouped queries", "two masks, long", "wide selector",
    "shared key", "leak, relu after", "protected, long", "protectors, shared key", "leaky protection",
    "constant protection", "usage, documents",
)  # fmt: skip
"""One case of each kind: every case compiles kernels of its own, about ten seconds' worth."""
LENGTHS = (1024, 2048, 4096)
GPT2 = {"d_model": 768, "n_layers": 12, "n_heads": 12}
VOCABULARY = 50304

Run = Callable[[], object]


class Goal(NamedTuple):
    """A bound on a ratio, as kernels' documentation numbers it."""

    name: str
    found: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    @property
    def row(self) -> tuple[str, str, str, str]:
        sign = "at least" if self.at_least else "at most"
        return self.name, f"{self.found:.2f}x", f"{sign} {self.limit:g}x", "met" if self.met else "missed"


def card() -> str:
    """The card's name, its memory, and the versions that matter to it."""
    properties = torch.cuda.get_device_properties(0)
    parts = [properties.name, f"{properties.total_memory / 2**30:.0f} GiB", f"CUDA {torch.version.cuda}"]
    return ", ".join([*parts, f"cuDNN {torch.backends.cudnn.version()}"])


def merged(old: str, sections: Mapping[str, str], first_lines: str) -> str:
    """The page with these sections in place of their former selves; each begins with `## NAME`, a blank line after."""
    found = {
        match[1]: match[0].rstrip()
        for match in re.finditer(r"^## (\w+)\n.*?(?=^## |\Z)", old, re.DOTALL | re.MULTILINE)
    }
    for name, text in sections.items():
        found[name] = f"## {name}\n\n{text.rstrip()}"
    ordered = [found[name] for name in ("check", "ops", "train") if name in found]
    return "\n\n".join([first_lines.rstrip(), *ordered]) + "\n"


def spent(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run in every round, on the card's own clock."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 3):
        for name, run in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            if number >= 3:  # the first rounds compile and allocate
                times[name].append(begin.elapsed_time(end))
    return times


def ratio(own: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of own / base."""
    return statistics.median(a / b for a, b in zip(own, base, strict=True))


def check(quick: bool, everything: bool = False) -> tuple[str, bool]:
    """The section and whether all is well."""
    rows: list[tuple[str, ...]] = []
    well = True
    dtypes = tuple(LIMITS) if everything else (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        for name in CASES if everything else CHECKED:
            problem = CASES[name].problem(dtype, "cuda")
            reason = selective_triton.unsupported(problem)
            if reason is not None:
                rows.append((name, str(dtype)[6:], "", "", "", f"refused: {reason}"))
                continue
            value, slope = on.errors(problem)
            same = on.repeats(problem)
            # NaN is no error that is small enough.
            good = same and value <= LIMITS[dtype][0] and slope <= LIMITS[dtype][1]
            well = well and good
            told = "" if good else "**wrong**"
            rows.append((name, str(dtype)[6:], f"{value:.1e}", f"{slope:.1e}", "yes" if same else "**no**", told))
            print(*rows[-1], flush=True)
    text = "Relative errors against the definition in fp64; whether two calls agree in every bit (G9).\n\n"
    header = ("case", "dtype", "values", "gradients", "repeats", "")
    return text + table(header, rows), well


def peak(run: Run) -> int:
    """Bytes that a run takes beside what is there before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() - before
    del result
    return most


def measure(T: int, rounds: int) -> tuple[list[tuple[str, ...]], list[Goal]]:
    """Rows and goals of one context."""
    q, k, v, slope = on.inputs(T, on.DENSE)
    sparse = on.inputs(T, on.SPARSE)
    kinds = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
    reasons = {name: on.works(kind) for name, kind in kinds.items()}
    rows: list[tuple[str, ...]] = [(f"{T}", name, f"not run: {why}", "") for name, why in reasons.items() if why]
    baselines = [name for name, why in reasons.items() if why is None]
    if not baselines:
        raise SystemExit(f"no baseline: {reasons}")
    dense, compacted = "selective, every key live", "selective, compacted"
    functions: dict[str, Function] = {name: on.sdpa(kinds[name]) for name in baselines}
    functions |= {
        dense: on.dense,
        compacted: on.compacted,
        "naive": on.naive,
        "naive, compiled": torch.compile(on.naive),
    }
    before = calls["triton.forward"]
    share = {name: on.live_tiles(*tensors[:3]) for name, tensors in (("dense", (q, k, v)), ("sparse", sparse))}
    times: dict[str, dict[str, list[float]]] = {}
    for way in ("forward", "backward", "both"):
        runs: dict[str, Run] = {}
        for name, function in functions.items():
            a, b, c, g = sparse if name == compacted else (q, k, v, slope)
            runs[name] = _run(function, a, b, c, g, way)
        slow = {name: runs.pop(name) for name in ("naive", "naive, compiled")}
        times[way] = spent(runs, rounds)
        if way == "both" and T <= 2048:  # at 4,096 the definition takes tens of GB
            pair = {dense: runs[dense], **slow}
            for name, found in spent(pair, max(rounds // 4, 3)).items():
                times[way][name if name in slow else "selective beside naive"] = found
    assert calls["triton.forward"] > before, "the op ran on another backend"
    memory = {name: peak(_run(functions[name], q, k, v, slope, "both")) for name in (*baselines, dense)}
    base: dict[str, list[float]] = {}
    for way, found in times.items():
        base[way] = min((found[name] for name in baselines), key=statistics.median)
        for name, own in found.items():
            against = f"{ratio(own, base[way]):.2f}" if len(own) == len(base[way]) else ""
            rows.append((f"{T} {way}", name, f"{statistics.median(own):.3f}", against))
    rows.append((f"{T}", "tiles visited: every key live", f"{share['dense']:.2f}", ""))
    rows.append((f"{T}", "tiles visited: compacted", f"{share['sparse']:.2f}", ""))
    for name, size in memory.items():
        rows.append((f"{T} peak memory, MB", name, f"{size / 1e6:.0f}", ""))
    goals = [
        Goal(f"G1 forward, T={T}", ratio(times["forward"][dense], base["forward"]), 1.6),
        Goal(f"G2 backward, T={T}", ratio(times["backward"][dense], base["backward"]), 1.9),
        Goal(f"G3 forward and backward, T={T}", ratio(times["both"][dense], base["both"]), 1.8),
    ]
    if T <= 2048:
        own = times["both"]["selective beside naive"]
        eager, built = (6.0, 4.0) if T == 1024 else (10.0, 6.0)
        goals.append(Goal(f"G4 over naive, T={T}", ratio(times["both"]["naive"], own), eager, True))
        goals.append(Goal(f"G4 over naive compiled, T={T}", ratio(times["both"]["naive, compiled"], own), built, True))
    if T >= 2048 and share["sparse"] <= 0.3:
        goals.append(Goal(f"G5 compacted, T={T}", ratio(times["both"][compacted], base["both"]), 0.8))
    least = min(memory[name] for name in baselines)
    allowed = 1.2 * least + 2 * (TOKENS // T) * T * T
    goals.append(Goal(f"G6 memory over 1.2 SDPA + 2BT^2, T={T}", memory[dense] / allowed, 1.0))
    return rows, goals


def _run(function: Function, q: Tensor, k: Tensor, v: Tensor, g: Tensor, way: str) -> Run:
    """Forward as inference does it, backward of one kept graph, or both."""
    if way == "forward":
        return torch.no_grad()(lambda: function(q, k, v))
    if way == "both":
        return lambda: torch.autograd.grad(function(q, k, v), (q, k, v), g)
    made: list[Tensor] = []

    def backward() -> object:
        if not made:  # when first run, so that no graph is held that is never used
            made.append(function(q, k, v))
        return torch.autograd.grad(made[0], (q, k, v), g, retain_graph=True)

    return backward


def ops(quick: bool) -> tuple[str, bool]:
    """The section and whether every goal is met."""
    _demand_right()
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    for T in LENGTHS:
        more, bounds = measure(T, 5 if quick else 30)
        rows += more
        goals += bounds
        torch.cuda.empty_cache()
    text = (
        f"bf16, {H} heads of {D}, {TOKENS} tokens. Milliseconds, median; ratio to the faster SDPA kernel, median of "
        "the rounds' own. Compacted: inputs whose votes end most keys; the share of tiles visited is given.\n\n"
    )
    text += table(("context, pass", "what", "ms", "ratio"), rows) + "\n"
    return text + table(("goal", "found", "bound", ""), [goal.row for goal in goals]), all(g.met for g in goals)


def _demand_right() -> None:
    value, slope = on.errors(CASES["T=513"].problem(torch.bfloat16, "cuda"))
    if not (value <= LIMITS[torch.bfloat16][0] and slope <= LIMITS[torch.bfloat16][1]):
        raise SystemExit(f"wrong: error {value:.1e} of values, {slope:.1e} of gradients; `check` says where")


def trainer(kind: str, T: int, batch: int, device: str = "cuda") -> Run:
    """One update of GPT-2 124M on random tokens: bf16 autocast, compiled, AdamW."""
    model = ModelConfig.model_validate({**GPT2, "attention": {"kind": kind}}).build(VOCABULARY, T)
    initialise(model, 0)
    model = model.to(device)
    forward = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(VOCABULARY, (batch, T + 1), device=device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            output = forward(tokens[:, :-1])
            loss = linear_cross_entropy(output.hidden, model.readout_weight, tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def train(quick: bool) -> tuple[str, bool]:
    """The section and whether G7 and G8 are met."""
    _demand_right()
    T, batch = 1024, 16
    runs = {kind: trainer(kind, T, batch) for kind in ("softmax", "selective")}
    before = calls["triton.backward"]
    times = spent(runs, 5 if quick else 30)
    assert calls["triton.backward"] > before, "training ran on another backend"
    speeds = {kind: batch * T / statistics.median(found) * 1e3 for kind, found in times.items()}
    goals = [
        Goal("G7 tokens/s over the softmax twin", ratio(times["softmax"], times["selective"]), 0.88, True),
        Goal("G8 tokens/s over 350,000 (one H200)", speeds["selective"] / 350e3, 1.0, True),
    ]
    text = f"GPT-2 124M, context {T}, batch {batch}, bf16 autocast, torch.compile, AdamW.\n\n"
    text += table(("model", "tokens/s"), [(kind, f"{speed:,.0f}") for kind, speed in speeds.items()]) + "\n"
    return text + table(("goal", "found", "bound", ""), [goal.row for goal in goals]), all(g.met for g in goals)


PARTS: dict[str, Callable[[bool], tuple[str, bool]]] = {"check": check, "ops": ops, "train": train}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--quick", action="store_true", help="few rounds or cases, to see that it runs; writes nothing")
    parser.add_argument("--every-case", action="store_true", help="check: all cases and dtypes; compiles for an hour")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    if not torch.cuda.is_available() or find_spec("triton") is None:
        print("bench/gpu.py needs a CUDA device and Triton: nothing was measured", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    sections: dict[str, str] = {}
    well = True
    for name in PARTS if options.part == "all" else [options.part]:
        text, good = check(False, True) if name == "check" and options.every_case else PARTS[name](options.quick)
        how = heading(name, f"gpu.py {name}", threads=1, packages=("torch", "triton")).split("\n", 2)[2].strip()
        sections[name] = f"{how} {card()}.\n\n{text}"
        well = well and good
    page = RESULTS / "gpu.md"
    text = merged(page.read_text(encoding="utf-8") if page.exists() else "", sections, "# The Triton backend on a card")
    if options.quick:
        print(text)
    else:
        publish("gpu", text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compiled training against eager training: `python compiled_run.py TEXT BACKEND some|all`.

In a process of its own: the compiler cannot trace the tests' shape checks. Evaluations and looks at the inside stand
between the updates, as in a run: they switch the model to evaluation and back, and must not make it compile again.
"""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.runs import CPU, make

from winnow.kernels.rule import calls
from winnow.train.loop import Loop, Update

STEPS, WARM = 7, 2
ATTENTIONS: list[dict[str, Any]] = [
    {"kind": "selective", "penalty": {"epsilon": 1.0}},
    {
        "kind": "selective",
        "scores": {"kind": "latent", "n": 2},
        "accumulate": {"kind": "protect"},
        "penalty": {"epsilon": 1.0, "form": "mean"},
    },
]


def run(config: Any) -> tuple[list[Update], list[int]]:
    """Updates, and how many graphs there were after each."""
    torch._dynamo.reset()
    counters.clear()
    loop = Loop(config, seed=0, device=CPU)
    updates: list[Update] = []
    graphs: list[int] = []
    for step in range(STEPS):
        if step % 3 == 0:
            loop.evaluate()
            loop.look_inside()
        updates.append(loop.update())
        graphs.append(counters["stats"]["unique_graphs"])
    return updates, graphs


def compare(text: Path, attention: dict[str, Any], precision: str, *, recompute: bool) -> None:
    """Equal losses, no graph after the first steps, and kernels that are called from compiled code each time."""
    # Of one computation: in bf16 compiled code rounds once where eager code rounds after every operation.
    tolerance = 2e-5 if precision == "fp32" else 5e-3
    changes = {"train__precision": precision, "train__recompute": recompute, "train__micro_batch": 4}
    common = {"model__n_layers": 2, "model__attention": attention, **changes}
    eager, none = run(make(text, **common))
    assert none == [0] * STEPS, none
    before = calls.copy()
    compiled, graphs = run(make(text, **common, train__compile=True))
    assert graphs[WARM - 1] > 0, "nothing was compiled"
    assert graphs[WARM - 1 :] == [graphs[WARM - 1]] * (STEPS - WARM + 1), graphs
    counted = calls - before
    kinds = {name.partition(".")[0] for name in counted}
    assert kinds in ({"cpu"}, {"chunked"}), kinds
    assert sum(counted[f"{kind}.backward"] for kind in kinds) == 2 * 2 * STEPS, counted  # layers, passes
    for a, b in zip(compiled, eager, strict=True):
        assert a.penalty is not None
        assert b.penalty is not None
        assert abs(a.ce - b.ce) <= tolerance * b.ce, (a, b)
        assert abs(a.penalty - b.penalty) <= tolerance * b.penalty, (a, b)


def main(text: str, backend: str, scope: str) -> None:
    torch.set_num_threads(1)
    torch.compile = functools.partial(torch.compile, backend=backend)
    first, second = ATTENTIONS
    cases = itertools.product(ATTENTIONS, ("fp32", "bf16"), (False, True))
    if scope == "some":
        cases = [(first, "fp32", False), (second, "bf16", True)]
    for attention, precision, recompute in cases:
        compare(Path(text), attention, precision, recompute=recompute)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What needs a process without run-time type checks: graphs, symbolic shapes, arguments of the wrong type.

Run by test_selective_ops. Under torch.compile: whole graphs, one compilation, eager's numbers. Then PyTorch's own check
of the operator's registrations, and the refusal of a backend that there is not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels.selective_cases import CASES, leaves, with_leaves
from torch import Tensor

from winnow.errors import InputError
from winnow.kernels import Rule, selection_usage, selective_attention
from winnow.kernels.rule import calls

RULE = Rule(spread=(0, 0, 1, 1), protection="scores")


def variant(q: Tensor, k: Tensor, v: Tensor, q_s: Tensor, k_s: Tensor, starts: Tensor, backend: Any) -> Tensor:
    out, usage = selection_usage(2 * q, k, v, select=(q_s, k_s), protect=1, rule=RULE, starts=starts, backend=backend)
    return out.sin().sum() + usage.sum()


def plain(q: Tensor, k: Tensor, v: Tensor, q_s: Tensor, k_s: Tensor, starts: Tensor, backend: Any) -> Tensor:
    return selective_attention(2 * q, k, v, backend=backend).sin().sum() + q_s.sum() + k_s.sum()


def check_compiled() -> None:
    torch.manual_seed(0)
    starts = torch.zeros(2, 70, dtype=torch.int32)
    starts[1, 30:] = 30
    for backend, ran in (("auto", None), ("chunked", "chunked"), ("reference", None)):
        for function in (variant, plain):
            torch.compiler.reset()
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            for attempt in range(3):
                torch._dynamo.config.error_on_recompile = attempt > 0
                q, k, v = (torch.randn(2, 70, 4, 8, requires_grad=True) for _ in range(3))
                q_s, k_s = (torch.randn(2, 70, m, 8, requires_grad=True) for m in (2, 1))
                leaves = (q, k, v, q_s, k_s)
                expected = function(*leaves, starts, backend)
                wanted = torch.autograd.grad(expected, leaves)
                calls.clear()
                found = compiled(*leaves, starts, backend)
                given = torch.autograd.grad(found, leaves)
                if ran is not None:
                    assert calls == {f"{ran}.forward": 1, f"{ran}.backward": 1}, calls
                if backend == "auto":
                    assert not calls["reference.forward"]
                torch.testing.assert_close(found, expected)
                for x, y in zip(given, wanted, strict=True):
                    torch.testing.assert_close(x, y)


def check_registrations() -> None:
    for name in ("usage, two masks", "protectors", "documents"):
        p = replace(CASES[name], B=1, D=8, E=4).problem()
        p = with_leaves(p, {key: t.requires_grad_() for key, t in leaves(p).items()})
        values = p.rule.code, p.select, p.protect, p.scale, p.tau, p.compact, "chunked"
        given = p.q, p.k, p.v, p.q_s, p.k_s, p.q_p, p.k_p, p.starts, *values
        torch.library.opcheck(torch.ops.winnow.selective_attention.default, given)


def check_refusal() -> None:
    x: Any = torch.zeros(1, 2, 1, 4)
    unknown: Any = "cuda"
    with pytest.raises(InputError, match="backend: 'cuda'"):
        selective_attention(x, x, x, backend=unknown)
    with pytest.raises(InputError, match="compaction: 'cuda'"):
        selective_attention(x, x, x, compaction=unknown)
    for name in ("protection", "algorithm", "accumulate"):
        with pytest.raises(InputError, match=f"{name}: 'cuda'"):
            Rule(spread=(0,), **{name: unknown})


if __name__ == "__main__":
    check_compiled()
    check_registrations()
    check_refusal()

"""Selective attention: softmax attention with the selection's masks subtracted from the scores.

    out_h = softmax(q_h k_h^T * scale - F of mask spread[h]) v_h        F: see `rule.py`
    usage_m[i] = sum over visible j of min(F_m[i, j], tau)              what the memory penalty is made of

Source: Leviathan, Kalman, Matias 2024 (arXiv 2410.02703), section 3. One signature, four backends: `reference`
(the definition, any order of derivatives), `chunked` (PyTorch, a block of queries at a time), `cpu` (C++), `triton`
(GPU). `choose` says which runs, and why not a faster one. `calls` counts what really ran.

A call passes through two operators of torch.library, so that torch.compile, torch.func.vmap and grad see one node;
the rule travels in them as text (`Rule.code`). `reference` is made of ordinary operations and passes through none.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from winnow.errors import InputError
from winnow.kernels import reference
from winnow.kernels.rule import Problem, Rule, calls, grouped, reasons
from winnow.kernels.selective_operator import Backend, Choice, attend, choose

__all__ = ["Backend", "Choice", "Usage", "calls", "choose", "selection_usage", "selective_attention"]

Compaction = Literal["auto", "exact"]


class Usage(NamedTuple):
    """What `selection_usage` returns."""

    out: Tensor
    """(B, T, H, D), as of `selective_attention`."""
    usage: Tensor
    """(B, M, T), fp32 (fp64 for fp64 inputs): sum over the visible keys of min(F, tau)."""


def selective_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    select: int | tuple[Tensor, Tensor] = 0,
    protect: int | tuple[Tensor, Tensor] | None = None,
    rule: Rule | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
    compaction: Compaction | None = "auto",
) -> Tensor:
    """out (B, T, H, D), in v's dtype, of q (B, T, H, D) and k, v (B, T, K, D); K divides H.

    Args:
        select: the head that selects, or selectors apart: queries (B, T, M, E) and keys (B, T, M or 1, E).
        protect: the same for protectors, where the rule's protection is "scores"; one for all masks, or one each.
        rule: how scores become masks; None: one plain mask for all heads.
        starts: (B, T), for packed documents: index of the first token of each token's document. None: 0.
        scale: of all scores; None: D^-1/2, for selectors too.
        compaction: drop keys that provably cannot weigh 2^-24 any more. "auto": where the rule permits it; "exact":
            refuse rules that do not; None: never.

    Other dtypes than v's are converted to it. Raises InputError for shapes and rules that do not fit.
    """
    return _attend(q, k, v, select, protect, rule, starts, scale, None, backend, compaction)[0]


def selection_usage(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    select: int | tuple[Tensor, Tensor] = 0,
    protect: int | tuple[Tensor, Tensor] | None = None,
    rule: Rule | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    tau: float = 1.0,
    backend: Backend = "auto",
    compaction: Compaction | None = "auto",
) -> Usage:
    """`selective_attention` and, from the same pass, how much of each query's context its masks have taken away."""
    if not (0 <= tau < math.inf):
        raise InputError(f"{tau} is not permitted", key="tau", mend="0 or more, and finite")
    return Usage(*_attend(q, k, v, select, protect, rule, starts, scale, tau, backend, compaction))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    select: int | tuple[Tensor, Tensor],
    protect: int | tuple[Tensor, Tensor] | None,
    rule: Rule | None,
    starts: Tensor | None,
    scale: float | None,
    tau: float | None,
    backend: Backend,
    compaction: Compaction | None,
) -> tuple[Tensor, Tensor]:
    _check_heads(q, k, v)
    B, T, H, D = q.shape
    K = k.shape[2]
    factor = D**-0.5 if scale is None else scale
    if not (0 <= factor < math.inf):
        raise InputError(f"{factor} is not permitted", key="scale", mend="0 or more, and finite")
    dtype = v.dtype
    q, k = q.to(dtype), k.to(dtype)
    M, head = 1, -1
    q_s = k_s = None
    if isinstance(select, tuple):
        q_s, k_s = _pair(select, "select", (B, T), v)
        M = q_s.shape[2]
    else:
        head = _head(select, "select", H)
    if rule is None:
        rule = Rule(spread=grouped(M, H) if M <= H else (0,) * H)  # too many masks are refused below
    if compaction not in ("auto", "exact", None):
        raise InputError(f"{compaction!r} is none", key="compaction", mend="permitted: auto, exact, None")
    rule.check(H, M, protector=protect is not None, compaction=compaction)
    protector = -1
    q_p = k_p = None
    if isinstance(protect, tuple):
        q_p, k_p = _pair(protect, "protect", (B, T), v)
    elif protect is not None:
        protector = _head(protect, "protect", H)
        if M > 1:  # shared by all masks, as a pair of its own
            q_p = q[:, :, protector : protector + 1]
            k_p = k[:, :, protector * K // H : protector * K // H + 1]
            protector = -1
    if q_p is not None and q_p.shape[2] != M:
        if q_p.shape[2] != 1:
            raise InputError(
                f"{q_p.shape[2]} protectors for {M} masks", key="protect", mend="give one, or one per mask"
            )
        q_p = q_p.expand(B, T, M, q_p.shape[3])
    if starts is not None:
        starts = _starts(starts, q)
    if T == 0 or B == 0:
        return q * 0.0, q.new_zeros((0,) if tau is None else (B, M, T), dtype=reference.computing_dtype(dtype))
    compact = compaction is not None and rule.monotone
    problem = Problem(q, k, v, q_s, k_s, q_p, k_p, starts, rule, head, protector, factor, tau, compact)
    if backend != "reference" and (backend != "auto" or rule.algorithm == "blocked"):
        return attend(problem, backend)
    if not torch.compiler.is_compiling():
        reasons["reference"] = choose(problem, backend).reason
    with torch.autocast(q.device.type, enabled=False):
        return reference.attention(problem)


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise InputError(f"{name} has shape {tuple(x.shape)}", key=name, mend="give (B, T, heads, D)")
    H, D = q.shape[2:]
    K = k.shape[2]
    if k.shape != v.shape:
        raise InputError(f"k has shape {tuple(k.shape)} and v {tuple(v.shape)}", key="k", mend="give both the same")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise InputError(
            f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}", key="q", mend="only the number of heads may differ"
        )
    if K == 0 or H == 0 or D == 0:
        raise InputError(f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}", key="q", mend="give at least one head")
    if H % K:
        raise InputError(f"{H} heads cannot share {K} kv heads evenly", key="k", mend=f"give a divisor of {H}")
    if not v.is_floating_point():
        raise InputError(f"v is of {v.dtype}", key="v", mend="give floating-point numbers")


def _head(index: int, key: str, n_heads: int) -> int:
    if not 0 <= index < n_heads:
        raise InputError(f"there is no head {index}", key=key, mend=f"use 0 to {n_heads - 1}")
    return index


def _pair(pair: tuple[Tensor, Tensor], key: str, rows: tuple[int, int], v: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (B, T, M, E) and keys (B, T, M or 1, E), in v's dtype."""
    queries, keys = pair
    shapes = f"queries of shape {tuple(queries.shape)} and keys of shape {tuple(keys.shape)}"
    if queries.ndim != 4 or keys.ndim != 4:
        raise InputError(shapes, key=key, mend="give (B, T, masks, width)")
    if queries.shape[:2] != rows or keys.shape[:2] != rows:
        raise InputError(shapes, key=key, mend=f"give B and T as of q, {rows[0]} and {rows[1]}")
    if queries.shape[3] != keys.shape[3] or not queries.shape[3]:
        raise InputError(shapes, key=key, mend="give both one width, 1 or more")
    if not queries.shape[2] or keys.shape[2] not in (1, queries.shape[2]):
        raise InputError(shapes, key=key, mend="give a key for each mask, or one for all")
    return queries.to(v.dtype), keys.to(v.dtype)


def _starts(starts: Tensor, q: Tensor) -> Tensor:
    if starts.shape != q.shape[:2]:
        raise InputError(
            f"shape {tuple(starts.shape)} for {q.shape[0]} rows of {q.shape[1]} tokens",
            key="starts",
            mend="give (B, T)",
        )
    if starts.is_floating_point() or starts.dtype == torch.bool:
        raise InputError(f"{starts.dtype} is no index", key="starts", mend="give integers")
    return starts.to(device=q.device, dtype=torch.int32)

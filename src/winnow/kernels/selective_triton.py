"""Selective attention on a GPU, in Triton: what it supports, and the order of its kernels.

Forward: the masks' tiles once per mask (`select_tiles`), a scan over blocks, then attention by head, which reads the
masks from the strip. Backward: the strip again, then `vote_tails` with the heads inside, a scan, and one kernel for
each gradient. Nothing is added atomically anywhere: gradients repeat bit for bit.

The strip is kept, not formed again by each head: for a tile of 128 x 64 at D = 64 another score product costs 1.0
MFLOP beside the 2.1 of attention, and a scan over its rows; the stored tile costs 16 KB out of L2, which all heads
share. It takes M B T^2 bytes for 16-bit inputs (twice that in fp32; half of the square is stored) and lives within a
pass; so do the gradients of the masks' scores, the same again (twice with protectors). What is saved between the
passes is O(T^2 / 128) per mask.

Dropped keys (`Problem.compact`) and earlier documents are skipped by tiles of keys, none of which can be seen any more.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os

import torch
from torch import Tensor

from winnow.kernels.rule import Problem, calls
from winnow.kernels.triton_plan import Plan, plan_of, sizes_of

Saved = tuple[Tensor, Tensor, Tensor]
Shape = tuple[int, ...]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]

WIDEST = 128
"""Head width."""
MOST_PROGRAMS = 65535
"""Along a grid's second axis."""
MOST_BLOCKS = 512
"""Of queries, which one program scans at once."""


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot run the problem; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    device = problem.q.device.type
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on the {device}, and it needs a CUDA device"
    rule, dtype = problem.rule, problem.v.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it does not compute in {dtype}"
    if rule.algorithm != "blocked":
        return f'it forms sums in blocks, not by the "{rule.algorithm}" algorithm'
    if rule.accumulate != "float32":
        return f"it sums in float32, not in {rule.accumulate}"
    B, T, H, D = problem.q.shape
    if D > WIDEST:
        return f"heads of width {D} are wider than {WIDEST}"
    if B * max(H, rule.n_masks) > MOST_PROGRAMS:
        return f"{B} rows of {H} heads are more than one launch takes"
    if math.ceil(T / plan_of(dtype, D).block) > MOST_BLOCKS:
        return f"{T} tokens are more than it scans at once"
    return None


def saved_shapes(problem: Problem, plan: Plan | None = None) -> tuple[Shape, Shape, Shape]:
    """Shapes of lse (B, H, T), carry (B, M, 1 or 2, blocks, T), and tiles' lifetimes (B, M, tiles) or (0,)."""
    return sizes_of(problem, plan).saved


def forward(problem: Problem, plan: Plan | None = None) -> tuple[Tensor, Tensor, Saved]:
    """out (B, T, H, D), usage (B, M, T) fp32 or (0,), and what `backward` needs, fp32.

    `plan`: other block sizes than `plan_of` gives; the backward pass needs the same.
    """
    from winnow.kernels import triton_forward
    from winnow.kernels.triton_call import Call, steps

    calls["triton.forward"] += 1
    sizes = sizes_of(problem, plan)
    q, k, v = problem.q, problem.k, problem.v
    with _on(q):
        call = Call(problem, sizes)
        lse, carry, until = (torch.empty(s, dtype=torch.float32, device=q.device) for s in sizes.saved)
        totals = torch.empty_like(carry)
        strip = call.new_gains()
        # Votes alone need no carry for their rows: one pass forms both, unless it could skip most of them later.
        at_once = not sizes.kind and not sizes.skip
        call.select(carry, until, totals, strip, of_blocks=True, of_rows=at_once)
        call.scan(totals, carry)
        if sizes.skip:
            call.find_lifetimes(carry, until)
        if not at_once:
            call.select(carry, until, totals, strip, of_blocks=False, of_rows=True)
        launch = sizes.plan.attend
        row_blocks = math.ceil(sizes.T / launch.rows)
        out = torch.empty(q.shape, dtype=v.dtype, device=q.device)
        triton_forward.attend[(row_blocks * sizes.H, sizes.B)](
            q, k, v, strip, carry, call.starts, *call.live_tiles(until), call.spread, out, lse,
            *steps(q), *steps(k), *steps(v), strip.stride(0), carry.stride(1), *call.counts, problem.scale,
            **call.attention_flags(launch),
        )  # fmt: skip
        if problem.tau is None:
            return out, torch.empty(0, dtype=torch.float32, device=q.device), (lse, carry, until)
        usage = call.usage(strip, carry, until)
        return out, usage, (lse, carry, until)


def backward(
    problem: Problem,
    out: Tensor,
    saved: Saved,
    grad_out: Tensor,
    grad_usage: Tensor | None,
    plan: Plan | None = None,
) -> Gradients:
    """Gradients of q, k, v, q_s, k_s, q_p, k_p, in the inputs' dtypes; None for tensors that are not there."""
    from winnow.kernels import triton_heads
    from winnow.kernels.triton_call import Call, steps

    calls["triton.backward"] += 1
    sizes = sizes_of(problem, plan)
    q, k, v = problem.q, problem.k, problem.v
    lse, carry, until = saved
    with _on(q):
        call = Call(problem, sizes)
        out, grad = (x if x.stride(-1) == 1 else x.contiguous() for x in (out, grad_out))
        strip = call.new_gains()
        call.select(carry, until, carry, strip, of_blocks=False, of_rows=True)
        live = call.live_tiles(until)
        delta = call.row_products(out, grad)
        of_rows, of_keys = sizes.plan.queries, sizes.plan.keys
        row_blocks = math.ceil(sizes.T / of_rows.rows)
        votes, shields = call.mask_gradients(saved, grad, delta, grad_usage, strip, live)
        # What a head has selected or protected with belongs to that head's gradient.
        selects = problem.q_s is None
        protects = shields is not None and problem.q_p is None
        of_protector = shields if shields is not None else votes
        flags = {"SELECTS": selects, "PROTECTS": protects}
        inputs = (q, k, v, grad, lse, delta, strip, carry, call.starts)
        numbers = (
            *steps(q), *steps(k), *steps(v), *steps(grad), strip.stride(0), carry.stride(1), *call.counts,
            problem.scale,
        )  # fmt: skip
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=q.device) for x in (q, k, v))
        triton_heads.query_gradients[(row_blocks * sizes.H, sizes.B)](
            *inputs, *live, call.spread, votes[0], of_protector[0], dq, *numbers, problem.select, problem.protect,
            **flags, **call.attention_flags(of_rows),
        )  # fmt: skip
        triton_heads.key_gradients[(sizes.tiles * k.shape[2], sizes.B)](
            *inputs, until, call.spread, votes[1], of_protector[1], dk, dv, *numbers,
            problem.select // sizes.group, problem.protect // sizes.group,
            **flags, **call.attention_flags(of_keys),
        )  # fmt: skip
    dtype = q.dtype
    dq_s, dk_s = (None, None) if selects else (votes[0].to(dtype), votes[1].to(dtype))
    if shields is None or protects:
        return dq, dk, dv, dq_s, dk_s, None, None
    return dq, dk, dv, dq_s, dk_s, shields[0].to(dtype), shields[1].to(dtype)


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches go to the tensor's card, not to the current one."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()

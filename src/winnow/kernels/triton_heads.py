"""Backward kernels of the heads on a GPU: gradients of queries, keys and values, masks given. See `triton_tiles.py`.

Two kernels, each the owner of what it writes. A head that selects or protects gets that part of its gradient from
fp32 buffers, added before the one rounding to the output's dtype.
"""

# Kernels are written in Triton's language, whose types are not Python's.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from winnow.kernels.triton_forward import LOG2E
from winnow.kernels.triton_tiles import load_rows, load_starts, pairs, strip_tile


@triton.jit
def query_tile(
    kb, q, grad, k, v, strip, base, rows, firsts, lse2, delta, found, k_t, v_t, n, t, scale2,
    D: tl.constexpr, DP: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """found + dL/ds of a tile @ its keys"""
    keys = kb * BN + tl.arange(0, BN)
    columns = tl.arange(0, DP)
    right = load_rows(k, keys, k_t, n, columns, D)
    values = load_rows(v, keys, v_t, n, columns, D)
    gain = tl.load(strip_tile(strip, t, rows, keys, BS)).to(tl.float32)
    mask = gain + tl.load(base + keys, mask=keys < n, other=0.0)[None, :]
    if RELU:
        mask = tl.maximum(mask, 0.0)
    s = tl.dot(q, tl.trans(right), input_precision="ieee") * scale2 - mask * LOG2E
    p = tl.exp2(s - lse2[:, None])
    if MASKED:
        p = tl.where(pairs(rows, keys, firsts) & (keys < n)[None, :], p, 0.0)
    ds = p * (tl.dot(grad, tl.trans(values), input_precision="ieee") - delta[:, None])
    return tl.dot(ds.to(right.dtype), right, found, input_precision="ieee")


@triton.jit
def query_gradients(
    q, k, v, grad, lse, delta, strip, carry, starts, tiles, counts, spread, voted, shielded, dq,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, grad_b, grad_t, grad_h, strip_m, carry_m,
    n, n_blocks, n_tiles, scale, select, protect,
    H: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, RELU: tl.constexpr,
    STARTS: tl.constexpr, SKIP: tl.constexpr, SELECTS: tl.constexpr, PROTECTS: tl.constexpr,
    BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks * H, B), as `attend`. dq (B, T, H, D); voted, shielded (B, T, 1, D) fp32 of two heads."""
    h = tl.program_id(0) % H
    rb = tl.num_programs(0) // H - 1 - tl.program_id(0) // H
    b = tl.program_id(1).to(tl.int64)
    bm = b * M + tl.load(spread + h)
    t = rb * BM // BS
    rows = rb * BM + tl.arange(0, BM)
    columns = tl.arange(0, DP)
    left = load_rows(q + b * q_b + h * q_h, rows, q_t, n, columns, D)
    slopes = load_rows(grad + b * grad_b + h * grad_h, rows, grad_t, n, columns, D)
    # Rows beyond the sequence weigh exp(-inf).
    lse2 = tl.load(lse + (b * H + h) * n + rows, mask=rows < n, other=float("inf")) * LOG2E
    row_delta = tl.load(delta + (b * H + h) * n + rows, mask=rows < n, other=0.0)
    k += b * k_b + h // GROUP * k_h
    v += b * v_b + h // GROUP * v_h
    strip += bm * strip_m
    base = carry + bm * carry_m + t * n
    firsts = load_starts(starts + b * n, rows, n, STARTS)
    scale2 = scale * LOG2E
    found = tl.zeros((BM, DP), dtype=tl.float32)
    if SKIP:
        row = bm * n_blocks + t
        for slot in tl.range(0, tl.load(counts + row), num_stages=STAGES):
            kb = tl.load(tiles + row * n_tiles + slot)
            found = query_tile(
                kb, left, slopes, k, v, strip, base, rows, firsts, lse2, row_delta, found, k_t, v_t, n, t, scale2,
                D, DP, RELU, STARTS, BS, BN,
            )  # fmt: skip
    else:
        for kb in tl.range(0, t * BS // BN, num_stages=STAGES):
            found = query_tile(
                kb, left, slopes, k, v, strip, base, rows, firsts, lse2, row_delta, found, k_t, v_t, n, t, scale2,
                D, DP, RELU, STARTS, BS, BN,
            )  # fmt: skip
    for kb in range(t * BS // BN, tl.cdiv((rb + 1) * BM, BN)):
        found = query_tile(
            kb, left, slopes, k, v, strip, base, rows, firsts, lse2, row_delta, found, k_t, v_t, n, t, scale2,
            D, DP, RELU, True, BS, BN,
        )  # fmt: skip
    found *= scale
    inside = (rows < n)[:, None] & (columns < D)[None, :]
    own = (b * n + rows)[:, None] * D + columns[None, :]
    if SELECTS and h == select:
        found += tl.load(voted + own, mask=inside, other=0.0)
    if PROTECTS and h == protect:
        found += tl.load(shielded + own, mask=inside, other=0.0)
    tl.store(dq + ((b * n + rows)[:, None] * H + h) * D + columns[None, :], found, mask=inside)


@triton.jit
def key_tile(
    rb, q, grad, k, v, lse, delta, strip, carry, starts, keys, of_keys, of_values, q_t, grad_t, n, scale2,
    D: tl.constexpr, DP: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr, STARTS: tl.constexpr,
    BS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """of_keys + dL/ds^T @ q, of_values + p^T @ grad for a block of rows; scores are formed transposed, (BN, BM)."""
    t = rb * BM // BS
    rows = rb * BM + tl.arange(0, BM)
    columns = tl.arange(0, DP)
    left = load_rows(q, rows, q_t, n, columns, D)
    slopes = load_rows(grad, rows, grad_t, n, columns, D)
    gain = tl.trans(tl.load(strip_tile(strip, t, rows, keys, BS)).to(tl.float32))
    mask = gain + tl.load(carry + t * n + keys, mask=keys < n, other=0.0)[:, None]
    if RELU:
        mask = tl.maximum(mask, 0.0)
    lse2 = tl.load(lse + rows, mask=rows < n, other=float("inf")) * LOG2E
    s = tl.dot(k, tl.trans(left), input_precision="ieee") * scale2 - mask * LOG2E
    p = tl.exp2(s - lse2[None, :])
    if MASKED:
        seen = pairs(rows, keys, load_starts(starts, rows, n, STARTS)) & (rows < n)[:, None]
        p = tl.where(tl.trans(seen), p, 0.0)
    of_values = tl.dot(p.to(slopes.dtype), slopes, of_values, input_precision="ieee")
    ds = tl.dot(v, tl.trans(slopes), input_precision="ieee")
    ds = p * (ds - tl.load(delta + rows, mask=rows < n, other=0.0)[None, :])
    of_keys = tl.dot(ds.to(left.dtype), left, of_keys, input_precision="ieee")
    return of_keys, of_values


@triton.jit
def key_gradients(
    q, k, v, grad, lse, delta, strip, carry, starts, until, spread, voted, shielded, dk, dv,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, grad_b, grad_t, grad_h, strip_m, carry_m,
    n, n_blocks, n_tiles, scale, select, protect,
    H: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, RELU: tl.constexpr,
    STARTS: tl.constexpr, SKIP: tl.constexpr, SELECTS: tl.constexpr, PROTECTS: tl.constexpr,
    BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (tiles * kv heads, B). dk, dv (B, T, K, D); heads that share a kv head follow one another inside.

    select, protect: kv heads here.
    """
    K: tl.constexpr = H // GROUP
    kv = tl.program_id(0) % K
    kb = tl.program_id(0) // K
    b = tl.program_id(1).to(tl.int64)
    keys = kb * BN + tl.arange(0, BN)
    columns = tl.arange(0, DP)
    k_tile = load_rows(k + b * k_b + kv * k_h, keys, k_t, n, columns, D)
    v_tile = load_rows(v + b * v_b + kv * v_h, keys, v_t, n, columns, D)
    of_keys = tl.zeros((BN, DP), dtype=tl.float32)
    of_values = tl.zeros((BN, DP), dtype=tl.float32)
    scale2 = scale * LOG2E
    # Blocks of rows up to the selection block's end may hold rows before the tile's keys.
    diagonal = tl.cdiv((kb + 1) * BN, BM)
    for h in range(kv * GROUP, (kv + 1) * GROUP):
        bm = b * M + tl.load(spread + h)
        of_q = q + b * q_b + h * q_h
        of_grad = grad + b * grad_b + h * grad_h
        of_strip = strip + bm * strip_m
        of_carry = carry + bm * carry_m
        of_lse = lse + (b * H + h) * n
        of_delta = delta + (b * H + h) * n
        end = tl.cdiv(n, BM)
        if SKIP:
            end = tl.minimum(end, tl.load(until + bm * n_tiles + kb).to(tl.int32) * (BS // BM))
        for rb in range(kb * BN // BM, tl.minimum(diagonal, end)):
            of_keys, of_values = key_tile(
                rb, of_q, of_grad, k_tile, v_tile, of_lse, of_delta, of_strip, of_carry, starts + b * n, keys,
                of_keys, of_values, q_t, grad_t, n, scale2, D, DP, RELU, True, STARTS, BS, BM,
            )  # fmt: skip
        for rb in tl.range(diagonal, end, num_stages=STAGES):
            of_keys, of_values = key_tile(
                rb, of_q, of_grad, k_tile, v_tile, of_lse, of_delta, of_strip, of_carry, starts + b * n, keys,
                of_keys, of_values, q_t, grad_t, n, scale2, D, DP, RELU, STARTS, STARTS, BS, BM,
            )  # fmt: skip
    of_keys *= scale
    inside = (keys < n)[:, None] & (columns < D)[None, :]
    own = (b * n + keys)[:, None] * D + columns[None, :]
    if SELECTS and kv == select:
        of_keys += tl.load(voted + own, mask=inside, other=0.0)
    if PROTECTS and kv == protect:
        of_keys += tl.load(shielded + own, mask=inside, other=0.0)
    place = ((b * n + keys)[:, None] * K + kv) * D + columns[None, :]
    tl.store(dk + place, of_keys, mask=inside)
    tl.store(dv + place, of_values, mask=inside)

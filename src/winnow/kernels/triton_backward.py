"""Backward kernels of the masks on a GPU: from gradients of all heads to gradients of selectors and protectors.

    row_products      delta_i = out_i . grad_out_i
    vote_tails        per (mask, block, tile of keys), heads inside: g = dL/dF, summed over the block's later rows
    scan_tails, scan_held   the same sums over later blocks
    finish            what reaches the raw scores of votes, and of protection
    query_products, key_products   from there to the selectors' queries and keys

Nothing is added atomically: each sum has one order. With votes alone, what reaches the vote of row i (turn i - 1) is
the sum of g over rows i and later. With protection it is that sum from the first row at or after i whose vote broke
through the reserve (a flag): earlier rows' damage was settled before. Protection gets the same with the other sign.
"""

# Kernels are written in Triton's language, whose types are not Python's.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from winnow.kernels.triton_forward import LOG2E
from winnow.kernels.triton_tiles import (
    gains,
    latest,
    load_rows,
    load_starts,
    may_vote,
    pairs,
    protection_slope,
    running_max,
    scores,
    strip_tile,
)


@triton.jit
def row_products(
    out, grad, delta, out_b, out_t, out_h, grad_b, grad_t, grad_h, n, D: tl.constexpr, DP: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks, H, B). delta (B, H, T) fp32."""
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.arange(0, DP)
    left = load_rows(out + b * out_b + h * out_h, rows, out_t, n, columns, D).to(tl.float32)
    right = load_rows(grad + b * grad_b + h * grad_h, rows, grad_t, n, columns, D).to(tl.float32)
    tl.store(delta + (b * tl.num_programs(1) + h) * n + rows, tl.sum(left * right, 1), mask=rows < n)


@triton.jit
def vote_tails(
    q, k, v, grad, lse, delta, strip, carry, starts, until, order, bounds_of, grad_usage, qs, ks, qp, kp, tails, totals,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, grad_b, grad_t, grad_h, qs_b, qs_t, qs_m, ks_b, ks_t, ks_m,
    qp_b, qp_t, qp_m, kp_b, kp_t, kp_m, strip_m, carry_m, n, n_blocks, n_tiles, scale, tau,
    leak, slope, offset, factor, bias,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, USAGE: tl.constexpr, RELU: tl.constexpr,
    M: tl.constexpr, E: tl.constexpr, EC: tl.constexpr, EP: tl.constexpr, EPC: tl.constexpr, KIND: tl.constexpr,
    BIAS: tl.constexpr, BOS: tl.constexpr, SELF: tl.constexpr, STARTS: tl.constexpr, SKIP: tl.constexpr,
    BS: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (blocks * tiles, B * M). tails as the strip; totals (B, M, 1 or 3, blocks, T) fp32.

    Totals: of the block; with protection also the sum from its first flag, and the row of its last flag (-1: none).
    `order` (H,): heads by mask, those of mask m at bounds_of[m] to bounds_of[m + 1] - 1.
    """
    t = tl.program_id(0) // n_tiles
    kb = tl.program_id(0) % n_tiles
    if kb * BN < (t + 1) * BS:
        bm = tl.program_id(1)
        b = (bm // M).to(tl.int64)
        m = bm % M
        alive = True
        if SKIP:
            alive = tl.load(until + bm * n_tiles + kb) > t
        if alive:
            rows = t * BS + tl.arange(0, BS)
            keys = kb * BN + tl.arange(0, BN)
            columns = tl.arange(0, DP)
            seen = pairs(rows, keys, load_starts(starts + b * n, rows, n, STARTS)) & (rows < n)[:, None]
            base = carry + bm.to(tl.int64) * carry_m + t * n + keys
            gain = tl.load(strip_tile(strip + bm.to(tl.int64) * strip_m, t, rows, keys, BS)).to(tl.float32)
            summed = gain + tl.load(base, mask=keys < n, other=0.0)[None, :]
            mask = tl.maximum(summed, 0.0) if RELU else summed
            less = mask * LOG2E
            g = tl.zeros((BS, BN), dtype=tl.float32)
            for slot in tl.range(tl.load(bounds_of + m), tl.load(bounds_of + m + 1), num_stages=STAGES):
                h = tl.load(order + slot)
                row = (b * H + h) * n + rows
                left = load_rows(q + b * q_b + h * q_h, rows, q_t, n, columns, D)
                right = load_rows(k + b * k_b + h // GROUP * k_h, keys, k_t, n, columns, D)
                s = tl.dot(left, tl.trans(right), input_precision="ieee") * (scale * LOG2E) - less
                p = tl.exp2(s - (tl.load(lse + row, mask=rows < n, other=0.0) * LOG2E)[:, None])
                slopes = load_rows(grad + b * grad_b + h * grad_h, rows, grad_t, n, columns, D)
                values = load_rows(v + b * v_b + h // GROUP * v_h, keys, v_t, n, columns, D)
                dp = tl.dot(slopes, tl.trans(values), input_precision="ieee")
                dp -= tl.load(delta + row, mask=rows < n, other=0.0)[:, None]
                g -= tl.where(seen, p * dp, 0.0)
            if USAGE:
                of_usage = tl.load(grad_usage + bm.to(tl.int64) * n + rows, mask=rows < n, other=0.0)
                g += tl.where(seen & (mask < tau), of_usage[:, None], 0.0)
            if RELU:
                g = tl.where(summed > 0, g, 0.0)
            planes: tl.constexpr = 3 if KIND > 0 else 1
            place = totals + bm.to(tl.int64) * planes * n_blocks * n + t * n + keys
            tl.store(place, tl.sum(g, 0), mask=keys < n)
            tail = tl.cumsum(g, 0, reverse=True)
            if KIND > 0:
                net = tl.cumsum(gains(
                    qs + b * qs_b + m * qs_m, ks + b * ks_b + m * ks_m, qp + b * qp_b + m * qp_m,
                    kp + b * kp_b + m * kp_m, starts + b * n, rows, keys, qs_t, ks_t, qp_t, kp_t, n, scale,
                    leak, slope, offset, factor, bias, E, EC, EP, EPC, KIND, BIAS, BOS, SELF, STARTS,
                ), 0)  # fmt: skip
                reserve = tl.load(base + n_blocks * n, mask=keys < n, other=0.0)
                flag = ((net >= running_max(net)) & (net >= reserve[None, :])).to(tl.int32)
                _, tail = tl.associative_scan((flag, tl.where(flag != 0, tail, 0.0)), 0, latest, reverse=True)
                within = tl.arange(0, BS)[:, None]
                first = tl.sum(tl.where(within == 0, tail, 0.0), 0)
                last = tl.max(tl.where(flag != 0, within, -1), 0)
                tl.store(place + n_blocks * n, first, mask=keys < n)
                tl.store(place + 2 * n_blocks * n, last.to(tl.float32), mask=keys < n)
            tl.store(strip_tile(tails + bm.to(tl.int64) * strip_m, t, rows, keys, BS), tail)


@triton.jit
def scan_tails(
    totals, after, until, n, n_blocks, n_tiles, SKIP: tl.constexpr, BLOCKS: tl.constexpr, BS: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, B * M). after[t] = sum of totals[t + 1..]."""
    kb, bm = tl.program_id(0), tl.program_id(1)
    blocks = tl.arange(0, BLOCKS)
    keys = kb * BN + tl.arange(0, BN)
    base = bm.to(tl.int64) * n_blocks * n
    later = blocks + 1
    end = n_blocks
    if SKIP:
        end = tl.load(until + bm * n_tiles + kb).to(tl.int32)
    known = (later < end)[:, None] & (keys[None, :] < n) & (keys[None, :] < (later[:, None] + 1) * BS)
    added = tl.load(totals + base + later[:, None] * n + keys[None, :], mask=known, other=0.0)
    inside = (blocks < n_blocks)[:, None] & (keys[None, :] < n)
    tl.store(after + base + blocks[:, None] * n + keys[None, :], tl.cumsum(added, 0, reverse=True), mask=inside)


@triton.jit
def scan_held(
    totals, after, until, n, n_blocks, n_tiles, SKIP: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """Grid (tiles, B * M). after (B, M, 2, blocks, T): the sum over later blocks, and that from their first flag."""
    kb, bm = tl.program_id(0), tl.program_id(1)
    keys = kb * BN + tl.arange(0, BN)
    plane = n_blocks * n
    source = totals + bm.to(tl.int64) * 3 * plane + keys
    target = after + bm.to(tl.int64) * 2 * plane + keys
    end = n_blocks
    if SKIP:
        end = tl.load(until + bm * n_tiles + kb).to(tl.int32)
    total = tl.zeros((BN,), dtype=tl.float32)
    held = tl.zeros((BN,), dtype=tl.float32)
    for back in range(n_blocks):
        t = n_blocks - 1 - back
        tl.store(target + t * n, total, mask=keys < n)
        tl.store(target + plane + t * n, held, mask=keys < n)
        known = keys < tl.where(t < end, tl.minimum((t + 1) * BS, n), 0)
        last = tl.load(source + 2 * plane + t * n, mask=known, other=-1.0)
        first = tl.load(source + plane + t * n, mask=known, other=0.0)
        held = tl.where(last >= 0, total + first, held)
        total += tl.load(source + t * n, mask=known, other=0.0)


@triton.jit
def finish(
    qs, ks, qp, kp, starts, until, totals, after, tails, shields,
    qs_b, qs_t, qs_m, ks_b, ks_t, ks_m, qp_b, qp_t, qp_m, kp_b, kp_t, kp_m,
    strip_m, n, n_blocks, n_tiles, scale, leak, slope, offset, factor, bias,
    M: tl.constexpr, E: tl.constexpr, EC: tl.constexpr, EP: tl.constexpr, EPC: tl.constexpr, KIND: tl.constexpr,
    BIAS: tl.constexpr, BOS: tl.constexpr, SELF: tl.constexpr, STARTS: tl.constexpr, SKIP: tl.constexpr,
    BS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (blocks * tiles, B * M). Row i of tails becomes dL/draw of turn i - 1, in place; of shields, of i - 2."""
    t = tl.program_id(0) // n_tiles
    kb = tl.program_id(0) % n_tiles
    if kb * BN < (t + 1) * BS:
        bm = tl.program_id(1)
        b = (bm // M).to(tl.int64)
        m = bm % M
        alive = True
        if SKIP:
            alive = tl.load(until + bm * n_tiles + kb) > t
        if alive:
            rows = t * BS + tl.arange(0, BS)
            keys = kb * BN + tl.arange(0, BN)
            where = strip_tile(tails + bm.to(tl.int64) * strip_m, t, rows, keys, BS)
            planes: tl.constexpr = 2 if KIND > 0 else 1
            later = after + bm.to(tl.int64) * planes * n_blocks * n + t * n + keys
            g = tl.load(where).to(tl.float32) + tl.load(later, mask=keys < n, other=0.0)[None, :]
            if KIND > 0:
                settled = totals + (bm.to(tl.int64) * 3 + 2) * n_blocks * n + t * n + keys
                last = tl.load(settled, mask=keys < n, other=-1.0)
                held = tl.load(later + n_blocks * n, mask=keys < n, other=0.0)
                g = tl.where(tl.arange(0, BS)[:, None] <= last[None, :], g, held[None, :])
            turns = rows - 1
            raw = scores(qs + b * qs_b + m * qs_m, ks + b * ks_b + m * ks_m, turns, keys, qs_t, ks_t, n, E, EC) * scale
            may = may_vote(turns, keys, load_starts(starts + b * n, turns, n, STARTS), BOS, SELF)
            tl.store(where, g * tl.where(may, tl.where(raw > 0, 1.0, leak), 0.0))
            if KIND == 1 or KIND == 2:
                turns = rows - 2
                qp += b * qp_b + m * qp_m
                kp += b * kp_b + m * kp_m
                raw = scores(qp, kp, turns, keys, qp_t, kp_t, n, EP, EPC) * scale
                seen = pairs(turns, keys, load_starts(starts + b * n, turns, n, STARTS))
                rate = tl.where(seen, protection_slope(raw, slope, offset, factor, bias, KIND, BIAS), 0.0)
                tl.store(strip_tile(shields + bm.to(tl.int64) * strip_m, t, rows, keys, BS), -g * rate)


@triton.jit
def query_product(
    kb, slopes, keys_of, rows, channels, found, k_t, n, t, E: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """found + slopes[rows, tile] @ keys_of[tile]"""
    keys = kb * BN + tl.arange(0, BN)
    # An unwritten tile lies beyond the sequence alone, and anything might be there.
    left = tl.load(strip_tile(slopes, t, rows, keys, BS), mask=(keys < n)[None, :], other=0.0)
    right = load_rows(keys_of, keys, k_t, n, channels, E)
    return tl.dot(left, right.to(left.dtype), found, input_precision="ieee")


@triton.jit
def query_products(
    slopes, k, tiles, counts, dq, k_b, k_t, k_m, strip_m, n, n_blocks, n_tiles, scale,
    M: tl.constexpr, E: tl.constexpr, EC: tl.constexpr, SHIFT: tl.constexpr, SKIP: tl.constexpr,
    BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks, B * M, chunks of E). dq (B, T, M, E) fp32 of turn i - SHIFT from row i."""
    rb = tl.num_programs(0) - 1 - tl.program_id(0)
    bm = tl.program_id(1).to(tl.int64)
    b, m = bm // M, bm % M
    t = rb * BM // BS
    rows = rb * BM + tl.arange(0, BM)
    channels = tl.program_id(2) * EC + tl.arange(0, EC)
    k += b * k_b + m * k_m
    slopes += bm * strip_m
    found = tl.zeros((BM, EC), dtype=tl.float32)
    if SKIP:
        row = bm * n_blocks + t
        for slot in tl.range(0, tl.load(counts + row), num_stages=STAGES):
            kb = tl.load(tiles + row * n_tiles + slot)
            found = query_product(kb, slopes, k, rows, channels, found, k_t, n, t, E, BS, BN)
    else:
        for kb in tl.range(0, t * BS // BN, num_stages=STAGES):
            found = query_product(kb, slopes, k, rows, channels, found, k_t, n, t, E, BS, BN)
    for kb in range(t * BS // BN, tl.cdiv((rb + 1) * BM, BN)):
        found = query_product(kb, slopes, k, rows, channels, found, k_t, n, t, E, BS, BN)
    turns = rows - SHIFT
    # The last rows' turns have no later query that could feel them.
    last = (rows == n - 1)[:, None] & (channels < E)[None, :]
    for missing in tl.static_range(0, SHIFT):
        place = ((b * n + rows - missing)[:, None] * M + m) * E + channels[None, :]
        tl.store(dq + place, 0.0, mask=last & (rows >= missing)[:, None])
    inside = ((turns >= 0) & (rows < n))[:, None] & (channels < E)[None, :]
    tl.store(dq + ((b * n + turns)[:, None] * M + m) * E + channels[None, :], found * scale, mask=inside)


@triton.jit
def key_products(
    slopes, q, until, dk, q_b, q_t, q_m, strip_m, n, n_blocks, n_tiles, scale,
    M: tl.constexpr, SHARED: tl.constexpr, E: tl.constexpr, EC: tl.constexpr, SHIFT: tl.constexpr, SKIP: tl.constexpr,
    BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, B * M or B, chunks of E). dk (B, T, M or 1, E) fp32; a key shared by all masks gets their sum."""
    kb = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    first, end = 0, M
    if not SHARED:
        first = tl.program_id(1) % M
        end = first + 1
        b = (tl.program_id(1) // M).to(tl.int64)
    keys = kb * BN + tl.arange(0, BN)
    channels = tl.program_id(2) * EC + tl.arange(0, EC)
    found = tl.zeros((BN, EC), dtype=tl.float32)
    for m in range(first, end):
        stop = n_blocks
        if SKIP:
            stop = tl.load(until + (b * M + m) * n_tiles + kb).to(tl.int32)
        for rb in tl.range(kb * BN // BM, stop * (BS // BM), num_stages=STAGES):
            rows = rb * BM + tl.arange(0, BM)
            left = tl.load(strip_tile(slopes + (b * M + m) * strip_m, rb * BM // BS, rows, keys, BS))
            right = load_rows(q + b * q_b + m * q_m, rows - SHIFT, q_t, n, channels, E)
            found = tl.dot(tl.trans(left), right.to(left.dtype), found, input_precision="ieee")
    width = 1 if SHARED else M
    of_mask = 0 if SHARED else first
    place = ((b * n + keys)[:, None] * width + of_mask) * E + channels[None, :]
    tl.store(dk + place, found * scale, mask=(keys < n)[:, None] & (channels < E)[None, :])

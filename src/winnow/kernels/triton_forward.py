"""Forward kernels of selective attention on a GPU. What a tile, the strip and the carry are: `triton_tiles.py`.

select_tiles      per (mask, block, tile of keys): what a block adds to F, and its rows of the strip
scan_sums, scan_damage   carry: F before each block, from what the blocks before it add
bounds            per (head, block): what the bound on a dropped key's score is made of
lifetimes         per tile of keys: the first block for which all its keys are dropped or in an earlier document
live_tiles        per (mask, block): the tiles that are left
attend            per (block, head), heads fastest: softmax(q k^T * scale - F) v
count_usage       sum over visible keys of min(F, tau)
"""

# Kernels are written in Triton's language, whose types are not Python's.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

from winnow.kernels.triton_tiles import gains, load_rows, load_starts, pairs, running_max, strip_tile

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def select_tiles(
    qs, ks, qp, kp, starts, carry, until, totals, strip,
    qs_b, qs_t, qs_m, ks_b, ks_t, ks_m, qp_b, qp_t, qp_m, kp_b, kp_t, kp_m,
    strip_m, n, n_blocks, n_tiles, scale, leak, slope, offset, factor, bias,
    M: tl.constexpr, E: tl.constexpr, EC: tl.constexpr, EP: tl.constexpr, EPC: tl.constexpr, KIND: tl.constexpr,
    BIAS: tl.constexpr, BOS: tl.constexpr, SELF: tl.constexpr, STARTS: tl.constexpr, SKIP: tl.constexpr,
    TOTALS: tl.constexpr, STRIP: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (blocks * tiles, B * M). Writes totals (B, M, 1 or 2, blocks, T) and the strip, or one of the two.

    Plain rules: the block's sum. Protection: net sum W and its largest prefix V. The strip of protection needs the
    carry, so that it takes a second launch.
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
            gain = gains(
                qs + b * qs_b + m * qs_m, ks + b * ks_b + m * ks_m, qp + b * qp_b + m * qp_m, kp + b * kp_b + m * kp_m,
                starts + b * n, rows, keys, qs_t, ks_t, qp_t, kp_t, n, scale, leak, slope, offset, factor, bias,
                E, EC, EP, EPC, KIND, BIAS, BOS, SELF, STARTS,
            )  # fmt: skip
            planes: tl.constexpr = 2 if KIND > 0 else 1
            place = bm.to(tl.int64) * planes * n_blocks * n + t * n + keys
            if TOTALS:
                tl.store(totals + place, tl.sum(gain, 0), mask=keys < n)
            if KIND > 0 or STRIP:
                gain = tl.cumsum(gain, 0)
            if KIND > 0:
                gain = running_max(gain)
                if TOTALS:
                    tl.store(totals + place + n_blocks * n, tl.max(gain, 0), mask=keys < n)
            if STRIP:
                if KIND > 0:
                    reserve = tl.load(carry + place + n_blocks * n, mask=keys < n, other=0.0)
                    gain = tl.maximum(gain - reserve[None, :], 0.0)
                if strip.dtype.element_ty == tl.float16:
                    gain = tl.minimum(tl.maximum(gain, -65504.0), 65504.0)
                tl.store(strip_tile(strip + bm.to(tl.int64) * strip_m, t, rows, keys, BS), gain)


@triton.jit
def scan_sums(totals, carry, n, n_blocks, BLOCKS: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr):
    """Grid (tiles, B * M). carry[t] = sum of totals[0..t-1]; a block adds nothing to keys after its own."""
    blocks = tl.arange(0, BLOCKS)
    keys = tl.program_id(0) * BN + tl.arange(0, BN)
    base = tl.program_id(1).to(tl.int64) * n_blocks * n
    before = blocks - 1
    known = ((before >= 0) & (before < n_blocks))[:, None] & (keys[None, :] < n)
    known = known & (keys[None, :] < blocks[:, None] * BS)
    added = tl.load(totals + base + before[:, None] * n + keys[None, :], mask=known, other=0.0)
    inside = (blocks < n_blocks)[:, None] & (keys[None, :] < n)
    tl.store(carry + base + blocks[:, None] * n + keys[None, :], tl.cumsum(added, 0), mask=inside)


@triton.jit
def scan_damage(totals, carry, n, n_blocks, BS: tl.constexpr, BN: tl.constexpr):
    """Grid (tiles, B * M). Damage D and reserve R before each block: D += relu(V - R); R = max(R, V) - W."""
    keys = tl.program_id(0) * BN + tl.arange(0, BN)
    base = tl.program_id(1).to(tl.int64) * 2 * n_blocks * n + keys
    plane = n_blocks * n
    damage = tl.zeros((BN,), dtype=tl.float32)
    reserve = tl.zeros((BN,), dtype=tl.float32)
    for t in range(n_blocks):
        tl.store(carry + base + t * n, damage, mask=keys < n)
        tl.store(carry + base + plane + t * n, reserve, mask=keys < n)
        known = (keys < n) & (keys < (t + 1) * BS)
        net = tl.load(totals + base + t * n, mask=known, other=0.0)
        peak = tl.load(totals + base + plane + t * n, mask=known, other=0.0)
        damage += tl.maximum(peak - reserve, 0.0)
        reserve = tl.where(known, tl.maximum(reserve, peak) - net, 0.0)


@triton.jit
def bounds(
    q, k, norms, owns, peaks, q_b, q_t, q_h, k_b, k_t, k_h, n, scale, n_blocks, GROUP: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Grid (blocks, H, B). norms and owns (B, H, T): scale |q_i| and s_ii; peaks (B, H, blocks): largest |k_j|."""
    t, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = t * BS + tl.arange(0, BS)
    columns = tl.arange(0, DP)
    left = load_rows(q + b.to(tl.int64) * q_b + h * q_h, rows, q_t, n, columns, D).to(tl.float32)
    right = load_rows(k + b.to(tl.int64) * k_b + h // GROUP * k_h, rows, k_t, n, columns, D).to(tl.float32)
    head = b.to(tl.int64) * tl.num_programs(1) + h
    tl.store(norms + head * n + rows, tl.sqrt(tl.sum(left * left, 1)) * scale, mask=rows < n)
    tl.store(owns + head * n + rows, tl.sum(left * right, 1) * scale, mask=rows < n)
    tl.store(peaks + head * n_blocks + t, tl.max(tl.sqrt(tl.sum(right * right, 1)), 0))


@triton.jit
def lifetimes(
    carry, limit, starts, until, n, n_blocks, n_tiles, M: tl.constexpr, PLANES: tl.constexpr, BOS: tl.constexpr,
    STARTS: tl.constexpr, COMPACT: tl.constexpr, BLOCKS: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, B * M). until (B, M, tiles) fp32: one more than the last block that has use for a key of the tile.

    limit (B, M, blocks): a key whose carry is above it is dropped. Never: keys of the block itself, and a protected
    first token.
    """
    kb, bm = tl.program_id(0), tl.program_id(1)
    blocks = tl.arange(0, BLOCKS)
    keys = kb * BN + tl.arange(0, BN)
    live = (blocks < n_blocks)[:, None] & (keys < n)[None, :] & (keys[None, :] < (blocks[:, None] + 1) * BS)
    own = keys[None, :] >= blocks[:, None] * BS
    of_row = starts + (bm // M).to(tl.int64) * n
    if STARTS:
        # Later rows of the block may be in a later document still: what the first one sees is what the block may need.
        first = tl.load(of_row + blocks * BS, mask=blocks < n_blocks, other=0)
        live = live & (keys[None, :] >= first[:, None])
    if COMPACT:
        place = bm.to(tl.int64) * PLANES * n_blocks * n + blocks[:, None] * n + keys[None, :]
        mask = tl.load(carry + place, mask=live, other=0.0)
        bound = tl.load(limit + bm * n_blocks + blocks, mask=blocks < n_blocks, other=0.0)
        # Not "above": a NaN keeps its key.
        kept = own | ((mask > bound[:, None]) == 0)
        if BOS:
            kept = kept | (keys == load_starts(of_row, keys, n, STARTS))[None, :]
        live = live & kept
    last = tl.max(tl.where(live, blocks[:, None] + 1, 0), 0)
    tl.store(until + bm * n_tiles + kb, tl.max(last, 0).to(tl.float32))


@triton.jit
def live_tiles(until, tiles, counts, n_tiles, TILES: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr):
    """Grid (blocks, B * M). tiles (B, M, blocks, n_tiles) int32: those before the block that are left, and how many."""
    t, bm = tl.program_id(0), tl.program_id(1)
    kb = tl.arange(0, TILES)
    left = (kb < n_tiles) & (kb < t * BS // BN)
    left = left & (tl.load(until + bm * n_tiles + kb, mask=left, other=0.0) > t)
    place = tl.cumsum(left.to(tl.int32), 0)
    row = (bm * tl.num_programs(0) + t).to(tl.int64)
    tl.store(tiles + row * n_tiles + place - 1, kb, mask=left)
    tl.store(counts + row, tl.sum(left.to(tl.int32), 0))


@triton.jit
def attend_tile(
    kb, q, k, v, strip, base, rows, firsts, total, peak, mixed, k_t, v_t, n, t, scale2,
    D: tl.constexpr, DP: tl.constexpr, RELU: tl.constexpr, MASKED: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One tile of keys joins a block's running softmax (base 2): sum `total`, largest score `peak`, values `mixed`."""
    keys = kb * BN + tl.arange(0, BN)
    columns = tl.arange(0, DP)
    right = load_rows(k, keys, k_t, n, columns, D)
    values = load_rows(v, keys, v_t, n, columns, D)
    gain = tl.load(strip_tile(strip, t, rows, keys, BS)).to(tl.float32)
    mask = gain + tl.load(base + keys, mask=keys < n, other=0.0)[None, :]
    if RELU:
        mask = tl.maximum(mask, 0.0)
    s = tl.dot(q, tl.trans(right), input_precision="ieee") * scale2 - mask * LOG2E
    if MASKED:
        s = tl.where(pairs(rows, keys, firsts), s, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(s, 1))
    # A row that has seen no key yet would subtract -inf from -inf.
    safe = tl.where(new_peak == float("-inf"), 0.0, new_peak) if MASKED else new_peak
    p = tl.exp2(s - safe[:, None])
    shrink = tl.exp2(peak - safe)
    total = total * shrink + tl.sum(p, 1)
    mixed = tl.dot(p.to(values.dtype), values, mixed * shrink[:, None], input_precision="ieee")
    return total, new_peak, mixed


@triton.jit
def attend(
    q, k, v, strip, carry, starts, tiles, counts, spread, out, lse,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, strip_m, carry_m, n, n_blocks, n_tiles, scale,
    H: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, RELU: tl.constexpr,
    STARTS: tl.constexpr, SKIP: tl.constexpr, BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks * H, B): heads fastest, so that all read a block's strip while it is in L2; long rows first."""
    h = tl.program_id(0) % H
    rb = tl.num_programs(0) // H - 1 - tl.program_id(0) // H
    b = tl.program_id(1).to(tl.int64)
    m = tl.load(spread + h)
    bm = b * M + m
    t = rb * BM // BS
    rows = rb * BM + tl.arange(0, BM)
    columns = tl.arange(0, DP)
    left = load_rows(q + b * q_b + h * q_h, rows, q_t, n, columns, D)
    k += b * k_b + h // GROUP * k_h
    v += b * v_b + h // GROUP * v_h
    strip += bm * strip_m
    base = carry + bm * carry_m + t * n
    firsts = load_starts(starts + b * n, rows, n, STARTS)
    scale2 = scale * LOG2E
    total = tl.zeros((BM,), dtype=tl.float32)
    peak = tl.full((BM,), float("-inf"), dtype=tl.float32)
    mixed = tl.zeros((BM, DP), dtype=tl.float32)
    if SKIP:
        row = bm * n_blocks + t
        for slot in tl.range(0, tl.load(counts + row), num_stages=STAGES):
            kb = tl.load(tiles + row * n_tiles + slot)
            total, peak, mixed = attend_tile(
                kb, left, k, v, strip, base, rows, firsts, total, peak, mixed, k_t, v_t, n, t, scale2,
                D, DP, RELU, STARTS, BS, BN,
            )  # fmt: skip
    else:
        for kb in tl.range(0, t * BS // BN, num_stages=STAGES):
            total, peak, mixed = attend_tile(
                kb, left, k, v, strip, base, rows, firsts, total, peak, mixed, k_t, v_t, n, t, scale2,
                D, DP, RELU, STARTS, BS, BN,
            )  # fmt: skip
    for kb in range(t * BS // BN, tl.cdiv((rb + 1) * BM, BN)):
        total, peak, mixed = attend_tile(
            kb, left, k, v, strip, base, rows, firsts, total, peak, mixed, k_t, v_t, n, t, scale2,
            D, DP, RELU, True, BS, BN,
        )  # fmt: skip
    inside = (rows < n)[:, None] & (columns < D)[None, :]
    place = ((b * n + rows)[:, None] * H + h) * D + columns[None, :]
    tl.store(out + place, mixed / total[:, None], mask=inside)
    tl.store(lse + (b * H + h) * n + rows, (peak + tl.log2(total)) / LOG2E, mask=rows < n)


@triton.jit
def count_usage(
    strip, carry, starts, until, usage, strip_m, carry_m, n, n_tiles, tau, M: tl.constexpr, RELU: tl.constexpr,
    STARTS: tl.constexpr, SKIP: tl.constexpr, BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks, B * M). A dropped key counts tau: the limit above which it is dropped is at least tau."""
    rb, bm = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t = rb * BM // BS
    rows = rb * BM + tl.arange(0, BM)
    firsts = load_starts(starts + bm // M * n, rows, n, STARTS)
    used = tl.zeros((BM,), dtype=tl.float32)
    for kb in range(tl.cdiv((rb + 1) * BM, BN)):
        keys = kb * BN + tl.arange(0, BN)
        alive = keys < n
        if SKIP:
            alive = keys < tl.where(tl.load(until + bm * n_tiles + kb) > t, n, 0)
        where = strip_tile(strip + bm * strip_m, t, rows, keys, BS)
        gain = tl.load(where, mask=alive[None, :], other=0.0).to(tl.float32)
        mask = gain + tl.load(carry + bm * carry_m + t * n + keys, mask=keys < n, other=0.0)[None, :]
        if RELU:
            mask = tl.maximum(mask, 0.0)
        mask = tl.where(alive[None, :], tl.minimum(mask, tau), tau)
        used += tl.sum(tl.where(pairs(rows, keys, firsts), mask, 0.0), 1)
    tl.store(usage + bm * n + rows, used, mask=rows < n)

"""Tiles that several Triton kernels share: scores, votes, protection, and where the strip keeps a tile.

Row i of a tile holds what F[i, j] gains over F[i - 1, j]: the vote of turn i - 1 less the protection of turn i - 2. So
F is an inclusive sum over rows, with no subtraction that could lose a small sum beside one large vote.

    blocks of BS rows, tiles of BN keys, BN divides BS; t counts blocks
    strip      block t keeps BS rows of (t + 1) * BS keys, the blocks one after the other: half of T * T
    F[i, j] =  carry[t, j] + strip[i, j]

Shapes in docstrings: R rows, C keys of a tile.
"""

# Kernels are written in Triton's language, whose types are not Python's.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(base, index, stride, n, columns, width):
    """(R, W): rows `index` of a matrix at `base`; 0 outside rows 0..n-1 and columns 0..width-1."""
    inside = ((index >= 0) & (index < n))[:, None] & (columns < width)[None, :]
    return tl.load(base + index[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def load_starts(starts, index, n, STARTS: tl.constexpr):
    """(R,) first token of the documents of tokens `index`; 0 without documents."""
    if STARTS:
        return tl.load(starts + index, mask=(index >= 0) & (index < n), other=0)
    else:
        return index * 0


@triton.jit
def scores(q, k, rows, keys, q_stride, k_stride, n, E: tl.constexpr, EC: tl.constexpr):
    """(R, C) fp32 q[rows] . k[keys], EC channels at a time; 0 where a row or key is outside the sequence."""
    found = tl.zeros((rows.shape[0], keys.shape[0]), dtype=tl.float32)
    for start in range(0, E, EC):
        channels = start + tl.arange(0, EC)
        left = load_rows(q, rows, q_stride, n, channels, E)
        right = load_rows(k, keys, k_stride, n, channels, E)
        found = tl.dot(left, tl.trans(right), found, input_precision="ieee")
    return found


@triton.jit
def pairs(turns, keys, firsts):
    """(R, C) whether key j is visible to turn i; false for turns before the first."""
    return (keys[None, :] <= turns[:, None]) & (keys[None, :] >= firsts[:, None]) & (turns >= 0)[:, None]


@triton.jit
def may_vote(turns, keys, firsts, BOS: tl.constexpr, SELF: tl.constexpr):
    """(R, C) whether a vote of turn i against key j counts."""
    may = pairs(turns, keys, firsts)
    if BOS:
        may = may & (keys[None, :] != firsts[:, None])
    if not SELF:
        may = may & (keys[None, :] != turns[:, None])
    return may


@triton.jit
def protection(raw, slope, offset, factor, bias, KIND: tl.constexpr, BIAS: tl.constexpr):
    """(R, C) p from raw scores, before invisible pairs are cleared. KIND: 1 scores, 2 leaky, 3 constant."""
    if KIND == 1:
        p = tl.maximum(raw, 0.0)
    elif KIND == 2:
        p = tl.maximum(offset - slope * raw, 0.0)
    else:
        p = raw * 0.0 + offset
    p = p * factor
    if BIAS:
        p = tl.maximum(p + bias, 0.0)
    return p


@triton.jit
def protection_slope(raw, slope, offset, factor, bias, KIND: tl.constexpr, BIAS: tl.constexpr):
    """(R, C) dp/draw, KIND 1 or 2."""
    if KIND == 1:  # noqa: SIM108
        rate = tl.where(raw > 0, factor, 0.0)
    else:
        rate = tl.where(offset - slope * raw > 0, -slope * factor, 0.0)
    if BIAS:
        rate = tl.where(protection(raw, slope, offset, factor, bias, KIND, False) + bias > 0, rate, 0.0)
    return rate


@triton.jit
def gains(
    qs, ks, qp, kp, starts, rows, keys, qs_stride, ks_stride, qp_stride, kp_stride, n, scale,
    leak, slope, offset, factor, bias,
    E: tl.constexpr, EC: tl.constexpr, EP: tl.constexpr, EPC: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr,
    BOS: tl.constexpr, SELF: tl.constexpr, STARTS: tl.constexpr,
):  # fmt: skip
    """(R, C) fp32: the vote of turn i - 1 less the protection of turn i - 2, for i in `rows`."""
    turns = rows - 1
    raw = scores(qs, ks, turns, keys, qs_stride, ks_stride, n, E, EC) * scale
    may = may_vote(turns, keys, load_starts(starts, turns, n, STARTS), BOS, SELF)
    gain = tl.where(may, tl.where(raw > 0, raw, leak * raw), 0.0)
    if KIND > 0:
        turns = rows - 2
        if KIND < 3:
            raw = scores(qp, kp, turns, keys, qp_stride, kp_stride, n, EP, EPC) * scale
        seen = pairs(turns, keys, load_starts(starts, turns, n, STARTS))
        gain -= tl.where(seen, protection(raw, slope, offset, factor, bias, KIND, BIAS), 0.0)
    return gain


@triton.jit
def larger(left, right):
    return tl.maximum(left, right)


@triton.jit
def running_max(x):
    """(R, C) largest of rows 0..i."""
    return tl.associative_scan(x, 0, larger)


@triton.jit
def latest(left_set, left, right_set, right):
    return left_set | right_set, tl.where(right_set != 0, right, left)


@triton.jit
def strip_offset(t, BS: tl.constexpr):
    """Where block t begins in the strip of one mask, in elements."""
    return (tl.cast(t, tl.int64) * (t + 1) // 2) * (BS * BS)


@triton.jit
def strip_tile(strip, t, rows, keys, BS: tl.constexpr):
    """(R, C) addresses of rows and keys, all in block t."""
    within = (rows - t * BS)[:, None] * ((t + 1) * BS) + keys[None, :]
    return strip + strip_offset(t, BS) + within

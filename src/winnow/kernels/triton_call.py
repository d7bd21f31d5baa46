"""One call's kernels, with their arguments: shared by the forward and the backward pass of `selective_triton.py`."""

# Kernels' parameters are typed in Triton's language, whose types are not Python's.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from winnow.kernels import triton_backward, triton_forward
from winnow.kernels.rule import Problem
from winnow.kernels.triton_plan import KINDS, Launch, Sizes, power

Pair = tuple[Tensor, Tensor]
NEGLIGIBLE = 24 * math.log(2.0)
"""-log of the weight below which a key cannot change an fp32 result, nats."""
CHUNK = 64
"""Channels of selectors that are multiplied at once."""


@lru_cache(maxsize=64)
def index_tensor(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int32, copied to the device once."""
    return torch.tensor(values or (0,), dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def heads_by_mask(spread: tuple[int, ...], device: torch.device) -> Pair:
    """Heads in the order of the masks that they read, and where each mask's begin (one more for the end)."""
    order = sorted(range(len(spread)), key=lambda head: spread[head])
    begins = [sum(mask < m for mask in spread) for m in range(max(spread) + 2)]
    return index_tensor(tuple(order), device), index_tensor(tuple(begins), device)


def steps(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, tokens, heads."""
    return x.stride(0), x.stride(1), x.stride(2)


def mask_steps(x: Tensor) -> tuple[int, int, int]:
    """The same where one key may be shared by all masks."""
    return x.stride(0), x.stride(1), 0 if x.shape[2] == 1 else x.stride(2)


def chunk(width: int) -> int:
    return min(CHUNK, max(16, power(width)))


class Call:
    """A problem and its sizes, as the kernels take them."""

    def __init__(self, problem: Problem, sizes: Sizes) -> None:
        self.problem = problem
        self.sizes = sizes
        rule, device = problem.rule, problem.q.device
        self.device = device
        self.selectors = self._pair(problem.q_s, problem.k_s, problem.select)
        self.protectors = self.selectors
        if sizes.kind == KINDS["scores"]:
            self.protectors = self._pair(problem.q_p, problem.k_p, problem.protect)
        # Kernels take an address in any case.
        self.starts = index_tensor((), device) if problem.starts is None else problem.starts.contiguous()
        self.spread = index_tensor(rule.spread, device)
        offset = max(rule.protection_offset, 0.0) if sizes.kind == KINDS["constant"] else rule.protection_offset
        self.numbers = (
            problem.scale, rule.leak, rule.protection_slope, offset, rule.protection_scale, rule.protection_bias,
        )  # fmt: skip
        width, protector_width = self.selectors[0].shape[3], self.protectors[0].shape[3]
        self.rule_flags: dict[str, Any] = {
            "M": sizes.M, "E": width, "EC": chunk(width), "EP": protector_width, "EPC": chunk(protector_width),
            "KIND": sizes.kind, "BIAS": rule.protection_bias != 0, "BOS": rule.protect_bos,
            "SELF": rule.allow_self_masking, "STARTS": sizes.packed, "SKIP": sizes.skip,
            "BS": sizes.plan.block, "BN": sizes.plan.tile,
        }  # fmt: skip

    def _pair(self, queries: Tensor | None, keys: Tensor | None, head: int) -> Pair:
        """(B, T, M, E) and (B, T, M or 1, E) of selectors or protectors, or of a head."""
        if queries is not None and keys is not None:
            return queries, keys
        kv = head // self.sizes.group
        return self.problem.q[:, :, head : head + 1], self.problem.k[:, :, kv : kv + 1]

    @property
    def mask_tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self.selectors, *self.protectors

    @property
    def mask_steps(self) -> tuple[int, ...]:
        return tuple(step for x in self.mask_tensors for step in mask_steps(x))

    @property
    def by_tile(self) -> tuple[int, int]:
        """Grid of programs by (block, tile of keys) and mask."""
        return self.sizes.blocks * self.sizes.tiles, self.sizes.B * self.sizes.M

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.sizes.T, self.sizes.blocks, self.sizes.tiles

    def attention_flags(self, launch: Launch) -> dict[str, Any]:
        """Of kernels by head."""
        sizes = self.sizes
        return {
            "H": sizes.H, "GROUP": sizes.group, "M": sizes.M, "D": sizes.D, "DP": max(16, power(sizes.D)),
            "RELU": self.problem.rule.relu_after, "STARTS": sizes.packed, "SKIP": sizes.skip,
            "BS": sizes.plan.block, "BM": launch.rows, "BN": sizes.plan.tile,
            "STAGES": launch.stages, "num_warps": launch.warps, "num_stages": launch.stages,
        }  # fmt: skip

    def new_strip(self, dtype: torch.dtype) -> Tensor:
        """(B * M, elements): a value per row and key of each block."""
        sizes = self.sizes
        return torch.empty((sizes.B * sizes.M, sizes.strip), dtype=dtype, device=self.device)

    def new_gains(self) -> Tensor:
        """The strip of F. fp16 for 16-bit inputs: it holds what a block adds, never the sum."""
        full = self.problem.v.dtype == torch.float32
        return self.new_strip(torch.float32 if full else torch.float16)

    def select(
        self, carry: Tensor, until: Tensor, totals: Tensor, strip: Tensor, *, of_blocks: bool, of_rows: bool
    ) -> None:
        """Fill totals, the strip, or both. Tiles that have ended are passed over, where that is known already."""
        flags = {**self.rule_flags, "SKIP": self.sizes.skip and not of_blocks}
        triton_forward.select_tiles[self.by_tile](
            *self.mask_tensors, self.starts, carry, until, totals, strip, *self.mask_steps, strip.stride(0),
            *self.counts, *self.numbers, **flags, TOTALS=of_blocks, STRIP=of_rows,
            num_warps=self.sizes.plan.select_warps,
        )  # fmt: skip

    def scan(self, totals: Tensor, carry: Tensor) -> None:
        sizes, plan = self.sizes, self.sizes.plan
        grid = (sizes.tiles, sizes.B * sizes.M)
        if sizes.kind:
            triton_forward.scan_damage[grid](totals, carry, sizes.T, sizes.blocks, BS=plan.block, BN=plan.tile)
        else:
            triton_forward.scan_sums[grid](
                totals, carry, sizes.T, sizes.blocks, BLOCKS=power(sizes.blocks), BS=plan.block, BN=plan.tile
            )

    def limits(self) -> Tensor:
        """(B, M, blocks): F above which a key is dropped from a block on; largest over all later rows, see `rule.py`.

        A row gives key j at most exp(s_ij - s_ii - F_ij) of the weight that it gives itself.
        """
        problem, sizes = self.problem, self.sizes
        q, k = problem.q, problem.k
        B, T, H, blocks, block = sizes.B, sizes.T, sizes.H, sizes.blocks, sizes.plan.block
        norms, owns = (torch.empty((B, H, T), dtype=torch.float32, device=self.device) for _ in range(2))
        peaks = torch.empty((B, H, blocks), dtype=torch.float32, device=self.device)
        triton_forward.bounds[(blocks, H, B)](
            q, k, norms, owns, peaks, *steps(q), *steps(k), T, problem.scale, blocks,
            GROUP=sizes.group, D=sizes.D, DP=max(16, power(sizes.D)), BS=block,
        )  # fmt: skip
        lead = norms * peaks.amax(-1, keepdim=True) - owns
        lead = torch.nn.functional.pad(lead, (0, blocks * block - T), value=float("-inf"))
        by_head = lead.view(B, H, blocks, block).amax(-1)
        if sizes.M == 1:
            by_mask = by_head.amax(1, keepdim=True)
        else:
            order, begins = heads_by_mask(problem.rule.spread, torch.device("cpu"))
            ends = begins.tolist()
            by_mask = torch.stack(
                [by_head[:, order[ends[m] : ends[m + 1]].tolist()].amax(1) for m in range(sizes.M)], 1
            )
        later = by_mask.flip(-1).cummax(-1).values.flip(-1)
        return (later + (math.log(T) + NEGLIGIBLE)).clamp_(min=problem.tau or 0.0)

    def find_lifetimes(self, carry: Tensor, until: Tensor) -> None:
        sizes, plan, rule = self.sizes, self.sizes.plan, self.problem.rule
        limits = self.limits() if self.problem.compact else until
        triton_forward.lifetimes[(sizes.tiles, sizes.B * sizes.M)](
            carry, limits, self.starts, until, *self.counts, M=sizes.M, PLANES=sizes.planes, BOS=rule.protect_bos,
            STARTS=sizes.packed, COMPACT=self.problem.compact, BLOCKS=power(sizes.blocks), BS=plan.block, BN=plan.tile,
        )  # fmt: skip

    def live_tiles(self, until: Tensor) -> Pair:
        """Tiles that each block still needs, before its own (B, M, blocks, tiles) int32, and how many."""
        sizes, plan = self.sizes, self.sizes.plan
        if not sizes.skip:
            return self.spread, self.spread
        tiles = torch.empty((sizes.B, sizes.M, sizes.blocks, sizes.tiles), dtype=torch.int32, device=self.device)
        counts = torch.empty((sizes.B, sizes.M, sizes.blocks), dtype=torch.int32, device=self.device)
        triton_forward.live_tiles[(sizes.blocks, sizes.B * sizes.M)](
            until, tiles, counts, sizes.tiles, TILES=power(sizes.tiles), BS=plan.block, BN=plan.tile
        )
        return tiles, counts

    def usage(self, strip: Tensor, carry: Tensor, until: Tensor) -> Tensor:
        """(B, M, T) fp32."""
        problem, sizes, launch = self.problem, self.sizes, self.sizes.plan.attend
        usage = torch.empty((sizes.B, sizes.M, sizes.T), dtype=torch.float32, device=self.device)
        triton_forward.count_usage[(math.ceil(sizes.T / launch.rows), sizes.B * sizes.M)](
            strip, carry, self.starts, until, usage, strip.stride(0), carry.stride(1), sizes.T, sizes.tiles,
            problem.tau or 0.0, M=sizes.M, RELU=problem.rule.relu_after, STARTS=sizes.packed, SKIP=sizes.skip,
            BS=sizes.plan.block, BM=launch.rows, BN=sizes.plan.tile, num_warps=launch.warps,
        )  # fmt: skip
        return usage

    def row_products(self, out: Tensor, grad: Tensor) -> Tensor:
        """(B, H, T) fp32."""
        sizes, rows = self.sizes, self.sizes.plan.attend.rows
        delta = torch.empty((sizes.B, sizes.H, sizes.T), dtype=torch.float32, device=self.device)
        triton_backward.row_products[(math.ceil(sizes.T / rows), sizes.H, sizes.B)](
            out, grad, delta, *steps(out), *steps(grad), sizes.T, D=sizes.D, DP=max(16, power(sizes.D)), BM=rows
        )
        return delta

    def mask_gradients(
        self, saved: tuple[Tensor, Tensor, Tensor], grad: Tensor, delta: Tensor, grad_usage: Tensor | None,
        strip: Tensor, live: Pair,
    ) -> tuple[Pair, Pair | None]:  # fmt: skip
        """fp32 gradients of selectors' queries and keys, and of protectors', if any. Leaky ones are in the first."""
        problem, sizes, plan = self.problem, self.sizes, self.sizes.plan
        lse, carry, until = saved
        kept = torch.float32 if problem.v.dtype == torch.float32 else torch.bfloat16  # small gradients need its range
        tails = self.new_strip(kept)
        apart = sizes.kind in (KINDS["scores"], KINDS["leaky"])
        shields = self.new_strip(kept) if apart else tails
        shape = (sizes.B, sizes.M, 3 if sizes.kind else 1, sizes.blocks, sizes.T)
        totals = torch.empty(shape, dtype=torch.float32, device=self.device)
        after = torch.empty_like(carry)
        order, begins = heads_by_mask(problem.rule.spread, self.device)
        counted = problem.tau is not None and grad_usage is not None
        of_usage = grad_usage.float().contiguous() if counted and grad_usage is not None else delta
        q, k, v = problem.q, problem.k, problem.v
        flags = self.attention_flags(plan.tails)
        del flags["BM"]
        triton_backward.vote_tails[self.by_tile](
            q, k, v, grad, lse, delta, strip, carry, self.starts, until, order, begins, of_usage, *self.mask_tensors,
            tails, totals, *steps(q), *steps(k), *steps(v), *steps(grad), *self.mask_steps, strip.stride(0),
            carry.stride(1), *self.counts, problem.scale, problem.tau or 0.0, *self.numbers[1:],
            **{**self.rule_flags, **flags}, USAGE=counted,
        )  # fmt: skip
        by_keys = (sizes.tiles, sizes.B * sizes.M)
        if sizes.kind:
            triton_backward.scan_held[by_keys](
                totals, after, until, *self.counts, SKIP=sizes.skip, BS=plan.block, BN=plan.tile
            )
        else:
            triton_backward.scan_tails[by_keys](
                totals, after, until, *self.counts, SKIP=sizes.skip, BLOCKS=power(sizes.blocks),
                BS=plan.block, BN=plan.tile,
            )  # fmt: skip
        triton_backward.finish[self.by_tile](
            *self.mask_tensors, self.starts, until, totals, after, tails, shields, *self.mask_steps, strip.stride(0),
            *self.counts, *self.numbers, **self.rule_flags, num_warps=plan.select_warps,
        )  # fmt: skip
        queries, keys = self._products(tails, self.selectors, live, until, shift=1)
        if not apart:
            return (queries, keys), None
        of_protection = self._products(shields, self.protectors, live, until, shift=2)
        if sizes.kind == KINDS["leaky"]:
            return (queries + of_protection[0], keys + of_protection[1]), None
        return (queries, keys), of_protection

    def _products(self, slopes: Tensor, pair: Pair, live: Pair, until: Tensor, *, shift: int) -> Pair:
        """fp32 gradients of queries (B, T, M, E) and keys (B, T, M or 1, E), from those of their raw scores."""
        sizes, plan, scale = self.sizes, self.sizes.plan, self.problem.scale
        queries, keys = pair
        width = queries.shape[3]
        launch = plan.keys
        flags = {
            "M": sizes.M, "E": width, "EC": chunk(width), "SHIFT": shift, "SKIP": sizes.skip, "BS": plan.block,
            "BM": launch.rows, "BN": plan.tile, "STAGES": launch.stages, "num_warps": 4,
        }  # fmt: skip
        chunks = math.ceil(width / chunk(width))
        dq = torch.empty(queries.shape, dtype=torch.float32, device=self.device)
        triton_backward.query_products[(math.ceil(sizes.T / launch.rows), sizes.B * sizes.M, chunks)](
            slopes, keys, *live, dq, *mask_steps(keys), slopes.stride(0), *self.counts, scale, **flags
        )
        dk = torch.empty(keys.shape, dtype=torch.float32, device=self.device)
        shared = keys.shape[2] == 1
        triton_backward.key_products[(sizes.tiles, sizes.B * (1 if shared else sizes.M), chunks)](
            slopes, queries, until, dk, *steps(queries), slopes.stride(0), *self.counts, scale, SHARED=shared, **flags
        )
        return dq, dk

"""Block sizes of the Triton backend, and the numbers of one call that follow from them. Needs no Triton."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from winnow.kernels.rule import Problem

KINDS = {"none": 0, "scores": 1, "leaky": 2, "constant": 3}
"""Protection, as kernels count it."""


@dataclass(frozen=True)
class Launch:
    """Of one kernel."""

    rows: int
    """Queries of a program's tile."""
    warps: int
    stages: int
    """Of the software pipeline; 1: none."""


@dataclass(frozen=True)
class Plan:
    """Block sizes, powers of two from 16 on; `tile` and all rows divide `block`."""

    block: int
    """Queries whose votes are summed as one."""
    tile: int
    """Keys of a tile: what is skipped as one."""
    select_warps: int
    attend: Launch
    tails: Launch
    """Its rows are `block`."""
    queries: Launch
    keys: Launch


def plan_of(dtype: torch.dtype, width: int) -> Plan:
    """Sizes by arithmetic, registers and shared memory of a Hopper card; not yet tuned by timing on one."""
    if dtype == torch.float32:  # exact products run outside the matrix units: small tiles, no pipeline
        one = Launch(32 if width <= 64 else 16, 8, 1)
        return Plan(64, 32, 8, attend=one, tails=Launch(64, 8, 1), queries=one, keys=one)
    if width <= 64:
        return Plan(
            128, 64, 8, attend=Launch(128, 8, 3), tails=Launch(128, 8, 2), queries=Launch(128, 8, 2),
            keys=Launch(64, 4, 2),
        )  # fmt: skip
    return Plan(
        128, 64, 8, attend=Launch(128, 8, 2), tails=Launch(128, 8, 1), queries=Launch(64, 4, 2), keys=Launch(64, 8, 2)
    )


def power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Sizes:
    """Of one call."""

    plan: Plan
    B: int
    T: int
    H: int
    D: int
    M: int
    group: int
    """Heads that share a kv head."""
    kind: int
    """Of protection."""
    packed: bool
    skip: bool
    """Whether tiles of keys can end before the last query."""

    @property
    def planes(self) -> int:
        """Of the carry: F, or damage and reserve."""
        return 2 if self.kind else 1

    @property
    def blocks(self) -> int:
        return math.ceil(self.T / self.plan.block)

    @property
    def tiles(self) -> int:
        return math.ceil(self.T / self.plan.tile)

    @property
    def strip(self) -> int:
        """Elements of the strip of one mask of one row of the batch."""
        return self.plan.block**2 * self.blocks * (self.blocks + 1) // 2

    @property
    def saved(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Shapes of lse, carry and the tiles' lifetimes."""
        lifetimes = (self.B, self.M, self.tiles) if self.skip else (0,)
        return (self.B, self.H, self.T), (self.B, self.M, self.planes, self.blocks, self.T), lifetimes


def sizes_of(problem: Problem, plan: Plan | None = None) -> Sizes:
    B, T, H, D = problem.q.shape
    packed = problem.starts is not None
    return Sizes(
        plan=plan or plan_of(problem.v.dtype, D),
        B=B,
        T=T,
        H=H,
        D=D,
        M=problem.rule.n_masks,
        group=H // problem.k.shape[2],
        kind=KINDS[problem.rule.protection],
        packed=packed,
        skip=problem.compact or packed,
    )

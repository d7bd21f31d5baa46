"""Named calls of selective attention for every backend's tests: a rule, and how to make its tensors.

`CASES[name].problem(dtype)` is what a backend takes; `leaves(problem)` are the tensors that get gradients, by name, and
`arguments(problem)` the same call for the public functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from winnow.kernels.rule import Problem, Rule

PLAIN = Rule(spread=(0,))
BY_SCORES = replace(PLAIN, protection="scores")
BY_LEAK = replace(PLAIN, protection="leaky", protection_slope=0.5, protection_offset=-0.05)
BY_CONSTANT = replace(PLAIN, protection="constant", protection_offset=0.1)

LEAF_NAMES = ("q", "k", "v", "q_s", "k_s", "q_p", "k_p")


@dataclass(frozen=True)
class Case:
    """One call. Sizes as in `Problem`; `rule` is completed by `spread` when tensors are made."""

    name: str
    B: int = 2
    T: int = 65
    H: int = 6
    K: int = 6
    D: int = 64
    M: int = 0
    """Selectors apart from the heads; 0: a head selects."""
    E: int = 0
    """Their width; 0: D."""
    shared_keys: bool = False
    """Selectors share one key (protectors too)."""
    select: int = 0
    protectors: bool = False
    """Protectors apart from the heads."""
    protect: int = 1
    """The protecting head, where the rule has protectors and they are not apart."""
    rule: Rule = PLAIN
    spread: tuple[int, ...] = ()
    """Empty: consecutive groups of heads."""
    documents: bool = False
    strided: bool = False
    scale: float | None = None
    tau: float | None = None
    compact: bool = True
    votes: float = 0.35
    """Size of the selecting scores relative to unit variance: large votes mask everything and hide errors."""
    seed: int = 0

    def full_rule(self) -> Rule:
        masks = max(self.M, 1)
        return replace(self.rule, spread=self.spread or tuple(h * masks // self.H for h in range(self.H)))

    def problem(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Problem:
        """Tensors are rounded to `dtype` from the same fp64 draws, and are leaves without gradients."""
        generator = torch.Generator().manual_seed(self.seed)
        B, T, H, K, D = self.B, self.T, self.H, self.K, self.D

        def draw(heads: int, width: int, size: float = 1.0) -> Tensor:
            x = torch.randn(B, T, heads, width, generator=generator, dtype=torch.float64) * size
            x = x.to(dtype).to(device)
            if not self.strided:
                return x
            room = torch.full((B, heads + 1, T, width + 3), float("nan"), dtype=dtype, device=device)
            view = room[:, :heads, :, 1 : width + 1].transpose(1, 2)
            view.copy_(x)
            return view

        q, k, v = draw(H, D), draw(K, D), draw(K, D)
        E = self.E or D
        size = self.votes * (D / E) ** 0.5
        q_s = k_s = q_p = k_p = None
        if self.M:
            q_s, k_s = draw(self.M, E, size), draw(1 if self.shared_keys else self.M, E)
        else:
            q[:, :, self.select] *= self.votes
        if self.protectors:
            q_p, k_p = draw(max(self.M, 1), E, size), draw(1 if self.shared_keys else max(self.M, 1), E)
        by_head = self.rule.protection == "scores" and not self.protectors
        return Problem(
            q=q,
            k=k,
            v=v,
            q_s=q_s,
            k_s=k_s,
            q_p=q_p,
            k_p=k_p,
            starts=self.starts().to(device) if self.documents else None,
            rule=self.full_rule(),
            select=-1 if self.M else self.select,
            protect=self.protect if by_head else -1,
            scale=D**-0.5 if self.scale is None else self.scale,
            tau=self.tau,
            compact=self.compact and self.rule.monotone,
        )

    def starts(self) -> Tensor:
        """(B, T) int32: documents of uneven lengths, other ones in each row, single tokens among them."""
        rows: list[list[int]] = []
        for b in range(self.B):
            row: list[int] = []
            lengths = (1, 9, 2, 17, 30, 1) if b % 2 == 0 else (23, 3, 40)
            while len(row) < self.T:
                row += [len(row)] * lengths[len(set(row)) % len(lengths)]
            rows.append(row[: self.T])
        return torch.tensor(rows, dtype=torch.int32)


def leaves(problem: Problem) -> dict[str, Tensor]:
    """The problem's tensors that have gradients, by name."""
    return {name: t for name in LEAF_NAMES if (t := getattr(problem, name)) is not None}


def with_leaves(problem: Problem, tensors: dict[str, Tensor]) -> Problem:
    """The same problem over other tensors."""
    return replace(problem, **tensors)


def arguments(problem: Problem) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """The problem as arguments of `selective_attention` (without `backend`)."""
    protect: Any = None
    if problem.q_p is not None:
        protect = (problem.q_p, problem.k_p)
    elif problem.protect >= 0:
        protect = problem.protect
    return (problem.q, problem.k, problem.v), {
        "select": problem.select if problem.q_s is None else (problem.q_s, problem.k_s),
        "protect": protect,
        "rule": problem.rule,
        "starts": problem.starts,
        "scale": problem.scale,
        "compaction": "auto" if problem.compact else None,
    }


def cotangents(problem: Problem, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """Gradients of out (in its dtype) and of usage (None where there is none), for comparing backward passes."""
    generator = torch.Generator().manual_seed(seed)
    q = problem.q
    grad_out = torch.randn(q.shape, generator=generator, dtype=torch.float64).to(q.dtype).to(q.device)
    if problem.tau is None:
        return grad_out, None
    shape = (q.shape[0], problem.rule.n_masks, q.shape[1])
    return grad_out, torch.randn(shape, generator=generator, dtype=torch.float32).to(q.device)


CASES = {
    case.name: case
    for case in (
        # Lengths and widths.
        *(Case(f"T={T}", T=T) for T in (1, 2, 3, 63, 64, 65, 77)),
        Case("T=513", B=1, T=513, votes=0.05),
        Case("T=513 voted out", B=1, T=513, votes=1.0),
        Case("T=300 two rows", B=2, T=300, H=2, K=2, D=32, votes=1.0),
        *(Case(f"D={D}", T=77, D=D) for D in (22, 24, 128)),
        Case("one head", H=1, K=1),
        Case("twelve heads", B=1, H=12, K=12),
        Case("grouped queries", H=6, K=2, select=3),
        Case("one kv head", H=6, K=1),
        Case("another scale", scale=0.3),
        Case("not compacted", T=300, B=1, votes=1.0, compact=False),
        # Layout.
        Case("documents", T=130, documents=True),
        Case("documents 513", B=2, T=513, H=2, K=2, D=24, documents=True),
        Case("strided", T=77, strided=True),
        Case("strided selectors", T=77, M=2, strided=True, rule=BY_SCORES, protectors=True),
        # Masks.
        Case("two masks", M=2),
        Case("two masks, long", B=1, T=300, M=2, H=4, K=4, D=32, votes=1.0),
        Case("mask per head", M=6),
        Case("one selector", M=1),
        Case("masks out of order", M=3, spread=(2, 0, 1, 1, 0, 2)),
        Case("shared key", M=4, shared_keys=True),
        Case("narrow selectors", M=3, E=16),
        Case("wide selector", M=1, E=390),
        Case("two masks, documents, groups", M=2, T=130, K=2, documents=True),
        # Gate.
        Case("bos unprotected", rule=replace(PLAIN, protect_bos=False)),
        Case("bos unprotected, documents", T=130, rule=replace(PLAIN, protect_bos=False), documents=True),
        Case("self-masking", rule=replace(PLAIN, allow_self_masking=True)),
        Case("self and bos", rule=replace(PLAIN, allow_self_masking=True, protect_bos=False)),
        Case("leak", T=77, rule=replace(PLAIN, leak=0.1)),
        Case("leak, relu after", T=130, rule=replace(PLAIN, leak=1.0, relu_after=True)),
        Case("relu after", rule=replace(PLAIN, relu_after=True)),
        # Protection.
        Case("protected by a head", T=130, rule=BY_SCORES),
        Case("protected by a head, groups", T=77, K=2, select=4, protect=1, rule=BY_SCORES),
        Case("protected, long", B=1, T=513, H=2, K=2, D=24, rule=BY_SCORES, votes=1.0),
        Case("protectors", T=77, M=2, protectors=True, rule=BY_SCORES),
        Case("one protector", T=77, protectors=True, rule=BY_SCORES),
        Case("protectors, shared key", T=77, M=3, E=32, shared_keys=True, protectors=True, rule=BY_SCORES),
        Case("protected, scaled, shifted", T=77, rule=replace(BY_SCORES, protection_scale=0.7, protection_bias=-0.1)),
        Case("protected, positive bias", T=77, rule=replace(BY_SCORES, protection_bias=0.05)),
        Case("leaky protection", T=77, rule=BY_LEAK),
        Case("leaky protection, scaled", T=77, rule=replace(BY_LEAK, protection_scale=2.0, protection_bias=0.02)),
        Case("constant protection", T=77, rule=BY_CONSTANT),
        Case("huge constant protection", T=77, rule=replace(BY_CONSTANT, protection_offset=50.0)),
        Case("protected, documents", T=130, rule=BY_SCORES, documents=True),
        Case(
            "protected, self and bos",
            T=77,
            rule=replace(BY_SCORES, allow_self_masking=True, protect_bos=False),
            documents=True,
        ),
        # Usage.
        Case("usage", tau=1.0),
        Case("usage, voted out", B=1, T=300, H=2, K=2, D=32, tau=1.0, votes=1.0),
        Case("usage, two masks", M=2, T=77, tau=0.7),
        Case("usage, protected", T=77, rule=BY_SCORES, tau=1.0),
        Case("usage, leak", T=77, rule=replace(PLAIN, leak=0.2), tau=0.5),
        Case("usage, leak, relu after", T=77, rule=replace(PLAIN, leak=0.7, relu_after=True), tau=0.5),
        Case("usage, documents", T=130, documents=True, tau=1.0, M=2),
    )
}

"""How far selective attention is from fp64, by accumulation, backend, length and dtype; no training needed.

    mask       F, in nats: the op's own, read out of it. With the selecting head's key k_j left as it is and all other
               keys set to 0, only column j of F is not 0, so the usage with a huge tau, sum over j of F[i, j],
               is F[i, j] itself, unrounded by any sum. Compared with the recurrence in fp64, step by step.
    output     what the heads give, against the reference backend in fp64 on the same rounded inputs
    gradient   the worst of those of q, k, v for a random gradient of the output

Errors of outputs and gradients are the largest difference over the largest value. The inputs are first rounded to the
dtype asked for, so that only what the op does is measured, not what it is given.

"Sum" is F as the plain sum of votes, "protection" the protect-and-attack recurrence with head 1 protecting.
Not here: whether an error of this size matters to training. It is far below the noise between seeds if it is near the
rounding of the dtype, and it is not a small thing when it grows with the length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.errors import InputError
from winnow.kernels.rule import Accumulate, Algorithm, Rule
from winnow.kernels.scan import running_sum
from winnow.kernels.selective import selection_usage, selective_attention

Kind = Literal["sum", "protection"]
Backend = Literal["reference", "chunked", "cpu", "triton"]
Precision = Literal["float32", "bfloat16"]

KINDS: tuple[Kind, ...] = get_args(Kind)
BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ALGORITHMS: tuple[Algorithm, ...] = ("library", "sequential", "tree", "blocked")
ACCUMULATIONS: tuple[Accumulate, ...] = ("float32", "float64", "bfloat16")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

LIVE = 40.0
"""Nats. A key with a larger F has a weight below fp32's resolution for scores of ordinary size: errors of such an F
are of no consequence."""
NO_LIMIT = 1e30
"""A tau that no F reaches."""
PROBES = 8
"""Keys whose column of F is read out; early ones have the longest sums."""


@dataclass(frozen=True)
class Way:
    """One way to compute: a backend, and how it sums over queries."""

    backend: Backend
    algorithm: Algorithm
    accumulate: Accumulate


WAYS = tuple(Way(b, algorithm, dtype) for b in BACKENDS for algorithm in ALGORITHMS for dtype in ACCUMULATIONS)


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of one layer, fp32, with a name for where they come from."""

    name: str
    q: Float[Tensor, "B T H D"]
    k: Float[Tensor, "B T K D"]
    v: Float[Tensor, "B T K D"]

    def first(self, length: int, dtype: torch.dtype) -> Heads:
        """The first `length` tokens, rounded to `dtype`."""
        return Heads(self.name, *(t[:, :length].to(dtype).contiguous() for t in (self.q, self.k, self.v)))


@dataclass(frozen=True)
class Row:
    """The errors of one way at one length, the worst over the inputs."""

    kind: Kind
    dtype: Precision
    """Of the inputs."""
    length: int
    """Tokens."""
    way: Way
    mask: float
    """Largest error of F over all keys read out, nats."""
    mask_live: float
    """The same where F is below `LIVE`."""
    output: float
    """Largest error over largest value."""
    gradient: float
    """The same, the worst of q, k and v."""


@dataclass(frozen=True)
class Gap:
    """Protection of zero, which is no protection, less the plain library sum: nothing but rounding."""

    length: int
    algorithm: Algorithm
    """Of the protected one; the other is the library's sum."""
    mask: float
    """Largest difference of F, nats."""
    output: float
    """Largest difference over largest value."""
    gradient: float


@dataclass(frozen=True)
class Terms:
    """Sums of 1,024 terms in [0, 2), as the source notebook's programs formed them."""

    algorithm: Algorithm
    dtype: Accumulate
    """Of terms and sums."""
    error: float
    """Largest, over all prefixes of `COLUMNS` columns."""
    source: float | None
    """What the source notebook's programs have been measured at; None: it had no such sum."""


COLUMNS = 256
SOURCE_ERRORS: dict[tuple[Algorithm, Accumulate], float] = {
    ("library", "float32"): 6e-5,
    ("sequential", "float32"): 1.6e-3,
    ("tree", "float32"): 2.3e-4,
    ("sequential", "bfloat16"): 5.7e2,
}


def random_heads(length: int, *, seed: int = 0, n_heads: int = 4, d_head: int = 64) -> Heads:
    """q, k, v of unit variance. Scores of unit variance vote a key out after about 100 queries."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, length, n_heads, d_head, generator=generator)
    return Heads(f"random, seed {seed}", q, k, v)


def rule_of(kind: Kind, way: Way, n_heads: int) -> Rule:
    """One mask, of head 0, for all heads; head 1 protects, if anybody does."""
    return Rule(
        spread=(0,) * n_heads,
        protection="scores" if kind == "protection" else "none",
        algorithm=way.algorithm,
        accumulate=way.accumulate,
    )


def refusal(kind: Kind, dtype: Precision, way: Way) -> str | None:
    """Why this machine's backends cannot compute in this way, or None. It costs a call on four tokens."""
    try:
        _attend(random_heads(4, n_heads=2).first(4, DTYPES[dtype]), rule_of(kind, way, 2), way.backend)
    except InputError as error:
        return error.message
    return None


def study(
    inputs: Sequence[Heads],
    lengths: Sequence[int],
    *,
    ways: Sequence[Way] = WAYS,
    dtypes: Sequence[Precision] = PRECISIONS,
    kinds: Sequence[Kind] = KINDS,
) -> Iterator[Row]:
    """Errors by kind, dtype, way and length; ways that this machine refuses are left out.

    Raises InputError where an input is shorter than a length, or has one head where two are needed.
    """
    shortest = min(heads.q.shape[1] for heads in inputs)
    if shortest < max(lengths):
        raise InputError(f"the inputs have {shortest} tokens", key="lengths", mend=f"ask for at most {shortest}")
    if "protection" in kinds and min(heads.q.shape[2] for heads in inputs) < 2:
        raise InputError("protection needs two heads, and the inputs have one", key="inputs")
    for kind in kinds:
        for dtype in dtypes:
            able = [way for way in ways if refusal(kind, dtype, way) is None]
            parts = {n: [heads.first(n, DTYPES[dtype]) for heads in inputs] for n in lengths}
            exact = {n: [_exact(part, kind) for part in parts[n]] for n in lengths}
            for way in able:
                for n in lengths:
                    found = [_errors(part, kind, way, true) for part, true in zip(parts[n], exact[n], strict=True)]
                    yield Row(kind, dtype, n, way, *(max(column) for column in zip(*found, strict=True)))


def gaps(heads: Heads, lengths: Sequence[int]) -> list[Gap]:
    """How far protection of zero is from no protection, in fp32 and on the reference backend."""
    found: list[Gap] = []
    plain = Way("reference", "library", "float32")
    for n in lengths:
        part = heads.first(n, torch.float32)
        rule = rule_of("sum", plain, part.q.shape[2])
        base, base_mask = _attend(part, rule, "reference"), _probed(part, rule, "reference")
        for algorithm in ALGORITHMS:
            zero = replace(rule, protection="constant", protection_offset=0.0, algorithm=algorithm)
            out, *gradients = _attend(part, zero, "reference")
            mask = float((_probed(part, zero, "reference") - base_mask).abs().max())
            worst = max(_relative(mine, other) for mine, other in zip(gradients, base[1:], strict=True))
            found.append(Gap(n, algorithm, mask, _relative(out, base[0]), worst))
    return found


def terms(*, seed: int = 0) -> list[Terms]:
    """The error of bare sums, without attention around them."""
    drawn = 2 * torch.rand(1024, COLUMNS, generator=torch.Generator().manual_seed(seed))
    found: list[Terms] = []
    for algorithm in ALGORITHMS:
        for dtype in ("float32", "bfloat16"):
            x = drawn.to(DTYPES[dtype])
            error = (running_sum(x, algorithm).double() - x.double().cumsum(0)).abs().max()
            found.append(Terms(algorithm, dtype, float(error), SOURCE_ERRORS.get((algorithm, dtype))))
    return found


def _exact(heads: Heads, kind: Kind) -> tuple[Tensor, ...]:
    """In fp64: F of the probed keys (n, T), output, gradients of q, k, v."""
    wide = Heads(heads.name, heads.q.double(), heads.k.double(), heads.v.double())
    way = Way("reference", "sequential", "float64")
    return (_recurrence(wide, kind), *_attend(wide, rule_of(kind, way, heads.q.shape[2]), "reference"))


def _errors(heads: Heads, kind: Kind, way: Way, exact: tuple[Tensor, ...]) -> tuple[float, float, float, float]:
    rule = rule_of(kind, way, heads.q.shape[2])
    off = (_probed(heads, rule, way.backend) - exact[0]).abs()
    out, *gradients = _attend(heads, rule, way.backend)
    worst = max(_relative(mine, true) for mine, true in zip(gradients, exact[2:], strict=True))
    return float(off.max()), float(off[exact[0] < LIVE].max()), _relative(out, exact[1]), worst


def _attend(heads: Heads, rule: Rule, backend: Backend) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, and gradients of q, k, v for a fixed random gradient of the output, on the CPU."""
    q, k, v = (t.to(_device(backend)).requires_grad_() for t in (heads.q, heads.k, heads.v))
    out = selective_attention(q, k, v, protect=_protector(rule), rule=rule, backend=backend)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(out)
    found = torch.autograd.grad(out, (q, k, v), slope)
    return out.detach().cpu(), found[0].cpu(), found[1].cpu(), found[2].cpu()


@torch.no_grad()
def _probed(heads: Heads, rule: Rule, backend: Backend) -> Float[Tensor, "n T"]:
    """F of the probed keys as the backend itself forms it, fp64: see the module's text."""
    q, k = _two_heads(heads)
    keys = _probe_keys(q.shape[1])
    rows = [(b, j) for b in range(q.shape[0]) for j in keys]
    alone = torch.zeros(len(rows), *k.shape[1:], dtype=k.dtype)
    for row, (b, j) in enumerate(rows):
        alone[row, :, 1:] = k[b, :, 1:]
        alone[row, j, 0] = k[b, j, 0]
    device = _device(backend)
    queries, alone = q.repeat_interleave(len(keys), dim=0).to(device), alone.to(device)
    used = selection_usage(
        queries,
        alone,
        torch.zeros_like(alone),
        protect=_protector(rule),
        rule=replace(rule, spread=(0,) * q.shape[2]),
        backend=backend,
        compaction=None,
        tau=NO_LIMIT,
    )
    return used.usage[:, 0].double().cpu()


def _recurrence(heads: Heads, kind: Kind) -> Float[Tensor, "n T"]:
    """F of the probed keys, turn by turn: attack first, then protection, which the plain sum has none of."""
    q, k = _two_heads(heads)
    T, scale = q.shape[1], q.shape[3] ** -0.5
    columns: list[Tensor] = []
    for b in range(q.shape[0]):
        for j in _probe_keys(T):
            attack = [0.0] * (j + 1) + (q[b, j + 1 :, 0] @ k[b, j, 0] * scale).relu().tolist()
            protection = [0.0] * T
            if kind == "protection":
                protection[j:] = (q[b, j:, 1] @ k[b, j, 1] * scale).relu().tolist()
            surplus, damage, column = 0.0, 0.0, list[float]()
            for a, p in zip(attack, protection, strict=True):
                column.append(damage)
                damage += max(a - surplus, 0.0)
                surplus = max(surplus - a, 0.0) + p
            columns.append(torch.tensor(column, dtype=torch.float64))
    return torch.stack(columns)


def _two_heads(heads: Heads) -> tuple[Tensor, Tensor]:
    """Queries and keys of head 0 and, where there is one, head 1, each with a key of its own."""
    H, K = heads.q.shape[2], heads.k.shape[2]
    own = torch.arange(min(H, 2)) // (H // K)
    return heads.q[:, :, :2], heads.k[:, :, own]


def _probe_keys(T: int) -> list[int]:
    """Keys to read out: from 1 (key 0 is protected) over the first half."""
    return sorted({1 + (T // 2) * n // PROBES for n in range(PROBES)} & set(range(T)))


def _protector(rule: Rule) -> int | None:
    return 1 if rule.protection == "scores" else None


def _device(backend: Backend) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def _relative(found: Tensor, exact: Tensor) -> float:
    """Largest difference over largest value; NaN where anything is."""
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max())


@dataclass(frozen=True)
class Standing:
    """How much worse than the best way an accumulation is, at the longest length, in outputs and gradients."""

    dtype: Precision
    length: int
    factors: dict[tuple[Algorithm, Accumulate], float]
    """The worst, over kinds, backends, outputs and gradients, of an error over the smallest error."""
    use: tuple[Algorithm, Accumulate] | None
    """The first of `PREFERRED` whose factor is at most `TOLERATED`; None: none of them is, or was measured
    beside another."""


PREFERRED: tuple[tuple[Algorithm, Accumulate], ...] = (
    ("blocked", "float32"),  # the default, and the one of the fast backends
    ("library", "float32"),
    ("blocked", "float64"),
)
TOLERATED = 2.0


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Which accumulation a study should use, by dtype of the inputs."""
    found: list[Standing] = []
    for dtype in PRECISIONS:
        length = max((row.length for row in rows if row.dtype == dtype), default=None)
        if length is None:
            continue
        factors: dict[tuple[Algorithm, Accumulate], float] = {}
        for kind in dict.fromkeys(row.kind for row in rows):
            own = [row for row in rows if (row.dtype, row.length, row.kind) == (dtype, length, kind)]
            least = [min(column) for column in zip(*((row.output, row.gradient) for row in own), strict=True)]
            for row in own:
                key = (row.way.algorithm, row.way.accumulate)
                ratios = [e / b for e, b in zip((row.output, row.gradient), least, strict=True) if b > 0]
                factors[key] = max(factors.get(key, 1.0), *ratios)
        good = (way for way in PREFERRED if factors.get(way, math.inf) <= TOLERATED)
        use = next(good, None) if len(factors) > 1 else None
        found.append(Standing(dtype, length, factors, use))
    return found

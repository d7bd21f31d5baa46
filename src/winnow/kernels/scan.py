"""Sums over queries, and the protection recurrence, by several algorithms. Along the last dimension but one.

    sum         A[n] = sum over t <= n of a[t]
    protection  R = D = 0;  each turn t:  dmg = relu(a[t] - R);  R = relu(R - a[t]);  D += dmg;  D[t] is emitted;
                R += p[t].   Closed form, with net[m] = sum over t <= m of a[t] - sum over t < m of p[t]:
                D[n] = max(0, max over m <= n of net[m])

library     the tensor library's running sum (and maximum)
blocked     the library's within blocks, and over the blocks' totals: an error of (block + n / block) roundings, not n;
            under protection a block starts from the surplus R that the one before it left
sequential  one accumulator, turn by turn
tree        up-sweep merges pairs, down-sweep fills the other prefixes, over an axis padded to a power of two

In the dtype of the inputs; differentiable as often as wanted. A turn with a = R counts as one with damage, in
gradients too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from winnow.kernels.rule import Algorithm

BLOCK = 64
"""Turns in a block of the blocked sum."""


def running_sum(a: Tensor, algorithm: Algorithm) -> Tensor:
    """A (..., N, C) of a (..., N, C)."""
    if a.shape[-2] == 0:
        return a
    match algorithm:
        case "library":
            return a.cumsum(-2)
        case "blocked":
            return _blocked_sum(a)
        case "sequential":
            total = torch.zeros_like(a[..., 0, :])
            rows: list[Tensor] = []
            for row in a.unbind(-2):
                total = total + row
                rows.append(total)
            return torch.stack(rows, dim=-2)
        case "tree":
            n = a.shape[-2]
            (found,) = _tree((_padded(a),), lambda x, y: (x[0] + y[0],))
            return found[..., :n, :]


def running_damage(a: Tensor, p: Tensor, algorithm: Algorithm) -> Tensor:
    """D (..., N, C) of attacks a >= 0 and protections p >= 0, both (..., N, C)."""
    if a.shape[-2] == 0:
        return a
    match algorithm:
        case "library":
            return damage_of_block(a, p, torch.zeros_like(a[..., 0, :]))[0]
        case "blocked":
            return _blocked_damage(a, p)
        case "sequential":
            return _recurrence(a, p)
        case "tree":
            n = a.shape[-2]
            a, p = _padded(a), _padded(_one_later(p))
            _, damage = _tree(((p - a).relu(), (a - p).clamp(min=0)), _merge)
            return damage[..., :n, :]


def damage_of_block(a: Tensor, p: Tensor, surplus: Tensor) -> tuple[Tensor, Tensor]:
    """D of a block of turns that starts with D = 0 and R = `surplus` (..., C); and the R that it leaves."""
    net = (a - _one_later(p)).cumsum(-2) - surplus.unsqueeze(-2)
    # cummax takes the latest of equal maxima and clamp passes gradients at 0: both count a = R as damage.
    damage = net.cummax(-2).values.clamp(min=0)
    return damage, damage[..., -1, :] - net[..., -1, :] + p[..., -1, :]


def _blocked_damage(a: Tensor, p: Tensor) -> Tensor:
    total = surplus = torch.zeros_like(a[..., 0, :])
    found: list[Tensor] = []
    for attacks, protections in zip(a.split(BLOCK, -2), p.split(BLOCK, -2), strict=True):
        damage, surplus = damage_of_block(attacks, protections, surplus)
        found.append(total.unsqueeze(-2) + damage)
        total = found[-1][..., -1, :]
    return torch.cat(found, dim=-2)


def _one_later(x: Tensor) -> Tensor:
    """x[t - 1] at t, and 0 at 0."""
    return F.pad(x[..., :-1, :], (0, 0, 1, 0))


def _blocked_sum(a: Tensor) -> Tensor:
    n = a.shape[-2]
    if n <= BLOCK:
        return a.cumsum(-2)
    blocks = F.pad(a, (0, 0, 0, -n % BLOCK)).unflatten(-2, (-1, BLOCK))
    within = blocks.cumsum(-2)
    before = _one_later(within[..., -1, :].cumsum(-2))
    return (within + before.unsqueeze(-2)).flatten(-3, -2)[..., :n, :]


def _recurrence(a: Tensor, p: Tensor) -> Tensor:
    zero = torch.zeros_like(a[..., 0, :])
    surplus = damage = zero
    rows: list[Tensor] = []
    for attack, protection in zip(a.unbind(-2), p.unbind(-2), strict=True):
        hit = surplus <= attack
        damage = damage + torch.where(hit, attack - surplus, zero)
        surplus = torch.where(hit, zero, surplus - attack) + protection
        rows.append(damage)
    return torch.stack(rows, dim=-2)


def _merge(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(surplus, damage) of two runs of turns, the second after the first."""
    (u1, v1), (u2, v2) = first, second
    return u2 + (u1 - v2).relu(), v1 + (v2 - u1).clamp(min=0)


def _padded(x: Tensor) -> Tensor:
    """With turns of 0 up to a power of two."""
    n = x.shape[-2]
    return F.pad(x, (0, 0, 0, (1 << (n - 1).bit_length()) - n))


def _tree(
    elements: tuple[Tensor, ...], merge: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Prefixes of `elements` under the associative `merge`. Their number is a power of two."""
    if elements[0].shape[-2] == 1:
        return elements
    even = tuple(x[..., 0::2, :] for x in elements)
    odd = tuple(x[..., 1::2, :] for x in elements)
    to_odd = _tree(merge(even, odd), merge)  # prefixes that end at odd places
    later = merge(tuple(x[..., :-1, :] for x in to_odd), tuple(x[..., 1:, :] for x in even))
    to_even = tuple(torch.cat((x[..., :1, :], y), dim=-2) for x, y in zip(even, later, strict=True))
    return tuple(torch.stack(pair, dim=-2).flatten(-3, -2) for pair in zip(to_even, to_odd, strict=True))

"""A whole GPT for one document, token by token, on fp64 tensors so that autograd gives its gradients.

Weights come as a plain dict by name. Written from the published equations, apart from the package's modules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def turn(vector: Tensor, position: int) -> Tensor:
    """One head's vector, its pairs (d, d + D/2) turned by position * 10000^(-2d/D)."""
    D = len(vector)
    turned: list[Tensor] = [vector[0]] * D
    for d in range(D // 2):
        angle = position * 10_000.0 ** (-2 * d / D)
        turned[d] = vector[d] * math.cos(angle) - vector[d + D // 2] * math.sin(angle)
        turned[d + D // 2] = vector[d] * math.sin(angle) + vector[d + D // 2] * math.cos(angle)
    return torch.stack(turned)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """(H, T, T) of q (T, H, D) and k (T, K, D): q.k / sqrt(D), the future at -inf."""
    T, H, D = q.shape
    group = H // k.shape[1]
    found = torch.full((H, T, T), -math.inf, dtype=torch.float64)
    rows = [
        [
            torch.stack(
                [(q[i, h] * k[j, h // group]).sum() / math.sqrt(D) if j <= i else found[h, i, j] for j in range(T)]
            )
            for i in range(T)
        ]
        for h in range(H)
    ]
    return torch.stack([torch.stack(head) for head in rows])


def forgotten(selecting: Tensor, *, protect_bos: bool = True, allow_self_masking: bool = False) -> Tensor:
    """F (T, T) from the selecting head's scores, by its definition: F[i, j] = sum over t < i of S[t, j]."""
    T = len(selecting)
    rows: list[Tensor] = []
    for i in range(T):
        row: list[Tensor] = []
        for j in range(T):
            total = torch.zeros((), dtype=torch.float64)
            for t in range(i):
                voter_may = t > j or (t == j and allow_self_masking)
                if voter_may and not (protect_bos and j == 0) and selecting[t, j] > 0:
                    total = total + selecting[t, j]
            row.append(total)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def attend(q: Tensor, k: Tensor, v: Tensor, forget: Tensor | None) -> Tensor:
    """Heads' outputs (T, H, D), with `forget` (T, T) subtracted from all heads' scores."""
    T, H, _ = q.shape
    group = H // k.shape[1]
    all_scores = scores(q, k)
    rows: list[Tensor] = []
    for i in range(T):
        for h in range(H):
            row = all_scores[h, i, : i + 1] - (0 if forget is None else forget[i, : i + 1])
            weights = torch.exp(row - row.max()) / torch.exp(row - row.max()).sum()
            rows.append(sum((weights[j] * v[j, h // group] for j in range(i + 1)), torch.zeros_like(v[0, 0])))
    return torch.stack(rows).reshape(T, H, -1)


def affine(x: Tensor, weights: Weights, name: str) -> Tensor:
    y = torch.stack([weights[f"{name}.weight"] @ row for row in x])
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def normed(x: Tensor, weights: Weights, name: str, kind: str) -> Tensor:
    rows: list[Tensor] = []
    for row in x:
        centred = row - row.mean() if kind == "layernorm" else row
        rows.append(centred / torch.sqrt((centred**2).mean() + 1e-5))
    y = torch.stack(rows)
    if f"{name}.weight" in weights:
        y = y * weights[f"{name}.weight"]
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def gelu(x: Tensor, exact: bool = False) -> Tensor:
    if exact:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def logits(
    tokens: list[int],
    weights: Weights,
    *,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_head: int,
    positions: str,
    norm: str,
    selective: dict[str, bool] | None,
    exact_gelu: bool = False,
) -> Tensor:
    """(T, V)."""
    T, H, K, D = len(tokens), n_heads, n_kv_heads, d_head
    h = torch.stack([weights["embedding.weight"][token] for token in tokens])
    if positions == "learned":
        h = h + torch.stack([weights["positions.weight"][i] for i in range(T)])
    for layer in range(n_layers):
        block = f"blocks.{layer}"
        qkv = affine(normed(h, weights, f"{block}.norm1", norm), weights, f"{block}.attention.qkv")
        q = qkv[:, : H * D].reshape(T, H, D)
        k = qkv[:, H * D : (H + K) * D].reshape(T, K, D)
        v = qkv[:, (H + K) * D :].reshape(T, K, D)
        if positions == "rotary":
            q = torch.stack([torch.stack([turn(q[i, a], i) for a in range(H)]) for i in range(T)])
            k = torch.stack([torch.stack([turn(k[i, a], i) for a in range(K)]) for i in range(T)])
        forget = None if selective is None else forgotten(scores(q, k)[0], **selective)
        y = attend(q, k, v, forget).reshape(T, H * D)
        h = h + affine(y, weights, f"{block}.attention.out")
        hidden = gelu(affine(normed(h, weights, f"{block}.norm2", norm), weights, f"{block}.mlp.up"), exact_gelu)
        h = h + affine(hidden, weights, f"{block}.mlp.down")
    h = normed(h, weights, "norm", norm)
    readout = weights.get("readout.weight", weights["embedding.weight"])
    return torch.stack([readout @ row for row in h])

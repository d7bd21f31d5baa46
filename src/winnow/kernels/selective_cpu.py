"""Selective attention on the CPU: the compiled kernels (`cpp/`, `compiled.py`), called on tensors.

Everything is computed and summed in fp32; other dtypes are converted on the way in and out. Algorithm, error bounds
and what is saved for the backward pass: `cpp/forward.h`, `cpp/backward.h`, `cpp/problem.h`. With as many threads as
PyTorch has. The output does not depend on how many, nor do gradients of keys and values; gradients of queries repeat
bit by bit for a number of threads, and another number may add them up in another order.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from winnow.kernels import compiled
from winnow.kernels.rule import Problem, calls

BLOCK = 64
"""Queries in a block: kBlock of `cpp/problem.h`."""
Saved = tuple[Tensor, Tensor, Tensor]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PROTECTIONS = ("none", "scores", "leaky", "constant")


class View(ctypes.Structure):
    """A tensor (B, T, heads, width) whose last dimension is contiguous."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("token", ctypes.c_int64),
        ("head", ctypes.c_int64),
    )


_VIEWS = ("q", "k", "v", "q_s", "k_s", "q_p", "k_p")
_INTEGERS = ("B", "T", "H", "K", "D", "M", "E", "P", "n_k_s", "n_q_p", "n_k_p", "select", "protect", "protect_bos",
             "allow_self_masking", "relu_after", "protection", "compact", "has_tau", "threads")  # fmt: skip
_GRADIENTS = ("dq", "dk", "dv", "dq_s", "dk_s", "dq_p", "dk_p")
_NUMBERS = ("scale", "leak", "slope", "offset", "gain", "bias", "tau")


class CProblem(ctypes.Structure):
    """`Problem` of cpp/problem.h."""

    _fields_ = (
        *((name, View) for name in _VIEWS),
        ("starts", ctypes.c_void_p),
        ("spread", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in _INTEGERS),
        *((name, ctypes.c_float) for name in _NUMBERS),
    )


class CForward(ctypes.Structure):
    """`Forward` of cpp/problem.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("out", "usage", "lse", "carry", "theta"))


class CBackward(ctypes.Structure):
    """`Backward` of cpp/problem.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("out", "lse", "carry", "theta")),
        ("grad_out", View),
        *((name, ctypes.c_void_p) for name in ("grad_usage", *_GRADIENTS)),
    )


def unsupported(problem: Problem) -> str | None:
    """Why a problem cannot run here, or None. Builds the kernels if that was not done yet."""
    rule = problem.rule
    if problem.q.device.type != "cpu":
        return f"tensors are on {problem.q.device.type}"
    if problem.v.dtype not in _DTYPES:
        return f"it computes in fp32, and inputs are {problem.v.dtype}"
    if rule.algorithm != "blocked":
        return f"its sums are blocked, not {rule.algorithm}"
    if rule.accumulate != "float32":
        return f"its sums are fp32, not {rule.accumulate}"
    return compiled.available()


def saved_shapes(problem: Problem) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of lse, carry and theta (`Forward` of cpp/problem.h), all fp32."""
    B, T, H, _ = problem.q.shape
    M = problem.rule.n_masks
    blocks = -(-T // BLOCK)
    return (B, H, T), (B, blocks, M, 1 if problem.rule.protection == "none" else 2, T), (B, blocks, M)


def forward(problem: Problem) -> tuple[Tensor, Tensor, Saved]:
    """out in v's dtype, usage (empty where tau is None), and what `backward` needs."""
    calls["cpu.forward"] += 1
    q = problem.q
    out = torch.empty(q.shape, dtype=torch.float32)
    usage = torch.empty((0,) if problem.tau is None else (q.shape[0], problem.rule.n_masks, q.shape[1]))
    lse, carry, theta = (torch.empty(shape, dtype=torch.float32) for shape in saved_shapes(problem))
    given = Given(problem)
    result = CForward(
        out.data_ptr(),
        None if problem.tau is None else usage.data_ptr(),
        lse.data_ptr(),
        carry.data_ptr(),
        theta.data_ptr(),
    )
    compiled.call("forward", given.problem, result)
    return out.to(problem.v.dtype), usage, (lse, carry, theta)


def backward(
    problem: Problem, out: Tensor, saved: Saved, grad_out: Tensor, grad_usage: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, q_s, k_s, q_p and k_p, each in its tensor's dtype; None where there is no tensor."""
    calls["cpu.backward"] += 1
    inputs = (problem.q, problem.k, problem.v, problem.q_s, problem.k_s, problem.q_p, problem.k_p)
    found = [None if x is None else torch.empty(x.shape, dtype=torch.float32) for x in inputs]
    given = Given(problem)
    grad_out = grad_out.float()
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    out = out.float().contiguous()
    lse, carry, theta = (tensor.contiguous() for tensor in saved)
    if grad_usage is not None:
        grad_usage = grad_usage.float().contiguous()
    result = CBackward(
        out.data_ptr(),
        lse.data_ptr(),
        carry.data_ptr(),
        theta.data_ptr(),
        _view(grad_out),
        None if grad_usage is None else grad_usage.data_ptr(),
        *(None if x is None else x.data_ptr() for x in found),
    )
    compiled.call("backward", given.problem, result)
    return tuple(None if d is None or x is None else d.to(x.dtype) for d, x in zip(found, inputs, strict=True))


class Given:
    """A problem as the kernels read it, and what must stay alive meanwhile."""

    def __init__(self, problem: Problem) -> None:
        self._kept: list[Tensor] = []
        rule = problem.rule
        B, T, H, D = problem.q.shape
        K = problem.k.shape[2]
        q, k, v = self._fp32(problem.q), self._fp32(problem.k), self._fp32(problem.v)
        if problem.q_s is None or problem.k_s is None:
            q_s, k_s = _of_head(q, k, problem.select)
        else:
            q_s, k_s = self._fp32(problem.q_s), self._fp32(problem.k_s)
        q_p = k_p = None
        if problem.q_p is not None and problem.k_p is not None:
            q_p, k_p = self._fp32(problem.q_p), self._fp32(problem.k_p)
        elif rule.protection == "scores":
            q_p, k_p = _of_head(q, k, problem.protect)
        starts = None if problem.starts is None else self._keep(problem.starts.to(torch.int32).contiguous())
        spread = self._keep(torch.tensor(rule.spread, dtype=torch.int32))
        M = rule.n_masks
        self.problem = CProblem(
            q=_view(q),
            k=_view(k),
            v=_view(v),
            q_s=_view(q_s, shared=q_s.shape[2] < M),
            k_s=_view(k_s, shared=k_s.shape[2] < M),
            q_p=View() if q_p is None else _view(q_p, shared=q_p.shape[2] < M),
            k_p=View() if k_p is None else _view(k_p, shared=k_p.shape[2] < M),
            starts=None if starts is None else starts.data_ptr(),
            spread=spread.data_ptr(),
            B=B,
            T=T,
            H=H,
            K=K,
            D=D,
            M=M,
            E=q_s.shape[3],
            P=0 if q_p is None else q_p.shape[3],
            n_k_s=k_s.shape[2],
            n_q_p=0 if q_p is None else q_p.shape[2],
            n_k_p=0 if k_p is None else k_p.shape[2],
            select=problem.select if problem.q_s is None else -1,
            protect=problem.protect if problem.q_p is None else -1,
            protect_bos=rule.protect_bos,
            allow_self_masking=rule.allow_self_masking,
            relu_after=rule.relu_after,
            protection=_PROTECTIONS.index(rule.protection),
            compact=problem.compact,
            has_tau=problem.tau is not None,
            threads=torch.get_num_threads(),
            scale=problem.scale,
            leak=rule.leak,
            slope=rule.protection_slope,
            offset=rule.protection_offset,
            gain=rule.protection_scale,
            bias=rule.protection_bias,
            tau=0.0 if problem.tau is None else problem.tau,
        )

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        return tensor

    def _fp32(self, x: Tensor) -> Tensor:
        x = x.float()
        return self._keep(x if x.stride(-1) == 1 else x.contiguous())


def _of_head(q: Tensor, k: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of one head, (B, T, 1, D) each."""
    kv = head // (q.shape[2] // k.shape[2])
    return q[:, :, head : head + 1], k[:, :, kv : kv + 1]


def _view(x: Tensor, *, shared: bool = False) -> View:
    """`shared`: one head stands for all masks."""
    return View(x.data_ptr(), x.stride(0), x.stride(1), 0 if shared else x.stride(2))

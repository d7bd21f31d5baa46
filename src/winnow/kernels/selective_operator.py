"""Selective attention as two operators of torch.library, forward and backward, and the choice of what runs them.

`winnow::selective_attention` returns out, usage and three tensors that its backward wants again; its arguments are
those of `Problem`, with the rule as text. torch.func.vmap folds replicates into the batch, in both directions, so
that one call serves them all. The backends are imported when first wanted: importing this starts no compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import import_module
from inspect import signature
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from winnow.errors import InputError
from winnow.kernels.reference import accumulating_dtype, computing_dtype
from winnow.kernels.rule import Problem, Rule, reasons

Backend = Literal["auto", "reference", "chunked", "cpu", "triton"]

FASTEST = {"cpu": "cpu", "cuda": "triton"}
"""By type of device; elsewhere none is faster than chunked."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Choice(NamedTuple):
    """A backend, and why no faster one."""

    backend: str
    reason: str
    """Empty where the fastest of the device runs."""


@runtime_checkable
class _Module(Protocol):
    """What a backend's module offers (`chunked.py`)."""

    def unsupported(self, problem: Problem) -> str | None: ...

    def saved_shapes(self, problem: Problem) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]: ...

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]: ...

    def backward(
        self,
        problem: Problem,
        out: Tensor,
        saved: tuple[Tensor, Tensor, Tensor],
        grad_out: Tensor,
        grad_usage: Tensor | None,
    ) -> Gradients: ...


_MODULES = {"chunked": "chunked", "cpu": "selective_cpu", "triton": "selective_triton"}


@lru_cache
def _module(backend: str) -> _Module:
    return cast(_Module, import_module(f"winnow.kernels.{_MODULES[backend]}"))


def _why_not(backend: str, problem: Problem) -> str | None:
    return _module(backend).unsupported(problem)


def choose(problem: Problem, backend: Backend) -> Choice:
    """What runs a problem. Raises InputError where a backend is named that cannot."""
    if backend == "reference":
        return Choice(backend, "asked for")
    if backend != "auto":
        if backend not in _MODULES:
            raise InputError(
                f"{backend!r} is none", key="backend", mend=f"permitted: auto, reference, {', '.join(_MODULES)}"
            )
        reason = _why_not(backend, problem)
        if reason is not None:
            raise InputError(f"{backend} cannot run this: {reason}", key="backend", mend='use "auto"')
        return Choice(backend, "asked for")
    passed_over: list[str] = []
    fastest = FASTEST.get(problem.q.device.type)
    for name in ("chunked",) if fastest is None else (fastest, "chunked"):
        reason = _why_not(name, problem)
        if reason is None:
            return Choice(name, "; ".join(passed_over))
        passed_over.append(f"{name}: {reason}")
    return Choice("reference", "; ".join(passed_over))


_LIBRARY = torch.library.Library("winnow", "FRAGMENT")
_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? q_s, Tensor? k_s, Tensor? q_p, Tensor? k_p, Tensor? starts, "
    "str rule, int select, int protect, float scale, float? tau, bool compact, str backend"
)
_LIBRARY.define(
    f"selective_attention({_ARGUMENTS}) -> (Tensor out, Tensor usage, Tensor lse, Tensor carry, Tensor theta)"
)
_LIBRARY.define(
    "selective_attention_backward(Tensor grad_out, Tensor? grad_usage, Tensor out, Tensor lse, Tensor carry, "
    f"Tensor theta, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_N_TENSORS = 8
"""Leading arguments that are tensors or None."""
_TAU = 4
"""Of the arguments that are none, the place of tau."""
_N_GRADIENTS = 7
"""Of those, with a gradient: all but `starts`."""


def _decoded(arguments: tuple[Any, ...]) -> tuple[Problem, Backend]:
    q, k, v, q_s, k_s, q_p, k_p, starts, code, select, protect, scale, tau, compact, backend = arguments
    rule = Rule.decode(code)
    return Problem(q, k, v, q_s, k_s, q_p, k_p, starts, rule, select, protect, scale, tau, compact), backend


def _outside_autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _dense_rows(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    tensors = (_dense_rows(t) for t in arguments[:_N_TENSORS])
    problem, backend = _decoded((*tensors, *arguments[_N_TENSORS:]))
    _check_starts(problem)
    with _outside_autocast(problem.q.device.type):
        chosen = choose(problem, backend)
        reasons[chosen.backend] = chosen.reason
        out, usage, saved = _module(chosen.backend).forward(problem)
    return out, usage, *saved


def _check_starts(problem: Problem) -> None:
    starts = problem.starts
    if starts is None or starts.device.type != "cpu":  # elsewhere a look would wait for the device
        return
    index = torch.arange(starts.shape[1], dtype=starts.dtype)
    if not bool(((starts >= 0) & (starts <= index)).all()):
        raise InputError("a token's document starts after it or before 0", key="starts", mend="use indices of the row")
    if not bool(((starts[:, 1:] == starts[:, :-1]) | (starts[:, 1:] == index[1:])).all()):
        raise InputError("a document is taken up again", key="starts", mend="give each document adjacent tokens")


def _backward(
    grad_out: Tensor, grad_usage: Tensor | None, out: Tensor, lse: Tensor, carry: Tensor, theta: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    tensors = (_dense_rows(t) for t in arguments[:_N_TENSORS])
    problem, backend = _decoded((*tensors, *arguments[_N_TENSORS:]))
    grad = _dense_rows(grad_out)
    assert grad is not None
    with _outside_autocast(grad.device.type):
        module = _module(choose(problem, backend).backend)
        found = module.backward(problem, out, (lse, carry, theta), grad, grad_usage)
    return tuple(grad.new_empty(0) if g is None else g for g in found)


def _fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    problem, backend = _decoded(arguments)
    q = problem.q
    wide = computing_dtype(q.dtype)
    usage = (0,) if problem.tau is None else (q.shape[0], problem.rule.n_masks, q.shape[1])
    kept = torch.promote_types(accumulating_dtype(problem.rule, q.dtype), torch.float32)
    shapes = _module(choose(problem, backend).backend).saved_shapes(problem)
    return q.new_empty(q.shape), q.new_empty(usage, dtype=wide), *(q.new_empty(s, dtype=kept) for s in shapes)


def _fake_backward(
    grad_out: Tensor, grad_usage: Tensor | None, out: Tensor, lse: Tensor, carry: Tensor, theta: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    return tuple(grad_out.new_empty((0,) if t is None else t.shape) for t in arguments[:_N_GRADIENTS])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*inputs[:_N_TENSORS], output[0], *output[2:])
    ctx.values = inputs[_N_TENSORS:]


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_usage: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # asked for once: activation checkpointing unpacks them only once
    tensors, (out, lse, carry, theta) = saved[:_N_TENSORS], saved[_N_TENSORS:]
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    if ctx.values[_TAU] is None:  # usage is empty, and so is a gradient of it
        grad_usage = None
    arguments = grad_out, grad_usage, out, lse, carry, theta, *tensors, *ctx.values
    found = _backward_operator()(*arguments)
    of_tensors = [None if t is None else g for t, g in zip(tensors, found, strict=False)]
    return *of_tensors, *(None for _ in range(1 + len(ctx.values)))


def _refuse_second(ctx: Any, *grads: Any) -> Any:
    raise InputError(
        "selective attention's second derivatives need its definition", key="backend", mend='use "reference"'
    )


def _fold(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """(R B, ...) of a tensor whose replicates lie along `dim`, or that all share."""
    if x is None:
        return None
    replicates = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return replicates.flatten(0, 1)


def _unfold(x: Tensor, size: int) -> Tensor:
    return x.unflatten(0, (size, -1))


def _vmap_forward(
    info: Any, dims: tuple[Any, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    R = info.batch_size
    folded = [_fold(t, dim, R) for t, dim in zip(arguments[:_N_TENSORS], dims, strict=False)]
    found = torch.ops.winnow.selective_attention.default(*folded, *arguments[_N_TENSORS:])
    out, usage, *saved = found
    has_usage = arguments[_N_TENSORS + _TAU] is not None
    # What the backward wants again stays folded, as if all replicates shared it: its layout is the backend's alone.
    outs = _unfold(out, R), _unfold(usage, R) if has_usage else usage, *saved
    return outs, (0, 0 if has_usage else None, None, None, None)


def _vmap_backward(
    info: Any, dims: tuple[Any, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    R = info.batch_size
    operator = torch.ops.winnow.selective_attention_backward.default
    grads, saved, tensors = arguments[:3], arguments[3:6], arguments[6 : 6 + _N_TENSORS]
    values = arguments[6 + _N_TENSORS :]
    if dims[2] is None:
        # The forward pass was one for all, and only its cotangents (or nothing it kept) differ.
        found = [operator(*(_at(x, dim, r) for x, dim in zip(arguments, dims, strict=True))) for r in range(R)]
        stacked = [torch.stack(parts) for parts in zip(*found, strict=True)]
    else:
        folded_grads = [_fold(x, dim, R) for x, dim in zip(grads, dims[:3], strict=True)]
        folded = [_fold(x, dim, R) for x, dim in zip(tensors, dims[6:], strict=False)]
        stacked = [
            found if tensor is None else _unfold(found, R)
            for found, tensor in zip(operator(*folded_grads, *saved, *folded, *values), tensors, strict=False)
        ]
    there = tuple(None if tensor is None else 0 for tensor in tensors[:_N_GRADIENTS])
    return tuple(x if dim == 0 else x.new_empty(0) for x, dim in zip(stacked, there, strict=True)), there


def _at(x: Any, dim: int | None, index: int) -> Any:
    return x if dim is None else x.select(dim, index)


def _forward_operator() -> Callable[..., tuple[Tensor, ...]]:
    return torch.ops.winnow.selective_attention.default if torch.compiler.is_compiling() else _Differentiable.apply


def _backward_operator() -> Callable[..., tuple[Tensor, ...]]:
    compiling = torch.compiler.is_compiling()
    return torch.ops.winnow.selective_attention_backward.default if compiling else _DifferentiableOnce.apply


class _Differentiable(torch.autograd.Function):
    """The operator in eager mode: transforms of torch.func cannot use a derivative registered with an operator."""

    generate_vmap_rule = True  # by the operators' own

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.winnow.selective_attention.default(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, *grads)


class _DifferentiableOnce(torch.autograd.Function):
    """The backward operator in eager mode; its own derivative is refused by name."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return torch.ops.winnow.selective_attention_backward.default(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _refuse_second(ctx, *grads)


def attend(problem: Problem, backend: Backend) -> tuple[Tensor, Tensor]:
    """out and usage (empty where tau is None), by way of the operator."""
    p = problem
    tensors = p.q, p.k, p.v, p.q_s, p.k_s, p.q_p, p.k_p, p.starts
    values = p.rule.code, p.select, p.protect, p.scale, p.tau, p.compact, backend
    out, usage, *_ = _forward_operator()(*tensors, *values)
    return out, usage


for _function in (_Differentiable, _DifferentiableOnce):
    # Read at every call to bind the arguments: found ready, it costs a third.
    _function.forward.__signature__ = signature(_function.forward)
for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("selective_attention", _forward, _key)
    _LIBRARY.impl("selective_attention_backward", _backward, _key)
torch.library.register_fake("winnow::selective_attention", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("winnow::selective_attention_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("winnow::selective_attention", _differentiate, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd("winnow::selective_attention_backward", _refuse_second, lib=_LIBRARY)
torch.library.register_vmap("winnow::selective_attention", _vmap_forward, lib=_LIBRARY)
torch.library.register_vmap("winnow::selective_attention_backward", _vmap_backward, lib=_LIBRARY)

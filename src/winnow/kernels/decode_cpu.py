"""A step of decoding on the CPU: the compiled kernel (`cpp/decode.h`), bound once to the tensors of one cache.

fp32, one set of votes per mask without protection, masks made of whole heads, widths that fill vectors (multiples of
16). A call costs microseconds, where the same step of PyTorch's operations costs some thirty of theirs.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from winnow.kernels import compiled
from winnow.kernels.rule import Rule, calls

Voters = tuple[tuple[int, int], ...]
"""Of each mask, the heads of q and of k whose product votes."""

WIDTH = 16
"""Numbers in the widest vector."""

_POINTERS = ("q", "new_k", "new_v", "out", "k", "v", "votes", "position", "newest", "slot", "spread", "query_of",
             "key_of", "room")  # fmt: skip
_STRIDES = ("q_batch", "new_k_batch", "new_v_batch")
_INTEGERS = ("B", "H", "K", "KS", "D", "S", "M", "evicts", "bos_last", "protect_bos", "allow_self_masking",
             "relu_after", "threads")  # fmt: skip


class CDecode(ctypes.Structure):
    """`Decode` of cpp/decode.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_int32) for name in _INTEGERS),
        ("scale", ctypes.c_float),
        ("leak", ctypes.c_float),
    )


@dataclass(frozen=True)
class Slots:
    """The tensors of a cache, as `LayerCache` has them."""

    k: Tensor
    v: Tensor
    votes: Tensor
    position: Tensor
    newest: Tensor
    slot: Tensor


def suits(slots: Slots, rule: Rule) -> bool:
    """Whether the kernel can do it. Builds the kernels if that was not done yet."""
    return (
        rule.protection == "none"
        and slots.k.device.type == "cpu"
        and slots.k.dtype == slots.votes.dtype == torch.float32
        and slots.k.shape[-1] % WIDTH == 0
        and compiled.available() is None
    )


class BoundStep:
    """The kernel, bound to a cache whose tensors keep their places."""

    def __init__(self, slots: Slots, rule: Rule, voters: Voters, *, evicts: bool, bos_last: bool) -> None:
        B, KS, S, D = slots.k.shape
        H, K = len(rule.spread), slots.v.shape[1]
        query_of, key_of = ([pair[side] for pair in voters] for side in (0, 1))
        self._kept = [torch.tensor(part, dtype=torch.int32) for part in (rule.spread, query_of, key_of)]
        self._room = torch.empty(B * H * -(-S // WIDTH) * WIDTH)
        self._slots = slots
        self.shape = B, 1, H, D
        self._call = CDecode(
            **{name: getattr(slots, name).data_ptr() for name in ("k", "v", "votes", "position", "newest", "slot")},
            **{name: t.data_ptr() for name, t in zip(("spread", "query_of", "key_of"), self._kept, strict=True)},
            room=self._room.data_ptr(), B=B, H=H, K=K, KS=KS, D=D, S=S, M=rule.n_masks,
            evicts=evicts, bos_last=bos_last, protect_bos=rule.protect_bos, allow_self_masking=rule.allow_self_masking,
            relu_after=rule.relu_after, scale=D**-0.5, leak=rule.leak,
        )  # fmt: skip
        self._function = compiled.library().winnow_decode
        self._instance = compiled.instance()
        self._address = ctypes.byref(self._call)

    def write(self, k: Tensor, v: Tensor) -> None:
        """Free a slot in every row and put the new key and value there. k (B, 1, KS, D), v (B, 1, K, D)."""
        k, v = _rows(k), _rows(v)
        self._call.new_k, self._call.new_k_batch = k.data_ptr(), k.stride(0)
        self._call.new_v, self._call.new_v_batch = v.data_ptr(), v.stride(0)
        self._function(self._instance, self._address, 0)

    def look(self, q: Tensor) -> Tensor:
        """(B, 1, H, D): attention of the newest query, whose votes are then added. q (B, 1, heads, D)."""
        calls["decode.step"] += 1
        q, out = _rows(q), torch.empty(self.shape)
        self._call.q, self._call.q_batch, self._call.out = q.data_ptr(), q.stride(0), out.data_ptr()
        self._call.threads = torch.get_num_threads()
        self._function(self._instance, self._address, 1)
        return out


def _rows(x: Tensor) -> Tensor:
    """x (B, 1, heads, D) with the numbers of a row side by side."""
    return x if x.dtype == torch.float32 and x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.float().contiguous()

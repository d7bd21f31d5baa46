"""One run on several ranks: processes that share out the rows of every update and hold one model together.

    ddp    every rank holds the whole model; gradients are summed over ranks before each update
           (torch.nn.parallel.DistributedDataParallel)
    fsdp   every rank holds a part of each parameter, gradient and moment; a block's parameters are gathered when the
           block computes (torch.distributed.fsdp.fully_shard)

Sums over ranks are plain sums: the loss of a rank is divided by the weight of the whole update, not of its part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] (it is documented)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from winnow.errors import InputError
from winnow.models.base import Model
from winnow.tasks.base import Batch
from winnow.train.checkpoint import weights_digest
from winnow.train.group import BUILD, Charge, Group, Parallel, T
from winnow.train.losses import Losses
from winnow.train.ranks import LOOPBACK


class Ranks(Group):
    """Several processes that `torch.distributed` has joined. device: of this rank."""

    def __init__(self, parallel: Parallel, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.parallel = parallel
        self._device = device
        self._inside = False
        self._ddp: DistributedDataParallel | None = None
        self._heard: set[str] = set()
        self._used: set[str] = set()
        """Parameters that can tell of a gradient, and those that had one in this update; of fsdp."""

    def place(self, model: Model, device: torch.device) -> Model:
        """See `Group.place`. Raises InputError for a model that cannot be sharded."""
        if self.parallel == "ddp":
            return model.to(device)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 0:
                raise InputError(f"{name} is a single number, which cannot be sharded", key="--parallel", mend="ddp")
        if getattr(FSDPModule, "set_reduce_scatter_unused_params", None) is None:
            raise InputError("this PyTorch is too old", key="--parallel", mend="install torch 2.13, or use ddp")
        mesh = init_device_mesh(device.type, (self.size,))
        blocks = [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]
        paths = {module: path for path, module in model.named_modules()}
        for module in [*blocks, model]:
            sharded = fully_shard(module, mesh=mesh)
            # Sums: every rank has divided by the weight of the whole update already.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other
            # A parameter may have a gradient on some ranks only: the others add zeros, and `drop_unused` tells these
            # from a gradient that nobody has.
            sharded.set_reduce_scatter_unused_params(True, recurse=False)
            module.register_forward_pre_hook(partial(self._watch_use, paths[module]))
        return model.to(device)  # buffers of modules without parameters

    def wrap(self, charge: Charge, model: Model) -> Charge:
        """See `Group.wrap`."""
        if self.parallel == "fsdp":
            return charge
        # A parameter may be without a gradient on some rank, where a mechanism looks at its rows before it acts.
        self._ddp = DistributedDataParallel(_Charged(charge, model), find_unused_parameters=True)
        self._ddp.register_comm_hook(None, _sum_of_gradients)
        return cast(Charge, self._ddp)

    def accumulating(self, *, last: bool) -> AbstractContextManager[object]:
        """See `Group.accumulating`. FSDP sums after every pass: whole gradients would not fit."""
        return contextlib.nullcontext() if self._ddp is None or last else self._ddp.no_sync()

    def _watch_use(self, prefix: str, module: nn.Module, inputs: object) -> None:
        """While a sharded module computes, its parameters stand in it whole: hear from each that gets a gradient."""
        for own, parameter in module.named_parameters():
            name = f"{prefix}.{own}" if prefix else own
            if name not in self._heard and not isinstance(parameter, DTensor) and parameter.requires_grad:
                self._heard.add(name)
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._used.add(name))

    def drop_unused(self, model: Model) -> None:
        """See `Group.drop_unused`. DDP sees to it itself."""
        if self.parallel == "ddp":
            return
        unused = set[str].intersection(*map(set, self.gather(sorted(self._heard - self._used))))
        self._used.clear()
        for name, parameter in model.named_parameters():
            if name in unused:
                parameter.grad = None

    @contextmanager
    def inference(self, model: Model) -> Iterator[None]:
        """See `Group.inference`. The model's own parameters stay gathered after a forward pass until told."""
        yield
        if isinstance(model, FSDPModule):
            model.reshard()

    def total(self, value: float) -> float:
        """See `Group.total`. In fp64, so that a count of targets is exact."""
        found = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(found)
        return float(found)

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Group.sum`."""
        found = tensor.clone()
        dist.all_reduce(found)
        return found

    def gather(self, value: T) -> list[T]:
        """See `Group.gather`."""
        found: list[T | None] = [None] * self.size
        dist.all_gather_object(found, value, group=_host())
        return cast("list[T]", found)

    def whole(self, tensor: Tensor) -> Tensor:
        """See `Group.whole`."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def collect(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Group.collect`. One whole tensor at a time is on the device."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            whole = self.whole(tensor.detach())
            if self.leads:
                found[name] = whole.cpu()
        return found

    def fill(self, target: Tensor, value: Tensor) -> None:
        """See `Group.fill`."""
        target.copy_(self.beside(target, value))

    def beside(self, parameter: Tensor, value: Tensor) -> Tensor:
        """See `Group.beside`. Ranks that do not lead need only give the shape: a meta tensor, say."""
        device = parameter.device
        whole = value.to(device, copy=True) if self.leads else torch.empty_like(value, device=device)
        if isinstance(parameter, DTensor) and value.shape == parameter.shape:
            return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
        dist.broadcast(whole, src=0)
        return whole

    def check_copies(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Group.check_copies`."""
        copies = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}
        digests = self.gather(weights_digest(copies))
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise RuntimeError(
                f"rank {others[0]} holds other weights than rank 0: "
                "a forward pass must not change parameters or buffers"
            )

    # Who does what

    @contextmanager
    def led(self, method: str, *arguments: object) -> Iterator[None]:
        """See `Group.led`. What a method calls in turn needs no telling."""
        outermost = not self._inside
        if outermost and self.leads:
            self._tell((method, arguments))
        self._inside = True
        try:
            yield
        finally:
            self._inside = not outermost

    def end(self) -> None:
        """The leading rank needs the others no more."""
        self._tell(None)

    def follow(self, build: Callable[[], object]) -> None:
        """What a rank that does not lead does: whatever it is told to, until the end. build: makes its loop."""
        loop: object | None = None
        while (told := self._tell(None)) is not None:
            method, arguments = told
            if method == BUILD:
                (threads,) = arguments
                torch.set_num_threads(threads)
                loop = build()
            else:
                getattr(loop, method)(*arguments)

    def _tell(self, what: tuple[str, tuple[Any, ...]] | None) -> tuple[str, tuple[Any, ...]] | None:
        told = [what]
        dist.broadcast_object_list(told, src=0, group=_host(), device=torch.device("cpu"))
        return told[0]


@contextmanager
def joined(
    rank: int, size: int, port: int, parallel: Parallel, device: torch.device, timeout: float
) -> Iterator[Ranks]:
    """This process as rank `rank` of `size` on this machine. port: of the TCPStore on loopback where they meet.

    timeout: the longest that a rank waits for the others, seconds.
    """
    wait = timedelta(seconds=timeout)
    store = TCPStore(LOOPBACK, port, is_master=False, timeout=wait)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
    yield Ranks(parallel, device)
    # Not after an error: the others may be gone, and nobody would answer.
    dist.destroy_process_group()


def _host() -> dist.ProcessGroup:
    """The group of all ranks. With nccl its objects still travel by gloo, as tensors on the host."""
    group = dist.group.WORLD
    assert group is not None
    return group


class _Charged(nn.Module):
    """Losses as a module's forward pass, which is what DDP can wrap."""

    def __init__(self, charge: Charge, model: Model) -> None:
        super().__init__()
        self._charge, self.model = charge, model

    def forward(self, batch: Batch) -> Losses:
        return self._charge(batch)


def _sum_of_gradients(state, bucket):  # DDP compares annotations as objects, and here they would be text
    """DDP's own would divide by the number of ranks."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])

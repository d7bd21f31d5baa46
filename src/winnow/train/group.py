"""What a run asks of its ranks, the processes that share it out, and how a run in one process answers.

`Group`    a run's only process; `distributed.Ranks` is the same of several.
`together` marks the methods of a loop that need every rank. Rank 0 leads: it holds the run's lock, journal and
           checkpoints, decides everything, and tells the others which method comes next. So there is nothing on which
           two ranks could decide differently, and they stop at the same step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from winnow.models.base import Model
from winnow.tasks.base import Batch
from winnow.train.losses import Losses

Parallel = Literal["ddp", "fsdp"]
Charge = Callable[[Batch], Losses]
"""The losses of a batch."""
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
BUILD = "build"
"""What the leading rank says when it makes its loop; everything else that it says is the name of a method."""


class Group:
    """The ranks of a run, as one of them sees them; here: a run's only process."""

    rank = 0
    size = 1
    parallel: Parallel | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank holds the run."""
        return self.rank == 0

    @property
    def named(self) -> str:
        """As it stands in provenance and findings."""
        return named(self.size, self.parallel)

    # The model and its gradients

    def place(self, model: Model, device: torch.device) -> Model:
        """The model on its device, ready for an optimizer."""
        return model.to(device)

    def wrap(self, charge: Charge, model: Model) -> Charge:
        """`charge`, whose gradients are summed over ranks where the model itself does not see to it."""
        return charge

    def accumulating(self, *, last: bool) -> AbstractContextManager[object]:
        """The context of one pass of an update, forward and backward; last: of its last one."""
        return contextlib.nullcontext()

    def drop_unused(self, model: Model) -> None:
        """Leave parameters without a gradient, not with one of zeros, where no rank has one; before each update."""

    def inference(self, model: Model) -> AbstractContextManager[object]:
        """The context of forward passes without a backward pass."""
        return contextlib.nullcontext()

    # Numbers

    def total(self, value: float) -> float:
        """Sum over ranks of a number on the host."""
        return value

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks of a tensor on the device."""
        return tensor

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order."""
        return [value]

    # Whole tensors and parts of them

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of which each rank may hold a part. Every rank has to ask."""
        return tensor

    def collect(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Whole tensors, as they go into a checkpoint; on the rank that leads, and none elsewhere."""
        return tensors

    def fill(self, target: Tensor, value: Tensor) -> None:
        """Give `target` the value that the leading rank has, a whole tensor."""
        target.copy_(value)

    def beside(self, parameter: Tensor, value: Tensor) -> Tensor:
        """A copy of the leading rank's whole `value`, where `parameter` is: in parts if it is."""
        return value.to(parameter.device, copy=True)

    def check_copies(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises RuntimeError where ranks hold different copies of what each of them holds whole."""

    # Who does what

    def led(self, method: str, *arguments: object) -> AbstractContextManager[object]:
        """Around a method of the loop: the leading rank tells the others that it is next."""
        return contextlib.nullcontext()


def named(size: int, parallel: Parallel | None) -> str:
    """How many ranks hold a run, and how."""
    return "1 rank" if parallel is None else f"{size} ranks, {parallel}"


ALONE = Group()
"""A run in one process."""


class _Grouped(Protocol):
    group: Group


Self_ = TypeVar("Self_", bound=_Grouped)


def together(method: Callable[Concatenate[Self_, P], R]) -> Callable[Concatenate[Self_, P], R]:
    """A method that all ranks run at once. Its arguments are told to the others: keep them small."""

    @functools.wraps(method)
    def on_all_ranks(self: Self_, *args: P.args, **kwargs: P.kwargs) -> R:
        assert not kwargs, "only positional arguments are told"
        with self.group.led(method.__name__, *args):
            return method(self, *args, **kwargs)

    return on_all_ranks

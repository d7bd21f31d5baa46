"""AdamW over the table of parameters, the learning-rate schedule, and the gradient's norm.

Loshchilov and Hutter 2019 (AdamW); the schedule is that of Brown et al. 2020, in the form of build-nanogpt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from winnow.parameters import ParameterSpec
from winnow.train.config import TrainConfig


def learning_rate(step: int, train: TrainConfig) -> float:
    """Peak learning rate of update `step` (counted from 0), before a parameter's own multiplier.

    max x (s + 1) / W while s < W = warmup; then from max at W to max x min_lr_fraction at `steps`.
    """
    peak, warmup = train.lr, train.warmup
    if step < warmup:
        return peak * (step + 1) / warmup
    if train.schedule == "constant":
        return peak
    done = (step - warmup) / max(1, train.steps - warmup)
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if train.schedule == "cosine" else 1.0 - done
    low = peak * train.min_lr_fraction
    return low + left * (peak - low)


def as_it_is(tensor: Tensor) -> Tensor:
    """A tensor that is whole already."""
    return tensor


def beside(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of `value` where the parameter is."""
    return value.to(parameter.device, copy=True)


class Optimizer:
    """AdamW whose groups come from the table of parameters.

    parameters: the trainable parameters by name; table: the spec of each. One group per (multiplier, decays). A
    parameter whose multiplier is 0 keeps its bits: its gradient counts in the norm, but it is in no group.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], table: Mapping[str, ParameterSpec], train: TrainConfig
    ) -> None:
        self.parameters = dict(parameters)
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            spec = table[name]
            if spec.lr_multiplier == 0:
                continue
            decays = train.decay_on == "all" or spec.decay
            groups.setdefault((spec.lr_multiplier, decays), []).append(parameter)
        self._multipliers = [multiplier for multiplier, _ in groups]
        self.adamw = torch.optim.AdamW(
            [
                {"params": members, "weight_decay": train.weight_decay if decays else 0.0}
                for (_, decays), members in groups.items()
            ],
            lr=train.lr,
            betas=train.betas,
            eps=train.eps,
            fused=all(p.device.type in FUSED_DEVICES for p in self.parameters.values()),
        )
        self._clip = train.clip

    def zero_grad(self) -> None:
        """Forget the gradients of the last update."""
        for parameter in self.parameters.values():  # also of those that AdamW does not know: they count in the norm
            parameter.grad = None

    def clip(self, whole: Callable[[Tensor], Tensor] = as_it_is) -> Tensor:
        """Norm of the whole gradient before clipping, a scalar on the device; clips when the config asks for it.

        whole: puts together what ranks hold parts of.
        """
        members = [p for p in self.parameters.values() if p.grad is not None]
        norm = whole(nn.utils.get_total_norm([p.grad for p in members if p.grad is not None]))
        if self._clip is not None:
            # Multiplies by exactly 1 when the norm is below the bound, so a bound that never bites leaves no trace.
            nn.utils.clip_grads_with_norm_(members, self._clip, norm)
        return norm

    def step(self, rate: float) -> None:
        """One update at learning rate `rate`."""
        for group, multiplier in zip(self.adamw.param_groups, self._multipliers, strict=True):
            group["lr"] = rate * multiplier
        self.adamw.step()

    def updates(self) -> int:
        """Updates done, by the optimizer's own count: independent of the loop that asked for them."""
        counts = [int(state["step"]) for state in self.adamw.state.values() if "step" in state]
        return max(counts, default=0)

    def state(self) -> dict[str, Tensor]:
        """Moments and step count of each parameter, as `NAME/exp_avg`, `NAME/exp_avg_sq`, `NAME/step`."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.adamw.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = value.detach()
        return found

    def load(self, state: Mapping[str, Tensor], copy: Callable[[Tensor, Tensor], Tensor] = beside) -> None:
        """Continue from what `state` returned. A parameter without moments never had a gradient.

        copy: makes of a parameter and a whole tensor what lies beside the parameter.
        """
        for full, value in state.items():
            name, _, key = full.rpartition("/")
            parameter = self.parameters[name]
            # The fused step wants its counter beside the parameter.
            self.adamw.state[parameter][key] = copy(parameter, value)


FUSED_DEVICES = ("cpu", "cuda", "mps")
"""Devices with a fused AdamW in torch 2.11 and later."""

"""How much of its cache a trained run needs: losses by kept part and policy, and the smallest memory at a loss.

    curve      loss with the same budget in every layer, for parts of the context
    uniform    the smallest such budget whose loss is at most the target, found by halving: this takes it that a larger
               budget is never worse
    by layer   the greedy procedure of Leviathan et al. 2024 (arXiv 2410.02703): every layer starts at the whole
               context; the layer whose budget can be lowered by a fixed step at the smallest loss is lowered; and
               again, until every step would exceed the target; then by half the step, and so on to single keys

Memory is that of the cache as `KVCache` counts it (votes and positions included), over that of standard attention's
keys and values of the whole context in the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from winnow.analysis.trained import Trained
from winnow.attention import Attention, PolicyConfig
from winnow.attention.prune import NoneConfig, budget_of
from winnow.study.distributions import student_upper
from winnow.study.noise import moments
from winnow.tasks.base import Validation
from winnow.train.evaluate import evaluate, held_out, pruned_ce

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Kept:
    """A way to prune one run, and what it comes to."""

    policy: str
    budgets: Mapping[str, int]
    """Keys that each layer keeps, by its path."""
    loss: float
    """Nats per token."""
    memory: float
    """Of the cache, as a part of the full one's; above 1 where nothing goes, for what votes and positions take."""

    @property
    def budget(self) -> float:
        """Keys, the mean over layers."""
        return sum(self.budgets.values()) / len(self.budgets)


class Pruner:
    """Measures a run with pruned caches on a fixed piece of its validation text. Nothing is measured twice."""

    def __init__(self, run: Trained, tokens: int | None = None) -> None:
        """tokens: of validation; None: what the run was evaluated on. Raises InputError where the text has fewer."""
        self.run = run
        self.validation: Validation = (
            held_out(run.task, run.config.evaluation) if tokens is None else run.task.validation(tokens)
        )
        self.context = run.config.task.context
        self.layers = [path for path, module in run.model.named_modules() if isinstance(module, Attention)]
        self.unpruned = evaluate(run.model, self.validation, CPU, "fp32")["val/ce"]
        """Nats per token."""
        self._known: dict[tuple[str, tuple[int, ...]], Kept] = {}

    def measure(self, policy: PolicyConfig, budgets: int | Mapping[str, int]) -> Kept:
        """The run under a budget of every layer, or of each. Raises InputError where the policy does not suit it."""
        given = budgets if isinstance(budgets, Mapping) else dict.fromkeys(self.layers, budgets)
        key = policy.digest(), tuple(given[layer] for layer in self.layers)
        if key not in self._known:
            cache = self.run.model.cache(1, self.context, given, policy)
            loss = pruned_ce(self.run.model, self.validation, CPU, "fp32", given, policy)
            self._known[key] = Kept(policy.kind, dict(given), loss, cache.bytes / cache.full_bytes)
        return self._known[key]

    def curve(self, policy: PolicyConfig, keeps: Iterable[float]) -> dict[float, Kept]:
        """What every part of the context comes to."""
        return {keep: self.measure(policy, budget_of(keep, self.context)) for keep in keeps}

    def uniform(self, policy: PolicyConfig, target: float) -> Kept | None:
        """The smallest budget of all layers whose loss is at most the target; None: even the full cache's is above."""
        if self.unpruned > target:
            return None
        below, enough = 0, self.context
        while enough - below > 1:
            middle = (below + enough) // 2
            if self.measure(policy, middle).loss <= target:
                enough = middle
            else:
                below = middle
        return self.measure(policy, enough)

    def by_layer(
        self, policy: PolicyConfig, target: float, step: int, said: Callable[[Kept], None] = lambda _: None
    ) -> Kept | None:
        """Budgets of the layers by the greedy procedure; None as of `uniform`.

        step: keys by which a budget is lowered at first, to 1 at the least. said: hears of every lowering.
        """
        if self.unpruned > target:
            return None
        found = self.measure(policy, self.context)
        while step:
            tried = [
                self.measure(policy, {**found.budgets, layer: max(1, budget - step)})
                for layer, budget in found.budgets.items()
                if budget > 1
            ]
            best = min(tried, key=lambda kept: kept.loss, default=None)
            if best is None or best.loss > target:
                step //= 2
                continue
            found = best
            said(found)
        return found


def suits(run: Trained, policy: PolicyConfig) -> bool:
    """Whether the run's mechanisms cast the votes that the policy goes by, if it does."""
    return not policy.needs_votes or run.config.grown.casts_votes


def policies_of(runs: Sequence[Trained]) -> list[PolicyConfig]:
    """Every policy that suits all runs, with its default options."""
    members = [member.model_validate({"kind": kind}) for kind, member in PolicyConfig.members.items()]
    return [
        policy
        for policy in members
        if isinstance(policy, PolicyConfig)
        and not isinstance(policy, NoneConfig)
        and all(suits(run, policy) for run in runs)
    ]


@dataclass(frozen=True)
class Summary:
    """A number of several seeds."""

    n: int
    mean: float
    sd: float
    """0 of one seed."""
    low: float
    high: float
    """Ends of the 95 % interval of the mean (Student); the mean itself of one seed."""


def ratio_summary(values: Sequence[float]) -> Summary:
    """Of ratios: geometric mean, and the interval of the logarithms turned back; sd is theirs."""
    logs = summary([math.log(value) for value in values])
    return Summary(logs.n, math.exp(logs.mean), logs.sd, math.exp(logs.low), math.exp(logs.high))


def summary(values: Sequence[float]) -> Summary:
    """Of one value or more."""
    n = len(values)
    if n == 1:
        return Summary(1, values[0], 0.0, values[0], values[0])
    mean, variance = moments(values)
    half = math.sqrt(variance / n) * student_upper(0.025, n - 1)
    return Summary(n, mean, math.sqrt(variance), mean - half, mean + half)

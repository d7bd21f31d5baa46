"""Policies of context pruning: which cached key goes when a layer holds more than its budget.

A layer with a budget of K keeps at most K keys from one token to the next; a query sees those and itself. After
query i, where K + 1 keys are held, the one with the highest priority goes for good: the oldest of equals, never the
newest.

    none    nothing goes
    window  the oldest but the first few ("sinks")                          Xiao et al. 2023 (arXiv 2309.17453)
    h2o     the one that got the least attention so far, summed over queries and heads, the recent ones apart
                                                                            Zhang et al. 2023 (arXiv 2306.14048)
    votes   the one with the largest F[i + 1], the votes of queries up to i Leviathan et al. 2024 (arXiv 2410.02703)
    anew    nothing goes: every query chooses the K - 1 earlier keys with the smallest F, and itself

A key's F is the mean over heads of the mask that each reads, as felt. Where nobody can vote against the first token of
a document, `votes` and `anew` part with it last. All heads of a layer keep the same keys (the published h2o evicts
head by head). `anew` needs every key in memory: it says what a perfect choice would cost, and saves nothing.

`drop_at` says for a whole sequence at once what decoding token by token would drop; both call `Policy.priority`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from winnow.config import Variant
from winnow.errors import InputError
from winnow.kernels.rule import Rule

Figure = Literal["nothing", "votes", "weights"]
"""What a policy goes by besides a key's age: F, or the attention that it got."""

EMPTY: Mapping[Figure, float] = {"votes": torch.inf, "weights": -torch.inf}
"""The figure of a cache's slot that holds no key."""


class Policy(ABC):
    """A policy at the budget of one layer."""

    goes_by: ClassVar[Figure]
    evicts: ClassVar[bool] = True
    """Whether keys go for good, so that the cache is smaller than the context."""
    hides: ClassVar[bool] = False
    """Whether a query may not see keys that are held."""

    bos_last: bool = False
    """Whether it parts with the first token of a document last."""

    def __init__(self, budget: int, slots: int) -> None:
        self.budget, self.slots = budget, slots

    @property
    def binds(self) -> bool:
        """Whether any query can see less than it would without."""
        return True

    @abstractmethod
    def priority(
        self,
        figure: Float[Tensor, "B *rows n"] | None,
        position: Int[Tensor, "*b n"],
        newest: int | Int[Tensor, "*of"],
    ) -> Float[Tensor, "*shape n"]:
        """How soon each key goes, highest first; a slot without a key (position -1, figure `EMPTY`) is the first.

        figure: what the policy goes by; position, newest: of the keys and of the latest query, in the sequence.
        """

    def hidden(
        self,
        figure: Float[Tensor, "B *rows n"] | None,
        position: Int[Tensor, "*b n"],
        newest: int | Int[Tensor, "*of"],
    ) -> Bool[Tensor, "B *rows n"]:
        """Keys that are held and that the newest query does not see."""
        raise AssertionError("nothing is hidden")


class PolicyConfig(Variant):
    """The family of policies."""

    needs_votes: ClassVar[bool] = False

    def build(self, budget: int, context: int, rule: Rule | None) -> Policy:
        """The policy of a layer for sequences of up to `context` tokens.

        A budget that no query can feel keeps everything. rule: of the layer's votes; None: it casts none. Raises
        InputError for a budget below 1, and where the policy goes by votes that nobody casts.
        """
        if budget < 1:
            raise InputError(f"a budget of {budget} keys", key="budget", mend="keep at least 1")
        if self.needs_votes and rule is None:
            raise InputError(
                f"policy {self.kind!r} goes by votes, and a layer without selection casts none",
                key="policy",
                mend="use window or h2o",
            )
        bos_last = rule is not None and rule.protect_bos
        return self.bound(budget, context, bos_last=bos_last) if self.binds(budget, context) else Everything(context)

    def binds(self, budget: int, context: int) -> bool:
        """Whether any query of `context` tokens feels the budget."""
        found = self.bound(budget, context, bos_last=False)
        # A query sees the budget and itself, or the budget with itself: the last one is the first to miss a key.
        return found.binds and budget < (context - 1 if found.evicts else context)

    @abstractmethod
    def bound(self, budget: int, context: int, *, bos_last: bool) -> Policy:
        """The policy at a budget below the context. bos_last: nobody can vote against the first token."""


class Everything(Policy):
    """Keeps all keys."""

    goes_by = "nothing"
    evicts = False

    def __init__(self, context: int) -> None:
        super().__init__(context, context)

    @property
    def binds(self) -> bool:
        return False

    def priority(self, figure: Tensor | None, position: Tensor, newest: int | Tensor) -> Tensor:
        raise AssertionError("nothing goes")


@final
class NoneConfig(PolicyConfig):
    """Keep everything, whatever the budget."""

    kind: Literal["none"] = "none"

    def bound(self, budget: int, context: int, *, bos_last: bool) -> Policy:
        return Everything(context)


@final
class WindowConfig(PolicyConfig):
    """The first few keys and the most recent ones."""

    kind: Literal["window"] = "window"
    sinks: int = Field(default=4, ge=0)
    """First keys that stay, at most budget - 1. 0: none."""

    def bound(self, budget: int, context: int, *, bos_last: bool) -> Policy:
        return Window(budget, min(self.sinks, budget - 1))


class Window(Policy):
    """See WindowConfig."""

    goes_by = "nothing"

    def __init__(self, budget: int, sinks: int) -> None:
        super().__init__(budget, budget + 1)
        self.sinks = sinks

    def priority(self, figure: Tensor | None, position: Tensor, newest: int | Tensor) -> Tensor:
        sink = (position >= 0) & (position < self.sinks)
        return (-position).float().masked_fill(sink, -torch.inf)  # the newest is the lowest of the others


@final
class H2OConfig(PolicyConfig):
    """Heavy hitters: the keys that got most attention, and the most recent ones."""

    kind: Literal["h2o"] = "h2o"
    recent: float = Field(default=0.5, ge=0.0, le=1.0)
    """Part of the budget that is for the most recent keys, one at least."""

    def bound(self, budget: int, context: int, *, bos_last: bool) -> Policy:
        return HeavyHitters(budget, max(1, int(budget * self.recent)))


class HeavyHitters(Policy):
    """See H2OConfig."""

    goes_by = "weights"

    def __init__(self, budget: int, recent: int) -> None:
        super().__init__(budget, budget + 1)
        self.recent = recent

    def priority(self, figure: Tensor | None, position: Tensor, newest: int | Tensor) -> Tensor:
        assert figure is not None
        # While there are fewer keys than `recent`, empty slots count as recent too, and are the oldest of equals.
        return torch.where(position > newest - self.recent, -torch.inf, -figure)


@final
class VotesConfig(PolicyConfig):
    """What selective attention is for: the key that was voted out furthest goes."""

    kind: Literal["votes"] = "votes"
    needs_votes = True

    def bound(self, budget: int, context: int, *, bos_last: bool) -> Policy:
        return Votes(budget, budget + 1, bos_last=bos_last)


class Votes(Policy):
    """See VotesConfig."""

    goes_by = "votes"

    def __init__(self, budget: int, slots: int, *, bos_last: bool) -> None:
        super().__init__(budget, slots)
        self.bos_last = bos_last

    def priority(self, figure: Tensor | None, position: Tensor, newest: int | Tensor) -> Tensor:
        assert figure is not None
        if self.bos_last:
            # Below every F, a leaky one too, and above the newest: a budget of 1 parts with the first token after all.
            figure = figure.masked_fill(position == 0, torch.finfo(figure.dtype).min)
        return figure.masked_fill(position == newest, -torch.inf)


@final
class AnewConfig(PolicyConfig):
    """Every query chooses its keys anew among all earlier ones: those least voted out."""

    kind: Literal["anew"] = "anew"
    needs_votes = True

    def bound(self, budget: int, context: int, *, bos_last: bool) -> Policy:
        return Anew(budget, context, bos_last=bos_last)


class Anew(Votes):
    """See AnewConfig."""

    evicts = False
    hides = True

    def hidden(self, figure: Tensor | None, position: Tensor, newest: int | Tensor) -> Tensor:
        """Nothing goes, so keys stand by age and a stable sort from the newest on spares the newer of equals."""
        assert figure is not None
        order = self.priority(figure, position, newest).masked_fill((position > newest) | (position < 0), torch.inf)
        kept = order.flip(-1).argsort(dim=-1, stable=True)[..., : self.budget]  # the newest has the lowest
        seen = torch.zeros_like(figure, dtype=torch.bool).scatter(-1, figure.shape[-1] - 1 - kept, value=True)
        return ~seen


def drop_at(
    policy: Policy, figures: Float[Tensor, "B *H T1 T"] | None, rows: int, n: int, device: torch.device
) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B T"] | None]:
    """For each of n keys of B sequences (`rows`) the first query that no longer sees it, n + 1 where query n would
    still; and, where the policy goes by them, the weights that each key has got.

    figures: where the policy goes by votes, F of n + 1 queries against the n keys; where it goes by weights, logits of
    all heads (B, H, n, n), -inf in the future; else None.
    """
    by_weights = policy.goes_by == "weights"
    B = 1 if figures is None else rows  # what goes by age alone is the same in every row
    position = torch.arange(n, device=device)
    dropped = torch.full((B, n), n + 1, device=device)
    gone = torch.zeros(B, n, dtype=torch.bool, device=device)
    weights = figures.new_zeros(B, n) if by_weights and figures is not None else None
    for i in range(0 if by_weights else policy.budget, n):
        known, figure = i + 1, None
        if weights is not None and figures is not None:
            row = figures[:, :, i, :known].masked_fill(gone[:, None, :known], -torch.inf)
            weights[:, :known] += row.softmax(-1).sum(1)
            figure = weights[:, :known]
        elif figures is not None:
            figure = figures[:, i + 1, :known]
        if i < policy.budget:
            continue
        order = policy.priority(figure, position[:known], i).masked_fill(gone[:, :known], -torch.inf)
        first = order.argmax(-1, keepdim=True)  # the oldest of equals
        gone.scatter_(1, first, value=True)
        dropped.scatter_(1, first, i + 1)
    return dropped.expand(rows, n), weights


def mean_over_heads(masks: Float[Tensor, "B M *rows n"], rule: Rule) -> Float[Tensor, "B *rows n"]:
    """What a key's F comes to for the layer: the mean over heads of the mask that each reads."""
    if masks.shape[1] == 1:
        return masks[:, 0]
    return masks[:, list(rule.spread)].mean(1)


def budget_of(keep: float, context: int) -> int:
    """Keys that a fraction of the context is: max(1, floor(context * keep)). Raises InputError for no fraction."""
    if not 0 < keep <= 1:
        raise InputError(f"{keep} is no part of the context", key="keep", mend="above 0, at most 1")
    return max(1, int(context * keep + 1e-9))  # 0.29 of 100 is 29

"""What decoding remembers: keys, values and the standing of each key, in slots whose number never changes.

`LayerCache` is one layer's. A step writes the new token's key into the slot that the policy frees for it (an empty one
first), looks at every key that is held, and adds the new query's votes. All tensors keep their shapes and places, so a
step can be compiled, and captured in a CUDA graph. `KVCache` is a model's: one layer's each, by module path.

A key that goes leaves when its slot is written next: until then nothing looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from winnow.attention.prune import EMPTY, Policy, mean_over_heads
from winnow.kernels.decode_cpu import BoundStep, Slots, Voters, suits
from winnow.kernels.reference import Pairs, accumulating_dtype, add_votes, per_head, products
from winnow.kernels.rule import Rule


class LayerCache:
    """The keys that one layer holds, in S slots; those of `budget` keys and of the newest, or of the context."""

    def __init__(
        self,
        policy: Policy,
        rule: Rule | None,
        *,
        batch: int,
        n_kv_heads: int,
        n_selectors: int,
        d_head: int,
        dtype: torch.dtype,
        device: torch.device,
        voters: Voters | None = None,
    ) -> None:
        """rule: of the layer's votes; None: it casts none. voters: as of `Attention.voters`."""
        B, S = batch, policy.slots
        self.policy, self.rule, self.n_kv_heads = policy, rule, n_kv_heads
        self.k = torch.zeros(B, n_kv_heads + n_selectors, S, d_head, dtype=dtype, device=device)
        """Keys, those of dedicated selectors last."""
        self.v = torch.zeros(B, n_kv_heads, S, d_head, dtype=dtype, device=device)
        self.position = torch.full((B, S), -1, dtype=torch.int32, device=device)
        """Of each key in the sequence; -1: the slot is empty."""
        self.newest = torch.full((), -1, dtype=torch.int32, device=device)
        """Position of the last token."""
        self.slot = torch.zeros(B, 1, dtype=torch.int64, device=device)
        """Where the newest key lies."""
        self.votes: Tensor | None = None
        """(B, M, S) F, nats, before `relu_after`; +inf in empty slots."""
        self.shields: Tensor | None = None
        """(B, M, S) protection that is left, nats, where the rule protects."""
        self.weights: Tensor | None = None
        """(B, S) attention that each key got, over queries and heads, where the policy goes by it; -inf if empty."""
        if rule is not None:
            accumulate = accumulating_dtype(rule, dtype)
            of_masks = (B, rule.n_masks, S)
            self.votes = torch.full(of_masks, EMPTY["votes"], dtype=accumulate, device=device)
            if rule.protection != "none":
                self.shields = torch.zeros(of_masks, dtype=accumulate, device=device)
        if policy.goes_by == "weights":
            self.weights = torch.full((B, S), EMPTY["weights"], dtype=dtype, device=device)
        self._bound = self._compiled(voters)

    def _compiled(self, voters: Voters | None) -> BoundStep | None:
        """The compiled step, where it can do what is wanted here."""
        policy, rule, votes = self.policy, self.rule, self.votes
        if rule is None or votes is None or voters is None or policy.hides:
            return None
        if policy.evicts and policy.goes_by != "votes":
            return None
        slots = Slots(self.k, self.v, votes, self.position, self.newest, self.slot)
        if not suits(slots, rule):
            return None
        return BoundStep(slots, rule, voters, evicts=policy.evicts, bos_last=policy.bos_last)

    @property
    def state(self) -> list[Tensor]:
        """Every tensor that is remembered for each slot."""
        kept = (self.k, self.v, self.position, self.votes, self.shields, self.weights)
        return [tensor for tensor in kept if tensor is not None]

    @property
    def bytes(self) -> int:
        """Of all slots of all rows."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.state)

    @property
    def keys(self) -> Float[Tensor, "B S KS D"]:
        """Of every slot, as mechanisms take keys."""
        return self.k.transpose(1, 2)

    @property
    def held(self) -> Bool[Tensor, "B 1 1 S"]:
        """Slots with a key."""
        return (self.position >= 0)[:, None, None]

    def write(self, k: Float[Tensor, "B 1 KS D"], v: Float[Tensor, "B 1 K D"]) -> None:
        """Make room for the next token and put its key and value there; nobody has voted against it."""
        if self._bound is not None and not torch.compiler.is_compiling():
            self._bound.write(k, v)
            return
        slot = self.newest.long().add(1).expand_as(self.slot) if not self.policy.evicts else self._room()
        self.newest += 1
        self.slot.copy_(slot)
        B, KS, _, D = self.k.shape
        at = slot[:, None, :, None]
        self.k.scatter_(2, at.expand(B, KS, 1, D), k.transpose(1, 2).to(self.k.dtype))
        self.v.scatter_(2, at.expand(B, self.n_kv_heads, 1, D), v.transpose(1, 2).to(self.v.dtype))
        self.position.scatter_(1, slot, self.newest.expand_as(slot))
        for tensor in (self.votes, self.shields):
            if tensor is not None:
                tensor.scatter_(2, slot[:, None].expand(B, tensor.shape[1], 1), 0.0)
        if self.weights is not None:
            self.weights.scatter_(1, slot, 0.0)

    def _room(self) -> Int[Tensor, "B 1"]:
        """The slot that the policy frees: an empty one first, then that of the oldest key of the highest priority."""
        order = self.policy.priority(self._figure(), self.position, self.newest)
        highest = order == order.amax(-1, keepdim=True)
        return torch.where(highest, self.position, torch.iinfo(torch.int32).max).argmin(-1, keepdim=True)

    def _figure(self) -> Float[Tensor, "B S"] | None:
        if self.policy.goes_by == "weights":
            return self.weights
        felt = self._felt() if self.policy.goes_by == "votes" else None
        return None if felt is None or self.rule is None else mean_over_heads(felt, self.rule)

    def _felt(self) -> Float[Tensor, "B M S"] | None:
        return self.votes.relu() if self.votes is not None and self.rule and self.rule.relu_after else self.votes

    def attend_and_vote(self, q: Float[Tensor, "B 1 HS D"]) -> Float[Tensor, "B 1 H D"] | None:
        """`attend` and `vote` by the compiled kernel; None where there is none for this cache."""
        if self._bound is None or torch.compiler.is_compiling():
            return None
        return self._bound.look(q)

    def attend(
        self, q: Float[Tensor, "B 1 H D"], hidden: Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B 1 H D"]:
        """What the newest query, of the ordinary heads, makes of the keys that are held: softmax(q.k / sqrt(D) - F) v.

        hidden: keys that it does not see, besides those that the policy hides.
        """
        k = self.k if self.k.shape[1] == self.n_kv_heads else self.k[:, : self.n_kv_heads]
        if self.weights is not None:
            return self.weigh(products(q, k.transpose(1, 2)), hidden)
        bias = self._bias(q.dtype, hidden)
        shared = q.shape[2] != self.n_kv_heads
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, self.v, attn_mask=bias, enable_gqa=shared)
        return out.transpose(1, 2)

    def weigh(
        self, scores: Float[Tensor, "B H 1 S"], hidden: Bool[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B 1 H D"]:
        """`attend` from the scores of the heads, before F is subtracted."""
        weights = (scores + self._bias(scores.dtype, hidden)).softmax(-1)
        if self.weights is not None:
            self.weights += weights.sum((1, 2))
        return (weights @ per_head(self.v.transpose(1, 2), scores.shape[1]).transpose(1, 2)).transpose(1, 2)

    def _bias(self, dtype: torch.dtype, hidden: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B H1 1 S"]:
        """Added to the scores: -F, and -inf where there is no key to see."""
        felt = self._felt()
        if felt is None or self.rule is None:
            bias = torch.zeros_like(self.position, dtype=dtype).masked_fill(self.position < 0, -torch.inf)[:, None]
        else:
            bias = (felt if felt.shape[1] == 1 else felt[:, list(self.rule.spread)]).neg().to(dtype)
        if self.policy.hides:
            unseen = self.policy.hidden(self._figure(), self.position, self.newest)
            hidden = unseen if hidden is None else hidden | unseen
        return (bias if hidden is None else bias.masked_fill(hidden[:, None], -torch.inf)).unsqueeze(2)

    def vote(self, raw: Float[Tensor, "B M 1 S"], protectors: Float[Tensor, "B M1 1 S"] | None) -> None:
        """Add the newest query's votes: queries from the next on feel them. raw: its masks' scores of every slot."""
        assert self.votes is not None
        assert self.rule is not None
        held = self.held
        votable = held
        if self.rule.protect_bos:
            votable = votable & (self.position != 0)[:, None, None]
        if not self.rule.allow_self_masking:
            votable = votable & (self.position != self.newest)[:, None, None]
        add_votes(self.votes, self.shields, raw, protectors, Pairs(held, votable), self.rule)

    def fill(
        self,
        k: Float[Tensor, "B T KS D"],
        v: Float[Tensor, "B T K D"],
        standing: Standing,
        kept: Bool[Tensor, "B T"] | None,
    ) -> None:
        """Take over a whole beginning at once. kept: keys that a further query still sees, as many in every row; None:
        all."""
        B, T = k.shape[:2]
        held = torch.arange(T, device=k.device).expand(B, T)
        if kept is not None:
            held = held[kept].view(B, -1)
        n = held.shape[1]
        self.newest.fill_(T - 1)
        self.slot.fill_(n - 1)
        self.position[:, :n] = held
        at = held[:, None, :, None]
        for whole, part in ((k, self.k), (v, self.v)):
            part[:, :, :n] = whole.transpose(1, 2).gather(2, at.expand(B, part.shape[1], n, part.shape[3]))
        for whole, part in ((standing.votes, self.votes), (standing.shields, self.shields)):
            if whole is not None and part is not None:
                part[:, :, :n] = whole.gather(2, held[:, None].expand(B, part.shape[1], n))
        if standing.weights is not None and self.weights is not None:
            self.weights[:, :n] = standing.weights.gather(1, held)


@dataclass(frozen=True)
class Standing:
    """What each of T keys has come to, as `LayerCache` keeps it."""

    votes: Float[Tensor, "B M T"] | None = None
    shields: Float[Tensor, "B M T"] | None = None
    weights: Float[Tensor, "B T"] | None = None


@dataclass(frozen=True)
class KVCache:
    """What a model remembers of a batch of sequences."""

    layers: Mapping[str, LayerCache]
    """Of each attention layer, by its path in the model."""
    context: int
    """Tokens that a sequence may have."""
    full_bytes: int
    """Of standard attention's cache of the whole context: keys and values alone, in the same dtype."""

    @property
    def length(self) -> Int[Tensor, ""]:
        """Tokens so far."""
        return next(iter(self.layers.values())).newest + 1

    @property
    def bytes(self) -> int:
        """Of all layers."""
        return sum(layer.bytes for layer in self.layers.values())

"""What every attention mechanism is: a config that builds a module, and the module's contract.

A mechanism maps the residual stream's normalised input x (B, T, C) to what is added to the stream. It takes
`(x, state)` and returns `Mixed(y, aux)`. It never looks at tokens after the query nor at other documents.
docs/mechanisms.md says how to add one; tests/attention/test_contract.py runs over every registered kind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from winnow.attention.cache import LayerCache, Standing
from winnow.attention.prune import Policy, PolicyConfig, drop_at, mean_over_heads
from winnow.attention.rope import Rotary
from winnow.config import Variant
from winnow.errors import InputError
from winnow.kernels.decode_cpu import Voters
from winnow.kernels.linear import Linear
from winnow.kernels.reference import per_head
from winnow.kernels.rule import Rule
from winnow.parameters import head_slices, spec

BYTES_PER_STATE_ELEMENT = 4
"""Decoding state is counted in fp32."""

PAIRS_AT_ONCE = 1 << 25
"""Scores of heads formed at a time in pruned attention over whole rows; at least one row's."""


@dataclass(frozen=True)
class Shape:
    """The place a mechanism is built for."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    """Heads of keys and values; each serves n_heads / n_kv_heads consecutive query heads."""
    d_head: int
    layer: int
    """Index of this layer, from 0."""
    n_layers: int
    max_seq_len: int
    """Longest sequence, tokens."""
    bias: bool
    """Whether the projections add biases."""
    rotary: bool
    """Whether queries and keys are turned by their positions."""


@dataclass(frozen=True)
class MixerState:
    """What a mechanism knows besides x. All but `previous` is the same for all layers of one forward pass."""

    positions: Int[Tensor, "B T"] | None = None
    """Position of each token in its document; None: 0, 1, ... in every row."""
    documents: Int[Tensor, "B T"] | None = None
    """Document of each token, equal and adjacent within a document; None: each row is one document."""
    starts: Int[Tensor, "B T"] | None = None
    """Index in its row of the first token of each token's document, int32; None: 0."""
    previous: Mapping[str, Tensor] = field(default_factory=dict)
    """What the layer below handed on: its `aux`. Empty in the first layer."""

    @property
    def visible(self) -> Bool[Tensor, "B 1 T T"] | None:
        """Whether query i may see key j, with documents; None: j <= i. Formed anew each time."""
        return None if self.starts is None else visible_pairs(self.starts.shape[1], self.starts, self.starts.device)

    def row(self, b: int) -> MixerState:
        """The state of one row of the batch."""
        positions, documents, starts = (
            None if t is None else t[b : b + 1] for t in (self.positions, self.documents, self.starts)
        )
        previous = {name: t[b : b + 1] for name, t in self.previous.items() if t.dim()}  # a penalty is no row's
        return MixerState(positions, documents, starts, previous)


def visible_pairs(n_tokens: int, starts: Int[Tensor, "B T"] | None, device: torch.device) -> Bool[Tensor, "#B 1 T T"]:
    """Whether query i may see key j: not the future, nor what lies before the query's document."""
    index = torch.arange(n_tokens, device=device)
    earlier = (index[:, None] >= index)[None, None]
    return earlier if starts is None else earlier & (index >= starts[:, None, :, None])


def mixer_state(documents: Int[Tensor, "B T"] | None) -> MixerState:
    """The state of a forward pass over whole rows. Positions restart with each document."""
    if documents is None:
        return MixerState()
    T = documents.shape[1]
    index = torch.arange(T, device=documents.device)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    start = torch.where(first, index, 0).cummax(dim=1).values
    return MixerState(positions=index - start, documents=documents, starts=start.to(torch.int32))


class Mixed(NamedTuple):
    """A mechanism's answer."""

    y: Float[Tensor, "B T C"]
    """Added to the residual stream."""
    aux: Mapping[str, Tensor]
    """What a loss or a later layer needs of the inside, by name; empty for most.

    "penalty", an fp32 scalar: added to the training loss as it is. A mean over the rows, computed only while training.
    """


class Definition(NamedTuple):
    """What a mechanism must come to for one document, in fp64, of plain loops."""

    heads: Float[Tensor, "T H D"]
    """As of `oracle`."""
    masks: Float[Tensor, "M T T"] | None = None
    """What is subtracted from scores, nats, 0 in the future; None: the mechanism subtracts nothing."""
    penalty: Float[Tensor, ""] | None = None
    """`aux["penalty"]`; None: the mechanism has none, or does not say how it is made."""
    rounding: float = 1e-3
    """Largest part of a result that rounding in fp32 explains."""


class Inside(NamedTuple):
    """How heads come to weigh keys: weights = softmax over the visible keys of scores - masks[spread].

    In nats, by query and key; of meaning on visible pairs alone.
    """

    scores: Float[Tensor, "B H T T"]
    """Before anything is subtracted."""
    masks: Float[Tensor, "B M T T"] | None = None
    """F: what each query feels of earlier votes; None: nothing is subtracted."""
    votes: Float[Tensor, "B M T T"] | None = None
    """S: what each query casts against each key; later queries feel it."""
    protection: Float[Tensor, "B M T T"] | None = None
    """p: how much each query protects each key from later votes; None: nothing protects, F is the sum of votes."""
    spread: tuple[int, ...] = ()
    """The mask that each head reads."""


class AttentionConfig(Variant):
    """The family of mechanisms. A member is a frozen config with `kind` and `build`."""

    @property
    def casts_votes(self) -> bool:
        """Whether its modules vote against keys: see `Attention.voting`."""
        return False

    @property
    def needs_all_keys(self) -> bool:
        """Whether no layer may drop a key: see `Attention.needs_all_keys`."""
        return False

    def fits(self, shape: Shape) -> None:
        """Raises InputError, with the key below this table, where the mechanism cannot be built for such sizes.

        Asked when a model's config is made, so `layer` and `max_seq_len` are those of no layer in particular.
        """

    def follow(self, places: Sequence[int | None], n_heads: int) -> AttentionConfig:
        """This mechanism after surgery on its heads, which were `n_heads`: what each old head reads stays as it was.

        places: of each head after it, the head it was before; None: it is new. Raises InputError where that cannot be.
        """
        return self

    @abstractmethod
    def build(self, shape: Shape) -> Attention:
        """A module with uninitialised parameters."""


class Attention(nn.Module):
    """A mechanism with heads: fused projection to q, k, v, a mixing rule, an output projection."""

    def __init__(self, shape: Shape, n_selectors: int = 0) -> None:
        """`n_selectors` more heads are projected to queries and keys alone: they have no values and no output."""
        super().__init__()
        self.shape = shape
        self.n_selectors = n_selectors
        H, K, D = shape.n_heads, shape.n_kv_heads, shape.d_head
        names = (
            *(f"q.{head}" for head in range(H)),
            *(f"qs.{head}" for head in range(n_selectors)),
            *(f"k.{head}" for head in range(K)),
            *(f"ks.{head}" for head in range(n_selectors)),
            *(f"v.{head}" for head in range(K)),
        )
        width = len(names) * D
        self.qkv = Linear(
            shape.d_model,
            width,
            bias=shape.bias,
            weight_spec=spec("matrix", shape.d_model, width, slices=head_slices(names, D, 0)),
        )
        outputs = head_slices(tuple(f"o.{head}" for head in range(H)), D, 1)
        self.out = Linear(
            H * D,
            shape.d_model,
            bias=shape.bias,
            weight_spec=spec("residual", H * D, shape.d_model, slices=outputs, n_layers=shape.n_layers),
        )
        self.rotary = Rotary(D, shape.max_seq_len) if shape.rotary else None

    def project(
        self, x: Float[Tensor, "B T C"], state: MixerState
    ) -> tuple[Float[Tensor, "B T HS D"], Float[Tensor, "B T KS D"], Float[Tensor, "B T K D"]]:
        """Queries, keys and values, selectors last; queries and keys are already turned where positions are rotary."""
        H, K, S = self.shape.n_heads, self.shape.n_kv_heads, self.n_selectors
        qkv = self.qkv(x).unflatten(-1, (H + 2 * K + 2 * S, self.shape.d_head))
        q, k, v = qkv.split((H + S, K + S, K), dim=2)
        if self.rotary is None:
            return q, k, v
        return self.rotary(q, state.positions), self.rotary(k, state.positions), v

    def forward(self, x: Float[Tensor, "B T C"], state: MixerState) -> Mixed:
        q, k, v = self.project(x, state)
        heads, aux = self.mix(q, k, v, state)
        return Mixed(self.out(heads.flatten(2)), aux)

    @abstractmethod
    def mix(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B T K D"],
        v: Float[Tensor, "B T K D"],
        state: MixerState,
    ) -> tuple[Float[Tensor, "B T H D"], Mapping[str, Tensor]]:
        """The mechanism itself: the output of every head, and aux."""

    def measure(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B T K D"],
        v: Float[Tensor, "B T K D"],
        state: MixerState,
    ) -> Mapping[str, float]:
        """Figures of the inside that are worth a curve, by name. Called without gradients; changes nothing."""
        return {}

    def masks(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B T K D"],
        state: MixerState,
    ) -> Float[Tensor, "B M T T"] | None:
        """What `mix` subtracts from scores, nats, by mask, query and key; None: it subtracts nothing. For the health
        watch, which compares it with `definition`."""
        return None

    def inside(
        self,
        q: Float[Tensor, "B T H D"],
        k: Float[Tensor, "B T K D"],
        state: MixerState,
    ) -> Inside | None:
        """What people look at: scores and masks apart, with their causes; None: the mechanism does not say."""
        return None

    def definition(
        self,
        q: Float[Tensor, "T H D"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
        previous: Mapping[str, Tensor],
    ) -> Definition:
        """Everything that can be said of `mix` for one document, token by token, for fp64: what every run compares its
        own mechanisms with. previous: what the layer below handed on, of this document.

        A mechanism that subtracts masks, has a penalty or uses `previous` says more than the outputs.
        """
        return Definition(self.oracle(q, k, v))

    @property
    def voting(self) -> Rule | None:
        """How votes become masks on the scores; None: the mechanism casts none."""
        return None

    @property
    def voters(self) -> Voters | None:
        """Of each mask, the heads of q and of k (dedicated ones last) whose product votes; None: no such heads."""
        return None

    @property
    def needs_all_keys(self) -> bool:
        """Whether scores of the layer below are read, key by key: then no layer may drop any."""
        return False

    def cache(self, batch: int, budget: int, context: int, policy: PolicyConfig) -> LayerCache:
        """An empty cache of `budget` keys for sequences of up to `context` tokens.

        Raises InputError for a budget below 1 and for a policy that does not suit the mechanism.
        """
        weight, built = self.qkv.weight, policy.build(budget, context, self.voting)
        if self.needs_all_keys and built.binds:
            raise InputError(
                "residual scores: the layer below may have dropped other keys",
                key="budget",
                mend="decode with the full cache",
            )
        return LayerCache(
            built,
            self.voting,
            batch=batch,
            n_kv_heads=self.shape.n_kv_heads,
            n_selectors=self.n_selectors,
            d_head=self.shape.d_head,
            dtype=weight.dtype,
            device=weight.device,
            voters=self.voters,
        )

    @torch.no_grad()
    def step(self, x: Float[Tensor, "B 1 C"], cache: LayerCache, state: MixerState) -> Mixed:
        """`forward` of the next token of every row, without gradients: its key enters the cache, and what the policy
        parts with leaves it. `state.positions` says where it stands; `state.previous` is of this token too."""
        q, k, v = self.project(x, state)
        cache.write(k, v)
        heads, aux = self.look(q, cache, state)
        return Mixed(self.out(heads.flatten(2)), aux)

    def look(
        self, q: Float[Tensor, "B 1 H D"], cache: LayerCache, state: MixerState
    ) -> tuple[Float[Tensor, "B 1 H D"], Mapping[str, Tensor]]:
        """`mix` for the newest token alone, whose key is in the cache: the output of every head, and aux.

        Raises InputError where the mechanism does not say how.
        """
        raise InputError(f"{type(self).__name__} does not decode token by token", mend="give it `look`")

    @torch.no_grad()
    def prefill(self, x: Float[Tensor, "B T C"], cache: LayerCache, state: MixerState) -> Mixed:
        """`step` over the first tokens of every row at once, in an empty cache.

        Where the cache cannot hold them all, each query sees what it would see then. This is how a pruned model is
        evaluated, too. Raises InputError for several documents.
        """
        if state.documents is not None:
            raise InputError("a cache holds one document per row", mend="give each document a row of its own")
        q, k, v = self.project(x, state)
        kept = weights = None
        standing = Standing() if self.voting is None else self.standing(q, k, state)
        if cache.policy.binds:
            with torch.autocast(q.device.type, enabled=False):
                heads, kept, weights = self._pruned(q, k, v, cache.policy, state, standing.votes)
            aux: Mapping[str, Tensor] = {}
        else:
            heads, aux = self.mix(q, k, v, state)
        cache.fill(k, v, Standing(standing.votes, standing.shields, weights), kept)
        return Mixed(self.out(heads.flatten(2)), aux)

    def _pruned(
        self,
        q: Float[Tensor, "B T HS D"],
        k: Float[Tensor, "B T KS D"],
        v: Float[Tensor, "B T K D"],
        policy: Policy,
        state: MixerState,
        votes: Float[Tensor, "B M T"] | None,
    ) -> tuple[Float[Tensor, "B T H D"], Bool[Tensor, "B T"] | None, Float[Tensor, "B T"] | None]:
        """The heads, which keys a further query still sees (None: all), and the weights that each key has got, where
        the policy goes by them. votes: of `standing`."""
        B, T = q.shape[:2]
        wide = self.shape.n_heads if policy.goes_by == "weights" else 1 if self.voting is None else self.voting.n_masks
        at_once = max(1, PAIRS_AT_ONCE // (wide * T * T))
        index = torch.arange(T, device=q.device)
        found: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for rows in (slice(first, first + at_once) for first in range(0, B, at_once)):
            masks, weights = self.masks(q[rows], k[rows], state), None
            felt = None
            if policy.goes_by == "votes":
                assert masks is not None
                assert votes is not None
                felt = self._felt(masks, votes[rows])
            if policy.hides:
                seen = ~policy.hidden(None if felt is None else felt[:, :T], index, index[:, None])
                kept = torch.ones_like(seen[:, 0])
            else:
                logits = self.logits(q[rows], k[rows], masks) if policy.goes_by == "weights" else None
                dropped, weights = drop_at(policy, felt if logits is None else logits, len(q[rows]), T, q.device)
                seen, kept = index[:, None] < dropped[:, None], dropped > T
            found.append((self.see(q[rows], k[rows], v[rows], masks, seen), kept, weights))
        heads, kept, weights = zip(*found, strict=True)
        return torch.cat(heads), torch.cat(kept), torch.cat(weights) if weights[0] is not None else None

    def _felt(self, masks: Float[Tensor, "B M T T"], votes: Float[Tensor, "B M T"]) -> Float[Tensor, "B T1 T"]:
        """F of T queries and of one further, the mean over heads."""
        rule = self.voting
        assert rule is not None
        last = votes.relu() if rule.relu_after else votes
        return mean_over_heads(torch.cat((masks, last[:, :, None].to(masks.dtype)), 2), rule)

    def see(
        self,
        q: Float[Tensor, "B T HS D"],
        k: Float[Tensor, "B T KS D"],
        v: Float[Tensor, "B T K D"],
        masks: Float[Tensor, "B M T T"] | None,
        seen: Bool[Tensor, "B T T"],
    ) -> Float[Tensor, "B T H D"]:
        """`mix` where a query sees some of the keys up to itself alone. masks: of `masks`."""
        shares = self.logits(q, k, masks).masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        values = per_head(v, self.shape.n_heads).transpose(1, 2).to(shares.dtype)
        return (shares @ values).transpose(1, 2).to(v.dtype)

    def logits(
        self,
        q: Float[Tensor, "B T HS D"],
        k: Float[Tensor, "B T KS D"],
        masks: Float[Tensor, "B M T T"] | None,
    ) -> Float[Tensor, "B H T T"]:
        """What `mix` takes the softmax of, head by head; -inf where a query does not see a key. One document per row.

        masks: of `masks`. Raises InputError where the mechanism does not say how: then it cannot be pruned.
        """
        raise InputError(f"{type(self).__name__} cannot be pruned", mend="give it `logits`")

    def standing(self, q: Float[Tensor, "B T HS D"], k: Float[Tensor, "B T KS D"], state: MixerState) -> Standing:
        """What has piled up against each key after the last query. Asked only of mechanisms that cast votes."""
        raise InputError(f"{type(self).__name__} does not decode token by token", mend="give it `standing`")

    @abstractmethod
    def oracle(
        self,
        q: Float[Tensor, "T H D"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
    ) -> Float[Tensor, "T H D"]:
        """The heads that `mix` makes of one document, token by token in plain loops, for fp64."""

    @abstractmethod
    def flops_per_token(self, context: int) -> int:
        """Forward and backward floating-point operations of `mix` per token of a sequence of `context` tokens.

        Every key of the context is counted for every query, masked or not (as Chowdhery et al. 2022, appendix B).
        """

    @abstractmethod
    def state_bytes(self, n_tokens: int) -> int:
        """Bytes that decoding keeps for one sequence of `n_tokens` tokens, in fp32."""

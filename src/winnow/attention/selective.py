"""Selective attention: causal softmax attention with the selection's masks subtracted from the heads' scores.

    A_h = q_h . k_h / sqrt(D)                     raw scores, nats
    F   = accumulate(gate(scores of A))           votes of earlier queries: winnow.attention.selection
    P_h = softmax(A_h - F_spread[h]),  y = P v

With the defaults head 0 selects, keeps its ordinary output as well, and all heads read one mask. Source: Leviathan,
Kalman, Matias 2024 (arXiv 2410.02703), section 3; every variant: docs/selective.md.

`winnow.kernels.selective_attention` computes it on whatever backend is fastest here. Which one is no option of the
mechanism: backends agree, so it cannot change what an experiment says; a run's record names the one that was used.

A token that was voted out by many queries gets a weight below 1e-38, where CPUs compute tens of times slower
(denormals): the trainer flushes those to 0 in every thread, and so must a loop of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from winnow.attention.base import (
    BYTES_PER_STATE_ELEMENT,
    Attention,
    Definition,
    Inside,
    MixerState,
    Shape,
    visible_pairs,
)
from winnow.attention.cache import LayerCache, Standing
from winnow.attention.selection import (
    ProtectConfig,
    Shield,
    spread_over,
)
from winnow.attention.selective_config import SelectiveConfig
from winnow.attention.selective_inside import RowFigures, figures_of_batch, figures_of_row
from winnow.attention.selective_oracle import Spelt, penalty_of_row, token_by_token
from winnow.attention.selectors import Selector
from winnow.attention.softmax import causal_scores, kv_bytes, seeing, softmax_attention, softmax_flops_per_token
from winnow.kernels.decode_cpu import Voters
from winnow.kernels.reference import attend, forgotten, pairs, piled_up, products, protections, votes
from winnow.kernels.rule import Rule
from winnow.kernels.selective import selection_usage, selective_attention
from winnow.parameters import declare, head_slices, spec


@final
class SelectiveAttention(Attention):
    """See the module's equation."""

    residual: nn.Parameter | None
    shares: Tensor

    def __init__(self, config: SelectiveConfig, shape: Shape) -> None:
        H = shape.n_heads
        # Options are read only where they act: one without effect must be seen as never read.
        super().__init__(shape, config.scores.dedicated(H) if config.selection else 0)
        self.selection = config.selection
        self.penalty = config.penalty if config.selection else None
        self.residual_scores = config.selection and config.residual_scores
        self.register_parameter("residual", None)
        if not config.selection:
            return
        self.selector = config.scores.build(shape)
        self.protector: Selector | None = None
        shield, scale, bias = Shield("none"), 1.0, 0.0
        if isinstance(config.accumulate, ProtectConfig):
            self.protector = config.accumulate.source.build(shape)
            shield, scale, bias = config.accumulate.source.shield(), config.accumulate.scale, config.accumulate.bias
        self.rule = Rule(
            spread=spread_over(config.spread, config.scores.masks(H), H),
            leak=config.gate.leak,
            relu_after=config.gate.relu_after,
            protect_bos=config.protect_bos,
            allow_self_masking=config.allow_self_masking,
            protection=shield.kind,
            protection_slope=shield.slope,
            protection_offset=shield.offset,
            protection_scale=scale,
            protection_bias=bias,
            algorithm=config.accumulate.algorithm,
            accumulate=config.accumulate.dtype,
        )
        if self.penalty is not None:
            self.penalty_weight = self.penalty.epsilon / shape.n_layers
            self.tau, self.form = self.penalty.tau, self.penalty.form
            shares = [self.rule.spread.count(mask) / H for mask in range(self.rule.n_masks)]
            self.register_buffer("shares", torch.tensor(shares), persistent=False)
        if self.residual_scores and shape.layer > 0:
            rows = head_slices(tuple(f"a.{head}" for head in range(H)), 1, 0)
            columns = head_slices(tuple(f"of.{head}" for head in range(H)), 1, 1)
            declare(self, "residual", (H, H), replace(spec("mixing", H, H, slices=rows), across=columns))

    def mix(
        self,
        q: Float[Tensor, "B T HS D"],
        k: Float[Tensor, "B T KS D"],
        v: Float[Tensor, "B T K D"],
        state: MixerState,
    ) -> tuple[Float[Tensor, "B T H D"], Mapping[str, Tensor]]:
        if not self.selection:
            return softmax_attention(q, k, v, state), {}
        tau = self.tau if self.penalty is not None and self.training else None
        aux: dict[str, Tensor] = {}
        if self.residual_scores:
            with torch.autocast(q.device.type, enabled=False):  # scores of several layers add up in them
                scores, raw, protectors = self._explicit(q, k, state)
                out, usage = attend(scores, raw, protectors, v, self.rule, state.starts, tau)
            if self.shape.layer + 1 < self.shape.n_layers:
                aux["scores"] = scores
        else:
            select, protect = self._operands(q, k)
            q, k = q[:, :, : self.shape.n_heads], k[:, :, : self.shape.n_kv_heads]
            if tau is None:
                out = selective_attention(q, k, v, select=select, protect=protect, rule=self.rule, starts=state.starts)
                return out, aux
            out, usage = selection_usage(
                q, k, v, select=select, protect=protect, rule=self.rule, starts=state.starts, tau=tau
            )
        if tau is not None:
            aux["penalty"] = self._penalty(usage, state)
        return out, aux

    def _operands(
        self, q: Float[Tensor, "B T HS D"], k: Float[Tensor, "B S KS D"]
    ) -> tuple[int | tuple[Tensor, Tensor], int | tuple[Tensor, Tensor] | None]:
        """What a kernel selects and protects with."""
        H, K = self.shape.n_heads, self.shape.n_kv_heads
        parts = q[:, :, :H], k[:, :, :K], q[:, :, H:], k[:, :, K:]
        select = self.selector.operands(*parts)
        if self.protector is None:
            return select, None
        return select, self.protector.operands(*parts)

    @property
    def voting(self) -> Rule | None:
        return self.rule if self.selection else None

    @property
    def voters(self) -> Voters | None:
        return self.selector.whole(self.shape) if self.selection and not self.residual_scores else None

    @property
    def needs_all_keys(self) -> bool:
        return self.residual_scores

    def look(
        self, q: Float[Tensor, "B 1 HS D"], cache: LayerCache, state: MixerState
    ) -> tuple[Float[Tensor, "B 1 H D"], Mapping[str, Tensor]]:
        compiled = cache.attend_and_vote(q)
        if compiled is not None:
            return compiled, {}
        H, scores = self.shape.n_heads, None
        aux: dict[str, Tensor] = {}
        if self.residual_scores:
            scores = self._with_below(products(q[:, :, :H], cache.keys[:, :, : self.shape.n_kv_heads]), state)
            scores = torch.where(cache.held, scores, 0)
            if self.shape.layer + 1 < self.shape.n_layers:
                aux["scores"] = scores
        heads = cache.attend(q[:, :, :H]) if scores is None else cache.weigh(scores)
        if self.selection:
            cache.vote(*self._raw(q, cache.keys, scores))
        return heads, aux

    def see(
        self,
        q: Float[Tensor, "B T HS D"],
        k: Float[Tensor, "B T KS D"],
        v: Float[Tensor, "B T K D"],
        masks: Float[Tensor, "B M T T"] | None,
        seen: Bool[Tensor, "B T T"],
    ) -> Float[Tensor, "B T H D"]:
        q, k = q[:, :, : self.shape.n_heads], k[:, :, : self.shape.n_kv_heads]
        of_heads = masks if masks is None or masks.shape[1] == 1 else masks[:, list(self.rule.spread)]
        return seeing(q, k, v, of_heads, seen)

    def logits(
        self, q: Float[Tensor, "B T HS D"], k: Float[Tensor, "B T KS D"], masks: Float[Tensor, "B M T T"] | None
    ) -> Float[Tensor, "B H T T"]:
        scores = causal_scores(q[:, :, : self.shape.n_heads], k[:, :, : self.shape.n_kv_heads])
        return scores if masks is None else scores - masks[:, list(self.rule.spread)]

    def standing(self, q: Float[Tensor, "B T HS D"], k: Float[Tensor, "B T KS D"], state: MixerState) -> Standing:
        raw, protectors = self._explicit(q, k, state)[1:] if self.residual_scores else self._raw(q, k, None)
        return Standing(*piled_up(raw, protectors, self.rule))

    def _explicit(
        self, q: Float[Tensor, "B T HS D"], k: Float[Tensor, "B T KS D"], state: MixerState
    ) -> tuple[Float[Tensor, "B H T T"], Float[Tensor, "B M T T"], Float[Tensor, "B M T T"] | None]:
        """Scores of the ordinary heads, those of the layer below (if any) mixed in and 0 on invisible pairs; what the
        masks and their protectors make of them."""
        H, K = self.shape.n_heads, self.shape.n_kv_heads
        scores = self._with_below(products(q[:, :, :H], k[:, :, :K]), state)
        scores = torch.where(visible_pairs(q.shape[1], state.starts, q.device), scores, 0)
        return scores, *self._raw(q, k, scores)

    def _with_below(self, scores: Float[Tensor, "B H T S"], state: MixerState) -> Float[Tensor, "B H T S"]:
        below = state.previous.get("scores")
        if self.residual is None or below is None:
            return scores
        return scores + torch.einsum("hg,bgij->bhij", self.residual, below)

    def _raw(
        self, q: Float[Tensor, "B T HS D"], k: Float[Tensor, "B S KS D"], scores: Float[Tensor, "B H T S"] | None
    ) -> tuple[Float[Tensor, "B M T S"], Float[Tensor, "B M T S"] | None]:
        """The masks' and the protectors' scores: of `scores`, where they are given and the masks are made of them."""
        select, protect = self._operands(q, k)
        raw = self._formed(q, k, scores, self.selector, select)
        if self.protector is None or protect is None:
            return raw, None
        return raw, self._formed(q, k, scores, self.protector, protect)

    def _formed(
        self,
        q: Float[Tensor, "B T HS D"],
        k: Float[Tensor, "B S KS D"],
        scores: Float[Tensor, "B H T S"] | None,
        selector: Selector,
        operands: int | tuple[Tensor, Tensor],
    ) -> Float[Tensor, "B M T S"]:
        found = None if scores is None else selector.mixed(scores)
        if found is None and isinstance(operands, int):
            key = operands // (self.shape.n_heads // self.shape.n_kv_heads)
            found = products(q[:, :, operands : operands + 1], k[:, :, key : key + 1])
        elif found is None:
            assert not isinstance(operands, int)
            found = products(*operands, d_head=self.shape.d_head)
        return found.expand(-1, self.rule.n_masks, -1, -1)

    def _penalty(self, usage: Float[Tensor, "B M T"], state: MixerState) -> Float[Tensor, ""]:
        """See PenaltyConfig; weighted, fp32."""
        T = usage.shape[-1]
        forgotten = (usage * self.shares.to(usage.dtype)[:, None]).sum(1) / self.tau
        places = torch.arange(T, device=usage.device) if state.positions is None else state.positions
        places = places.to(usage.dtype).expand_as(forgotten)
        held = (places - forgotten).amax(1) if self.form == "max" else places.amax(1) - forgotten.mean(1)
        return held.mean() * (self.penalty_weight / T)

    @torch.no_grad()
    def measure(
        self,
        q: Float[Tensor, "B T HS D"],
        k: Float[Tensor, "B T KS D"],
        v: Float[Tensor, "B T K D"],
        state: MixerState,
    ) -> Mapping[str, float]:
        """See `figures_of_batch`. Forms one row's masks at a time, never the scores of all heads (except with residual
        scores, which have them)."""
        if not self.selection:
            return {}
        rows: list[RowFigures] = []
        for b in range(len(q)):
            of_row, queries, keys = state.row(b), q[b : b + 1], k[b : b + 1]
            scores, raw, protectors = None, *self._raw(queries, keys, None)
            if self.residual_scores:
                scores, raw, protectors = self._explicit(queries, keys, of_row)
            ordinary = queries[0, :, : self.shape.n_heads], keys[0, :, : self.shape.n_kv_heads]
            rows.append(figures_of_row(self.rule, of_row.starts, raw, protectors, scores, *ordinary))
        return figures_of_batch(rows)

    def masks(
        self, q: Float[Tensor, "B T HS D"], k: Float[Tensor, "B T KS D"], state: MixerState
    ) -> Float[Tensor, "B M T T"] | None:
        if not self.selection:
            return None
        raw, protectors = self._explicit(q, k, state)[1:] if self.residual_scores else self._raw(q, k, None)
        return forgotten(raw, protectors, self.rule, state.starts)

    def inside(self, q: Float[Tensor, "B T HS D"], k: Float[Tensor, "B T KS D"], state: MixerState) -> Inside:
        if not self.selection:
            return Inside(products(q, k))
        scores, raw, protectors = self._explicit(q, k, state)
        seen = pairs(range(q.shape[1]), self.rule, state.starts, q.device)
        protected = self.rule.protection != "none"
        return Inside(
            scores,
            forgotten(raw, protectors, self.rule, state.starts),
            votes(raw, seen.votable, self.rule),
            protections(raw, protectors, seen.visible, self.rule) if protected else None,
            self.rule.spread,
        )

    def oracle(
        self, q: Float[Tensor, "T HS D"], k: Float[Tensor, "T KS D"], v: Float[Tensor, "T K D"]
    ) -> Float[Tensor, "T H D"]:
        return self._spelt(q, k, v, {}).heads

    def definition(
        self,
        q: Float[Tensor, "T HS D"],
        k: Float[Tensor, "T KS D"],
        v: Float[Tensor, "T K D"],
        previous: Mapping[str, Tensor],
    ) -> Definition:
        found = self._spelt(q, k, v, previous)
        if not self.selection:
            return Definition(found.heads)
        penalty = None
        if self.penalty is not None:
            held = penalty_of_row(found.masks, self.rule.spread, self.penalty.tau, self.penalty.form)
            penalty = self.penalty.epsilon * held / self.shape.n_layers
        # Sums in bf16 have 8 bits: votes of 10 nats are off by a few hundredths of a nat.
        rounding = 0.25 if self.rule.accumulate == "bfloat16" else 1e-3
        return Definition(found.heads, found.masks, penalty, rounding)

    def _spelt(
        self,
        q: Float[Tensor, "T HS D"],
        k: Float[Tensor, "T KS D"],
        v: Float[Tensor, "T K D"],
        previous: Mapping[str, Tensor],
    ) -> Spelt:
        """previous: of this document; only residual scores read it."""
        below = previous.get("scores")
        return token_by_token(
            q,
            k,
            v,
            n_heads=self.shape.n_heads,
            rule=self.rule if self.selection else None,
            pair=self.selector.pair if self.selection else None,
            protector=self.protector.pair if self.selection and self.protector is not None else None,
            residual=None if below is None else self.residual,
            below=below,
        )

    def flops_per_token(self, context: int) -> int:
        """Softmax attention's, and with selection, per query and key, forward and as many backward or twice as many:

        H subtractions, 2 per mask (gate, sum; 7 with protection, 2 more with a penalty), and the products that form
        scores of dedicated heads and of mixes (twice as many backward).
        """
        H, D = self.shape.n_heads, self.shape.d_head
        if not self.selection:
            return softmax_flops_per_token(self.shape, context)
        per_mask = (2 if self.rule.protection == "none" else 7) + (2 if self.penalty is not None else 0)
        products = 2 * D * self.n_selectors + self.selector.mixing_flops()
        products += 0 if self.protector is None else self.protector.mixing_flops()
        products += 2 * H * H if self.residual is not None else 0
        extra = 2 * (H + per_mask * self.rule.n_masks) + 3 * products
        return softmax_flops_per_token(self.shape, context) + extra * context

    def state_bytes(self, n_tokens: int) -> int:
        """Keys, values and, with selection, dedicated keys and the votes against each token (and its protection)."""
        if not self.selection:
            return kv_bytes(self.shape, n_tokens)
        numbers = self.n_selectors * self.shape.d_head
        numbers += self.rule.n_masks * (1 if self.rule.protection == "none" else 2)
        return kv_bytes(self.shape, n_tokens) + BYTES_PER_STATE_ELEMENT * numbers * n_tokens

"""Text from a model: token by token from a cache of fixed size, for several prompts at once.

    p = softmax(logits / temperature), cut to the `top_k` likeliest tokens and then to the fewest that hold `top_p` of
        what is left; a token is drawn by inverting the cumulated p, likeliest first, at a uniform number

Every prompt has a stream of numbers of its own, so what is drawn for one depends on the seed, its place and its own
text, not on its neighbours or on the machine's generator. Source of top-p: Holtzman et al. 2020 (arXiv 1904.09751).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from winnow.attention import KVCache
from winnow.config import stream
from winnow.errors import InputError
from winnow.models.base import Model, Output


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises InputError for values without meaning."""

    temperature: float = 1.0
    """Divides the logits; 0: always the likeliest token."""
    top_k: int | None = None
    """Only the likeliest so many; None: all."""
    top_p: float | None = None
    """Only the fewest likeliest that hold so much of the probability; None: all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"{self.temperature} is not permitted", key="temperature", mend="0 or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"{self.top_k} is not permitted", key="top_k", mend="1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"{self.top_p} is not permitted", key="top_p", mend="above 0, at most 1")

    def draw(self, logits: Float[Tensor, " V"], uniform: float) -> int:
        """A token at `uniform` in [0, 1)."""
        if self.temperature == 0:
            return int(logits.argmax())
        scores, order = logits.double().div(self.temperature).sort(descending=True, stable=True)
        p = scores[: self.top_k].softmax(0)
        if self.top_p is not None:
            before = p.cumsum(0) - p
            p = p[before < self.top_p]  # the first is always there: nothing stands before it
        reached = p.cumsum(0)
        place = int(torch.searchsorted(reached, uniform * float(reached[-1]), right=True))
        return int(order[min(place, len(p) - 1)])


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    n_new: int,
    cache: KVCache,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    end: int | None = None,
    extend: Callable[[Tensor, KVCache], Output] | None = None,
) -> Iterator[tuple[int, int]]:
    """(prompt's index, token) as they come: up to `n_new` tokens after every prompt, none after `end`.

    cache: an empty one with a row for each prompt. extend: the model's, or its compiled form. Prompts of several
    lengths run side by side: each goes on with its own tokens once its prompt is through. Raises InputError for an
    empty prompt, and where the longest with its new tokens does not fit the cache's context.
    """
    sampling, extend = sampling or Sampling(), extend or model.extend
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise InputError("a prompt without a token", key="prompt", mend="begin with an end of document")
    if max(lengths) + n_new > cache.context:
        raise InputError(
            f"{max(lengths)} tokens of prompt and {n_new} new ones do not fit {cache.context}",
            key="prompt",
            mend="shorten the prompt or ask for fewer",
        )
    if n_new < 1:
        return
    device = model.readout_weight.device
    draws = [np.random.Generator(np.random.Philox(key=stream(seed, "generate", row))) for row in range(len(prompts))]
    texts = [list(prompt) for prompt in prompts]
    going = set(range(len(prompts)))
    at = min(lengths)
    hidden = extend(torch.tensor([text[:at] for text in texts], device=device), cache).hidden[:, -1]
    while True:
        logits = F.linear(hidden, model.readout_weight.detach())
        for row, text in enumerate(texts):
            if len(text) > at:
                continue
            if row not in going:
                text.append(text[-1])  # its row runs on unheard
                continue
            token = sampling.draw(logits[row], float(draws[row].random()))
            text.append(token)
            if token == end or len(text) == lengths[row] + n_new:
                going.discard(row)
            if token != end:
                yield row, token
        if not going:
            return
        hidden = extend(torch.tensor([[text[at]] for text in texts], device=device), cache).hidden[:, -1]
        at += 1

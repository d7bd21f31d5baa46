"""Selection: tokens vote, over time, for earlier tokens to be forgotten by all heads.

    S[i, j] = relu(A[i, j])                 A: scores of the selecting head, nats; j <= i, same document
    S[:, first token of a document] = 0     unless the first token may be masked (`protect_bos = false`)
    S[i, i] = 0                             unless a token may mask itself (`allow_self_masking`)
    F[i, j] = sum over t < i of S[t, j]     what strictly earlier queries have voted

F is subtracted from every head's scores. It is 0 or more, never falls with i, and is 0 for i <= j + 1: the next
token cannot yet feel a vote on its predecessor. Not a probability, and not learnt: it adds no parameter.
Source: Leviathan, Kalman, Matias 2024 (arXiv 2410.02703), section 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def selectable(
    n_tokens: int,
    documents: Int[Tensor, "B T"] | None,
    *,
    protect_bos: bool,
    allow_self_masking: bool,
    device: torch.device,
) -> Bool[Tensor, "#B T T"]:
    """Whether query i may vote against key j."""
    index = torch.arange(n_tokens, device=device)
    may = (index[:, None] >= index if allow_self_masking else index[:, None] > index).unsqueeze(0)
    if documents is not None:
        may = may & (documents[:, :, None] == documents[:, None, :])
    if protect_bos:
        if documents is None:
            first = (index == 0).unsqueeze(0)
        else:
            first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        may = may & ~first[:, None, :]
    return may


def selection_mask(scores: Float[Tensor, "B T T"], may_select: Bool[Tensor, "#B T T"]) -> Float[Tensor, "B T T"]:
    """F of the module's equation, in the scores' dtype, nats. Scores may hold anything where `may_select` is false."""
    votes = torch.where(may_select, scores, 0).relu()
    # Shifting before summing leaves row 0 exactly 0, and each row a function of strictly earlier queries alone.
    return F.pad(votes[:, :-1], (0, 0, 1, 0)).cumsum(dim=1)

"""Selective attention: the exact figures of its definition, and an oracle that shares no code with the package.

Rows S1-10 to S1-14 of docs/selective.md.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attention.test_contract import DOCUMENTS, inputs, make
from tests.oracles import gpt as oracle
from torch import Tensor

from winnow.attention import MixerState, SelectiveConfig, SoftmaxConfig, mixer_state
from winnow.config import watch_reads
from winnow.kernels.reference import forgotten
from winnow.kernels.rule import Rule

T = 9


def random_scores(B: int = 3, seed: int = 0, n: int = T) -> Tensor:
    return torch.randn(B, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_of(scores: Tensor, documents: Tensor | None = None, *, protect_bos: bool = True, own: bool = False) -> Tensor:
    rule = Rule(spread=(0,), protect_bos=protect_bos, allow_self_masking=own)
    return forgotten(scores.unsqueeze(1), None, rule, mixer_state(documents).starts)[:, 0]


@pytest.mark.parametrize("protect_bos", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_mask_equals_the_definition(protect_bos, own) -> None:
    scores = random_scores()
    scores[:, torch.ones(T, T).triu(1).bool()] = -torch.inf
    found = mask_of(scores, protect_bos=protect_bos, own=own)
    for b in range(len(scores)):
        expected = oracle.forgotten(scores[b], protect_bos=protect_bos, allow_self_masking=own)
        assert torch.allclose(found[b], expected, rtol=0, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 20))
def test_zero_until_two_later_and_monotone(seed, n) -> None:
    """S1-11."""
    found = mask_of(random_scores(2, seed, n) + 0.5)
    index = torch.arange(n)
    assert (found[:, index[:, None] <= index + 1] == 0).all()  # F = 0 for i <= j + 1
    assert (found[:, :, 0] == 0).all()
    assert (found[:, 0] == 0).all()
    assert (found.diff(dim=1) >= 0).all()
    later = index[:, None] > index + 1
    later[:, 0] = False
    assert (mask_of(random_scores(2, seed, n).abs() + 0.1)[:, later] > 0).all()


def test_exact_figures() -> None:
    """S1-11, S1-12 (`protect_bos = false`), S1-13 (`allow_self_masking`)."""
    scores = torch.arange(1.0, 17.0).reshape(1, 4, 4)  # A[i, j] = 4 i + j + 1
    assert torch.equal(mask_of(scores)[0, 3], torch.tensor([0.0, 10.0, 0.0, 0.0]))  # A[2, 1]
    own = mask_of(scores, own=True)[0]
    for j in range(1, 3):
        assert own[j + 1, j] == scores[0, j, j]
    assert torch.equal(own[3], torch.tensor([0.0, 6.0 + 10.0, 11.0, 0.0]))
    bos = mask_of(scores, protect_bos=False)[0]
    assert torch.equal(bos[:, 0], torch.tensor([0.0, 0.0, 5.0, 5.0 + 9.0]))  # from i = 2, never by query 0


def test_negative_scores_do_not_vote() -> None:
    assert (mask_of(-random_scores().abs()) == 0).all()


def test_documents_restart_the_votes_and_protect_their_own_first_token() -> None:
    scores = random_scores(2, n=7) + 1.0
    packed = mask_of(scores, DOCUMENTS)
    for row, ids in enumerate(DOCUMENTS):
        for document in ids.unique():
            inside = (ids == document).nonzero().flatten()
            block = scores[row][inside][:, inside]
            assert torch.equal(packed[row][inside][:, inside], mask_of(block[None])[0])


@pytest.mark.parametrize("protect_bos", [True, False])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_layer_equals_the_independent_oracle(protect_bos, own, n_kv_heads) -> None:
    attention = make(SelectiveConfig(protect_bos=protect_bos, allow_self_masking=own), n_kv_heads=n_kv_heads)
    x = inputs(1).requires_grad_()
    weights = dict(attention.named_parameters(prefix="a"))
    qkv = oracle.affine(x[0], weights, "a.qkv")
    n, K, D = x.shape[1], n_kv_heads, 8
    q, k, v = qkv.split((4 * D, K * D, K * D), dim=-1)
    q, k, v = q.reshape(n, 4, D), k.reshape(n, K, D), v.reshape(n, K, D)
    q = torch.stack([torch.stack([oracle.turn(q[i, h], i) for h in range(4)]) for i in range(n)])
    k = torch.stack([torch.stack([oracle.turn(k[i, h], i) for h in range(K)]) for i in range(n)])
    forget = oracle.forgotten(oracle.scores(q, k)[0], protect_bos=protect_bos, allow_self_masking=own)
    expected = oracle.affine(oracle.attend(q, k, v, forget).reshape(n, 4 * D), weights, "a.out")
    found = attention(x, MixerState()).y[0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    g = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = (x, *attention.parameters())
    for a, b in zip(torch.autograd.grad(found, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_without_selection_it_is_softmax_bit_by_bit(documents) -> None:
    """S1-10, S1-14, H1, H2: with selection off it is causal attention of the same weights."""
    for dtype in (torch.float32, torch.float64):
        off, softmax = make(SelectiveConfig(selection=False), dtype=dtype), make(SoftmaxConfig(), dtype=dtype)
        x = inputs().to(dtype)
        assert torch.equal(off(x, mixer_state(documents)).y, softmax(x, mixer_state(documents)).y)


def test_without_votes_it_is_softmax() -> None:
    """S1-11. Keys of head 0 at zero: S = 0, and head 0's scores are 0 in both."""
    selective, softmax = make(SelectiveConfig()), make(SoftmaxConfig())
    for attention in (selective, softmax):
        with torch.no_grad():
            for tensor in (attention.qkv.weight, attention.qkv.bias):
                assert tensor is not None
                tensor[4 * 8 : 5 * 8] = 0
    assert torch.allclose(selective(inputs(), MixerState()).y, softmax(inputs(), MixerState()).y, atol=1e-14)


def test_huge_votes_leave_first_token_and_self() -> None:
    scores = torch.full((1, T, T), 1e4, dtype=torch.float64)
    weights = (-mask_of(scores)[0]).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    for i in range(2, T):
        assert weights[i, [0, i - 1, i]].sum() == pytest.approx(1)


def reads_of(config: SelectiveConfig) -> set[str]:
    with watch_reads() as read:
        make(config)
    names = {id(part): path for path, part in config.walk()}
    return {f"{names[part]}.{field}".lstrip(".") for part, field in read if part in names}


def test_options_without_effect_are_never_read() -> None:
    assert reads_of(SelectiveConfig(selection=False)) == {"selection"}
    top = set(SelectiveConfig.model_fields) - {"kind"}
    inside = {"scores.head", "gate.leak", "gate.relu_after", "accumulate.algorithm", "accumulate.dtype"}
    assert reads_of(SelectiveConfig()) == top | inside


def test_bf16_autocast_sums_votes_in_fp32() -> None:
    attention = make(SelectiveConfig(), dtype=torch.float32)
    exact = attention(inputs().float(), MixerState()).y
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention(inputs().float(), MixerState()).y
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_costs() -> None:
    on, off = make(SelectiveConfig()), make(SelectiveConfig(selection=False))
    assert off.flops_per_token(100) == 12 * 4 * 8 * 100
    assert on.flops_per_token(100) == 12 * 4 * 8 * 100 + 2 * (4 + 2) * 100
    assert off.state_bytes(100) == 100 * 2 * 4 * 8 * 4
    assert on.state_bytes(100) == 100 * (2 * 4 * 8 * 4 + 4)

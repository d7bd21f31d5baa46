"""The compiled step of decoding against PyTorch's operations and a plain-loop oracle, on every instance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attention.variants import VARIANTS, selective
from tests.oracles import pruning as oracle
from torch import Tensor

from winnow.attention import Attention, LayerCache, MixerState, Shape, cache
from winnow.attention.prune import H2OConfig, NoneConfig, PolicyConfig, VotesConfig
from winnow.config import stream
from winnow.kernels import compiled
from winnow.kernels.rule import calls

pytestmark = pytest.mark.skipif(compiled.available() is not None, reason=f"no kernels: {compiled.available()}")
T = 45
KINDS = ("plain", "bos_and_self", "head_2", "two_masks", "three_masks_spread", "mask_per_head", "leak", "relu_moved")


def make(kind: dict[str, Any], n_kv_heads: int = 4, d_head: int = 16) -> Attention:
    shape = Shape(24, 4, n_kv_heads, d_head, layer=1, n_layers=3, max_seq_len=T, bias=True, rotary=True)
    attention = selective(**kind).build(shape)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            generator = torch.Generator().manual_seed(stream(3, name))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return attention


def rows(batch: int = 3) -> Tensor:
    return torch.randn(batch, T, 24, generator=torch.Generator().manual_seed(0))


def stepped(attention: Attention, x: Tensor, budget: int, policy: PolicyConfig) -> tuple[Tensor, LayerCache]:
    held = attention.cache(len(x), budget, T, policy)
    made = [attention.step(x[:, i : i + 1], held, MixerState(torch.full((len(x), 1), i))).y for i in range(T)]
    return torch.cat(made, 1), held


@pytest.mark.parametrize("isa", compiled.INSTANCES)
@pytest.mark.parametrize("budget", [1, 7, 19, T])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_those_of_pytorch(kind: str, budget: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled.INSTANCES.index(isa) > int(compiled.library().winnow_widest()):
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("WINNOW_CPU_ISA", isa)
    attention, x = make(VARIANTS[kind], n_kv_heads=2), rows()
    policy = NoneConfig() if budget == T else VotesConfig()
    calls.clear()
    found, held = stepped(attention, x, budget, policy)
    assert calls["decode.step"] == T
    monkeypatch.setattr(cache, "suits", lambda *_: False)
    expected, other = stepped(attention, x, budget, policy)
    assert calls["decode.step"] == T
    assert torch.equal(held.position, other.position)
    assert torch.equal(held.newest, other.newest)
    assert torch.equal(held.slot, other.slot)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    assert held.votes is not None
    assert other.votes is not None
    torch.testing.assert_close(held.votes, other.votes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(held.k, other.k, rtol=0, atol=0)
    torch.testing.assert_close(held.v, other.v, rtol=0, atol=0)


@pytest.mark.parametrize("budget", [2, 12])
def test_steps_equal_the_oracle(budget: int) -> None:
    attention: Any = make({})
    x = rows(1)
    with torch.no_grad():
        q, k, v = (t[0].double() for t in attention.project(x, MixerState()))
    told = oracle.decode(q, k, v, [(q[:, 0], k[:, 0])], None, attention.voting, budget, "votes")
    found, held = stepped(attention, x, budget, VotesConfig())
    expected = attention.out(told.heads.flatten(1).float())
    torch.testing.assert_close(found[0], expected, rtol=2e-5, atol=2e-5)
    assert sorted(held.position[0].tolist()) == told.seen[-1]


def test_large_scores_neither_overflow_nor_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp of them alone would be infinite, and of the lowest row's 0."""
    attention, x = make({"protect_bos": False, "scores": {"kind": "selectors"}}), rows()
    with torch.no_grad():
        attention.qkv.weight.mul_(12)
    q, k, _ = attention.project(x, MixerState())
    scores = torch.einsum("bihd,bjhd->bhij", q[:, :, :4], k[:, :, :4]).tril() / 4
    assert scores.amax() > 100
    assert scores.diagonal(dim1=2, dim2=3).amin() < -100
    found, _ = stepped(attention, x, 7, VotesConfig())
    monkeypatch.setattr(cache, "suits", lambda *_: False)
    torch.testing.assert_close(found, stepped(attention, x, 7, VotesConfig())[0], rtol=1e-2, atol=1e-2)


def test_a_prefill_goes_on_in_the_kernel() -> None:
    attention, x = make({}), rows()
    expected, _ = stepped(attention, x, 6, VotesConfig())
    held = attention.cache(3, 6, T, VotesConfig())
    attention.prefill(x[:, :20], held, MixerState())
    calls.clear()
    for i in range(20, T):
        y = attention.step(x[:, i : i + 1], held, MixerState(torch.full((3, 1), i))).y
        torch.testing.assert_close(y, expected[:, i : i + 1], rtol=2e-5, atol=2e-5)
    assert calls["decode.step"] == T - 20


def test_threads_change_no_bit() -> None:
    attention, x = make(VARIANTS["three_masks_spread"]), rows()
    one, _ = stepped(attention, x, 9, VotesConfig())
    torch.set_num_threads(2)
    try:
        two, _ = stepped(attention, x, 9, VotesConfig())
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("kind", "d_head", "policy"),
    [("head_two", 16, VotesConfig()), ("latent", 16, VotesConfig()), ("two_slices", 16, VotesConfig()),
     ("residual", 16, NoneConfig()), ("plain", 8, VotesConfig()), ("plain", 16, H2OConfig()),
     ("plain", 16, PolicyConfig.model_validate({"kind": "anew"}))],
)  # fmt: skip
def test_other_steps_are_pytorchs(kind: str, d_head: int, policy: PolicyConfig) -> None:
    calls.clear()
    stepped(make(VARIANTS[kind], d_head=d_head), rows(), T if kind == "residual" else 9, policy)
    assert calls["decode.step"] == 0

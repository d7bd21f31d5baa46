"""The memory penalty (S1-15, S1-16, H8), residual scores (S1-51) and figures of the inside (S1-86)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.attention.test_contract import DOCUMENTS, inputs, make
from tests.attention.test_selectors import masks_of, module
from tests.attention.variants import protect, selective
from torch import Tensor, nn

from winnow.attention import Mixed, MixerState, mixer_state
from winnow.attention.selective import SelectiveAttention
from winnow.kernels.reference import forgotten
from winnow.models import GPT, GPTConfig
from winnow.parameters import initialise

T = 7
LAYERS = 3
"""Of the contract's shape: every penalty is divided by them."""


def penalty_of(attention: SelectiveAttention, state: MixerState) -> Tensor:
    return attention(inputs(), state).aux["penalty"].detach()


def silent(**fields: Any) -> SelectiveAttention:
    """A layer whose selecting head scores 0: F = 0."""
    attention = module(**fields)
    with torch.no_grad():
        attention.qkv.weight[:8] = 0
        assert attention.qkv.bias is not None
        attention.qkv.bias[:8] = 0
    return attention


def test_without_votes_everything_is_held() -> None:
    """S1-15: with F = 0 the memory of a layer is T - 1, so the penalty is eps (T - 1) / (L T); in both forms."""
    for form in ("max", "mean"):
        attention = silent(penalty={"epsilon": 0.3, "form": form})
        assert float(penalty_of(attention, MixerState())) == pytest.approx(0.3 * (T - 1) / (LAYERS * T))
    # Documents of 3 and 4, of 6 and 1 tokens: their longest hold 3 and 5.
    packed = penalty_of(silent(penalty={"epsilon": 0.3}), mixer_state(DOCUMENTS))
    assert float(packed) == pytest.approx(0.3 * (3 + 5) / 2 / (LAYERS * T))


@pytest.mark.parametrize("state", [MixerState(), mixer_state(DOCUMENTS)], ids=["whole", "packed"])
@pytest.mark.parametrize("form", ["max", "mean"])
@pytest.mark.parametrize("n", [1, 3])
def test_penalty_is_its_definition(state, form, n) -> None:
    """S1-15: per layer the maximum over queries of m_i = i - sum_j min(F, tau) / tau; masks weighted by their heads."""
    tau, scores = 0.4, {"kind": "selectors", "n_heads": n}
    attention = module(scores=scores, penalty={"epsilon": 0.2, "tau": tau, "form": form})
    F = masks_of(attention, state)
    firsts = torch.zeros(2, T, dtype=torch.int64) if state.starts is None else state.starts
    rows: list[float] = []
    for b in range(2):
        places = [i - int(firsts[b, i]) for i in range(T)]
        gone = [
            sum(
                min(float(F[b, attention.rule.spread[h], i, j]), tau) / tau / 4
                for h in range(4)
                for j in range(int(firsts[b, i]), i + 1)
            )
            for i in range(T)
        ]
        held = [place - g for place, g in zip(places, gone, strict=True)]
        rows.append(max(held) if form == "max" else max(places) - sum(gone) / T)
    expected = 0.2 * sum(rows) / 2 / (LAYERS * T)
    assert float(penalty_of(attention, state)) == pytest.approx(expected, rel=1e-6)
    other = module(scores=scores, penalty={"epsilon": 0.2, "tau": tau, "form": "mean" if form == "max" else "max"})
    assert float(penalty_of(other, state)) != pytest.approx(expected, rel=1e-3)


def test_mean_form_is_what_the_broadcast_computed() -> None:
    """S1-16, H8: positions (1, 1, T, 1) less masked sums (B, 1, T) made a mean of a maximum. Toy case: 0.6640625."""
    attention = module(penalty={"epsilon": 1.0, "form": "mean"})
    gone = torch.tensor([[[0.0, 0.0, 0.5, 1.75]], [[0.0, 0.0, 0.0, 0.5]]])  # sum over j of min(F, 1): (B, M, T)
    broadcast = (torch.arange(4.0)[None, None, :, None] - gone).amax(2).mean() / 4  # (1, B, T, T), over "queries"
    assert broadcast == 0.6640625
    assert attention._penalty(gone, MixerState()) * LAYERS == pytest.approx(0.6640625)
    as_defined = module(penalty={"epsilon": 1.0})._penalty(gone, MixerState()) * LAYERS
    assert as_defined == pytest.approx((2.0 - 0.5 + 3.0 - 0.5) / 2 / 4)


def test_penalty_is_asked_for_and_for_training_alone() -> None:
    attention = module(penalty={})
    assert set(attention(inputs(), MixerState()).aux) == {"penalty"}
    training = attention(inputs(), MixerState()).y
    attention.eval()
    y, aux = attention(inputs(), MixerState())
    assert not aux
    assert torch.allclose(y, training, atol=1e-13)
    assert not module()(inputs(), MixerState()).aux
    assert torch.equal(module()(inputs(), MixerState()).y, y)  # it changes no output


def test_penalty_is_fp32_under_autocast_and_lowers_memory() -> None:
    attention, x = make(selective(penalty={"epsilon": 1.0}), dtype=torch.float32, std=0.2), inputs(n=30).float()
    with torch.autocast("cpu", torch.bfloat16):
        penalty = attention(x, MixerState()).aux["penalty"]
    assert penalty.dtype == torch.float32
    assert penalty.shape == ()
    optimizer = torch.optim.SGD(attention.parameters(), lr=1.0)
    held: list[float] = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = attention(x, MixerState()).aux["penalty"]
        loss.backward()
        optimizer.step()
        held.append(float(loss.detach()))
    assert held[-1] < 0.7 * held[0]


def model(residual: bool, **changes: Any) -> GPT:
    table = {"d_model": 16, "n_layers": 3, "n_heads": 4, "d_head": 8, "positions": "rotary"}
    config = GPTConfig.model_validate({**table, "attention": selective(residual_scores=residual, **changes)})
    torch.set_default_dtype(torch.float64)
    try:
        built = config.build(13, 12)
    finally:
        torch.set_default_dtype(torch.float32)
    initialise(built, 0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(12.0)
    return built


TOKENS = torch.randint(13, (2, 12), generator=torch.Generator().manual_seed(0))
PACKED = torch.arange(12).div(5, rounding_mode="floor").expand(2, -1)


@pytest.mark.parametrize("documents", [None, PACKED], ids=["whole", "packed"])
@pytest.mark.parametrize("changes", [{}, {"accumulate": protect("head")}, {"scores": {"kind": "linear_combination"}}])
def test_zero_residual_matrix_is_the_baseline(documents, changes) -> None:
    """S1-51."""
    plain, residual = model(False, **changes), model(True, **changes)
    names = [name for name, _ in residual.named_parameters() if name.endswith("residual")]
    assert names == ["blocks.1.attention.residual", "blocks.2.attention.residual"]  # the first layer has none
    expected = plain.logits(TOKENS, documents)
    moved = residual.logits(TOKENS, documents)
    assert not torch.allclose(moved, expected, atol=1e-3)
    with torch.no_grad():
        for name in names:
            residual.get_parameter(name).zero_()
    assert torch.allclose(residual.logits(TOKENS, documents), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("documents", [None, PACKED], ids=["whole", "packed"])
def test_residual_scores_pass_from_layer_to_layer(documents) -> None:
    """S1-51: what reaches layer 2 already holds layer 0's; nothing of the future; the oracle says the same."""
    gpt = model(True)
    output = gpt(TOKENS, documents)
    assert [set(aux) for aux in output.aux] == [{"scores"}, {"scores"}, set()]
    visible = torch.ones(12, 12).tril().bool()
    if documents is not None:
        visible = visible & (documents[0][:, None] == documents[0])
    for aux in output.aux[:2]:
        assert (aux["scores"][..., ~visible] == 0).all()
        assert (aux["scores"][..., visible] != 0).all()
    gradient = torch.autograd.grad(output.hidden.square().sum(), gpt.get_parameter("blocks.1.attention.residual"))[0]
    assert gradient.abs().min() > 0
    seen: dict[int, tuple[Tensor, MixerState, Tensor]] = {}

    def keep(mixer: nn.Module, given: tuple[Tensor, MixerState], mixed: Mixed) -> None:
        assert isinstance(mixer, SelectiveAttention)
        seen[mixer.shape.layer] = (*given, mixed.y)

    for block in gpt.blocks:
        block.get_submodule("attention").register_forward_hook(keep)
    gpt(TOKENS[:1])
    below = None
    for layer, block in enumerate(gpt.blocks):
        mixer = block.get_submodule("attention")
        assert isinstance(mixer, SelectiveAttention)
        x, state, y = seen[layer]
        assert ("scores" in state.previous) == (layer > 0)
        q, k, v = mixer.project(x, state)
        heads, scores, _ = mixer._spelt(q[0], k[0], v[0], {} if below is None else {"scores": below})
        assert torch.allclose(y[0], mixer.out(heads.flatten(1)), rtol=0, atol=1e-10)
        if layer < 2:
            assert torch.allclose(output.aux[layer]["scores"][0], scores, atol=1e-10) == (documents is None)
        below = scores


def test_a_residual_is_a_mix_over_heads() -> None:
    """S1-51: scores of layer l + R (scores below), before selection; its future set to 0 whatever comes from below."""
    attention = module(residual_scores=True)
    below = torch.randn(2, 4, T, T, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    q, k, _ = attention.project(inputs(), MixerState())
    scores, raw, _ = attention._explicit(q, k, MixerState(previous={"scores": below}))
    alone, _, _ = attention._explicit(q, k, MixerState())
    assert attention.residual is not None
    added = torch.einsum("hg,bgij->bhij", attention.residual, below).tril()
    assert torch.allclose(scores, alone + added, atol=1e-12)
    assert (scores.triu(1) == 0).all()
    assert torch.equal(raw[:, 0], scores[:, 0])


def test_figures_of_the_inside() -> None:
    """Live pairs by the definition of the bound; nothing is live but what must be when votes are huge."""
    n = 40
    attention = make(selective(), dtype=torch.float32, std=0.1)
    assert isinstance(attention, SelectiveAttention)
    x = inputs(2, n=n).float()
    q, k, v = (t.detach() for t in attention.project(x, MixerState()))
    assert attention.measure(q, k, v, MixerState())["live"] == 1.0
    k[:, :, 0] = q[:, :, 0] = 3.0  # head 0 votes 3 sqrt(8) * 3 against everything
    figures = attention.measure(q, k, v, MixerState())
    raw, _ = attention._raw(q, k, None)
    F = forgotten(raw, None, attention.rule, None)
    live = 0
    for b in range(2):
        bounds = [
            max(
                float(q[b, i, h].norm() * max(k[b, j, h].norm() for j in range(n)) - q[b, i, h] @ k[b, i, h]) / 8**0.5
                for h in range(4)
            )
            for i in range(n)
        ]
        for i in range(n):
            theta = max(bounds[i:]) + math.log(n) + 24 * math.log(2)
            live += sum(float(F[b, 0, i, j]) <= theta for j in range(i + 1))
    pairs = 2 * n * (n + 1) // 2
    assert figures["live"] == pytest.approx(live / pairs, abs=1.5 / pairs)
    assert 0.05 < figures["live"] < 0.6
    leaking = make(selective(gate={"leak": 0.1}), dtype=torch.float32, std=0.1)
    assert leaking.measure(q, k, v, MixerState())["live"] == 1.0  # F can fall: nothing may be dropped
    visible = torch.ones(n, n).tril().bool()
    assert figures["mean_f"] == pytest.approx(float(F[..., visible].mean()), rel=1e-5)
    assert figures["max_f"] == pytest.approx(float(F.max()), rel=1e-6)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_figures_are_of_documents_and_shared_keys(n_kv_heads) -> None:
    attention, state = module(scores={"kind": "head", "head": 2}, n_kv_heads=n_kv_heads), mixer_state(DOCUMENTS)
    q, k, v = attention.project(inputs(), state)
    figures = attention.measure(q, k, v, state)
    found: list[Tensor] = []
    for b, ids in enumerate(DOCUMENTS):
        for document in ids.unique():
            inside = ids == document
            raw = q[b, inside, 2] @ k[b, inside, 2 * n_kv_heads // 4].T * 8**-0.5
            mask = forgotten(raw[None, None], None, attention.rule, None)[0, 0]
            found.append(mask[torch.ones_like(mask).tril().bool()])
    F = torch.cat(found).detach()
    assert figures["mean_f"] == pytest.approx(float(F.mean()), rel=1e-9)
    assert figures["max_f"] == pytest.approx(float(F.max()), rel=1e-9)


def test_dropped_pairs_would_not_have_been_seen() -> None:
    """What the figure counts as not live has a weight below 2^-24 in every head."""
    attention = make(selective(scores={"kind": "selectors", "n_heads": 2}), dtype=torch.float64, std=0.5)
    assert isinstance(attention, SelectiveAttention)
    x = inputs(1, n=100)
    q, k, v = attention.project(x, MixerState())
    raw, _ = attention._raw(q, k, None)
    F = forgotten(raw, None, attention.rule, None)
    scores = torch.einsum("bihd,bjhd->bhij", q[:, :, :4], k[:, :, :4]) * 8**-0.5
    visible = torch.ones(100, 100).tril().bool()
    weights = (scores - F[:, list(attention.rule.spread)]).masked_fill(~visible, -torch.inf).softmax(-1)
    figures = attention.measure(q, k, v, MixerState())
    heavy = float((weights[..., visible] > 2**-24).double().mean())
    assert heavy <= figures["live"] < 1.0


@pytest.mark.parametrize("accumulate", [{"kind": "sum"}, protect("head", 0.05)])
def test_max_diff_is_the_error_of_the_sums_that_ran(accumulate) -> None:
    """S1-86: the metric is there; against protection the reference is the protected sum in fp64, not the plain one."""
    found: dict[str, float] = {}
    for dtype in ("float64", "float32", "bfloat16"):
        fields = {**accumulate, "dtype": dtype, "algorithm": "sequential"}
        attention = make(selective(accumulate=fields), dtype=torch.float32, std=0.4)
        x = inputs(1, n=131).float()
        found[dtype] = attention.measure(*attention.project(x, MixerState()), MixerState())["max_diff"]
    assert found["float64"] < found["float32"] < 1e-3 < 0.05 < found["bfloat16"]


def test_without_selection_there_are_no_figures() -> None:
    attention = make(selective(selection=False))
    assert attention.measure(*attention.project(inputs(), MixerState()), MixerState()) == {}

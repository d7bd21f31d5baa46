"""Where scores come from: rows S1-40 to S1-52 of docs/selective.md, and the traps H1, H7, H9, H11 and H12."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attention.test_contract import DOCUMENTS, inputs, make
from tests.attention.variants import selective

from winnow.attention import MixerState, Shape, SoftmaxConfig, mixer_state
from winnow.attention.selective import SelectiveAttention
from winnow.attention.selectors import sliced
from winnow.kernels.reference import forgotten
from winnow.models import GPT, GPTConfig
from winnow.parameters import initialise, parameter_table

D_HEAD = 8


def module(dtype: torch.dtype = torch.float64, n_kv_heads: int = 4, **fields: Any) -> SelectiveAttention:
    built = make(selective(**fields), dtype=dtype, n_kv_heads=n_kv_heads)
    assert isinstance(built, SelectiveAttention)
    return built


def combination(**fields: Any) -> dict[str, Any]:
    return {"kind": "linear_combination", **fields}


def set_to(attention: SelectiveAttention, values: dict[str, Any]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameter = attention.get_parameter(name)
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand_as(parameter))


def masks_of(attention: SelectiveAttention, state: MixerState, seed: int = 0) -> torch.Tensor:
    """F (B, M, T, T)."""
    q, k, _ = attention.project(inputs(seed=seed), state)
    raw, protectors = attention._raw(q, k, None)
    return forgotten(raw, protectors, attention.rule, state.starts).detach()


def equal(a: SelectiveAttention, b: SelectiveAttention, state: MixerState) -> None:
    assert torch.allclose(a(inputs(), state).y, b(inputs(), state).y, rtol=0, atol=1e-12)


STATES = pytest.mark.parametrize("state", [MixerState(), mixer_state(DOCUMENTS)], ids=["whole", "packed"])


@STATES
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_one_hot_mix_equals_head_zero(state, n_kv_heads) -> None:
    """S1-41, S1-42, S1-44: w = e_0, and e_0 / s before a forward scale of s."""
    plain = module(n_kv_heads=n_kv_heads)
    for scale in (1.0, 0.1):
        mixed = module(scores=combination(scale=scale), n_kv_heads=n_kv_heads)
        set_to(mixed, {"selector.weight": torch.tensor([1 / scale, 0, 0, 0])})
        equal(plain, mixed, state)
        set_to(mixed, {"selector.weight": torch.tensor([0, 1 / scale, 0, 0])})
        equal(module(scores={"kind": "head", "head": 1}, n_kv_heads=n_kv_heads), mixed, state)


@STATES
def test_bias_reaches_every_voter_and_no_future(state) -> None:
    """S1-43, H9: b is added before the gate, on visible pairs alone."""
    mixed = module(scores=combination(bias=True))
    set_to(mixed, {"selector.weight": torch.zeros(4), "selector.bias": 0.3})
    found = masks_of(mixed, state)
    firsts = torch.zeros(2, 7) if state.starts is None else state.starts
    for b in range(2):
        for i in range(7):
            for j in range(i + 1):
                voters = max(0, i - j - 1) if firsts[b, i] <= j and j != firsts[b, j] else 0
                if firsts[b, i] <= j:
                    assert found[b, 0, i, j] == pytest.approx(0.3 * voters)
    set_to(mixed, {"selector.weight": torch.tensor([1.0, 0, 0, 0]), "selector.bias": 0.0})
    equal(module(), mixed, state)


def test_latent_bias_does_not_leak_into_the_future() -> None:
    """S1-49, H12: with a bias of 0.3 the source's column 4 held 0.3 at query 1 already."""
    latent = module(scores={"kind": "latent", "n": 2})
    set_to(latent, {"selector.weight": 0.0, "selector.bias": 0.3})
    found = masks_of(latent, MixerState())
    assert found.shape == (2, 4, 7, 7)
    i, j = torch.arange(7)[:, None], torch.arange(7)
    expected = 0.3 * (i - j - 1).clamp(min=0) * (j > 0)
    visible = i >= j
    assert torch.allclose(found[..., visible], expected[visible].double().expand(2, 4, -1), atol=1e-12)
    # Documents: a vote never crosses either.
    packed = masks_of(latent, mixer_state(DOCUMENTS))
    assert (packed[0, :, 3:5, 3:5] == 0).all()
    assert packed[0, 0, 6, 4] == pytest.approx(0.3)


@STATES
def test_one_latent_slice_equals_a_dedicated_head(state) -> None:
    """S1-48, S1-49: n = 1 mapped by 1 is the dedicated head's own mask, for every head."""
    latent = module(scores={"kind": "latent", "n": 1})
    set_to(latent, {"selector.weight": 1.0, "selector.bias": 0.0})
    equal(module(scores={"kind": "selectors"}), latent, state)
    # All slices with weight 1 are the whole head again.
    latent = module(scores={"kind": "latent", "n": 4})
    set_to(latent, {"selector.weight": 1.0, "selector.bias": 0.0})
    equal(module(scores={"kind": "selectors"}), latent, state)


@pytest.mark.parametrize("rotary", [True, False])
def test_slice_scores_sum_to_the_heads(rotary) -> None:
    """S1-48: with the scale of the whole head."""
    q, k = torch.randn(2, 5, 3, D_HEAD, dtype=torch.float64)
    whole = q @ k.transpose(-1, -2)
    for n in (1, 2, 4):
        parts = sliced(q, n, rotary=rotary).transpose(-2, -3) @ sliced(k, n, rotary=rotary).movedim(-3, -1)
        assert parts.shape == (5, n, 3, 3)
        assert torch.allclose(parts.sum(1), whole, atol=1e-12)
    attention = make(selective(scores={"kind": "selectors", "n_slices": 2}), rotary=rotary)
    assert isinstance(attention, SelectiveAttention)
    q, k, _ = attention.project(inputs(), MixerState())
    raw, _ = attention._raw(q, k, None)
    score = torch.einsum("bid,bjd->bij", q[:, :, 4], k[:, :, 4]) * D_HEAD**-0.5
    assert torch.allclose(raw.sum(1), score, atol=1e-12)


def test_rotary_slices_see_distances_alone() -> None:
    """A slice of whole pairs: cut in the middle of pairs, its scores would depend on absolute positions."""
    attention = make(selective(scores={"kind": "selectors", "n_slices": 4}))
    assert isinstance(attention, SelectiveAttention)
    x = inputs(1)[:, :1].expand(1, 7, 12)  # the same token everywhere
    q, k, _ = attention.project(x, MixerState())
    raw, _ = attention._raw(q, k, None)
    for m in range(4):
        for distance in range(6):
            along = raw[0, m].diagonal(-distance)
            assert torch.allclose(along, along[:1].expand_as(along), atol=1e-12)


@STATES
def test_masks_reach_their_heads_alone(state) -> None:
    """S1-46, S1-47, S1-50: a dedicated head moves exactly the heads that read its mask."""
    for n, groups in ((4, [[0], [1], [2], [3]]), (2, [[0, 1], [2, 3]]), (3, [[0, 3], [1], [2]])):
        attention = module(scores={"kind": "selectors", "n_heads": n})
        q, k, v = attention.project(inputs(), state)
        before = attention.mix(q, k, v, state)[0]
        for m in range(n):
            other = q.clone()
            other[:, :, 4 + m] *= 2.0
            after = attention.mix(other, k, v, state)[0]
            moved = [h for h in range(4) if not torch.equal(before[:, :, h], after[:, :, h])]
            assert moved == groups[m]


def test_each_mask_equals_a_layer_with_it_alone() -> None:
    """S1-46: mask h applies to head h only."""
    attention = module(scores={"kind": "selectors", "n_heads": 4})
    q, k, v = attention.project(inputs(), MixerState())
    together = attention.mix(q, k, v, MixerState())[0]
    alone = module(scores={"kind": "selectors"})
    for m in range(4):
        pick = [0, 1, 2, 3, 4 + m]
        single = alone.mix(q[:, :, pick], k[:, :, pick], v, MixerState())[0]
        assert torch.allclose(together[:, :, m], single[:, :, m], atol=1e-12)


def shape(n_heads: int = 12, **changes: Any) -> Shape:
    sizes = {"d_model": 768, "n_kv_heads": n_heads, "d_head": 64, "layer": 1, "n_layers": 12, "max_seq_len": 8}
    return Shape(n_heads=n_heads, **{**sizes, "bias": True, "rotary": False, **changes})


def count(config: Any, place: Shape) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in config.build(place).parameters())


def test_parameter_counts_at_the_sources_size() -> None:
    """S1-48, S1-52: 12 heads of 64, C = 768. A dedicated head has queries and keys, and no values that nobody reads."""
    base = count(selective(), shape())
    assert base == count(SoftmaxConfig(), shape()) == 768 * 3 * 768 + 3 * 768 + 768 * 768 + 768
    dedicated = 2 * (64 * 768 + 64)
    assert count(selective(scores={"kind": "selectors"}), shape()) == base + dedicated
    assert count(selective(scores={"kind": "selectors", "n_heads": 2}), shape()) == base + 2 * dedicated
    assert count(selective(scores={"kind": "selectors", "n_heads": 12}), shape()) == base + 12 * dedicated
    for n in (1, 4):
        assert count(selective(scores={"kind": "selectors", "n_slices": n}), shape()) == base + dedicated
        assert count(selective(scores={"kind": "latent", "n": n}), shape()) == base + dedicated + 12 * n + 12
    assert count(selective(scores=combination()), shape()) == base + 12
    assert count(selective(scores=combination(bias=True)), shape()) == base + 13
    linear = {"kind": "protect", "source": {"kind": "linear_combination"}}
    assert count(selective(accumulate=linear), shape()) == base + 13
    assert count(selective(accumulate={"kind": "protect"}), shape()) == base
    assert count(selective(residual_scores=True), shape()) == base + 144
    assert count(selective(residual_scores=True), shape(layer=0)) == base
    # One dedicated head is not a 13th ordinary one: no output (49,152 weights) and no values.
    thirteen = count(SoftmaxConfig(), shape(13))
    assert thirteen - (base + dedicated) == 49_152 + 64 * 768 + 64


def build(**attention: Any) -> GPT:
    config = {"d_model": 24, "n_layers": 2, "n_heads": 4, "d_head": 8, "attention": selective(**attention)}
    model = GPTConfig.model_validate(config).build(31, 10)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))  # what is not initialised must show
    initialise(model, 0)
    return model


def started(name: str, **attention: Any) -> torch.Tensor:
    return build(**attention).get_parameter(f"blocks.1.attention.{name}").detach()


def test_mixing_weights_start_as_told() -> None:
    """S1-42, S1-44, S1-64, S1-65, H7, H11: no later initialisation overwrites a one-hot start, biases start at 0."""
    one = torch.eye(4)
    assert torch.equal(started("selector.weight", scores=combination()), one[0])
    assert torch.equal(started("selector.weight", scores=combination(scale=0.25)), 4 * one[0])
    assert torch.equal(started("selector.bias", scores=combination(bias=True)), torch.zeros(1))
    drawn = started("selector.weight", scores=combination(init="random"))
    assert 0 < drawn.abs().max() < 0.1
    assert len(set(drawn.tolist())) == 4
    second = {"kind": "protect", "source": {"kind": "linear_combination", "init": "second"}}
    assert torch.equal(started("protector.weight", accumulate=second), one[1])
    assert torch.equal(started("protector.bias", accumulate=second), torch.zeros(1))
    assert torch.equal(started("selector.bias", scores={"kind": "latent"}), torch.zeros(4))
    weights = started("selector.weight", scores={"kind": "latent", "n": 4})
    assert weights.shape == (4, 4)
    assert 0.005 < weights.std() < 0.05
    assert 0.005 < started("residual", residual_scores=True).std() < 0.05


def test_the_first_step_of_a_one_hot_mix_is_that_of_head_zero() -> None:
    """H7: the loss at step 0 with `with_head_zero` (and its bias) equals that of `none`."""
    tokens = torch.randint(31, (2, 10), generator=torch.Generator().manual_seed(0))
    expected = build().logits(tokens)
    for preset in ("with_head_zero", "with_head_zero_and_bias"):
        assert torch.allclose(build(preset=preset).logits(tokens), expected, atol=1e-6)
    assert torch.allclose(
        build(preset="linear_combo_head_two").logits(tokens), build(preset="head_two").logits(tokens), atol=1e-6
    )


def test_mixing_parameters_have_rates_of_their_own_and_no_decay() -> None:
    """S1-45, S1-49, S1-64."""

    def specs(**attention: Any) -> dict[str, Any]:
        table = parameter_table(build(**attention))
        return {name.removeprefix("blocks.1.attention."): found for name, found in table.items()}

    for scores in (combination(bias=True, lr_multiplier=0.1), {"kind": "latent", "lr_multiplier": 0.1}):
        found = specs(scores=scores)
        for name in ("selector.weight", "selector.bias"):
            assert found[name].lr_multiplier == 0.1
            assert not found[name].decay
        assert found["qkv.weight"].lr_multiplier == 1.0
    assert not specs(residual_scores=True)["residual"].decay
    protector = specs(preset="linear_combo")
    assert protector["protector.weight"].decay
    assert protector["protector.weight"].lr_multiplier == 1.0
    assert not protector["protector.bias"].decay


@pytest.mark.parametrize(
    "attention",
    [{"scores": {"kind": "selectors", "n_heads": 2}}, {"scores": {"kind": "latent"}}, {"scores": combination()}],
)
def test_selectors_redraw_nothing_of_the_heads(attention) -> None:
    plain, other = build(), build(**attention)
    specs, of_other = parameter_table(plain), parameter_table(other)
    for name, found in specs.items():
        parts = {part.name: part for part in of_other[name].slices}
        for part in found.slices:
            a, b = part.view(plain.get_parameter(name)), parts[part.name].view(other.get_parameter(name))
            assert torch.equal(a, b)
    more = build(scores={"kind": "selectors", "n_heads": 3})
    if attention["scores"].get("n_heads"):
        name = "blocks.0.attention.qkv.weight"
        ours = {part.name: part.view(other.get_parameter(name)) for part in of_other[name].slices}
        theirs = {part.name: part.view(more.get_parameter(name)) for part in parameter_table(more)[name].slices}
        assert torch.equal(ours["qs.1"], theirs["qs.1"])
        assert torch.equal(ours["ks.0"], theirs["ks.0"])
        assert not torch.equal(ours["qs.0"], ours["q.0"])


def test_both_arms_scale_their_output_projection() -> None:
    """H13: the standard deviation of every tensor is the same in the softmax and in the selective arm."""
    softmax = GPTConfig.model_validate({"d_model": 24, "n_layers": 2, "n_heads": 4, "d_head": 8}).build(31, 10)
    specs, others = parameter_table(softmax), parameter_table(build())
    assert specs == others
    assert others["blocks.0.attention.out.weight"].std == 0.02 / 4**0.5


def test_one_score_is_what_it_should_be() -> None:
    """H1: with q = k = e_1 sqrt(D) the score is sqrt(D), not D sqrt(D)."""
    attention = make(selective(), rotary=False)
    assert isinstance(attention, SelectiveAttention)
    e = torch.zeros(1, 3, 4, D_HEAD, dtype=torch.float64)
    e[..., 0] = D_HEAD**0.5
    raw, _ = attention._raw(e, e, None)
    assert torch.allclose(raw, torch.full_like(raw, D_HEAD**0.5))


def test_costs_of_what_is_added() -> None:
    """S1-52: arms print what their selectors cost."""
    pair, place = 12 * 4 * 8, 2 * 4 * 8 * 4
    two = module(scores={"kind": "selectors", "n_heads": 2})
    assert two.flops_per_token(10) == 10 * (pair + 2 * (4 + 2 * 2) + 3 * 2 * 2 * 8)
    assert two.state_bytes(10) == 10 * (place + 4 * (2 * 8 + 2))
    latent = module(scores={"kind": "latent", "n": 2})
    assert latent.flops_per_token(10) == 10 * (pair + 2 * (4 + 2 * 4) + 3 * (2 * 8 + 2 * 4 * 2))
    protected = module(accumulate={"kind": "protect"}, penalty={})
    assert protected.flops_per_token(10) == 10 * (pair + 2 * (4 + 9))
    assert protected.state_bytes(10) == 10 * (place + 4 * 2)
    assert module(residual_scores=True).flops_per_token(10) == 10 * (pair + 2 * (4 + 2) + 3 * 2 * 16)

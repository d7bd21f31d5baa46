"""Gates and protection in the layer: rows S1-30 to S1-34 and S1-60 to S1-70 of docs/selective.md, H4 to H6, H11."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.attention.test_contract import DOCUMENTS, inputs
from tests.attention.test_selectors import combination, equal, masks_of, module, set_to
from tests.attention.variants import protect
from torch import Tensor

from winnow.attention import MixerState, SoftmaxConfig, mixer_state
from winnow.attention.selective import SelectiveAttention
from winnow.kernels.reference import forgotten
from winnow.kernels.rule import Rule

STATES = pytest.mark.parametrize("state", [MixerState(), mixer_state(DOCUMENTS)], ids=["whole", "packed"])
VISIBLE = torch.ones(7, 7).tril().bool()


def guarded(kind: str, scale: float = 1.0, bias: float = 0.0, **source: Any) -> SelectiveAttention:
    return module(accumulate=protect(kind, scale, bias, **source))


def raw_scores(attention: SelectiveAttention) -> Tensor:
    q, k, _ = attention.project(inputs(), MixerState())
    return attention._raw(q, k, None)[0].detach()


def test_the_future_is_zero_before_the_leak() -> None:
    """S1-30, S1-31, S1-33, H4: the source leaked -inf, so its mask was 0 throughout, or NaN."""
    for fields in ({"leak": 0.1}, {"leak": 1.0, "relu_after": True}, {"leak": 0.1, "relu_after": True}):
        attention = module(gate=fields)
        found = masks_of(attention, MixerState())
        assert found.isfinite().all()
        assert found[:, :, VISIBLE].max() > 0.1
        assert (found[..., VISIBLE].min() < -0.01) == ("relu_after" not in fields)
        y = attention(inputs(), MixerState()).y
        assert y.isfinite().all()
        assert not torch.allclose(y, module()(inputs(), MixerState()).y)


def test_relu_moved_after_the_sum() -> None:
    """S1-32: F = relu(sum of raw scores); a later negative score takes an earlier vote back."""
    attention = module(gate={"leak": 1.0, "relu_after": True})
    raw = raw_scores(attention)
    found = masks_of(attention, MixerState())
    for i in range(7):
        for j in range(1, i + 1):
            total = raw[:, 0, j + 1 : i, j].sum(1)
            assert torch.allclose(found[:, 0, i, j], total.clamp(min=0), atol=1e-12)
    falls = found[:, 0].diff(dim=1)[:, VISIBLE[1:, :]]
    assert falls.min() < -0.01


@STATES
def test_relu_before_and_after_is_relu_before(state) -> None:
    """S1-34."""
    equal(module(), module(gate={"relu_after": True}), state)


@STATES
def test_no_protection_is_the_plain_sum(state) -> None:
    """S1-67, S1-69, S1-70: kind zero, scale 0, and a bias below every protection."""
    plain = module()
    equal(plain, guarded("zero"), state)
    equal(plain, guarded("head", scale=0.0), state)
    equal(plain, guarded("head", bias=-1e4), state)
    equal(plain, guarded("leaky", slope=0.0, offset=-0.05), state)
    assert not torch.allclose(plain(inputs(), state).y, guarded("head")(inputs(), state).y, atol=1e-3)


def test_damage_is_never_negative_and_never_more_than_the_votes() -> None:
    """S1-62, H6: the source subtracted health, so votes attracted attention."""
    votes = masks_of(module(), MixerState())[..., VISIBLE]
    for kind in ("head", "leaky", "linear_combination", "constant"):
        found = masks_of(guarded(kind), MixerState())[..., VISIBLE]
        assert (found >= 0).all()
        assert (found <= votes + 1e-12).all()
    assert masks_of(guarded("leaky"), MixerState()).max() > 0.1  # S1-66, H5: infinite protection left none


def test_the_example_of_the_definition() -> None:
    """S1-60: a = [1, 1, 10], p = [5, 0, 0] gives D = [1, 1, 7]; a comment in the source says 6."""
    raw, protector = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    raw[0, 0, 2:5, 1] = torch.tensor([1.0, 1.0, 10.0])
    protector[0, 0, 2, 1] = 5.0
    rule = Rule(spread=(0,), protection="scores")
    found = forgotten(raw, protector, rule, None)[0, 0, :, 1]
    assert found.tolist() == [0, 0, 0, 1, 1, 7]
    health = forgotten(raw, protector + 100, rule, None)[0, 0, :, 1]
    assert health.max() == 0  # the diagonal's own protection holds from the next turn on


def test_a_head_that_never_protects_is_no_protection() -> None:
    """S1-63: head 1 scores strongly negative. It keeps its output, so only what it guards is compared."""
    attention, plain = guarded("head"), module()
    q, k, v = attention.project(inputs(), MixerState())
    q, k = q.clone(), k.clone()
    q[:, :, 1], k[:, :, 1] = 1.0, -10.0
    expected = plain.mix(q, k, v, MixerState())[0]
    assert torch.allclose(attention.mix(q, k, v, MixerState())[0], expected, atol=1e-12)
    k[:, :, 1] = 10.0
    assert not torch.allclose(attention.mix(q, k, v, MixerState())[0], plain.mix(q, k, v, MixerState())[0], atol=1e-3)


def test_a_token_protects_itself_and_bos_may_be_protected() -> None:
    """S1-63: neither the diagonal nor the first column of p is zeroed."""
    raw, protector = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    raw[0, 0, 2:, :2] = 1.0
    rule = Rule(spread=(0,), protection="scores", protect_bos=False)
    protector[0, 0, 1, 1] = protector[0, 0, 0, 0] = 1.5
    found = forgotten(raw, protector, rule, None)[0, 0]
    assert found[:, 0].tolist() == [0, 0, 0, 0, 0.5]
    assert found[:, 1].tolist() == [0, 0, 0, 0, 0.5]


@STATES
def test_one_hot_protector_equals_head_two(state) -> None:
    """S1-64, S1-65."""
    linear = guarded("linear_combination", init="second")
    set_to(linear, {"protector.weight": torch.tensor([0.0, 1.0, 0.0, 0.0]), "protector.bias": 0.0})
    equal(guarded("head"), linear, state)
    set_to(linear, {"protector.weight": 0.0, "protector.bias": 0.7})
    equal(guarded("constant", value=0.7), linear, state)  # on visible pairs alone, or packed rows would differ
    both = module(scores=combination(), accumulate=protect("linear_combination"))
    set_to(both, {"selector.weight": torch.tensor([1.0, 0, 0, 0]), "protector.weight": torch.eye(4)[1]})
    set_to(both, {"protector.bias": 0.0})
    equal(guarded("head"), both, state)


def test_negative_scores_protect_under_the_leaky_kind() -> None:
    """S1-66: p = relu(-alpha * r + bias) of the visible scores."""
    attention = guarded("leaky", slope=0.5, offset=0.1)
    raw = raw_scores(attention)[:, 0]
    found = masks_of(attention, MixerState())[:, 0]
    for b in range(2):
        for j in range(1, 7):
            R = D = 0.0
            for t in range(j, 7):
                assert found[b, t, j] == pytest.approx(D, abs=1e-12)
                r = float(raw[b, t, j])
                attack = max(r, 0.0) if t > j else 0.0
                D, R = D + max(attack - R, 0.0), max(R - attack, 0.0)
                R += max(-0.5 * r + 0.1, 0.0)


def test_big_constant_is_unselective_until_a_vote_beats_it() -> None:
    """S1-68: 50 nats per elapsed turn."""
    softmax = SoftmaxConfig().build(module().shape).double()
    attention = guarded("constant", value=1e6)
    softmax.load_state_dict(attention.state_dict())
    assert torch.allclose(attention(inputs(), MixerState()).y, softmax(inputs(), MixerState()).y, atol=1e-12)
    raw = torch.zeros(1, 1, 4, 4)
    raw[0, 0, 2, 1] = 130.0
    rule = Rule(spread=(0,), protection="constant", protection_offset=50.0)
    assert forgotten(raw, None, rule, None)[0, 0, 3, 1] == 80.0  # one turn has elapsed: the token's own


@STATES
def test_scale_comes_before_bias(state) -> None:
    """S1-69, S1-70: p = relu(c p + b)."""
    equal(guarded("constant", 2.0, 0.3, value=0.5), guarded("constant", value=1.3), state)
    equal(guarded("constant", 2.0, -0.9, value=0.5), guarded("constant", value=0.1), state)
    equal(guarded("zero", bias=0.4), guarded("constant", value=0.4), state)


@STATES
@pytest.mark.parametrize("algorithm", ["library", "sequential", "tree"])
@pytest.mark.parametrize("kind", ["none", "head", "zero"])
def test_algorithms_and_dtypes_are_one_function(state, algorithm, kind) -> None:
    """S1-80 to S1-84 in the layer; how exact each is: docs/numerics.md."""
    table = {"kind": "sum"} if kind == "none" else protect(kind)
    equal(module(accumulate=table), module(accumulate={**table, "algorithm": algorithm}), state)
    equal(module(accumulate=table), module(accumulate={**table, "algorithm": algorithm, "dtype": "float64"}), state)

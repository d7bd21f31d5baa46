"""Surgery on weights: compared with head blocks cut out by hand, and with the logits of the model as it was."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from tests.train.mechanisms import ChargedConfig
from torch import Tensor

from winnow.attention import SelectiveConfig, SoftmaxConfig
from winnow.errors import InputError
from winnow.models import GPTConfig, ModelConfig
from winnow.models.grafts import AddHeads, GraftConfig, RemoveHeads, SwitchAttention
from winnow.models.surgery import Operation, operate, peaks
from winnow.parameters import initialise
from winnow.train.losses import tensors_of

C, H, D, V, T = 24, 3, 4, 13, 10
MODEL: dict[str, Any] = {"d_model": C, "n_layers": 2, "n_heads": H, "d_head": D, "d_ff": 20}
INITS = ("normal", "o_rescaled", "o_zero", "k_zero", "ko_zero", "zero")
SELECTIVE = {"kind": "selective"}
WEIGHT, BIAS = "blocks.1.attention.qkv.weight", "blocks.1.attention.qkv.bias"
OUT, OUT_BIAS = "blocks.1.attention.out.weight", "blocks.1.attention.out.bias"


def gpt(**changes: Any) -> GPTConfig:
    return GPTConfig.model_validate({**MODEL, **changes})


def generic(config: ModelConfig, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Weights such as training leaves them: nothing is 0."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64).mul(0.5).to(dtype)
        for name, tensor in tensors_of(config.build(V, T)).items()
    }


def logits(config: Any, weights: dict[str, Tensor]) -> Tensor:
    model = config.build(V, T).double().eval()
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(weights[name])
        return model.logits(torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1)))


def graft(config: ModelConfig, weights: dict[str, Tensor], *grafts: GraftConfig, **more: Any) -> Operation:
    return operate(config, weights, grafts, vocab_size=V, context=T, seed=5, **more)


def heads(weights: dict[str, Tensor], n: int) -> tuple[Tensor, Tensor, Tensor]:
    """QKV as (q k v, head, d_head, C), its bias as (q k v, head, d_head), O as (C, head, d_head)."""
    return (weights[WEIGHT].view(3, n, D, C), weights[BIAS].view(3, n, D), weights[OUT].view(C, n, D))


def test_a_head_of_the_small_gpt2_costs_and_starts_as_published():
    config = gpt(d_model=768, n_layers=1, n_heads=12, d_head=64, d_ff=8)
    weights = {name: torch.zeros(t.shape) for name, t in tensors_of(config.build(V, T)).items()}
    found = graft(config, weights, AddHeads())
    assert found.report.added == 196_800
    q, o = found.weights["blocks.0.attention.qkv.weight"][:64], found.weights["blocks.0.attention.out.weight"][:, :64]
    assert float(q.std()) == pytest.approx(0.0208, abs=2e-4)
    assert float(o.std()) == pytest.approx(0.0200, abs=2e-4)


@pytest.mark.parametrize(("init", "at", "n"), [*product(INITS, ("start", "end"), (1,)), ("normal", "start", 2)])
def test_old_heads_stay_and_new_ones_start_as_defined(init, at, n):
    config = gpt()
    weights = generic(config)
    found = graft(config, weights, AddHeads(n=n, at=at, init=init))
    old, new = (slice(n, None), slice(0, n)) if at == "start" else (slice(0, H), slice(H, None))
    for i, (before, after) in enumerate(zip(heads(weights, H), heads(found.weights, H + n), strict=True)):
        assert torch.equal(after[:, old], before), i
    qkv, bias, out = (tensor[:, new] for tensor in heads(found.weights, H + n))
    assert not bias.any()
    zero = {"o_zero": "o", "k_zero": "k", "ko_zero": "ko", "zero": "qkvo"}.get(init, "")
    for block, letter, fan_in in ((qkv[0], "q", C), (qkv[1], "k", C), (qkv[2], "v", C), (out, "o", (H + n) * D)):
        bound = fan_in**-0.5 / (5 if letter == "o" and init == "o_rescaled" else 1)
        largest = float(block.abs().max())
        assert largest == 0 if letter in zero else 0.8 * bound < largest <= bound, letter
    untouched = weights.keys() - {name for name in weights if "attention" in name and name != OUT_BIAS}
    for name in untouched:
        assert torch.equal(found.weights[name], weights[name]), name


def test_fresh_values_are_uniform():
    config = gpt(d_model=256, n_layers=1, d_head=64)
    found = graft(config, generic(config, torch.float32), AddHeads()).weights
    q, o = found["blocks.0.attention.qkv.weight"][:64], found["blocks.0.attention.out.weight"][:, :64]
    for block, fan_in in ((q, 256), (o, 4 * 64)):
        scaled = (block * fan_in**0.5).flatten().double()
        assert abs(float(scaled.mean())) < 0.02
        assert abs(float(scaled.std()) - 3**-0.5) < 0.01
        assert abs(float((scaled.abs() < 0.5).double().mean()) - 0.5) < 0.02
    assert q.flatten()[:9].tolist() != o.flatten()[:9].tolist()


MODELS: list[dict[str, Any]] = [
    {},
    {"positions": "rotary", "bias": False, "norm": {"kind": "rmsnorm"}, "tied": False, "max_seq_len": 32},
]
KEPT = {("softmax", at): {"o_zero", "ko_zero", "zero"} for at in ("start", "end")} | {
    ("selective", "end"): {"o_zero", "ko_zero", "zero"},
    ("selective", "start"): set[str](),  # the new head selects in the place of the old one
}


@pytest.mark.parametrize(("kind", "changes"), [*(("softmax", changes) for changes in MODELS), ("selective", MODELS[1])])
def test_which_starts_keep_the_function(kind, changes):
    config = gpt(n_layers=1, **changes, attention={"kind": kind})
    weights = generic(config)
    before = logits(config, weights)
    for at, init in product(("start", "end"), INITS):
        found = graft(config, weights, AddHeads(at=at, init=init))
        change = float((logits(found.config, found.weights) - before).abs().max())
        kept = init in KEPT[kind, at]
        assert found.report.preserves == kept, (at, init)
        assert change <= 1e-12 if kept else change > 1e-6, (at, init)


@pytest.mark.parametrize(("init", "kept"), [("ko_zero", True), ("zero", True), ("o_zero", False), ("k_zero", False)])
def test_a_head_that_votes_nothing_makes_a_softmax_model_selective(init, kept):
    """Step 0 of a restart with a selective head: k_zero adds a mean of values, o_zero selects from the first step."""
    config = gpt()
    weights = generic(config)
    found = graft(config, weights, AddHeads(init=init), SwitchAttention(attention=SelectiveConfig()))
    change = float((logits(found.config, found.weights) - logits(config, weights)).abs().max())
    assert found.report.preserves == kept
    assert change <= 1e-12 if kept else change > 1e-6


MECHANISMS: list[dict[str, Any]] = [
    {"scores": {"kind": "linear_combination", "bias": True}},
    {"scores": {"kind": "selectors", "n_heads": 2}},
    {"scores": {"kind": "latent", "n": 2}},
    {"residual_scores": True},
    {"residual_scores": True, "scores": {"kind": "linear_combination"}},
    {"accumulate": {"kind": "protect", "source": {"kind": "linear_combination"}}},
]


@pytest.mark.parametrize("options", MECHANISMS)
@pytest.mark.parametrize("at", [pytest.param("start", marks=pytest.mark.soak), "end"])
def test_what_a_mechanism_learns_per_head_follows_its_head(options, at):
    """A head that adds nothing leaves the others as they were: their masks and mixes have moved with them."""
    config = gpt(attention={**SELECTIVE, **options})
    weights = generic(config)
    found = graft(config, weights, AddHeads(at=at, init="ko_zero"))
    change = float((logits(found.config, found.weights) - logits(config, weights)).abs().max())
    # The protected or residual variants select by head 0, which at the start is the new head.
    kept = at == "end" or options.get("scores", {"kind": "head"})["kind"] != "head"
    assert found.report.preserves == kept
    assert change <= 1e-12 if kept else change > 1e-6
    back = graft(found.config, found.weights, RemoveHeads(heads=(0 if at == "start" else H,)))
    assert back.config == config
    assert back.weights.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(back.weights[name], tensor), name


def test_the_weights_of_a_mix_move_along_both_axes():
    config = gpt(attention={**SELECTIVE, "residual_scores": True, "scores": {"kind": "linear_combination"}})
    weights = generic(config)
    found = graft(config, weights, AddHeads()).weights
    residual, mix = "blocks.1.attention.residual", "blocks.0.attention.selector.weight"
    assert torch.equal(found[residual][1:, 1:], weights[residual])
    assert not found[residual][0].any()
    assert not found[residual][:, 0].any()
    assert torch.equal(found[mix][1:], weights[mix])
    assert found[mix][0] == 0


def test_removed_heads_are_those_that_were_named():
    config = gpt(n_heads=5)
    weights = generic(config)
    found = graft(config, weights, RemoveHeads(heads=(3, 0)))
    for before, after in zip(heads(weights, 5), heads(found.weights, 3), strict=True):
        assert torch.equal(after, before[:, [1, 2, 4]])
    assert found.report.added == -2 * 2 * (4 * D * C + 3 * D)
    assert not found.report.preserves
    assert not found.report.fresh
    assert set(found.report.dropped) == {
        f"blocks.{layer}.attention.{tensor}[{letter}.{head}]"
        for layer, head in product((0, 1), (0, 3))
        for tensor, letters in (("qkv.weight", "qkv"), ("qkv.bias", "qkv"), ("out.weight", "o"))
        for letter in letters
    }


def test_a_mute_head_may_go_without_loss():
    """Not by the kind of graft, but because of zeros in the weights: what `ko_zero` added and nobody trained."""
    config = gpt()
    found = graft(config, generic(config), AddHeads(at="end", init="ko_zero"))
    assert graft(found.config, found.weights, RemoveHeads(heads=(H,))).report.preserves
    assert not graft(found.config, found.weights, RemoveHeads(heads=(0,))).report.preserves


def test_softmax_and_selective_share_what_both_have():
    config, weights = gpt(), generic(gpt())
    there = graft(config, weights, SwitchAttention(attention=SelectiveConfig()))
    assert there.weights.keys() == weights.keys()
    assert all(torch.equal(there.weights[name], weights[name]) for name in weights)
    assert (there.report.fresh, there.report.added, there.report.preserves) == ({}, 0, False)
    off = graft(config, weights, SwitchAttention(attention=SelectiveConfig(selection=False)))
    assert off.report.preserves
    back = graft(there.config, there.weights, SwitchAttention(attention=SoftmaxConfig()))
    assert back.config == config
    assert all(torch.equal(back.weights[name], weights[name]) for name in weights)


def test_dedicated_selectors_are_fresh_and_widen():
    config, weights = gpt(), generic(gpt(), torch.float32)
    one = SelectiveConfig.model_validate({"scores": {"kind": "selectors"}, "residual_scores": True})
    there = graft(config, weights, SwitchAttention(attention=one))
    qkv = there.weights[WEIGHT]
    assert torch.equal(qkv[: H * D], weights[WEIGHT][: H * D])
    assert torch.equal(qkv[(H + 1) * D : (2 * H + 1) * D], weights[WEIGHT][H * D : 2 * H * D])
    assert torch.equal(qkv[(2 * H + 2) * D :], weights[WEIGHT][2 * H * D :])
    fresh = qkv[H * D : (H + 1) * D]
    assert abs(float(fresh.std()) - 0.02) < 0.005
    assert set(there.report.fresh[WEIGHT]) == {"qs.0", "ks.0"}
    assert len(there.report.fresh["blocks.1.attention.residual"]) == H * H
    assert "blocks.0.attention.residual" not in there.report.fresh
    assert there.report.added == 2 * (2 * D * C + 2 * D) + H * H
    two = SelectiveConfig.model_validate({"scores": {"kind": "selectors", "n_heads": 2}})
    wider = graft(there.config, there.weights, SwitchAttention(attention=two))
    assert torch.equal(wider.weights[WEIGHT][: (H + 1) * D], qkv[: (H + 1) * D])
    assert set(wider.report.fresh[WEIGHT]) == {"qs.1", "ks.1"}
    assert {name for name in wider.report.dropped if "residual" not in name} == set()
    assert len(wider.report.dropped) == H * H
    back = graft(wider.config, wider.weights, SwitchAttention(attention=SoftmaxConfig()))
    assert all(torch.equal(back.weights[name], weights[name]) for name in weights)


def test_a_mix_starts_where_the_table_of_parameters_says():
    config, weights = gpt(), generic(gpt())
    options = SelectiveConfig.model_validate({"scores": {"kind": "linear_combination", "scale": 4.0, "bias": True}})
    found = graft(config, weights, SwitchAttention(attention=options)).weights
    assert found["blocks.1.attention.selector.weight"].tolist() == [0.25, 0.0, 0.0]
    assert found["blocks.1.attention.selector.bias"].tolist() == [0.0]


def test_a_map_of_other_slices_starts_anew():
    options = {"scores": {"kind": "latent", "n": 2}}
    config = gpt(attention={**SELECTIVE, **options})
    weights = generic(config)
    four = SelectiveConfig.model_validate({"scores": {"kind": "latent", "n": 4}})
    report = graft(config, weights, SwitchAttention(attention=four)).report
    assert report.fresh == {f"blocks.{i}.attention.selector.weight": ("m.0", "m.1", "m.2") for i in (0, 1)}


def test_nothing_that_is_given_is_changed_or_shared():
    config = gpt(attention=SELECTIVE)
    weights = generic(config)
    moments = {
        f"{name}/{kind}": tensor.clone() for name, tensor in weights.items() for kind in ("exp_avg", "exp_avg_sq")
    }
    copies = {name: tensor.clone() for name, tensor in {**weights, **moments}.items()}
    probe = torch.randint(V, (2, T)), torch.randint(V, (2, T))
    for grafts in ((), (AddHeads(),), (RemoveHeads(heads=(1,)), SwitchAttention(attention=SoftmaxConfig()))):
        found = graft(config, weights, *grafts, moments=moments, probe=probe)
        for tensor in (*found.weights.values(), *found.moments.values()):
            tensor.fill_(9.0)
        assert all(torch.equal({**weights, **moments}[name], copy) for name, copy in copies.items())


def test_fresh_values_depend_on_seed_place_and_slice_alone():
    config, weights = gpt(), generic(gpt())
    one = graft(config, weights, AddHeads()).weights
    assert all(torch.equal(one[name], tensor) for name, tensor in graft(config, weights, AddHeads()).weights.items())
    two = graft(config, weights, AddHeads(n=2)).weights
    assert torch.equal(heads(two, H + 2)[0][:, 0], heads(one, H + 1)[0][:, 0])
    assert not torch.equal(heads(two, H + 2)[0][:, 1], heads(one, H + 1)[0][:, 0])
    other = operate(config, weights, [AddHeads()], vocab_size=V, context=T, seed=6).weights
    assert not torch.equal(heads(other, H + 1)[0][:, 0], heads(one, H + 1)[0][:, 0])
    twice = graft(config, weights, AddHeads(), AddHeads()).weights
    assert torch.equal(heads(twice, H + 2)[0][:, 1], heads(one, H + 1)[0][:, 0])
    assert not torch.equal(heads(twice, H + 2)[0][:, 0], heads(one, H + 1)[0][:, 0])


def test_a_fresh_model_is_grafted_by_the_same_function():
    config = gpt()
    model = config.build(V, T)
    initialise(model, 0)
    weights = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    found = graft(config, weights, AddHeads(init="o_rescaled"))
    assert isinstance(found.config, GPTConfig)
    assert found.config.n_heads == H + 1
    for before, after in zip(heads(weights, H), heads(found.weights, H + 1), strict=True):
        assert torch.equal(after[:, 1:], before)


def test_moments_follow_their_heads_and_fresh_ones_are_zero():
    config, weights = gpt(), generic(gpt())
    moments: dict[str, Tensor] = {}
    for index, (name, tensor) in enumerate(weights.items()):
        if name.startswith("positions"):
            continue  # never had a gradient
        moments[f"{name}/exp_avg"] = torch.randn(tensor.shape)
        moments[f"{name}/exp_avg_sq"] = torch.rand(tensor.shape)
        moments[f"{name}/step"] = torch.tensor(100.0 + index)
    selectors = SelectiveConfig.model_validate({"scores": {"kind": "selectors"}, "residual_scores": True})
    found = graft(config, weights, AddHeads(), SwitchAttention(attention=selectors), moments=moments)
    assert found.moments.keys() == moments.keys()  # the new matrices have none
    for kind in ("exp_avg", "exp_avg_sq"):
        of = {name: moments[f"{name}/{kind}"] for name in (WEIGHT, BIAS, OUT)}
        new = {name: found.moments[f"{name}/{kind}"] for name in (WEIGHT, BIAS, OUT)}
        assert torch.equal(new[OUT][:, D:], of[OUT])
        assert not new[OUT][:, :D].any()
        for name in (WEIGHT, BIAS):
            q, qs, k, ks, v = new[name].split([4 * D, D, 4 * D, D, 4 * D])
            assert torch.equal(torch.cat((q[D:], k[D:], v[D:])), of[name])
            assert not torch.cat((q[:D], k[:D], v[:D], qs, ks)).any()
    assert all(found.moments[name] == moment for name, moment in moments.items() if name.endswith("/step"))
    assert torch.equal(found.moments["embedding.weight/exp_avg"], moments["embedding.weight/exp_avg"])


def test_the_probe_measures_what_has_changed():
    config, weights = gpt(), generic(gpt())
    tokens, targets = probe = torch.randint(V, (2, 3, T), generator=torch.Generator().manual_seed(2)).unbind()
    found = graft(config, weights, AddHeads(), probe=probe)
    models = []
    for of, values in ((config, weights), (found.config, found.weights)):
        model = of.build(V, T).double()
        with torch.no_grad():
            for name, tensor in tensors_of(model).items():
                tensor.copy_(values[name])
            models.append(model.logits(tokens))
    picked = [m.log_softmax(-1).gather(2, targets[..., None]).mean() for m in models]
    assert found.report.max_logit_change == pytest.approx(float((models[1] - models[0]).abs().max()), rel=1e-12)
    assert found.report.ce_change == pytest.approx(float(picked[0] - picked[1]), rel=1e-9)
    assert graft(config, weights, AddHeads()).report.max_logit_change is None
    still = graft(config, weights, AddHeads(init="ko_zero"), probe=probe).report
    assert still.max_logit_change is not None
    assert still.max_logit_change < 1e-12


def test_weights_and_moments_of_another_model_are_refused_by_name():
    config, weights = gpt(), generic(gpt())
    with pytest.raises(InputError, match=r"the weights have no norm\.weight"):
        graft(config, {name: t for name, t in weights.items() if name != "norm.weight"}, AddHeads())
    with pytest.raises(InputError, match="the weights have a tail, the model has none"):
        graft(config, {**weights, "tail": torch.zeros(1)}, AddHeads())
    with pytest.raises(InputError, match=r"norm\.weight is \[3\], the model's is \[24\]"):
        graft(config, {**weights, "norm.weight": torch.zeros(3)}, AddHeads())
    with pytest.raises(InputError, match="moments of 'tail', which the model has not"):
        graft(config, weights, AddHeads(), moments={"tail/exp_avg": torch.zeros(3)})
    with pytest.raises(InputError, match=r"norm\.weight/exp_avg is \[3\]"):
        graft(config, weights, AddHeads(), moments={"norm.weight/exp_avg": torch.zeros(3)})
    with pytest.raises(InputError, match="head 7 is not one of 4") as caught:
        graft(config, weights, AddHeads(), RemoveHeads(heads=(7,)))
    assert caught.value.key == "1.heads"


def test_a_mechanism_without_slices_per_head_is_refused_by_name_and_may_be_switched():
    config = gpt(attention=ChargedConfig())
    weights = generic(config)
    gain = "blocks.0.attention.gain"
    with pytest.raises(InputError, match=rf"add-heads cannot carry {gain}: it changes its shape with the heads"):
        graft(config, weights, AddHeads())
    plain = graft(config, weights, SwitchAttention(attention=SoftmaxConfig()))
    assert plain.report.dropped == (gain, gain.replace("0", "1"))
    assert plain.report.added == -2 * H
    back = graft(plain.config, plain.weights, SwitchAttention(attention=ChargedConfig()))
    assert back.report.fresh == {gain: ("",), gain.replace("0", "1"): ("",)}
    assert back.report.wakes == {gain: 1, gain.replace("0", "1"): 1}
    assert abs(float(back.weights[gain].std()) - 0.02) < 0.02


def test_peaks_say_whether_all_of_a_graft_is_non_zero():
    config, weights = gpt(), generic(gpt())
    found = graft(config, weights, AddHeads(init="ko_zero"))
    of = peaks(found.config, found.weights, found.report.fresh, vocab_size=V, context=T)
    assert of.keys() == found.report.wakes.keys() | set(found.report.idle)
    assert {name for name, peak in of.items() if peak == 0} == {
        f"blocks.{layer}.attention.{part}"
        for layer in (0, 1)
        for part in ("qkv.weight[k.0]", "out.weight[o.0]", *(f"qkv.bias[{letter}.0]" for letter in "qkv"))
    }
    found.weights[WEIGHT][0, 0] = -7.0
    assert peaks(found.config, found.weights, found.report.fresh, vocab_size=V, context=T)[f"{WEIGHT}[q.0]"] == 7.0

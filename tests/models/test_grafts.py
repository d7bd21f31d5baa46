"""Grafts as config: what the model is afterwards, what they refuse, and that they are read like any other config."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from winnow.attention import SelectiveConfig, SoftmaxConfig
from winnow.errors import InputError
from winnow.models import GPTConfig
from winnow.models.grafts import AddHeads, GraftConfig, RemoveHeads, SwitchAttention, grow

MODEL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 4}


def gpt(**changes: Any) -> GPTConfig:
    return GPTConfig.model_validate({**MODEL, **changes})


def selective(**options: Any) -> GPTConfig:
    return gpt(attention={"kind": "selective", **options})


def spread_of(model: Any) -> Any:
    assert isinstance(model.attention, SelectiveConfig)
    return model.attention.spread


def test_tables_become_grafts_and_back():
    tables = [
        {"kind": "add-heads", "n": 2, "at": "end", "init": "ko_zero"},
        {"kind": "remove-heads", "heads": [3, 0]},
        {"kind": "switch-attention", "attention": {"kind": "selective", "preset": "head_two"}},
    ]
    grafts = [GraftConfig.model_validate(table) for table in tables]
    assert grafts[0] == AddHeads(n=2, at="end", init="ko_zero")
    assert grafts[1] == RemoveHeads(heads=(0, 3))
    assert [GraftConfig.model_validate(graft.dump()) for graft in grafts] == grafts
    assert len({graft.digest() for graft in grafts}) == 3


def test_heads_are_added_and_width_stays():
    grown = grow(gpt(), [AddHeads(n=2), AddHeads(at="end")])
    assert isinstance(grown, GPTConfig)
    assert (grown.n_heads, grown.n_kv_heads, grown.d_head, grown.d_ff) == (7, 7, 4, 64)
    assert grow(gpt(), []) == gpt()


def test_thirteen_heads_of_the_small_gpt2():
    grown = grow(GPTConfig.model_validate({"preset": "gpt2-124m"}), [AddHeads()])
    assert isinstance(grown, GPTConfig)
    assert (grown.n_heads, grown.d_head, grown.d_model) == (13, 64, 768)


def test_removal_undoes_addition():
    scores = ({"kind": "head"}, {"kind": "selectors", "n_heads": 2}, {"kind": "latent", "n": 2})
    for model in (gpt(), *(selective(scores=each) for each in scores)):
        assert grow(model, [AddHeads(n=2), RemoveHeads(heads=(0, 1))]) == model
        assert grow(model, [AddHeads(at="end"), RemoveHeads(heads=(4,))]) == model


def test_heads_shared_by_queries_are_refused():
    for graft in (AddHeads(), RemoveHeads(heads=(0,))):
        with pytest.raises(InputError, match="4 heads share 2"):
            grow(gpt(n_kv_heads=2), [graft])
    assert (
        grow(gpt(n_kv_heads=2), [SwitchAttention(attention=SelectiveConfig())]).dump()["attention"]["kind"]
        == "selective"
    )


@pytest.mark.parametrize(
    ("heads", "message"),
    [((4,), "head 4 is not one of 4; use 0 to 3"), ((0, 1, 2, 3), "no head would be left")],
)
def test_removals_that_do_not_fit(heads, message):
    with pytest.raises(InputError, match=message) as caught:
        grow(gpt(), [AddHeads(at="end"), RemoveHeads(heads=(4,)), RemoveHeads(heads=heads)])
    assert caught.value.key == "2.heads"


@pytest.mark.parametrize("heads", [[], [1, 1], [-1]])
def test_removals_that_are_none(heads):
    with pytest.raises(ValidationError):
        RemoveHeads.model_validate({"heads": heads})


def test_old_heads_read_the_masks_that_they_read():
    two = selective(scores={"kind": "selectors", "n_heads": 2})  # spread: 0 0 1 1
    assert spread_of(grow(two, [AddHeads(at="end")])) == "grouped"  # 0 0 1 1, and 0 is left over
    assert spread_of(grow(two, [AddHeads(at="start")])) == (0, 0, 0, 1, 1)
    assert spread_of(grow(two, [RemoveHeads(heads=(0,))])) == (0, 1, 1)
    by_hand = selective(scores={"kind": "selectors", "n_heads": 2}, spread=(1, 0, 1, 0))
    assert spread_of(grow(by_hand, [AddHeads()])) == (0, 1, 0, 1, 0)
    assert spread_of(grow(by_hand, [RemoveHeads(heads=(3,))])) == (1, 0, 1)


def test_a_mask_per_head_follows_its_head():
    latent = {"kind": "latent", "n": 2}
    assert spread_of(grow(selective(scores=latent), [AddHeads()])) == "grouped"
    crossed = selective(scores=latent, spread=(1, 0, 3, 2))
    assert spread_of(grow(crossed, [AddHeads()])) == (0, 2, 1, 4, 3)
    assert spread_of(grow(crossed, [RemoveHeads(heads=(0, 1))])) == (1, 0)
    with pytest.raises(InputError, match="head 0 reads the mask of head 1, which goes") as caught:
        grow(crossed, [RemoveHeads(heads=(1,))])
    assert caught.value.key == "0.attention.spread"


def test_a_mask_that_nobody_would_read_is_refused():
    two = selective(scores={"kind": "selectors", "n_heads": 2})
    with pytest.raises(InputError, match="no head reads mask 0"):
        grow(two, [RemoveHeads(heads=(0, 1))])


def test_a_head_named_by_the_mechanism_must_stay():
    with pytest.raises(InputError, match="head 3 is not one of 3") as caught:
        grow(selective(scores={"kind": "head", "head": 3}), [RemoveHeads(heads=(0,))])
    assert caught.value.key == "0.attention.scores.head"


def test_selection_that_is_off_has_nothing_to_follow():
    off = selective(selection=False)
    grown = grow(off, [AddHeads()])
    assert isinstance(grown, GPTConfig)
    assert grown.attention == off.attention


def test_the_mechanism_is_switched_and_must_fit():
    assert grow(selective(), [SwitchAttention(attention=SoftmaxConfig())]) == gpt()
    with pytest.raises(InputError, match="head 4 is not one of 4") as caught:
        grow(
            gpt(), [SwitchAttention(attention=SelectiveConfig.model_validate({"scores": {"kind": "head", "head": 4}}))]
        )
    assert caught.value.key == "0.attention.scores.head"

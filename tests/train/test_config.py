"""RunConfig: what follows is filled in, what does not divide is refused, what changes no result is no identity."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.train.runs import make, table

from winnow.errors import InputError
from winnow.train.config import RunConfig, TrainConfig, split_update

sizes = st.integers(1, 24)


@given(context=sizes, micro_batch=sizes, accumulation=sizes)
def test_any_way_to_write_an_update_gives_the_same_one(context: int, micro_batch: int, accumulation: int) -> None:
    tokens = context * micro_batch * accumulation
    for given_batch, given_passes in ((micro_batch, accumulation), (micro_batch, None), (None, accumulation)):
        train = TrainConfig(tokens_per_update=tokens, micro_batch=given_batch, accumulation=given_passes)
        assert split_update(train, context) == (micro_batch, accumulation)
    assert split_update(TrainConfig(tokens_per_update=tokens), context) == (micro_batch * accumulation, 1)


@given(context=sizes, tokens=st.integers(1, 400), micro_batch=st.none() | sizes, accumulation=st.none() | sizes)
def test_an_update_divides_exactly_or_is_refused(
    context: int, tokens: int, micro_batch: int | None, accumulation: int | None
) -> None:
    train = TrainConfig(tokens_per_update=tokens, micro_batch=micro_batch, accumulation=accumulation)
    wanted = context * (micro_batch or 1) * (accumulation or 1)
    exact = tokens == wanted if micro_batch and accumulation else tokens % wanted == 0
    if not exact:
        with pytest.raises(InputError, match=r"train\.(tokens_per_update|micro_batch|accumulation)") as refused:
            split_update(train, context)
        assert refused.value.mend
        return
    batch, passes = split_update(train, context)
    assert context * batch * passes == tokens
    assert micro_batch in (None, batch)
    assert accumulation in (None, passes)


def test_the_stored_config_says_what_ran(text: Path) -> None:
    config = make(text, train__micro_batch=2)
    assert (config.train.micro_batch, config.train.accumulation, config.rows) == (2, 4, 8)
    assert config.dump()["train"]["accumulation"] == 4
    assert RunConfig.model_validate(config.dump()) == config


def test_two_spellings_of_one_update_are_one_experiment(text: Path) -> None:
    assert make(text, train__micro_batch=4).digest() == make(text, train__accumulation=2).digest()
    assert make(text, train__micro_batch=4).digest() != make(text, train__micro_batch=8).digest()


def test_how_often_it_is_saved_is_no_identity(text: Path) -> None:
    assert make(text, train__checkpoint_every=3).digest() == make(text).digest()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"train__tokens_per_update": 100}, "use 96 or 112"),
        ({"train__micro_batch": 3}, "permitted: 1, 2, 4, 8"),
        ({"train__micro_batch": 2, "train__accumulation": 2}, "use 4, or leave it out"),
        ({"train__betas": [0.9, 1.0]}, "less than 1"),
        ({"train__lr": 0.0}, "greater than 0"),
        ({"train__clip": 0.0}, "greater than 0"),
        ({"train__schedule": "cosin"}, "'cosine', 'constant' or 'linear'"),
        ({"train__step": 3}, "did you mean 'steps'"),
        ({"evaluation__tokens": 0}, "greater than 0"),
    ],
)
def test_wrong_values_are_refused_with_a_mend(text: Path, change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        RunConfig.model_validate(table(text, **change))

"""No setting of a model is dead: at any depth, another value changes the model or is refused."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from tests.settings import BASES, shipped, verdicts, verdicts_at

from winnow.attention.convolutional import ConvolutionalConfig, LinearAttention, LinearConfig
from winnow.models import ModelConfig, conv


class PlantedConfig(ConvolutionalConfig):
    """Linear attention with two settings that nothing reads."""

    kind: Literal["planted"] = "planted"
    depth: int = 1
    """Never read."""
    name: str = "any"
    """Of a type of which no value can be invented."""

    @property
    def made(self) -> str:
        return "QK"

    def build(self, channels: int) -> LinearAttention:
        return LinearAttention("elu+1")


PLANTED = ConvolutionalConfig.members.pop("planted")
CONV = BASES["conv"]
KINDS = sorted(member.model_fields["kind"].default for member in shipped(ModelConfig.members.values()))


def dead(table: Any, *at: str | int) -> list[str]:
    return [verdict.field for verdict in verdicts_at(table, at) if verdict.dead]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_acts_or_is_refused(kind: str) -> None:
    found = list(verdicts(kind))
    assert [verdict.field for verdict in found if verdict.dead] == []
    assert len(found) >= len(ModelConfig.members[kind].model_fields) - 1


def test_a_planted_dead_field_is_found_and_one_without_a_value_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ConvolutionalConfig.members, "planted", PLANTED)
    found = verdicts_at({**CONV, "attention": {"kind": "planted"}}, ("attention", 0))
    first = next(found)
    assert (first.field, first.dead) == ("attention.0.depth: 2", True)
    with pytest.raises(AssertionError, match=r"PlantedConfig.name is accepted: say in EXAMPLES"):
        next(found)


def test_an_invention_that_never_reaches_the_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect for which the published tables were withdrawn: every arm had the two letters of the default."""
    linear = {**CONV, "attention": ["none", "none", {"kind": "linear", "qkv": "QK"}]}
    assert dead(linear, "attention", 2) == []
    monkeypatch.setattr(LinearConfig, "made", "QK")
    lost = [f"attention.2.qkv: {letters!r}" for letters in ("QV", "KV", "QKV")]
    assert dead(linear, "attention", 2) == lost
    counts = set()
    for letters in ("QK", "QKV"):
        table = {**CONV, "attention": ["none", "none", {"kind": "linear", "qkv": letters}]}
        counts.add(ModelConfig.model_validate(table).build(9, 8).facts(8)["parameters"])
    assert len(counts) == 1  # what gave it away


def test_a_choice_that_changes_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An activation that is always the same."""
    monkeypatch.setattr(conv, "ACTIVATIONS", dict.fromkeys(conv.ACTIVATIONS, conv.ACTIVATIONS["gelu"]))
    assert [field for field in dead(CONV) if "activation" in field] == [
        f"activation: {name!r}" for name in ("gelu_tanh", "relu", "silu", "tanh")
    ]

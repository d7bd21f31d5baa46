"""Blocks computed again in the backward pass: the same numbers from less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.mechanisms import charged as charged
from tests.train.runs import CPU, make, run_in, said
from torch import Tensor, nn

from winnow.errors import InputError
from winnow.models.base import Facts, Model, Output
from winnow.records.store import RunStore
from winnow.train.config import TrainConfig
from winnow.train.loop import Loop
from winnow.train.losses import losses

pytestmark = pytest.mark.usefixtures("charged")

ATTENTIONS: list[dict[str, Any]] = [
    {"kind": "softmax"},
    {"kind": "selective"},
    {"kind": "selective", "residual_scores": True, "penalty": {"epsilon": 0.5, "form": "mean"}},
    {"kind": "selective", "scores": {"kind": "latent", "n": 2}, "accumulate": {"kind": "protect"}, "penalty": {}},
    {"kind": "charged", "epsilon": 2.0},
    {"kind": "charged", "noise": 0.1},
]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_run_bit_for_bit(store: RunStore, text: Path, attention: dict[str, Any], precision: str) -> None:
    """Noise too: what a mechanism draws is drawn again."""
    common = {"model__n_layers": 2, "model__attention": attention, "train__precision": precision}
    common |= {"train__micro_batch": 4, "train__steps": 4, "train__warmup": 2}
    kept = run_in(store, make(text, **common))
    again = run_in(store, make(text, **common, train__recompute=True))
    assert again.digest != kept.digest
    assert (again.weights, again.trace, said(again)) == (kept.weights, kept.trace, [])
    assert again.provenance.kernels == kept.provenance.kernels


def saved_bytes(text: Path, *, recompute: bool) -> int:
    """Of distinct storages that autograd keeps between the passes of one update."""
    size = {"model__n_layers": 6, "model__attention": {"kind": "selective"}, "task__context": 64}
    config = make(text, **size, train__tokens_per_update=256, train__recompute=recompute)
    loop = Loop(config, seed=0, device=CPU)
    parameters = {p.untyped_storage().data_ptr() for p in loop.model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = losses(loop.model, loop.model, loop.task.batch(0, 0, range(4), 4), CPU, "fp32")
    assert found.ce.requires_grad
    inputs_of_blocks = 6 * 4 * 64 * 16 * 4 if recompute else 0  # held by the checkpoints themselves
    return inputs_of_blocks + sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_keeps_less(text: Path) -> None:
    kept, again = saved_bytes(text, recompute=False), saved_bytes(text, recompute=True)
    assert again < kept / 5


def test_evaluation_computes_each_block_once(text: Path) -> None:
    loop = Loop(make(text, train__recompute=True), seed=0, device=CPU)
    passes: list[bool] = []
    loop.model.get_submodule("blocks.0").register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    loop.evaluate()
    assert passes == [False]
    loop.update()
    assert passes == [False, True, True]


class NoBlocks(Model):
    """A model that has nothing to compute again."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 2))

    @property
    def readout_weight(self) -> Tensor:
        return self.table

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Output:
        return Output(self.table[tokens], ())

    def facts(self, context: int) -> Facts:
        return {}


def test_a_model_without_blocks_refuses() -> None:
    with pytest.raises(InputError, match=r"train\.recompute: NoBlocks has no blocks"):
        NoBlocks().recompute_blocks()


def test_off_is_as_before() -> None:
    """The digest of today's default, as it was before the option."""
    before = "526a715a0664038218d62fdc34310b7fdcd28f25817ff14dc70b24830fb4ad5e"
    assert TrainConfig().digest() == before
    assert TrainConfig(recompute=True).digest() != before

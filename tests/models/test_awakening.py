"""Which update wakes which fresh slice: predicted, and then seen in real updates of AdamW."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from winnow.models import GPTConfig, Model
from winnow.models.awakening import idle
from winnow.models.grafts import AddHeads, GraftConfig, SwitchAttention
from winnow.models.surgery import Operation, operate
from winnow.models.transplant import filled, layout
from winnow.parameters import initialise, parameter_table
from winnow.tasks.base import Batch
from winnow.train.config import TrainConfig
from winnow.train.losses import losses, target_weight, tensors_of
from winnow.train.optim import Optimizer

V, T, B = 13, 12, 4
MODEL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_head": 4, "d_ff": 20}
CPU = torch.device("cpu")
INITS = ("normal", "o_rescaled", "o_zero", "k_zero", "ko_zero", "zero")

# Update that first gives Q, K, V and O a gradient, by hand. The output path: O needs V; V needs O; K needs Q, V and O;
# Q needs K, V and O. The votes of head 0: K needs Q and Q needs K, and an open gate, for which both must be non-zero.
BY_OUTPUT = {
    "normal": (1, 1, 1, 1),
    "o_rescaled": (1, 1, 1, 1),
    "o_zero": (2, 2, 2, 1),
    "k_zero": (2, 1, 1, 1),
    "ko_zero": (3, 2, 2, 1),
    "zero": (None, None, None, None),
}
BY_VOTES = {**BY_OUTPUT, "o_zero": (1, 1, 2, 1)}


def gpt(**changes: Any) -> GPTConfig:
    return GPTConfig.model_validate({**MODEL, **changes})


def grafted(config: GPTConfig, *grafts: GraftConfig) -> Operation:
    model = config.build(V, T)
    initialise(model, 1)
    weights = {name: tensor.detach() for name, tensor in tensors_of(model).items()}
    return operate(config, weights, grafts, vocab_size=V, context=T, seed=5)


def after_updates(operation: Operation, n: int, decay: float = 0.0) -> list[dict[str, Tensor]]:
    """The weights after 0, 1, ... n updates of AdamW on random tokens, in fp64.

    What rounding makes of a gradient of 0 is taken out: AdamW would turn it into steps as long as any.
    """
    model: Model = operation.config.build(V, T).double()
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(operation.weights[name])
    train = TrainConfig(lr=0.01, warmup=0, weight_decay=decay, decay_on="all")
    optimizer = Optimizer(dict(model.named_parameters()), parameter_table(model), train)
    generator = torch.Generator().manual_seed(2)
    found = [{name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}]
    for _ in range(n):
        rows = torch.randint(V, (B, T + 1), generator=generator)
        batch = Batch(tokens=rows[:, :-1], targets=rows[:, 1:])
        optimizer.zero_grad()
        charged = losses(model, model, batch, CPU, "fp32")
        penalty = 0 if charged.penalty is None else charged.penalty
        (charged.ce / target_weight([batch]) + penalty).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        top = max(float(gradient.abs().max()) for gradient in gradients)
        for gradient in gradients:
            gradient[gradient.abs() < 1e-13 * top] = 0
        optimizer.clip()
        optimizer.step(train.lr)
        found.append({name: tensor.detach().clone() for name, tensor in tensors_of(model).items()})
    return found


def first_moves(operation: Operation, trace: list[dict[str, Tensor]]) -> dict[str, int | None]:
    """Of each fresh slice the update that first changed it."""
    found: dict[str, int | None] = {}
    for cell in layout(operation.config, V, T).every:
        name = cell.parameter
        if cell.name not in operation.report.fresh.get(name, ()):
            continue
        moved = [
            update
            for update in range(1, len(trace))
            if not torch.equal(cell.view(trace[update][name]), cell.view(trace[0][name]))
        ]
        found[cell.label] = min(moved, default=None)
    return found


@pytest.mark.parametrize("kind", ["softmax", "selective"])
@pytest.mark.parametrize("at", ["start", pytest.param("end", marks=pytest.mark.soak)])
@pytest.mark.parametrize("init", INITS)
def test_the_order_of_waking_is_the_one_by_hand_and_the_one_in_training(kind, at, init):
    operation = grafted(gpt(attention={"kind": kind}), AddHeads(at=at, init=init))
    head = 0 if at == "start" else MODEL["n_heads"]
    q, k, v, o = (BY_VOTES if (kind, at) == ("selective", "start") else BY_OUTPUT)[init]
    for layer in (0, 1):
        where = f"blocks.{layer}.attention"
        of = {name: update for name, update in operation.report.wakes.items() if name.startswith(where)}
        expected = {
            f"{where}.out.weight[o.{head}]": o,
            **{f"{where}.qkv.weight[{x}.{head}]": update for x, update in zip("qkv", (q, k, v), strict=True)},
            **{f"{where}.qkv.bias[{x}.{head}]": update for x, update in zip("qv", (q, v), strict=True)},
        }
        bias = f"{where}.qkv.bias[k.{head}]"
        votes = kind == "selective" and head == 0
        assert (bias in operation.report.idle) == (not votes), "softmax does not see what shifts all scores alike"
        if votes:  # and none are cast while all scores are 0
            expected[bias] = k if k is None or not init.startswith("k") else k + 1
        assert of == expected
    moves = first_moves(operation, after_updates(operation, 4))
    assert moves == {**operation.report.wakes, **dict.fromkeys(operation.report.idle)}
    assert bool(operation.report.dead) == (init == "zero")


SELECTORS = {"kind": "selectors", "n_heads": 2}
LATENT = {"kind": "latent", "n": 2}
COMBINATION = {"kind": "linear_combination", "bias": True}
FROZEN = SwitchAttention.model_validate(
    {"attention": {"kind": "selective", "scores": {**COMBINATION, "lr_multiplier": 0.0}}}
)
OTHERS: list[Any] = [
    ({"positions": "rotary", "bias": False}, (AddHeads(init="ko_zero"),)),
    ({"positions": "none", "tied": False, "norm": {"kind": "rmsnorm"}}, (AddHeads(n=2, init="ko_zero"),)),
    *(
        pytest.param(
            {"attention": {"kind": "selective", **options}},
            (AddHeads(at="start", init=init),),
            marks=[pytest.mark.soak] if init == "o_zero" else [],
        )
        for options in (
            {"gate": {"leak": 0.1}},
            {"gate": {"leak": 0.1, "relu_after": True}},
            {"scores": COMBINATION},
            {"scores": LATENT},
            {"scores": SELECTORS},
            {"residual_scores": True},
            {"accumulate": {"kind": "protect", "source": {"kind": "head", "head": 1}}},
            {"penalty": {}},
        )
        for init in ("o_zero", "ko_zero")
    ),
    *(
        ({"attention": {"kind": "selective", **options}}, (AddHeads(init="zero"),))
        for options in ({"gate": {"leak": 0.1}}, {"residual_scores": True, "scores": COMBINATION})
    ),
    *(
        ({}, (SwitchAttention.model_validate({"attention": {"kind": "selective", "scores": scores}}),))
        for scores in (COMBINATION, LATENT, SELECTORS)
    ),
    ({}, (FROZEN,)),
    (
        {},
        (
            AddHeads(init="ko_zero"),
            SwitchAttention.model_validate({"attention": {"kind": "selective", "residual_scores": True}}),
        ),
    ),
]


@pytest.mark.parametrize(("changes", "grafts"), OTHERS)
def test_other_mechanisms_wake_as_predicted(changes, grafts):
    operation = grafted(gpt(**changes), *grafts)
    moves = first_moves(operation, after_updates(operation, 5))
    frozen = moves.keys() - operation.report.wakes.keys() - set(operation.report.idle)
    assert all(moves[name] is None for name in frozen)
    assert bool(frozen) == (grafts == (FROZEN,))
    assert {name: moves[name] for name in operation.report.wakes} == operation.report.wakes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "rotary"},
        {"positions": "none", "n_layers": 6},
        {"n_kv_heads": 1},
        *(
            {"attention": {"kind": "selective", **options}}
            for options in (
                {},
                {"scores": LATENT},
                {"scores": SELECTORS, "penalty": {}},
                {"scores": COMBINATION, "residual_scores": True},
                {"gate": {"leak": 0.1, "relu_after": True}},
            )
        ),
    ],
)
def test_what_is_idle_changes_nothing_and_all_else_does(changes):
    config = gpt(**changes)
    of = layout(config, V, T)
    cells = [cell for cell in of.every if cell.family in ("q", "k", "v", "o", "qs", "ks")]
    largest = {cell.label: 0.0 for cell in cells}
    for seed in (3, 4):  # a vote that is closed with some weights is open with others
        generator = torch.Generator().manual_seed(seed)

        def drawn(shape: torch.Size, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        weights = {name: 0.3 * drawn(shape) for name, shape in of.shapes.items()}
        rows = torch.randint(V, (B, T), generator=generator)
        before = logits(config, weights, rows)
        for cell in cells:
            changed = {**weights, cell.parameter: weights[cell.parameter].clone()}
            target = cell.view(changed[cell.parameter])
            target.add_(drawn(target.shape))
            change = float((logits(config, changed, rows) - before).abs().max())
            largest[cell.label] = max(largest[cell.label], change)
    without = {name for name, change in largest.items() if change < 1e-10}
    assert idle(config) == without
    assert all("qkv.bias[k." in name for name in without)
    assert bool(without) == (config.positions != "rotary" and changes.get("attention", {}).get("scores") != COMBINATION)


def logits(config: GPTConfig, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
    with torch.no_grad():
        return filled(config, weights, V, T).eval().logits(rows)


@pytest.mark.parametrize("kind", ["softmax", "selective"])
def test_a_head_of_zeros_stays_so_for_ever_and_decay_does_not_move_it(kind):
    operation = grafted(gpt(attention={"kind": kind}), AddHeads(init="zero"))
    assert set(operation.report.dead) == operation.report.wakes.keys()
    last, without = after_updates(operation, 40, decay=0.1)[-1], idle(operation.config)
    for cell in layout(operation.config, V, T).every:
        name = cell.parameter
        if cell.name in operation.report.fresh.get(name, ()):
            assert not cell.view(last[name]).any(), cell.name
        else:
            assert bool(cell.view(last[name]).any()) == (cell.label not in without), cell.name

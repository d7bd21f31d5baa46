"""The watch at a run's two ends: each rule fires where it should, and correct runs of every kind are not accused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.attention.variants import VARIANTS
from tests.train.runs import CPU, go_on, identity, make, run_in, said
from tests.train.test_start import child_of, read
from torch import Tensor

from winnow.attention import Mixed
from winnow.attention.selective import SelectiveAttention
from winnow.attention.selective_presets import PRESETS
from winnow.attention.selectors import LinearCombination
from winnow.models.interchange import read_weights, write_model
from winnow.parameters import STD, ParameterSpec, initialise, normal, parameter_table, spec
from winnow.records.run import Finding, Label, RunRecord, Spread
from winnow.records.store import RunStore
from winnow.train import health
from winnow.train.config import RunConfig
from winnow.train.loop import Loop
from winnow.train.mechanism_checks import mechanism_findings
from winnow.train.optim import Optimizer
from winnow.train.parents import file_parent
from winnow.train.preflight import preflight
from winnow.train.slices import barely_moved, dead_parameters, relative_changes
from winnow.train.start import Parent
from winnow.train.start_checks import initial_spread, initial_values
from winnow.train.step_checks import RateWatch
from winnow.train.trainer import train

SMALL = {
    "model__n_layers": 2,
    "train__steps": 3,
    "train__warmup": 1,
    "train__tokens_per_update": 64,
    "evaluation__tokens": 64,
}
TINY = {**SMALL, "model__d_model": 8, "model__n_heads": 4, "model__d_head": 2, "model__positions": "rotary"}
GROUPED = {**SMALL, "model__d_model": 32, "model__n_heads": 4, "model__n_kv_heads": 2, "model__positions": "none"}
MIXED = {**GROUPED, "train__precision": "bf16", "train__recompute": True, "task__document": "block"}
FOUR = {**SMALL, "model__n_heads": 4}
NEEDED = {
    "one_mask_per_head": {"scores": {"n_heads": 4}},
    "n_sliced_masks": {"scores": {"n_slices": 2}},
    "n_latent_masks": {"scores": {"n": 2}},
    "leaky_relu": {"accumulate": {"source": {"slope": 0.1, "offset": -0.05}}},
}
ARMS = {
    **VARIANTS,
    **{f"preset {name}": {"preset": name, **NEEDED.get(name.removesuffix("_fp64"), {})} for name in PRESETS},
}


def selective(table: Mapping[str, Any]) -> dict[str, Any]:
    return {"model__attention": {"kind": "selective", **table}}


def watched(config: RunConfig, seed: int = 0) -> list[Finding]:
    """A run's findings at its start, its first and last update and its end."""
    loop = Loop(config, seed=seed, device=CPU)
    found, _ = loop.findings_at_start()
    while loop.step < config.train.steps:
        assert loop.update().finite
    return [*found, *loop.findings_at_end(loop.evaluate()), *loop.watch.found]


def invalid(found: list[Finding]) -> list[Finding]:
    return [item for item in found if item.severity == "invalid"]


# Correct runs


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("linear_bias", GROUPED),  # after some steps the bias closes every gate
        ("protect_constant", TINY),  # votes of a hundredth of a nat, protections of a fifth
        ("protect_leaky", MIXED),
        ("residual_protected", {**FOUR, "train__lr": 0.3, "train__steps": 12}),
        ("latent_leaky", MIXED),
        ("penalty_masks", {**TINY, "model__positions": "learned"}),
        ("preset big_constant_fp64", {**FOUR, "task__context": 2, "train__tokens_per_update": 16}),
        ("all_linear", TINY),  # votes of a hundredth of a nat, each absorbed: no mix has a gradient
        ("tree_protected", {**FOUR, "task__context": 64}),
        ("plain", {**SMALL, "task__context": 3, "train__tokens_per_update": 96}),  # a vote needs four tokens
        ("plain", {**SMALL, "train__lr": 1e-9, "train__warmup": 1000}),  # no norm's gain moves in fp32
        ("linear", {**FOUR, "model__d_model": 256, "model__n_layers": 1}),
    ],
)
def test_a_correct_run_is_not_accused(text: Path, arm: str, changes: dict[str, Any]) -> None:
    assert invalid(watched(make(text, **changes, **selective(ARMS[arm])))) == []


@pytest.mark.soak
@pytest.mark.parametrize("changes", [TINY, GROUPED, MIXED, FOUR], ids=["tiny", "grouped", "mixed", "four"])
def test_no_arm_of_the_family_is_accused(text: Path, changes: dict[str, Any]) -> None:
    asked = 0
    for name, table in ARMS.items():
        try:
            config = make(text, **changes, **selective(table))
        except ValueError:  # needs wider heads
            continue
        asked += 1
        assert invalid(watched(config)) == [], name
    assert asked > 40


@pytest.mark.parametrize("init", ["normal", "o_rescaled", "o_zero", "k_zero", "ko_zero", "zero"])
@pytest.mark.parametrize("attention", ["softmax", "selective"])
@pytest.mark.parametrize("steps", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_a_graft_that_has_not_woken_up_is_not_accused(text: Path, init: str, attention: str, steps: int) -> None:
    graft = [{"kind": "add-heads", "init": init}]
    found = watched(make(text, **{**SMALL, "train__steps": steps, "model__attention__kind": attention}, graft=graft))
    assert {item.rule for item in invalid(found)} == ({"dead-by-construction"} if init == "zero" else set())


def test_what_no_vote_reaches_is_told_from_what_is_not_connected(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protection absorbs every vote of these weights, so that no gradient is there to be lost."""
    config = make(text, **TINY, **selective(VARIANTS["all_linear"]))

    def dead() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        said = watched(config)
        assert [item.severity for item in said if item.rule == "unselective"] == ["notice", "warning"]
        for item in said:
            if item.rule == "dead-parameter":
                found.setdefault(item.severity, set()).add(str(item.where).rpartition("attention.")[2])
        return found

    mixes = {f"{which}.{kind}" for which in ("selector", "protector") for kind in ("weight", "bias")}
    assert dead() == {"warning": mixes}
    operands = LinearCombination.operands

    def detached(self: LinearCombination, *parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide_q, wide_k = operands(self, *parts)
        return wide_q.detach(), wide_k

    monkeypatch.setattr(LinearCombination, "operands", detached)
    assert dead() == {"invalid": mixes}


def test_a_fault_beside_a_graft_is_found_all_the_same(text: Path) -> None:
    config = make(text, **SMALL, graft=[{"kind": "add-heads", "init": "zero"}])
    loop = Loop(config, seed=0, device=CPU)
    block = loop.model.get_submodule("blocks.1.attention")
    block.register_forward_hook(lambda module, inputs, mixed: Mixed(mixed.y.detach(), mixed.aux))
    while loop.step < config.train.steps:
        loop.update()
    found = [item.message for item in invalid(loop.findings_at_end(loop.evaluate()))]
    assert any("blocks.1.attention.qkv.weight[k.1, k.2, q.1, q.2, v.1, v.2] never" in message for message in found)
    assert not any("blocks.0" in message for message in found)


# Chance


def test_initial_values_of_many_seeds_are_those_declared(text: Path) -> None:
    """One false alarm in 10^10 slices: none in some thousands."""
    loop = Loop(make(text, **TINY, **selective(VARIANTS["linear_bias"])), seed=0, device=CPU)
    table = parameter_table(loop.model)
    for seed in range(31):
        initialise(loop.model, seed)
        assert initial_values(dict(loop.model.named_parameters()), table) == []


@pytest.mark.parametrize("n", [4, 12, 64, 4096])
def test_chance_of_a_false_alarm_is_what_is_said(n: int) -> None:
    """The bound on the variance, against the distribution's own quantiles: 10^-10 in each tail."""
    from scipy.stats import chi2

    declared = {"p": spec("matrix", 1, 1)}
    drawn = normal(0, torch.Size((n,))).double()
    drawn = (drawn - drawn.mean()) / drawn.std(correction=0)
    for tail in (1e-10, 1 - 1e-10):
        edge = float(chi2.ppf(tail, n) / n) ** 0.5
        inwards = 1.001 if tail < 0.5 else 0.999
        assert initial_values({"p": drawn * STD * edge * inwards}, declared) == []
        assert initial_values({"p": drawn * STD * edge / inwards}, declared)


def spread_record(arm: str, initial: dict[str, Spread], **config: Any) -> RunRecord:
    return RunRecord.model_construct(label=Label(study="s", arm=arm), config=config, initial=initial, digest=arm)


def test_arms_that_start_alike_are_not_told_apart(text: Path) -> None:
    """Other heads, widths, norms and sources of votes: what chance gives two tensors is no difference."""
    shapes: list[dict[str, Any]] = [
        {"model__n_heads": 4},
        {"model__n_heads": 2},
        {"model__n_heads": 4, "model__n_kv_heads": 2, "model__norm": {"kind": "rmsnorm"}},
        {"model__n_heads": 4, "model__d_head": 8},
    ]
    mechanisms: list[dict[str, Any]] = [
        {},
        *(selective(ARMS[arm]) for arm in ("plain", "linear", "linear_bias", "latent_bos_self", "two_masks")),
    ]
    for seed in range(3):
        records: list[RunRecord] = []
        for number, (shape, mechanism) in enumerate(itertools.product(shapes, mechanisms)):
            try:
                config = make(text, **shape, **mechanism)
            except ValueError:
                continue
            model = config.model.build(256, 16)
            initialise(model, seed)
            spreads = initial_spread(dict(model.named_parameters()))
            records.append(spread_record(str(number), spreads, **config.dump()))
        assert len(records) > 15
        assert not [a for one, other in itertools.combinations(records, 2) for a in health.initial_spread(one, other)]


def test_a_tensor_that_starts_twice_as_wide_is_told_apart() -> None:
    def found(n: int, std: float) -> tuple[Finding, ...]:
        arm = spread_record("arm", {"w": Spread(std=std, n=n)})
        return health.initial_spread(arm, spread_record("control", {"w": Spread(std=0.02, n=256)}))

    assert found(256, 0.04)
    assert found(256, 0.0)
    assert not found(16, 0.03)
    assert not found(256, 0.0205)


def test_rates_so_small_that_rounding_shows_are_not_accused() -> None:
    """Gains of 1 that all move alike all round alike; and what had no gradient does not move."""
    config = make(Path("text"), train__lr=1.0, train__weight_decay=0.1).train
    for rate in (1e-2, 1e-4, 4e-6, 2e-6, 1e-6, 1e-8):
        for wrong in (1.0, 1.5):
            gains = torch.nn.Parameter(torch.ones(5000))
            idle = torch.nn.Parameter(torch.ones(50))
            table = {"gains": spec("scale", 1, 1), "idle": spec("scale", 1, 1)}
            optimizer = Optimizer({"gains": gains, "idle": idle}, table, config)
            gains.grad = torch.full((5000,), 1e-3)
            watch = RateWatch({"gains": gains, "idle": idle}, optimizer.state, table, config, lambda t: t)
            before = watch.before()
            optimizer.step(rate * wrong)
            assert bool(watch.after(before, rate)) == (wrong != 1.0 and rate > 3e-6)


# Slices


def moved_model(text: Path) -> tuple[dict[str, ParameterSpec], dict[str, Tensor], dict[str, Tensor]]:
    model = make(text, model__n_heads=4, model__n_kv_heads=2).model.build(256, 16)
    initialise(model, 0)
    initial = {name: p.detach() for name, p in model.named_parameters()}
    table = parameter_table(model)
    return (
        table,
        initial,
        {name: p + 0.3 * (table[name].std or 1.0) * torch.randn_like(p) for name, p in initial.items()},
    )


@pytest.mark.parametrize("part", ["q.0", "q.3", "k.1", "v.0", "o.2"])
def test_a_slice_that_never_moved_is_named(text: Path, part: str) -> None:
    table, initial, final = moved_model(text)
    name = f"blocks.0.attention.{'out' if part.startswith('o') else 'qkv'}.weight"
    assert dead_parameters(final, initial, table, {}) == []
    (where,) = (s for s in table[name].slices if s.name == part)
    where.view(final[name]).copy_(where.view(initial[name]))
    (found,) = dead_parameters(final, initial, table, {})
    assert (found.severity, found.message) == ("invalid", f"{name}[{part}] never moved")
    (unseen,) = dead_parameters(moved_model(text)[2], initial, table, {name: [part]})
    assert unseen.message == f"{name}[{part}] never had a gradient"
    assert dead_parameters(final, initial, table, {name: [part]}, asleep={(name, part)}) == []


@pytest.mark.parametrize("part", ["q.1", "k.0", "v.1", "o.0"])
def test_a_slice_that_barely_moves_is_named(text: Path, part: str) -> None:
    table, initial, final = moved_model(text)
    name = f"blocks.0.attention.{'out' if part.startswith('o') else 'qkv'}.weight"

    def said_of(table: Mapping[str, ParameterSpec], unseen: Mapping[str, list[str]]) -> list[str | None]:
        found = barely_moved(relative_changes(final, initial, table), table, unseen)
        assert {item.severity for item in found} <= {"notice"}
        return [item.where for item in found]

    assert said_of(table, {}) == []
    (where,) = (s for s in table[name].slices if s.name == part)
    where.view(final[name]).copy_(where.view(initial[name]) + 1e-3 * (where.view(final[name] - initial[name])))
    assert said_of(table, {}) == [f"{name}[{part}]"]
    assert said_of(table, {name: [part]}) == [], "dead-parameter says more"


# Starting points


def test_a_graft_of_zeros_is_told_before_a_step_is_spent(store: RunStore, text: Path) -> None:
    config = make(text, **SMALL, graft=[{"kind": "add-heads", "init": "zero"}])
    loop = Loop(config, seed=0, device=CPU)
    found, _ = loop.findings_at_start()
    assert [item.rule for item in found] == ["dead-by-construction"]
    assert (loop.step, loop.optimizer.updates()) == (0, 0)
    early = [item for item in preflight(config, seed=0, device=CPU, steps=0).findings if item.rule != "slow-kernel"]
    assert [(item.rule, item.severity) for item in early] == [("dead-by-construction", "invalid")]
    assert "blocks.0.attention.qkv.weight[q.0] and 11 more slices" in early[0].message
    record = go_on(store, config, stop_at=1)
    assert [item.rule for item in said(record)] == ["dead-by-construction"]
    assert said(go_on(store, config)) == said(record), "once, and no more of it at the end"


def test_what_a_parents_graft_left_dead_is_no_fault_of_the_child(store: RunStore, text: Path) -> None:
    parent = run_in(store, make(text, train__keep=(5,), graft=[{"kind": "add-heads", "init": "zero"}]))
    config = child_of(parent, text)
    loop = Loop(config, seed=0, device=CPU, parent=read(config, parent, store))
    while loop.step < config.train.steps:
        loop.update()
    assert [item.rule for item in loop.findings_at_end(loop.evaluate())] == ["dead-by-construction"]


@pytest.mark.parametrize("changes", [{}, {"moments": True}, {"mode": "resume"}])
def test_a_start_far_above_its_parent_is_told(store: RunStore, text: Path, changes: dict[str, Any]) -> None:
    parent = run_in(store, make(text, train__keep=(5,), evaluation__every=5))
    config = child_of(parent, text, **changes)
    given = read(config, parent, store)

    def rules(given: Any) -> list[tuple[str, str]]:
        found = preflight(config, seed=0, device=CPU, steps=1, parent=given).findings
        return [(item.rule, item.severity) for item in found if item.rule != "slow-kernel"]

    assert given.loss is not None
    assert rules(given) == []
    weights = {**given.snapshot.weights, "embedding.weight": given.snapshot.weights["embedding.weight"] * 40}
    assert rules(replace(given, snapshot=replace(given.snapshot, weights=weights))) == [("start-exploded", "warning")]


def told(config: RunConfig, parent: Parent) -> list[str]:
    found = preflight(config, seed=0, device=CPU, steps=0, parent=parent).findings
    return [item.message for item in found if item.rule == "start-exploded"]


def spoilt(parent: Parent) -> Parent:
    weights = {**parent.snapshot.weights, "embedding.weight": parent.snapshot.weights["embedding.weight"] * 40}
    return replace(parent, snapshot=replace(parent.snapshot, weights=weights))


def test_a_parent_that_was_not_evaluated_where_it_was_kept_is_compared_all_the_same(
    store: RunStore, text: Path
) -> None:
    whole = run_in(store, make(text, train__keep=(5,), evaluation__every=4))
    losses = {row["step"]: row["val/ce"] for row in store.metrics(whole.digest) if "val/ce" in row}
    assert list(losses) == [0, 4, 8, 12]
    folder = store.path(whole.digest) / "checkpoints" / "step-00000005"
    config = child_of(whole, text)
    beside = {"path": str(folder), "identity": file_parent(str(folder)).identity}
    for start, parent in (
        ({}, read(config, whole, store)),
        ({"init_from": beside}, file_parent(str(folder))),
    ):
        assert parent.loss == max(losses[4], losses[8])
        child = RunConfig.model_validate({**config.dump(), **start})
        assert told(child, parent) == []
        [message] = told(child, spoilt(parent))
        assert f"the parent's was {parent.loss:.3f}" in message
    (store.path(whole.digest) / "metrics.0.jsonl").unlink()
    assert file_parent(str(folder)).loss is None


def test_a_parent_on_another_text_is_no_measure(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(5,)))
    config = child_of(whole, text, {"task__validation_fraction": 0.2})
    better = replace(read(config, whole, store), loss=1.0)
    assert told(config, better) == []
    assert told(child_of(whole, text), better) != []


def test_weights_of_a_file_are_held_to_knowing_nothing(
    store: RunStore, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_in(store, make(text))
    weights = read_weights(store.path(whole.digest)).weights

    def child(folder: str, weights: Mapping[str, Tensor], **changes: Any) -> tuple[RunConfig, Parent]:
        write_model(tmp_path / folder, make(text).model, weights, 256, 16)
        parent = file_parent(str(tmp_path / folder))
        start = {"path": str(tmp_path / folder), "identity": parent.identity}
        return RunConfig.model_validate({**make(text).dump(), "init_from": start, **changes}), parent

    assert told(*child("good", weights)) == []
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    garbage = {**weights, "embedding.weight": weights["embedding.weight"][order] * 40}
    config, parent = child("garbage", garbage)
    assert parent.loss is None
    [message] = told(config, parent)
    assert "knowing nothing costs 5.545" in message
    claimed = store.claim(identity(config))
    assert claimed is not None
    with claimed as run:
        record = train(config, run, seed=0, device=CPU, parent=lambda: parent)
    assert "start-exploded" in {item.rule for item in record.findings}
    monkeypatch.setattr(health, "FIRST_LOSS_NATS", -1.0)
    [message] = told(*child("grown", weights, graft=[{"kind": "add-heads"}]))
    assert "grafts alone have added" in message


def test_a_graft_that_ruins_weights_of_unknown_loss_is_told() -> None:
    assert health.start_exploded(4.0, 256, parent=None, graft=None) is None
    assert health.start_exploded(4.0, 256, parent=None, graft=0.4) is None
    found = health.start_exploded(4.0, 256, parent=None, graft=0.7)
    assert found is not None
    assert "grafts alone have added 0.700" in found.message
    assert health.start_exploded(4.0, 256, parent=3.8, graft=0.7) is None, "what is known of the whole text decides"


# Mechanisms


def test_masks_that_are_nearly_nothing_are_not_accused(text: Path) -> None:
    """The largest vote of the text is a millionth of the scores it comes from: rounding is most of it."""
    config = make(text, **FOUR, **selective(VARIANTS["linear_bias"]))
    loop = Loop(config, seed=0, device=CPU)
    mixer = loop.model.get_submodule("blocks.0.attention")
    assert isinstance(mixer, SelectiveAttention)
    with torch.no_grad():
        for weight in ("blocks.0.attention.qkv.weight", "blocks.1.attention.qkv.weight"):
            loop.model.get_parameter(weight).mul_(60.0)
        tokens = next(loop.validation.batches(1)).tokens
        reached: list[tuple[Any, ...]] = []
        handle = mixer.register_forward_pre_hook(lambda module, inputs: reached.append(inputs))
        loop.model(tokens)
        handle.remove()
        exact = copy.deepcopy(mixer).double()
        x, state = reached[0]
        q, k, _ = exact.project(x.double(), state)
        raw = exact._raw(q, k, None)[0]
        highest = raw.masked_fill(~torch.ones(raw.shape[-2:]).tril(-1).bool(), -torch.inf)[..., 2:, 1:].max()
        for bias in (0.0, 1e-7, 1e-6, 1e-5, 1e-4):
            mixer.get_parameter("selector.bias").fill_(float(bias - highest))
            assert invalid(mechanism_findings(loop.model, loop.validation, CPU, start=False)) == []


def test_scores_of_thousands_of_nats_are_not_accused(text: Path) -> None:
    for arm in ("head_two", "tree_protected", "residual", "penalty"):
        loop = Loop(make(text, **FOUR, **selective(VARIANTS[arm])), seed=0, device=CPU)
        with torch.no_grad():
            for name, p in loop.model.named_parameters():
                if name.endswith("qkv.weight"):
                    p.mul_(3000.0)
        assert invalid(mechanism_findings(loop.model, loop.validation, CPU, start=False)) == []

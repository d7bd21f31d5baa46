"""The fourteen defects that once stood behind a notebook's conclusions, planted one by one into the product.

Each is a fault of the program, not of a test: an arm is trained by the ordinary trainer for a few steps, once as it is
and once with the fault, and the product alone has to notice. Its record then has a finding of severity `invalid`, and
the verdict of the claim that rests on it is invalid for that reason. Without the fault neither is the case.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.study.studies import write_study
from tests.train.runs import CPU
from torch import Tensor
from torch.nn import functional as F

from winnow.attention import SelectiveConfig, Shape, selective, selective_inside
from winnow.attention.selective import SelectiveAttention
from winnow.attention.selectors import Latent, LinearCombination
from winnow.kernels import reference
from winnow.kernels.rule import Rule
from winnow.kernels.selective import selection_usage, selective_attention
from winnow.records.run import Finding, Label, RunIdentity, RunRecord
from winnow.records.store import RunStore
from winnow.study.compare import Comparison, compare
from winnow.study.launch import register
from winnow.study.resolve import resolve
from winnow.study.spec import load_study
from winnow.train import evaluate, loop, optim, start, trainer
from winnow.train.config import RunConfig
from winnow.train.losses import Losses, losses, target_weight
from winnow.train.preflight import preflight
from winnow.train.trainer import train

Patch = pytest.MonkeyPatch
STUDY = """\
id = "mutants"
seeds = [0, 1]
looks = [2]
base.task = {{ kind = "corpus", source = "corpus.txt", context = 16 }}
base.train = {{ steps = 4, tokens_per_update = 64, warmup = 2, lr = 4e-3 }}
base.evaluation = {{ every = 2, tokens = 64 }}
base.model = {{ d_model = 16, n_layers = 2, n_heads = 2, positions = "rotary", attention = {control} }}
arms.control = {{}}
arms.arm = {{ model.attention = {arm} }}
claims.h1 = "arm better-than control on val/ce smallest 0.005"
"""


# The defects


def eager(patch: Patch) -> None:
    """The mechanism runs on the backend that is made of plain operations, which the faults are planted in."""
    patch.setattr(selective, "selective_attention", partial(selective_attention, backend="reference"))
    patch.setattr(selective, "selection_usage", partial(selection_usage, backend="reference"))


def multiplied_scores(patch: Patch) -> None:
    """H1: scores multiplied by sqrt(D) instead of divided."""

    def scaled(q: Tensor, *rest: Any, **options: Any) -> Tensor:
        return selective_attention(q, *rest, **options, scale=q.shape[-1] ** 0.5)

    patch.setattr(selective, "selective_attention", scaled)


def ignored_flag(patch: Patch) -> None:
    """H2: an option that is parsed and not passed on."""

    def build(self: SelectiveConfig, shape: Shape) -> SelectiveAttention:
        return SelectiveAttention(self.replace({"selection": True}), shape)

    patch.setattr(SelectiveConfig, "build", build)


def one_rate(patch: Patch) -> None:
    """H3: every group's learning rate overwritten with the global one."""

    def step(self: optim.Optimizer, rate: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()

    patch.setattr(optim.Optimizer, "step", step)


def future(raw: Tensor) -> Tensor:
    return torch.ones_like(raw, dtype=torch.bool).triu(1)


def leaking_infinity(patch: Patch) -> None:
    """H4: a leak of future scores at -inf, and a relu after the sum."""

    def forgotten(raw: Tensor, protector: Tensor | None, rule: Rule, starts: Tensor | None) -> Tensor:
        cast = F.leaky_relu(raw.masked_fill(future(raw), -math.inf), rule.leak)
        cast = cast.masked_fill(torch.eye(raw.shape[-1], dtype=torch.bool), 0)
        cast[..., 0] = 0
        total = F.pad(cast.cumsum(-2)[..., :-1, :], (0, 0, 1, 0))
        return total.relu() if rule.relu_after else total

    eager(patch)
    for module in (reference, selective, selective_inside):
        patch.setattr(module, "forgotten", forgotten)


def infinite_protection(patch: Patch) -> None:
    """H5: future scores at -inf protect without bound."""

    def protections(raw: Tensor, protector: Tensor | None, visible: Tensor, rule: Rule) -> Tensor:
        return (rule.protection_offset - rule.protection_slope * raw.masked_fill(~visible, -math.inf)).relu()

    eager(patch)
    patch.setattr(reference, "protections", protections)


def rewarded_damage(patch: Patch) -> None:
    """H6: the sign of the protected sum."""
    real = reference.running_damage
    eager(patch)
    patch.setattr(reference, "running_damage", lambda a, p, algorithm: -real(a, p, algorithm))


def initialised(patch: Patch, change: Callable[[str, Tensor], Tensor | None]) -> None:
    """Initial values that something sets once more."""
    for module in (loop, start):
        real = module.initialise

        def wrong(model: Any, seed: int, real: Any = real) -> None:
            real(model, seed)
            torch.manual_seed(5)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    value = change(name, parameter)
                    if value is not None:
                        parameter.copy_(value)

        patch.setattr(module, "initialise", wrong)


def lost_one_hot(patch: Patch) -> None:
    """H7: the one-hot start overwritten by the initial values of everything else."""
    initialised(patch, lambda name, p: 0.02 * torch.randn_like(p) if name.endswith("selector.weight") else None)


def broadcast_penalty(patch: Patch) -> None:
    """H8: positions of shape (1, 1, T, 1) less sums of shape (B, 1, T)."""

    def penalty(self: SelectiveAttention, usage: Tensor, state: Any) -> Tensor:
        T = usage.shape[-1]
        places = torch.arange(T)[None, None, :, None]
        return self.penalty_weight * (places - usage / self.tau).amax(2).mean() / T

    patch.setattr(SelectiveAttention, "_penalty", penalty)


def mixed_infinity(patch: Patch) -> None:
    """H9: a linear mix of future scores at -inf, and nothing that takes them out again."""

    def mixed(self: LinearCombination, scores: Tensor) -> Tensor:
        return torch.einsum("h,bhij->bij", self.weight, scores.masked_fill(future(scores), -math.inf)).unsqueeze(1)

    patch.setattr(LinearCombination, "mixed", mixed)
    patch.setattr(reference, "votes", lambda raw, votable, rule: raw.relu() * votable)


def fixed_steps(patch: Patch) -> None:
    """H10: the number of steps is the program's, not the config's."""
    real = trainer.Training.advance

    def advance(self: trainer.Training) -> bool:
        ended = real(self)
        if self._loop.step == 3:
            self._loop.step = self.config.train.steps
        return ended

    patch.setattr(trainer.Training, "advance", advance)


def random_bias(patch: Patch) -> None:
    """H11: a bias keeps the random start of its layer."""
    initialised(patch, lambda name, p: torch.empty_like(p).uniform_(-0.7, 0.7) if "selector.bias" in name else None)


def bias_in_the_future(patch: Patch) -> None:
    """H12: masks are 0 in the future before a linear map whose bias they get, and not after it."""
    biases: list[Tensor] = []
    real = Latent.operands

    def operands(self: Latent, *parts: Tensor) -> Any:
        biases[:] = [self.bias]
        return real(self, *parts)

    def votes(raw: Tensor, votable: Tensor, rule: Rule) -> Tensor:
        return torch.where(future(raw), biases[0][:, None, None], torch.where(votable, raw, 0.0)).relu()

    eager(patch)
    patch.setattr(Latent, "operands", operands)
    patch.setattr(reference, "votes", votes)


def unscaled_projection(patch: Patch) -> None:
    """H13: the output projection of one mechanism is not scaled by the depth."""
    real = SelectiveConfig.build

    def build(self: SelectiveConfig, shape: Shape) -> SelectiveAttention:
        built = real(self, shape)
        specs = vars(built.out)["_parameter_specs"]
        specs["weight"] = replace(specs["weight"], std=0.02)
        return built

    patch.setattr(SelectiveConfig, "build", build)


def charged(model: Any, batch: Any, found: Losses) -> Losses:
    assert found.penalty is not None
    return found._replace(ce=found.ce + target_weight([batch]) * found.penalty)


def charged_evaluation(patch: Patch) -> None:
    """H14: the penalty is in the validation loss, and so in its perplexity."""

    def with_penalty(forward: Any, model: Any, *rest: Any, **named: Any) -> Losses:
        model.train()
        found = losses(forward, model, *rest, **named)
        model.eval()
        return charged(model, rest[0], found)

    patch.setattr(evaluate, "losses", with_penalty)


def charged_training(patch: Patch) -> None:
    """H14: the penalty is in the reported training loss."""

    def with_penalty(forward: Any, model: Any, *rest: Any, **named: Any) -> Losses:
        found = losses(forward, model, *rest, **named)
        return found if found.penalty is None else charged(model, rest[0], found)

    patch.setattr(loop, "losses", with_penalty)


def charged_perplexity(patch: Patch) -> None:
    """H14: the perplexity is of the whole loss."""
    real = loop.evaluate

    def of_everything(*given: Any) -> dict[str, float]:
        found = real(*given)
        return {**found, "val/ppl": math.exp(found["val/ce"] + 0.05)}

    patch.setattr(loop, "evaluate", of_everything)


@dataclass(frozen=True)
class Mutant:
    """A defect, the arm that meets it, and what the product must say."""

    plant: Callable[[Patch], None]
    arm: str
    rules: frozenset[str]
    """Rules that must each say `invalid`."""
    control: str = '{ kind = "softmax" }'
    in_record: bool = True
    """Whether the run alone shows it; else its comparison with the control does."""
    early: bool = True
    """Whether a few steps before the run show it."""


def selecting(**parts: str) -> str:
    return "{ " + ", ".join(['kind = "selective"', *(f"{key} = {value}" for key, value in parts.items())]) + " }"


PENALTY = selecting(penalty="{ epsilon = 2.0 }")
LINEAR = '{ kind = "linear_combination", lr_multiplier = 0.1, bias = true }'
MUTANTS = {
    "H1": Mutant(multiplied_scores, selecting(), frozenset({"not-its-definition"})),
    "H2": Mutant(
        ignored_flag,
        selecting(selection="false"),
        frozenset({"unread-option", "no-effect"}),
        control=selecting(),
        in_record=False,
    ),
    "H3": Mutant(one_rate, selecting(scores=LINEAR), frozenset({"lr-not-applied"})),
    "H4": Mutant(
        leaking_infinity,
        selecting(gate="{ leak = 0.1, relu_after = true }"),
        frozenset({"not-its-definition", "unselective"}),
    ),
    "H5": Mutant(
        infinite_protection,
        selecting(accumulate='{ kind = "protect", source = { kind = "leaky" } }'),
        frozenset({"not-its-definition"}),
    ),
    "H6": Mutant(
        rewarded_damage,
        selecting(accumulate='{ kind = "protect", source = { kind = "head" } }'),
        frozenset({"negative-mask", "not-its-definition"}),
    ),
    "H7": Mutant(lost_one_hot, selecting(scores=LINEAR), frozenset({"initial-values"})),
    "H8": Mutant(broadcast_penalty, PENALTY, frozenset({"not-its-definition"})),
    "H9": Mutant(mixed_infinity, selecting(scores=LINEAR, residual_scores="true"), frozenset({"not-its-definition"})),
    "H10": Mutant(fixed_steps, selecting(), frozenset({"steps-missing"}), early=False),
    "H11": Mutant(random_bias, selecting(scores=LINEAR), frozenset({"initial-values"})),
    "H12": Mutant(bias_in_the_future, selecting(scores='{ kind = "latent", n = 2 }'), frozenset({"future-touched"})),
    "H13": Mutant(unscaled_projection, selecting(), frozenset({"initial-spread"}), in_record=False),
    "H14, validation": Mutant(charged_evaluation, PENALTY, frozenset({"not-cross-entropy"})),
    "H14, training": Mutant(charged_training, PENALTY, frozenset({"not-cross-entropy"})),
    "H14, perplexity": Mutant(charged_perplexity, PENALTY, frozenset({"not-cross-entropy"}), early=False),
}


# What the product makes of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mutants")
    write_study(made)  # and the text
    return made


def trained(
    folder: Path, mutant: Mutant, patch: Patch | None, name: str
) -> tuple[RunRecord, Comparison, list[Finding]]:
    """The arm's run, trained with or without the defect; what its comparison with the control says; its preflight."""
    file = folder / f"{name}.toml"
    file.write_text(STUDY.format(control=mutant.control, arm=mutant.arm))
    study, store = load_study(file), RunStore(folder / f"store-{name}")
    resolved = resolve(study)
    known = folder / f"control {mutant.control}".replace("/", " ")  # trained once for all
    if not known.exists():
        run_one(RunStore(known), resolved.plan, "control", resolved.configs["control"])
    shutil.copytree(known, store.root)
    plan = register(study, store, resolved.plan)
    if patch is not None:
        mutant.plant(patch)
    config = resolved.configs["arm"]
    early = list(preflight(config, seed=0, device=CPU, steps=1).findings) if mutant.early else []
    run_one(store, plan, "arm", config)
    record = store.record(plan.run("arm", 0))
    assert record is not None
    return record, compare(study, store), early


def run_one(store: RunStore, plan: Any, arm: str, config: RunConfig) -> None:
    planned = plan.arms[arm]
    label = Label(study=plan.id, arm=arm)
    identity = RunIdentity(digest=plan.run(arm, 0), config=planned.config, seed=0, data=planned.data, label=label)
    claimed = store.claim(identity)
    assert claimed is not None
    with claimed as run:
        train(config, run, seed=0, device=CPU)


CLEAN = {f"{mutant.arm} {mutant.control}": mutant for mutant in MUTANTS.values()}
"""Arms without a defect, each once."""


@pytest.mark.parametrize("number", range(len(CLEAN)))
def test_without_a_defect_nothing_is_said(number: int, folder: Path) -> None:
    mutant = list(CLEAN.values())[number]
    clean, comparison, early = trained(folder, mutant, None, f"clean-{number}")
    assert not [item for item in (*clean.findings, *early) if item.rule != "slow-kernel"]
    assert not [item for item in comparison.findings if item.severity == "invalid"]
    assert comparison.verdicts[0].status != "invalid"


@pytest.mark.parametrize("name", MUTANTS)
def test_the_product_catches(name: str, folder: Path, monkeypatch: Patch) -> None:
    mutant = MUTANTS[name]
    record, comparison, early = trained(folder, mutant, monkeypatch, name.replace(", ", "-"))
    accused = [item for item in comparison.findings if item.severity == "invalid"]
    assert mutant.rules <= {item.rule for item in accused}
    if mutant.in_record:
        assert mutant.rules <= {item.rule for item in record.findings if item.severity == "invalid"}
        if mutant.early:
            assert mutant.rules & {item.rule for item in early if item.severity == "invalid"}
    (verdict,) = comparison.verdicts
    assert verdict.status == "invalid"
    assert any(item.message in verdict.reason for item in accused if item.rule in mutant.rules)

"""Studies whose runs start from runs of other studies: what they are, when they may start, what is said before."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.tiny import winnow
from tests.study.studies import fake, small, write_study

from winnow.config import run_digest
from winnow.errors import InputError
from winnow.records.descent import children, kept_steps
from winnow.records.run import Label, RunIdentity
from winnow.records.store import RunStore
from winnow.study.audit import audit, different_settings
from winnow.study.compare import compare
from winnow.study.crew import failure
from winnow.study.events import RunKey
from winnow.study.launch import Options, register, run_study
from winnow.study.parents import Parents, missing_parents, needed_by, needed_in_store
from winnow.study.plan import Plan, load_plan, rewritten_keys, stale_arms
from winnow.study.resolve import resolve
from winnow.study.spec import Study, parse_study
from winnow.train.config import RunConfig
from winnow.train.parents import read_parent
from winnow.train.trainer import train

PARENT = """\
id = "first"
seeds = [0, 1]
looks = [2]
base.task = { kind = "corpus", source = "corpus.txt", context = 16 }
base.model = { d_model = 16, n_layers = 1, n_heads = 2, positions = "rotary" }
base.train = { steps = 6, tokens_per_update = 64, warmup = 2, lr = 4e-3, keep = [4] }
base.evaluation = { every = 3, tokens = 128 }
arms.self = {}
arms.slow = { train.lr = 1e-4 }
control = "self"
"""
CHILD = """\
id = "second"
seeds = [0, 1]
looks = [2]
base.task = { kind = "corpus", source = "corpus.txt", context = 16 }
base.train = { steps = 8, tokens_per_update = 64, warmup = 2, lr = 4e-3 }
base.evaluation = { every = 4, tokens = 128 }
base.init_from = { run = "first/self", step = 4 }
arms.restart = {}
arms.resume = { init_from.mode = "resume" }
arms.head = { graft = [{ kind = "add-heads" }] }
control = "restart"
claims.h = "head better-than restart on val/ce smallest 0.01"
"""
GRANDCHILD = """\
id = "third"
seeds = [0, 1]
base.task = { kind = "corpus", source = "corpus.txt", context = 16 }
base.train = { steps = 8, tokens_per_update = 64, warmup = 2 }
base.evaluation = { every = 4, tokens = 128 }
arms.on = { init_from = { run = "second/head" } }
arms.fixed = { init_from = { run = "second/head/1" } }
control = "on"
"""

WIDER = "base.model = { d_model = 32, n_layers = 1, n_heads = 2 }"


def studies(folder: Path, *texts: str) -> list[Study]:
    """Studies of one file, beside a text."""
    file = write_study(folder, texts[0])
    return [parse_study(text, file) for text in texts]


def resolved(folder: Path, *texts: str) -> dict[str, Plan]:
    """Their plans, each with the earlier ones as possible parents."""
    parents = Parents()
    for study in studies(folder, *texts):
        parents.add(study, resolve(study, parents=parents).plan)
    return parents.plans


def test_a_child_knows_its_parents_runs(tmp_path: Path) -> None:
    plans = resolved(tmp_path, PARENT, CHILD, GRANDCHILD)
    restart = plans["second"].arms["restart"]
    assert restart.parent is not None
    assert restart.parent.run(1) == plans["first"].run("self", 1)
    assert restart.config["model"] == plans["first"].arms["self"].config["model"], "the model is the parent's"
    on, fixed = plans["third"].arms["on"], plans["third"].arms["fixed"]
    assert on.parent is not None
    assert fixed.parent is not None
    assert (on.parent.step, on.config["model"]["n_heads"]) == (8, 3), "the last step, after the parent's graft"
    assert on.parent.run(0) == plans["second"].run("head", 0)
    assert {fixed.parent.run(seed) for seed in (0, 1)} == {plans["second"].run("head", 1)}
    assert on.facts["tokens_before"] == (4 + 8) * 64
    resume = plans["second"].arms["resume"]
    assert (resume.facts["tokens"], resume.facts["tokens_before"]) == (4 * 64, 4 * 64)
    assert needed_by([(plans["third"], (0, 1))], "second") == {("head", 0), ("head", 1)}


@pytest.mark.parametrize(
    ("old", "new", "moves"),
    [
        ("lr = 4e-3, keep", "lr = 5e-3, keep", True),
        ("n_layers = 1", "n_layers = 2", True),
        ("keep = [4]", "keep = [2, 4]", False),
        ("keep = [4]", "keep = [4], checkpoint_every = 2", False),
        ("arms.slow = { train.lr = 1e-4 }", "arms.slow = { train.lr = 2e-4 }", False),
    ],
)
def test_a_change_of_any_ancestor_makes_other_runs(tmp_path: Path, old: str, new: str, moves: bool) -> None:
    before = resolved(tmp_path, PARENT, CHILD, GRANDCHILD)
    after = resolved(tmp_path, PARENT.replace(old, new), CHILD, GRANDCHILD)
    assert PARENT.replace(old, new) != PARENT
    for study, arm in (("second", "restart"), ("third", "on"), ("third", "fixed")):
        assert (before[study].run(arm, 0) != after[study].run(arm, 0)) == moves, study
    child = before["second"].arms["restart"].parent
    assert child is not None
    assert Parents(plans=after).changed(child) == moves
    [_, study, _] = studies(tmp_path, PARENT, CHILD, GRANDCHILD)
    stale = stale_arms(study, before["second"], Parents(plans=after).changed)
    assert bool(stale) == moves
    assert all(rewritten_keys(study, before["second"], arm) == ("init_from",) for arm in stale)


def test_what_a_parent_is_called_is_no_identity(tmp_path: Path) -> None:
    before = resolved(tmp_path, PARENT, CHILD)
    renamed = resolved(
        tmp_path,
        PARENT.replace('id = "first"', 'id = "other"').replace("arms.self", "arms.base"),
        CHILD.replace("first/self", "other/base"),
    )
    assert before["second"].run("restart", 0) == renamed["second"].run("restart", 0)
    mode, step, graft = (
        resolved(tmp_path, PARENT, CHILD.replace(*change))["second"].run("restart", 0)
        for change in (
            ("step = 4 }", 'step = 4, mode = "resume" }'),
            ("step = 4", "step = 6"),
            ("restart = {}", 'restart = { graft = [{ kind = "add-heads", init = "zero" }] }'),
        )
    )
    assert len({before["second"].run("restart", 0), mode, step, graft}) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("first/self", "frist/self", "no study 'frist' is known; did you mean 'first'"),
        ("first/self", "first/slef", "study first has no arm 'slef'; did you mean 'self'"),
        ("first/self", "second/restart", "cannot start from its own study"),
        ("first/self", "first", "names no run"),
        ("first/self", "first/self/x", "names no run"),
        ("step = 4", "step = 5", r"does not keep its checkpoint of step 5 \(it keeps 4, 6\).*keep = \[5\]"),
        ("step = 4", "step = 7", "ends at step 6"),
        ("step = 4", 'step = 4, path = "x"', "both"),
        ("step = 4", 'identity = "x"', "found out, not given"),
        ("step = 4", 'step = 4, mode = "resumed"', "permitted"),
        ('{ run = "first/self", step = 4 }', '{ path = "nothing.pt" }', "nothing.pt"),
        ("base.init_from", f"{WIDER}\nbase.init_from", "first/self has another d_ff"),
        ("steps = 8", "steps = 4", "where this run ends"),
        ("steps = 8, tokens_per_update = 64", "steps = 8, tokens_per_update = 32", "another number of rows per update"),
        ("context = 16", "context = 8", r"another task\.context, so its data cannot go on"),
        ('source = "corpus.txt"', 'source = "corpus.txt", validation_fraction = 0.2', "another text"),
        ("first/self", "first/self/1", "another seed"),
        ('graft = [{ kind = "add-heads" }]', 'graft = { kind = "add-heads" }', "should be a list"),
        ('graft = [{ kind = "add-heads" }]', 'graft = [{ kind = "remove-heads", heads = [7] }]', "head 7"),
    ],
)
def test_what_does_not_fit_is_refused_at_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CHILD
    with pytest.raises(InputError, match=message) as refused:
        resolved(tmp_path, PARENT, CHILD.replace(old, new))
    assert refused.value.line is not None
    assert refused.value.mend


def test_a_model_that_agrees_may_be_written(tmp_path: Path) -> None:
    written = 'base.model = { d_model = 16, n_layers = 1, n_heads = 2, positions = "rotary" }\nbase.init_from'
    plans = resolved(tmp_path, PARENT, CHILD.replace("base.init_from", written))
    assert plans["second"].run("restart", 0) == resolved(tmp_path, PARENT, CHILD)["second"].run("restart", 0)


def test_off_takes_the_start_away_from_an_arm(tmp_path: Path) -> None:
    alone = 'arms.restart = { init_from = "off", model = { d_model = 16, n_layers = 1, n_heads = 2 } }'
    text = CHILD.replace("arms.restart = {}", alone)
    arm = resolved(tmp_path, PARENT, text)["second"].arms["restart"]
    assert arm.parent is None
    assert "init_from" not in arm.identity


def test_a_parent_that_is_not_made_is_refused_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path / "winnow-store")
    first, second = studies(tmp_path, PARENT, CHILD)
    register(first, store, resolve(first).plan)
    options = fake(tmp_path, {}, monkeypatch)
    command = r"winnow run .*--only first --seeds 0\.\.1"
    with pytest.raises(InputError, match=rf"not finished: first/self seeds 0, 1; {command}"):
        run_study(second, store, options)
    assert not list(tmp_path.glob("trained-*")), "nothing ran"
    assert needed_in_store(store, "first") == {("self", 0), ("self", 1)}
    finish(store, first, [("self", 0)], step=6)
    with pytest.raises(InputError, match=r"first/self seed 0 has no checkpoint at step 4 \(it has none\).*winnow rm"):
        run_study(second, store, options)
    plan = resolve(second, parents=Parents(store)).plan
    register(
        studies(tmp_path, PARENT.replace("seeds = [0, 1]\nlooks = [2]", "seeds = [0]\nlooks = [1]"))[0], store, plan
    )
    keys = [RunKey("restart", 1, "")]
    assert "add seed 1 to the seeds of first" in str(missing_parents(plan, keys, store)), (
        "they were there when resolved"
    )


@pytest.mark.parametrize(
    ("old", "new", "seed"),
    [
        ("seeds = [0, 1]\nlooks = [2]", "seeds = [0, 7]\nlooks = [2]", 7),
        ('run = "first/self", step = 4', 'run = "first/self/7"', 7),
        ("seeds = [0, 1]\nlooks = [2]", "seeds = [0, 1, 7]\nlooks = [2]", None),
    ],
)
def test_a_seed_that_the_parents_do_not_have_is_refused_before_anything_is_made(
    tmp_path: Path, old: str, new: str, seed: int | None
) -> None:
    """By `check` as by `run`, from the same file as from the store; a seed that no look uses matters not."""
    assert old in CHILD
    first, second = studies(tmp_path, PARENT, CHILD.replace(old, new))
    store = RunStore(tmp_path / "winnow-store")
    fresh = Parents()
    fresh.add(first, resolve(first).plan)
    register(first, store, resolve(first).plan)
    for parents in (fresh, Parents(store)):
        if seed is None:
            assert resolve(second, parents=parents).plan.arms
            continue
        message = f"study first has no seed {seed}; add seed {seed} to the seeds of first and run it"
        with pytest.raises(InputError, match=message) as refused:
            resolve(second, parents=parents)
        assert refused.value.line is not None


def test_a_seed_that_was_run_once_is_there_although_it_is_written_no_more(tmp_path: Path) -> None:
    first, second = studies(tmp_path, PARENT, CHILD)
    store = RunStore(tmp_path / "winnow-store")
    register(first, store, resolve(first).plan)
    finish(store, first, [("self", 1)], step=6)
    less = studies(tmp_path, PARENT.replace("seeds = [0, 1]\nlooks = [2]", "seeds = [0]\nlooks = [1]"))[0]
    register(less, store, resolve(less).plan)
    assert resolve(second, parents=Parents(store)).plan.arms


def test_what_reading_a_file_had_to_say_is_a_finding_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged checkpoint that was passed over: `check` and `run` say so before the run's own record does."""
    store = RunStore(tmp_path / "winnow-store")
    first = studies(tmp_path, PARENT)[0]
    plan = register(first, store, resolve(first).plan)
    trained(store, replace(first, seeds=(0,)), plan)
    folder = store.path(plan.run("self", 0))
    weights = folder / "checkpoints" / "step-00000006" / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    start = f'base.init_from = {{ path = "{folder}" }}'
    text = CHILD.replace('base.init_from = { run = "first/self", step = 4 }', start).replace("arms.resume", "# ")
    second = parse_study(text, write_study(tmp_path, text, "second.toml"))
    [finding] = resolve(second).findings
    assert (finding.rule, finding.severity) == ("weights-converted", "notice")
    assert "passed over step-00000006" in finding.message
    assert finding.where == f"{tmp_path / 'second.toml'}:7"
    [report] = json.loads(winnow("check", "second.toml", "--json", cwd=tmp_path).out)
    assert finding.message in [item["message"] for item in report["findings"]]
    assert finding in run_study(second, store, fake(tmp_path, {}, monkeypatch)).findings


def finish(store: RunStore, study: Study, runs: list[tuple[str, int]], *, step: int, status: str = "finished") -> None:
    """Records of runs that nobody trained."""
    plan = load_plan(store, study)
    assert plan is not None
    for name, seed in runs:
        arm = plan.arms[name]
        about = RunIdentity(
            digest=plan.run(name, seed),
            config=arm.config,
            seed=seed,
            data=arm.data,
            sources=plan.sources,
            label=Label(study=study.id, arm=name),
        )
        claimed = store.claim(about)
        assert claimed is not None
        with claimed as run:
            record = failure(about, "", 1).model_copy(update={"status": status, "steps_done": step, "error": None})
            run.finish(record)


def test_a_parent_that_diverged_has_no_end(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "winnow-store")
    first, second = studies(tmp_path, PARENT, CHILD)
    register(first, store, resolve(first).plan)
    finish(store, first, [("self", 0), ("self", 1)], step=3, status="diverged")
    plan = resolve(second, parents=Parents(store)).plan
    found = missing_parents(plan, [RunKey("restart", 0, "")], store)
    assert "which diverged at step 3" in str(found)


def test_what_arms_differ_in_is_said_readably(tmp_path: Path) -> None:
    text = CHILD.replace("arms.restart = {}", 'arms.restart = {}\narms.slow = { init_from.run = "first/slow" }')
    plan = resolved(tmp_path, PARENT, text)["second"]
    arms = {name: arm.identity for name, arm in plan.arms.items()}
    assert different_settings(arms["restart"], arms["slow"]) == ("init_from",)
    assert different_settings(arms["restart"], arms["resume"]) == ("init_from.mode",)
    assert different_settings(arms["restart"], arms["head"]) == ("graft",)
    study = studies(tmp_path, PARENT, text)[1]
    assert {item.finding.rule for item in audit(study, plan)} == {"unequal-parameters"}


RESUMED = """\
id = "exact"
seeds = [0, 1, 2]
looks = [3]
base.task = { kind = "corpus", source = "corpus.txt", context = 16 }
base.train = { steps = 6, tokens_per_update = 64, warmup = 2, lr = 4e-3 }
base.evaluation = { every = 3, tokens = 128 }
arms.whole = { model = { d_model = 16, n_layers = 1, n_heads = 2, positions = "rotary" } }
arms.resumed = { init_from = { run = "first/self", step = 4, mode = "resume" } }
control = "whole"
claims.e = "resumed equal-to whole on val/ce within 0.0001"
"""


def trained(store: RunStore, study: Study, plan: Plan) -> None:
    """Every run of a study that is not there yet, in this process."""
    for name, arm in plan.arms.items():
        for seed in study.seeds:
            parent = None if arm.parent is None else arm.parent.run(seed)
            label = Label(study=study.id, arm=name)
            digest, config = plan.run(name, seed), RunConfig.model_validate(arm.config)
            about = RunIdentity(digest=digest, config=arm.config, seed=seed, data=arm.data, label=label, parent=parent)
            claimed = store.claim(about)
            if claimed is not None:
                with claimed as run:
                    read = partial(read_parent, config, seed, parent, store)
                    train(config, run, seed=seed, device=torch.device("cpu"), parent=read)


def test_a_resumed_arm_that_is_the_uninterrupted_one_is_equal_to_it(tmp_path: Path) -> None:
    """Bit-identical on purpose: no setting without effect, and differences of exactly 0 are an answer."""
    store = RunStore(tmp_path / "winnow-store")
    parent = PARENT.replace("[0, 1]", "[0, 1, 2]").replace("[2]", "[3]").replace("arms.slow = { train.lr = 1e-4 }", "")
    first, exact = studies(tmp_path, parent, RESUMED)
    for study in (first, exact):
        trained(store, study, register(study, store, resolve(study, parents=Parents(store)).plan))
    assert len(store.records()) == 6, "the uninterrupted arm is the parent itself"
    found = compare(exact, store)
    for seed in exact.seeds:
        assert found.runs["resumed"][seed].weights == found.runs["whole"][seed].weights
        assert found.runs["resumed"][seed].final == found.runs["whole"][seed].final
    [verdict] = found.verdicts
    assert (verdict.status, verdict.effect, verdict.low, verdict.high) == ("supported", 0.0, 0.0, 0.0)
    assert {item.rule for item in found.findings} <= {"slow-kernel"}


def test_families_train_and_are_judged(tmp_path: Path) -> None:
    """The real workers: parents, then children, then a grandchild; the parents' kept checkpoints stay."""
    store = RunStore(tmp_path / "winnow-store")
    first, second, third = studies(tmp_path, PARENT, CHILD, GRANDCHILD.replace('"second/head"', '"second/restart"'))
    options = Options(jobs=2, preflight=False)
    run_study(first, store, options)
    outcome = run_study(second, store, options)
    assert not outcome.failed
    assert len(outcome.ran) == 6
    runs = outcome.comparison.runs
    assert runs["resume"][0].facts["tokens"] == 4 * 64
    rows = {arm: store.metrics(runs[arm][0].digest) for arm in runs}
    parent = next(row for row in store.metrics(str(runs["restart"][0].facts["parent"])) if row["step"] == 4)
    assert rows["restart"][0]["train/ce"] == rows["resume"][0]["train/ce"] == parent["train/ce"]
    assert [row["step"] for row in rows["resume"]] == [4, 5, 6, 7, 8]
    bad = [item for item in outcome.comparison.findings if item.severity == "invalid"]
    assert bad == []
    assert not run_study(third, store, options).failed
    assert run_study(second, store, options).ran == ()
    again = compare(second, store)
    assert again.verdicts == outcome.comparison.verdicts
    known = children(store)
    assert {child.name for child in known[str(runs["restart"][0].facts["parent"])]} == {
        "second/restart/0",
        "second/resume/0",
        "second/head/0",
    }
    assert 4 in kept_steps(store)[str(runs["restart"][0].facts["parent"])]
    # The parents' study is written anew: the children's runs are of another experiment until they are resolved again.
    changed = studies(tmp_path, PARENT.replace("lr = 4e-3, keep", "lr = 5e-3, keep"))[0]
    register(changed, store, resolve(changed).plan)
    assert not any(compare(second, store).runs.values())
    plan: dict[str, Any] = json.loads((store.root / "studies" / "second.json").read_text())
    arm = plan["arms"]["restart"]
    assert run_digest(arm["identity"], 0, arm["data"], plan["sources"]) == arm["runs"]["0"], "no torch is needed for it"


def test_a_store_without_parents_is_read_as_before(tmp_path: Path) -> None:
    study, store = small(tmp_path)
    plan = register(study, store, resolve(study).plan)
    assert all(arm.parent is None for arm in plan.arms.values())
    assert children(store) == {}

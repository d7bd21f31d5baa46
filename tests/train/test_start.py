"""A run that starts from another: what goes on exactly, what starts anew, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.kills import kill_until_done
from tests.train.mechanisms import CHARGED
from tests.train.runs import CPU, identity, make, run_in, said

from winnow.attention import AttentionConfig
from winnow.config import digest, parent_digest
from winnow.errors import InputError
from winnow.models.interchange import write_model
from winnow.parameters import parameter_table
from winnow.records.checkpoints import step_folder, step_folders
from winnow.records.run import RunRecord
from winnow.records.store import RunStore
from winnow.tasks.base import Batch
from winnow.train import checkpoint, health
from winnow.train.config import RunConfig
from winnow.train.loop import Loop, build_task
from winnow.train.parents import file_parent, read_parent
from winnow.train.start import Parent, begin
from winnow.train.trainer import Progress, Training, train

KEPT = 5
SELECTIVE = {"kind": "selective", "penalty": {"epsilon": 3.0, "tau": 0.5}}
NOISY = {"kind": "charged", "noise": 0.3}
ACCUMULATING = {"train__accumulation": 4}


def child_of(parent: RunRecord, text: Path, changes: dict[str, Any] | None = None, **init: Any) -> RunConfig:
    """A config that starts from `parent`, its settings those of the parent where `changes` says nothing."""
    before = RunConfig.model_validate(parent.config)
    start = {
        "run": "test/control",
        "identity": parent_digest(before.canonical(), parent.data, parent.sources, None),
        "step": KEPT,
        **init,
    }
    made = make(text, **{"train__steps": before.train.steps, **(changes or {})})
    return RunConfig.model_validate({**made.dump(), "model": before.grown.dump(), "init_from": start})


def read(config: RunConfig, parent: RunRecord, store: RunStore, seed: int = 0) -> Parent:
    found = read_parent(config, seed, parent.digest, store)
    assert found is not None
    return found


def run_child(
    store: RunStore,
    config: RunConfig,
    parent: RunRecord,
    *,
    seed: int = 0,
    stop: Callable[[int], bool] = lambda step: False,
    parents: RunStore | None = None,
) -> RunRecord:
    """Train, or go on with, a run that starts from `parent`."""
    about = identity(config, seed, "child").model_copy(update={"parent": parent.digest})
    claimed = store.claim(about)
    assert claimed is not None
    seen: list[Progress] = []
    with claimed as run:
        return train(
            config,
            run,
            seed=seed,
            device=CPU,
            on_progress=seen.append,
            stop=lambda: stop(seen[-1].step),
            parent=lambda: read_parent(config, seed, parent.digest, parents or store),
        )


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith("speed/")} for row in rows]


def grafts(record: RunRecord) -> dict[str, Any]:
    return {name: value for name, value in record.facts.items() if name.startswith("graft_")}


def hashed(batches: list[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        found.update(batch.tokens.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(ACCUMULATING, marks=pytest.mark.soak),
        {"model__attention": SELECTIVE, **ACCUMULATING, "evaluation__inside": 5},
        {"model__attention": NOISY, **ACCUMULATING},
    ],
    ids=["plain", "accumulated", "selective-with-penalty", "noise"],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    store: RunStore, text: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AttentionConfig.members, "charged", CHARGED)
    whole = run_in(store, make(text, train__keep=(KEPT, 7), **changes))
    for step in (KEPT, 7):  # an evaluation is due at the first, none at the other
        config = child_of(whole, text, changes, mode="resume", step=step)
        resumed = run_child(store, config, whole)
        assert resumed.weights == whole.weights
        assert resumed.final == whole.final
        assert numbers(store.metrics(resumed.digest)) == numbers(store.metrics(whole.digest))[step:]
        assert (resumed.steps_done, resumed.facts["tokens"]) == (12, (12 - step) * 128)
        assert (resumed.facts["tokens_before"], resumed.facts["parent"]) == (step * 128, whole.digest)
        assert resumed.digest != whole.digest
        assert said(resumed) == said(whole)


def test_a_restarted_run_has_the_parents_weights_and_place_in_the_data(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    task = build_task(make(text).task)[0]
    config = child_of(whole, text)
    loop = Loop(config, seed=0, device=CPU, parent=read(config, whole, store))
    of_parent = [task.batch(0, KEPT, range(config.rows), config.rows)]
    assert hashed(loop._batches()) == hashed(of_parent)
    restarted = run_child(store, config, whole)
    rows, before = store.metrics(restarted.digest), store.metrics(whole.digest)
    assert rows[0]["val/ce"] == before[KEPT]["val/ce"]
    assert rows[0]["train/ce"] == before[KEPT]["train/ce"], "the same weights on the same rows"
    assert rows[0]["train/lr"] == pytest.approx(3e-3 / 3), "the schedule starts anew"
    assert [row["step"] for row in rows] == list(range(13))
    assert restarted.facts["tokens_before"] == KEPT * 128
    assert said(restarted) == []


def test_a_grandchild_goes_on_in_the_data_where_its_parent_stopped(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    config = child_of(whole, text, {"train__keep": (4,)})
    child = run_child(store, config, whole)
    for mode, first in (("restart", 0), ("resume", 4)):
        later = child_of(child, text, step=4, mode=mode)
        start = begin(later, build_task(later.task)[0], 0, read(later, child, store))
        assert (start.step, start.data_step, start.tokens_before) == (first, KEPT + 4, (KEPT + 4) * 128)
    resumed = run_child(store, child_of(child, text, step=4, mode="resume"), child)
    assert resumed.weights == child.weights


def test_moments_are_fresh_unless_they_are_asked_for(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    task = build_task(make(text).task)[0]
    for asked in (False, True):
        config = child_of(whole, text, moments=asked)
        start = begin(config, task, 0, read(config, whole, store))
        assert bool(start.moments) == asked
        record = run_child(store, config, whole)
        assert said(record) == [], "the optimizer's own count of updates is right either way"
    plain, carried = (run_child_weights(store, whole, text, asked) for asked in (False, True))
    assert plain != carried


def run_child_weights(store: RunStore, parent: RunRecord, text: Path, moments: bool) -> str | None:
    record = store.record(identity(child_of(parent, text, moments=moments)).digest)
    assert record is not None
    return record.weights


@pytest.mark.parametrize(
    "stops", [pytest.param((1,), marks=pytest.mark.soak), (3, 6), pytest.param((9,), marks=pytest.mark.soak)]
)
def test_a_stopped_child_goes_on_without_its_parent(
    store: RunStore, text: Path, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    graft = [{"kind": "add-heads", "init": "o_zero"}]
    config = RunConfig.model_validate({**child_of(whole, text).dump(), "graft": graft})
    expected = run_child(store, config, whole)
    other = RunStore(tmp_path / "other")
    for stop in stops:
        partial = run_child(other, config, whole, stop=lambda step, at=stop: step == at, parents=store)
        assert partial.status == "interrupted"
    # The parent is in another store, which is gone by now.
    record = run_child(other, config, whole, parents=RunStore(tmp_path / "none"))
    assert (record.weights, record.trace, record.findings) == (expected.weights, expected.trace, expected.findings)
    assert grafts(record) == grafts(expected) != {}
    left = [path.name for path in step_folders(other.path(record.digest) / "checkpoints")]
    assert left == [step_folder(12)], "its starting values are no longer needed"


def test_a_child_killed_before_its_first_update_is_found_the_same(
    store: RunStore, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the parent tells is kept with the starting values: its loss, the dead graft, which options acted."""
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    graft = [{"kind": "add-heads", "init": "zero"}]
    child = child_of(whole, text, {"train__tokens_per_update": 64}, moments=True)
    config = RunConfig.model_validate({**child.dump(), "graft": graft})
    monkeypatch.setattr(health, "FIRST_LOSS_NATS", -100.0)
    expected = run_child(store, config, whole)
    rules = {item.rule for item in said(expected)}
    assert rules == {"data-restarted", "dead-by-construction", "start-exploded"}
    other = RunStore(tmp_path / "other")

    def killed(training: Training) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            run_child(other, config, whole, parents=store)
    record = run_child(other, config, whole, parents=RunStore(tmp_path / "none"))
    assert (record.weights, record.trace, record.findings) == (expected.weights, expected.trace, expected.findings)
    assert grafts(record) == grafts(expected) != {}


@pytest.mark.parametrize("mode", ["resume", pytest.param("restart", marks=pytest.mark.soak)])
def test_a_child_that_is_killed_ends_as_one_that_was_not(
    store: RunStore, text: Path, tmp_path: Path, mode: str
) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    config = child_of(whole, text, {"train__steps": 60, "train__checkpoint_every": 7}, mode=mode)
    expected = run_child(store, config, whole)
    about = identity(config, 0, "child").model_copy(update={"parent": whole.digest})
    record, hits = kill_until_done(RunStore(tmp_path / "killed"), about, kills=4, longest=0.2, parents=store)
    assert hits >= 2
    assert (record.weights, record.trace, record.findings) == (expected.weights, expected.trace, expected.findings)


def test_kept_checkpoints_stay(store: RunStore, text: Path) -> None:
    record = run_in(store, make(text, train__keep=(2, KEPT), train__checkpoint_every=1))
    folder = store.path(record.digest) / "checkpoints"
    assert [path.name for path in step_folders(folder)] == [step_folder(step) for step in (12, KEPT, 2)]
    plain = make(text)
    assert plain.digest() == make(text, train__keep=(2, KEPT)).digest()
    with pytest.raises(ValueError, match="step 13 is never reached"):
        make(text, train__keep=(13,))


def damage_a_byte(folder: Path) -> None:
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)


def cut(folder: Path) -> None:
    file = folder / "moments.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def take_away(folder: Path) -> None:
    (folder / "COMPLETE").unlink()


@pytest.mark.parametrize("harm", [damage_a_byte, cut, take_away])
@pytest.mark.parametrize("step", [KEPT, 12])
def test_a_damaged_parent_is_refused_and_named(
    store: RunStore, text: Path, harm: Callable[[Path], None], step: int
) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    folder = store.path(whole.digest) / "checkpoints" / step_folder(step)
    harm(folder)
    with pytest.raises(InputError, match="no whole checkpoint") as refused:
        read(child_of(whole, text, step=step), whole, store)
    assert refused.value.file == str(folder)
    assert f"winnow rm {whole.digest}" in (refused.value.mend or "")


def test_a_parent_that_is_not_what_was_named_is_refused(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    other = run_in(store, make(text, train__keep=(KEPT,), train__lr=1e-3))
    config = child_of(whole, text)
    with pytest.raises(InputError, match="not what the study was resolved with"):
        read(config, other, store)
    with pytest.raises(InputError, match="not what the study was resolved with"):
        read(config, whole, store, seed=1)
    with pytest.raises(InputError, match=r"no checkpoint at step 4 \(it has 5, 12\).*keep = \[4\]"):
        read(child_of(whole, text, step=4), whole, store)
    parent = read(config, whole, store)
    task = build_task(config.task)[0]
    with pytest.raises(InputError, match="is not step 12"):
        begin(child_of(whole, text, step=12), task, 0, parent)
    another = RunConfig.model_validate({**config.dump(), "model": make(text, model__d_model=32).model.dump()})
    with pytest.raises(InputError, match="is another model"):
        begin(another, task, 0, parent)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"task__context": 8, "evaluation__tokens": 160}, "context"),
        ({"train__tokens_per_update": 64}, "number of rows per update"),
        ({"task__validation_fraction": 0.2}, "text"),
    ],
)
def test_where_the_place_in_the_data_means_nothing_it_is_said(
    store: RunStore, text: Path, changes: dict[str, Any], what: str
) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    config = child_of(whole, text, changes)
    record = run_child(store, config, whole)
    [finding] = [item for item in record.findings if item.rule == "data-restarted"]
    assert (finding.severity, what in finding.message) == ("notice", True)
    loop = Loop(config, seed=0, device=CPU, parent=read(config, whole, store))
    assert loop.data_step == 0
    resumed = child_of(whole, text, changes, mode="resume")
    task, parent = build_task(resumed.task)[0], read(resumed, whole, store)
    with pytest.raises(InputError, match=f"has another .*{what}.*restart"):
        begin(resumed, task, 0, parent)


def test_another_seeds_parent_is_a_start_but_no_place_in_the_data(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    before = RunConfig.model_validate(whole.config)
    one = parent_digest(before.canonical(), whole.data, whole.sources, 0)
    config = child_of(whole, text, run="test/control/0", identity=one)
    start = begin(config, build_task(config.task)[0], 3, read(config, whole, store, seed=3))
    assert start.data_step == 0
    assert "another seed" in (start.restarted or "")


def test_a_graft_that_preserves_the_function_starts_at_the_parents_loss(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    config = child_of(whole, text)
    losses: dict[str, float] = {}
    for init in ("normal", "ko_zero"):
        grafted = RunConfig.model_validate({**config.dump(), "graft": [{"kind": "add-heads", "init": init}]})
        record = run_child(store, grafted, whole)
        losses[init] = store.metrics(record.digest)[0]["val/ce"]
        assert [item for item in said(record) if item.severity == "invalid"] == []
        assert grafted.grown.dump()["n_heads"] == 3
    at = store.metrics(whole.digest)[KEPT]["val/ce"]
    assert losses["ko_zero"] == pytest.approx(at, abs=1e-6)
    assert abs(losses["normal"] - at) > 1e-4


def test_the_watch_compares_with_the_starting_values(store: RunStore, text: Path) -> None:
    """A dead graft is found although it differs from fresh initial values, and in a fresh model just as well."""
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    graft = {"graft": [{"kind": "add-heads", "init": "zero"}], "train": {**child_of(whole, text).dump()["train"]}}
    grafted = RunConfig.model_validate({**child_of(whole, text).dump(), **graft})
    for record in (run_child(store, grafted, whole), run_in(store, make(text, graft=graft["graft"]))):
        [dead] = [item for item in record.findings if item.severity == "invalid"]
        assert dead.rule == "dead-by-construction"
        assert "q.0" in dead.message


def test_begin_is_a_pure_function(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    graft = [{"kind": "add-heads", "n": 2, "at": "end"}]
    for config, parent in (
        (RunConfig.model_validate({**child_of(whole, text).dump(), "graft": graft}), whole),
        (make(text, graft=graft), None),
    ):
        task = build_task(config.task)[0]
        starts = [
            begin(config, task, 0, None if parent is None else read(config, parent, store), probe=probe)
            for probe in (True, False)
        ]
        assert len({checkpoint.weights_digest(dict(start.model.named_parameters())) for start in starts}) == 1


def test_a_grafts_fresh_values_are_those_of_the_runs_seed(store: RunStore, text: Path) -> None:
    """Seeds of a child that start from one run differ in what the graft adds, and in nothing else."""
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    graft = [{"kind": "add-heads", "n": 1, "at": "end"}]
    config = RunConfig.model_validate({**child_of(whole, text).dump(), "graft": graft})
    task, parent = build_task(config.task)[0], read(config, whole, store)
    one, other = (dict(begin(config, task, seed, parent).model.named_parameters()) for seed in (0, 1))
    parts = [
        (part.name, part.view(one[name]).equal(part.view(other[name])))
        for name, spec in parameter_table(begin(config, task, 0, parent).model).items()
        for part in spec.slices
        if name.endswith((".qkv.weight", ".out.weight"))
    ]
    assert {name for name, same in parts if not same} == {"q.2", "k.2", "v.2", "o.2"}
    assert {"q.0", "q.1", "o.1"} <= {name for name, same in parts if same}


def test_weights_from_a_file(store: RunStore, text: Path, tmp_path: Path) -> None:
    whole = run_in(store, make(text))
    task = build_task(make(text).task)[0]
    newest = checkpoint.load_newest(store.path(whole.digest) / "checkpoints", whole.digest).snapshot
    assert newest is not None
    write_model(tmp_path / "model", make(text).model, newest.weights, task.vocab_size, 16)
    found = file_parent(str(tmp_path / "model"))
    start = {"path": str(tmp_path / "model"), "identity": found.identity}
    config = RunConfig.model_validate({**make(text).dump(), "init_from": start})
    loop = Loop(config, seed=0, device=CPU, parent=found)
    assert loop.evaluate()["val/ce"] == whole.final["val/ce"]
    assert loop.data_step == 0
    another = RunConfig.model_validate({**config.dump(), "init_from": {**start, "identity": digest(1)}})
    with pytest.raises(InputError, match="the parent has changed since"):
        begin(another, task, 0, found)


def test_a_checkpoint_folder_is_a_whole_parent(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    path = str(store.path(whole.digest) / "checkpoints" / step_folder(KEPT))
    found = file_parent(path)
    start = {"path": path, "identity": found.identity, "mode": "resume", "step": KEPT}
    config = RunConfig.model_validate({**make(text).dump(), "init_from": start})
    loop = Loop(config, seed=0, device=CPU, parent=found)
    rows = store.metrics(whole.digest)
    for step in range(KEPT, 12):
        assert loop.update().ce == rows[step]["train/ce"]


def test_a_longer_table_of_positions_is_cut(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    config = child_of(whole, text, {"task__context": 8, "evaluation__tokens": 160})
    parent = read(config, whole, store)
    start = begin(config, build_task(config.task)[0], 0, parent)
    table = dict(start.model.named_parameters())["positions.weight"]
    assert torch.equal(table, parent.snapshot.weights["positions.weight"][:8])
    longer = child_of(whole, text, {"task__context": 32})
    with pytest.raises(InputError, match=r"positions\.weight .*task\.context"):
        begin(longer, build_task(longer.task)[0], 0, parent)


def test_a_run_that_would_end_where_it_starts_is_refused(text: Path, store: RunStore) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    with pytest.raises(ValueError, match="where this run ends"):
        child_of(whole, text, {"train__steps": KEPT}, mode="resume")


def test_a_child_whose_own_start_is_damaged_reads_its_parent_again(store: RunStore, text: Path) -> None:
    whole = run_in(store, make(text, train__keep=(KEPT,)))
    config = child_of(whole, text)
    expected = run_child(store, config, whole)
    store.remove([expected.digest])
    run_child(store, config, whole, stop=lambda step: step == 4)
    damage_a_byte(store.path(expected.digest) / "checkpoints" / step_folder(0))
    assert run_child(store, config, whole).weights == expected.weights, "the parent was read again"
    store.remove([expected.digest])
    run_child(store, config, whole, stop=lambda step: step == 4)
    damage_a_byte(store.path(expected.digest) / "checkpoints" / step_folder(0))
    with pytest.raises(InputError, match="has not ended in this store"):
        run_child(store, config, whole, parents=RunStore(store.root.parent / "nothing"))

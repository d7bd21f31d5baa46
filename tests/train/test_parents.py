"""Parents by path: of a run's folder the newest checkpoint that is whole and its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cli.tiny import winnow
from tests.train.runs import CPU, make, run_in

from winnow.errors import InputError
from winnow.models.interchange import read_weights, weights_sha256
from winnow.parameters import parameter_table
from winnow.records.checkpoints import step_folder
from winnow.records.store import RunStore
from winnow.train import checkpoint
from winnow.train.loop import Loop
from winnow.train.parents import file_parent
from winnow.train.slices import relative_changes

EARLY, LATE = 1, 2
FILES = ("weights.safetensors", "moments.safetensors", "progress.json", "manifest.json", "COMPLETE")


@pytest.fixture(scope="module")
def made(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two runs that kept both of their checkpoints."""
    store = RunStore(tmp_path_factory.mktemp("runs") / "store")
    records = [run_in(store, make(text, train__steps=LATE, train__keep=(EARLY,), train__lr=lr)) for lr in (1e-3, 2e-3)]
    return store.path(records[0].digest), store.path(records[1].digest)


@pytest.fixture
def run(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run's folder, somewhere else."""
    return shutil.copytree(made[0], tmp_path / "copy")


def at(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / step_folder(step)


def flip(file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def swap(file: Path, other: Path) -> None:
    shutil.copyfile(other, file)


def is_the_early_one(folder: Path, said: str) -> None:
    parent = file_parent(str(folder))
    assert parent.snapshot.step == EARLY
    assert parent.said[0].startswith(f"passed over {step_folder(LATE)}: ")
    assert said in parent.said[0]
    found = read_weights(folder)
    assert found.checkpoint == at(folder, EARLY)
    assert found.said == parent.said
    assert found.sha256 == weights_sha256(folder) == checkpoint.weights_digest(parent.snapshot.weights)


@pytest.mark.parametrize("harm", [flip, truncate, swap])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_of_a_copy_is_passed_over(
    made: tuple[Path, Path], run: Path, file: str, harm: Callable[[Path, Path], None]
) -> None:
    assert file_parent(str(run)).snapshot.step == LATE
    harm(at(run, LATE) / file, at(made[1], LATE) / file)
    # The marker is the manifest's SHA-256: where they differ, the manifest is blamed.
    is_the_early_one(run, "manifest.json" if file == "COMPLETE" else file)


def test_another_runs_checkpoint_in_its_place_is_passed_over(made: tuple[Path, Path], run: Path) -> None:
    shutil.rmtree(at(run, LATE))
    shutil.copytree(at(made[1], LATE), at(run, LATE))
    is_the_early_one(run, f"belongs to run {made[1].name}, not to {made[0].name}")


def test_a_damaged_copy_is_no_reason_to_remove_the_run(run: Path) -> None:
    """The digest in a copy's settings may be that of an intact run of this store."""
    for step in (EARLY, LATE):
        truncate(at(run, step) / "moments.safetensors", run)
    for path in (run, at(run, LATE)):
        with pytest.raises(InputError, match="no whole checkpoint") as refused:
            file_parent(str(path))
        assert "winnow rm" not in str(refused.value)
    assert "another step's folder" in str(refused.value)


def test_a_graft_of_a_damaged_copy_says_what_it_took(run: Path, tmp_path: Path) -> None:
    flip(at(run, LATE) / "moments.safetensors", run)
    ended = winnow("graft", run, "--to", tmp_path / "grown", "--remove-heads", 1, cwd=tmp_path)
    assert ended.code == 0
    assert f"passed over {step_folder(LATE)}: moments.safetensors is damaged" in ended.err


def test_slices_without_effect_are_no_extremes_of_what_moved(made: tuple[Path, Path], text: Path) -> None:
    """Keys' biases under softmax: rounding moves them, and where they are small, nothing moves more of its size."""
    parent = file_parent(str(made[0]))
    bias = "blocks.0.attention.qkv.bias"
    weights = {**parent.snapshot.weights, bias: parent.snapshot.weights[bias].clone()}
    weights[bias][16:32] *= 1e-3
    parent = replace(parent, snapshot=replace(parent.snapshot, weights=weights))
    start = {"path": str(made[0]), "identity": parent.identity, "step": LATE}
    loop = Loop(make(text, train__steps=4, init_from=start), seed=0, device=CPU, parent=parent)
    while loop.step < 4:
        loop.update()
    loop.findings_at_end(loop.evaluate())
    table = parameter_table(loop.model)
    values, starts = (
        {name: p.detach() for name, p in model.named_parameters()} for model in (loop.model, loop.starting_model())
    )
    every = relative_changes(values, starts, table)
    assert max(every, key=every.__getitem__)[1].startswith("k."), "else this shows nothing"
    assert "k." not in str(loop.changes["largest_change_of"])

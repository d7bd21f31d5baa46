"""What is imported trains: every option value of the shipped program, and every run of the first public notebook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.notebook.commanded import TEXT, TINY, read, resolve_all, run, train_all, write

from winnow.notebook.arms import Choices
from winnow.notebook.importer import Imported, import_page
from winnow.notebook.pages import Page
from winnow.notebook.program import known_programs, program_of

VALUES = {
    "n_sliced_masks": ("--n_sliced_masks 2", "--n_heads 12"),
    "n_latent_masks": ("--n_latent_masks 2", "--n_heads 12"),
    "leaky_relu": ("--leaky_relu_alpha 0.1", "--leaky_relu_bias -0.05"),
}
SINGLE = (
    "--no_protect_bos_token",
    "--allow_masking_myself",
    "--disable_selection",
    "--residual_attention_masks",
    "--relu_leak 0.1",
    "--no_decay_lr",
    "--max_lr 6e-5",
    "--n_heads 12",
    "--attention_kind self",
    "--attention_kind selective_with_memory_penalty --memory_penalty_epsilon 0.02",
    "--protection_kind head_two --protection_head_scaling_factor 0.2 --protection_head_bias -0.1",
    "--selection_head_linear_combo",
    "--selection_head_linear_combo true --selection_head_linear_combo_scale 0.1",
    "--total_batch_size 262144",
    "--max_steps 5000",
)
SEMANTICS = ("selection_head_linear_combo=switch", "selection_head_linear_combo_scale=forward")
INITS = ("normal", "o_rescaled", "o_zero", "k_zero", "ko_zero", "zero")


def every_value() -> list[str]:
    """A run for each value of each option that chooses among named ones, and for each flag."""
    program = program_of("context_compression.train", known_programs())
    assert program is not None
    blocks = [run("base", "--attention_kind self", "--max_steps 5000", "--n_heads 12", group="base")]
    for option in ("selection_head_linear_combo", "protection_kind"):
        for value in program.options[option].values:
            blocks.append(run(f"{option}_{value}", f"--{option} {value}", *VALUES.get(value, ())))
    blocks += [run(f"single_{number}", text) for number, text in enumerate(SINGLE)]
    blocks.append(run("short", "--seq_len 512"))
    for init in INITS:
        blocks.append(run(f"head_{init}", "--add_a_head", f"--new_head_init {init}", group="heads"))
    start = "--resume_checkpoint hf://who/ever/base/model_02500.pt"
    for number, more in enumerate(
        (
            (),
            ("--attention_kind self",),
            ("--add_a_head", "--new_head_init ko_zero"),
            ("--add_a_head", "--add_head_to_end"),
            ("--attention_kind self", "--resume_optimizer", "--max_steps 5000"),
        )
    ):
        blocks.append(run(f"again_{number}", start, *more, group="again"))
    return blocks


SAMPLE = (
    "base",
    "selection_head_linear_combo_with_head_zero_and_bias",
    "selection_head_linear_combo_n_latent_masks",
    "protection_kind_head_two_fp64",
    "single_3",
    "head_ko_zero",
    "again_2",
    "again_4",
)
"""A run of each kind: fresh, mixed, dedicated, protected, with scores of the layer below, grown, switched, resumed."""


def test_every_value_of_the_shipped_program_resolves(tmp_path: Path):
    imported = read(*every_value(), scale=TINY, semantics=SEMANTICS, source=TEXT, folder=tmp_path)
    assert imported.refused == ()
    resolved = resolve_all(write(imported, tmp_path))
    assert {f"{each.study.id}/{arm}" for each in resolved for arm in each.configs} == {
        each.place.rpartition("/")[0] for each in imported.runs
    }


def test_a_run_of_each_kind_trains(tmp_path: Path):
    blocks = [text for text in every_value() if set(re.findall(r"--log_dir (\S+)", text)) & set(SAMPLE)]
    assert len(blocks) == len(SAMPLE)
    check_trains(read(*blocks, scale=TINY, semantics=SEMANTICS, source=TEXT, folder=tmp_path), tmp_path)


@pytest.mark.soak
def test_every_value_of_the_shipped_program_trains(tmp_path: Path):
    check_trains(read(*every_value(), scale=TINY, semantics=SEMANTICS, source=TEXT, folder=tmp_path), tmp_path)


def check_trains(imported: Imported, folder: Path) -> None:
    records = train_all(write(imported, folder))
    assert {each.place.rpartition("/")[0] for each in imported.runs} == set(records)
    assert {name: record.status for name, record in records.items() if record.status != "finished"} == {}
    assert all(record.steps_done == record.steps_asked for record in records.values())


@pytest.mark.soak
def test_every_run_of_the_first_public_notebook_trains(shared_sources: Path, tmp_path: Path):
    programs = known_programs()
    (path,) = shared_sources.glob("001_*.txt")
    group = "testing_selection_head_lr_weight_decay"
    choices = Choices.parse([*SEMANTICS, f"selection_head_linear_combo_scale=learning-rate@{group}"], programs)
    imported = import_page(Page.read(path), programs, choices, TINY, source=TEXT, start=tmp_path)
    check_trains(imported, tmp_path)

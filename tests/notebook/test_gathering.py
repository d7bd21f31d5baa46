"""Launches as studies: groups, seeds, repeats, names that collide, contexts, and what starts from what."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.notebook.commanded import block, only, read, refusals, run

from winnow.notebook.scale import MINI

CHECKPOINT = "--resume_checkpoint hf://who/ever/{}/model_{}.pt"


def start(name: str, step: str = "02000") -> str:
    return CHECKPOINT.format(name, step)


def arms(imported) -> dict[str, dict[str, tuple[int, ...]]]:
    return {study.id: {arm.name: arm.seeds for arm in study.arms} for study in imported.studies}


def test_a_group_is_a_study_and_runs_without_one_belong_to_their_section():
    imported = read(
        run("a", group=None), run("b", "--n_heads 12", group="two"), run("c", "--n_heads 4"), run("d", group="two")
    )
    assert arms(imported) == {"some-runs": {"a": (1337,)}, "two": {"b": (1337,), "d": (1337,)}, "one": {"c": (1337,)}}


def test_runs_that_differ_in_their_seed_are_one_arm():
    imported = read(
        run("run_0_wide", "--random_seed 1337", "--n_heads 14"),
        run("run_1_wide", "--n_heads 14", "--random_seed 1338"),
        run("narrow", "--n_heads 12"),
        run("narrow_2", "--n_heads 12", "--random_seed 7"),
    )
    assert arms(imported) == {"one": {"wide": (1337, 1338), "narrow": (1337, 7)}}
    assert imported.studies[0].seeds == (7, 1337, 1338)
    assert [each.repeats for each in imported.runs] == [None] * 4


def test_a_default_that_is_written_out_changes_nothing():
    imported = read(run("a"), run("b", "--n_heads 13", "--protection_kind none", "--random_seed 1337"))
    first, second = imported.runs
    assert second.repeats is first
    assert first.digest == second.digest
    assert [[each.line for each in found] for found in imported.equal] == [[first.line, second.line]]


def test_equal_runs_of_different_groups_are_said():
    imported = read(run("a", group="x"), run("b", group="y"), run("c", "--random_seed 1", group="y"))
    assert [[each.place for each in found] for found in imported.equal] == [["x/a/1337", "y/b/1337"]]


def test_runs_of_one_name_are_kept_apart_and_the_loss_is_said():
    imported = read(run("same"), run("same", "--n_heads 12"), run("same", "--n_heads 12", "--random_seed 3"))
    assert arms(imported) == {"one": {"same": (1337,), "same-2": (1337, 3)}}
    said = [" ".join(each.notes) for each in imported.runs]
    assert "replaced" not in said[0]
    assert "the run of line 3" in said[1]
    assert "the runs of line 3, 9" in said[2]


def test_names_that_differ_in_case_alone_are_told_apart():
    assert list(arms(read(run("Wide", "--n_heads 14"), run("wide", "--n_heads 15")))["one"]) == ["Wide", "wide-2"]


def test_another_context_is_another_study():
    imported = read(run("long"), run("short", "--seq_len 512"), run("shorter", "--seq_len 256", "--n_heads 12"))
    assert list(arms(imported)) == ["one", "one-context-512", "one-context-256"]


def test_a_run_that_starts_from_another_names_it_with_its_step():
    imported = read(run("first", group="a"), run("second", start("first"), "--random_seed 5", group="b"))
    second = imported.runs[1]
    assert second.arm.init_from() == {"run": "a/first/1337", "step": 2000, "mode": "restart"}
    assert imported.runs[0].arm.full()["train"]["keep"] == [2000]
    assert "model" not in second.arm.full()
    assert "graft" not in second.arm.full()


def test_of_runs_of_one_name_the_last_one_left_the_checkpoint():
    imported = read(
        run("first", "--n_heads 12", group="a"), run("first", group="a"), run("child", start("first"), group="b")
    )
    assert imported.runs[2].arm.start is imported.runs[1]


def test_the_last_step_need_not_be_kept():
    imported = read(run("first", group="a"), run("second", start("first", "02500"), group="b"))
    assert "keep" not in imported.runs[0].arm.full()["train"]


def test_a_run_that_starts_from_its_own_group_opens_a_study_below():
    imported = read(run("first"), run("second", start("first")), run("third", start("second")), run("other", "--mup"))
    assert list(arms(imported)) == ["one", "one-continued", "one-continued-2"]
    assert [each.arm.init_from() for each in imported.runs][2] == {
        "run": "one-continued/second/1337",
        "step": 2000,
        "mode": "restart",
    }


def test_a_study_that_stands_above_a_parent_does_not_take_its_child_in():
    imported = read(run("early", group="x"), run("parent", group="y"), run("child", start("parent"), group="x"))
    assert list(arms(imported)) == ["x", "y", "x-continued"]


def test_a_switch_of_attention_follows_the_new_head():
    imported = read(
        run("plain", "--attention_kind self", "--n_heads 12", group="a"),
        run("same", start("plain"), "--attention_kind self", group="b"),
        run("grown", start("plain"), "--add_a_head", "--new_head_init ko_zero", group="b"),
    )
    same, grown = imported.studies[1].arms
    assert "graft" not in same.table
    assert [graft["kind"] for graft in grown.table["graft"]] == ["add-heads", "switch-attention"]
    assert grown.table["graft"][1]["attention"] == {"kind": "selective"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((start("first", "09999"),), "trains for fewer steps"),
        ((start("nobody").replace("hf://", ""),), "no such file, and no run above writes it"),
        ((start("refused"),), "which is not imported"),
        ((start("first"), "--resume_optimizer", "--random_seed 2"), "goes on from seed 1337 with seed 2"),
        ((start("first"), "--resume_optimizer", "--max_steps 2000"), "ends where its parent did"),
        ((start("first"), "--resume_optimizer", "--max_steps 5000", "--add_a_head"), "does not fit another model"),
    ],
)
def test_a_start_that_cannot_be_is_refused_with_its_line(options: tuple[str, ...], said: str):
    imported = read(run("first", group="a"), run("refused", "--mup", group="a"), run("child", *options, group="b"))
    found = refusals(imported)[-1]
    assert found.reason == "start"
    assert said in found.message
    assert found.line == 20


def test_sizes_that_are_written_must_be_those_of_the_weights():
    parent = run("first", "--n_heads 12", "--add_a_head", group="a")
    assert read(parent, run("child", start("first"), "--n_heads 13", group="b")).refused == ()
    (found,) = refusals(read(parent, run("child", start("first"), "--n_heads 12", group="b")))
    assert found.option == "n_heads"
    assert "has n_heads 13" in found.message
    grown = read(
        parent, run("child", start("first"), "--add_a_head", group="b"), run("last", start("child"), group="c")
    )
    assert [each.arm.published["n_heads"] for each in grown.runs] == [13, 14, 14]


def test_the_older_interface_takes_the_optimizer_along_unless_told_otherwise():
    first = block("ATTENTION_KIND=self LOG_DIR=first torchrun -m context_compression.train")
    again = "RESUME_CHECKPOINT=first/model_07500.pt {} ATTENTION_KIND=self LOG_DIR=again torchrun -m {}"
    for setting, mode, notes in (
        ("", "resume", 1),
        ("RESUME_OPTIMIZER=true", "resume", 0),
        ("RESUME_OPTIMIZER=false", "restart", 0),
    ):
        second = read(first, block(again.format(setting, "context_compression.train"))).runs[1]
        assert second.arm.resume == (mode == "resume"), setting
        assert len(second.notes) == notes, setting


def test_a_resumed_run_counts_its_parent_s_steps():
    imported = read(
        run("first", group="a"), run("more", start("first"), "--resume_optimizer", "--max_steps 5000", group="b")
    )
    assert imported.runs[1].arm.init_from() == {"run": "a/first/1337", "step": 2000, "mode": "resume"}
    assert imported.runs[1].arm.full()["train"]["steps"] == 5000


def test_a_file_that_is_there_is_a_start(tmp_path: Path):
    (tmp_path / "weights").mkdir()
    text = run("child", "--resume_checkpoint weights", "--attention_kind self")
    assert only(read(text, folder=tmp_path)).arm.init_from() == {"path": "weights", "mode": "restart"}
    remote = run("child", "--resume_checkpoint hf://owner/repo/model.pt")
    assert only(read(remote, folder=tmp_path)).arm.init_from() == {
        "path": "hf://owner/repo/model.pt",
        "mode": "restart",
    }


def test_a_smaller_size_keeps_what_is_said_in_heads():
    imported = read(
        run("first", "--n_heads 12", group="a"),
        run("second", start("first"), group="b"),
        run("masks", "--selection_head_linear_combo one_mask_per_head", "--n_heads 12", group="a"),
        run("small", "--total_batch_size 20480", "--seq_len 512", "--batch_size 10", group="a"),
        scale=MINI,
    )
    assert [study.id for study in imported.studies] == ["a-mini", "b-mini", "a-mini-context-128"]
    first, second, masks, small = (each.arm.full() for each in imported.runs)
    assert (first["model"]["n_heads"], first["model"]["d_model"], first["model"]["d_head"]) == (12, 192, 16)
    assert (first["train"]["steps"], first["train"]["warmup"], first["train"]["keep"]) == (400, 114, [320])
    assert second["init_from"]["step"] == 320
    assert masks["model"]["attention"]["scores"]["n_heads"] == 12
    assert small["train"]["tokens_per_update"] % small["task"]["context"] == 0
    assert "micro_batch" not in small["train"]

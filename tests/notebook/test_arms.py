"""Options as settings: what each means, what is refused and with which line, and what a reader is told."""

from __future__ import annotations

import pytest
from tests.notebook.commanded import block, command, only, read, refusals, run, settings

from winnow.errors import InputError
from winnow.notebook.arms import Choices
from winnow.notebook.program import known_programs


def test_a_command_without_options_is_the_program_s_own_run():
    found = settings(read(run("plain")))
    assert found["model.n_heads"] == 13
    assert found["model.attention.kind"] == "selective"
    assert (found["train.steps"], found["train.tokens_per_update"], found["train.warmup"]) == (2500, 524288, 715)
    assert found["task.context"] == 1024
    assert only(read(run("plain"))).seed == 1337


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ("--max_steps 500", "train.steps", 500),
        ("--max_lr 6e-5", "train.lr", 6e-5),
        ("--seq_len 128", "task.context", 128),
        ("--batch_size 4", "train.micro_batch", 4),
        ("--total_batch_size 131072", "train.tokens_per_update", 131072),
        ("--no_decay_lr", "train.schedule", "constant"),
        ("--no_use_compile", "train.compile", False),
        ("--n_heads 12", "model.n_heads", 12),
        ("--no_protect_bos_token", "model.attention.protect_bos", False),
        ("--allow_masking_myself", "model.attention.allow_self_masking", True),
        ("--disable_selection", "model.attention.selection", False),
        ("--residual_attention_masks", "model.attention.residual_scores", True),
        ("--relu_leak 0.25 --relu_after_cumsum", "model.attention.gate.leak", 0.25),
        ("--attention_kind self", "model.attention.kind", "softmax"),
        ("--attention_kind selective_with_memory_penalty", "model.attention.penalty.epsilon", 1.2),
        (
            "--attention_kind selective_with_memory_penalty --memory_penalty_epsilon 0.02",
            "model.attention.penalty.epsilon",
            0.24,
        ),
        ("--selection_head_linear_combo one_mask_per_head --n_heads 12", "model.attention.scores.n_heads", 12),
        ("--selection_head_linear_combo n_sliced_masks --n_sliced_masks 2", "model.attention.scores.n_slices", 2),
        ("--protection_kind head_two --protection_head_bias -10.0", "model.attention.accumulate.bias", -10.0),
        (
            "--protection_kind leaky_relu --leaky_relu_alpha 0.1 --leaky_relu_bias -0.05",
            "model.attention.accumulate.source.offset",
            -0.05,
        ),
        ("--max_steps 500 --max_steps 700", "train.steps", 700),
        ("--max-steps=500", "train.steps", 500),
    ],
)
def test_what_an_option_means(options: str, key: str, value: object):
    assert (
        settings(read(run("one", *options.split(" --")[:1], *(f"--{text}" for text in options.split(" --")[1:]))))[key]
        == value
    )


def test_an_extra_head_is_a_graft_on_the_twelve_of_its_time():
    found = settings(read(run("one", "--add_a_head", "--add_head_to_end", "--new_head_init ko_zero")))
    assert found["model.n_heads"] == 12
    assert found["graft"] == [{"kind": "add-heads", "at": "end", "init": "ko_zero"}]
    assert any("12 and the new one" in note for note in only(read(run("one", "--add_a_head"))).notes)


def test_the_older_interface_has_the_defaults_of_its_time():
    text = block("ATTENTION_KIND=self LOG_DIR=old torchrun --nproc_per_node=4 -m context_compression.train")
    found = settings(read(text))
    assert (found["train.steps"], found["model.n_heads"]) == (10000, 12)
    assert found["model.attention.kind"] == "softmax"
    first = settings(read(block("USE_SELECTIVE=true LOG_DIR=old torchrun perplexity_loss_only.py &> old.txt")))
    assert first["model.attention.kind"] == "selective"


@pytest.mark.parametrize(
    ("options", "reason", "said"),
    [
        ("--colour red", "unknown", "--colour red is no option of context_compression"),
        ("--max_step 500", "unknown", "did you mean --max_steps?"),
        ("--max_steps many", "value", "takes a whole number, not 'many'"),
        ("--protection_kind custom_cumsum", "value", "never was a value"),
        ("--protection_kind head_too", "value", "did you mean 'head_two'?"),
        ("--protection_kind leaky_relu --leaky_relu_alpha 1", "value", "needs --leaky_relu_bias"),
        ("--mup", "unbuilt", "has not got muP"),
        ("--attention_kind self --no_protect_bos_token", "effect", "has no effect on softmax attention"),
        ("--protection_head_bias 1", "effect", "is read only with --protection_kind head_two or"),
        ("--n_latent_masks 2", "effect", "is read only with --selection_head_linear_combo n_latent_masks"),
        ("--new_head_init ko_zero", "effect", "is read only with --add_a_head"),
        ("--selection_head_linear_combo", "meaning", "choose with --semantics selection_head_linear_combo=switch or"),
        (
            "--selection_head_linear_combo true --selection_head_linear_combo_scale 0.1",
            "meaning",
            "(forward: 16 February 2025: multiplies the mix in the forward pass; learning-rate: from 17",
        ),
        ("--batch_size 5", "size", "524288 tokens of an update do not divide into passes of 5"),
        ("extra", "argument", "argument 'extra'"),
    ],
)
def test_what_is_refused_and_where(options: str, reason: str, said: str):
    """Options stand one a line from line 6 on: heading, blank, fence, command, group, name."""
    texts = [f"--{text}" if number else text for number, text in enumerate(options.split(" --"))]
    imported = read(block(command("--group one", "--log_dir one", *texts)))
    (found,) = refusals(imported)
    assert found.reason == reason
    assert said in found.message
    lines = {4 + 2 + number for number in range(1, len(texts) + 1)}
    assert found.line in lines
    option = (found.option or "extra").strip("-")
    text = f"# Some runs\n\n{block(command('--group one', '--log_dir one', *texts))}".split("\n")
    assert option in text[found.line - 1]


def test_every_reason_is_given_at_once():
    found = refusals(read(run("one", "--mup", "--colour red", "--max_steps many", state="vast:sleeping")))
    assert [item.reason for item in found] == ["state", "unknown", "unbuilt", "value"]


def test_a_meaning_is_chosen_for_all_or_for_a_group():
    texts = [
        run(name, "--selection_head_linear_combo true", "--selection_head_linear_combo_scale 0.1", group=name)
        for name in ("early", "late")
    ]
    imported = read(
        *texts,
        semantics=[
            "selection_head_linear_combo_scale=forward",
            "--selection-head-linear-combo-scale=learning-rate@late",
        ],
    )
    scores = [each.arm.attention["scores"] for each in imported.runs]
    assert [(each.get("scale"), each.get("lr_multiplier")) for each in scores] == [(0.1, None), (None, 0.1)]
    assert refusals(read(texts[0], semantics=["selection_head_linear_combo_scale=forward@late"]))


def test_a_reading_under_which_a_command_is_none_refuses_it():
    text = run("one", "--selection_head_linear_combo")
    (found,) = refusals(read(text, semantics=["selection_head_linear_combo=value"]))
    assert "ends with an error" in found.message
    scores = only(read(text, semantics=["selection_head_linear_combo=switch"])).arm.attention["scores"]
    assert scores == {"kind": "linear_combination", "init": "random", "bias": True}


def test_a_number_may_mean_something_under_one_reading_alone():
    text = run("one", "--selection_head_linear_combo true", "--selection_head_linear_combo_scale 0.0")
    assert read(text, semantics=["selection_head_linear_combo_scale=learning-rate"]).refused == ()
    (found,) = refusals(read(text, semantics=["selection_head_linear_combo_scale=forward"]))
    assert "read as 'forward', it takes more than 0, not 0" in found.message


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("max_steps=many", "has one meaning"),
        ("selection_head_linear_combo_scale=backward", "has no meaning 'backward'"),
        ("selection_head_linear_combo_scale", "is no choice"),
    ],
)
def test_a_choice_that_chooses_nothing_is_refused(given: str, message: str):
    with pytest.raises(InputError, match=message):
        Choices.parse([given], known_programs())


def test_what_never_reached_the_program_is_imported_as_written_and_said():
    text = block(
        "torchrun -m context_compression.train \\\n  --log_dir torn \\\n  --protection_kind head_two\n"
        "  --protection_head_scaling_factor 0.2"
    )
    found = only(read(text))
    assert found.arm.attention["accumulate"]["scale"] == 0.2
    (note,) = found.notes
    assert "--protection_head_scaling_factor 0.2 (line 7) never reached the program" in note


def test_what_measures_the_inside_is_the_study_s_and_a_run_without_it_is_said():
    looked = block("DEBUG_CUM_SUM=true torchrun -m context_compression.train --group one --log_dir looked")
    imported = read(looked, run("not", "--protection_kind zero"))
    assert imported.studies[0].evaluation["inside"] == 200
    assert ["inside was not looked at" in " ".join(each.notes) for each in imported.runs] == [False, True]


def test_variables_that_are_not_known_are_refused_and_those_of_the_machine_are_not():
    own = "torchrun -m context_compression.train --log_dir one"
    assert read(block(f"CUDA_VISIBLE_DEVICES=0 SKIP_WANDB=true NCCL_DEBUG=INFO {own}")).refused == ()
    (found,) = refusals(read(block(f"FAST_PATH=1 {own}")))
    assert found.reason == "unknown"
    assert "FAST_PATH" in found.message


def test_an_option_of_the_environment_beside_flags_counts():
    imported = read(
        block("USE_MINI_MODEL=true torchrun -m context_compression.train --log_dir one"),
        semantics=["use_mini_model=twelve-layers"],
    )
    found = settings(imported)
    assert (found["train.tokens_per_update"], found["task.context"], found["model.d_model"]) == (20480, 512, 832)


def test_the_last_run_directory_decides_and_a_run_without_one_is_refused():
    (found,) = refusals(read(block(command("--group one"))))
    assert found.reason == "name"
    (found,) = refusals(read(block(command("--log_dir a", module="somebody.elses"))))
    assert found.reason == "program"

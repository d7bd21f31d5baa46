"""Descriptions of training programs: what they say of options as written, and of themselves where they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from winnow.attention.selective_presets import PRESETS, REFUSED
from winnow.errors import InputError
from winnow.notebook.program import OptionSchema, Program, known_programs, program_of, read_program

MINIMAL = """
name = "other"
about = "a program of somebody else's"
runs = ["other.train", "train.py"]
[options.steps]
about = "updates"
type = "integer"
environment = "STEPS"
sets = { train.steps = "$value" }
"""


def option(**fields: object) -> OptionSchema:
    return OptionSchema.model_validate({"about": "an option", "sets": {"train": {"lr": "$value"}}, **fields})


def shipped() -> Program:
    found = program_of("context_compression.train", known_programs())
    assert found is not None
    return found


def test_a_program_is_known_by_its_module_and_by_its_script_wherever_it_lies(tmp_path: Path):
    (tmp_path / "other.toml").write_text(MINIMAL)
    other = read_program(tmp_path / "other.toml")
    programs = [*known_programs(), other]
    assert program_of("other.train", programs) is other
    assert program_of("somewhere/train.py", programs) is other
    assert program_of("perplexity_loss_only.py", programs) == shipped()
    assert program_of("trains.py", programs) is None
    assert other.of_environment("STEPS") == "steps"
    assert other.of_environment("steps") is None


@pytest.mark.parametrize(
    ("fields", "value", "said"),
    [
        ({}, "x", None),
        ({}, None, "takes a value"),
        ({"type": "integer"}, "12", None),
        ({"type": "integer"}, "1e3", "takes a whole number, not '1e3'"),
        ({"type": "number"}, "1e3", None),
        ({"type": "number"}, "fast", "takes a number, not 'fast'"),
        ({"type": "number"}, "nan", "takes a finite number, not 'nan'"),
        ({"type": "integer", "least": 1}, "0", "takes 1 or more, not 0"),
        ({"type": "number", "above": 0}, "0.0", "takes more than 0, not 0"),
        ({"type": "number", "above": 0}, "1e-9", None),
        ({"takes": "flag"}, None, None),
        ({"takes": "flag"}, "4", "takes no value, and '4' follows"),
        ({"takes": "flag", "type": "boolean"}, "true", "takes no value, and 'true' follows"),
        ({"takes": "either", "values": {"one": {}}}, None, None),
        ({"values": {"one": {}, "two": {}}}, "ONE", None),
        ({"values": {"one": {}, "two": {}}}, None, "takes one of one, two"),
        ({"values": {"one": {}, "two": {}}}, "tow", "'tow' is not a value; did you mean 'two'? permitted: one, two"),
        ({"values": {"one": {}}, "never": {"won": "is no number"}}, "won", "'won' is no number"),
    ],
)
def test_what_is_wrong_with_an_option_as_written(fields: dict[str, object], value: str | None, said: str | None):
    assert option(**fields).problem(value) == said


def test_a_flag_of_the_environment_is_true_or_false():
    flag = option(takes="flag", type="boolean")
    assert flag.problem("true", "environment") is None
    assert flag.problem("False", "environment") is None
    assert flag.problem("1", "environment") == "takes true or false, not '1'"


def test_defaults_are_those_of_the_command_s_time():
    program = shipped()
    steps, heads = program.options["max_steps"], program.options["n_heads"]
    assert steps.default_for("flags", []) == 2500
    assert steps.default_for("environment", []) == 10000
    assert heads.default_for("flags", ["group"]) == 13
    assert heads.default_for("flags", ["add_a_head", "group"]) == 12


def test_a_meaning_that_changed_is_a_question_in_the_form_that_changed():
    combination = shipped().options["selection_head_linear_combo"]
    assert set(combination.readings_of(None)) == {"switch", "value"}
    assert combination.readings_of("with_head_zero") == {}
    assert set(shipped().options["selection_head_linear_combo_scale"].readings_of("0.1")) == {
        "forward",
        "learning-rate",
    }


def test_the_values_of_the_shipped_program_are_those_of_the_attention_presets():
    """Two places say what a value means; they may not part."""
    options = shipped().options
    named = {**options["selection_head_linear_combo"].values, **options["protection_kind"].values}
    assert set(named) == set(PRESETS) - {
        *(name for name in PRESETS if name.endswith("_fp64") and name not in named),
        "selective_with_memory_penalty",
    }
    for name, value in named.items():
        said = dict(value.sets.get("attention", {}))
        if name == "one_mask_per_head":
            assert said["scores"].pop("n_heads") == "$n_heads"
        preset = {key: {k: v for k, v in table.items() if v is not False} for key, table in PRESETS[name].items()}
        assert said == preset, name
    assert set(REFUSED) == set(options["protection_kind"].never)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("type = ", "typ = "), "options.steps.typ: unknown key 'typ'"),
        (("integer", "whole"), "options.steps.type: 'whole' is not permitted"),
        (('sets = { train.steps = "$value" }', ""), "says nothing of what it means"),
        (('"updates"', "updates"), "is not TOML"),
        (("[options.steps]", "[options.steps]\nonly_with = { stops = [] }"), "names an option 'stops'"),
    ],
)
def test_a_wrong_description_is_refused_with_the_file(tmp_path: Path, changed: tuple[str, str], message: str):
    path = tmp_path / "other.toml"
    path.write_text(MINIMAL.replace(*changed))
    with pytest.raises(InputError) as refused:
        read_program(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_the_description_in_the_guide_is_one(tmp_path: Path):
    guide = Path(__file__).parents[2] / "docs" / "importing.md"
    (tmp_path / "mine.toml").write_text(guide.read_text().split("```toml\n")[1].split("```")[0])
    mine = read_program(tmp_path / "mine.toml")
    assert mine.with_role("name") == "out"
    assert set(mine.options["sharpness"].readings_of("2")) == {"scores", "rate"}


def test_a_description_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_program(tmp_path / "none.toml")

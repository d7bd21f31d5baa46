"""Help that fits on a page, and commands that start without the heavy libraries."""

from __future__ import annotations

import re
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import pytest
from tests.fakes import fake_record
from tests.study.planned import made_up
from typer.models import ArgumentInfo

from winnow.cli import app
from winnow.study.spec import load_study

ROOT = Path(__file__).parents[2]
TOP = ("Studies", "Verdicts", "Runs")


def commands() -> dict[str, str | None]:
    return {info.name or "": info.rich_help_panel for info in app.registered_commands}  # type: ignore[misc]


def test_at_most_a_dozen_verbs_stand_at_the_top(winnow):
    top = [name for name, panel in commands().items() if panel in TOP]
    assert len(top) == 12
    text = winnow("--help").out
    order = [text.index(f"─ {panel} ") for panel in (*TOP, "Notebooks", "Trained models", "Upkeep")]
    assert order == sorted(order)


@pytest.mark.parametrize("name", ["", *commands(), "data", "data prepare"])
def test_every_help_has_an_example_of_files_and_claims_that_exist(winnow, name: str):
    ended = winnow(*name.split(), "--help")
    assert ended.code == 0
    examples = re.findall(r"(?:Example|Begin with): (winnow .*)", ended.out)
    assert len(examples) == 1
    _, *words = examples[0].split()
    assert examples[0].startswith(f"winnow {name}")
    for word in words:
        if word.endswith((".toml", ".md")):
            assert (ROOT / word).is_file(), word
    if name == "why":
        load_study(ROOT / words[1]).claim(words[2])


def test_where_records_are_looked_for_is_said_of_what_the_command_is_given():
    checked = set()
    for info in app.registered_commands:
        hints = get_type_hints(info.callback, include_extras=True)  # type: ignore[arg-type]
        if "store" not in hints:
            continue
        parts = [part for hint in hints.values() for part in getattr(hint, "__metadata__", ())]
        given = {part.metavar for part in parts if isinstance(part, ArgumentInfo)}
        (option,) = hints["store"].__metadata__
        takes_studies = bool(given & {"FILE", "[FILE]"}) or info.name == "index"
        assert ("beside the study's file" in option.help) == takes_studies, info.name
        checked.add(info.name)
    assert {"run", "status", "graft", "export", "push", "pull", "rm"} <= checked


def test_the_json_of_every_command_that_has_it_is_documented():
    page = (ROOT / "docs" / "commands.md").read_text().partition("## JSON")[2]
    rows = set(re.findall(r"^\| `([a-z -]+)` \|", page, re.MULTILINE))
    infos = [*app.registered_commands, *app.registered_groups[0].typer_instance.registered_commands]  # type: ignore[union-attr]
    given = {info.name for info in infos if "as_json" in signature(info.callback).parameters}  # type: ignore[arg-type]
    assert {"data prepare" if name == "prepare" else name for name in given} == rows


def test_commands_that_only_read_never_import_torch(tmp_path: Path):
    study, store = made_up(tmp_path)
    assert study.file is not None
    study.file.write_text(
        (Path(__file__).parents[1] / "study" / "planned.py").read_text().split('"""\\\n')[1].split('"""')[0]
    )
    fake_record(store, "control", 0, study="made-up")
    program = """
import sys
from winnow.cli import main
loaded = []
for arguments in eval(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        assert ended.code == 0, (arguments, ended.code)
    drawn = ("matplotlib",) if arguments[0] == "report" else ()
    for name in ("torch", "scipy.stats", "matplotlib", "fsspec", "huggingface_hub"):
        if name in sys.modules and name not in drawn:
            loaded.append((arguments, name))
print(loaded, file=sys.stderr)
"""
    file = str(study.file)
    given = [
        ["--help"],
        ["status", file],
        ["compare", file],
        ["why", file, "h1"],
        ["table", file],
        ["lint", file],
        ["status", "--store", str(store.root)],
        ["report", file],  # the last one: it may draw
    ]
    ended = subprocess.run([sys.executable, "-c", program, repr(given)], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.rstrip().split("\n")[-1] == "[]"
    assert re.search(r"h1: good better-than control", ended.stdout)


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path):
    program = f"{sys.executable} -m winnow.cli --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr

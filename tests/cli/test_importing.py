"""`winnow import`: what it writes, says, and refuses; what it wrote passes `winnow check`."""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path

from tests.notebook.commanded import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "commands.md"

PROGRAM = """
name = "other"
about = "somebody else's"
runs = ["other.train"]
[base]
task = { context = 32 }
model = { preset = "tiny" }
train = { steps = 4, tokens_per_update = 64, warmup = 1 }
evaluation = { every = 2, tokens = 64 }
[options.out]
about = "name"
role = "name"
[options.rate]
about = "learning rate"
type = "number"
sets = { train.lr = "$value" }
"""


def test_what_is_written_passes_check(winnow, tmp_path: Path):
    (tmp_path / "text.py").write_bytes(2 * Path(argparse.__file__).read_bytes() + Path(ast.__file__).read_bytes())
    out = tmp_path / "lab.md"
    ended = winnow("import", EXAMPLE, "--out", out, "--preset", "mini", "--source", "text.py")
    assert ended.code == 0, ended.err
    assert f"{EXAMPLE}:76: mixed: --selection_head_linear_combo_scale 0.1: its meaning has changed" in ended.out
    assert "9 commands: 7 imported as 7 different runs of 6 arms in 3 studies, 2 not imported." in ended.out
    assert ended.out.rstrip().endswith(f"wrote {out}; next: winnow check {out}")
    assert ended.err == ""
    ended = winnow("check", out, "--store", tmp_path / "store", "--json")
    assert ended.code == 0, ended.err
    assert [report["study"] for report in json.loads(ended.out)] == [
        "the-first-runs-mini",
        "heads-mini",
        "protection-mini",
    ]


def test_json_says_what_became_of_every_command(winnow, tmp_path: Path):
    ended = winnow("import", EXAMPLE, "--out", tmp_path / "lab.md", "--json")
    found = json.loads(ended.out)
    assert len(found["commands"]) == 9
    first = found["commands"][0]
    assert (first["line"], first["study"], first["arm"], first["seed"]) == (8, "the-first-runs", "plain_0", 1337)
    assert len(first["digest"]) == 16
    wide = found["commands"][-1]
    assert [(item["line"], item["reason"], item["option"]) for item in wide["refused"]] == [
        (79, "state", None),
        (80, "unbuilt", "mup"),
    ]
    assert found["hypotheses"][0]["answer_line"] == 16
    assert found["written"] == str(tmp_path / "lab.md")


def test_without_a_text_a_note_says_loudly_what_is_read(winnow, tmp_path: Path):
    ended = winnow("import", EXAMPLE, "--out", tmp_path / "lab.md")
    assert "every run reads the Python standard library" in ended.err
    assert "> **Not the source's text.**" in (tmp_path / "lab.md").read_text()


def test_a_choice_brings_a_run_in(winnow, tmp_path: Path):
    given = ("--semantics", "selection_head_linear_combo_scale=forward@protection")
    ended = winnow("import", EXAMPLE, "--out", tmp_path / "lab.md", *given)
    assert "8 imported" in ended.out


def test_nothing_is_written_over(winnow, tmp_path: Path):
    (tmp_path / "lab.md").write_text("mine")
    ended = winnow("import", EXAMPLE, "--out", tmp_path / "lab.md")
    assert ended.code == 2
    assert "exists already" in ended.err
    assert (tmp_path / "lab.md").read_text() == "mine"


def test_wrong_input_is_one_line_with_a_mend(winnow, tmp_path: Path):
    prose = tmp_path / "prose.md"
    prose.write_text("# Words\n\nNothing here trains.\n")
    for arguments, said in (
        ((tmp_path / "none.md",), "cannot be read"),
        ((prose, "--out", tmp_path / "a.md"), "no command that trains anything"),
        ((EXAMPLE, "--out", tmp_path / "a.txt"), "would be no notebook"),
        ((EXAMPLE, "--out", tmp_path / "a.md", "--semantics", "max_steps=x"), "has one meaning"),
        ((EXAMPLE, "--out", tmp_path / "a.md", "--program", prose), "is not TOML"),
    ):
        ended = winnow("import", *arguments)
        assert ended.code == 2, arguments
        assert said in ended.err
        assert ended.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prose.md"]


def test_a_program_of_one_s_own(winnow, tmp_path: Path):
    (tmp_path / "other.toml").write_text(PROGRAM)
    notebook = tmp_path / "lab.txt"
    notebook.write_text("# Rates\n\n```\npython -m other.train --out slow --rate 0.001\n```\n\n" + run("unknown"))
    ended = winnow("import", notebook, "--out", tmp_path / "lab.md", "--program", tmp_path / "other.toml")
    assert "2 commands: 2 imported" in ended.out
    assert "arms.slow = {}  # line 3; seed 0" in (tmp_path / "lab.md").read_text()
    notebook.write_text("# Rates\n\n```\npython -m other.train --out fast --rate quick\n```\n")
    ended = winnow("import", notebook, "--out", tmp_path / "more.md", "--program", tmp_path / "other.toml")
    assert f"{notebook}:4: fast: --rate quick: takes a number, not 'quick'" in ended.out


def test_importing_never_imports_torch(tmp_path: Path):
    program = (
        "import sys\nfrom winnow.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print([name for name in ('torch', 'scipy.stats', 'matplotlib') if name in sys.modules], file=sys.stderr)\n"
    )
    arguments = ["import", str(EXAMPLE), "--out", str(tmp_path / "lab.md"), "--source", "text.py"]
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert ended.stderr.rstrip().endswith("[]"), ended.stderr

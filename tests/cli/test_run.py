"""`winnow run` for real: planted faults reach the verdicts, results are written once, Ctrl-C loses nothing.

The faults are in the study, not in the program: a setting without effect, an option that is never read, a run that
diverges. Health rules that need a faulty model have their tests beside the trainer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.cli.tiny import WINNOW, winnow, write_study

from winnow.notebook.document import Document

CLEAN = """\
arms.wide = { model.d_ff = 128 }
arms.other = { model.norm = { kind = "rmsnorm" } }
claims.wide = "wide better-than control on val/ce smallest 0.01"
"""
FAULTY = """\
arms.dead = { train.clip = 1e6 }
arms.diverges = { train.lr = 1e6 }
arms.unread = { train.lr = 0.02, train.min_lr_fraction = 0.5 }
claims.dead = "dead better-than control on val/ce smallest 0.01"
claims.expected = { claim = "dead worse-than control on val/ce smallest 0.01", expect = "invalid" }
claims.diverges = "diverges worse-than control on val/ce smallest 0.01"
claims.unread = "unread better-than control on val/ce smallest 0.01"
"""
OFF = {"lr = 0.01 }": 'lr = 0.01, clip = "off", schedule = "constant" }'}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict], str]:
    """A finished run of the faulty study: its folder, its verdicts by claim, what it printed."""
    folder = tmp_path_factory.mktemp("faulty")
    file = write_study(folder, FAULTY, changes=OFF)
    ended = winnow("run", file.name, "--jobs", 2, cwd=folder)
    assert ended.returncode == 1, ended.stderr
    compared = winnow("compare", file.name, "--json", cwd=folder)
    assert compared.returncode == 1
    report = json.loads(compared.stdout)[0]
    return folder, {verdict["claim"]["id"]: verdict for verdict in report["verdicts"]}, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A notebook with a sound study, run once."""
    folder = tmp_path_factory.mktemp("clean")
    study = write_study(folder, CLEAN)
    text = f"# Lab\r\n\r\n```toml study\r\n{study.read_text()}```\r\n\r\nMy *own* words"
    (folder / "lab.md").write_bytes(text.replace("\r\n", "\n").replace("\n", "\r\n").encode())
    study.unlink()
    return folder, winnow("run", "lab.md", cwd=folder)


def test_a_setting_without_effect_makes_the_claim_invalid(faulty):
    _, verdicts, _ = faulty
    assert verdicts["dead"]["status"] == verdicts["expected"]["status"] == "invalid"
    assert "bit-identical" in verdicts["dead"]["reason"] or "no effect" in verdicts["dead"]["reason"]
    assert (verdicts["dead"]["expected"], verdicts["expected"]["expected"]) == (False, True)


def test_an_option_that_is_never_read_makes_the_claim_invalid(faulty):
    _, verdicts, _ = faulty
    assert verdicts["unread"]["status"] == "invalid"
    assert "never read" in verdicts["unread"]["reason"]


def test_divergence_is_an_outcome_and_names_step_and_tensor(faulty):
    _, verdicts, printed = faulty
    assert verdicts["diverges"]["status"] == "undecided"
    assert "diverged" in verdicts["diverges"]["reason"]
    assert re.search(r"non-finite: .*step \d+: .* is the first tensor", printed)


def test_results_escape_what_the_study_says(faulty):
    folder, _, _ = faulty
    text = (folder / "tiny.results.md").read_text()
    assert text.startswith("# Does &lt;b&gt;anything&lt;/b&gt; \\| help \\[here\\](x)?\n")
    assert "<b>" not in text


def test_a_clean_study_has_no_finding_and_a_plan_before_it_runs(clean):
    _, ended = clean
    assert ended.returncode == 0, ended.stderr
    assert "findings" not in ended.stdout
    before, _, after = ended.stderr.partition("trying a few steps")
    assert "runs to do: 6 for the first look, at most 9" in before
    assert "smallest detectable effect" in before
    assert "look 1 of 2" in after
    assert "n 3, rho" in ended.stdout


def test_results_stand_under_the_cell_and_the_rest_of_the_notebook_is_untouched(clean):
    folder, _ = clean
    data = (folder / "lab.md").read_bytes()
    assert data.endswith(b"<!-- /winnow -->\r\n\r\nMy *own* words")
    assert b"\n" not in data.replace(b"\r\n", b"")
    document = Document(data, folder / "lab.md")
    block = document.block("tiny")
    assert block is not None
    assert not block.edited
    assert document.cells[0].last_line < block.opening_line
    for kind in ("curves", "differences"):
        assert f"(tiny.{kind}.png)" in block.content
        assert (folder / f"tiny.{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_run_again_it_runs_nothing_and_says_and_writes_the_same(clean):
    folder, first = clean
    # A lock says who held it last, the index is derived; everything else must stand.
    kept = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".sqlite", ".lock")]
    files = {path: path.read_bytes() for path in kept if path.name != "lock"}
    again = winnow("run", "lab.md", cwd=folder)
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert "8 recorded" in again.stderr, "at the second look only the open claim's arms run"
    assert "look 1" not in again.stderr
    assert {path: path.read_bytes() for path in files} == files


def test_why_show_table_and_status_speak_of_the_same_runs(clean):
    folder, _ = clean
    why = json.loads(winnow("why", "lab.md", "wide", "--json", cwd=folder).stdout)
    values = why["numbers"]["values"]
    shown = json.loads(winnow("show", "tiny/wide/1", "--json", cwd=folder).stdout)
    assert shown["record"]["final"]["val/ce"] == values["wide"]["1"]
    table = json.loads(winnow("table", "lab.md", "--format", "json", cwd=folder).stdout)
    row = next(row for row in table["rows"] if row["arm"] == "wide")
    assert row["mean"] == pytest.approx(sum(values["wide"].values()) / 3)
    status = json.loads(winnow("status", "lab.md", "--json", cwd=folder).stdout)
    assert status[0]["arms"]["wide"] == {"finished": [0, 1, 2]}
    text = winnow("why", "lab.md", "wide", cwd=folder).stdout
    assert f"{values['wide']['1']:.6g}" in text


def test_settings_of_the_command_line_make_another_study(clean):
    folder, _ = clean
    plan = (folder / "winnow-store/studies/tiny.json").read_bytes()
    ended = winnow("check", "lab.md", "--set", "train.steps=3", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert (folder / "winnow-store/studies/tiny.json").read_bytes() == plan
    assert len(list(folder.glob("winnow-store/studies/tiny.set-*.json"))) == 1


def test_ctrl_c_saves_says_how_to_go_on_and_goes_on(tmp_path: Path):
    write_study(tmp_path, "arms.b = { train.lr = 0.02 }\n", changes={"steps = 6": "steps = 100000"})
    command = [*WINNOW, "run", "tiny.toml", "--jobs", "1"]

    def stopped(until: str) -> str:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if until in line:
                break
        deadline = time.monotonic() + 30
        while not _rows(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 130, "".join(lines) + rest
        return "".join(lines) + rest

    said = stopped("look 1 of 2")
    assert "finishing the step and saving; run the same command to go on" in said
    assert "Traceback" not in said
    rows = _rows(tmp_path)
    assert rows > 0
    said = stopped("goes on from step")
    assert int(re.search(r"goes on from step (\d+) of 100000", said)[1]) == rows  # type: ignore[index]
    assert _rows(tmp_path) >= rows
    assert "interrupted" in winnow("status", "tiny.toml", cwd=tmp_path).stdout


def _rows(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("winnow-store/runs/*/metrics.0.jsonl"))

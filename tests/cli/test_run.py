"""`winnow run` for real: a clean study, its results, the same again; Ctrl-C loses nothing. Faults: test_health.py."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from tests.cli.tiny import WINNOW, Ended, winnow, write_study

from winnow.cli import main, running
from winnow.errors import InputError
from winnow.notebook.document import Document
from winnow.notebook.execute import Results, Source, Written, write_results
from winnow.study import freshness, launch

CLEAN = """\
arms.wide = { model.d_ff = 128 }
arms.other = { model.norm = { kind = "rmsnorm" } }
claims.wide = "wide better-than control on val/ce smallest 0.01"
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A notebook with a sound study, run once."""
    folder = tmp_path_factory.mktemp("clean")
    study = write_study(folder, CLEAN)
    text = f"# Lab\r\n\r\n```toml study\r\n{study.read_text()}```\r\n\r\nMy *own* words"
    (folder / "lab.md").write_bytes(text.replace("\r\n", "\n").replace("\n", "\r\n").encode())
    study.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "resolve", no_second_time)
        patch.setattr(running, "write_results", noted)
        return folder, winnow("run", "lab.md", "--jobs", 1, cwd=folder)


IN_BETWEEN: list[str] = []
"""What was written into the clean notebook, one text for each write."""


def noted(source: Source, results: dict[str, Results], locks: Path) -> Written:
    IN_BETWEEN.append(results["tiny"].markdown)
    return write_results(source, results, locks)


def no_second_time(*_: object, **__: object) -> None:
    raise AssertionError("the plan that is printed has read the data: launching must not read it again")


def test_a_clean_study_has_no_finding_and_a_plan_before_it_runs(clean):
    _, ended = clean
    assert ended.code == 0, ended.err
    assert "findings" not in ended.out
    before, _, after = ended.err.partition("trying a few steps")
    assert "runs to do: 6 for the first look, at most 8" in before, "nothing is claimed of `other`"
    assert "smallest detectable effect" in before
    assert "look 1 of 2" in after
    assert "n 3, rho" in ended.out


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


def test_results_are_written_as_they_come(clean):
    folder, _ = clean
    assert "*In progress: 0 of at most 8 runs are recorded, 8 planned (6 for the first look).*" in IN_BETWEEN[0]
    counts = [int(found[1]) for text in IN_BETWEEN if (found := re.search(r"In progress: (\d+) of", text))]
    assert counts == sorted(counts)
    assert any(0 < count < 8 for count in counts), counts
    block = Document.read(folder / "lab.md").block("tiny")
    assert block is not None
    assert block.content.strip() == IN_BETWEEN[-1].strip()
    assert "In progress" not in block.content
    assert "planned" not in block.content


def test_run_again_it_runs_nothing_and_says_and_writes_the_same(clean):
    folder, first = clean
    # A lock says who held it last, the index is derived; everything else must stand.
    kept = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".sqlite", ".lock")]
    files = {path: path.read_bytes() for path in kept if path.name != "lock"}
    again = winnow("run", "lab.md", cwd=folder)
    assert again.code == 0
    assert again.out == first.out
    assert "8 recorded" in again.err, "at the second look only the open claim's arms run"
    assert "look 1" not in again.err
    assert {path: path.read_bytes() for path in files} == files


def test_a_no_op_reads_no_data_and_starts_no_torch(clean, monkeypatch: pytest.MonkeyPatch):
    folder, first = clean
    monkeypatch.setattr(freshness, "_BEGAN", time.time_ns())  # as in a process that began after the text was written
    assert winnow("check", "lab.md", cwd=folder).code == 0
    before = (folder / "lab.md").read_bytes()
    code = (
        "import sys; from winnow.cli import main\n"
        "try: main(['run', 'lab.md'])\n"
        "finally: print('torch' in sys.modules, 'matplotlib' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.endswith("False False\n"), ended.stderr
    assert ended.stdout == first.out
    assert (folder / "lab.md").read_bytes() == before


def test_data_that_was_touched_is_read_again(clean, monkeypatch: pytest.MonkeyPatch):
    folder, _ = clean

    def launched(*_: object) -> None:
        raise InputError("launched")

    freshness._data_marks.cache_clear()
    monkeypatch.setattr(freshness, "_BEGAN", time.time_ns())
    assert winnow("check", "lab.md", cwd=folder).code == 0
    monkeypatch.setattr(running.Runner, "_launch", launched)
    assert winnow("run", "lab.md", cwd=folder).code == 0
    os.utime(folder / "text.txt")
    freshness._data_marks.cache_clear()
    assert "error: launched" in winnow("run", "lab.md", cwd=folder).err


def test_why_show_table_and_status_speak_of_the_same_runs(clean):
    folder, _ = clean
    why = json.loads(winnow("why", "lab.md", "wide", "--json", cwd=folder).out)
    values = why["numbers"]["values"]
    shown = json.loads(winnow("show", "tiny/wide/1", "--json", cwd=folder).out)
    assert shown["record"]["final"]["val/ce"] == values["wide"]["1"]
    table = json.loads(winnow("table", "lab.md", "--format", "json", cwd=folder).out)
    row = next(row for row in table["rows"] if row["arm"] == "wide")
    assert row["mean"] == pytest.approx(sum(values["wide"].values()) / 3)
    status = json.loads(winnow("status", "lab.md", "--json", cwd=folder).out)
    assert status[0]["arms"]["wide"] == {"finished": [0, 1, 2]}
    text = winnow("why", "lab.md", "wide", cwd=folder).out
    assert f"{values['wide']['1']:.6g}" in text


def test_settings_of_the_command_line_make_another_study(clean):
    folder, _ = clean
    plan = (folder / "winnow-store/studies/tiny.json").read_bytes()
    ended = winnow("check", "lab.md", "--set", "train.steps=3", cwd=folder)
    assert ended.code == 0, ended.err
    assert (folder / "winnow-store/studies/tiny.json").read_bytes() == plan
    assert len(list(folder.glob("winnow-store/studies/tiny.set-*.json"))) == 1


def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path: Path):
    write_study(tmp_path, changes={"seeds = [0, 1, 2]\nlooks = [2, 3]": "seeds = [0, 1]\nlooks = [1, 2]"})
    reading, writing = os.pipe()
    os.close(reading)
    with (
        os.fdopen(writing, "w") as nobody,
        chdir(tmp_path),
        redirect_stdout(nobody),
        redirect_stderr(nobody),
        pytest.raises(SystemExit) as ended,
    ):
        main(["run", "tiny.toml", "--jobs", "1"])
    assert not ended.value.code
    status = json.loads(winnow("status", "tiny.toml", "--json", cwd=tmp_path).out)[0]
    assert status["arms"] == {"control": {"finished": [0, 1]}}
    assert (tmp_path / "tiny.results.md").exists()


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
    assert "interrupted" in winnow("status", "tiny.toml", cwd=tmp_path).out


def _rows(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("winnow-store/runs/*/metrics.0.jsonl"))


def test_a_command_that_torchrun_has_started_several_times_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = winnow("run", study, cwd=tmp_path)
    assert ended.code == 2
    assert (
        f"started this command 2 times, and each would be a launcher of its own; winnow run {study} --ranks 2"
        in ended.err
    )
    assert not (tmp_path / "winnow-store").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "torchrun" not in winnow("run", study, "--seeds", "9", cwd=tmp_path).err

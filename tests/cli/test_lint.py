"""`winnow lint`: text for people, JSON for scripts, and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.notebook.command_notebooks import notebook
from tests.notebook.planted_defects import PLANTED

SCHEMA = Path(__file__).parents[1] / "notebook" / "driftnet.toml"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "lab.anything"
    path.write_text("# A\n\n```\nx\n````\n\n## B\n\n![p](none.png)\n\n```sh\nopen\n")
    return path


def test_findings_are_told_with_file_line_rule_and_mend(winnow, page: Path):
    ended = winnow("lint", page)
    assert ended.code == 1
    first, second, third = ended.out.splitlines()
    assert first == (
        f"{page}:5: notice: fence-closing: 4 characters close what 3 opened; "
        "close it with as many backticks as opened it"
    )
    assert second.startswith(f"{page}:9: warning: link-broken: ")
    assert third.startswith(f"{page}:11: error: fence-open: ")
    assert "1 error, 1 warning, 1 notice in 1 file" in ended.err


def test_only_errors_fail(winnow, page: Path):
    assert winnow("lint", page, "--ignore", "fence-open").code == 0
    chosen = winnow("lint", page, "--rule", "link-broken", "--rule", "fence-closing")
    assert chosen.code == 0
    assert len(chosen.out.splitlines()) == 2
    quiet = winnow("lint", page, "--rule", "credential")
    assert (quiet.code, quiet.out) == (0, "")
    assert "nothing found in 1 file" in quiet.err


def test_json_of_several_files(winnow, page: Path, tmp_path: Path):
    other = tmp_path / "other.md"
    other.write_bytes(b"a\n\xff")
    ended = winnow("lint", page, other, "--json")
    assert ended.code == 1
    rows = json.loads(ended.out)
    assert [(row["file"], row["line"], row["rule"]) for row in rows] == [
        (str(page), 5, "fence-closing"),
        (str(page), 9, "link-broken"),
        (str(page), 11, "fence-open"),
        (str(other), 2, "unreadable"),
    ]
    assert set(rows[0]) == {"file", "line", "rule", "severity", "message", "mend", "related"}
    assert rows[0]["related"] == [3]


def test_the_rules_are_listed(winnow):
    lines = winnow("lint", "--rules").out.splitlines()
    assert any(line.startswith("option-lost ") for line in lines)
    assert all(line.split()[1] in ("error", "warning", "notice") for line in lines)
    rows = json.loads(winnow("lint", "--rules", "--json").out)
    assert len(rows) == len(lines)


def test_a_program_of_ones_own(winnow, tmp_path: Path):
    from random import Random

    made = notebook(0)
    PLANTED["option-value"](made, Random(0))
    path = tmp_path / "lab.md"
    path.write_bytes(made.render()[0])
    assert winnow("lint", path).code == 0
    ended = winnow("lint", path, "--program", SCHEMA)
    assert ended.code == 1
    assert "option-value: --mixer" in ended.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["none.md"], "none.md: no such file"),
        (["--json"], "no file is given"),
        (["x", "--rule", "nope"], "--rule: there is no rule 'nope'"),
        (["x", "--ignore", "nope"], "--ignore: there is no rule 'nope'"),
    ],
)
def test_wrong_input_ends_with_2(winnow, given: list[str], said: str):
    ended = winnow("lint", *given)
    assert ended.code == 2
    assert said in ended.err

"""Defects planted in generated notebooks of another program: found at their lines, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from tests.notebook.command_notebooks import notebook
from tests.notebook.planted_defects import PLANTED

from winnow.notebook.lint import RULES, lint_bytes
from winnow.notebook.program import known_programs, read_program

PROGRAMS = [read_program(Path(__file__).parent / "driftnet.toml"), *known_programs()]
SHAPES = range(12)


def found(data: bytes, folder: Path) -> list[tuple[str, int, str]]:
    return [(item.rule, item.line, item.message) for item in lint_bytes(data, folder / "lab.md", programs=PROGRAMS)]


@pytest.mark.parametrize("shape", range(60))
def test_a_sound_notebook_has_no_finding(shape: int, tmp_path: Path):
    data, marked = notebook(shape).render()
    assert marked == []
    assert found(data, tmp_path) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_defect_is_found_at_its_line(name: str, tmp_path: Path):
    rule = name.removesuffix("+")
    assert rule in RULES
    for shape in SHAPES:
        made = notebook(shape)
        PLANTED[name](made, Random(shape))
        data, marked = made.render()
        assert marked
        lines = {line for other, line, _ in found(data, tmp_path) if other == rule}
        assert lines == set(marked), (shape, data.decode())

"""Compiled training of selective attention: eager losses, one compilation. See compiled_run.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def check(text: Path, backend: str, scope: str) -> None:
    script = Path(__file__).with_name("compiled_run.py")
    subprocess.run([sys.executable, str(script), str(text), backend, scope], check=True, timeout=1200)


def test_compiled_training_equals_eager_training(text: Path) -> None:
    check(text, "aot_eager", "some")


@pytest.mark.soak
def test_compiled_training_equals_eager_training_on_inductor(text: Path) -> None:
    check(text, "inductor", "all")

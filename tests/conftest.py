"""One thread per test process, and shapes checked at run time wherever tensors flow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: results and times as in a run

from jaxtyping import install_import_hook

install_import_hook(["winnow.attention", "winnow.kernels", "winnow.models"], "beartype.beartype")


@pytest.fixture
def shared_data() -> Path:
    """The folder of development texts beside a checkout; skips where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no development texts in {folder}")
    return folder

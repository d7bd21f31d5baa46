"""One thread per test process, and shapes checked at run time wherever tensors flow."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: results and times as in a run

if "WINNOW_TEST_CACHE" not in os.environ:  # one for all workers; nothing is read from or left in the user's own
    os.environ["WINNOW_TEST_CACHE"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="winnow-cache-")

import torch
from jaxtyping import install_import_hook

# Not the files of Triton kernels: the hook would wrap functions whose source a compiler reads.
kernels = [
    f"winnow.kernels.{path.stem}"
    for path in (Path(__file__).parents[1] / "src" / "winnow" / "kernels").glob("*.py")
    if not path.stem.startswith("triton_")
]
install_import_hook(["winnow.attention", *kernels, "winnow.models"], "beartype.beartype")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Training flushes denormals in its thread; hypothesis, in the same one, draws from them."""
    torch.set_flush_denormal(False)


@pytest.fixture
def shared_data() -> Path:
    """The folder of development texts beside a checkout; skips where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no development texts in {folder}")
    return folder


@pytest.fixture
def shared_sources() -> Path:
    """The folder of source notebooks beside a checkout; skips where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "sources"
    if not folder.is_dir():
        pytest.skip(f"no source notebooks in {folder}")
    return folder

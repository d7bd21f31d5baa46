"""How to run, as opposed to what. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from winnow.study.workers import WORKER


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: none of it is identity."""

    jobs: int | None = None
    """Runs at once; None = one per core (per device), as memory allows."""
    seeds: tuple[int, ...] | None = None
    """Only these seeds now; None = as the looks say."""
    device: str = "cpu"
    threads: int = 1
    """Threads of each run, or of each of its ranks."""
    ranks: int = 1
    """Processes that share each run."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks hold the model: each the whole of it, or each a part of every parameter."""
    preflight: bool = True
    """Try a few steps of every arm first."""
    also: frozenset[tuple[str, int]] = frozenset()
    """(arm, seed) of runs that other runs start from: they are made even where no claim needs them."""
    trust: bool = False
    """Run the study's own `use` files."""
    worker: Sequence[str] = WORKER
    """Command of a worker process."""
    artifacts: str | None = None
    """URL that every run is uploaded to; None = what the study says."""

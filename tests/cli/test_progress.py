"""What the lines of a launch say of how far it is."""

from __future__ import annotations

from winnow.cli.progress import Lines
from winnow.study.events import LookStarted, PreflightEnded, RunEnded, RunKey


def test_an_interrupted_run_is_not_counted_as_done():
    runs = tuple(RunKey("fast", seed, f"d{seed}") for seed in range(4))
    lines = Lines("val/ce")
    lines(PreflightEnded({"fast": 60.0}, 0, 1))
    lines(LookStarted(1, 1, 4, ("fast",), runs))
    lines(RunEnded(runs[0], "finished"))
    lines(RunEnded(runs[1], "interrupted"))
    assert lines.work.done == 1
    assert lines.line(RunEnded(runs[1], "interrupted")) == "  fast seed 1: interrupted"
    assert lines.line(RunEnded(runs[0], "finished")) == "  fast seed 0: finished, 1 of 4, about 3 min 00 s to go"

"""`winnow run` on a notebook, killed with everything it started at random instants until it comes to its end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.cli.tiny import WINNOW


def kill_until_done(notebook: Path, kills: int, longest: float, look: Callable[[], None]) -> int:
    """Give the command again and again; how many kills hit it in the midst of its work.

    longest: seconds after the first sign of work until the kill, at most. look: called after each kill.
    """
    draw = random.Random(time.time_ns())
    hits = 0
    while True:
        process = subprocess.Popen(
            [*WINNOW, "run", notebook.name, "--jobs", "2"],
            cwd=notebook.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own: workers die with the launcher
        )
        assert process.stderr is not None
        with process.stderr:
            said = ""
            if hits < kills:
                for line in process.stderr:
                    said += line
                    if line.startswith("look "):
                        break
                time.sleep(draw.uniform(0, longest))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    hits += 1
            else:
                said += process.stderr.read()
        code = process.wait()
        look()
        if code == 0:
            return hits
        assert code == -signal.SIGKILL, said

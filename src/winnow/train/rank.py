"""One rank of a run: `python -m winnow.train.rank`, started by a worker and by nobody else (see `ranks`).

    in   one line: {"request": a worker's request, "rank", "size", "port": of the store, "report": file for an error}
    out  rank 0: what a worker reports; the others nothing

Rank 0 does what a worker does in one process, as the leader of a group; the others follow it. It alone listens to
SIGINT and SIGTERM. When the worker goes, its end of stdin closes, and the rank ends at once, as if killed.

What a rank needs is imported where its errors are caught: one that cannot even start says why, too.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.train.worker import Request

ENDED_BADLY: Final = 1
"""Exit status of a rank that has written down why."""
LOST: Final = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""What a RuntimeError of a sum over ranks says when another rank does not take part; in backward it has no own type."""


def main() -> None:
    """Entry of `python -m winnow.train.rank`."""
    told: dict[str, Any] = json.loads(_first_line())
    threading.Thread(target=_end_with_worker, daemon=True).start()
    try:
        _work(told)
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        refused = isinstance(error, InputError)
        said = [line for line in str(error).splitlines() if line.strip()]
        short = str(error) if refused else ": ".join([type(error).__name__, *said[:1]])
        sys.stderr.write(f"rank {told['rank']}: {text}")
        sys.stderr.flush()
        _write_report(Path(told["report"]), told["rank"], short, text, refused=refused, lost=_lost(error))
        # At once: connections to ranks that wait for this one close, and nobody waits for them in turn.
        os._exit(ENDED_BADLY)
    os._exit(0)


def _work(told: dict[str, Any]) -> None:
    import torch

    from winnow.train.device import prepare
    from winnow.train.worker import own_output, read_request

    prepare(1)  # before any parallel work, so that every later thread inherits the flag
    torch.set_num_interop_threads(1)
    with own_output() as reports:
        _take_part(read_request(json.dumps(told["request"]).encode()), told, reports)


def _take_part(request: Request, told: dict[str, Any], reports: BinaryIO) -> None:
    from winnow.train.distributed import joined
    from winnow.train.loop import Loop
    from winnow.train.worker import Worker, ready

    rank = told["rank"]
    # Rank 0: a worker whose only request is at hand.
    leader = Worker(io.BytesIO(), reports) if rank == 0 else None
    if leader is None:
        # A batch system signals every process: the leader decides when to stop.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    config, device = ready(request, rank)
    with joined(rank, told["size"], told["port"], request.parallel, device, request.rank_timeout) as group:
        if leader is None:
            group.follow(lambda: Loop(config, seed=request.seed, device=device, group=group))
        else:
            leader.lead(request, config, device, group)
            group.end()


def _lost(error: BaseException | None) -> bool:
    """Whether a rank fails because it has lost another one, which will know better why."""
    if error is None:
        return False
    of_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    told = type(error) is RuntimeError and any(words in str(error) for words in LOST)
    return of_torch or told or _lost(error.__cause__)


def _write_report(path: Path, rank: int, error: str, traceback: str, **kind: bool) -> None:
    """Leave behind why a rank ends; see `ranks._Ranks.failure` for which of several reports is the cause."""
    report = {"rank": rank, "error": error, "traceback": traceback, "at": time.monotonic_ns(), **kind}
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(report))
    draft.replace(path)


def _first_line() -> bytes:
    # Byte by byte and without Python's buffer: the thread that waits for the end of stdin shares it.
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            os._exit(ENDED_BADLY)
        line += part
    return line


def _end_with_worker() -> NoReturn:
    while os.read(0, 1):
        pass
    os._exit(ENDED_BADLY)


if __name__ == "__main__":
    main()

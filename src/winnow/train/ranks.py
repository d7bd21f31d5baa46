"""The processes of a run on several ranks: started together, watched, and ended together.

A worker that is asked for such a run trains nothing itself. It starts one process per rank
(`python -m winnow.train.rank`), hands on what rank 0 reports and the signals it gets, and when a rank fails it ends the
others and says which was the cause and why. Ranks meet at a port of this machine's loopback that the system chooses.

Not `torchrun`: docs/decisions/0036-ranks-are-started-by-the-worker.md says why.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] (it is documented)

LOOPBACK: Final = "127.0.0.1"
GRACE_SECONDS: Final = 5.0
"""For the other ranks, after one has failed, to notice and say what they saw."""
POLL_SECONDS: Final = 0.02


class Failure(NamedTuple):
    """Why a run on several ranks ended without an end of its own."""

    cause: str
    """One line: which rank, and its error or signal."""
    text: str
    """That and the traceback, where there is one."""
    refused: bool
    """Whether it is the user's to mend, and says nothing of the run."""


def run_ranks(
    request: Mapping[str, Any], size: int, relay: Callable[[bytes], None], stopping: Callable[[], bool]
) -> Failure | None:
    """Do a worker's request on `size` ranks; None when rank 0 has reported its end.

    relay: gets each line that rank 0 reports; stopping: whether rank 0 is to finish its step, save and stop.
    """
    # The ranks find each other through a store in this process, which has its port before any of them starts.
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="winnow-ranks-") as folder:
        ranks = _Ranks(request, size, store.port, Path(folder))
        reader = threading.Thread(target=_hand_on, args=(ranks.processes[0], relay), daemon=True)
        reader.start()
        try:
            ranks.watch(stopping)
        finally:
            ranks.kill()
            reader.join()
            ranks.close()
        return ranks.failure()


def _hand_on(process: subprocess.Popen[bytes], relay: Callable[[bytes], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        relay(line)


class _Ranks:
    def __init__(self, request: Mapping[str, Any], size: int, port: int, folder: Path) -> None:
        self._folder = folder
        self._codes: dict[int, int] = {}
        """Exit status of each rank that ended by itself, in the order in which that was seen."""
        self._late: list[int] = []
        """Ranks that were still running when the others had failed."""
        self.processes: list[subprocess.Popen[bytes]] = []
        # A signal that comes before a rank is ready for it waits: a child inherits what is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for rank in range(size):
                self.processes.append(_start(rank))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for rank, process in enumerate(self.processes):
            told = {"request": request, "rank": rank, "size": size, "port": port, "report": str(self._report(rank))}
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(told).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                continue  # it is dead already, which is seen in a moment

    def _report(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"

    def watch(self, stopping: Callable[[], bool]) -> None:
        """Until every rank has ended, or one has failed and the others have had time to say what they saw."""
        told, deadline = False, None
        while len(self._codes) < len(self.processes):
            for rank, process in enumerate(self.processes):
                code = process.poll()
                if code is not None and rank not in self._codes:
                    self._codes[rank] = code
            if deadline is None and any(self._codes.values()):
                deadline = time.monotonic() + GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                return
            if stopping() and not told:
                self.processes[0].send_signal(signal.SIGINT)
                told = True
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """End what still runs; nothing that is saved is lost."""
        for rank, process in enumerate(self.processes):
            if rank not in self._codes and (code := process.poll()) is not None:
                self._codes[rank] = code
            if rank not in self._codes:
                self._late.append(rank)
                process.kill()
            process.wait()

    def close(self) -> None:
        """Close what connects this process with the ranks."""
        for process in self.processes:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def failure(self) -> Failure | None:
        """What went wrong first. In this order, since a rank that fails takes the others with it:

        a signal that nobody here sent; the earliest error of a rank's own; SIGABRT, by which communication ends a rank
        that waits for another; the earliest error of a rank that has lost another; an exit status.
        """
        killed = {rank: -code for rank, code in self._codes.items() if code < 0}
        reports = [json.loads(path.read_bytes()) for path in self._folder.glob("rank-*.json")]
        reports.sort(key=lambda report: report["at"])
        for aborted in (False, True):
            for rank, number in killed.items():
                if (number == signal.SIGABRT) == aborted:
                    return self._because(f"rank {rank} was killed by {signal.Signals(number).name}", "")
            for report in reports:
                if report["lost"] == aborted:
                    if report["refused"]:
                        return Failure(report["error"], report["error"], True)
                    return self._because(f"rank {report['rank']}: {report['error']}", report["traceback"])
        for rank, code in self._codes.items():
            if code:
                return self._because(f"rank {rank} ended with status {code}", "")
        return None

    def _because(self, cause: str, text: str) -> Failure:
        if self._late:
            plural = len(self._late) > 1
            late = ", ".join(map(str, self._late))
            cause += f"; rank{'s' if plural else ''} {late} did not answer and {'were' if plural else 'was'} ended"
        return Failure(cause, "\n".join(part for part in (text.rstrip(), cause) if part), False)


def _start(rank: int) -> subprocess.Popen[bytes]:
    # Rank 0 reports on its stdout; what the others print goes to stderr with everybody's noise.
    return subprocess.Popen(
        [sys.executable, "-m", "winnow.train.rank"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if rank == 0 else sys.stderr.fileno(),
        start_new_session=True,  # Ctrl-C reaches the launcher alone
        env={
            **os.environ,
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns where every parameter is used after all
        },
    )

"""What this machine has room for: runs at once, and memory."""

from __future__ import annotations

import os
import sys


def default_jobs(device: str, ranks: int = 1) -> int:
    """Runs at once: one per core (per `ranks` cores) on a CPU, one otherwise."""
    if device != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // ranks)


def free_memory() -> int:
    """Bytes that new processes may take without swapping."""
    if sys.platform == "linux":
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

"""Which implementation of selective attention a run really used, and why not a faster one.

The backends count their own calls (`winnow.kernels.rule.calls`), so what is said here is what ran, not what was asked
for. Looks at the inside are not counted: they may form masks by other means on purpose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from winnow.kernels import compiled
from winnow.kernels.rule import calls, reasons

OPERATION = "selective_attention"


class Backends:
    """What ran inside `watched` blocks."""

    def __init__(self) -> None:
        self._ran: dict[str, str] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note which backends the block calls."""
        before = Counter(calls)
        yield
        for name in calls - before:
            backend = name.partition(".")[0]
            label = _label(backend)
            self._ran[label] = reasons.get(backend, self._ran.get(label, ""))

    @property
    def ran(self) -> dict[str, str]:
        """Backend and why none faster ran (empty: it is the fastest); plain JSON data."""
        return dict(sorted(self._ran.items()))

    def names(self) -> dict[str, str]:
        """As they stand in the provenance; several backends of one run are all named."""
        return {OPERATION: " and ".join(self.ran)} if self._ran else {}

    def restore(self, ran: Mapping[str, str]) -> None:
        """Continue from an earlier `ran`."""
        self._ran = dict(ran)


def _label(backend: str) -> str:
    """A backend's name; compiled code is another one for each kind of processor, and rounds differently."""
    return f"cpu {compiled.INSTANCES[compiled.instance()]}" if backend == "cpu" else backend

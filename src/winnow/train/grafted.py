"""What a run's grafts did before its first update: kept in its checkpoints, its log and the facts of its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from winnow.models.base import ModelConfig
from winnow.models.surgery import SurgeryReport, peaks
from winnow.models.transplant import label
from winnow.records.journal import spell, unspell
from winnow.records.run import Fact


@dataclass(frozen=True)
class Grafted:
    """The part of a `SurgeryReport` that a run still needs at its end."""

    added: int
    """Numbers in all parameters after the grafts, less those before."""
    preserves: bool
    """The function is the same up to rounding."""
    max_logit_change: float | None
    """Nats, on the first validation rows; None: not measured."""
    ce_change: float | None
    """Nats per token, on the same rows."""
    fresh: Mapping[str, Sequence[str]]
    """Of each parameter that has any, its fresh slices by name, without those that never change anything."""

    @classmethod
    def of(cls, report: SurgeryReport) -> Grafted:
        """From the report on all grafts of a run."""
        fresh = {
            name: [cell for cell in cells if label(name, cell) not in report.idle]
            for name, cells in report.fresh.items()
        }
        return cls(report.added, report.preserves, report.max_logit_change, report.ce_change, fresh)

    def dump(self) -> dict[str, Any]:
        """Plain JSON data, for a checkpoint."""
        fresh = {name: list(cells) for name, cells in self.fresh.items()}
        return {name: spell(value) for name, value in vars(self).items() if name != "fresh"} | {"fresh": fresh}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Grafted:
        """From an earlier `dump`."""
        return cls(**{name: unspell(value) for name, value in data.items()})

    def facts(self) -> dict[str, Fact]:
        """For the record."""
        measured = {"graft_max_logit_change": self.max_logit_change, "graft_ce_change": self.ce_change}
        return {
            "graft_added": self.added,
            "graft_preserves": "yes" if self.preserves else "no",
            **{name: _short(value) for name, value in measured.items() if value is not None},
        }

    def peak_facts(
        self, config: ModelConfig, weights: Mapping[str, Tensor], *, vocab_size: int, context: int
    ) -> dict[str, Fact]:
        """The fresh slice whose largest magnitude is the least, after training: above 0, all that was grafted lives.

        config, weights: of the model after the grafts.
        """
        of = peaks(config, weights, self.fresh, vocab_size=vocab_size, context=context)
        if not of:
            return {}
        least = min(sorted(of), key=of.__getitem__)  # the order of names is that of JSON after a checkpoint
        return {"graft_smallest_peak": _short(of[least]), "graft_smallest_peak_of": least}


def lines(report: SurgeryReport) -> Iterator[str]:
    """For the log."""
    kept = "the function is kept up to rounding" if report.preserves else "the function changes"
    yield f"grafted: {report.added:+,} parameters; {kept}"
    if report.max_logit_change is not None and report.ce_change is not None:
        yield (
            f"grafted: on the first validation rows the largest change of a logit is {report.max_logit_change:.3g} "
            f"nats, the cross entropy changes by {report.ce_change:+.3g} nats per token"
        )
    if report.dropped:
        yield f"grafted: {len(report.dropped)} slices are lost, {report.dropped[0]} first"
    for fresh in report.waking():
        layers = "" if fresh.layers == 1 else f" in {fresh.layers} layers"
        yield f"grafted: {fresh.name}{layers}, first gradient: {fresh.when}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")

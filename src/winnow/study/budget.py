"""The budget at which a verdict holds: one budget alone never says "better", only "better at this budget"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from winnow.records.run import RunRecord


def budget_of(arms: Iterable[Mapping[int, RunRecord]]) -> str:
    """For example "at 0.13 M parameters, 0.41 M tokens, lr 0.004"; a range where arms differ; empty if unknown."""
    facts = [record.facts for runs in arms for record in runs.values()]
    parts: list[str] = []
    for name, unit in (("parameters", "parameters"), ("tokens", "tokens")):
        values = sorted({float(fact[name]) for fact in facts if isinstance(fact.get(name), int | float)})
        if values:
            parts.append(f"{_span([count_text(value) for value in values])} {unit}")
    rates = sorted({float(fact["lr"]) for fact in facts if isinstance(fact.get("lr"), int | float)})
    if rates:
        parts.append(f"lr {_span([f'{rate:g}' for rate in rates])}")
    return f"at {', '.join(parts)}" if parts else ""


def count_text(count: float) -> str:
    """A count of parameters, tokens or operations in two to four digits: 640, 98.3 k, 0.41 M, 124 M, 1.20 G."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e5, "M")):
        if count >= size:
            value = count / (1e6 if unit == "M" else size)
            return f"{value:.2f} {unit}" if value < 9.995 else f"{value:.3g} {unit}"
    return f"{count / 1e3:.3g} k" if count >= 9999.5 else f"{count:.0f}"


def _span(texts: list[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"

"""The budget at which a verdict holds: one budget alone never says "better", only "better at this budget"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from winnow.records.run import Fact, RunRecord


def budget_of(arms: Iterable[Mapping[int, RunRecord]]) -> str:
    """For example "at 0.13 M parameters, 0.41 M tokens, lr 0.004"; a range where arms differ; empty if unknown.

    Where a run goes on from another one, all that its weights have seen is said too, and whether arms differ in it.
    """
    facts = [record.facts for runs in arms for record in runs.values()]
    parts: list[str] = []
    for name in ("parameters", "tokens"):
        values = [float(fact[name]) for fact in facts if isinstance(fact.get(name), int | float)]
        if values:
            parts.append(f"{_span(values)} {name}{_in_all(facts) if name == 'tokens' else ''}")
    rates = sorted({float(fact["lr"]) for fact in facts if isinstance(fact.get("lr"), int | float)})
    if rates:
        parts.append(f"lr {_between([f'{rate:g}' for rate in rates])}")
    return f"at {', '.join(parts)}" if parts else ""


def _in_all(facts: Iterable[Mapping[str, Fact]]) -> str:
    """What is to be said of the tokens that came before the runs themselves."""
    seen = [(float(fact["tokens"]), float(fact.get("tokens_before", 0))) for fact in facts if "tokens" in fact]
    if not any(before for _, before in seen):
        return ""
    text = _span([own + before for own, before in seen])
    return f" (unequal with their parents': {text})" if " to " in text else f" ({text} with their parents')"


def count_text(count: float) -> str:
    """A count of parameters, tokens or operations in two to four digits: 640, 98.3 k, 0.41 M, 124 M, 1.20 G."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e5, "M")):
        if count >= size:
            value = count / (1e6 if unit == "M" else size)
            return f"{value:.2f} {unit}" if value < 9.995 else f"{value:.3g} {unit}"
    return f"{count / 1e3:.3g} k" if count >= 9999.5 else f"{count:.0f}"


def _span(counts: Iterable[float]) -> str:
    return _between([count_text(count) for count in sorted(set(counts))])


def _between(texts: list[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"

"""The results of a study as tables: Markdown, CSV, LaTeX, JSON. The same records give the same bytes.

One row per arm: runs, mean and seed standard deviation of the endpoint, the difference from the control with its 95 %
interval at one look, and what the arm costs. The interval is for reading; only a verdict decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from winnow.records.run import Fact, RunRecord
from winnow.study.budget import count_text
from winnow.study.compare import Comparison
from winnow.study.distributions import student_upper
from winnow.study.noise import moments
from winnow.study.ranking import Ranking
from winnow.study.table_text import Format, csv_text, decimals, markdown_table, text_table
from winnow.study.verdict import Verdict

LEVEL = 0.95
"""Confidence of the intervals in tables: of one difference alone, at a fixed number of seeds."""


@dataclass(frozen=True)
class Row:
    """One arm."""

    arm: str
    n: int
    """Runs that ended well."""
    diverged: int
    failed: int
    mean: float | None
    """Of the endpoint."""
    sd: float | None
    """Over seeds."""
    difference: float | None
    """Arm minus control: over common seeds, or of the two means where the study is not paired."""
    low: float | None
    high: float | None
    pairs: int
    parameters: int | None
    flops_per_token: int | None
    """Of a training step, forward and backward."""
    kv_bytes_per_token: int | None
    """Decoding state of all layers, fp32."""
    tokens: int | None
    """Training tokens of one run."""
    seconds: float | None
    """Median of a run."""
    flops: float | None
    """Of one run: FLOPs per token x tokens."""

    def dump(self) -> dict[str, Any]:
        """Plain data, full precision."""
        return dict(vars(self))


def rows(comparison: Comparison) -> tuple[Row, ...]:
    """The table's rows, the control first, then arms as written."""
    study = comparison.study
    observed = comparison.observations[study.endpoint.metric]
    order = sorted(study.arms, key=lambda arm: arm != study.control)
    return tuple(_row(comparison, arm, observed.values) for arm in order)


def _row(comparison: Comparison, arm: str, values: Mapping[str, Mapping[int | str, float | None]]) -> Row:
    runs = comparison.runs[arm]
    known = [value for value in values[arm].values() if value is not None]
    difference, low, high, pairs = None, None, None, 0
    if arm != comparison.study.control:
        base = values.get(comparison.study.control, {})
        between = _paired if comparison.study.rule.paired else _welch
        difference, low, high, pairs = between(values[arm], base)
    planned = comparison.plan.arms[arm].facts if arm in comparison.plan.arms and arm not in comparison.stale else {}
    costs = {name: _cost(runs, planned, name) for name in _COSTS}
    tokens, flops = costs["tokens"], costs["flops_per_token"]
    seconds = [float(record.facts["seconds"]) for record in runs.values() if _has(record, "seconds")]
    return Row(
        arm=arm,
        n=len(known),
        diverged=sum(record.status == "diverged" for record in runs.values()),
        failed=sum(record.status not in ("finished", "diverged") for record in runs.values()),
        mean=moments(known)[0] if len(known) > 1 else known[0] if known else None,
        sd=math.sqrt(moments(known)[1]) if len(known) > 1 else None,
        difference=difference,
        low=low,
        high=high,
        pairs=pairs,
        **costs,
        seconds=median(seconds) if seconds else None,
        flops=None if tokens is None or flops is None else tokens * flops,
    )


Outcomes = Mapping[int | str, float | None]
Difference = tuple[float | None, float | None, float | None, int]
"""Estimate, both ends of its interval at `LEVEL` (None with fewer than 2 runs), runs per arm."""


def _paired(arm: Outcomes, base: Outcomes) -> Difference:
    """Student's interval of the mean difference over common seeds."""
    both = [(value, base[seed]) for seed, value in arm.items() if seed in base]
    differences = [a - b for a, b in both if a is not None and b is not None]
    n = len(differences)
    if n < 2:
        return differences[0] if differences else None, None, None, n
    mean, variance = moments(differences)
    half = student_upper((1 - LEVEL) / 2, n - 1) * math.sqrt(variance / n)
    return mean, mean - half, mean + half, n


def _welch(arm: Outcomes, base: Outcomes) -> Difference:
    """Welch's interval of the difference of two independent means."""
    a, b = ([value for value in outcomes.values() if value is not None] for outcomes in (arm, base))
    n = min(len(a), len(b))
    if n < 2:
        return a[0] - b[0] if n else None, None, None, n
    (mean_a, var_a), (mean_b, var_b) = moments(a), moments(b)
    error_a, error_b = var_a / len(a), var_b / len(b)
    error = error_a + error_b
    if error == 0:
        return mean_a - mean_b, mean_a - mean_b, mean_a - mean_b, n
    degrees = error**2 / (error_a**2 / (len(a) - 1) + error_b**2 / (len(b) - 1))
    half = student_upper((1 - LEVEL) / 2, degrees) * math.sqrt(error)
    return mean_a - mean_b, mean_a - mean_b - half, mean_a - mean_b + half, n


def _has(record: RunRecord, fact: str) -> bool:
    return isinstance(record.facts.get(fact), int | float)


_COSTS = ("parameters", "flops_per_token", "kv_bytes_per_token", "tokens")


def _cost(runs: Mapping[int, RunRecord], planned: Mapping[str, Fact], name: str) -> int | None:
    """What the runs say, before there are any what the plan says; the largest, since a diverged run has done less."""
    known = [record.facts[name] for record in runs.values() if _has(record, name)] or [planned.get(name)]
    return max((int(fact) for fact in known if isinstance(fact, int | float)), default=None)


def table(comparison: Comparison, form: Format = "markdown", order: Ranking | None = None) -> str:
    """The results table. JSON and CSV hold full precision; the others what is meant to be read.

    order: its letters say which differences are shown; its text belongs under the table.
    """
    found = rows(comparison)
    if form == "json":
        data = {"study": comparison.study.id, "endpoint": comparison.study.endpoint.dump()}
        data |= {"rows": [row.dump() for row in found], "verdicts": [item.dump() for item in comparison.verdicts]}
        data |= {} if order is None else {"ranking": order.plain()}
        return json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if form == "csv":
        return csv_text(found[0].dump(), (row.dump().values() for row in found))
    return text_table(*text_columns(comparison, found, order), form, comparison.study.id)


def text_columns(
    comparison: Comparison, found: Sequence[Row], order: Ranking | None = None
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table that is meant to be read: the columns that hold something, rounded."""
    digits = _digits(found)
    heads = _heads(comparison, found)
    cells = [[text for head, text in zip(_HEADS, _cells(row, digits), strict=True) if head in heads] for row in found]
    names = [name for head, name in heads.items() if head in _HEADS]
    if order is not None and order.letters:
        place = [*heads].index("sd" if "sd" in heads else "mean") + 1
        names.insert(place, "letter")
        for row, line in zip(found, cells, strict=True):
            line.insert(place, order.letters.get(row.arm, ""))
    return names, cells


def verdict_lines(verdicts: Sequence[Verdict]) -> str:
    """A Markdown table of the claims, and under it a line of reasons each."""
    head = ["claim", "", "verdict", "effect", "interval", "n", "rho", "more seeds"]
    cells = [
        [
            verdict.claim.id,
            verdict.claim.text,
            verdict.status + (" (exploratory)" if verdict.exploratory and verdict.claim.expect != "invalid" else ""),
            *effect_and_interval(verdict),
            str(verdict.n),
            "" if verdict.rho is None else f"{verdict.rho:.2f}",
            "" if verdict.more_seeds is None else str(verdict.more_seeds),
        ]
        for verdict in verdicts
    ]
    reasons = [f"- **{verdict.claim.id}** {verdict.reason}" for verdict in verdicts]
    return markdown_table(head, cells) + "\n" + "\n".join(reasons) + "\n" if verdicts else ""


def effect_and_interval(verdict: Verdict) -> tuple[str, str]:
    """Both with two digits of the half-width; empty where there is none, or the verdict is invalid."""
    if verdict.status == "invalid" or verdict.effect is None:
        return "", ""
    if verdict.low is None or verdict.high is None:
        return f"{verdict.effect:+.4f}", ""
    digits = decimals((verdict.high - verdict.low) / 2)
    return f"{verdict.effect:+.{digits}f}", f"[{verdict.low:+.{digits}f}, {verdict.high:+.{digits}f}]"


_HEADS = (
    "arm", "n", "lost", "mean", "sd", "difference", "interval",
    "parameters", "flops_per_token", "kv_bytes_per_token", "tokens", "seconds",
)  # fmt: skip
"""Columns of the tables that are meant to be read; the FLOPs of a run are the product of two of them."""


def _heads(comparison: Comparison, found: Sequence[Row]) -> dict[str, str]:
    """Names of the columns that hold something."""
    study = comparison.study
    names: dict[str, str] = {head: head for head in _HEADS}
    names["mean"] = study.endpoint.metric
    names["difference"] = f"minus {study.control}"
    # The verdicts' intervals are wider: they are read at several looks, for several claims.
    names["interval"] = f"{LEVEL:.0%}, one look"
    names |= {"flops_per_token": "FLOPs/token", "kv_bytes_per_token": "KV bytes/token"}
    shown = [_cells(row, 4) for row in found]
    empty = [head for place, head in enumerate(_HEADS) if not any(cells[place] for cells in shown)]
    return {head: name for head, name in names.items() if head not in empty}


def _cells(row: Row, digits: int) -> list[str]:
    lost = [f"{count} {what}" for count, what in ((row.diverged, "diverged"), (row.failed, "failed")) if count]
    interval = "" if row.low is None or row.high is None else f"[{row.low:+.{digits}f}, {row.high:+.{digits}f}]"
    return [
        row.arm,
        str(row.n),
        ", ".join(lost),
        "" if row.mean is None else f"{row.mean:.{digits}f}",
        "" if row.sd is None else f"{row.sd:.{digits}f}",
        "" if row.difference is None else f"{row.difference:+.{digits}f}",
        interval,
        *("" if cost is None else count_text(cost) for cost in (row.parameters, row.flops_per_token)),
        *("" if cost is None else count_text(cost) for cost in (row.kv_bytes_per_token, row.tokens)),
        "" if row.seconds is None else f"{row.seconds:.1f}",
    ]


def _digits(found: Sequence[Row]) -> int:
    """Decimals for a column: two digits of the smallest standard deviation that is not 0."""
    return decimals(min((row.sd for row in found if row.sd), default=0.001))

"""A verdict on the terminal, and as the JSON that scripts read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from winnow.cli import output
from winnow.study.verdict import Verdict


def say_verdicts(verdicts: Iterable[Verdict]) -> None:
    """One block per claim."""
    for number, verdict in enumerate(verdicts):
        if number:
            output.say()
        for line in verdict_lines(verdict):
            output.say(line)


def verdict_lines(verdict: Verdict) -> list[str]:
    """What a study says of one claim: the claim, the judgement with its reason, the numbers, the notes."""
    claim = verdict.claim
    reason = verdict.reason.removeprefix(verdict.status)
    lines = [f"{output.bold(claim.id)}: {claim.text}", f"  {output.word(verdict.status)}{reason}"]
    numbers = numbers_line(verdict)
    if numbers:
        lines.append(f"  {numbers}")
    if not verdict.expected:
        lines.append(f"  unexpected: {f'the author expects {claim.expect}' if claim.expect else 'an invalid claim'}")
    elif verdict.status == "invalid":
        lines.append("  as the author expects")
    return lines + [f"  note: {text}" for text in verdict.notes]


def unexpectedly_invalid(verdicts: Iterable[Verdict]) -> bool:
    """Whether a command ends with 1 for the sake of these verdicts."""
    return any(verdict.status == "invalid" and not verdict.expected for verdict in verdicts)


def numbers_line(verdict: Verdict) -> str:
    """Seeds, pairing correlation and the effect in units of the seeds' standard deviation."""
    if not verdict.n:
        return ""
    parts = [f"n {verdict.n}"]
    if verdict.rho is not None:
        parts.append(f"rho {verdict.rho:.2f}")
    if verdict.effect_in_sd is not None:
        parts.append(f"effect {verdict.effect_in_sd:+.1f} sd of the seeds ({verdict.sd:.2g})")
    if verdict.more_seeds is not None:
        parts.append(f"{verdict.more_seeds} more seeds would decide")
    return ", ".join(parts)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict without the working, which `winnow why --json` gives."""
    found = verdict.dump()
    del found["numbers"]
    return {**found, "claim": {**found["claim"], "text": verdict.claim.text}}

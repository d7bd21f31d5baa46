"""What Winnow writes back about a study: verdicts, reasons, pictures, arms, findings, as Markdown.

Nothing in it depends on when or where it was written, so that a second run writes the same bytes. Text that comes
from a study or a record is escaped: it may not become markup or a marker.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from winnow.records.run import Finding, Provenance, RunRecord
from winnow.study.compare import Comparison
from winnow.study.needs import missing_runs
from winnow.study.ranking import shown_ranking
from winnow.study.succession import Place, Succession
from winnow.study.tables import table as arms_table
from winnow.study.verdict import Verdict

_MARKUP = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")
"""What starts markup in the middle of a line; an underscore between letters does not."""


def escape(text: str) -> str:
    """Markdown that shows `text` as it is in the middle of a line: no HTML, no markup, no line break, no new column."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", line)


def results_markdown(comparison: Comparison, pictures: Iterable[str], file: Path, *, heading: bool) -> str:
    """The results of one study.

    pictures: file names, shown in this order. file: the one that they are written into. heading: begin with the
    question as a title, for a file of its own.
    """
    study = comparison.study
    parts: list[str] = [f"# {escape(study.question or study.id)}"] if heading else []
    parts.append(f'<a id="{anchor(study.id)}"></a>{_status(comparison)}')
    parts.append(_succession(comparison.succession, file))
    parts.append(_still_to_do(comparison))
    if comparison.verdicts:
        parts.append(
            table(["claim", "verdict", "effect", "interval", "n", "rho"], map(_claim_row, comparison.verdicts))
        )
        parts.append("\n".join(line for verdict in comparison.verdicts for line in _reasons(verdict)))
    for name in pictures:
        shown = "paired differences" if name.endswith(".differences.png") else "loss curves"
        parts.append(f"![{escape(study.id)}: {shown}]({name})")
    if any(comparison.runs.values()):
        order = shown_ranking(comparison)
        parts.append(arms_table(comparison, "markdown", order).rstrip("\n"))
        parts.append("" if order is None else escape(order.text))
    if comparison.findings:
        parts.append("\n".join(["Findings:", "", *map(_finding, comparison.findings)]))
    parts.append(_made_with(comparison))
    return "\n\n".join(part for part in parts if part) + "\n"


def anchor(study: str) -> str:
    """The name under which a study's results can be linked to: `#study-ID`."""
    return f"study-{study}"


def link(place: Place, file: Path) -> str:
    """A Markdown link from `file` to the results of a study; its name alone where nobody knows its file."""
    name = escape(place.study)
    if place.file is None:
        return name
    target = place.file if place.file.suffix.lower() != ".toml" else place.file.with_suffix(".results.md")
    here = file.resolve()
    path = "" if target == here else quote(Path(os.path.relpath(target, here.parent)).as_posix())
    return f"[{name}]({path}#{anchor(place.study)})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def decimals(width: float | None) -> int:
    """Decimals that show two digits of the half-width of an interval."""
    if width is None or not math.isfinite(width) or width <= 0:
        return 4
    return max(0, min(12, 1 - math.floor(math.log10(width / 2))))


def numbers(verdict: Verdict) -> tuple[str, str]:
    """Effect and interval with as many decimals as the interval bears; "-" where there is none."""
    width = None if verdict.low is None or verdict.high is None else verdict.high - verdict.low
    digits = decimals(width)
    effect = "-" if verdict.effect is None else f"{verdict.effect:+.{digits}f}"
    if verdict.low is None or verdict.high is None:
        return effect, "-"
    return effect, f"[{verdict.low:+.{digits}f}, {verdict.high:+.{digits}f}]"


def _status(comparison: Comparison) -> str:
    """How much of the study is done."""
    study = comparison.study
    done = sum(len(by_seed) for by_seed in comparison.runs.values())
    counts: dict[str, int] = {}
    for verdict in comparison.verdicts:
        counts[verdict.status] = counts.get(verdict.status, 0) + 1
    said = ", ".join(f"{number} {status}" for status, number in counts.items())
    frozen = f" {comparison.frozen}" if comparison.frozen else ""
    runs = f"{done} run{'' if done == 1 else 's'} of {len(study.arms)} arm{'' if len(study.arms) == 1 else 's'}"
    return f"**{said[0].upper() + said[1:] if said else 'No claims'}** from {runs}.{frozen}"


def _succession(succession: Succession, file: Path) -> str:
    """What replaces the study, and what it replaces."""
    said: list[str] = []
    if succession.replaced_by is not None:
        said.append(f"**Withdrawn**, replaced by {link(succession.replaced_by, file)}.")
    if succession.replaces is not None:
        said.append(f"Replaces {link(succession.replaces, file)}, which is withdrawn.")
    return " ".join(said)


def _still_to_do(comparison: Comparison) -> str:
    """How many runs are still to be made, while there are any; never which of them is running, which time changes."""
    study = comparison.study
    if study.runs == "recorded" or comparison.succession.replaced_by is not None:
        return ""
    missing = missing_runs(study, comparison.verdicts, comparison.recorded)
    if not missing:
        return ""
    done = len(comparison.recorded)
    first = [run for run in missing if run[1] in study.seeds[: study.looks[0]]]
    look = f" ({len(first)} for the first look)" if first else ""
    return f"*In progress: {done} of at most {done + len(missing)} runs are recorded, {len(missing)} planned{look}.*"


def _claim_row(verdict: Verdict) -> list[str]:
    effect, interval = numbers(verdict)
    claim = verdict.claim
    mark = "" if verdict.expected else " (unexpected)"
    mark += " (exploratory)" if verdict.exploratory and verdict.status != "invalid" else ""
    return [
        f"**{escape(claim.id)}**: {escape(claim.text)}",
        f"**{verdict.status}**{mark}",
        effect,
        interval,
        str(verdict.n) if verdict.n else "-",
        "-" if verdict.rho is None else f"{verdict.rho:.2f}",
    ]


def _reasons(verdict: Verdict) -> list[str]:
    lines = [f"- **{escape(verdict.claim.id)}**: {escape(verdict.reason)}"]
    if verdict.effect_in_sd is not None and verdict.sd is not None:
        lines.append(f"  - effect {verdict.effect_in_sd:+.1f} standard deviations of the seeds ({verdict.sd:.2g})")
    if verdict.status == "invalid" and verdict.expected:
        lines.append("  - as the author expects")
    return lines + [f"  - {escape(text)}" for text in verdict.notes]


def _finding(finding: Finding) -> str:
    # The file's name alone: a path depends on where the command was given.
    where = f" {escape(finding.where.replace(chr(92), '/').rpartition('/')[2])}:" if finding.where else ""
    mend = f"; {escape(finding.mend)}" if finding.mend else ""
    return f"- {finding.severity}: {escape(finding.rule)}:{where} {escape(finding.message)}{mend}"


def _made_with(comparison: Comparison) -> str:
    """Code, packages and machines of the runs."""
    records = [record for by_seed in comparison.runs.values() for record in by_seed.values()]
    if not records:
        return ""
    torch = sorted({record.provenance.packages.get("torch", "") for record in records} - {""})
    hardware = sorted({record.provenance.hardware for record in records})
    parts = [_code(records)]
    parts += [f"torch {', '.join(map(escape, torch))}"] if torch else []
    parts.append(", ".join(map(escape, hardware)))
    return f"<sub>Made with {'; '.join(parts)}. Data: {escape(_data(records))}.</sub>"


def _code(records: Sequence[RunRecord]) -> str:
    """What somebody would have to check out to make these runs again, for each version that made some of them."""
    made: dict[str, int] = {}
    for record in records:
        version = _version(record.provenance)
        made[version] = made.get(version, 0) + 1
    if len(made) == 1:
        return next(iter(made))
    each = [f"{version} ({number} run{'' if number == 1 else 's'})" for version, number in sorted(made.items())]
    return f"{len(made)} versions: {', '.join(each)}"


def _version(made: Provenance) -> str:
    parts = [f"code {escape(made.code[:12])}"]
    if made.package_commit is not None:
        changed = ", with changes in no commit" if made.package_dirty else ""
        parts.append(f"Winnow at commit {escape(made.package_commit)}{changed}")
    if made.commit is not None and made.commit != made.package_commit:
        changed = ""
        if made.dirty:
            diff = "" if made.diff_sha256 is None else f" (diff {escape(made.diff_sha256[:12])})"
            changed = f", with changes in no commit{diff}"
        parts.append(f"the study at commit {escape(made.commit)}{changed}")
    return ", ".join(parts)


def _data(records: Sequence[RunRecord]) -> str:
    return ", ".join(sorted({record.data[:12] for record in records} - {""})) or "not known"

"""Runs of one claim that were not made alike: on other data, code, machines, threads, packages or kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from winnow.records.run import Finding, RunRecord, Severity
from winnow.records.store import RunStore
from winnow.study.bridges import bridged, canaries
from winnow.study.spec import Study

Runs = Mapping[str, Mapping[int, RunRecord]]
"""Ended runs by arm and seed, failed ones too."""
Unsound = tuple[Finding, tuple[str, ...]]
"""A finding and the claims that it makes invalid."""


def unlike(study: Study, ended: Runs, store: RunStore) -> Iterator[Unsound]:
    """Runs of one claim that were made or measured differently; what is true of several claims is said once."""
    found: dict[tuple[str, str, str | None, Severity], list[str]] = {}
    for claim in study.claims:
        records = [record for arm in claim.all_arms for record in ended[arm].values()]
        if len({record.facts.get("val_digest") for record in records}) > 1 and claim.metric != "val/bpb":
            key = ("not-comparable", "were measured on different validation data", None, "invalid")
            found.setdefault(key, []).append(claim.id)
        versions = sorted({record.provenance.code for record in records})
        code = _mixed_code(versions, [record.digest for record in records], store) if len(versions) > 1 else None
        if code is not None:
            found.setdefault(code, []).append(claim.id)
        for rule, values in (
            ("mixed-machines", {record.provenance.hardware for record in records}),
            ("mixed-threads", {str(record.provenance.threads) for record in records}),
            ("mixed-packages", {_versions(record) for record in records}),
            *(("mixed-kernels", values) for values in _kernels(records)),
        ):
            if len(values) > 1:
                what = f"mix {rule.removeprefix('mixed-')}: {' and '.join(sorted(values))}"
                found.setdefault((rule, what, None, "warning"), []).append(claim.id)
    for (rule, what, mend, severity), claims in found.items():
        message = f"the runs of claim{'s' if len(claims) > 1 else ''} {', '.join(claims)} {what}"
        where = study.lines.where(("claims", claims[0]))
        finding = Finding(rule=rule, severity=severity, message=message, where=where, mend=mend)
        yield finding, tuple(claims) if severity == "invalid" else ()


def _kernels(records: list[RunRecord]) -> Iterable[set[str]]:
    """What ran each operation; a run that does not use it says nothing."""
    found: dict[str, set[str]] = {}
    for operation, ran in (item for record in records for item in record.provenance.kernels.items()):
        found.setdefault(operation, set()).add(f"{operation} on {ran}")
    return found.values()


def _versions(record: RunRecord) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(record.provenance.packages.items()))


def _mixed_code(
    versions: list[str], digests: list[str], store: RunStore
) -> tuple[str, str, str | None, Severity] | None:
    """Nothing where canaries join all these versions of the code; invalid where one says that they differ."""
    joined, differs = bridged(canaries(store, digests), versions)
    if joined:
        return None
    what = f"mix versions of the code ({', '.join(version[:8] for version in versions)})"
    if differs:
        what += ", and a canary shows that they do not give the same numbers"
        return "mixed-code", what, "remove the older runs and run them again", "invalid"
    return "mixed-code", what, "`winnow canary` tells whether they may be compared", "warning"

"""What is known of one run: its identity, what it measured, what its health watch found, and how it was made.

A record is written once, when the run ends, and never changed. `seal` and `unseal` are its form on disk: JSON whose
last key is a check sum over the rest, because a single flipped digit in a result would otherwise pass for a result.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer, field_validator

from winnow.config import canonical_json
from winnow.errors import InputError
from winnow.records.journal import spell, unspell

RECORD_VERSION = 4
"""Version of the form of `run.json`; a reader refuses a higher one. 2: the provenance names kernels. 3: the spread of
initial values. 4: whether Winnow's own sources differed from their commit, and the ratios of updates to values."""

Severity = Literal["notice", "warning", "invalid"]
Status = Literal["finished", "failed", "diverged", "interrupted"]
Fact = float | int | str


class Plain(BaseModel):
    """Immutable plain data that came out of a run: closed and strict like a config, but no identity of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def dump(self) -> dict[str, Any]:
        """Plain JSON data."""
        return self.model_dump(mode="json")


class Finding(Plain):
    """Something the health watch or an audit noticed. Severity `invalid` makes a verdict invalid."""

    rule: str
    """Name of the rule, for example `dead-parameter`."""
    severity: Severity
    message: str
    where: str | None = None
    """Parameter, arm, key or step that it is about; None = the whole run."""
    mend: str | None = None
    """What to do about it; None = nothing to do."""


class Provenance(Plain):
    """How and where a run was made. None of it is identity; pairing across differences is a finding."""

    code: str
    """Digest of the package's sources that affect numbers (`records.sources.code_version`)."""
    commit: str | None = None
    """Git commit of the folder that the command was given in; None = no git, or no commit yet."""
    dirty: bool = False
    """Whether tracked files there differed from the commit."""
    diff_sha256: str | None = None
    """SHA-256 of that difference; None = none, or not known."""
    package_commit: str | None = None
    """Git commit of Winnow's own sources; None = an installed release."""
    package_dirty: bool = False
    """Whether those sources differed from the commit (older records: not looked at)."""
    argv: tuple[str, ...] = ()
    """The command, with secrets redacted."""
    packages: dict[str, str] = {}
    """Versions of the packages that numbers depend on."""
    python: str
    platform: str
    machine: str
    """CPU model or GPU name."""
    hardware: str
    """Class of the machine for the noise ledger, for example `cpu AMD EPYC 1 thread` or `cuda NVIDIA H200`."""
    device: str
    """Torch device, for example `cpu` or `cuda:0`."""
    threads: int
    """Threads of the run, fixed at its first start."""
    kernels: dict[str, str] = {}
    """What ran each operation that has several implementations, for example `selective_attention`: `cpu`. Empty where
    none was used, or nobody looked."""
    deterministic: bool
    """Whether a second run on the same machine is expected to be bit-identical."""
    notes: tuple[str, ...] = ()
    """What qualifies that, for example `compiled: not bit-exact`."""
    host: str
    started: str
    """UTC, ISO 8601."""


class Label(Plain):
    """Under which study and arm a run was first made. Not identity: another study may use the same run."""

    study: str
    arm: str


class RunIdentity(Plain):
    """What a run is: everything its digest is made of, and the label under which it is first made."""

    digest: str
    config: dict[str, Any]
    """The run's configuration as plain JSON data."""
    seed: int
    data: str
    """Digest of the task's data; empty for recorded runs of other programs."""
    sources: dict[str, str] = {}
    """SHA-256 of each `use` file by name."""
    label: Label
    parent: str | None = None
    """Digest of the run in the same store that it starts from; None: of none."""


class Spread(Plain):
    """How far a tensor's values lie from 0."""

    std: float
    """Root of the mean square."""
    n: int
    """Values."""


class UpdateRatio(Plain):
    """By what part of its size an update changed a slice, over some of a run's updates."""

    n: int
    """Updates that were measured."""
    mean: float
    smallest: float
    largest: float


class RunRecord(Plain):
    """One run that has ended, well or badly."""

    version: int = RECORD_VERSION
    digest: str
    status: Status
    label: Label
    config: dict[str, Any]
    seed: int
    data: str
    sources: dict[str, str] = {}
    steps_asked: int
    """Optimizer steps."""
    steps_done: int
    """Optimizer steps."""
    final: dict[str, float] = {}
    """Each metric's last value; may hold NaN or infinity, and a diverged run may lack some."""
    facts: dict[str, Fact] = {}
    """Parameters, FLOPs per token, seconds, validation digest and so on, by name with the unit in the name."""
    initial: dict[str, Spread] = {}
    """Of each parameter by name, before the first update; empty = not watched, or an older record."""
    updates: dict[str, UpdateRatio] = {}
    """Of each slice, as `PARAMETER[SLICE]`, or parameter without slices; empty = not watched, or an older record."""
    weights: str | None = None
    """SHA-256 of the final weights; None = not watched."""
    trace: str | None = None
    """SHA-256 of the metric series that must not differ between equal runs; None = not watched."""
    metrics_rows: int | None = None
    """Rows of the journal when the run ended; the store fills it in."""
    findings: tuple[Finding, ...] = ()
    provenance: Provenance
    error: str | None = None
    """Traceback of a failed run."""
    watched: bool = True
    """False = recorded by another program: health could not look inside."""

    @field_validator("final", "facts", mode="before")
    @classmethod
    def _unspell(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unspell(item) for key, item in cast(dict[str, Any], value).items()}
        return value

    @field_serializer("final", "facts", when_used="json")
    def _spell(self, value: dict[str, Fact]) -> dict[str, Any]:
        return {key: spell(item) for key, item in value.items()}

    def outcome(self, metric: str) -> float | None:
        """The metric's final value, or None if the run diverged: its own outcome, not a missing number.

        Raises KeyError if the run ended well and never measured it.
        """
        value = self.final.get(metric)
        if value is None and self.status != "diverged":
            raise KeyError(metric)
        return value if value is not None and math.isfinite(value) and self.status != "diverged" else None

    def row(self) -> dict[str, Any]:
        """The record as one flat row for a table: metrics and facts by name, settings as `config.a.b`."""
        row: dict[str, Any] = {
            "digest": self.digest,
            "study": self.label.study,
            "arm": self.label.arm,
            "seed": self.seed,
            "status": self.status,
            "steps_asked": self.steps_asked,
            "steps_done": self.steps_done,
            "watched": self.watched,
            "findings": " ".join(finding.rule for finding in self.findings),
            "hardware": self.provenance.hardware,
            "code": self.provenance.code,
            "commit": self.provenance.commit,
            "started": self.provenance.started,
        }
        for name, value in {**self.facts, **self.final}.items():
            row.setdefault(name, value)
        row.update(_flat("config", self.config))
        return row


def _flat(prefix: str, value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}.{key}"
        if isinstance(item, Mapping):
            found.update(_flat(name, cast(Mapping[str, Any], item)))
        else:
            found[name] = item
    return found


def seal(record: RunRecord) -> str:
    """The text of `run.json`: the record's fields, then `crc`, the CRC-32 of their canonical JSON."""
    fields = record.dump()
    return json.dumps({**fields, "crc": _checksum(fields)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(fields: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(canonical_json(fields).encode()):08x}"


def unseal(text: str | bytes, file: Path) -> RunRecord:
    """The record in the text of a `run.json`. Raises InputError if it is damaged or from a newer version."""
    return parse_record(unseal_text(text, file), file)


def unseal_text(text: str | bytes, file: Path) -> str:
    """The text of a `run.json`, checked, as canonical JSON without the check sum. Raises as `unseal`."""
    try:
        fields: Any = json.loads(text)
    except ValueError as error:
        raise _damaged(str(error), file) from error
    if not isinstance(fields, dict):
        raise _damaged("no JSON object", file)
    found = cast(dict[str, Any], fields)
    version = found.get("version")
    if isinstance(version, int) and version > RECORD_VERSION:
        raise InputError(
            f"is a record of version {version}; this Winnow reads up to {RECORD_VERSION}",
            file=file,
            mend="install a newer winnow-lab",
        )
    try:
        agrees = found.pop("crc", None) == _checksum(found)
    except ValueError:  # a bare NaN, which `seal` never writes
        agrees = False
    if not agrees:
        raise _damaged("its check sum does not agree", file)
    return canonical_json(found)


def parse_record(text: str, file: Path) -> RunRecord:
    """A record from checked JSON text. Raises InputError if the fields are not a record's."""
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise _damaged(f"{where}: {error.errors()[0]['msg']}", file) from error


def _damaged(why: str, file: Path) -> InputError:
    return InputError(
        f"is damaged ({why})",
        file=file,
        mend=f"restore it from a copy, or remove the run (winnow rm {file.parent.name}) and run it again",
    )

"""Commands on single runs: what is known of one, and how two differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.records.run import RunRecord
    from winnow.records.store import RunStore

_NO_OUTCOME = ("speed/", "train/lr")
"""Metrics that tell nothing of what was learnt: speed differs between equal runs, the schedule is a setting."""
_EXTREMES = 4
"""Slices that are shown of those that updates change most, and least."""


def register(app: typer.Typer) -> None:
    """Add the commands of this panel."""
    app.command(
        "show", rich_help_panel=options.RUNS, epilog="Example: winnow show quickstart/selective/0", no_args_is_help=True
    )(show)
    app.command(
        "diff",
        rich_help_panel=options.RUNS,
        epilog="Example: winnow diff quickstart/control/0 quickstart/selective/0",
        no_args_is_help=True,
    )(diff)


def show(run: options.Run, store: options.StoreAbove = None, as_json: options.Json = False) -> None:
    """Everything known of one run: what it was, what it measured, what was noticed."""
    from winnow.records.artifacts import places

    records = options.open_store(store)
    digest = options.find_run(records, run)
    state, record, identity = records.state(digest), records.record(digest), records.identity(digest)
    rows = records.metrics(digest)
    verified = records.stamps(digest, "verified")
    uploaded = places(records, digest)
    state = _arrival(records, record, state)
    failures = sorted(path.name for path in records.path(digest).glob("failure-*.json"))
    if as_json:
        output.say_json(
            {
                "digest": digest,
                "state": state,
                "record": None if record is None else record.dump(),
                "identity": None if identity is None else identity.dump(),
                "metrics": rows,
                "verified": verified,
                "uploaded": uploaded,
                "earlier_failures": failures,
                "path": str(records.path(digest)),
            }
        )
        return
    about = record if record is not None else identity
    label = f"{about.label.study}/{about.label.arm}/{about.seed}" if about is not None else "unknown"
    output.say(f"{output.bold(label)}  {digest}  {output.word(state)}")
    if record is not None:
        _say_record(record)
    elif rows:
        output.say(f"  step {rows[-1]['step']} so far")
    if verified is not None:
        output.say(f"\nresume verified: {json.dumps(verified, ensure_ascii=False)}")
    for url, stamp in uploaded.items():
        output.say(f"\nuploaded: {url}, {len(stamp['files'])} files, {stamp['at']}")
    if failures:
        output.say(f"\nearlier failures: {', '.join(failures)}")
    if about is not None:
        output.say("\nsettings")
        _say_pairs({**flat(about.config), "seed": about.seed, "data": about.data, **_prefixed("use", about.sources)})
    output.say(f"\nfiles  {records.path(digest)}")


def diff(
    first: options.Run, second: options.Run, store: options.StoreAbove = None, as_json: options.Json = False
) -> None:
    """How two runs differ: settings, code, packages, machine, and the first step at which their metrics part."""
    records = options.open_store(store)
    digests = [options.find_run(records, name) for name in (first, second)]
    settings = _differing(*(_settings(records, digest) for digest in digests))
    made = _differing(*(_making(records.record(digest)) for digest in digests))
    parting = _first_parting(*(records.metrics(digest) for digest in digests))
    if as_json:
        output.say_json({"runs": digests, "settings": settings, "provenance": made, "metrics": parting})
        return
    output.say(f"{output.bold(digests[0])}  {first}\n{output.bold(digests[1])}  {second}")
    for title, found in (("settings", settings), ("made with", made)):
        output.say(f"\n{title}")
        if not found:
            output.say("  no difference")
        rows = [[key, output.value(one), output.value(other)] for key, (one, other) in found.items()]
        for line in output.columns(rows, indent="  "):
            output.say(line)
    output.say("\nmetrics")
    if parting["step"] is not None:
        metrics = ", ".join(
            f"{name} {output.value(one)} and {output.value(other)}" for name, (one, other) in parting["values"].items()
        )
        output.say(f"  first differ at step {parting['step']}: {metrics}")
    elif parting["compared"]:
        output.say(f"  bit-identical at all {parting['compared']} rows that both have")
    else:
        output.say("  no step that both have")


def _arrival(records: RunStore, record: RunRecord | None, state: str) -> str:
    """The state, and whether the run has arrived where the last launch of its study was to upload it."""
    from winnow.records.artifacts import arrived
    from winnow.records.files import read_json, safe_name

    if record is None or state != "finished":
        return state
    try:
        plan = read_json(records.root / "studies" / f"{safe_name(record.label.study, what='study id')}.json")
    except (FileNotFoundError, InputError):
        return state  # made by another program, or the plan is damaged: `winnow status` says so
    url = plan.get("artifacts")
    return state if url is None or arrived(records, record.digest, url) else "finished, not uploaded"


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            found.update(flat(value, name))
        else:
            found[name] = value
    return found


def _say_record(record: RunRecord) -> None:
    output.say(f"  {record.steps_done} of {record.steps_asked} steps")
    if not record.watched:
        output.say("  unwatched: made by another program, health could not look inside")
    if record.final:
        output.say("\nlast values")
        _say_pairs(record.final)
    output.say("\nfindings")
    if not record.findings:
        output.say("  none" if record.watched else "  none were looked for")
    for finding in record.findings:
        where = f" ({finding.where})" if finding.where else ""
        mend = f"; {finding.mend}" if finding.mend else ""
        output.say(f"  {output.word(finding.severity)} {finding.rule}{where}: {finding.message}{mend}")
    if record.error:
        output.say("\nerror")
        for line in record.error.rstrip().split("\n"):
            output.say(f"  {line}")
    output.say("\nfacts")
    facts = {"weights sha256": record.weights, "trace sha256": record.trace, **record.facts}
    _say_pairs({name: value for name, value in facts.items() if value is not None})
    if record.updates:
        _say_updates(record)
    output.say("\nmade with")
    _say_pairs({name: value for name, value in _making(record).items() if value not in (None, "", [], ())})


def _say_updates(record: RunRecord) -> None:
    """The slices that updates change most and least, relative to their size."""
    places = sorted(record.updates, key=lambda place: record.updates[place].mean, reverse=True)
    measured = max(ratio.n for ratio in record.updates.values())
    output.say(f"\nupdate / value, mean of {measured} updates (smallest to largest)")
    shown = places if len(places) <= 2 * _EXTREMES else [*places[:_EXTREMES], *places[-_EXTREMES:]]
    rows = [
        [place, f"{ratio.mean:.2g}", f"({ratio.smallest:.2g} to {ratio.largest:.2g})"]
        for place in shown
        for ratio in (record.updates[place],)
    ]
    for line in output.columns(rows, indent="  "):
        output.say(line)
    if len(shown) < len(places):
        output.say(f"  and {len(places) - len(shown)} slices between the first {_EXTREMES} and the last: --json")


def _say_pairs(values: Mapping[str, Any]) -> None:
    for line in output.pairs((name, output.value(value)) for name, value in values.items()):
        output.say(line)


def _settings(records: RunStore, digest: str) -> dict[str, Any]:
    found = records.record(digest) or records.identity(digest)
    if found is None:
        return {}
    return {**flat(found.config), "seed": found.seed, "data": found.data, **_prefixed("use", found.sources)}


def _making(record: RunRecord | None) -> dict[str, Any]:
    """Provenance as one table; when it was made is no difference."""
    if record is None:
        return {}
    made = record.provenance.dump()
    return {key: value for key, value in flat(made).items() if key != "started"}


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = list(dict.fromkeys([*one, *other]))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _first_parting(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """The first step at which an outcome that both have differs, and how many rows were compared."""
    compared = 0
    for mine, theirs in _same_steps(one, other):
        compared += 1
        values = {
            name: (mine[name], theirs[name])
            for name in mine
            if name in theirs and not name.startswith(_NO_OUTCOME) and not _same(mine[name], theirs[name])
        }
        if values:
            return {"step": mine["step"], "values": values, "compared": compared}
    return {"step": None, "values": {}, "compared": compared}


def _same_steps(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    by_step = {row["step"]: row for row in other}
    for row in one:
        if row["step"] in by_step:
            yield row, by_step[row["step"]]


def _same(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)  # NaN is the same outcome as NaN

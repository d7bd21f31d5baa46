"""Commands on runs that live elsewhere too: push them to a remote, pull them from it, each byte checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.records.remote import Remote
    from winnow.records.store import RunStore
    from winnow.study.parents import Parents
    from winnow.study.spec import Study

Named = Annotated[
    list[str],
    typer.Argument(metavar="FILE-or-RUN...", help="Studies, notebooks, starts of digests, study/arm/seed."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this panel."""
    app.command(
        "push",
        rich_help_panel=options.UPKEEP,
        epilog="Example: winnow push examples/quickstart.toml --to s3://bucket/lab",
        no_args_is_help=True,
    )(push)
    app.command(
        "pull",
        rich_help_panel=options.UPKEEP,
        epilog="Example: winnow pull quickstart/control/0 --from s3://bucket/lab",
        no_args_is_help=True,
    )(pull)


def push(
    named: Named,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="Where to; none: what the study says.", show_default=False),
    ] = None,
    store: options.StoreNearby = None,
    trust: Annotated[bool, typer.Option("--trust", help="Execute the study's own Python files (`use`).")] = False,
    as_json: options.Json = False,
) -> None:
    """Upload runs, read every file back, and note in the store that they are there."""
    from winnow.records.artifacts import check, upload

    jobs = _jobs(named, to, store, "--to", trust, going=True)
    done: dict[str, str] = {}
    wrong: dict[str, InputError] = {}
    for remote in {id(remote): remote for _, remote, _ in jobs}.values():
        check(remote)
    for records, remote, digest in jobs:
        try:
            done[digest] = upload(records, digest, remote, thorough=True)
        except InputError as error:
            wrong[digest] = error
    words = {"uploaded": "uploaded and read back", "there": "was there already, read back", "nothing": "nothing of it"}
    _say(done, wrong, words, as_json)


def pull(
    named: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE-or-RUN...]", help="As for push; none: list what is there.", show_default=False),
    ] = None,
    from_url: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="Where from; none: what the study says.", show_default=False),
    ] = None,
    store: options.StoreNearby = None,
    trust: Annotated[bool, typer.Option("--trust", help="Execute the study's own Python files (`use`).")] = False,
    as_json: options.Json = False,
) -> None:
    """Download runs into the store, each file checked on arrival; without a run, list what is there."""
    from winnow.records.artifacts import pull as fetch

    if not named:
        _list(_remote(from_url, None, "--from"), as_json)
        return
    done: dict[str, str] = {}
    wrong: dict[str, InputError] = {}
    for records, remote, digest in _jobs(named, from_url, store, "--from", trust, going=False):
        try:
            done[digest] = fetch(records, digest, remote, note=output.note)
        except InputError as error:
            wrong[digest] = error
    _say(done, wrong, {"pulled": "pulled", "had": "is here already"}, as_json)


def _say(done: dict[str, str], wrong: dict[str, InputError], words: dict[str, str], as_json: bool) -> None:
    if as_json:
        output.say_json({"done": done, "failed": {digest: str(error) for digest, error in wrong.items()}})
    else:
        for digest, what in done.items():
            output.say(f"{digest}  {words[what]}")
    for digest, error in wrong.items():
        output.note(f"error: {digest}: {error}")
    if wrong:
        raise typer.Exit(1)


def _list(remote: Remote, as_json: bool) -> None:
    from winnow.records.artifacts import find_runs, labels

    found = labels(remote, find_runs(remote, ""))
    if as_json:
        output.say_json(found)
        return
    for line in output.columns([[digest, label] for digest, label in found.items()], header=["run", "label"]):
        output.say(line)


def _jobs(
    named: list[str], url: str | None, store: Path | None, option: str, trust: bool, *, going: bool
) -> list[tuple[RunStore, Remote, str]]:
    """Store, remote and digest of each run that is named, each once. going: from the store to the remote."""
    jobs: dict[tuple[str, str], tuple[RunStore, Remote, str]] = {}
    remotes: dict[str, Remote] = {}
    for text in named:
        if Path(text).suffix.lower() in (".toml", ".md"):
            found = _of_file(Path(text), url, store, option, trust, going)
        else:
            records, remote = options.open_store(store), _remote(url, None, option)
            digests = [options.find_run(records, text)] if going else _there(remote, text)
            found = [(records, remote, digest) for digest in digests]
        for records, remote, digest in found:
            remote = remotes.setdefault(remote.url, remote)
            jobs.setdefault((remote.url, digest), (records, remote, digest))
    return list(jobs.values())


def _of_file(
    file: Path, url: str | None, store: Path | None, option: str, trust: bool, going: bool
) -> list[tuple[RunStore, Remote, str]]:
    from winnow.notebook.execute import open_source
    from winnow.study.parents import Parents

    records = options.open_store(store, beside=file)
    parents = Parents(records)
    found: list[tuple[RunStore, Remote, str]] = []
    for study in open_source(file).studies:
        remote = _remote(url, study, option)
        if study.runs == "recorded":
            digests = [digest for digest, about in records.records().items() if about.label.study == study.id]
            digests = digests if going else _labelled(remote, study.id)
        else:
            digests = _planned(study, records, parents, trust, keep=not going)
            known = records.digests() if going else _there(remote, "")
            digests = [digest for digest in digests if digest in set(known)]
        found += [(records, remote, digest) for digest in digests]
    return found


def _planned(study: Study, records: RunStore, parents: Parents, trust: bool, keep: bool) -> list[str]:
    """Digests of a study's runs. keep: put the plan into the store, so that its runs are known by name."""
    from winnow.study.plan import load_plan, stale_arms

    plan = load_plan(records, study)
    if plan is None or stale_arms(study, plan, parents.changed):
        from winnow.study.launch import register as register_plan
        from winnow.study.resolve import resolve

        plan = resolve(study, trust=trust, parents=parents).plan
        if keep:
            plan = register_plan(study, records, plan)
    parents.add(study, plan)
    return [plan.run(arm, seed) for arm in study.arms for seed in study.seeds]


def _remote(url: str | None, study: Study | None, option: str) -> Remote:
    from winnow.records.remote import Remote

    place = url or (None if study is None else study.artifacts)
    if place is None:
        raise InputError("no place is given", key=option, mend=f"{option} s3://bucket/prefix, say")
    return Remote(place)


def _there(remote: Remote, text: str) -> list[str]:
    """Digests at the remote that a text names; any number for "", else one."""
    from winnow.records.artifacts import find_runs

    found = find_runs(remote, text)
    if text and len(found) != 1:
        what = f"{text!r} fits {len(found)} runs" if found else f"there is no run {text!r}"
        raise InputError(f"{what} at {remote.url}", mend=f"winnow pull --from {remote.url} lists them")
    return found


def _labelled(remote: Remote, study: str) -> list[str]:
    from winnow.records.artifacts import find_runs, labels

    return [digest for digest, label in labels(remote, find_runs(remote, "")).items() if label.startswith(f"{study}/")]

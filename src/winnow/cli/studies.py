"""Commands on studies: run, check, status, plan."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from winnow.cli import options, output
from winnow.cli.output import finding_line
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.notebook.execute import Source
    from winnow.records.run import Finding
    from winnow.records.store import RunStore
    from winnow.study.grid import Grid
    from winnow.study.parents import Parents
    from winnow.study.spec import Study

STOPPED = 130


class Parallel(StrEnum):
    """Ways of holding one model on several ranks."""

    DDP = "ddp"
    FSDP = "fsdp"


Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps or auto.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", metavar="N", min=1, help="Runs at once. None: one per core, as memory allows."),
]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads of each run.")]
Ranks = Annotated[int, typer.Option("--ranks", metavar="N", min=1, help="Processes that share each run.")]
ParallelBy = Annotated[
    Parallel, typer.Option("--parallel", help="What each of several ranks holds: the whole model, or a part of it.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Execute the study's own Python files (`use`).")]


def register(app: typer.Typer) -> None:
    """Add the commands of this panel."""
    for name, command, example in (
        ("run", run, "winnow run examples/quickstart.toml"),
        ("check", check, "winnow check examples/quickstart.toml"),
        ("plan", plan, "winnow plan examples/quickstart.toml --set train.steps=1600"),
        ("status", status, "winnow status examples/quickstart.toml"),
    ):
        # `status` without a file has something to say.
        app.command(
            name, rich_help_panel=options.STUDIES, epilog=f"Example: {example}", no_args_is_help=name != "status"
        )(command)


def run(
    file: options.StudyFile,
    settings: options.Changes = None,
    jobs: Jobs = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="A..B", help="Only these seeds now.", show_default=False)
    ] = None,
    only: options.Only = None,
    store: options.Store = None,
    trust: Trust = False,
    device: Device = "cpu",
    threads: Threads = 1,
    ranks: Ranks = 1,
    parallel: ParallelBy = Parallel.DDP,
    artifacts: Annotated[
        str | None,
        typer.Option(
            "--artifacts", metavar="URL", help="Upload every run there; none: where the study says.", show_default=False
        ),
    ] = None,
    then: Annotated[
        str | None,
        typer.Option(
            "--then",
            metavar="CMD",
            help="Run this once every run has finished and, where asked for, arrived. Its exit code is winnow's.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Run what is missing of a study, judge its claims, write the results. Given again, it runs nothing twice."""
    from winnow.cli.afterwards import command_of, run_command
    from winnow.cli.progress import STOPPING

    _refuse_torchrun(file)
    command = command_of(then)
    source = _open(file, settings, only)
    wanted, device = options.seeds_of(seeds), options.device_of(device)
    for study in source.studies:
        unknown = [seed for seed in wanted or () if seed not in study.seeds]
        if unknown:
            known = ", ".join(map(str, study.seeds))
            raise InputError(f"seed {unknown[0]} is not one of {study.id}", key="--seeds", mend=f"permitted: {known}")
    records = options.open_store(store, beside=file)
    stopped = bad = False
    missing: list[str] = []
    reports: list[dict[str, Any]] = []
    try:
        from winnow.cli.running import Runner
        from winnow.study.options import Options

        launch = Options(
            jobs=jobs,
            seeds=wanted,
            device=device,
            threads=threads,
            ranks=ranks,
            parallel=parallel.value,
            trust=trust,
            artifacts=artifacts,
        )
        # A mistake in the last study of a notebook is found before the first one has cost anything.
        runner = Runner(source, records, launch, quiet=as_json, asked=only is not None or bool(settings))
        for study in source.studies:
            outcome = runner.run(study)
            if outcome is not None:
                undone = dict.fromkeys([*outcome.failed, *outcome.waiting, *outcome.not_uploaded])
                missing += [f"{study.id}: {key}" for key in undone]
                stopped = outcome.stopped
            if stopped:
                break
        bad, reports = runner.conclude(), runner.reports
    except KeyboardInterrupt:
        # Between runs there is nothing to finish; what ran is recorded.
        output.note(STOPPING)
        stopped = True
    if stopped:
        _then_not(command, "the command was stopped")
        raise typer.Exit(STOPPED)
    if as_json:
        output.say_json(reports)
    code = 1 if bad else 0
    if missing:
        _then_not(command, f"not finished, or not uploaded: {', '.join(missing[:3])}{', ...' if missing[3:] else ''}")
    elif command is not None:
        output.flush()
        code = run_command(command, quiet=as_json) or code
    if code:
        raise typer.Exit(code)


def _refuse_torchrun(file: Path) -> None:
    """Raises InputError where `torchrun` has started this command several times: each would run the whole study."""
    size = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and size != "1":
        message = f"torchrun has started this command {size} times, and each would be a launcher of its own"
        raise InputError(message, mend=f"winnow run {file} --ranks {size}, without torchrun")


def _then_not(command: list[str] | None, why: str) -> None:
    if command is not None:
        output.note(f"--then was not run: {why}")


def check(
    file: options.StudyFile,
    settings: options.Changes = None,
    only: options.Only = None,
    store: options.Store = None,
    trust: Trust = False,
    as_json: options.Json = False,
) -> None:
    """Validate a study and audit it without training anything."""
    source = _open(file, settings, only)
    records = options.open_store(store, beside=file)
    from winnow.study.parents import Parents
    from winnow.study.succession import Successions

    Successions(records, source.studies, file=source.path, declared=source.declared)  # refuses what cannot be
    reports: list[dict[str, Any]] = []
    refusals: list[InputError] = []
    parents = Parents(records, source.studies[0].changes)
    for study in source.studies:
        findings, refusal = _audited(study, records, trust, parents)
        report = {"study": study.id, "arms": list(study.arms), "findings": [item.dump() for item in findings]}
        reports.append(report if study.grid is None else {**report, "grid": study.grid.plain()})
        if refusal is not None:
            refusals.append(refusal)
        if not as_json:
            arms, claims = _many(len(study.arms), "arm"), _many(len(study.claims), "claim")
            output.say(f"{output.bold(study.id)}: {arms}, {claims}, {_many(len(study.seeds), 'seed')}")
            if study.grid is not None:
                output.say(f"  {_grid_line(study, study.grid)}")
            for item in findings:
                output.say(f"  {finding_line(item.severity, item.rule, item.message, item.where, item.mend)}")
            if not findings:
                output.say("  nothing to remark")
    if as_json:
        output.say_json(reports)
    if refusals:
        raise refusals[0]


def plan(
    file: options.StudyFile,
    settings: options.Changes = None,
    only: options.Only = None,
    store: options.Store = None,
    jobs: Jobs = None,
    trust: Trust = False,
    device: Device = "cpu",
    threads: Threads = 1,
    as_json: options.Json = False,
) -> None:
    """What a study will cost, and the smallest effect that each claim can show, before anything runs."""
    from winnow.cli.foresight import foresee, foresight_lines
    from winnow.cli.running import planned
    from winnow.study.capacity import default_jobs
    from winnow.study.parents import Parents

    source, device = _open(file, settings, only), options.device_of(device)
    records = options.open_store(store, beside=file)
    parents = Parents(records, source.studies[0].changes)
    found = [
        foresee(study, planned(study, records, trust, parents)[0], records, device=device, threads=threads)
        for study in source.studies
        if study.runs == "winnow"
    ]
    if as_json:
        output.say_json([each.plain() for each in found])
        return
    for each in found:
        output.say(output.bold(each.study))
        for line in foresight_lines(each, jobs=jobs or default_jobs(device)):
            output.say(line)


def status(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="A .toml study or a .md notebook; none: every run of the store.", show_default=False
        ),
    ] = None,
    only: options.Only = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Which runs are finished, running, failed or still to do, and which claims have an answer."""
    from winnow.cli.standing import say_store, say_studies, store_rows, study_rows
    from winnow.study.succession import Successions

    if file is None:
        records = options.open_store(store)
        rows = store_rows(records)
        if as_json:
            output.say_json(rows)
        else:
            say_store(records, rows)
        return
    source = _open(file, None, only)
    records = options.open_store(store, beside=file)
    successions = Successions(records, source.studies, file=source.path, declared=source.declared)
    found = [study_rows(study, records, successions) for study in source.studies]
    if as_json:
        output.say_json(found)
    else:
        say_studies(found)


def _open(file: Path, settings: list[str] | None, only: str | None) -> Source:
    from winnow.notebook.execute import open_source

    source = open_source(file, options.changes_of(settings), only)
    for line, message, mend in source.front.notes:
        output.note(f"note: {file}:{line}: {message}; {mend}")
    return source


def _audited(
    study: Study, records: RunStore, trust: bool, parents: Parents
) -> tuple[tuple[Finding, ...], InputError | None]:
    """Findings of the audit, and why the study is refused; a study that passes has its plan put into the store."""
    from winnow.study.audit import audit, refuse
    from winnow.study.launch import register as register_plan
    from winnow.study.plan import load_plan, without_arms
    from winnow.study.resolve import resolve

    said: tuple[Finding, ...] = ()
    if study.runs == "recorded":
        plan = without_arms(study)
    else:
        resolved = resolve(study, trust=trust, parents=parents)
        plan, said = resolved.plan, resolved.findings
        parents.add(study, plan)
    found = audit(study, plan, load_plan(records, study))
    findings = (*(item.finding for item in found), *said)
    try:
        refuse(study, found)
    except InputError as error:
        return findings, error
    register_plan(study, records, plan)
    return findings, None


def _grid_line(study: Study, grid: Grid) -> str:
    """For example "grid: 4 attn x 4 qkv = 16 combinations, 2 dropped by the filter: 14 arms, at most 140 runs"."""
    dropped = f", {len(grid.dropped)} dropped by the filter" if grid.dropped else ""
    runs = _many(len(grid.points) * study.looks[-1], "run")
    return f"grid: {grid.sizes()}{dropped}: {_many(len(grid.points), 'arm')}, at most {runs}"


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

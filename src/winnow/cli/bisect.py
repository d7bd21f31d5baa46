"""`winnow bisect`: which commit made a number worse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.cli.studies import STOPPED, Device, Jobs, Threads, Trust
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.study.bisect import Result, Trial
    from winnow.study.spec import Study


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "bisect",
        rich_help_panel=options.UPKEEP,
        no_args_is_help=True,
        epilog="Example: winnow bisect examples/quickstart.toml --good v1.0 --bad main",
    )(bisect)


def bisect(
    file: options.StudyFile,
    good: Annotated[str, typer.Option("--good", metavar="REV", help="A revision without the regression.")],
    bad: Annotated[str, typer.Option("--bad", metavar="REV", help="A later one that has it.")] = "HEAD",
    arm: Annotated[
        str | None, typer.Option("--arm", metavar="ARM", help="What is run; default the control.", show_default=False)
    ] = None,
    smallest: Annotated[
        float | None,
        typer.Option(
            "--smallest",
            metavar="S",
            help="Smallest regression that matters, in units of the endpoint; default: the study's claims'.",
            show_default=False,
        ),
    ] = None,
    repo: Annotated[
        Path | None,
        typer.Option("--repo", metavar="DIR", help="The repository; default the study's.", show_default=False),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try commits again that were skipped.")] = False,
    settings: options.Changes = None,
    only: options.Only = None,
    jobs: Jobs = None,
    trust: Trust = False,
    device: Device = "cpu",
    threads: Threads = 1,
    as_json: options.Json = False,
) -> None:
    """Which commit made a study's number worse? git bisect, judged from several seeds. Given again, it goes on."""
    from winnow.study.bisect import ask, open_repository, plain
    from winnow.study.bisect import bisect as walk
    from winnow.study.commit_runs import CommitRuns, Means
    from winnow.study.workers import terminable

    study = _study(file, settings, only)
    if study.use and not trust:
        mend = "read them, at every commit in question, then give --trust"
        raise study.lines.error(f"{', '.join(study.use)}: a study's own Python files are run only on demand",
                                ("use",), mend)  # fmt: skip
    device = options.device_of(device)
    repository = open_repository(study, repo)
    question = ask(study, repository, good, bad, arm=arm, smallest=smallest)
    runs = CommitRuns(question, repository, Means(jobs, device, threads), output.note)
    steps = max(question.commits - 1, 0).bit_length()
    output.note(f"{output.bold(study.id)}, {question.arm}: {question.commits} commits, about {steps} to be judged")
    output.note(f"bad is: {question.claim('COMMIT').text}")
    try:
        with terminable():
            found = walk(question, repository, runs, output.note, retry=retry)
    except KeyboardInterrupt:
        output.note("stopped; the same command goes on where it was")
        raise typer.Exit(STOPPED) from None
    if as_json:
        output.say_json(plain(found))
    else:
        _say(found)
    if found.outcome != "found":
        raise typer.Exit(1)


def _study(file: Path, settings: list[str] | None, only: str | None) -> Study:
    from winnow.notebook.execute import open_source

    studies = open_source(file, options.changes_of(settings), only).studies
    if len(studies) != 1:
        names = ", ".join(study.id for study in studies)
        raise InputError(f"holds {len(studies)} studies", file=file, mend=f"choose one with --only: {names}")
    return studies[0]


def _say(found: Result) -> None:
    rows = [_row(found.good, "good", "given"), *(_row(trial, trial.judgement or "-") for trial in found.trials)]
    for line in output.columns(rows, header=["commit", "judged", "n", "effect", "interval", "subject", "why"]):
        output.say(line)
    output.say()
    first, metric = found.first_bad, found.question.study.endpoint.metric
    if first is not None:
        trial = next((trial for trial in found.trials if trial.commit == first.sha), None)
        worse = "" if trial is None or trial.effect is None else f": {metric} {trial.effect:+.3g}"
        output.say(f"{output.bold('first bad commit')}: {first.sha} {first.subject}{worse}")
    elif found.suspects:
        output.say(f"the first bad commit is one of {len(found.suspects)}; the others could not be judged:")
        for commit in found.suspects:
            output.say(f"  {commit}")
    else:
        output.say(f"no regression: {found.question.bad} is not shown to be worse than {found.question.good}")
        output.say(f"  {found.trials[0].reason}")
    output.say(f"records: {found.question.folder}")


def _row(trial: Trial, judgement: str, reason: str | None = None) -> list[str]:
    effect = "-" if trial.effect is None else f"{trial.effect:+.3g}"
    ends = [None if end is None else f"{end:+.3g}" for end in (trial.low, trial.high)]
    interval = "-" if None in ends else f"({ends[0]}, {ends[1]})"
    why = trial.reason if reason is None else reason
    subject = trial.subject if len(trial.subject) <= 40 else trial.subject[:39] + "…"
    return [trial.commit[:10], judgement, str(trial.n or "-"), effect, interval, subject, why]

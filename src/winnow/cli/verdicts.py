"""Commands that judge what was recorded: compare, why, plot, judge, aa."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from winnow.cli import options, output
from winnow.cli.judge import judge
from winnow.cli.table import table
from winnow.errors import InputError, nearest

if TYPE_CHECKING:
    from winnow.records.store import RunStore
    from winnow.study.spec import Study
    from winnow.study.verdict import Verdict


def register(app: typer.Typer) -> None:
    """Add the commands of this panel."""
    for name, command, example in (
        ("compare", compare, "winnow compare examples/quickstart.toml"),
        ("why", why, "winnow why examples/quickstart.toml selective"),
        ("table", table, "winnow table examples/quickstart.toml --add parameters --sort val/ce- --format latex"),
        ("plot", plot, "winnow plot examples/quickstart.toml --out figures"),
        ("judge", judge, "winnow judge results.csv --metric val_loss --arm arm --pair seed"),
        ("aa", split_half, "winnow aa examples/quickstart.toml"),
    ):
        app.command(name, rich_help_panel=options.VERDICTS, epilog=f"Example: {example}", no_args_is_help=True)(command)


def compare(
    file: options.StudyFile,
    settings: options.Changes = None,
    only: options.Only = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Judge what is recorded, without running or writing anything. The verdicts are those of `run`."""
    from winnow.cli.standing import say_comparison
    from winnow.cli.verdict_text import unexpectedly_invalid
    from winnow.study.compare import compare as compare_study
    from winnow.study.compare import plain

    source, records, successions = options.open_recorded(file, settings, only, store)
    found = [compare_study(study, records, successions) for study in source.studies]
    if as_json:
        output.say_json([plain(each) for each in found])
    else:
        for number, each in enumerate(found):
            if number:
                output.say()
            if len(found) > 1:
                output.say(f"{output.bold(each.study.id)}\n")
            say_comparison(each)
    if any(unexpectedly_invalid(each.verdicts) for each in found):
        raise typer.Exit(1)


def why(
    file: options.StudyFile,
    claim: Annotated[
        str, typer.Argument(metavar="CLAIM", help="The claim's name, or study/claim.", show_default=False)
    ],
    settings: options.Changes = None,
    only: options.Only = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Every number behind a verdict: values by seed, noise, levels, each look."""
    from winnow.cli.verdict_text import verdict_lines
    from winnow.cli.working import working_lines
    from winnow.study.compare import compare as compare_study

    study, name = claim.split("/", 1) if "/" in claim else (None, claim)
    source, records, successions = options.open_recorded(file, settings, only or study, store)
    owners = [each for each in source.studies if any(known.id == name for known in each.claims)]
    if not owners:
        known = [known.id for each in source.studies for known in each.claims]
        raise InputError(f"no claim {name!r}", file=file, mend=nearest(name, known))
    if len(owners) > 1:
        places = ", ".join(f"{each.id}/{name}" for each in owners)
        raise InputError(f"{len(owners)} studies have a claim {name!r}", file=file, mend=f"say which: {places}")
    found = compare_study(owners[0], records, successions)
    verdict: Verdict = next(verdict for verdict in found.verdicts if verdict.claim.id == name)
    if as_json:
        output.say_json(verdict.dump())
        return
    for line in [*verdict_lines(verdict), "", *working_lines(verdict)]:
        output.say(line)


def plot(
    file: options.StudyFile,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the pictures; none: beside FILE.")
    ] = None,
    settings: options.Changes = None,
    only: options.Only = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Draw the loss curves and the paired differences of a study as PNG."""
    from winnow.cli.writing import drawn
    from winnow.records.files import make_folder, write_atomic
    from winnow.study.compare import compare as compare_study

    source, records, successions = options.open_recorded(file, settings, only, store)
    folder = out if out is not None else file.parent
    if out is not None:
        make_folder(out)
    written: list[str] = []
    for study in source.studies:
        for name, data in drawn(source, compare_study(study, records, successions), records).items():
            write_atomic(folder / name, data)
            written.append(str(folder / name))
    if as_json:
        output.say_json(written)
    elif written:
        output.say("\n".join(written))
    else:
        output.note("nothing is recorded yet, so there is nothing to draw")


def split_half(
    file: options.StudyFile,
    n: Annotated[
        int | None, typer.Option("--n", metavar="N", min=2, help="Seeds per half. None: half of the runs, at most 5.")
    ] = None,
    splits: Annotated[int, typer.Option("--splits", metavar="N", min=10, help="Random splits that are judged.")] = 400,
    settings: options.Changes = None,
    only: options.Only = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """A/A check on your own baseline: how often are random halves of equal runs called different?"""
    source, records, _ = options.open_recorded(file, settings, only, store)
    found = {study.id: _split(study, records, n, splits) for study in source.studies}
    if as_json:
        output.say_json({name: {**vars(each), "calibrated": each.calibrated} for name, each in found.items()})
    else:
        for name, each in found.items():
            output.say(
                f"{output.bold(name)}: {each.runs} runs of the baseline, {each.splits} splits, {each.n} + {each.n}"
            )
            rows = [[method, f"{rate:.1%}"] for method, rate in each.rates.items()]
            for line in output.columns(rows, header=["called different by", "share of splits"], indent="  "):
                output.say(line)
            said = "no more often than declared" if each.calibrated else "more often than declared"
            output.say(f"  the study's rule errs {said} ({each.alpha:.0%}, give or take {3 * each.error:.1%})")
            if each.distinct < each.splits:
                output.say(f"  note: only {each.distinct} different splits exist; more seeds would tell more")
    if not all(each.calibrated for each in found.values()):
        raise typer.Exit(1)


def _split(study: Study, records: RunStore, n: int | None, splits: int) -> Any:
    from winnow.analysis.split_half import split_half as judge_splits
    from winnow.study.compare import compare as compare_study
    from winnow.study.ledger import arm_identity, ledger, noise_key

    metric = study.endpoint.metric
    runs = compare_study(study, records).runs.get(study.control, {})
    finished = [record for record in runs.values() if record.status == "finished"]
    values = [value for record in finished if (value := record.outcome(metric)) is not None]
    if len(values) < 4:
        message = f"{study.control!r} has {len(values)} finished runs, an A/A check needs 4"
        raise InputError(message, file=study.file, mend="run more seeds of it")
    known = ledger(records.records().values(), [metric])
    prior = known.prior(noise_key(finished[0], metric), {arm_identity(finished[0])})
    return judge_splits(values, n, rule=study.rule, prior=prior, splits=splits)

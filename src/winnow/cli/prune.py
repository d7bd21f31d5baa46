"""`winnow prune`: what a trained run loses with less of its cache, and how little it needs to keep up with another."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError
from winnow.records.files import safe_name

if TYPE_CHECKING:
    from winnow.analysis.parity import Measured
    from winnow.analysis.pruning import Kept, Summary
    from winnow.analysis.trained import Trained
    from winnow.attention import PolicyConfig
    from winnow.records.store import RunStore

USUAL = ("1/2", "1/4", "1/8", "1/16", "1/32")


class PolicyName(StrEnum):
    """A policy, with its default options."""

    VOTES = "votes"
    ANEW = "anew"
    WINDOW = "window"
    H2O = "h2o"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "prune",
        rich_help_panel=options.MODELS,
        epilog="Example: winnow prune heads/selective --target-loss-of heads/control --plot pruning.png",
        no_args_is_help=True,
    )(prune)


def prune(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Starts of digests, study/arm/seed, or study/arm for all its seeds."),
    ],
    target_of: Annotated[
        str | None,
        typer.Option(
            "--target-loss-of",
            metavar="RUN",
            help="Find the smallest memory at this run's unpruned loss; study/arm: its run with the same seed.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="PART", help=f"Part of the context, 1/8 say; default {', '.join(USUAL)}."),
    ] = None,
    policy: Annotated[
        list[PolicyName] | None,
        typer.Option("--policy", help="Which keys go; may be given again. Default: all that suit the runs."),
    ] = None,
    uniform: Annotated[bool, typer.Option("--uniform", help="Search no budgets by layer.")] = False,
    step: Annotated[
        int | None,
        typer.Option("--step", metavar="N", help="Keys by which a layer is lowered first; default 1/8 of the context."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", help="Validation tokens; default those that the run was evaluated on."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the curve.", show_default=False)
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the curve as CSV, a row per run.")] = False,
    into: Annotated[
        str | None,
        typer.Option(
            "--record",
            metavar="STUDY",
            help="Record the smallest memory of every run as a run of this study, for claims.",
            show_default=False,
        ),
    ] = None,
    store: options.StoreAbove = None,
    as_json: options.Json = False,
) -> None:
    """Loss against the part of the cache that is kept, by policy; and the smallest memory at another run's loss."""
    keeps = [_part(text) for text in keep or USUAL]
    _check_options(plot, step, as_csv and as_json)
    _check_recording(into, target_of)
    records = options.open_store(store)
    digests = [digest for name in runs for digest in _digests(records, name)]
    from winnow.analysis.parity import Measured, check_unrecorded, find_parity, first_step, record_parity
    from winnow.analysis.pruning import Pruner, policies_of
    from winnow.analysis.trained import read_trained

    loaded = [read_trained(records, digest) for digest in dict.fromkeys(digests)]
    policies = policies_of(loaded)
    if policy:
        policies = [_policy(name, loaded) for name in dict.fromkeys(policy)]
    targets = [None if target_of is None else _target(records, target_of, run, tokens) for run in loaded]
    if into is not None:
        check_unrecorded(records, into, loaded, key="--record")
    measured: list[Measured] = []
    for run, target in zip(loaded, targets, strict=True):
        output.note(f"{run.name}: measuring")
        pruner = Pruner(run, tokens)
        curves = {policy.kind: pruner.curve(policy, keeps) for policy in policies}
        lowered = step or first_step(pruner.context)
        parity = {} if target is None else find_parity(pruner, policies, target, lowered, uniform, _note_lowering)
        measured.append(Measured(run, pruner, curves, target, lowered, parity))
        if into is not None:
            record_parity(records, into, measured[-1], str(target_of))
    drawn = [] if plot is None else [_draw(plot, measured)]
    if as_json:
        output.say_json({"runs": [found.plain() for found in measured], "files": drawn})
        return
    if as_csv:
        _say_csv(measured)
        return
    for arm in dict.fromkeys(found.arm for found in measured):
        _say_arm(arm, [found for found in measured if found.arm == arm], target_of)
    for file in drawn:
        output.note(f"wrote {file}")


def _part(text: str) -> float:
    try:
        found = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        found = 0.0
    if not 0 < found <= 1:
        raise InputError(f"{text!r} is no part of the context", key="--keep", mend="write 1/8, above 0 and at most 1")
    return found


def _check_options(plot: Path | None, step: int | None, both: bool) -> None:
    if both:
        raise InputError("one form at a time", key="--csv", mend="leave --csv or --json out")
    if step is not None and step < 1:
        raise InputError(f"{step} keys", key="--step", mend="at least 1")
    if plot is not None and plot.suffix != ".png":
        raise InputError(f"{str(plot)!r} is not a PNG file", key="--plot", mend="give a name that ends in .png")
    if plot is not None and not plot.parent.is_dir():
        raise InputError(f"there is no folder {str(plot.parent)!r}", key="--plot", mend="make it first")


def _check_recording(into: str | None, target_of: str | None) -> None:
    if into is None:
        return
    if target_of is None:
        raise InputError("there is no loss to keep up with", key="--record", mend="give --target-loss-of")
    try:
        safe_name(into, what="study")
    except InputError as error:
        raise InputError(error.message, key="--record", mend=error.mend) from error


def _digests(records: RunStore, name: str) -> list[str]:
    """The run, or the finished runs of an arm, by seed."""
    if name.count("/") != 1:
        return [options.find_run(records, name)]
    study, _, arm = name.partition("/")
    found = {
        record.seed: options.find_run(records, f"{name}/{record.seed}")
        for record in records.records().values()
        if (record.label.study, record.label.arm, record.status) == (study, arm, "finished")
    }
    if not found:
        raise InputError(f"no run of {name!r} has finished in {records.root}", mend="see winnow status")
    return [found[seed] for seed in sorted(found)]


def _policy(name: PolicyName, runs: Sequence[Trained]) -> PolicyConfig:
    from winnow.analysis.pruning import suits
    from winnow.attention import PolicyConfig

    found = PolicyConfig.model_validate({"kind": name.value})
    for run in runs:
        if not suits(run, found):
            raise InputError(
                f"{name.value} goes by votes, and {run.name} casts none: it was trained without selection",
                key="--policy",
                mend="use window or h2o",
            )
    return found


def _target(records: RunStore, name: str, run: Trained, tokens: int | None) -> float:
    """The unpruned loss of the run to be kept up with, on the same text."""
    from winnow.analysis.pruning import CPU
    from winnow.analysis.trained import read_trained
    from winnow.train.evaluate import evaluate, held_out

    full = f"{name}/{run.record.seed}" if name.count("/") == 1 else name
    try:
        other = read_trained(records, options.find_run(records, full))
    except InputError as error:
        raise InputError(error.message, key="--target-loss-of", mend=error.mend) from error
    asked = (
        run.config.evaluation if tokens is None else run.config.evaluation.replace({"tokens": tokens, "bytes": None})
    )
    mine, theirs = held_out(run.task, asked), held_out(other.task, asked)
    if mine.digest != theirs.digest or mine.n_tokens != theirs.n_tokens:
        raise InputError(
            f"{other.name} was not trained on the same validation text and tokens as {run.name}",
            key="--target-loss-of",
            mend="compare runs of one task",
        )
    return evaluate(other.model, theirs, CPU, "fp32")["val/ce"]


def _note_lowering(kept: Kept) -> None:
    output.note(f"  {kept.policy}: {_keys(kept)} keys, {kept.loss:.4f}")


def _keys(kept: Kept) -> str:
    return ", ".join(str(budget) for budget in kept.budgets.values())


def _say_arm(arm: str, found: Sequence[Measured], target_of: str | None) -> None:
    from winnow.analysis.pruning import summary
    from winnow.analysis.pruning_plot import part

    context, n = found[0].pruner.context, len(found)
    seeds = f"{n} seeds, ± 1 sd" if n > 1 else f"seed {found[0].run.record.seed}"
    output.say(output.bold(f"{arm}: loss in nats per token, context {context}, {seeds}"))
    policies = list(found[0].curves)
    rows = [["all", str(context), *[_spread(summary([run.pruner.unpruned for run in found]))] * len(policies)]]
    for keep in next(iter(found[0].curves.values())):
        losses = [summary([run.curves[policy][keep].loss for run in found]) for policy in policies]
        budget = next(iter(found[0].curves[policies[0]][keep].budgets.values()))
        rows.append([part(keep), str(budget), *(_spread(value) for value in losses)])
    for line in output.columns(rows, header=["keep", "keys", *policies], indent="  "):
        output.say(line)
    if target_of is not None:
        _say_parity(found, target_of)
    output.say()


def _say_parity(found: Sequence[Measured], target_of: str) -> None:
    from winnow.analysis.pruning import ratio_summary, summary

    targets = [run.target for run in found if run.target is not None]
    output.say(
        f"\n  smallest memory at the loss of {target_of}, {_spread(summary(targets))}, over that of a full cache"
    )
    rows: list[list[str]] = []
    for policy in found[0].parity:
        for way, title in (("uniform", "every layer alike"), ("by_layer", "by layer")):
            kept: list[Kept] = [value for run in found if (value := getattr(run.parity[policy], way)) is not None]
            if way == "by_layer" and not kept:
                continue
            if not kept:
                rows.append([policy, title, "none", "the full cache's loss is above it"])
                continue
            value = ratio_summary([part.memory for part in kept])
            text = f"{value.mean:.3g}" if value.n == 1 else f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}]"
            keys = "; ".join(str(round(part.budget)) if way == "uniform" else _keys(part) for part in kept)
            missing = "" if len(kept) == len(found) else f"; {len(found) - len(kept)} of {len(found)} seeds never"
            rows.append([policy, title, text, f"keys {keys}{missing}"])
    for line in output.columns(rows, indent="  "):
        output.say(line)
    if "anew" in found[0].parity:
        output.say("  anew chooses among all keys, so its memory is the full one; its keys say how few are read")


def _spread(value: Summary) -> str:
    return f"{value.mean:.4f}" if value.n == 1 else f"{value.mean:.4f} ± {value.sd:.4f}"


def _say_csv(measured: Sequence[Measured]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "name", "seed", "policy", "keep", "keys", "loss", "unpruned", "target", "memory"])
    for found in measured:
        for policy, by_keep in found.curves.items():
            for keep, kept in by_keep.items():
                record = found.run.record
                target = "" if found.target is None else repr(found.target)
                row = [record.digest, found.run.name, record.seed, policy, repr(keep), f"{kept.budget:g}"]
                writer.writerow([*row, repr(kept.loss), repr(found.pruner.unpruned), target, repr(kept.memory)])
    output.say(text.getvalue().rstrip("\n"))


def _draw(path: Path, measured: Sequence[Measured]) -> str:
    from winnow.analysis.pruning_plot import PruningCurve, pruning_png
    from winnow.records.files import writing

    curves: list[PruningCurve] = []
    alone = len({found.run.record.label.study for found in measured}) == 1
    for arm in dict.fromkeys(found.arm for found in measured):
        own = [found for found in measured if found.arm == arm]
        for policy in own[0].curves:
            seeds = [
                {1.0: found.pruner.unpruned, **{keep: kept.loss for keep, kept in found.curves[policy].items()}}
                for found in own
            ]
            curves.append(PruningCurve(arm.rpartition("/")[2] if alone else arm, policy, seeds))
    targets = [found.target for found in measured if found.target is not None]
    target = sum(targets) / len(targets) if targets else None
    counts = sorted({len(curve.seeds) for curve in curves})
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    arms = ", ".join(dict.fromkeys(found.arm for found in measured))
    caption = (
        f"band: ± 1 sd over {many} seed{'s' if counts[-1] != 1 else ''}; context {measured[0].pruner.context} tokens"
    )
    with writing(path):
        path.write_bytes(pruning_png(curves, target, f"Loss with a pruned cache: {arms}", caption))
    return str(path)

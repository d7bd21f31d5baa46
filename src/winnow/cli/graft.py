"""`winnow graft`: other heads or another mechanism over weights that exist, and what that changes."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from winnow.models.grafts import GraftConfig
    from winnow.models.interchange import Foreign
    from winnow.models.surgery import SurgeryReport

_PROBE = 2, 256
"""Rows of the probe, and the most tokens of one."""


class At(StrEnum):
    """Where new heads go."""

    START = "start"
    END = "end"


class Init(StrEnum):
    """How new heads begin."""

    NORMAL = "normal"
    O_RESCALED = "o_rescaled"
    O_ZERO = "o_zero"
    K_ZERO = "k_zero"
    KO_ZERO = "ko_zero"
    ZERO = "zero"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "graft",
        rich_help_panel=options.MODELS,
        epilog="Example: winnow graft quickstart/control/0 --to grown --add-heads 1 --init ko_zero",
        no_args_is_help=True,
    )(graft)


def graft(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A run, a checkpoint, a folder or file of weights, or a URL (hf://owner/repo/path)."
        ),
    ],
    to: Annotated[
        Path,
        typer.Option("--to", metavar="FOLDER", help="A new folder; nothing is written over.", show_default=False),
    ],
    remove_heads: Annotated[
        str | None,
        typer.Option("--remove-heads", metavar="0,3", help="First take these heads away.", show_default=False),
    ] = None,
    add_heads: Annotated[
        int | None,
        typer.Option("--add-heads", metavar="N", min=1, help="Then add N heads to every layer.", show_default=False),
    ] = None,
    at: Annotated[
        At | None,
        typer.Option("--at", help="Where they go; none: start. Head 0 selects by default.", show_default=False),
    ] = None,
    init: Annotated[
        Init | None,
        typer.Option(
            "--init",
            help="How they begin; none: normal. docs/surgery.md says which keep the function.",
            show_default=False,
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            metavar="TABLE",
            help="Last switch the mechanism, say '{ kind = \"selective\" }'.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the fresh values.")] = 0,
    store: options.StoreAbove = None,
    as_json: options.Json = False,
) -> None:
    """Add or remove heads of a model, or switch its attention; write the model to a folder and say what changed.

    A study does the same with `graft`. The change of the logits is measured on random tokens.
    """
    grafts = _grafts(remove_heads, add_heads, at, init, attention)
    if to.exists():
        raise InputError("exists already", file=to, key="--to", mend="nothing is written over: name a new folder")
    found = _read(source, store)
    from winnow.models.interchange import write_model
    from winnow.models.surgery import operate

    flags = list(grafts)
    try:
        done = operate(
            found.config,
            found.weights,
            [grafts[flag] for flag in flags],
            vocab_size=found.vocab_size,
            context=found.context,
            seed=seed,
            probe=_probe(found, seed),
        )
    except InputError as error:
        index, _, rest = (error.key or "").partition(".")
        key = _key(flags[int(index)], rest) if index.isdecimal() else error.key
        raise InputError(error.message, key=key, mend=error.mend) from error
    write_model(to, done.config, done.weights, found.vocab_size, found.context)
    for line in found.said:
        output.note(line)
    report = done.report
    if as_json:
        output.say_json(
            {
                "folder": str(to),
                "model": done.config.dump(),
                "added": report.added,
                "preserves": report.preserves,
                "max_logit_change": report.max_logit_change,
                "ce_change": report.ce_change,
                "fresh": dict(report.fresh),
                "wakes": dict(report.wakes),
                "idle": report.idle,
                "dropped": report.dropped,
            }
        )
    else:
        numbers = sum(tensor.numel() for tensor in done.weights.values())
        output.say(f"wrote {to}: {numbers:,} parameters ({report.added:+,})")
        _say(report)
    if report.dead:
        message = f"{len(report.dead)} fresh slices can never get a gradient"
        output.note(
            output.finding_line(
                "warning", "dead-by-construction", message, report.dead[0], "start the head with ko_zero, say"
            )
        )


def _grafts(
    remove: str | None, add: int | None, at: At | None, init: Init | None, attention: str | None
) -> dict[str, GraftConfig]:
    """What is to be done, by the option that says so, in this order. Raises InputError."""
    from winnow.models.grafts import AddHeads, RemoveHeads, SwitchAttention

    told = {"at": at, "init": init}
    given = {name: value.value for name, value in told.items() if value is not None}
    if given and add is None:
        mend = "say how many with --add-heads N, or leave it out"
        raise InputError("speaks of new heads, and there are none", key=f"--{next(iter(given))}", mend=mend)
    found: dict[str, GraftConfig] = {}
    if remove is not None:
        numbers = [part.strip() for part in remove.split(",")]
        if not all(number.isdecimal() for number in numbers):
            raise InputError(f"{remove!r} names no heads", key="--remove-heads", mend="write their numbers: 0,3")
        found["--remove-heads"] = _made(RemoveHeads, {"heads": [int(number) for number in numbers]}, "--remove-heads")
    if add is not None:
        found["--add-heads"] = _made(AddHeads, {"n": add, **given}, "--add-heads")
    if attention is not None:
        try:
            table = tomllib.loads(f"attention = {attention}")
        except tomllib.TOMLDecodeError as error:
            mend = 'write a table: { kind = "selective" }'
            raise InputError(f"{attention!r} is no TOML: {error}", key="--attention", mend=mend) from error
        found["--attention"] = _made(SwitchAttention, table, "--attention")
    if not found:
        raise InputError("nothing is to be done", mend="give --add-heads, --remove-heads or --attention")
    return found


def _made(kind: type[GraftConfig], table: dict[str, object], option: str) -> GraftConfig:
    from pydantic import ValidationError

    from winnow.config import input_errors

    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = input_errors(error)[0]
        raise InputError(first.message, key=_key(option, first.key or ""), mend=first.mend) from error


def _key(option: str, inside: str) -> str:
    """An option and the key in its table, whose first part is the option itself."""
    _, dot, rest = inside.partition(".")
    return f"{option}{dot}{rest}"


def _read(source: str, store: Path | None) -> Foreign:
    """The model that SOURCE names. Raises InputError."""
    from winnow.models.fetch import fetch
    from winnow.models.interchange import read_weights

    if "://" in source or Path(source).exists():
        return read_weights(fetch(source))
    records = options.open_store(store)
    digest = options.find_run(records, source)
    identity = records.identity(digest)
    if identity is None:
        raise InputError(f"run {digest} has not begun", mend="run its study first")
    if identity.sources:
        names = ", ".join(identity.sources)
        raise InputError(f"its mechanisms come from files of its own: {names}", mend="graft it in a study with `use`")
    return read_weights(records.path(digest))


def _probe(found: Foreign, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of random tokens, and the next token of each."""
    import torch

    from winnow.config import stream
    from winnow.parameters import uniform

    rows, most = _PROBE
    shape = torch.Size((rows, min(found.context, most) + 1))
    draws = (uniform(stream(seed, "probe"), shape).double() + 1) / 2
    rows_of = (draws * found.vocab_size).long().clamp(max=found.vocab_size - 1)
    return rows_of[:, :-1], rows_of[:, 1:]


def _say(report: SurgeryReport) -> None:
    kept = "yes, up to rounding" if report.preserves else "no"
    lines = [("function kept", kept)]
    if report.max_logit_change is not None and report.ce_change is not None:
        lines.append(("largest change of a logit", f"{report.max_logit_change:.3g} nats, on random tokens"))
        lines.append(("change of the cross entropy", f"{report.ce_change:+.3g} nats per token, on random tokens"))
    if report.dropped:
        lines.append(("lost", f"{len(report.dropped)} slices, {report.dropped[0]} first"))
    for line in output.pairs(lines):
        output.say(line)
    if not report.fresh:
        return
    output.say()
    rows = [[fresh.name, str(fresh.layers), fresh.when] for fresh in report.waking()]
    for line in output.columns(rows, ["fresh", "layers", "first gradient"], indent="  "):
        output.say(line)

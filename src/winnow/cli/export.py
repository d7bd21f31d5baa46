"""`winnow export`: a run's weights as a folder that other programs read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.models.interchange import Foreign


class Layout(StrEnum):
    """Whose folder."""

    GPT2 = "gpt2"
    WINNOW = "winnow"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "export",
        rich_help_panel=options.MODELS,
        epilog="Example: winnow export quickstart/control/0 --to gpt2-control",
        no_args_is_help=True,
    )(export)


def export(
    run: options.Run,
    to: Annotated[
        Path,
        typer.Option("--to", metavar="FOLDER", help="A new folder; nothing is written over.", show_default=False),
    ],
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", help="The checkpoint after N updates; default the newest.")
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option("--layout", help="gpt2: Hugging Face's, for a GPT-2; winnow: Winnow's own, for any model."),
    ] = Layout.GPT2,
    store: options.StoreAbove = None,
) -> None:
    """Write a run's weights as a Hugging Face GPT-2 folder, or as a folder of Winnow's own."""
    records = options.open_store(store)
    digest = options.find_run(records, run)
    identity = records.identity(digest)
    if identity is None:
        raise InputError(f"run {digest} has not begun", mend="run its study first")
    from winnow.models.interchange import export_gpt2, write_model

    found = _weights(records.path(digest), step, identity.sources)
    write = export_gpt2 if layout is Layout.GPT2 else write_model
    write(to, found.config, found.weights, found.vocab_size, found.context)
    for line in found.said:
        output.note(line)
    assert found.checkpoint is not None
    numbers = sum(tensor.numel() for tensor in found.weights.values())
    output.say(f"wrote {to}: {numbers:,} parameters of run {digest}, {found.checkpoint.name}")


def _weights(run: Path, step: int | None, sources: dict[str, str]) -> Foreign:
    """The model of a run's checkpoint. Raises InputError where there is no such checkpoint."""
    from winnow.models.interchange import CHECKPOINTS, read_weights
    from winnow.records.checkpoints import step_folder, step_folders, step_of

    if sources:
        names = ", ".join(sources)
        raise InputError(f"its mechanisms come from files of its own: {names}", mend="export a run without `use`")
    kept = [str(step_of(folder.name)) for folder in step_folders(run / CHECKPOINTS)]
    if not kept:
        raise InputError(f"run {run.name} has no checkpoint here", mend="run its study again")
    if step is None:
        return read_weights(run)
    if str(step) not in kept:
        mend = f"there are: {', '.join(reversed(kept))}; `train.keep` names those that are to stay"
        raise InputError(f"run {run.name} has no checkpoint of step {step}", key="--step", mend=mend)
    return read_weights(run / CHECKPOINTS / step_folder(step))

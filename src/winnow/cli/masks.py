"""`winnow masks`: who masked which token of a text, as a page and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from winnow.analysis.masks import View
    from winnow.analysis.trained import Trained
    from winnow.tasks.base import Ids

PAGE = Path("masks.html")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "masks",
        rich_help_panel=options.MODELS,
        epilog="Example: winnow masks study/plain/0 study/protected/0 --text story.txt --tokens 256",
        no_args_is_help=True,
    )(masks)


def masks(
    run: options.Run,
    other: Annotated[
        str | None, typer.Argument(metavar="[RUN2]", help="Another run, beside the first.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="The text, UTF-8.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="The text itself.", show_default=False)
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="Only the first N tokens.", show_default=False)
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="N,N", help="Only these layers, from 0; default all.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help=f"The page; default {PAGE}, none with --png alone."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE.png", help="A picture for a notebook.", show_default=False)
    ] = None,
    store: options.StoreAbove = None,
) -> None:
    """Who masked which token? One HTML page that works offline: F, votes, protection, attention and next tokens."""
    words = _words(text, prompt)
    wanted = _layers(layers)
    page_path = out or (PAGE if png is None else None)
    for path, key, suffix in ((page_path, "--out", ".html"), (png, "--png", ".png")):
        _check_path(path, key, suffix)
    if page_path is not None:
        from winnow.analysis.page import check_target

        check_target(page_path)
    if tokens is not None and tokens < 2:
        raise InputError(f"{tokens} tokens", key="--tokens", mend="2 or more: the first is the start of the document")
    records = options.open_store(store)
    digests = [options.find_run(records, name) for name in (run, other) if name is not None]
    from winnow.analysis.masks import look, tokens_of
    from winnow.analysis.trained import read_trained

    runs = [read_trained(records, digest) for digest in digests]
    ids = [tokens_of(trained, words)[:tokens] for trained in runs]
    for trained, found in zip(runs, ids, strict=True):
        _check_length(trained, found)
    _check_size(runs, ids, wanted)
    views = [look(trained, found, wanted) for trained, found in zip(runs, ids, strict=True)]
    _write(views, page_path, png)


def _words(text: Path | None, prompt: str | None) -> str:
    """The text. Raises InputError."""
    if (text is None) == (prompt is None):
        what = "there is no text" if text is None else "there are two texts"
        raise InputError(what, key="--text", mend="give either --text FILE or --prompt TEXT")
    if text is None:
        found, key, file = prompt or "", "--prompt", None
    else:
        key, file = "--text", text
        try:
            found = text.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise InputError(f"is not UTF-8 (byte {error.start})", file=text, key=key, mend="convert it") from None
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", file=text, key=key, mend="correct it") from None
    if not found:
        raise InputError("the text is empty", file=file, key=key, mend="give some words")
    return found


def _layers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not part.isdecimal()), None)
    if wrong is not None:
        raise InputError(f"{wrong!r} is not a layer", key="--layers", mend="write 0,2")
    return sorted({int(part) for part in parts})


def _check_path(path: Path | None, key: str, suffix: str) -> None:
    if path is None:
        return
    if path.suffix != suffix:
        raise InputError(f"{str(path)!r} does not end in {suffix}", key=key, mend=f"name a {suffix} file")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {str(path.parent)!r}", key=key, mend="make it first")


def _check_length(trained: Trained, ids: Ids) -> None:
    """Raises InputError where a run was never trained on so long a text: nothing is cut unasked."""
    context = trained.config.task.context
    if len(ids) > context:
        text = f"the text is {len(ids)} tokens with the start of the document"
        raise InputError(
            f"{text}, and run {trained.record.digest} reads {context}",
            key="--tokens",
            mend=f"give a shorter text, or cut it: --tokens {context}",
        )


def _check_size(runs: Sequence[Trained], ids: Sequence[Ids], layers: list[int] | None) -> None:
    """Raises InputError where the page would be too large, before anything is computed: two tokens tell how many
    numbers each pair of tokens has."""
    from winnow.analysis.masks import look
    from winnow.analysis.masks_page import BYTES, LIMIT, fits

    probes = [look(trained, found[:2], layers) for trained, found in zip(runs, ids, strict=True)]
    sizes = [sum(len(m) for m in layer.matrices.values()) for probe in probes for layer in probe.layers]
    n = len(ids[0])
    if fits(n, sizes):
        return
    most = next(fewer for fewer in range(n - 1, 0, -1) if fits(fewer, sizes))
    megabytes = n * (n + 1) // 2 * sum(sizes) * BYTES / 1e6
    raise InputError(
        f"{n} tokens of {len(sizes)} layers with {sum(sizes)} matrices make a page of {megabytes:.0f} MB, more than "
        f"{LIMIT / 1e6:.0f} MB",
        mend=f"give --tokens {most}, or fewer layers, say --layers {probes[0].layers[0].index}",
    )


def _write(views: Sequence[View], page_path: Path | None, png: Path | None) -> None:
    from winnow.analysis.masks_page import page, same_tokens
    from winnow.analysis.masks_picture import masks_png
    from winnow.records.files import write_atomic

    same_tokens(views)
    files: list[tuple[Path, bytes]] = []
    if page_path is not None:
        files.append((page_path, page(views).encode()))
    if png is not None:
        title = f"Who masked which token: {' and '.join(view.name for view in views)}"
        files.append((png, masks_png(views, title)))
    for path, data in files:
        write_atomic(path, data)
        output.note(f"wrote {path} ({len(data) / 1e6:.1f} MB)")
    for view in views:
        if not view.selects:
            output.note(f"{view.name} has no masks: attention and next tokens alone are shown")

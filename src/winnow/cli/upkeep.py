"""Commands that keep a lab in order: canary, proof of resume, data, removal."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.records.store import RunStore
    from winnow.study.bridges import Canary


class Document(StrEnum):
    """What one document of a text file is."""

    FILE = "file"
    BLOCK = "block"


def register(app: typer.Typer) -> None:
    """Add the commands of this panel."""
    app.command(
        "canary",
        rich_help_panel=options.UPKEEP,
        epilog="Example: winnow canary examples/quickstart.toml",
        no_args_is_help=True,
    )(canary)
    app.command(
        "verify-resume",
        rich_help_panel=options.UPKEEP,
        epilog="Example: winnow verify-resume quickstart/control/0",
        no_args_is_help=True,
    )(verify_resume)
    data = typer.Typer(
        help="Token shards for studies.",
        epilog="Example: winnow data prepare books/*.txt --out shards",
        no_args_is_help=True,
    )
    data.command("prepare", epilog="Example: winnow data prepare books/*.txt --out shards", no_args_is_help=True)(
        prepare
    )
    app.add_typer(data, name="data", rich_help_panel=options.UPKEEP)
    app.command(
        "rm", rich_help_panel=options.UPKEEP, epilog="Example: winnow rm quickstart/control/0", no_args_is_help=True
    )(remove)
    app.command("gc", rich_help_panel=options.UPKEEP, epilog="Example: winnow gc --store winnow-store")(collect)


def remove(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Starts of digests, or study/arm/seed.")],
    store: options.StoreAbove = None,
    yes: options.Yes = False,
) -> None:
    """Remove runs with their records, metrics and checkpoints."""
    from winnow.records.garbage import size_of

    records = options.open_store(store)
    digests = list(dict.fromkeys(options.find_run(records, run) for run in runs))
    rows: list[list[str]] = []
    for digest in digests:
        rows.append([digest, *_described(records, digest), output.size(size_of(records.path(digest)))])
    for line in output.columns(rows, header=["run", "label", "state", "size"]):
        output.say(line)
    _say_children(records, digests)
    _ask(f"Remove {_many(len(digests), 'run')} for good?", yes)
    records.remove(digests)
    output.say(f"removed {_many(len(digests), 'run')}")


def _say_children(records: RunStore, digests: list[str]) -> None:
    """Runs that start from these: they could not be made, or made again, without them."""
    from winnow.records.descent import children

    begun = set(records.digests())
    for digest, runs in children(records).items():
        if digest not in digests:
            continue
        left = [child for child in runs if child.digest not in digests]
        made = [child.name for child in left if child.digest in begun]
        planned = [child.name for child in left if child.digest not in begun]
        if made:
            verb = "starts" if len(made) == 1 else "start"
            output.note(f"{_first(made)} {verb} from {digest}, and cannot be made again without it")
        if planned:
            verb = "is planned, not begun: it" if len(planned) == 1 else "are planned, not begun: they"
            output.note(f"{_first(planned)} {verb} cannot be made without {digest}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _described(records: RunStore, digest: str) -> tuple[str, str]:
    """Name and state of a run. Removing it is the mend of a damaged one, so damage is a state here."""
    try:
        identity = records.identity(digest)
        label = f"{identity.label.study}/{identity.label.arm}/{identity.seed}" if identity is not None else "unknown"
        return label, records.state(digest)
    except InputError:
        return "unknown", "damaged"


def collect(
    store: options.StoreAbove = None,
    unused_runs: Annotated[
        bool, typer.Option("--unused-runs", help="Also runs that no study of this store names.")
    ] = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Remove what the store can do without: leftovers of killed runs, checkpoints that a later one replaces."""
    from winnow.records.garbage import find_garbage, remove_garbage

    records = options.open_store(store)
    found = find_garbage(records, unused_runs=unused_runs)
    if as_json and not yes:
        output.say_json(
            [
                {"kind": item.kind, "path": str(item.path), "bytes": item.size, "run": item.digest, "why": item.why}
                for item in found
            ]
        )
        return
    if not found:
        output.say(f"nothing to remove in {records.root}")
        return
    if not as_json:
        rows = [
            [item.kind, str(item.path.relative_to(records.root)), output.size(item.size), item.why] for item in found
        ]
        for line in output.columns(rows, header=["kind", "path", "size", "why"]):
            output.say(line)
    _ask(f"Remove {_many(len(found), 'item')}, {output.size(sum(item.size for item in found))}?", yes)
    freed = remove_garbage(records, found)
    if as_json:
        output.say_json({"removed": len(found), "bytes": freed})
    else:
        output.say(f"freed {output.size(freed)}")


def prepare(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the shards.", show_default=False)],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILES...", help="Text files, or quoted globs.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME", help="A dataset of the Hugging Face hub instead of files."),
    ] = None,
    subset: Annotated[
        str | None, typer.Option("--subset", metavar="NAME", help="Configuration of the dataset.")
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Split of the dataset.")] = "train",
    column: Annotated[str, typer.Option("--column", metavar="NAME", help="Column that holds the text.")] = "text",
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="NAME", help="bytes, a tokenizer.json, or a name on the hub.")
    ] = "bytes",
    document: Annotated[
        Document | None,
        typer.Option(
            "--document",
            help="What a document is: a whole file, or a block of about 8 KiB. None: block for one file, else file.",
        ),
    ] = None,
    shard_tokens: Annotated[int, typer.Option("--shard-tokens", metavar="N", help="Tokens in a shard.")] = 100_000_000,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", help="Stop after about so many training tokens.")
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option("--validation-fraction", metavar="F", help="Share of the documents kept for validation.")
    ] = 0.01,
    as_json: options.Json = False,
) -> None:
    """Make token shards from text files or from a dataset. Killed, it goes on when the command is given again."""
    if bool(files) == (dataset is not None):
        raise InputError("give text files or --dataset, one of them", mend="see winnow data prepare --help")
    from winnow.tasks.prepare import HuggingFaceDataset, Progress, TextFiles, prepare_shards

    if dataset is not None:
        source = HuggingFaceDataset(dataset, subset=subset, split=split, column=column)
    else:
        source = TextFiles(tuple(files or ()), document=None if document is None else document.value)

    def tell(progress: Progress) -> None:
        output.note(
            f"  {progress.documents} documents, {output.count(progress.training_tokens)} training tokens, "
            f"{_many(progress.shards, 'shard')}"
        )

    made = prepare_shards(
        source,
        out,
        tokenizer=tokenizer,
        shard_tokens=shard_tokens,
        max_tokens=max_tokens,
        validation_fraction=validation_fraction,
        on_progress=tell,
    )
    if as_json:
        output.say_json({"folder": str(out), **made.dump()})
        return
    for line in output.columns(
        [[entry.file, entry.split, str(entry.tokens)] for entry in made.shards], header=["shard", "split", "tokens"]
    ):
        output.say(line)
    output.say(f'in a study: base.task = {{ kind = "corpus", source = "{out}", tokenizer = {{ kind = "manifest" }} }}')


def canary(
    file: options.StudyFile,
    only: options.Only = None,
    store: options.Store = None,
    trust: Annotated[bool, typer.Option("--trust", help="Execute the study's own Python files (`use`).")] = False,
    as_json: options.Json = False,
) -> None:
    """Rerun a recorded baseline after code or packages changed: may old and new records be compared?"""
    from winnow.cli.progress import watching
    from winnow.notebook.execute import open_source
    from winnow.study.canary import run_canary
    from winnow.study.crew import Stopped

    records = options.open_store(store, beside=file)
    found: dict[str, Canary] = {}
    for study in open_source(file, only=only).studies:
        try:
            with watching(study.endpoint.metric) as watcher:
                found[study.id] = run_canary(study, records, watcher, trust=trust)
        except Stopped:
            raise typer.Exit(130) from None
    if as_json:
        output.say_json({name: result.dump() for name, result in found.items()})
    else:
        for name, result in found.items():
            output.say(f"{output.bold(name)}: {result.text}")
            if result.packages:
                output.say(f"  other versions of {', '.join(result.packages)}")
    if not all(result.comparable for result in found.values()):
        raise typer.Exit(1)


def verify_resume(
    run: options.Run,
    store: options.StoreAbove = None,
    kills: Annotated[int, typer.Option("--kills", metavar="N", min=1, help="How often it is killed.")] = 3,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=2, help="Only the first steps; none: the whole run.")
    ] = None,
    use: Annotated[
        list[Path] | None, typer.Option("--use", metavar="FILE", help="The study's own Python file; it is executed.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Prove that a run resumes exactly: make it again, kill it at random steps, compare every bit, stamp the record."""
    from winnow.train.verify import verify_resume as verify

    records = options.open_store(store)
    digest = options.find_run(records, run)
    output.note(f"making {digest} again and killing it {_many(kills, 'time')}; its record stays as it is")
    found = verify(records, digest, kills=kills, steps=steps, use=use or ())
    if as_json:
        output.say_json({"run": digest, **found})
    else:
        at = ", ".join(str(step) for step in found["killed_at"]) or "no step: the run was too short to catch"
        if found["bit_identical"]:
            output.say(f"bit-identical over {found['steps']} of {found['of_steps']} steps, killed at {at}")
        else:
            where = found["first_different_step"]
            part = "the weights differ" if where is None else f"metrics first differ at step {where}"
            output.say(f"not bit-identical: {part}; killed at {at}")
        for text in found["notes"]:
            output.say(f"  note: {text}")
    if not found["bit_identical"]:
        raise typer.Exit(1)


def _ask(question: str, yes: bool) -> None:
    """Go on only with the user's word. Raises InputError where nobody can be asked."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("nobody is there to ask, so nothing was removed", key="--yes", mend="give --yes to go ahead")
    if not typer.confirm(question):
        output.note("nothing was removed")
        raise typer.Exit


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

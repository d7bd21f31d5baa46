"""`winnow generate`: text from a trained run, with a cache as small as is wanted."""

from __future__ import annotations

import codecs
import sys
import time
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import typer

from winnow.cli import options, output
from winnow.cli.prune import PolicyName
from winnow.errors import InputError

if TYPE_CHECKING:
    from winnow.analysis.trained import Trained
    from winnow.attention import KVCache
    from winnow.models.generation import Sampling

USUAL = 128
"""New tokens, the most unless told otherwise."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "generate",
        rich_help_panel=options.MODELS,
        epilog='Example: winnow generate quickstart/selective/0 --prompt "def main(" --budget 1/8',
        no_args_is_help=True,
    )(generate)


def generate(
    run: options.Run,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="May be given again: all go on side by side.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", help=f"New tokens; default what the context has left, at most {USUAL}."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="N|PART",
            help="Keys that every layer keeps, 32 or 1/8 of the context; 32,16,... layer by layer. Default: all.",
        ),
    ] = None,
    policy: Annotated[
        PolicyName | None,
        typer.Option("--policy", help="Which keys go; default votes where the run selects, else window."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0: always the likeliest token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="N", help="Only the N likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", metavar="P", help="Only the fewest that hold P of the probability.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same text.")] = 0,
    store: options.StoreAbove = None,
    as_json: options.Json = False,
) -> None:
    """Continue prompts with a trained run; say what the cache took and how fast it went."""
    records = options.open_store(store)
    digest = options.find_run(records, run)
    import torch

    from winnow.analysis.trained import read_trained
    from winnow.models.generation import generate as generated

    torch.set_flush_denormal(True)  # weights of forgotten keys are that small, and slow
    sampling = _sampling(temperature, top_k, top_p)
    trained = read_trained(records, digest)
    texts = prompt or [""]
    ids, end = _encoded(trained, texts)
    context, longest = trained.config.task.context, max(map(len, ids))
    if longest >= context:
        raise InputError(
            f"{longest} tokens, with the end of document before them, leave none of the run's {context}",
            key="--prompt",
            mend="shorten it",
        )
    new = min(USUAL, context - longest) if tokens is None else tokens
    if not 0 < new <= context - longest:
        mend = f"1 to {context - longest}: the run was trained on {context} at a time"
        raise InputError(f"{new} new tokens", key="--tokens", mend=mend)
    cache = _cache(trained, len(ids), budget, policy)
    told = _Told(trained, texts, stream=len(texts) == 1 and not as_json, silent=as_json)
    started = time.perf_counter()
    drawn = 0
    for row, token in generated(trained.model, ids, new, cache, sampling=sampling, seed=seed, end=end):
        told.hear(row, token)
        drawn += 1
    seconds = time.perf_counter() - started
    told.close()
    speed = drawn / seconds
    if as_json:
        output.say_json(
            {
                "run": digest,
                "texts": [
                    {"prompt": text, "text": "".join(parts)} for text, parts in zip(texts, told.parts, strict=True)
                ],
                "budgets": {path: layer.policy.budget for path, layer in cache.layers.items()},
                "cache_bytes": cache.bytes,
                "full_bytes": cache.full_bytes,
                "tokens": drawn,
                "tokens_per_second": speed,
            }
        )
        return
    kept = sorted({layer.policy.budget for layer in cache.layers.values()})
    keys = f"{kept[0]}" if len(kept) == 1 else f"{kept[0]} to {kept[-1]}"
    hides = any(layer.policy.hides for layer in cache.layers.values())
    what = (
        f"cache of all {context} keys a layer, of which a query reads {keys}"
        if hides
        else (f"cache of {keys} of {context} keys a layer")
    )
    output.note(
        f"{what}: {output.size(cache.bytes)}, "
        f"{cache.bytes / cache.full_bytes:.3g} of a full one; {drawn} tokens, {speed:.3g} tokens/s"
    )


class _Told:
    """What is generated, as text: at once where there is one prompt, prompt by prompt at the end else."""

    def __init__(self, trained: Trained, prompts: list[str], *, stream: bool, silent: bool) -> None:
        self.trained, self.prompts, self.stream, self.silent = trained, prompts, stream, silent
        self.parts: list[list[str]] = [[] for _ in prompts]
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in prompts]
        if stream:
            self._write(prompts[0])

    def hear(self, row: int, token: int) -> None:
        import numpy as np

        tokenizer = self.trained.task.tokenizer
        assert tokenizer is not None
        self._add(row, self._decoders[row].decode(tokenizer.decode(np.array([token])) or b""))

    def close(self) -> None:
        for row, decoder in enumerate(self._decoders):
            self._add(row, decoder.decode(b"", final=True))
        if self.stream:
            output.say()
        elif not self.silent:
            for number, (prompt, parts) in enumerate(zip(self.prompts, self.parts, strict=True)):
                output.say(output.bold(f"prompt {number}"))
                output.say(prompt + "".join(parts))

    def _add(self, row: int, text: str) -> None:
        self.parts[row].append(text)
        if self.stream:
            self._write(text)

    def _write(self, text: str) -> None:
        with output.unheard(sys.stdout):
            sys.stdout.write(text)
            sys.stdout.flush()


def _sampling(temperature: float, top_k: int | None, top_p: float | None) -> Sampling:
    from winnow.models.generation import Sampling

    try:
        return Sampling(temperature, top_k, top_p)
    except InputError as error:
        raise InputError(error.message, key=f"--{str(error.key).replace('_', '-')}", mend=error.mend) from None


def _encoded(trained: Trained, texts: list[str]) -> tuple[list[list[int]], int]:
    """Ids of every prompt, after an end of document; and that one's id."""
    from winnow.tasks.tokenizer import document

    tokenizer = trained.task.tokenizer
    if tokenizer is None:
        mend = "give a run of a `corpus` task whose tokenizer is known"
        raise InputError("the run was not trained on text that goes on", key="RUN", mend=mend)
    try:
        ids = [tokenizer.encode([document(text)]).tolist() for text in texts]
    except InputError as error:
        raise InputError(error.message, key="--prompt", mend=error.mend) from error
    return ids, int(tokenizer.encode([b""])[0])


def _cache(trained: Trained, batch: int, budget: str | None, name: PolicyName | None) -> KVCache:
    from winnow.attention import PolicyConfig

    context = trained.config.task.context
    if budget is None:
        if name is not None:
            raise InputError("nothing goes without a budget", key="--policy", mend="give --budget too")
        return trained.model.cache(batch, context)
    votes = trained.config.grown.casts_votes
    chosen = name.value if name is not None else "votes" if votes else "window"
    policy = PolicyConfig.model_validate({"kind": chosen})
    if policy.needs_votes and not votes:
        raise InputError(
            f"{chosen} goes by votes, and the run casts none: it was trained without selection",
            key="--policy",
            mend="use window or h2o",
        )
    layers = list(trained.model.cache(1, context).layers)
    keys = [_keys(part.strip(), context) for part in budget.split(",")]
    if len(keys) not in (1, len(layers)):
        raise InputError(f"{len(keys)} budgets for {len(layers)} layers", key="--budget", mend="give one, or one each")
    try:
        given = dict(zip(layers, keys * len(layers) if len(keys) == 1 else keys, strict=True))
        return trained.model.cache(batch, context, given, policy)
    except InputError as error:
        raise InputError(error.message, key="--budget", mend=error.mend) from error


def _keys(text: str, context: int) -> int:
    """Keys, of a number of them or of a part of the context."""
    from winnow.attention.prune import budget_of

    if text.isdecimal():
        if int(text) < 1:
            raise InputError(f"a budget of {int(text)} keys", key="--budget", mend="keep at least 1")
        return int(text)
    try:
        return budget_of(float(Fraction(text)), context)
    except (ValueError, ZeroDivisionError, InputError):
        mend = "write 32 or 1/8, or one for each layer"
        raise InputError(f"{text!r} is no number of keys", key="--budget", mend=mend) from None

"""Weights that a URL names, brought to this machine.

    hf://owner/repo[@revision][/path]    a model's repository on the Hugging Face hub, by huggingface_hub and its cache
    s3://bucket/path                     a bucket, by fsspec
    file:///path, or a path              what is here already

Of a folder only what `read_weights` needs is brought: settings, and one form of the weights. A checkpoint of Winnow's
comes whole, with the optimizer's state and the position in the data beside the weights. What is brought is checked by
the sizes and check sums that the other side gives. Credentials are taken from the environment (HF_TOKEN, AWS_*) or
from what `hf auth login` keeps; a URL with a credential in it is refused, because a study's text is recorded.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from winnow.config import digest
from winnow.errors import InputError
from winnow.kernels.compiled import cache_folder
from winnow.models.interchange import CHECKPOINTS, CONFIG, MODEL, PICKLES, THEIRS, WEIGHTS
from winnow.records.checkpoints import COMPLETE, MANIFEST, step_of
from winnow.records.files import make_folder, sync_folder, writing
from winnow.records.provenance import redact
from winnow.records.remote import Remote, public_url

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.*))?")
_SHARD = re.compile(r"(?:model|pytorch_model)-\d+-of-\d+\.(?:safetensors|bin)")
_WRITE = 'write "hf://owner/repo/path", "s3://bucket/path", "file:///path" or a path'
_AGAIN = "check the name and the network, and give the same command again"


@dataclass(frozen=True)
class Wanted:
    """What to bring. names: files, from the root of the repository or bucket; target: what `read_weights` is given."""

    names: tuple[str, ...]
    target: str


def fetch(url: str, cache: Path | None = None) -> Path:
    """The local file or folder that holds what `url` names; `read_weights` reads it.

    cache: where downloads are kept; None: the hub's own cache, and `$XDG_CACHE_HOME/winnow/weights` for buckets.
    Raises InputError where there is no such thing, it is not allowed, or what arrives is not what was announced.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return Path(url).expanduser()
    shown = public_url(url)
    if shown != url:
        raise InputError(f"{shown!r} holds a credential", mend="take it out: set HF_TOKEN, or AWS_* for a bucket")
    if scheme == "file":
        return Path(unquote(urlsplit(url).path))
    if scheme == "hf":
        match = _HUB.fullmatch(rest.rstrip("/"))
        if match is None or "?" in rest or "#" in rest:
            raise InputError(f"{url!r} names no repository", mend="write hf://owner/repo/path")
        return _from_hub(match["repo"], match["revision"] and unquote(match["revision"]), match["path"] or "", cache)
    if scheme == "s3":
        return _from_bucket(url, cache)
    raise InputError(f"{url!r} is of no kind that can be read", mend=_WRITE)


def wanted(files: Collection[str], path: str, place: str) -> Wanted:
    """Which of a place's files are needed to read what lies at `path` ("" = its root). place: its name, for errors.

    Raises InputError where nothing lies there, or no model.
    """
    if path in files:
        folder, name = path.rpartition("/")[0], path.rpartition("/")[2]
        alone = _SHARD.fullmatch(name) is None and name not in (*THEIRS, WEIGHTS)
        if alone and name.endswith(PICKLES):
            return Wanted((path,), path)
        path = folder
    prefix = f"{path}/" if path else ""
    inside = {name.removeprefix(prefix) for name in files if name.startswith(prefix)}
    if not inside:
        raise InputError(f"there is no {path or 'file'!r}", file=place, mend=_holding(files))
    top = {name for name in inside if "/" not in name}
    if MODEL in top:
        return Wanted((prefix + MODEL, prefix + WEIGHTS), path)
    if MANIFEST in top:
        return _checkpoint(files, path)
    steps = [(step, name.split("/")[1]) for name in inside if (step := _complete(name)) is not None]
    if steps:
        return _checkpoint(files, f"{prefix}{CHECKPOINTS}/{max(steps)[1]}")
    theirs = next((name for name in THEIRS if name in top), None)
    if theirs is not None and CONFIG in top:
        ending = ".safetensors" if "safetensors" in theirs else ".bin"
        indexed = theirs.endswith(".json")
        shards = sorted(name for name in top if indexed and _SHARD.fullmatch(name) and name.endswith(ending))
        return Wanted(tuple(prefix + name for name in (CONFIG, theirs, *shards)), path)
    single = [name for name in top if name.endswith(PICKLES)]
    if theirs is None and len(single) == 1:
        return Wanted((prefix + single[0],), prefix + single[0])
    raise InputError(f"{path or 'the root'!r} holds no model that can be read", file=place, mend=_holding(top))


def _complete(name: str) -> int | None:
    parts = name.split("/")
    return step_of(parts[1]) if len(parts) == 3 and (parts[0], parts[2]) == (CHECKPOINTS, COMPLETE) else None


def _checkpoint(files: Collection[str], folder: str) -> Wanted:
    """A whole checkpoint, and the settings of its run two folders above."""
    names = sorted(name for name in files if name.startswith(f"{folder}/") and "/" not in name[len(folder) + 1 :])
    above = folder.split("/")[:-2]
    settings = "/".join([*above, CONFIG])
    return Wanted((*names, *([settings] if settings in files else ())), folder)


def _holding(files: Collection[str]) -> str:
    names = sorted({name.split("/")[0] for name in files})
    return f"it holds {', '.join(names[:8])}{' and more' if len(names) > 8 else ''}" if names else "it holds nothing"


# The Hugging Face hub


def _from_hub(repo: str, revision: str | None, path: str, cache: Path | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    place = f"hf://{repo}" + (f"@{revision}" if revision else "")
    try:
        found = huggingface_hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    except errors.GatedRepoError:
        mend = "accept its terms on the hub, and set HF_TOKEN"
        raise InputError("is open only to those who accepted its terms", file=place, mend=mend) from None
    except errors.RepositoryNotFoundError:
        mend = "check the name; for a private one set HF_TOKEN"
        raise InputError("there is no such repository that you may read", file=place, mend=mend) from None
    except errors.RevisionNotFoundError:
        raise InputError("there is no such revision", file=place, mend="give a branch, a tag or a commit") from None
    except Exception as error:  # whatever the hub's HTTP client raises
        kept = _kept(repo, revision, path, place, cache)
        if kept is not None:
            return kept
        raise InputError(f"cannot be read ({_reason(error)})", file=place, mend=_AGAIN) from None
    files = {sibling.rfilename: sibling for sibling in found.siblings or []}
    # By the revision's own name, not by its commit: so the cache knows it without a network. The check sums show a
    # branch that moves meanwhile.
    want = wanted(files, path, place)
    root = Path()
    for name in want.names:
        sibling = files[name]
        local = _download(repo, name, revision, place, cache, again=False)
        if not _as_announced(local, sibling):
            # A fault of the cache or of the way here: once more from the start.
            local = _download(repo, name, revision, place, cache, again=True)
            if not _as_announced(local, sibling):
                message = "what arrives is not what the hub announces: size or check sum differ"
                raise InputError(message, file=f"{place}/{name}", mend="give the same command again")
        root = local.parents[name.count("/")]
    return root / want.target


def _download(repo: str, name: str, revision: str | None, place: str, cache: Path | None, *, again: bool) -> Path:
    import huggingface_hub

    try:
        local = huggingface_hub.hf_hub_download(repo, name, revision=revision, cache_dir=cache, force_download=again)
    except Exception as error:  # whatever the hub's HTTP client raises
        raise InputError(f"cannot be read ({_reason(error)})", file=f"{place}/{name}", mend=_AGAIN) from None
    return Path(local)


def _as_announced(local: Path, sibling: Any) -> bool:
    """Whether a file has the size, and the SHA-256 (of a large one) or git's SHA-1, that the hub gives for it."""
    size = local.stat().st_size
    if sibling.size is not None and size != sibling.size:
        return False
    with local.open("rb") as opened:
        if sibling.lfs is not None:
            return hashlib.file_digest(opened, "sha256").hexdigest() == sibling.lfs.sha256
        if sibling.blob_id is None:
            return True
        sha = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while piece := opened.read(2**20):
            sha.update(piece)
    return sha.hexdigest() == sibling.blob_id


def _kept(repo: str, revision: str | None, path: str, place: str, cache: Path | None) -> Path | None:
    """What an earlier fetch left in the hub's cache, where it is all there: for machines without a network."""
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, cache_dir=cache, local_files_only=True)
        )
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        want = wanted(files, path, place)
    except Exception:
        return None
    return folder / want.target


def _reason(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {redact([text])[0][:200]}"


# Buckets


def _from_bucket(url: str, cache: Path | None) -> Path:
    base, _, query = url.partition("?")
    bucket, _, path = base.removeprefix("s3://").rstrip("/").partition("/")
    if not bucket or not path or ".." in path.split("/"):
        raise InputError(f"{url!r} names no file or folder", mend="write s3://bucket/path")
    remote = Remote(f"s3://{bucket}" + (f"?{query}" if query else ""))
    folder = path.rpartition("/")[0] if path.endswith((*PICKLES, ".safetensors")) else path
    versions = remote.versions(folder)
    if step_of(folder.rpartition("/")[2]) is not None:
        versions |= remote.versions("/".join([*folder.split("/")[:-2], CONFIG]))
    want = wanted(versions, path, f"s3://{bucket}")
    key = digest([remote.url, sorted((name, versions[name]) for name in want.names)])[:32]
    kept = (cache or cache_folder().with_name("weights")) / key
    if not kept.is_dir():
        _bring(remote, want, kept)
    return kept / want.target


def _bring(remote: Remote, want: Wanted, folder: Path) -> None:
    make_folder(folder.parent)
    draft = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    try:
        for name in want.names:
            file = draft / name
            make_folder(file.parent)
            with writing(file), file.open("xb") as opened:
                for piece in remote.chunks(name):
                    opened.write(piece)
                opened.flush()
                os.fsync(opened.fileno())
        with writing(folder):
            try:
                os.rename(draft, folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, with the same content
                    raise
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)

"""A place for artifacts that a URL names: a folder, an S3 bucket, a repository of the Hugging Face hub.

    file:///mnt/backup/runs
    s3://bucket/prefix?endpoint=https://host     s3://KEY:SECRET@bucket/prefix
    hf://owner/repo/prefix                       hf://datasets/owner/repo/prefix?token=...

Credentials are better left to the environment (AWS_*, HF_TOKEN) and are never part of `Remote.url`, of a message or of
anything that is written. fsspec and what it needs are imported when the place is first spoken to.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from winnow.errors import InputError
from winnow.records.files import make_folder, sync_file, sync_folder
from winnow.records.patience import AbsentError, RefusedError, RemoteError
from winnow.records.provenance import REDACTED, redact

SCHEMES: Final = ("file", "s3", "hf")
CHUNK: Final = 8 * 2**20
"""Bytes that are held in memory while a file goes one way or the other."""
_SETTINGS: Final = {"file": (), "s3": ("endpoint", "region", "key", "secret", "token"), "hf": ("endpoint", "token")}
"""What may stand after the `?`."""
_SECRET_SETTINGS: Final = ("key", "secret", "token")
_OURS: Final = (TypeError, AttributeError, NameError, AssertionError)
"""Errors that are a fault of the program, not of the remote."""
_REFUSALS: Final = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "RepositoryNotFoundError"}
    | {"GatedRepoError", "RevisionNotFoundError", "LocalTokenNotFoundError"}
)


class Sum(NamedTuple):
    """What a file is known by."""

    size: int
    """Bytes."""
    sha256: str


class Remote:
    """Files by name under a URL. Names are relative paths with `/`. Making one speaks to nobody."""

    def __init__(self, url: str) -> None:
        """Raises InputError for a URL that names no place."""
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise InputError(
                f"{public_url(url)!r} is no place for artifacts",
                key="artifacts",
                mend='write "file:///folder", "s3://bucket/prefix" or "hf://owner/repo/prefix"',
            )
        self.scheme = parts.scheme
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        login, at, host = parts.netloc.rpartition("@")
        if at and self.scheme == "s3":
            key, _, secret = login.partition(":")
            given = {"key": unquote(key), "secret": unquote(secret), **given}
        elif at and self.scheme == "hf":
            given = {"token": unquote(login.rpartition(":")[2]), **given}
        for name in given:
            if name not in _SETTINGS[self.scheme]:
                permitted = ", ".join(_SETTINGS[self.scheme]) or "none"
                raise InputError(
                    f"unknown setting {name!r} in the URL", key="artifacts", mend=f"permitted: {permitted}"
                )
        self._given = given
        hidden = {value for name, value in given.items() if name in _SECRET_SETTINGS and value}
        self._secrets = sorted(hidden, key=len, reverse=True)
        path = unquote(parts.path).rstrip("/")
        if self.scheme == "file":
            if host not in ("", "localhost") or not path.startswith("/"):
                raise InputError(f"{public_url(url)!r} is no absolute path", key="artifacts", mend="file:///folder")
            self._root = path
        else:
            self._root = (host + path).strip("/")
            if not host or (self.scheme == "hf" and self._root.count("/") < 1):
                whole = "s3://bucket/prefix" if self.scheme == "s3" else "hf://owner/repo/prefix"
                raise InputError(f"{public_url(url)!r} is not whole", key="artifacts", mend=f"write {whole}")
        shown = {name: value for name, value in given.items() if name not in _SECRET_SETTINGS}
        query = f"?{urlencode(shown, safe=':/')}" if shown else ""
        self.url = f"{self.scheme}://{self._root}{query}"
        """The place, without credentials: fit to be shown and written."""
        self._opened: Any = None

    # Files

    def put(self, files: Mapping[str, BinaryIO]) -> None:
        """Write files, one after the other; each source is read from its start. What a failure leaves half done may
        lie there under its name. Raises RemoteError."""
        if self.scheme == "hf":
            self._commit({name: source.read() for name, source in _rewound(files)}, ())
            return
        for name, source in _rewound(files):
            with self._asking("cannot be written", name):
                if self.scheme == "file":
                    self._put_local(name, source)
                else:
                    self._put_object(name, source)

    def put_whole(self, name: str, data: bytes) -> None:
        """Write one small file such that no reader ever sees a part of it. Raises RemoteError."""
        if self.scheme == "hf":
            self._commit({name: data}, ())
            return
        with self._asking("cannot be written", name):
            if self.scheme == "file":
                self._put_local(name, io.BytesIO(data))
            else:
                self._files.pipe_file(self._path(name), data)

    def chunks(self, name: str) -> Generator[bytes]:
        """The content of a file, piece by piece. Raises AbsentError, RemoteError."""
        with (
            self._asking("cannot be read", name),
            self._files.open(self._path(name), "rb", block_size=CHUNK, cache_type="readahead") as source,
        ):
            while piece := source.read(CHUNK):
                yield piece

    def read(self, name: str, most: int = 64 * 2**20) -> bytes:
        """The content of a small file. Raises AbsentError, RemoteError; RefusedError if it is larger than `most`."""
        found = bytearray()
        for piece in self.chunks(name):
            found += piece
            if len(found) > most:
                raise RefusedError(f"{name} is larger than {most} bytes", file=self.url)
        return bytes(found)

    def checksum(self, name: str) -> Sum:
        """Size and SHA-256 of what the remote really delivers: the file is read back. Raises as `chunks`.

        An S3 ETag is no SHA-256 and differs with how the file was cut up, and many servers that speak S3 only repeat
        the check sum that they were told: neither says that the bytes are there.
        """
        sha, size = hashlib.sha256(), 0
        for piece in self.chunks(name):
            sha.update(piece)
            size += len(piece)
        return Sum(size, sha.hexdigest())

    def names(self, folder: str = "") -> dict[str, int]:
        """Size in bytes of each file under a folder, by its name from the remote's root; empty if there is none."""
        root = self._path(folder) if folder else self._root
        try:
            with self._asking("cannot be listed", folder):
                found: dict[str, Any] = self._files.find(root, detail=True)
        except AbsentError:
            return {}
        start = len(self._root.lstrip("/")) + 1
        return {path.lstrip("/")[start:]: int(about["size"] or 0) for path, about in found.items()}

    def versions(self, folder: str = "") -> dict[str, str]:
        """Of each file under a folder (or of a file), what changes when its content does, as far as the place says:
        the S3 ETag, else size and time; by its name from the remote's root; empty if there is none."""
        root = self._path(folder) if folder else self._root
        try:
            with self._asking("cannot be listed", folder):
                found: dict[str, Any] = self._files.find(root, detail=True)
        except AbsentError:
            return {}
        start = len(self._root.lstrip("/")) + 1
        marks = ("ETag", "size", "mtime", "LastModified")
        return {
            path.lstrip("/")[start:]: " ".join(str(about[mark]) for mark in marks if mark in about)
            for path, about in found.items()
        }

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder; empty if there is none."""
        try:
            with self._asking("cannot be listed", folder):
                found: list[dict[str, Any]] = self._files.ls(self._path(folder), detail=True)
        except AbsentError:
            return []
        return sorted(about["name"].rstrip("/").rpartition("/")[2] for about in found if about["type"] == "directory")

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is absent is no error. Raises RemoteError."""
        gone = list(names)
        if self.scheme == "hf":
            if gone:
                self._commit({}, gone)
            return
        for name in gone:
            try:
                with self._asking("cannot be removed", name):
                    self._files.rm_file(self._path(name))
            except AbsentError:
                continue

    def check(self) -> None:
        """Write a small file, read it back and remove it. Raises RemoteError with the reason and the mend."""
        name, data = f".winnow-check-{secrets.token_hex(8)}", secrets.token_bytes(64)
        if self.scheme == "file" and not Path(self._root).parent.is_dir():
            # A folder that is made where a disk should have been mounted would look like one that works.
            raise RefusedError("there is no such folder", file=str(Path(self._root).parent), mend="mount or make it")
        self.put_whole(name, data)
        try:
            found = self.read(name)
        finally:
            self.remove([name])
        if found != data:
            raise RemoteError("returns other bytes than were written", file=self.url, mend="choose another place")

    def clean(self, text: str) -> str:
        """A text without this remote's credentials."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text

    # The file system behind it

    def _path(self, name: str) -> str:
        assert name
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        return f"{self._root}/{name}"

    @property
    def _files(self) -> Any:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> Any:
        import fsspec

        given = self._given
        if self.scheme == "file":
            return fsspec.filesystem("file")
        if self.scheme == "hf":
            from huggingface_hub import HfFileSystem

            fresh = {"use_listings_cache": False, "skip_instance_cache": True}
            return HfFileSystem(endpoint=given.get("endpoint"), token=given.get("token"), **fresh)
        try:
            from s3fs import S3FileSystem
        except ImportError as error:
            raise RefusedError(f"s3:// needs {error.name or 's3fs'}", mend="pip install 'winnow-lab[s3]'") from None
        files = S3FileSystem(
            key=given.get("key"),
            secret=given.get("secret"),
            token=given.get("token"),
            endpoint_url=given.get("endpoint"),
            client_kwargs={"region_name": given["region"]} if "region" in given else {},
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "connect_timeout": 10,
                "read_timeout": 60,
                # `Patience` is what tries again: three loops within one another would wait for hours.
                "retries": {"total_max_attempts": 1},
                # What is written is read back, so the servers that know none of the newer check sums will do too.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        files.retries = 1
        return files

    def _put_local(self, name: str, source: BinaryIO) -> None:
        """As durable and as whole as what a store writes itself."""
        target = Path(self._path(name))
        if not Path(self._root).parent.is_dir():
            raise RefusedError("there is no such folder", file=str(Path(self._root).parent), mend="mount or make it")
        make_folder(target.parent)
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with draft.open("xb") as into:
                shutil.copyfileobj(source, into, CHUNK)
                into.flush()
                sync_file(into.fileno())
            os.replace(draft, target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)

    def _put_object(self, name: str, source: BinaryIO) -> None:
        """Several requests for what does not fit into one, which the server makes visible at the end or never."""
        into = self._files.open(self._path(name), "wb")
        try:
            shutil.copyfileobj(source, into, CHUNK)
        except BaseException:
            into.discard()
            raise
        into.close()

    def _commit(self, files: Mapping[str, bytes], gone: Iterable[str]) -> None:
        """All at once as one commit: the hub counts them."""
        with self._asking("cannot be written", next(iter(files), "")):
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

            place = self._files.resolve_path(self._root)
            prefix = f"{place.path_in_repo}/" if place.path_in_repo else ""
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationAdd(prefix + name, data) for name, data in files.items()),
                *(CommitOperationDelete(prefix + name) for name in gone),
            ]
            HfApi(endpoint=self._given.get("endpoint"), token=self._given.get("token")).create_commit(
                place.repo_id,
                operations,
                commit_message=f"Winnow: {next(iter(files), 'removal')}",
                repo_type=place.repo_type,
                revision=place.revision,
            )
            self._files.invalidate_cache()  # it remembers what was not there, whatever it is told

    @contextmanager
    def _asking(self, doing: str, name: str) -> Iterator[None]:
        """Turn whatever a file system raises into a RemoteError that says what to do, without credentials."""
        about = f"{name} " if name else ""
        try:
            yield
        except InputError:
            raise
        except FileNotFoundError as error:
            if doing == "cannot be written":
                what = {"s3": "there is no such bucket", "hf": "there is no such repository that HF_TOKEN may see"}.get(
                    self.scheme
                )
                mend = "make it first, or correct the URL"
                raise RefusedError(what or self._reason(error), file=self.url, mend=mend) from None
            raise AbsentError(f"{about}is not there", file=self.url) from None
        except PermissionError as error:
            mend = {"s3": "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"}
            text = f"{about}{doing}: permission denied ({self._reason(error)})"
            raise RefusedError(text, file=self.url, mend=mend.get(self.scheme, "check its permissions")) from None
        except _OURS:
            raise
        except Exception as error:
            text = f"{about}{doing}: {self._reason(error)}"
            if type(error).__name__ in _REFUSALS or _denied(error):
                raise RefusedError(text, file=self.url, mend="check your credentials and the URL") from None
            mend = "make room there" if isinstance(error, OSError) and error.errno == errno.ENOSPC else None
            raise RemoteError(text, file=self.url, mend=mend) from None

    def _reason(self, error: BaseException) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        return self.clean(redact([text])[0])[:300]


def public_url(url: str) -> str:
    """A URL as it may be shown, whatever it is."""
    return redact([url])[0]


def _denied(error: Exception) -> bool:
    """Whether the hub has answered that this account may not: its errors carry the response."""
    response = vars(error).get("response")
    return response is not None and vars(response).get("status_code") in (401, 403)


def _rewound(files: Mapping[str, BinaryIO]) -> Iterator[tuple[str, BinaryIO]]:
    for name, source in files.items():
        source.seek(0)
        yield name, source

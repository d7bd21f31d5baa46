"""Runs that arrive: what a store holds of a run, copied to a remote or back, and believed only after reading back.

Order of an upload: new files, each read back and compared by SHA-256; then the manifest, in one piece; then the files
that it no longer names go. So a manifest only ever names what was whole when it was written, and an older checkpoint
stays whole until a newer one is.

A download takes the run's lock, checks every byte before a file gets its name, and writes the record last: killed at
any instant it leaves a run that can be continued or pulled again, and files that are there already are not fetched
twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from winnow.errors import InputError
from winnow.records.files import FileLock, make_folder, sync_file, sync_folder, write_all, writing
from winnow.records.manifest import (
    MANIFEST,
    METRICS,
    RUN_FILE,
    Entry,
    Local,
    Manifest,
    checksum,
    folder_of,
    newest_step,
    opened,
    read_manifest,
)
from winnow.records.patience import AbsentError, Patience, RefusedError, RemoteError
from winnow.records.remote import Remote, Sum
from winnow.records.run import unseal
from winnow.records.store import RunStore

STAMP: Final = "uploaded"
"""Name of the stamp that says that a run's files are at a remote and have been read back there."""
ENDED_WELL: Final = ("finished", "diverged")

Upload = Literal["uploaded", "there", "nothing"]
"""Written now; all of it was there; there is nothing of this run to be written."""
Pull = Literal["pulled", "had"]


def silent(text: str) -> None:
    """Notes that nobody reads."""


def check(remote: Remote, patience: Patience | None = None) -> None:
    """Write, read back and remove a small file. Raises InputError with the reason."""
    (patience or Patience(attempts=3)).keep_trying(remote.check)


def arrived(store: RunStore, digest: str, url: str) -> bool:
    """Whether the run's record as it stands is known to be at `url`, by its stamp. Asks nobody but the store."""
    known = places(store, digest).get(url, {}).get("files", {}).get(RUN_FILE)
    if known is None:
        return False
    try:
        record = (store.path(digest) / RUN_FILE).read_bytes()
    except FileNotFoundError:
        return False
    return known["sha256"] == hashlib.sha256(record).hexdigest()


def places(store: RunStore, digest: str) -> dict[str, Any]:
    """Where the run has arrived, by URL: when (`at`), and size and SHA-256 of each of its `files`."""
    try:
        return (store.stamps(digest, STAMP) or {}).get("places", {})
    except InputError:
        return {}  # a damaged stamp: uploading again mends it


def _stamp(store: RunStore, remote: Remote, manifest: Manifest) -> None:
    """Note that a run that has ended has arrived."""
    if manifest.status is None or arrived(store, manifest.digest, remote.url):
        return
    files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in manifest.files.items()}
    known = {**places(store, manifest.digest), remote.url: {"at": now(), "files": files}}
    store.stamp(manifest.digest, STAMP, {"places": known})


def upload(
    store: RunStore, digest: str, remote: Remote, patience: Patience | None = None, *, thorough: bool = False
) -> Upload:
    """Bring the remote up to date with a run, going or ended; an ended one gets its stamp once all has arrived.

    thorough: read back what was there before too, and send again what is wrong. Raises RemoteError when the remote
    fails for longer than `patience`, RefusedError where it holds more of the run than this store does, InputError if
    the record here is damaged. The remote then holds what it held before.
    """
    patience = patience or Patience()
    if not (store.path(digest) / "config.json").exists():
        return "nothing"
    # Two uploads of one run at once would take each other's new files for leftovers.
    with FileLock(store.path(digest) / "upload.lock"), opened(store, digest) as local:
        return "nothing" if local is None else _Upload(store, digest, remote, patience, local).go(thorough)


class _Upload:
    def __init__(self, store: RunStore, digest: str, remote: Remote, patience: Patience, local: Local) -> None:
        self.store, self.digest, self.remote, self.patience, self.local = store, digest, remote, patience, local

    def go(self, thorough: bool) -> Upload:
        before = self._before()
        if before is not None:
            if self.local.status is before.status is None and self.local.step < 0 <= before.step:
                return "nothing"  # the older checkpoint stays until a newer one is whole
            self._refuse_loss(before)
        manifest = self._manifest(before)
        new = [
            name
            for name, entry in manifest.files.items()
            if before is None or name not in before.files or before.files[name] != entry
        ]
        again = [name for name in manifest.files if name not in new] if thorough else []
        for name in new:
            self._send(manifest, name)
        for name in again:
            if self._wrong(manifest, name):
                self._send(manifest, name)
        changed = bool(new) or before != manifest
        if changed:
            self._commit(manifest)
        # What a killed upload left behind goes with the rest, even when nothing was to be sent.
        if changed or thorough:
            self._tidy(manifest)
        _stamp(self.store, self.remote, manifest)
        return "uploaded" if changed else "there"

    def _before(self) -> Manifest | None:
        try:
            return self.patience.keep_trying(lambda: read_manifest(self.remote, self.digest))
        except RemoteError:
            raise
        except InputError:
            return None  # damaged: it is replaced, and everything is sent again

    def _refuse_loss(self, before: Manifest) -> None:
        local, where = self.local, f"{self.remote.url}: {folder_of(self.digest)}"
        mend = f"winnow pull {self.digest} --from {self.remote.url}"
        if before.status in ENDED_WELL and local.status not in ENDED_WELL:
            raise RefusedError(f"holds a {before.status} record, this store has none", file=where, mend=mend)
        if local.status is None and local.step < before.step:
            what = f"holds a checkpoint of step {before.step}, newer than any here"
            raise RefusedError(what, file=where, mend=mend)

    def _manifest(self, before: Manifest | None) -> Manifest:
        held = {} if before is None else {entry.at or name: entry.sum for name, entry in before.files.items()}
        files: dict[str, Entry] = {}
        for name, found in sorted(self.local.sums.items()):
            at = None if held.get(name, found) == found else f"{name}.{found.sha256[:12]}"
            if before is not None and name in before.files and before.files[name].sum == found:
                at = before.files[name].at
            files[name] = Entry(size=found.size, sha256=found.sha256, at=at)
        local = self.local
        return Manifest(digest=self.digest, label=local.label, seed=local.seed, status=local.status, files=files)

    def _send(self, manifest: Manifest, name: str) -> None:
        source, place, meant = self.local.files[name], manifest.place(name), manifest.files[name].sum
        if checksum(source) != meant:
            path = self.store.path(self.digest) / name
            raise InputError("is damaged: its SHA-256 is not its manifest's", file=path, mend="nothing was sent of it")

        def send() -> None:
            self.remote.put({place: source})
            found = self.remote.checksum(place)
            if found != meant:
                raise RemoteError(f"{place} has arrived damaged ({_difference(found, meant)})", file=self.remote.url)

        self.patience.keep_trying(send)

    def _wrong(self, manifest: Manifest, name: str) -> bool:
        def ask() -> bool:
            return self.remote.checksum(manifest.place(name)) != manifest.files[name].sum

        try:
            return self.patience.keep_trying(ask)
        except AbsentError:
            return True

    def _commit(self, manifest: Manifest) -> None:
        name, data = f"{folder_of(self.digest)}/{MANIFEST}", manifest.seal()

        def commit() -> None:
            self.remote.put_whole(name, data)
            if self.remote.read(name) != data:
                raise RemoteError(f"{name} has arrived damaged", file=self.remote.url)

        self.patience.keep_trying(commit)

    def _tidy(self, manifest: Manifest) -> None:
        named = {manifest.place(name) for name in manifest.files} | {f"{folder_of(self.digest)}/{MANIFEST}"}

        def tidy() -> None:
            self.remote.remove(name for name in self.remote.names(folder_of(self.digest)) if name not in named)

        self.patience.keep_trying(tidy)


def pull(
    store: RunStore, digest: str, remote: Remote, patience: Patience | None = None, note: Callable[[str], None] = silent
) -> Pull:
    """Bring a run from the remote into the store; `had` where the store knows at least as much of it already.

    A good record here is never replaced; a damaged one is. note: told what is kept. Raises InputError: no such run
    there, the run is going here, a file is damaged there (by name), the disk refuses.
    """
    patience = patience or Patience()
    manifest = patience.keep_trying(lambda: read_manifest(remote, digest))
    if manifest is None:
        raise InputError(
            f"there is no run {digest} at {remote.url}", mend=f"winnow pull --from {remote.url} lists them"
        )
    store.create()
    path = store.path(digest)
    make_folder(path)
    lock = FileLock(path / "lock")
    if not lock.try_acquire(patience=0.05):
        raise InputError(f"run {digest} is running", mend="stop it first")
    try:
        return _Pull(store, digest, remote, patience, manifest, note).go()
    finally:
        lock.release()


class _Pull:
    def __init__(
        self,
        store: RunStore,
        digest: str,
        remote: Remote,
        patience: Patience,
        manifest: Manifest,
        note: Callable[[str], None],
    ) -> None:
        self.store, self.digest, self.remote = store, digest, remote
        self.patience, self.manifest, self.note = patience, manifest, note
        self.path = store.path(digest)

    def go(self) -> Pull:
        manifest = self.manifest
        if self._have_as_much():
            return "had"
        first = [name for name in ("config.json", METRICS) if name in manifest.files]
        last = [name for name in manifest.files if name.endswith("/COMPLETE")]
        last += [name for name in ("checkpoints/latest", RUN_FILE) if name in manifest.files]
        middle = [name for name in manifest.files if name not in first and name not in last]
        fetched = sum([self._fetch(name) for name in [*first, *middle, *last]])
        _stamp(self.store, self.remote, manifest)
        return "pulled" if fetched else "had"

    def _have_as_much(self) -> bool:
        """Whether the record here stands, or the run here has come further."""
        theirs = self.manifest.files.get(RUN_FILE)
        try:
            record = self.store.record(self.digest)
        except InputError as damage:
            self.note(f"{damage.message}: {self.digest} is fetched anew")
            return False
        if record is not None and record.status in ENDED_WELL:
            own = checksum_of(self.path / RUN_FILE)
            if theirs is not None and theirs.sum == own:
                return False  # the same record: what is missing beside it is fetched
            self.note(f"{self.digest} has another record here, which stays")
            return True
        if self.manifest.status in ENDED_WELL:
            return False
        here = [f"checkpoints/{path.parent.name}/x" for path in self.path.glob("checkpoints/step-*/COMPLETE")]
        if record is not None or newest_step(dict.fromkeys(here)) >= self.manifest.step >= 0:
            self.note(f"{self.digest} has come as far here")
            return True
        return False

    def _fetch(self, name: str) -> bool:
        """Bring one file; False if it is here."""
        entry, target = self.manifest.files[name], self._target(name)
        if target.is_file() and checksum_of(target) == entry.sum:
            return False
        self.patience.keep_trying(lambda: self._download(name, target))
        return True

    def _target(self, name: str) -> Path:
        target = self.path / name
        for folder in (target, *target.parents):
            if folder == self.path:
                break
            if folder.is_symlink():
                raise InputError("is a symbolic link, which a store does not follow", file=folder)
        return target

    def _download(self, name: str, target: Path) -> None:
        """Under a temporary name until its SHA-256 is that of the manifest."""
        place, meant = self.manifest.place(name), self.manifest.files[name].sum
        make_folder(target.parent)
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        sha, size = hashlib.sha256(), 0
        try:
            with writing(target):
                descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                with contextlib.closing(self.remote.chunks(place)) as pieces:
                    for piece in pieces:
                        sha.update(piece)
                        size += len(piece)
                        if size > meant.size:
                            break
                        with writing(target):
                            write_all(descriptor, piece)
                with writing(target):
                    sync_file(descriptor)
            finally:
                os.close(descriptor)
            found = Sum(size, sha.hexdigest())
            if found != meant:
                what = f"{place} is damaged there ({_difference(found, meant)})"
                raise RemoteError(what, file=self.remote.url, mend="push it again from where it was made")
            self._accept(name, draft)
            with writing(target):
                os.replace(draft, target)
                sync_folder(target.parent)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def _accept(self, name: str, draft: Path) -> None:
        """A record that is whole, but of another run, is not this run's."""
        if name == RUN_FILE and unseal(draft.read_bytes(), draft).digest != self.digest:
            raise InputError("is the record of another run", file=f"{self.remote.url}: {self.manifest.place(name)}")


def find_runs(remote: Remote, text: str, patience: Patience | None = None) -> list[str]:
    """Digests of the runs at the remote that `text` names: the start of a digest, study/arm/seed, or "" for all."""
    patience = patience or Patience()
    found = patience.keep_trying(lambda: remote.folders("runs"))
    if "/" not in text:
        return [digest for digest in found if digest.startswith(text)]
    return [digest for digest, label in labels(remote, found, patience).items() if label == text]


def labels(remote: Remote, digests: list[str], patience: Patience | None = None) -> dict[str, str]:
    """study/arm/seed of runs at the remote, by digest; those whose manifest is damaged or missing are left out."""
    found: dict[str, str] = {}
    for digest in digests:
        try:
            manifest = (patience or Patience()).keep_trying(lambda digest=digest: read_manifest(remote, digest))
        except RemoteError:
            raise
        except InputError:
            continue
        if manifest is not None:
            found[digest] = f"{manifest.label.study}/{manifest.label.arm}/{manifest.seed}"
    return found


def checksum_of(path: Path) -> Sum:
    """Size and SHA-256 of a local file. Raises InputError if it cannot be read."""
    with writing(path, "cannot be read"), path.open("rb") as source:
        return checksum(source)


def now() -> str:
    """The present time: UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _difference(found: Sum, meant: Sum) -> str:
    if found.size != meant.size:
        return f"{found.size} bytes instead of {meant.size}"
    return f"SHA-256 {found.sha256[:12]}… instead of {meant.sha256[:12]}…"

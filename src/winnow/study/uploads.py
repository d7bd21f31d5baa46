"""Uploads beside training: one thread keeps a remote up to date with the runs of a launch.

Training never waits for it. A run that goes is looked at now and then and uploaded whenever it has a new checkpoint; a
run that has ended is uploaded until it has arrived. A remote that is dead holds nothing up: it is tried again while
runs go on, once more at the end, and then what is missing is reported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from winnow.errors import InputError
from winnow.records.artifacts import arrived, check, upload
from winnow.records.patience import Patience, RefusedError, RemoteError
from winnow.records.remote import Remote
from winnow.records.store import RunStore
from winnow.study.events import Event, RunKey, UploadsAwaited
from winnow.study.plan import Plan, load_plan, plan_lock, save_plan
from winnow.study.spec import Study

LOOK_SECONDS: Final = {"file": 1.0, "s3": 5.0, "hf": 120.0}
"""Between looks at the runs that go, by scheme: the hub counts commits."""
AGAIN_SECONDS: Final = 60.0
"""Before a remote that did not answer is tried again, while runs go on."""


class Uploads:
    """The uploads of one launch. Nothing is sent, or imported, before there is something to send."""

    def __init__(self, store: RunStore, remote: Remote, patience: Patience | None = None) -> None:
        self.store, self.remote = store, remote
        self._given_up = threading.Event()
        self._patience = replace(patience or Patience(), wait=self._given_up.wait)
        self._changed = threading.Condition()
        self._going: dict[str, str] = {}
        """Runs that go, and the newest checkpoint that was uploaded of each."""
        self._ended: dict[str, str] = {}
        """Runs that have ended and are not known to have arrived, and why not; "" = not tried yet."""
        self._closing = False
        self._dead = False
        """Whether the remote did not answer when it was last spoken to."""
        self._again_at = time.monotonic() + AGAIN_SECONDS
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None

    @property
    def url(self) -> str:
        """Where to, without credentials."""
        return self.remote.url

    def check(self) -> None:
        """Write, read and remove a file there. Raises InputError with the reason."""
        check(self.remote)

    def begin(self, digest: str) -> None:
        """A run has begun: its checkpoints are uploaded as they are made."""
        with self._changed:
            self._going.setdefault(digest, "")
            self._start()

    def end(self, digests: Iterable[str]) -> None:
        """Runs have ended, well or badly: their records are uploaded, unless they are known to be there."""
        missing = [
            digest
            for digest in digests
            if self.store.record(digest) is not None and not arrived(self.store, digest, self.url)
        ]
        with self._changed:
            for digest in missing:
                self._going.pop(digest, None)
                self._ended.setdefault(digest, "")
            if missing:
                self._start()
            self._changed.notify_all()

    def waiting(self) -> tuple[str, ...]:
        """Runs that have ended and have not arrived yet."""
        with self._changed:
            return tuple(self._ended)

    def finish(self) -> dict[str, str]:
        """Wait for the last uploads; the runs that have not arrived, and why."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            while self._thread.is_alive():
                self._thread.join(0.2)  # so that Ctrl-C is heard
        if self._fault is not None:
            raise self._fault
        return dict(self._ended)

    def abandon(self) -> None:
        """End without waiting for what is not uploaded yet."""
        self._given_up.set()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(5.0)

    # In the thread

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="winnow-uploads", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            while not self._given_up.is_set() and self._go_round():
                pass
        except Exception as error:  # a fault of ours: `finish` raises it where somebody sees it
            self._fault = error

    def _go_round(self) -> bool:
        """Upload what there is, then wait for more; False when that was the last time."""
        with self._changed:
            closing = self._closing
            again = closing or time.monotonic() >= self._again_at
            ended = [digest for digest, why in self._ended.items() if again or not why]
            going = [] if closing else list(self._going)
        if again or not self._dead:
            self._dead = not self._round(ended, going)
        with self._changed:
            if again or self._dead:
                self._again_at = time.monotonic() + AGAIN_SECONDS
            fresh = any(not why for why in self._ended.values()) and not self._dead
            if not closing and not self._closing and not fresh:
                self._changed.wait(LOOK_SECONDS[self.remote.scheme])
        return not closing

    def _round(self, ended: list[str], going: list[str]) -> bool:
        """Upload what there is; whether the remote answers."""
        for place, digest in enumerate(ended):
            why = self._try(digest, self._patience)
            with self._changed:
                if why is None:
                    del self._ended[digest]
                else:
                    self._ended[digest] = str(why)
            if why is not None and _dead(why):
                with self._changed:
                    for other in ended[place + 1 :]:
                        self._ended[other] = str(why)
                return False
        for digest in going:
            newest = newest_checkpoint(self.store.path(digest))
            if newest in ("", self._going.get(digest)):
                continue
            why = self._try(digest, replace(self._patience, attempts=2))
            if why is None:
                with self._changed:
                    if digest in self._going:
                        self._going[digest] = newest
            elif _dead(why):
                return False
        return True

    def _try(self, digest: str, patience: Patience) -> InputError | None:
        try:
            upload(self.store, digest, self.remote, patience)
        except InputError as error:
            return error
        return None


def note_place(store: RunStore, study: Study, plan: Plan, uploads: Uploads | None) -> Plan:
    """Let the plan know where the runs go, so that `status` can say which have not arrived. Returns the plan."""
    url = None if uploads is None else uploads.url
    if plan.artifacts == url:
        return plan
    with plan_lock(store, study):
        plan = (load_plan(store, study) or plan).replace({"artifacts": url})
        save_plan(store, study, plan)
    return plan


def await_arrival(
    uploads: Uploads | None, study: Study, plan: Plan, emit: Callable[[Event], None]
) -> dict[RunKey, str]:
    """Wait for the last uploads, those that an earlier launch has missed among them; what has not arrived, and why."""
    if uploads is None:
        return {}
    keys = [RunKey(arm, seed, plan.run(arm, seed)) for arm in study.arms for seed in study.seeds]
    runs = {key.digest: key for key in keys}
    uploads.end(runs)
    waiting = tuple(runs[digest] for digest in uploads.waiting() if digest in runs)
    if waiting:
        emit(UploadsAwaited(waiting, uploads.url))
    return {runs[digest]: why for digest, why in uploads.finish().items() if digest in runs}


def _dead(error: InputError) -> bool:
    return isinstance(error, RemoteError) and not isinstance(error, RefusedError)


def newest_checkpoint(path: Path) -> str:
    """Name of the newest whole checkpoint in a run's folder; empty if there is none."""
    return max((mark.parent.name for mark in path.glob("checkpoints/step-*/COMPLETE")), default="")

"""The child of `test_upload_kills`: trains, saves and uploads until it is killed, and says what has arrived."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Generator, Iterable, Mapping
from typing import BinaryIO

from tests.records.fabricated import go_on, identity, record

from winnow.errors import InputError
from winnow.records.artifacts import pull, upload
from winnow.records.patience import Patience
from winnow.records.remote import Remote
from winnow.records.store import RunStore

N_RUNS = 3
STEPS = 12
HASTY = Patience(attempts=2, first=0.001)


class Ticking(Remote):
    """Says so before each thing that it does to the remote."""

    def put(self, files: Mapping[str, BinaryIO]) -> None:
        tick()
        super().put(files)

    def put_whole(self, name: str, data: bytes) -> None:
        tick()
        super().put_whole(name, data)

    def chunks(self, name: str) -> Generator[bytes]:
        tick()
        yield from super().chunks(name)

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            tick()
            super().remove([name])


def tick() -> None:
    """One more step that the parent may kill at: so its kills do not depend on how fast the machine is."""
    sys.stdout.write("tick -\n")
    sys.stdout.flush()


def work(root: str, url: str, seed: int) -> None:
    """Run after run, in random order, each uploaded by another thread while it goes; now and then one is pulled."""
    draw, store, remote = random.Random(seed), RunStore(root), Ticking(url)
    print("ready", flush=True)
    while True:
        digest = f"abcd{draw.randrange(N_RUNS):04x}"
        run = store.claim(identity(digest))
        if run is None:
            if draw.random() < 0.5:
                upload(store, digest, remote, HASTY)  # the one before may have been killed in between
                store.remove([digest])
                pull(store, digest, remote, HASTY)
                print(f"pulled {digest}", flush=True)
            else:
                run = store.claim(identity(digest), again=True)
            if run is None:
                continue
        with run:
            # As the trainer does it: from the newest checkpoint that the journal reaches.
            whole = [int(path.parent.name[5:]) for path in run.checkpoints.glob("step-*/COMPLETE")]
            again = (run.path / "config.json").exists() and run.journal.rows > max(whole, default=0)
            if again or max(whole, default=0) >= STEPS:
                lines = run.journal.path.read_bytes().splitlines(keepends=True)[: min(max(whole, default=0), STEPS)]
                run.journal.truncate(sum(map(len, lines)))
            ended = threading.Event()
            beside = threading.Thread(target=keep_up, args=(store, digest, remote, ended))
            beside.start()
            try:
                while run.journal.rows < STEPS:
                    tick()
                    go_on(run, 1)
                run.finish(record(digest, STEPS))
            finally:
                ended.set()
                beside.join()
        upload(store, digest, remote, HASTY)
        print(f"arrived {digest}", flush=True)


def keep_up(store: RunStore, digest: str, remote: Remote, ended: threading.Event) -> None:
    """Upload the run as it goes."""
    while not ended.is_set():
        try:
            upload(store, digest, remote, HASTY)
        except InputError:
            return  # the remote has a better record: it is brought up to date at the end


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]))

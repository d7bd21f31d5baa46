"""The child of `test_kills`: makes, fails and removes runs until it is killed, and says what it has done."""

from __future__ import annotations

import random
import sys

from tests.fakes import fake_provenance

from winnow.records.run import Label, RunIdentity, RunRecord, Status
from winnow.records.store import RunStore

N_RUNS = 5
ROWS = [{"step": step, "val/ce": 5.0 - step / 8} for step in range(6)]


def ended(digest: str, status: Status) -> RunRecord:
    return RunRecord(
        digest=digest,
        status=status,
        label=Label(study="kills", arm="a"),
        config={"a": 1},
        seed=0,
        data="d",
        steps_asked=6,
        steps_done=6,
        final={"val/ce": 2.0},
        provenance=fake_provenance(),
    )


def work(root: str, seed: int) -> None:
    """The child: runs in random order until it is killed."""
    draw = random.Random(seed)
    store = RunStore(root)
    print("ready", flush=True)
    while True:
        digest = f"{draw.randrange(N_RUNS):04x}"
        identity = RunIdentity(digest=digest, config={"a": 1}, seed=0, data="d", label=Label(study="kills", arm="a"))
        run = store.claim(identity)
        if run is None:
            print(f"removing {digest}", flush=True)
            store.remove([digest])
            print(f"removed {digest}", flush=True)
            continue
        with run:
            print(f"claimed {digest}", flush=True)
            run.journal.truncate(0)
            for row in ROWS:
                run.journal.append(row)
                if row["step"] == 2:
                    run.journal.sync()
                    print(f"synced {digest}", flush=True)
            status: Status = "failed" if draw.random() < 0.3 else "finished"
            run.finish(ended(digest, status))
            print(f"{status} {digest}", flush=True)
        if draw.random() < 0.2:
            store.records()


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))

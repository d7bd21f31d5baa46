"""Runs with checkpoints that nobody trained, byte for byte in the form of real ones. No torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from tests.fakes import fake_provenance

from winnow.records.manifest import folder_of, parse_manifest
from winnow.records.patience import Patience
from winnow.records.run import Label, RunIdentity, RunRecord, Status
from winnow.records.store import OpenRun, RunStore

HASTY = Patience(attempts=4, first=0.01, most=0.02)
RUN = "abcd0001"


def identity(digest: str = "abcd0001", arm: str = "a") -> RunIdentity:
    return RunIdentity(digest=digest, config={"a": 1}, seed=0, data="d", label=Label(study="s", arm=arm))


def record(digest: str, steps: int, status: Status = "finished") -> RunRecord:
    return RunRecord(
        digest=digest,
        status=status,
        label=Label(study="s", arm="a"),
        config={"a": 1},
        seed=0,
        data="d",
        steps_asked=steps,
        steps_done=steps,
        final={"val/ce": 2.0},
        provenance=fake_provenance(),
    )


def save(run: OpenRun, step: int, *, keep: int = 2, complete: bool = True, size: int = 3000) -> Path:
    """A checkpoint as the trainer writes one: files, manifest, COMPLETE, then the older ones go."""
    run.checkpoints.mkdir(exist_ok=True)
    draft, final = run.checkpoints / f".tmp-step-{step:08d}", run.checkpoints / f"step-{step:08d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    contents = {
        "weights.safetensors": hashlib.sha256(f"{run.identity.digest} {step}".encode()).digest() * (size // 32),
        "progress.json": json.dumps({"journal": run.journal.offset(), "step": step}).encode(),
    }
    files = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    manifest = json.dumps({"version": 1, "digest": run.identity.digest, "step": step, "files": files}).encode()
    for name, data in {**contents, "manifest.json": manifest}.items():
        (draft / name).write_bytes(data)
    if final.exists():
        shutil.rmtree(final)
    draft.rename(final)
    if complete:
        (final / "COMPLETE").write_text(hashlib.sha256(manifest).hexdigest())
        (run.checkpoints / "latest").write_text(final.name)
        for old in sorted(path for path in run.checkpoints.glob("step-*") if (path / "COMPLETE").exists())[:-keep]:
            (old / "COMPLETE").unlink()
            shutil.rmtree(old)
    return final


def go_on(run: OpenRun, steps: int, *, every: int = 2) -> None:
    """So many further steps, with a checkpoint after each `every`."""
    for _ in range(steps):
        run.journal.append({"step": run.journal.rows, "val/ce": 5.0 - run.journal.rows / 8})
        if run.journal.rows % every == 0:
            run.journal.sync()
            save(run, run.journal.rows)


def finished(store: RunStore, digest: str = "abcd0001", steps: int = 4) -> str:
    """A run that has ended well, with its last two checkpoints."""
    run = store.claim(identity(digest))
    assert run is not None
    with run:
        run.log.write_text("started\n")
        go_on(run, steps)
        run.finish(record(digest, steps))
    return digest


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run that says something of the run."""
    own = ("lock", "upload.lock", "uploaded.json")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in own
    }


def assert_whole(root: Path, digest: str = "abcd0001") -> int:
    """Whatever the manifest at a folder names is there, byte for byte; the newest step, -2 = no manifest."""
    path = root / folder_of(digest) / "manifest.json"
    if not path.exists():
        return -2
    manifest = parse_manifest(path.read_bytes(), digest, str(path))
    for name, entry in manifest.files.items():
        data = (root / manifest.place(name)).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == entry.sum, name
    complete = [name for name in manifest.files if name.endswith("/COMPLETE")]
    assert len(complete) == len({name.split("/")[1] for name in manifest.files if name.count("/") == 2})
    return manifest.step

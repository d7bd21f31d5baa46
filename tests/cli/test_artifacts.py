"""push, pull, `run --artifacts` and `run --then`, with real runs, a real S3 server and planted secrets."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.cli.tiny import STUDY, WINNOW, Ended, winnow, winnow_process, write_study
from tests.records.fabricated import HASTY, assert_whole, content, finished
from tests.records.s3_server import Fault, S3Server
from tests.study.studies import fake

from winnow.cli.afterwards import run_command
from winnow.records import remote
from winnow.records.artifacts import pull
from winnow.records.remote import Remote
from winnow.records.store import RunStore
from winnow.study import launch
from winnow.study import options as study_options
from winnow.study.uploads import Uploads

SHORT = {"seeds = [0, 1, 2]\nlooks = [2, 3]": "seeds = [0]\nlooks = [1]"}
URL_KEY, URL_SECRET = "KEYHUSH1KEYHUSH1", "urlHUSH2/urlHUSH2"
SECRETS = {
    "AWS_SESSION_TOKEN": "sessionHUSH3sessionHUSH3",
    "AWS_SECRET_ACCESS_KEY": "accessHUSH4accessHUSH4",
    "AWS_ACCESS_KEY_ID": "AKIDHUSH5AKIDHUSH5",
    "HF_TOKEN": "hf_HUSH6hfHUSH6",
}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture(scope="module")
def made(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended, str]:
    """A real study, run in a process of its own, with a secret in every place that there is for one."""
    folder = tmp_path_factory.mktemp("made")
    write_study(folder, changes=SHORT)
    url = server.bucket("secrets").replace("s3://", f"s3://{URL_KEY}:{URL_SECRET.replace('/', '%2F')}@")
    then = f"{sys.executable} -c \"open('done', 'w').write('ran')\" --token argvHUSH7argvHUSH7"
    ended = winnow_process("run", "tiny.toml", "--jobs", 1, "--artifacts", url, "--then", then, cwd=folder)
    return folder, ended, server.url("secrets")


def test_a_study_arrives_and_then_the_command_runs(made: tuple[Path, Ended, str]) -> None:
    folder, ended, url = made
    assert ended.code == 0, ended.err
    assert (folder / "done").read_text() == "ran"
    store = RunStore(folder / "winnow-store")
    (digest,) = store.digests()
    sent = {name.removeprefix(f"runs/{digest}/") for name in Remote(url).names()}
    assert sent == {*content(store.path(digest)), "manifest.json"}
    shown = json.loads(winnow("show", digest, "--json", cwd=folder).out)
    assert shown["state"] == "finished"
    assert set(shown["uploaded"]) == {url}


def test_no_secret_is_in_any_byte_that_was_written(made: tuple[Path, Ended, str]) -> None:
    folder, ended, url = made
    assert "HUSH" not in ended.out + ended.err
    written = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    remote = Remote(url)
    sent = {name: remote.read(name) for name in remote.names()}
    assert len(written) > 12
    assert len(sent) > 8
    for name, data in {**written, **sent}.items():
        assert b"HUSH" not in data, name
        assert b"HUSH" not in name.encode()
    (record,) = RunStore(folder / "winnow-store").records().values()
    assert f"--artifacts {url.replace('s3://', 's3://[redacted]@')}" in " ".join(record.provenance.argv)


def test_pull_brings_a_study_to_another_machine(made: tuple[Path, Ended, str], tmp_path: Path) -> None:
    folder, _, url = made
    write_study(tmp_path, changes=SHORT)
    listed = json.loads(winnow("pull", "--from", url, "--json", cwd=tmp_path).out)
    assert list(listed.values()) == ["tiny/control/0"]
    ended = winnow("pull", "tiny.toml", "--from", url, cwd=tmp_path)
    assert ended.code == 0, ended.err
    status = json.loads(winnow("status", "tiny.toml", "--json", cwd=tmp_path).out)[0]
    assert status["arms"] == {"control": {"finished": [0]}}
    ours, theirs = (RunStore(where / "winnow-store") for where in (tmp_path, folder))
    assert ours.records() == theirs.records()
    assert winnow("pull", "tiny/control/0", "--from", url, cwd=tmp_path).out.endswith("  is here already\n")


def test_status_and_show_say_what_has_not_arrived(made: tuple[Path, Ended, str], tmp_path: Path) -> None:
    shutil.copytree(made[0] / "winnow-store", tmp_path / "winnow-store")
    study = write_study(tmp_path, changes=SHORT)
    study.write_text(f'artifacts = "file://{tmp_path}/remote"\n{study.read_text()}')
    status = json.loads(winnow("status", "tiny.toml", "--json", cwd=tmp_path).out)[0]
    assert status["arms"] == {"control": {"finished, not uploaded": [0]}}
    assert "finished, not uploaded" in winnow("status", "tiny.toml", cwd=tmp_path).out
    again = winnow("run", "tiny.toml", cwd=tmp_path)
    assert again.code == 0, again.err
    assert f"1 run still to be uploaded to file://{tmp_path}/remote" in again.err
    status = json.loads(winnow("status", "tiny.toml", "--json", cwd=tmp_path).out)[0]
    assert status["arms"] == {"control": {"finished": [0]}}
    stamp = next((tmp_path / "winnow-store").glob("runs/*/uploaded.json"))
    assert set(json.loads(stamp.read_text())["places"]) == {made[2], f"file://{tmp_path}/remote"}
    stamp.unlink()
    assert "finished, not uploaded" in winnow("show", "tiny/control/0", cwd=tmp_path).out


def test_a_dead_remote_is_reported_at_the_end_with_what_mends_it(
    made: tuple[Path, Ended, str], tmp_path: Path, server: S3Server
) -> None:
    shutil.copytree(made[0] / "winnow-store", tmp_path / "winnow-store")
    write_study(tmp_path, changes=SHORT)
    url = server.bucket("denied")
    server.faults.append(Fault("error", status="403 Forbidden", code="AccessDenied"))
    then = f"{sys.executable} -c \"open('done', 'w')\""
    ended = winnow("run", "tiny.toml", "--artifacts", url, "--then", then, cwd=tmp_path)
    server.faults.clear()
    assert ended.code == 1
    assert f"error: 1 run not uploaded to {url}: control seed 0" in ended.err
    assert "permission denied" in ended.err
    assert f"winnow push tiny.toml --to {url}" in ended.err
    assert "--then was not run: not finished, or not uploaded: tiny: control seed 0" in ended.err
    assert not (tmp_path / "done").exists()
    pushed = winnow("push", "tiny.toml", "--to", url, cwd=tmp_path)
    assert pushed.code == 0, pushed.err
    ended = winnow("run", "tiny.toml", "--artifacts", url, "--then", then, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("exit(0)", 0, None),
        ("exit(7)", 7, "ended with 7"),
        ("import os; os.kill(os.getpid(), 9)", 137, "was killed by SIGKILL"),
    ],
)
def test_the_code_of_the_last_command_is_winnows_and_said(
    made: tuple[Path, Ended, str], tmp_path: Path, command: str, code: int, said: str | None
) -> None:
    shutil.copytree(made[0] / "winnow-store", tmp_path / "winnow-store")
    write_study(tmp_path, changes=SHORT)
    ended = winnow("run", "tiny.toml", "--then", f'{sys.executable} -c "{command}"', cwd=tmp_path)
    assert ended.code == code, ended.err
    assert [line for line in ended.err.splitlines() if "--then" in line] == (
        [] if said is None else [f"--then: {sys.executable!r} {said}"]
    )


def test_what_the_last_command_prints_is_not_between_the_json(capfd: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-c", "print(1)"]
    assert run_command(words, quiet=True) == run_command(words, quiet=False) == 0
    assert capfd.readouterr() == ("1\n", "1\n")


def test_runs_that_wait_for_their_parents_keep_the_last_command_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look is done, the claim is open, and the third run of the parent was never made."""
    write_study(tmp_path, name="first.toml", changes={'id = "tiny"': 'id = "first"'})
    ended = winnow("run", "first.toml", "--jobs", 1, "--seeds", "0..1", cwd=tmp_path)
    assert ended.code == 0, ended.err
    model = next(line for line in STUDY.splitlines() if line.startswith("base.model"))
    child = 'base.init_from = { run = "first/control" }'
    claim = 'claims.c = "slow better-than control on val/ce by 0.001"\n'
    write_study(tmp_path, f'control = "control"\narms.slow = {{ train.lr = 0.009 }}\n{claim}', changes={model: child})
    options = fake(tmp_path, {}, monkeypatch)
    monkeypatch.setattr(study_options, "Options", lambda **given: replace(options, **given))
    then = f"{sys.executable} -c \"open('done', 'w')\""
    ended = winnow("run", "tiny.toml", "--then", then, cwd=tmp_path)
    assert not (tmp_path / "done").exists()
    assert "look 2 of 2 waits: runs start from runs that are not finished: first/control seed 2" in ended.err
    assert "--then was not run: not finished, or not uploaded: tiny: control seed 2, tiny: slow seed 2" in ended.err
    assert "waiting: control seed 2, slow seed 2; the same command goes on when their parents are there" in ended.out
    assert ended.code == 1


def test_a_run_that_fails_keeps_the_last_command_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path, changes=SHORT)
    options = fake(tmp_path, {"control": {"fail": 1}}, monkeypatch)
    monkeypatch.setattr(study_options, "Options", lambda **given: replace(options, **given))
    then = f"{sys.executable} -c \"open('done', 'w')\""
    url = f"file://{tmp_path}/remote"
    ended = winnow("run", study, "--jobs", 1, "--artifacts", url, "--then", then, cwd=tmp_path)
    assert ended.code == 1
    assert "--then was not run: not finished, or not uploaded: tiny: control seed 0" in ended.err
    assert not (tmp_path / "done").exists()
    ended = winnow("run", study, "--jobs", 1, "--artifacts", url, "--then", then, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("how", "words"), [("full disk", "No space left on device; make room there"), ("dead remote", "cannot be written")]
)
def test_a_full_disk_and_a_dead_remote_stop_nothing_but_the_upload(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    study = write_study(tmp_path, changes=SHORT)
    options = fake(tmp_path, {}, monkeypatch)
    monkeypatch.setattr(study_options, "Options", lambda **given: replace(options, **given))
    monkeypatch.setattr(launch, "Uploads", lambda store, remote: Uploads(store, remote, HASTY))
    then = f"{sys.executable} -c \"open('done', 'w')\""
    url = f"file://{tmp_path}/remote" if how == "full disk" else server.bucket("dies")
    command = ("run", study, "--jobs", 1, "--artifacts", url, "--then", then)
    with monkeypatch.context() as patch:
        if how == "full disk":
            patch.setattr(remote.shutil, "copyfileobj", copy_to_a_full_disk)
        else:
            server.faults.append(Fault("drop", after=1))  # the preflight arrives, nothing after it
        ended = winnow(*command, cwd=tmp_path)
    server.faults.clear()
    assert ended.code == 1, ended.err
    assert f"error: 1 run not uploaded to {url}: control seed 0" in ended.err
    assert words in ended.err
    assert "--then was not run" in ended.err
    assert not (tmp_path / "done").exists()
    (record,) = RunStore(tmp_path / "winnow-store").records().values()
    assert record.status == "finished"
    ended = winnow(*command, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert (tmp_path / "done").exists()


def copy_to_a_full_disk(source: BinaryIO, into: BinaryIO, length: int) -> None:
    """Room for what the preflight writes, and for the first half of anything else."""
    data = source.read()
    if len(data) > 64:
        into.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    into.write(data)


@pytest.mark.parametrize(
    ("then", "words"),
    [("", "is empty"), ("echo 'x", "is no command"), ("/nowhere/x", "--then: there is no such program")],
)
def test_a_command_that_could_not_run_is_refused_at_once(tmp_path: Path, then: str, words: str) -> None:
    write_study(tmp_path, changes=SHORT)
    ended = winnow("run", "tiny.toml", "--then", then, cwd=tmp_path)
    assert ended.code == 2
    assert words in ended.err
    assert not (tmp_path / "winnow-store").exists()


def test_a_place_of_no_use_refuses_the_study_before_its_first_step(tmp_path: Path, server: S3Server) -> None:
    write_study(tmp_path, changes=SHORT)
    ended = winnow("run", "tiny.toml", "--artifacts", server.url("nowhere"), cwd=tmp_path)
    assert ended.code == 2
    assert "there is no such bucket; make it first, or correct the URL" in ended.err
    assert RunStore(tmp_path / "winnow-store").digests() == []


def test_push_and_pull_name_what_is_wrong_and_do_the_rest(tmp_path: Path) -> None:
    store, url = RunStore(tmp_path / "store"), f"file://{tmp_path}/remote"
    for number in range(3):
        finished(store, f"abcd000{number}")
    pushed = winnow("push", "abcd0000", "abcd0001", "abcd0002", "--to", url, "--store", store.root, cwd=tmp_path)
    assert pushed.code == 0, pushed.err
    assert pushed.out.count("uploaded and read back") == 3
    weights = tmp_path / "remote/runs/abcd0001/checkpoints/step-00000004/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    names = ("abcd0000", "abcd0001", "abcd0002")
    pulled = winnow("pull", *names, "--from", url, "--store", tmp_path / "other", "--json", cwd=tmp_path)
    assert pulled.code == 1
    found = json.loads(pulled.out)
    assert found["done"] == {"abcd0000": "pulled", "abcd0002": "pulled"}
    assert "step-00000004/weights.safetensors is damaged there" in found["failed"]["abcd0001"]
    mended = winnow("push", "abcd0001", "--to", url, "--store", store.root, cwd=tmp_path)
    assert mended.code == 0
    assert winnow("pull", "abcd0001", "--from", url, "--store", tmp_path / "other", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["push", "abcd"], "--to: no place is given"),
        (["pull", "abcd"], "--from: no place is given"),
        (["push", "abcd", "--to", "nowhere"], "is no place for artifacts"),
        (["pull", "abcd", "--from", "file:///nowhere/at/all"], "there is no run 'abcd' at file:///nowhere/at/all"),
    ],
)
def test_a_wrong_name_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    finished(RunStore(tmp_path / "winnow-store"))
    ended = winnow(*arguments, cwd=tmp_path)
    assert ended.code == 2
    assert words in ended.err
    assert ended.err.count("\n") == 1


def rows_of(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("winnow-store/runs/*/metrics.0.jsonl"))


def kill_in_the_midst(command: list[str], folder: Path, seconds: float) -> bool:
    """Start a launch and kill it so long after its runs have gone on; False if it had ended before."""
    before = rows_of(folder)
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        while rows_of(folder) == before and launcher.poll() is None:
            time.sleep(0.05)
        time.sleep(seconds)
        ended = launcher.poll() is not None
        launcher.kill()
    return not ended


@pytest.mark.soak
def test_a_launch_that_is_killed_again_and_again_arrives_as_if_it_had_never_been(tmp_path: Path) -> None:
    """SIGKILL to the launcher, workers left to themselves: the same runs, bit for bit, here and at the remote."""
    longer = {**SHORT, "train = { steps = 6": "train = { checkpoint_every = 10, steps = 400"}
    outcomes: list[dict[str, tuple[str | None, str | None]]] = []
    draw, stopped = random.Random(7), 0
    for name, kills in (("whole", 0), ("killed", 20)):
        folder = tmp_path / name
        folder.mkdir()
        write_study(folder, "arms.b = { train.lr = 0.02 }\n", changes=longer)
        command = [*WINNOW, "run", "tiny.toml", "--jobs", "2", "--artifacts", f"file://{folder}/remote"]
        for _ in range(kills):
            stopped += kill_in_the_midst(command, folder, draw.uniform(0.0, 1.0))
            for run in (folder / "remote" / "runs").glob("*"):
                assert_whole(folder / "remote", run.name)
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        store = RunStore(folder / "winnow-store")
        outcomes.append({digest: (record.weights, record.trace) for digest, record in store.records().items()})
        other = RunStore(folder / "other")
        for digest in store.digests():
            assert assert_whole(folder / "remote", digest) == 400
            assert pull(other, digest, Remote(f"file://{folder}/remote")) == "pulled"
        assert other.records() == store.records()
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == 2
    assert stopped > 2

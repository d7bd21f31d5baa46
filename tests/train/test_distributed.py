"""A run on several ranks: as in one process up to the order of additions, and ended together whatever happens."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.train.runs import go_on as go_on_alone
from tests.train.runs import identity, make, table
from tests.train.test_worker import with_source

from winnow.errors import InputError
from winnow.records.store import RunStore
from winnow.train import ranks as train_ranks
from winnow.train.config import RunConfig, split_ranks
from winnow.train.sources import load_sources
from winnow.train.verify import verify_resume
from winnow.train.worker import Worker

Ask = Callable[..., dict[str, Any]]

CLOSE = 1e-5
"""Relative, after 20 updates in fp32. Additions in another order move these numbers by up to 2e-6; rows that are drawn
twice, a sum that is a mean or a weight of one rank alone move them by 1e-3 and more."""
BASE: dict[str, Any] = {
    "train__steps": 20,
    "model__n_layers": 2,
    "evaluation__every": 10,
    "evaluation__inside": 10,
    "evaluation__tokens": 17000,  # three batches, which no number of ranks shares evenly
}
CASES: dict[str, dict[str, Any]] = {
    # Unequal target weights, a penalty that is a mean over rows, several passes.
    "unequal": {"task__kind": "masked", "model__attention": {"kind": "charged"}, "train__micro_batch": 2},
    "plain": {},
    "unclipped": {"train__clip": None, "train__micro_batch": 1},
    "frozen": {"model__attention": {"kind": "charged", "lr_multiplier": 0.0}},
    "selective": {"model__attention": {"kind": "selective", "penalty": {}}, "train__micro_batch": 2},
    "residual": {"model__attention": {"kind": "selective", "residual_scores": True}},
    "recompute": {"train__recompute": True, "model__attention": {"kind": "selective"}},
    "untied": {"model__tied": False},
    # A parameter with a gradient on some ranks only, and one with none at all.
    "one-sided": {"model__attention": {"kind": "one-sided", "bound": 0.25, "orphan": True}, "train__micro_batch": 4},
}


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Sends a request to `rank_forker` and returns the answer."""
    forker = Path(__file__).with_name("rank_forker.py")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join([str(forker.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    server = subprocess.Popen(
        [sys.executable, str(forker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    requests, answers = server.stdin, server.stdout
    known: dict[str, str] = {}
    """What one process does is asked once."""
    assert requests is not None
    assert answers is not None

    def send(config: dict[str, Any], ranks: int = 1, parallel: str = "ddp", steps: int = 20, **more: Any) -> Any:
        asked = json.dumps({"config": config, "seed": 0, "ranks": ranks, "parallel": parallel, "steps": steps, **more})
        if ranks > 1 or more or asked not in known:
            requests.write(asked + "\n")
            requests.flush()
            known[asked] = answers.readline()
        return json.loads(known[asked])

    try:
        yield send
    finally:
        requests.close()
        server.wait()
        answers.close()


def assert_close(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """The same run up to the order of float additions."""
    assert "error" not in found, found["error"]
    for part in ("updates", "evaluations", "insides"):
        assert len(found[part]) == len(whole[part])
        for here, there in zip(found[part], whole[part], strict=True):
            # max_diff is a rounding error itself.
            kept = {name: value for name, value in there.items() if not name.endswith("max_diff")}
            assert {name: here[name] for name in kept} == pytest.approx(kept, rel=CLOSE)
    for part in ("weights", "moments"):
        assert found[part] == pytest.approx(whole[part], rel=CLOSE)
    assert found["unseen"] == whole["unseen"]
    assert found["ratios"].keys() == whole["ratios"].keys()
    for place, ratios in whole["ratios"].items():
        if ".bias[k." not in place:  # shifts all scores of a query alike: its gradient is a rounding error
            assert found["ratios"][place] == pytest.approx(ratios, rel=100 * CLOSE), place  # differences of values


def check(ask: Ask, text: Path, case: str, ranks: int, parallel: str) -> None:
    config = table(text, **BASE, **CASES[case])
    whole, found = ask(config), ask(config, ranks, parallel)
    assert_close(found, whole)
    if parallel == "ddp":  # parts of a mechanism are not compared with its definition
        assert found["findings"] == whole["findings"]


@pytest.mark.parametrize(("ranks", "parallel"), [(2, "ddp"), (2, "fsdp"), (4, "ddp")])
def test_ranks_are_one_process_up_to_the_order_of_additions(ask: Ask, text: Path, ranks: int, parallel: str) -> None:
    check(ask, text, "unequal", ranks, parallel)


def test_a_gradient_on_some_ranks_only(ask: Ask, text: Path) -> None:
    check(ask, text, "one-sided", 2, "fsdp")


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_case(ask: Ask, text: Path, case: str, ranks: int, parallel: str) -> None:
    check(ask, text, case, ranks, parallel)


def go_on(ask: Ask, text: Path, folder: Path, *parts: tuple[int, str]) -> None:
    """One run in parts, each on ranks of its own; the last one ends it."""
    config = table(text, **BASE, **CASES["unequal"])
    whole, before, step = ask(config), {}, 0
    for number, part in enumerate(parts[:-1], 1):
        step = 20 * number // len(parts)
        ask(config, *part, steps=step, to=str(folder / part[1] / str(number)), **before)
        before = {"from": str(folder / part[1] / str(number))}
        files = {path.name for path in (Path(before["from"]) / f"step-{step:08d}").iterdir()}
        assert files == {"weights.safetensors", "moments.safetensors", "progress.json", "manifest.json", "COMPLETE"}
    rest = ask(config, *parts[-1], **before)
    assert len(rest["updates"]) == 20 - step
    for part in ("updates", "evaluations", "insides"):
        whole[part] = whole[part][len(whole[part]) - len(rest[part]) :]
    assert_close(rest, whole)


def test_from_parts_on_two_ranks_to_one_process(ask: Ask, text: Path, tmp_path: Path) -> None:
    go_on(ask, text, tmp_path, (2, "fsdp"), (1, "ddp"))


@pytest.mark.soak
@pytest.mark.parametrize(
    "parts",
    [
        ((1, "ddp"), (4, "ddp")),
        ((1, "ddp"), (4, "fsdp")),
        ((2, "ddp"), (4, "fsdp")),
        ((4, "fsdp"), (2, "ddp")),
        ((2, "ddp"), (1, "ddp"), (4, "ddp")),
        ((2, "fsdp"), (1, "ddp"), (4, "fsdp")),
    ],
    ids=str,
)
def test_from_any_number_of_ranks_to_any(
    ask: Ask, text: Path, tmp_path: Path, parts: tuple[tuple[int, str], ...]
) -> None:
    go_on(ask, text, tmp_path, *parts)


@pytest.mark.parametrize(
    ("parallel", "mode"),
    [("ddp", "restart"), pytest.param("fsdp", "restart", marks=pytest.mark.soak),
     pytest.param("ddp", "resume", marks=pytest.mark.soak), pytest.param("fsdp", "resume", marks=pytest.mark.soak)],
)  # fmt: skip
def test_a_run_with_a_parent_and_a_graft(ask: Ask, text: Path, tmp_path: Path, parallel: str, mode: str) -> None:
    config = table(text, **BASE)
    ask(config, steps=10, to=str(tmp_path / "parent"))
    start = {"run": "test/control", "identity": "0" * 64, "mode": mode, "step": 10}
    graft = [] if mode == "resume" else [{"kind": "add-heads", "n": 2, "init": "ko_zero"}]
    child = {**config, "init_from": start, "graft": graft}
    parent = {"config": config, "from": str(tmp_path / "parent")}
    whole, found = (ask(child, ranks, parallel, parent=parent) for ranks in (1, 2))
    assert_close(found, whole)
    assert len(whole["updates"]) == (10 if mode == "resume" else 20)
    untouched = ask(config)["updates"]
    assert (whole["updates"] == untouched[10:]) == (mode == "resume")


@pytest.mark.soak
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_first_bad_tensor_is_found_whatever_rank_has_it(ask: Ask, text: Path, parallel: str) -> None:
    broken = table(text, **BASE, model__attention={"kind": "charged", "broken_after": 6})
    found = ask(broken, 2, parallel)
    assert "error" not in found, found["error"]
    assert found["explained"] == ask(broken)["explained"]


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.soak)])
def test_ranks_that_hold_different_buffers_are_no_run(ask: Ask, text: Path, parallel: str) -> None:
    config = table(text, train__steps=20, model__attention={"kind": "one-sided", "counts": True})
    assert "rank 1 holds other weights than rank 0" in ask(config, 2, parallel, steps=1)["error"]


# How an update is split


@pytest.mark.parametrize(
    ("micro_batch", "ranks", "split"),
    [
        (None, 1, (8, 1)),
        (None, 2, (4, 1)),
        (2, 1, (2, 4)),
        (2, 2, (2, 2)),
        (2, 4, (2, 1)),
        (2, 8, (1, 1)),
        (4, 8, (1, 1)),
    ],
)
def test_rows_are_shared_out(text: Path, micro_batch: int | None, ranks: int, split: tuple[int, int]) -> None:
    assert split_ranks(make(text, train__micro_batch=micro_batch), ranks) == split


def test_what_does_not_divide_is_refused(store: RunStore, text: Path) -> None:
    with pytest.raises(InputError, match=r"8 sequences.*3 ranks.*permitted: 1, 2, 4, 8"):
        split_ranks(make(text), 3)
    with pytest.raises(InputError, match=r"train\.compile"):
        split_ranks(make(text, train__compile=True), 2)
    (event,) = serve({**identity(make(text)).dump(), "store": str(store.root), "ranks": 3})
    assert (event["event"], event["status"]) == ("failed", "refused")
    assert not store.records()


# Real processes


def serve(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What a worker in this process reports of one request, with the ranks in theirs."""
    reports = io.BytesIO()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        Worker(io.BytesIO(json.dumps(asked).encode() + b"\n"), reports).serve()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return [json.loads(line) for line in reports.getvalue().splitlines()]


def test_a_signal_stops_all_ranks_at_one_step_and_one_process_goes_on(
    store: RunStore, text: Path, tmp_path: Path
) -> None:
    config = make(text, train__steps=300)
    known = identity(config)
    journal = store.path(known.digest) / "metrics.0.jsonl"

    def signal_soon() -> None:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_soon)
    thread.start()
    events = serve({**known.dump(), "store": str(store.root), "ranks": 2})
    thread.join()
    assert events[0]["event"] == "started"
    assert (events[-1]["event"], events[-1]["status"]) == ("stopped", "interrupted")
    step = events[-1]["step"]
    assert 5 <= step < 300
    assert len(store.metrics(known.digest)) == step
    record = go_on_alone(store, config, stop_at=step + 5)
    whole = go_on_alone(RunStore(tmp_path / "whole"), config, stop_at=20)
    (finding,) = [item for item in record.findings if item.rule == "continued-elsewhere"]
    assert finding.message == f"from step {step} on with ranks 1 rank, before that 2 ranks, ddp"
    assert record.provenance.deterministic is False
    assert record.provenance.notes == ("continued on other ranks: not bit-exact",)
    assert whole.provenance.deterministic is True
    rows, expected = store.metrics(known.digest), RunStore(tmp_path / "whole").metrics(known.digest)
    assert [row["step"] for row in rows] == list(range(step + 5))
    for row, other in zip(rows, expected, strict=False):
        assert row["train/ce"] == pytest.approx(other["train/ce"], rel=CLOSE)


BREAKS = '''
"""A model that breaks on rank 1, in its fourth training pass."""
import datetime, os, signal, time
from typing import Literal
import torch
import torch.distributed as dist
from winnow.models import GPT, GPTConfig

class Broken(GPT):
    passes = 0

    def forward(self, tokens, documents=None):
        self.passes += self.training
        if self.passes == 4 and dist.is_initialized() and dist.get_rank() == 1:
            HOW
        if self.passes == 4 and dist.is_initialized() and dist.get_rank() == 0:
            FIRST
        return super().forward(tokens, documents)

class BrokenConfig(GPTConfig):
    kind: Literal["NAME"] = "NAME"

    def build(self, vocab_size, context):
        return Broken(self, vocab_size, context)
'''


def breaking(store: RunStore, text: Path, file: Path, how: str, rank_0: str = "", **more: Any) -> dict[str, Any]:
    """A request for a run that breaks on rank 1. rank_0: what rank 0 does then."""
    name = file.stem
    file.write_text(BREAKS.replace("HOW", how).replace("FIRST", rank_0 or "pass").replace("NAME", name))
    asked = json.loads(json.dumps(identity(make(text, train__checkpoint_every=1)).dump()))
    asked["config"]["model"]["kind"] = name
    load_sources([file])
    asked = with_source(asked, RunConfig.model_validate(asked["config"]), file)
    return {**asked, "store": str(store.root), "ranks": 2, **more}


def fails_and_keeps(store: RunStore, asked: dict[str, Any], error: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_ranks, "GRACE_SECONDS", 300.0)  # a slow machine's ranks say what they saw all the same
        (*_, last) = serve(asked)
    assert (last["event"], last["status"], last.get("error")) == ("failed", "failed", error)
    record = store.record(asked["digest"])
    assert record is not None
    assert (record.status, record.steps_done) == ("failed", 3)
    assert record.error is not None
    assert record.error.splitlines()[-1] == error
    assert record.provenance.notes == ("2 ranks, ddp: not bit-exact unless verified",)
    assert (store.path(asked["digest"]) / "checkpoints" / "step-00000003" / "COMPLETE").is_file()
    assert not store.lock(asked["digest"]).taken()


def test_a_rank_that_raises_ends_all_with_its_traceback(store: RunStore, text: Path, tmp_path: Path) -> None:
    asked = breaking(store, text, tmp_path / "raising.py", 'raise RuntimeError("the belt came off")')
    fails_and_keeps(store, asked, "rank 1: RuntimeError: the belt came off")
    record = store.record(asked["digest"])
    assert record is not None
    assert "raising.py" in (record.error or "")
    # Alone it does not break, and goes on from what was saved.
    events = serve({**asked, "ranks": 1})
    assert (events[0]["event"], events[0]["step"]) == ("started", 3)
    assert (events[-1]["event"], events[-1]["status"], events[-1]["step"]) == ("done", "finished", 12)
    assert "continued-elsewhere" in {finding["rule"] for finding in events[-1]["findings"]}


def test_a_rank_that_is_killed_ends_all_with_its_signal(store: RunStore, text: Path, tmp_path: Path) -> None:
    asked = breaking(store, text, tmp_path / "killed.py", "os.kill(os.getpid(), signal.SIGKILL)")
    fails_and_keeps(store, asked, "rank 1 was killed by SIGKILL")


@pytest.mark.parametrize(
    ("rank_0", "rank_1"),
    [
        # Rank 0 waits for it too long, and is the first to say so.
        ("dist.irecv(torch.zeros(1), src=1).wait(datetime.timedelta(milliseconds=200))", "time.sleep(3); "),
        # As the watchdog of NCCL ends a process that waits for another.
        ("os.abort()", ""),
    ],
    ids=["lost", "aborted"],
)
def test_the_cause_is_the_rank_that_raised_whoever_falls_first(
    store: RunStore, text: Path, tmp_path: Path, rank_0: str, rank_1: str
) -> None:
    asked = breaking(store, text, tmp_path / "first.py", rank_1 + 'raise RuntimeError("the belt came off")', rank_0)
    fails_and_keeps(store, asked, "rank 1: RuntimeError: the belt came off")


@pytest.mark.soak
def test_a_rank_that_cannot_even_start_says_why(
    store: RunStore, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = "import sys\nif 'winnow.train.rank' in sys.orig_argv:\n    sys.modules['winnow.train.device'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(absent)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (*_, last) = serve({**identity(make(text)).dump(), "store": str(store.root), "ranks": 2})
    assert (last["event"], last["status"]) == ("failed", "failed")
    assert "ModuleNotFoundError: import of winnow.train.device halted" in last["error"]


@pytest.mark.soak
def test_a_rank_that_hangs_is_given_up(store: RunStore, text: Path, tmp_path: Path) -> None:
    asked = breaking(store, text, tmp_path / "hanging.py", "time.sleep(3600)", rank_timeout=3.0)
    (*_, last) = serve(asked)
    assert (last["event"], last["status"]) == ("failed", "failed")
    assert last["error"].startswith("rank 0: ")
    assert "timed out" in last["error"].lower()
    assert last["error"].endswith("; rank 1 did not answer and was ended")


@pytest.mark.soak
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_preflight_a_run_and_its_proof(store: RunStore, text: Path, tmp_path: Path, parallel: str) -> None:
    config = make(text, train__steps=40)
    asked = {**identity(config).dump(), "store": str(store.root), "ranks": 2, "parallel": parallel}
    (*_, tried) = serve({**asked, "preflight_steps": 3})
    assert (tried["status"], tried["preflight"]["steps"]) == ("preflight", 3)
    assert not store.records()
    assert serve(asked)[-1]["status"] == "finished"
    record = store.record(asked["digest"])
    assert record is not None
    assert record.provenance.notes == (f"2 ranks, {parallel}: not bit-exact unless verified",)
    assert (record.facts["ranks"], record.facts["parallel"]) == (2, parallel)
    found = verify_resume(store, record.digest, kills=1, draws=3)
    assert isinstance(found["bit_identical"], bool)
    assert found["killed_at"]

"""`winnow.record`: another program's runs become records, with nothing lost and nothing hidden."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import winnow
from winnow.config import run_digest
from winnow.errors import InputError
from winnow.records.store import RunStore

CONFIG: dict[str, Any] = {"lr": 1.0, "model": {"depth": 3, "sizes": [1, 2.0]}}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "store")


def make(store: RunStore, *values: float, seed: int = 0, **options: Any) -> str:
    with winnow.record(CONFIG, seed, store=store.root, **options) as run:
        for step, value in enumerate(values):
            run.log(step=step, **{"val/ce": value})
    return run.digest


def test_a_recorded_run_is_a_record_like_any_other(store: RunStore) -> None:
    digest = make(store, 3.0, 2.5, study="depth", arm="deep")
    assert digest == run_digest({"lr": 1, "model": {"depth": 3, "sizes": [1, 2]}}, 0, "", {})
    record = store.record(digest)
    assert record is not None
    assert (record.status, record.seed, record.watched) == ("finished", 0, False)
    assert (record.label.study, record.label.arm) == ("depth", "deep")
    assert record.final == {"val/ce": 2.5}
    assert (record.steps_done, record.steps_asked) == (2, 2)
    assert record.findings == ()
    assert store.metrics(digest) == [{"step": 0, "val/ce": 3.0}, {"step": 1, "val/ce": 2.5}]
    assert store.state(digest) == "finished"


def test_the_last_value_of_each_metric_is_its_result(store: RunStore) -> None:
    with winnow.record(CONFIG, 0, store=store.root, steps=10) as run:
        run.log(step=0, loss=3, accuracy=0.5)
        run.log(step=0, extra=1.0)
        run.log(step=4, loss=2)
    record = store.record(run.digest)
    assert record is not None
    assert record.final == {"loss": 2.0, "accuracy": 0.5, "extra": 1.0}
    assert (record.steps_done, record.steps_asked) == (5, 10)


def test_seed_and_config_are_the_identity_and_the_label_is_not(store: RunStore) -> None:
    one, two = make(store, 1.0, seed=0), make(store, 1.0, seed=1)
    assert one != two
    with pytest.raises(InputError, match="recorded already"):
        make(store, 1.0, seed=0, study="another", arm="b")
    with winnow.record({"model": CONFIG["model"], "lr": 1}, 2, store=store.root) as run:
        run.log(step=0, loss=1.0)
    with pytest.raises(InputError, match="recorded already"):
        make(store, 1.0, seed=2)
    record = store.record(run.digest)
    assert record is not None
    assert record.label.arm.startswith("arm-")


def test_an_exception_is_recorded_with_its_traceback_and_goes_on(store: RunStore) -> None:
    with pytest.raises(ZeroDivisionError), winnow.record(CONFIG, 0, store=store.root) as run:
        run.log(step=0, loss=1 / 0)
    record = store.record(run.digest)
    assert record is not None
    assert record.status == "failed"
    assert record.error is not None
    assert "ZeroDivisionError" in record.error
    assert "test_external.py" in record.error
    make(store, 2.0)
    assert store.state(run.digest) == "finished"
    assert (store.path(run.digest) / "failure-1.json").exists()


def test_ctrl_c_is_an_interruption_and_the_run_may_be_made_again(store: RunStore) -> None:
    def stop() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), winnow.record(CONFIG, 0, store=store.root) as run:
        run.log(step=0, loss=stop())
    assert store.state(run.digest) == "interrupted"
    make(store, 2.0, 1.0)
    assert [row["step"] for row in store.metrics(run.digest)] == [0, 1], "from the start: nothing goes on from before"


def test_again_keeps_the_earlier_record_and_says_so(store: RunStore) -> None:
    digest = make(store, 2.0, 1.5)
    assert make(store, 1.0, again=True) == digest
    record = store.record(digest)
    assert record is not None
    assert [finding.rule for finding in record.findings] == ["recorded-again"]
    earlier = json.loads((store.path(digest) / "superseded-1.json").read_text())
    assert earlier["final"] == {"val/ce": 1.5}
    assert (store.path(digest) / "superseded-1.metrics.jsonl").read_text().count("\n") == 2


def test_a_run_is_recorded_by_one_process_at_a_time(store: RunStore) -> None:
    with winnow.record(CONFIG, 0, store=store.root) as run:
        with pytest.raises(InputError, match="another process"):
            make(store, 1.0)
        run.log(step=0, loss=1.0)


def test_a_run_that_logged_nothing_has_failed(store: RunStore) -> None:
    with pytest.raises(InputError, match="the block has logged nothing; call run"):
        make(store)
    with pytest.raises(InputError, match="logged nothing"), winnow.record(CONFIG, 0, store=store.root) as run:
        run.log(step=0)
    record = store.record(run.digest)
    assert record is not None
    assert (record.status, record.final) == ("failed", {})
    assert "logged nothing" in (record.error or "")
    assert store.state(make(store, 2.0)) == "finished", "and may be made again"


def test_a_metric_has_one_value_per_step(store: RunStore) -> None:
    with winnow.record(CONFIG, 0, store=store.root) as run:
        run.log(step=3, loss=1.0)
        with pytest.raises(InputError, match="not a number"):
            run.log(step=4, loss="low")  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match="loss: step 3 has a value already"):
            run.log(step=3, accuracy=0.5, loss=2.0)
        run.log(step=3, accuracy=0.5)
        run.log(step=4, loss=0.5)
    assert store.metrics(run.digest) == [
        {"step": 3, "loss": 1.0},
        {"step": 3, "accuracy": 0.5},
        {"step": 4, "loss": 0.5},
    ]


def test_a_non_finite_result_is_a_finding(store: RunStore) -> None:
    record = store.record(make(store, 2.0, math.nan))
    assert record is not None
    assert record.status == "finished"
    assert record.outcome("val/ce") is None
    assert [(finding.rule, finding.where) for finding in record.findings] == [("non-finite", "val/ce")]


def test_steps_do_not_go_back_and_values_are_numbers(store: RunStore) -> None:
    with winnow.record(CONFIG, 0, store=store.root) as run:
        run.log(step=3, loss=1.0)
        with pytest.raises(InputError, match="step 2 comes after step 3"):
            run.log(step=2, loss=1.0)
        with pytest.raises(InputError, match="loss: 'low' is not a number"):
            run.log(step=4, loss="low")  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match="cannot be called 'crc'"):
            run.log(step=4, crc=1.0)
    assert store.metrics(run.digest) == [{"step": 3, "loss": 1.0}]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"a": {"b": [1, object()]}}, r"a\.b\.1: <object"),
        ({"a": math.inf}, "a: inf is not plain data"),
        ({"a": {1: 2}}, "a: the key 1 is not a string"),
        ({"path": Path("x")}, "path: .* is not plain data"),
    ],
)
def test_a_config_that_is_not_plain_data_is_named(store: RunStore, config: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        winnow.record(config, 0, store=store.root)
    assert store.digests() == []


def test_the_public_names_are_there_and_importing_them_is_cheap() -> None:
    program = (
        "import sys, winnow\n"
        "assert 'pydantic' not in sys.modules, 'import winnow alone loads nothing'\n"
        "winnow.record, winnow.RunStore, winnow.InputError, winnow.__version__\n"
        "assert set(winnow.__all__) <= set(dir(winnow))\n"
        "for heavy in ('torch', 'numpy', 'scipy', 'matplotlib'):\n"
        "    assert heavy not in sys.modules, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'wheat'"):
        winnow.wheat  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]

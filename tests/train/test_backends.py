"""What ran selective attention: counted, not believed; told in the provenance, and where it was not the fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.train.runs import CPU, go_on, make, run_in

from winnow.kernels import chunked, selective_operator
from winnow.kernels.rule import calls, reasons
from winnow.records.store import RunStore
from winnow.train import health
from winnow.train.backends import Backends
from winnow.train.config import RunConfig
from winnow.train.loop import Loop
from winnow.train.preflight import preflight


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax attention counts as two backends in turn: the first until `reasons` is changed."""
    monkeypatch.setitem(calls, "swift.forward", 7)
    monkeypatch.setitem(reasons, "swift", "stale")


def test_only_what_ran_inside_counts(counted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    backends = Backends()
    with backends.watched():
        pass
    calls["swift.forward"] += 1  # somebody else's
    assert backends.names() == {}
    with backends.watched():
        calls["swift.forward"] += 1
        monkeypatch.setitem(reasons, "swift", "")
    assert (backends.names(), backends.ran) == ({"selective_attention": "swift"}, {"swift": ""})
    with backends.watched():
        monkeypatch.setitem(calls, "slow.backward", 1)
        monkeypatch.setitem(reasons, "slow", "swift: no wings")
    assert backends.names() == {"selective_attention": "slow and swift"}
    again = Backends()
    again.restore(backends.ran)
    assert again.ran == backends.ran


def test_a_slower_backend_is_said() -> None:
    assert health.slow_kernel({}) is None
    assert health.slow_kernel({"cpu": ""}) is None
    assert health.slow_kernel({"reference": health.ASKED_FOR}) is None
    found = health.slow_kernel({"cpu": "", "chunked": "cpu: no compiler"})
    assert found is not None
    assert (found.rule, found.severity) == ("slow-kernel", "notice")
    assert found.message == "selective attention ran on a slower backend: chunked (cpu: no compiler)"


def selective(text: Path, **changes: Any) -> RunConfig:
    return make(text, model__attention={"kind": "selective", **changes})


def test_a_run_names_what_ran(store: RunStore, text: Path) -> None:
    before = calls.copy()
    record = run_in(store, selective(text))
    ran = {name.partition(".")[0] for name in calls - before}
    assert len(ran) == 1
    assert set(record.provenance.kernels) == {"selective_attention"}
    assert record.provenance.kernels["selective_attention"].split()[0] in ran
    assert run_in(store, make(text)).provenance.kernels == {}
    defined = run_in(store, selective(text, accumulate={"kind": "sum", "algorithm": "sequential"}))
    assert defined.provenance.kernels == {"selective_attention": "reference"}
    assert "slow-kernel" in {finding.rule for finding in defined.findings}


@pytest.fixture
def no_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the compiled kernels cannot be built."""
    real = selective_operator._why_not

    def why_not(backend: str, problem: Any) -> str | None:
        return "no compiler" if backend == "cpu" else real(backend, problem)

    monkeypatch.setattr(selective_operator, "_why_not", why_not)


def test_a_slow_path_is_no_secret(no_compiled: None, store: RunStore, text: Path) -> None:
    record = run_in(store, selective(text))
    assert record.provenance.kernels == {"selective_attention": "chunked"}
    (finding,) = record.findings
    assert (finding.rule, finding.where) == ("slow-kernel", "selective_attention")
    assert "chunked (cpu: no compiler)" in finding.message
    (early,) = preflight(selective(text), seed=0, device=CPU, steps=1).findings
    assert early == finding


def test_looks_inside_are_not_counted(text: Path) -> None:
    loop = Loop(selective(text), seed=0, device=CPU)
    before = calls.copy()
    loop.look_inside()
    assert calls != before, "the look runs the model"
    assert loop.backends.ran == {}
    loop.evaluate()
    assert len(loop.backends.ran) == 1


def test_both_parts_of_a_run_are_told(store: RunStore, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continued where the fast backend is missing: neither part hides the other."""
    config = selective(text)
    with monkeypatch.context() as patch:
        real = chunked.forward

        def as_other(problem: Any) -> Any:
            found = real(problem)
            calls.subtract({"chunked.forward": 1})
            calls["swift.forward"] += 1
            return found

        patch.setattr(chunked, "forward", as_other)
        patch.setattr(selective_operator, "_why_not", lambda backend, problem: "tired" if backend == "cpu" else None)
        go_on(store, config, stop_at=4)
    monkeypatch.setattr(
        selective_operator, "_why_not", lambda backend, problem: "no compiler" if backend == "cpu" else None
    )
    record = go_on(store, config)
    assert record.provenance.kernels == {"selective_attention": "chunked and swift"}

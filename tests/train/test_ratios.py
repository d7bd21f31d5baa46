"""By what part of itself an update changes a slice: hand-made numbers, and what a run records of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.runs import go_on, make, run_in
from torch import nn

from winnow.parameters import ParameterSpec, Slice
from winnow.records.run import UpdateRatio
from winnow.records.store import RunStore
from winnow.train.optim import as_it_is
from winnow.train.ratios import RatioWatch


def spec(*names: str, lr_multiplier: float = 1.0) -> ParameterSpec:
    slices = tuple(Slice(name, 0, i, i + 1) for i, name in enumerate(names))
    return ParameterSpec("matrix", 2, 2, "normal", 1.0, decay=True, slices=slices, lr_multiplier=lr_multiplier)


def moved(watch: RatioWatch, *changes: tuple[nn.Parameter, list[list[float]]], due: bool = True) -> None:
    with watch.around(due=due), torch.no_grad():
        for parameter, value in changes:
            parameter.copy_(torch.tensor(value))


def test_ratios_by_hand() -> None:
    qkv, out, frozen = (nn.Parameter(torch.tensor(v)) for v in ([[3.0, 4.0], [0.0, 0.0]], [[2.0, 0.0]], [[1.0, 1.0]]))
    table = {"qkv": spec("q", "k"), "out": spec(), "frozen": spec(lr_multiplier=0.0)}
    watch = RatioWatch({"qkv": qkv, "out": out, "frozen": frozen}, table, as_it_is)
    moved(watch, (qkv, [[3.0, 4.5], [1.0, 0.0]]), (out, [[2.0, 0.0]]), (frozen, [[9.0, 9.0]]))
    assert watch.found() == {
        "qkv[q]": UpdateRatio(n=1, mean=0.1, smallest=0.1, largest=0.1),  # 0.5 of 5; k was 0 and has none
        "out": UpdateRatio(n=1, mean=0.0, smallest=0.0, largest=0.0),
    }
    moved(watch, (qkv, [[300.0, 400.0], [1.0, 0.0]]), due=False)
    moved(watch, (qkv, [[300.0, 600.0], [1.0, 0.25]]), (out, [[2.0, 1.0]]))
    expected = {
        "qkv[q]": UpdateRatio(n=2, mean=0.25, smallest=0.1, largest=0.4),
        "qkv[k]": UpdateRatio(n=1, mean=0.25, smallest=0.25, largest=0.25),
        "out": UpdateRatio(n=2, mean=0.25, smallest=0.0, largest=0.5),
    }
    assert watch.found() == expected
    other = RatioWatch({"qkv": qkv}, table, as_it_is)
    other.restore(watch.dump())
    assert other.found() == expected


def test_a_run_records_every_slice_and_an_interruption_changes_nothing(
    store: RunStore, text: Path, tmp_path: Path
) -> None:
    config = make(text)
    record = run_in(store, config)
    # Evaluated before the updates 0, 5 and 10 of 12; the last one is measured too.
    assert {ratio.n for ratio in record.updates.values()} == {4, 3}
    assert {name for name, ratio in record.updates.items() if ratio.n == 3} == {
        name for name in record.updates if name.partition("[")[0].endswith(".bias")
    }, "what starts at 0 has no first ratio"
    assert {f"blocks.0.attention.qkv.weight[{part}.{head}]" for part in "qkv" for head in (0, 1)} <= set(record.updates)
    assert all(0 < ratio.smallest <= ratio.mean <= ratio.largest < 1.5 for ratio in record.updates.values())
    other = RunStore(tmp_path / "other")
    go_on(other, config, stop_at=7)
    assert go_on(other, config).updates == record.updates


def test_a_slice_that_stands_still_is_seen(store: RunStore, text: Path) -> None:
    config = make(text, train__lr=1e-30, train__weight_decay=0.0)
    ratios = run_in(store, config).updates
    assert ratios["blocks.0.attention.qkv.weight[q.0]"] == pytest.approx(
        UpdateRatio(n=4, mean=0, smallest=0, largest=0)
    )

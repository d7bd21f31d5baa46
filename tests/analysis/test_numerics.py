"""Errors against fp64: the yardstick against an oracle, planted errors found at their size, known figures met."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.oracles import selective as oracle
from tests.train.runs import make, run_in, write_text

from winnow.analysis import numerics
from winnow.analysis.error_plot import errors_png, series
from winnow.analysis.numerics import Row, Way, random_heads, rule_of, standings, study
from winnow.analysis.trained import trained_heads
from winnow.attention import Attention, MixerState
from winnow.errors import InputError
from winnow.kernels import compiled
from winnow.kernels.rule import Problem
from winnow.kernels.selective import Usage, calls
from winnow.records.store import RunStore
from winnow.train.checkpoint import load_newest
from winnow.train.loop import Loop

BACKENDS = [
    "reference",
    "chunked",
    pytest.param("cpu", marks=pytest.mark.skipif(compiled.available() is not None, reason="no compiler")),
]
BLOCKED = Way("reference", "blocked", "float32")
BF16 = Way("reference", "sequential", "bfloat16")


def rows(*ways: Way, lengths: tuple[int, ...] = (24,), kind: Any = "sum", n_heads: int = 3) -> list[Row]:
    heads = random_heads(max(lengths), n_heads=n_heads, d_head=16)
    return list(study([heads], lengths, ways=ways or (BLOCKED,), dtypes=["float32"], kinds=[kind]))


@pytest.mark.parametrize("kind", numerics.KINDS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_yardstick_of_f_is_the_definition(kind: Any, kv_heads: int):
    heads = random_heads(23, n_heads=4, d_head=8)
    heads = replace(heads, k=heads.k[:, :, :kv_heads], v=heads.v[:, :, :kv_heads]).first(23, torch.float64)
    problem = Problem(
        q=heads.q,
        k=heads.k,
        v=heads.v,
        q_s=None,
        k_s=None,
        q_p=None,
        k_p=None,
        starts=None,
        rule=rule_of(kind, BLOCKED, 4),
        select=0,
        protect=1 if kind == "protection" else -1,
        scale=8**-0.5,
        tau=None,
        compact=False,
    )
    F = oracle.masks(problem, 0)[0]
    keys = numerics._probe_keys(23)
    assert len(keys) >= 6
    assert 0 not in keys
    assert float(F.max()) > 1, "something is voted out"
    torch.testing.assert_close(numerics._recurrence(heads, kind), F[:, keys].T, rtol=1e-13, atol=1e-13)
    # And what is read out of the op is its F: in fp64 there is nothing else between the two.
    probed = numerics._probed(heads, rule_of(kind, BLOCKED, 4), "reference")
    torch.testing.assert_close(probed, F[:, keys].T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", numerics.KINDS)
def test_fp32_errors_are_near_rounding(backend: Any, kind: Any):
    for row in rows(Way(backend, "blocked", "float32"), lengths=(16, 70), kind=kind):
        assert 0 < row.mask_live <= row.mask < 2e-5
        assert 0 < row.output < 2e-6
        assert 0 < row.gradient < 1e-5


def test_an_error_that_is_planted_is_reported_at_its_size(monkeypatch: pytest.MonkeyPatch):
    attend, usage = numerics.selective_attention, numerics.selection_usage

    def worse(*arguments: Any, **options: Any) -> torch.Tensor:
        return attend(*arguments, **options) * (1 + 1e-3 * (arguments[0].dtype == torch.float32))

    def off(*arguments: Any, **options: Any) -> Usage:
        found = usage(*arguments, **options)
        return found._replace(usage=found.usage + 0.25)

    monkeypatch.setattr(numerics, "selective_attention", worse)
    monkeypatch.setattr(numerics, "selection_usage", off)
    (row,) = rows()
    assert row.output == pytest.approx(1e-3, rel=0.01)
    assert row.gradient == pytest.approx(1e-3, rel=0.01)
    assert row.mask == pytest.approx(0.25, rel=0.01)
    assert row.mask_live == pytest.approx(0.25, rel=0.01)


def test_one_wrong_element_of_one_gradient_is_enough(monkeypatch: pytest.MonkeyPatch):
    attend = numerics._attend

    def one_off(heads: numerics.Heads, rule: Any, backend: Any) -> tuple[torch.Tensor, ...]:
        out, dq, dk, dv = attend(heads, rule, backend)
        if heads.q.dtype == torch.float32:
            dk[0, 3, 1, 5] += 0.5 * dk.abs().max()
        return out, dq, dk, dv

    monkeypatch.setattr(numerics, "_attend", one_off)
    (row,) = rows()
    assert row.gradient == pytest.approx(0.5, rel=0.01)
    assert row.output < 1e-5


def test_a_nan_is_an_error(monkeypatch: pytest.MonkeyPatch):
    attend = numerics.selective_attention
    monkeypatch.setattr(
        numerics,
        "selective_attention",
        lambda q, k, v, **options: attend(q, k, v, **options) * (math.nan if q.dtype == torch.float32 else 1.0),
    )
    assert math.isnan(rows()[0].output)


def test_sums_in_bfloat16_are_found_out_and_get_worse_with_length():
    found = {(row.way, row.length): row for row in rows(BLOCKED, BF16, lengths=(32, 256))}
    assert found[BF16, 256].mask > 1e5 * found[BLOCKED, 256].mask_live
    assert found[BF16, 256].output > 100 * found[BLOCKED, 256].output
    assert found[BF16, 256].mask > 3 * found[BF16, 32].mask


def test_ways_that_a_backend_does_not_know_are_left_out_with_a_reason():
    tree = Way("chunked", "tree", "float32")
    assert rows(tree, BLOCKED) == rows(BLOCKED)
    assert "chunked" in (numerics.refusal("sum", "float32", tree) or "")
    assert numerics.refusal("protection", "bfloat16", BLOCKED) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backend_named_is_the_one_that_ran(backend: Any):
    calls.clear()
    way = Way(backend, "blocked", "float32")
    rows(way)
    assert calls[f"{backend}.forward"] > 0
    assert {name.partition(".")[0] for name in calls} <= {backend, "reference"}, "the reference is the yardstick"


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="have 8 tokens; ask for at most 8"):
        list(study([random_heads(8)], [4, 9]))
    with pytest.raises(InputError, match="two heads"):
        list(study([random_heads(8, n_heads=1)], [8]))


def test_the_worst_of_the_inputs_counts():
    mild, wild = (random_heads(64, seed=seed, d_head=16) for seed in (0, 1))
    wild = replace(wild, q=10 * wild.q)

    def measured(*inputs: numerics.Heads) -> Row:
        return next(study(inputs, [64], ways=[BLOCKED], dtypes=["float32"], kinds=["sum"]))

    alone, both = measured(mild), measured(mild, wild)
    assert both.mask > 3 * alone.mask
    assert both == measured(wild, mild)


def test_bare_sums_have_the_errors_of_the_source_notebook():
    found = numerics.terms()
    known = [row for row in found if row.source is not None]
    assert len(known) == 4
    for row in known:
        assert row.source is not None
        assert row.source / 2 < row.error < row.source * 2, row
    error = {(row.algorithm, row.dtype): row.error for row in found}
    assert error["blocked", "float32"] < error["tree", "float32"] < error["sequential", "float32"]


def test_protection_of_zero_is_no_protection_but_for_rounding():
    heads = random_heads(256, n_heads=2, d_head=16)
    found = {(gap.length, gap.algorithm): gap for gap in numerics.gaps(heads, [32, 256])}
    assert len(found) == 8
    for n in (32, 256):
        library = found[n, "library"]
        assert (library.mask, library.output, library.gradient) == (0, 0, 0)
        assert 0 < found[n, "sequential"].output < 1e-5
    assert found[256, "sequential"].mask > 4 * found[32, "sequential"].mask, "the gap shrinks with fewer additions"


def row_of(way: Way, output: float, gradient: float, length: int = 64, kind: Any = "sum") -> Row:
    return Row(kind, "float32", length, way, 0.0, 0.0, output, gradient)


def test_the_advice_is_the_fast_one_unless_it_is_worse():
    blocked, wide = Way("cpu", "blocked", "float32"), Way("reference", "blocked", "float64")
    good = [row_of(wide, 1e-7, 2e-7), row_of(blocked, 1.5e-7, 2e-7), row_of(blocked, 9.0, 9.0, length=32)]
    (found,) = standings(good)
    assert found.use == ("blocked", "float32")
    assert found.factors == {("blocked", "float64"): 1.0, ("blocked", "float32"): pytest.approx(1.5)}
    bad = [*good, row_of(wide, 1e-7, 1e-7, kind="protection"), row_of(blocked, 1e-7, 1e-6, kind="protection")]
    (found,) = standings(bad)
    assert found.use == ("blocked", "float64")
    assert found.factors["blocked", "float32"] == pytest.approx(10)
    (found,) = standings([row_of(BF16, 1.0, 1.0), row_of(Way("cpu", "tree", "bfloat16"), 1.0, 1.0)])
    assert found.use is None
    (found,) = standings([row_of(blocked, 1.0, 1.0)])
    assert found.use is None, "nothing was compared"


def test_the_picture_is_drawn_whatever_the_errors():
    found = rows(BLOCKED, BF16, lengths=(8, 16, 32))
    png = errors_png(found, "Errors", "inputs: random")
    assert png == errors_png(found, "Errors", "inputs: random")
    assert struct.unpack(">2I", png[16:24])[0] == 1440
    odd = [replace(row, output=value) for row, value in zip(found, (0.0, math.nan, math.inf, 1, 1, 1), strict=True)]
    assert png != errors_png([*odd, replace(odd[0], kind="protection")], "Errors", "") != errors_png([], "Errors", "")
    drawn = series(found, "output")
    assert list(drawn) == ["blocked", "bf16 sums"]
    assert drawn["bf16 sums"][1] == {row.length: row.output for row in found if row.way == BF16}


@pytest.fixture
def denormals() -> Iterator[None]:
    """Training in this process flushes them, which later tests of floating-point numbers must not see."""
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("denormals")
def test_heads_of_a_run_are_those_of_its_trained_weights(tmp_path: Path):
    store = RunStore(tmp_path / "store")
    config = make(write_text(tmp_path / "words.txt"), train__steps=3, train__lr=0.05, model__positions="rotary")
    digest = run_in(store, config).digest
    found = load_newest(store.path(digest) / "checkpoints", digest).snapshot
    assert found is not None
    assert found.step == 3
    loop = Loop(config, seed=0, device=torch.device("cpu"))
    tokens = next(loop.task.validation(16).batches(1)).tokens[0, :12]
    block, embedding = loop.model.get_submodule("blocks.0"), loop.model.get_submodule("embedding")

    def by_hand() -> list[torch.Tensor]:
        x = block.get_submodule("norm1")(embedding(torch.tensor([list(map(int, tokens))])))
        return list(cast(Attention, block.get_submodule("attention")).project(x, MixerState()))

    with torch.no_grad():
        untrained = by_hand()
        loop.restore(found)
        trained = by_hand()
    (heads,) = trained_heads(store, digest, 12)
    assert heads.name == "blocks.0.attention"
    for mine, true, old in zip((heads.q, heads.k, heads.v), trained, untrained, strict=True):
        torch.testing.assert_close(mine, true)
        assert not torch.allclose(mine, old, atol=1e-3)
    with pytest.raises(InputError, match="16 tokens at a time"):
        trained_heads(store, digest, 17)

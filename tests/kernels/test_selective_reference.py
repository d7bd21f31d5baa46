"""The definition against an oracle written token by token, in fp64, and its invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.kernels.selective_cases import (
    BY_CONSTANT,
    BY_LEAK,
    BY_SCORES,
    CASES,
    PLAIN,
    Case,
    cotangents,
    leaves,
    with_leaves,
)
from tests.oracles import selective as oracle
from torch import Tensor
from torch.nn import functional as F

from winnow.kernels import reference
from winnow.kernels.rule import Problem, Rule

SEMANTIC = [name for name, case in CASES.items() if case.T <= 130 and name not in {"T=63", "T=64", "T=77", "strided"}]


def values_and_gradients(function, problem: Problem) -> list[Tensor]:
    """out, usage where it is wanted, and the gradients of all leaves, fp64."""
    given = {name: t.double().requires_grad_() for name, t in leaves(problem).items()}
    out, usage = function(with_leaves(problem, given))
    grad_out, grad_usage = cotangents(problem)
    loss = (out * grad_out).sum()
    if grad_usage is not None:
        loss = loss + (usage * grad_usage).sum()
    found = torch.autograd.grad(loss, list(given.values()))
    return [out.detach(), *([] if grad_usage is None else [usage.detach()]), *found]


@pytest.mark.parametrize("name", SEMANTIC)
def test_against_the_oracle(name: str) -> None:
    case = CASES[name]
    problem = replace(case, B=1 if case.T > 70 and not case.documents else case.B).problem(torch.float64)
    expected = values_and_gradients(oracle.attention, problem)
    found = values_and_gradients(reference.attention, problem)
    for x, y in zip(found, expected, strict=True):
        assert float((x - y).norm()) <= 1e-13 * max(float(y.norm()), 1e-3)


VARIANTS = {
    "plain": PLAIN,
    "self and bos": replace(PLAIN, allow_self_masking=True, protect_bos=False),
    "leak": replace(PLAIN, leak=0.3),
    "leak, relu after": replace(PLAIN, leak=1.0, relu_after=True),
    "scores": BY_SCORES,
    "scores, scaled, shifted": replace(BY_SCORES, protection_scale=0.7, protection_bias=-0.1),
    "leaky": BY_LEAK,
    "leaky, positive bias": replace(BY_LEAK, protection_bias=0.1),
    "constant": BY_CONSTANT,
    "fp64 sums": replace(BY_SCORES, accumulate="float64"),
    **{
        f"{rule.protection} {algorithm}": replace(rule, algorithm=algorithm)
        for rule in (PLAIN, BY_SCORES)
        for algorithm in ("library", "sequential", "tree")
    },
}


def small(rule: Rule, **changes) -> Problem:
    case = Case("small", B=1, T=6, H=2, K=1, D=2, rule=rule, tau=0.3, votes=1.5, seed=2843)  # most of F is not 0
    return replace(case, **changes).problem(torch.float64)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_against_finite_differences(name: str) -> None:
    problem = small(VARIANTS[name])
    given = {key: t.requires_grad_() for key, t in leaves(problem).items()}

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return reference.attention(with_leaves(problem, dict(zip(given, tensors, strict=True))))

    assert torch.autograd.gradcheck(function, tuple(given.values()))
    if name in ("plain", "scores"):
        assert torch.autograd.gradgradcheck(function, tuple(given.values()), fast_mode=True)


@pytest.mark.parametrize("algorithm", ["library", "sequential", "tree"])
@pytest.mark.parametrize("name", ["T=65", "protected by a head", "documents"])
def test_algorithms_agree(name: str, algorithm) -> None:
    problem = CASES[name].problem(torch.float64)
    expected = values_and_gradients(reference.attention, problem)
    other = replace(problem, rule=replace(problem.rule, algorithm=algorithm))
    for x, y in zip(values_and_gradients(reference.attention, other), expected, strict=True):
        assert float((x - y).norm()) <= 1e-13 * float(y.norm())


def masks(problem: Problem) -> Tensor:
    """F (B, M, T, T)."""
    _, raw, protector = reference.raw_scores(problem)
    return reference.forgotten(raw, protector, problem.rule, problem.starts)


def votes_by_hand(raw: Tensor, rule: Rule = PLAIN, protector: Tensor | None = None) -> Tensor:
    return reference.forgotten(raw[None, None], None if protector is None else protector[None, None], rule, None)[0, 0]


def test_by_hand() -> None:
    raw = torch.tensor([[9.0, 9, 9, 9], [2, 5, 9, 9], [3, 1, 7, 9], [1, 2, -4, 8]])
    assert votes_by_hand(raw).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    unprotected = votes_by_hand(raw, replace(PLAIN, protect_bos=False))
    assert unprotected.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [5, 1, 0, 0]]
    itself = votes_by_hand(raw, replace(PLAIN, allow_self_masking=True))
    assert itself.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 5, 0, 0], [0, 6, 7, 0]]


@pytest.mark.parametrize("name", ["T=65", "two masks", "protected by a head", "leaky protection", "grouped queries"])
def test_shape_of_the_mask(name: str) -> None:
    mask = masks(CASES[name].problem(torch.float64))
    assert float(mask.max()) > 0.5
    assert float(mask.min()) == 0
    assert not mask[..., 0].any()
    for offset in (0, -1):  # first felt at i = j + 2
        assert not mask.diagonal(offset, -2, -1).any()
    rows = mask.tril()
    assert bool(((rows[:, :, 1:] - rows[:, :, :-1]).tril(-1) >= 0).all())


def test_a_leak_lets_the_mask_fall() -> None:
    mask = masks(CASES["leak"].problem(torch.float64))
    assert float(mask.min()) < 0


@pytest.mark.parametrize("name", ["T=65", "protected by a head", "leak, relu after", "documents"])
def test_earlier_rows_do_not_see_a_changed_query(name: str) -> None:
    problem = CASES[name].problem(torch.float64)
    before, _ = reference.attention(problem)
    changed = problem.q.clone()
    changed[:, 40] += 1.0
    keys = problem.k.clone()
    keys[:, 40] -= 1.0
    after, _ = reference.attention(replace(problem, q=changed, k=keys))
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40], after[:, 40])


def sdpa(problem: Problem) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (problem.q, problem.k, problem.v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def test_without_votes_it_is_causal_attention() -> None:
    problem = CASES["one selector"].problem(torch.float64)
    assert problem.q_s is not None
    silent = replace(problem, q_s=torch.zeros_like(problem.q_s))
    torch.testing.assert_close(reference.attention(silent)[0], sdpa(problem))
    assert not torch.allclose(reference.attention(problem)[0], sdpa(problem))


@pytest.mark.parametrize("rule", [BY_CONSTANT, BY_SCORES])
def test_huge_protection_leaves_causal_attention(rule: Rule) -> None:
    case = Case("huge", D=16, H=2, K=2, rule=replace(rule, protection_offset=1e6, protection_scale=1e6))
    if rule is BY_SCORES:
        case = replace(case, rule=replace(case.rule, protection_bias=1e6))
    problem = case.problem(torch.float64)
    torch.testing.assert_close(reference.attention(problem)[0], sdpa(problem))


@pytest.mark.parametrize(
    "rule",
    [
        replace(BY_SCORES, protection_scale=0.0),
        replace(BY_SCORES, protection_bias=-1e6),
        replace(BY_CONSTANT, protection_offset=0.0),
        replace(BY_LEAK, protection_offset=-1e6),
    ],
)
def test_without_protection_damage_is_the_sum(rule: Rule) -> None:
    problem = CASES["protected by a head"].problem(torch.float64)
    found = masks(replace(problem, rule=replace(rule, spread=problem.rule.spread)))
    expected = masks(replace(problem, rule=replace(PLAIN, spread=problem.rule.spread)))
    torch.testing.assert_close(found.tril(), expected.tril())


def test_huge_votes_leave_the_first_token_and_the_latest() -> None:
    problem = CASES["one head"].problem(torch.float64)
    T = problem.q.shape[1]
    scores = torch.zeros(2, 1, T, T, dtype=torch.float64)
    out, _ = reference.attend(scores, scores + 1e6, None, problem.v, problem.rule, None, None)
    for i in range(2, T):  # the next token cannot yet feel a vote on its predecessor
        expected = problem.v[:, [0, i - 1, i]].mean(1)
        torch.testing.assert_close(out[:, i], expected)


def test_masks_equal_calls_of_their_own() -> None:
    problem = CASES["masks out of order"].problem(torch.float64)
    assert problem.q_s is not None
    assert problem.k_s is not None
    whole, _ = reference.attention(problem)
    for head, mask in enumerate(problem.rule.spread):
        alone = replace(
            problem,
            q=problem.q[:, :, head : head + 1],
            k=problem.k[:, :, head : head + 1],
            v=problem.v[:, :, head : head + 1],
            q_s=problem.q_s[:, :, mask : mask + 1],
            k_s=problem.k_s[:, :, mask : mask + 1],
            rule=PLAIN,
        )
        torch.testing.assert_close(reference.attention(alone)[0][:, :, 0], whole[:, :, head])


@pytest.mark.parametrize("rule", [PLAIN, BY_SCORES, replace(PLAIN, protect_bos=False, allow_self_masking=True)])
def test_packed_documents_equal_documents_alone(rule: Rule) -> None:
    problem = Case("packed", T=60, D=16, H=2, K=2, documents=True, rule=rule, tau=1.0, votes=2.0).problem(torch.float64)
    whole, usage = reference.attention(problem)
    assert problem.starts is not None
    for b in range(2):
        firsts = sorted(set(problem.starts[b].tolist()))
        for first, end in zip(firsts, [*firsts[1:], 60], strict=True):
            here = (slice(b, b + 1), slice(first, end))
            alone = replace(problem, q=problem.q[here], k=problem.k[here], v=problem.v[here], starts=None)
            out, used = reference.attention(alone)
            torch.testing.assert_close(out, whole[here])
            torch.testing.assert_close(used, usage[b : b + 1, :, first:end])


@pytest.mark.parametrize(
    "rule", [replace(PLAIN, leak=0.1), replace(PLAIN, leak=1.0, relu_after=True), BY_LEAK, BY_SCORES]
)
def test_the_future_is_zeroed_before_the_gate(rule: Rule) -> None:
    """Scores of the future at -inf, as a causal mask leaves them, made the source's leaks and protections void."""
    problem = replace(CASES["leak"], rule=rule).problem(torch.float64)
    scores, raw, protector = reference.raw_scores(problem)
    future = torch.ones(raw.shape[-2:], dtype=torch.bool).triu(1)
    hidden = [x if x is None else x.masked_fill(future, -math.inf) for x in (scores, raw, protector)]
    assert hidden[0] is not None
    assert hidden[1] is not None
    mask = reference.forgotten(hidden[1], hidden[2], problem.rule, None).tril()
    torch.testing.assert_close(mask, masks(problem).tril())
    assert float(mask.max()) > 0.5
    out, _ = reference.attend(hidden[0], hidden[1], hidden[2], problem.v, problem.rule, None, None)
    torch.testing.assert_close(out, reference.attention(problem)[0])


def test_protection_takes_away_from_the_mask() -> None:
    """The source once returned health, -D, and so rewarded attacked keys (S1-62)."""
    problem = CASES["protected by a head"].problem(torch.float64)
    plain = masks(replace(problem, rule=replace(PLAIN, spread=problem.rule.spread))).tril()
    mask = masks(problem).tril()
    assert bool((mask >= 0).all())
    assert bool((mask <= plain + 1e-12).all())
    assert float((plain - mask).max()) > 0.5


def test_scores_are_divided_by_the_root_of_the_width() -> None:
    """A program of the source multiplied by it (S1-105)."""
    D = 16
    q = torch.zeros(1, 1, 1, D, dtype=torch.float64)
    q[..., 0] = D**0.5
    problem = replace(Case("unit", B=1, T=1, H=1, K=1, D=D).problem(torch.float64), q=q, k=q)
    scores, raw, _ = reference.raw_scores(problem)
    assert float(scores) == float(raw) == D**0.5


def test_scaled_slices_sum_to_the_whole_score() -> None:
    problem = CASES["T=3"].problem(torch.float64)
    scores, _, _ = reference.raw_scores(problem)
    B, T, H, D = problem.q.shape
    parts = replace(
        problem,
        q_s=problem.q.reshape(B, T, H * 4, D // 4),
        k_s=problem.k.reshape(B, T, H * 4, D // 4),
        rule=Rule(spread=tuple(range(H * 4))),
    )
    _, raw, _ = reference.raw_scores(parts)
    torch.testing.assert_close(raw.unflatten(1, (H, 4)).sum(2), scores)


def test_usage_of_a_mask_made_by_hand() -> None:
    raw = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [0, 0.25, 0, 0], [0, 5, 0.5, 0]])[None, None]
    v = torch.zeros(1, 4, 1, 1)
    rule = replace(PLAIN, protect_bos=False)
    _, usage = reference.attend(raw, raw, None, v, rule, None, 0.2)
    assert usage.tolist() == [[[0, 0, 0, pytest.approx(0.2)]]]
    _, usage = reference.attend(raw, raw, None, v, rule, None, 1.0)
    assert usage.tolist() == [[[0, 0, 0, 0.25]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_fp32(dtype: torch.dtype) -> None:
    """Sums of many votes of 1 stall at 256 in bf16, at 2048 in fp16."""
    T = 2200 if dtype == torch.float16 else 600
    ones = torch.ones(1, T, 1, 1, dtype=dtype)
    problem = Problem(ones, ones, ones, None, None, None, None, None, PLAIN, 0, -1, 1.0, None, False)
    _, raw, _ = reference.raw_scores(problem)
    assert raw.dtype == torch.float32
    assert float(reference.forgotten(raw, None, PLAIN, None)[0, 0, -1, 1]) == T - 3
    assert reference.attention(problem)[0].dtype == dtype
    stalled = reference.forgotten(
        raw[..., :600, :600], None, replace(PLAIN, algorithm="sequential", accumulate="bfloat16"), None
    )
    assert float(stalled.max()) == 256

"""Generated tokens against the model's own logits over whole rows."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.models.test_gpt import V, build

from winnow.attention.prune import VotesConfig
from winnow.errors import InputError
from winnow.models import GPT
from winnow.models.generation import Sampling, generate

CONTEXT = 24


def model_of(kind: str = "selective") -> GPT:
    return build(context=CONTEXT, attention={"kind": kind}, positions="rotary")[1]


def texts(model: GPT, prompts: list[list[int]], n_new: int, **options) -> list[list[int]]:
    cache = model.cache(len(prompts), CONTEXT, options.pop("budget", None), options.pop("policy", None))
    found: list[list[int]] = [[] for _ in prompts]
    for row, token in generate(model, prompts, n_new, cache, **options):
        found[row].append(token)
    return found


@pytest.mark.parametrize("kind", ["softmax", "selective"])
def test_greedy_text_is_the_likeliest_token_of_whole_rows(kind: str) -> None:
    model = model_of(kind)
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    found = texts(model, prompts, 12, sampling=Sampling(temperature=0.0))
    for prompt, new in zip(prompts, found, strict=True):
        text = list(prompt)
        for _ in range(12):
            text.append(int(model.logits(torch.tensor([text]))[0, -1].argmax()))
        assert new == text[len(prompt) :]
    assert texts(model, prompts[1:2], 12, sampling=Sampling(temperature=0.0)) == [found[1]]


def test_a_pruned_text_is_that_of_the_pruned_model() -> None:
    model, prompt = model_of(), [1, 2, 3, 4, 5, 6, 7, 8]
    (found,) = texts(model, [prompt], 14, budget=3, policy=VotesConfig(), sampling=Sampling(temperature=0.0))
    text = list(prompt)
    for _ in range(14):
        hidden = model.extend(torch.tensor([text]), model.cache(1, CONTEXT, 3, VotesConfig())).hidden[0, -1]
        text.append(int((model.readout_weight @ hidden).argmax()))
    assert found == text[8:]
    drawn = [texts(model, [prompt], 14, seed=1, budget=budget, policy=VotesConfig()) for budget in (1, CONTEXT)]
    assert drawn[0] != drawn[1]


def test_a_seed_says_all_and_rows_do_not_meet() -> None:
    model, prompts = model_of(), [[1, 2], [3], [1, 2]]
    found = texts(model, prompts, 15, seed=4)
    assert found == texts(model, prompts, 15, seed=4)
    assert found != texts(model, prompts, 15, seed=5)
    assert found[0] != found[2]
    assert texts(model, prompts[:1], 15, seed=4) == found[:1]
    assert texts(model, [[1, 2], [9, 9, 9, 9]], 15, seed=4)[0] == found[0]


def test_it_ends_where_a_document_ends() -> None:
    model, prompts = model_of(), [[1, 2], [3, 4]]
    whole = texts(model, prompts, 15, seed=1)
    end = whole[0][6]
    found = texts(model, prompts, 15, seed=1, end=end)
    for before, after in zip(whole, found, strict=True):
        assert after == (before[: before.index(end)] if end in before else before)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.0])
    n = 2000
    grid = [(i + 0.5) / n for i in range(n)]
    for temperature in (1.0, 0.5, 3.0):
        p = (logits / temperature).softmax(0)
        drawn = Counter(Sampling(temperature).draw(logits, u) for u in grid)
        assert all(abs(drawn[token] / n - float(p[token])) <= 1 / n for token in range(5))
    assert {Sampling(0.0).draw(logits, u) for u in grid} == {1}
    assert {Sampling(top_k=2).draw(logits, u) for u in grid} == {1, 2}
    assert {Sampling(top_k=99).draw(logits, u) for u in grid} == set(range(5))
    assert {Sampling(top_p=0.5).draw(logits, u) for u in grid} == {1}  # p = 0.56
    assert {Sampling(top_p=0.6).draw(logits, u) for u in grid} == {1, 2}
    assert {Sampling(top_p=1e-9).draw(logits, u) for u in grid} == {1}
    assert Sampling().draw(logits, 1 - 1e-16) == 3


@pytest.mark.parametrize(
    ("options", "key"),
    [({"temperature": -1.0}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_k": 0}, "top_k"),
     ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p")],
)  # fmt: skip
def test_samplings_without_meaning_are_refused(options, key: str) -> None:
    with pytest.raises(InputError) as refused:
        Sampling(**options)
    assert refused.value.key == key


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = model_of()
    with pytest.raises(InputError, match="20 tokens of prompt and 5 new ones do not fit 24"):
        texts(model, [[1] * 20, [2]], 5)
    with pytest.raises(InputError, match="a prompt without a token"):
        texts(model, [[1], []], 5)
    assert len(texts(model, [[1] * 20], 4)[0]) == 4
    assert texts(model, [[1]], 0) == [[]]
    assert max(texts(model, [[1]], 20)[0]) < V


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["none", "votes", "h2o", "window", "anew"])
def test_a_step_compiles_whole(policy: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "compiled_decoding.py"), policy], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]

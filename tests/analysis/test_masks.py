"""The numbers of `winnow masks` against definitions in plain loops, and how tokens are shown."""

from __future__ import annotations

import copy
import itertools
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.attention.test_contract import inputs, make
from tests.attention.variants import VARIANTS, selective
from tests.oracles import selective as oracle
from tests.train import runs

from winnow.analysis import masks
from winnow.analysis.masks import layer_of, look, shown, tokens_of, weights_of
from winnow.analysis.trained import Trained, read_trained
from winnow.attention import Attention, MixerState, SoftmaxConfig
from winnow.attention.selective import SelectiveAttention
from winnow.errors import InputError
from winnow.records.store import RunStore
from winnow.tasks.bytepair import BPEConfig
from winnow.tasks.tokenizer import BytesTokenizer, UnknownTokenizer

N = 14
OF_HEADS = [
    *("plain", "bos", "self", "bos_and_self", "leak", "relu_moved", "head_two", "head_two_scaled", "protect_leaky"),
    *("protect_constant", "protect_zero", "protect_zero_bias"),
]
"""Variants whose masks are the scores of head 0, and their protectors those of head 1."""


@pytest.mark.parametrize("name", VARIANTS)
def test_masks_and_weights_are_the_mechanisms_own(name: str) -> None:
    attention = make(selective(**VARIANTS[name]), n_kv_heads=2)
    scores = torch.randn(1, 4, N, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tril()
    state = MixerState(previous={"scores": scores})
    q, k, v = attention.project(inputs(1, n=N), state)
    found = attention.inside(q, k, state)
    assert found is not None
    assert found.masks is not None
    assert found.votes is not None
    expected = attention.definition(q[0], k[0], v[0], {"scores": scores[0]})
    assert expected.masks is not None
    assert torch.allclose(found.masks[0].tril(), expected.masks, rtol=0, atol=1e-12)
    heads = torch.einsum("hij,jhd->ihd", weights_of(found)[0], v[0].repeat_interleave(2, dim=1))
    assert torch.allclose(heads, expected.heads, rtol=0, atol=1e-12)
    own = attention.masks(q, k, state)
    assert own is not None
    assert torch.allclose(found.masks.tril(), own.tril(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OF_HEADS)
def test_votes_protection_and_damage_are_the_oracles(name: str) -> None:
    attention = make(selective(**VARIANTS[name]))
    assert isinstance(attention, SelectiveAttention)
    with torch.no_grad():
        q, k, _ = attention.project(inputs(1, n=N), MixerState())
        found = attention.inside(q, k, MixerState())
    assert found is not None
    assert found.votes is not None
    layer = layer_of(0, found, weights_of(found))
    rule = attention.rule
    raw, guard = ([oracle.row_scores(q[0, :, h], k[0, :, h], i, 0, 8**-0.5) for i in range(N)] for h in (0, 1))
    protected = rule.protection != "none"
    forgotten = oracle.forgotten(raw, guard if rule.protection == "scores" else None, [0] * N, rule)
    assert layer.masks is not None
    assert layer.votes is not None
    close(layer.masks[0], forgotten.tril())
    assert (layer.protection is not None) == (layer.shield is not None) == (layer.damage is not None) == protected
    for j in range(N):
        cast = [oracle.votes(raw[t], rule, rule.allow_self_masking, rule.protect_bos)[j] for t in range(j, N)]
        close(layer.votes[0, j:, j], torch.stack(cast))
        if layer.protection is None or layer.shield is None or layer.damage is None:
            continue
        added = [oracle.protections(raw[t], guard[t], rule)[j] for t in range(j, N)]
        close(layer.protection[0, j:, j], torch.stack(added))
        attacks, shields = [float(x) for x in cast], [float(x) for x in added]
        D = [0.0, *oracle.recurrence(attacks, shields)]
        done = [after - before for before, after in itertools.pairwise(D)]
        close(layer.damage[0, j : N - 1, j], torch.tensor(done[:-1]))
        left = [sum(shields[:n]) - (sum(attacks[:n]) - D[n]) for n in range(N - j)]
        close(layer.shield[0, j:, j], torch.tensor(left))


def test_a_worked_case_of_protection() -> None:
    """Attacks 1, 1, 10 and protections 5, 0, 0 of one key do damage 1, 0, 6."""
    S, p = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    S[0, 0, 1:4, 1] = torch.tensor([1.0, 1.0, 10.0])
    p[0, 0, 1, 1] = 5.0
    F = torch.zeros(1, 1, 5, 5)
    F[0, 0, 2:, 1] = torch.tensor([1.0, 1.0, 7.0])
    layer = layer_of(0, masks.Inside(torch.zeros(1, 1, 5, 5), F, S, p, (0,)), torch.ones(1, 1, 5, 5).tril())
    assert layer.damage is not None
    assert layer.shield is not None
    assert layer.damage[0, :, 1].tolist() == [0, 1, 0, 6, 0]
    assert layer.shield[0, :, 1].tolist() == [0, 0, 5, 4, 0]


def close(found: Any, expected: torch.Tensor) -> None:
    assert np.allclose(found, expected.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_softmax_and_a_selection_that_is_off_have_scores_alone() -> None:
    for config in (SoftmaxConfig(), selective(selection=False)):
        attention = make(config, n_kv_heads=2)
        with torch.no_grad():
            q, k, v = attention.project(inputs(1), MixerState())
            found = attention.inside(q, k, MixerState())
        assert found is not None
        assert (found.masks, found.votes, found.protection, found.spread) == (None, None, None, ())
        heads = torch.einsum("hij,jhd->ihd", weights_of(found)[0], v[0].repeat_interleave(2, dim=1))
        assert torch.allclose(heads, attention.oracle(q[0], k[0], v[0]), rtol=0, atol=1e-12)
        assert set(layer_of(0, found, weights_of(found)).matrices) == {"weights"}


PROTECTED = {"kind": "selective", "accumulate": {"kind": "protect", "source": {"kind": "head", "head": 1}}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("runs")
    store = RunStore(folder / "store")
    config = runs.make(runs.write_text(folder / "text.txt"), model__n_layers=2, model__attention=PROTECTED)
    record = runs.run_in(store, config)
    torch.set_flush_denormal(False)
    return read_trained(store, record.digest)


def test_a_look_says_what_the_model_says(trained: Trained) -> None:
    ids = tokens_of(trained, "the slow keys")
    assert ids.tolist() == [0, *b"the slow keys"]
    view = look(trained, ids)
    assert view.name == "test/control/0"
    assert view.about == "selective, accumulate protect, 12 steps"
    assert view.tokens == ("⟨doc⟩", *"the slow keys")
    assert [layer.index for layer in view.layers] == [0, 1]
    assert view.selects
    with torch.no_grad():
        chances = trained.model.logits(torch.tensor(ids.astype(np.int64))[None])[0].softmax(-1)
    for row, expected in zip(view.following, chances, strict=True):
        assert len(row) == masks.TOP
        for text, chance in row:
            assert chance == pytest.approx(max(float(expected[ord(text)]) if len(text) == 1 else chance, 0), rel=1e-4)
        assert [chance for _, chance in row] == sorted((chance for _, chance in row), reverse=True)
        assert row[0][1] == pytest.approx(float(expected.max()), rel=1e-4)
    assert view.truth == pytest.approx([float(chances[n, ids[n + 1]]) for n in range(len(ids) - 1)], rel=1e-4)
    for layer in view.layers:
        assert np.allclose(layer.weights.sum(-1), 1, atol=1e-6)
        assert layer.masks is not None
        assert (layer.masks[:, :, 0] == 0).all(), "the start of the document is protected"
    only = look(trained, ids, [1])
    assert [layer.index for layer in only.layers] == [1]
    assert (only.layers[0].weights == view.layers[1].weights).all()
    with pytest.raises(InputError, match="no layer 2; permitted: 0 to 1"):
        look(trained, ids, [2])


def test_a_mechanism_that_shows_another_function_is_refused(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, true = tokens_of(trained, "the slow keys"), SelectiveAttention.inside

    def early(self: SelectiveAttention, *inputs: Any) -> Any:
        """Votes felt by the query that casts them."""
        found = true(self, *inputs)
        assert found.masks is not None
        assert found.votes is not None
        return found._replace(masks=found.masks + found.votes)

    monkeypatch.setattr(SelectiveAttention, "inside", early)
    with pytest.raises(InputError, match="layer 0: SelectiveAttention weighs otherwise than its `inside` says"):
        look(trained, ids)
    monkeypatch.setattr(SelectiveAttention, "inside", Attention.inside)
    with pytest.raises(InputError, match="does not say how it weighs"):
        look(trained, ids)


def test_a_look_leaves_the_model_as_it_was(trained: Trained) -> None:
    before = copy.deepcopy(trained.model.state_dict())
    look(trained, tokens_of(trained, "the"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())
    assert not any(module._forward_hooks for module in trained.model.modules())


def test_texts_that_cannot_be_encoded(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is empty"):
        tokens_of(trained, "")
    with pytest.raises(InputError, match="NUL"):
        tokens_of(trained, "a\0b")
    with pytest.raises(InputError, match="not Unicode"):
        tokens_of(trained, "a\udcffb")
    monkeypatch.setattr(trained.task, "tokenizer", None)
    with pytest.raises(InputError, match="not trained on text"):
        tokens_of(trained, "a")
    monkeypatch.setattr(trained.task, "tokenizer", UnknownTokenizer(256))
    with pytest.raises(InputError, match="these ids are not known as text"):
        tokens_of(trained, "a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "a"),
        (" ", " "),
        ("\n", "⏎\n"),
        ("\t", "⇥"),
        ("\r", "␍"),
        ("\x1b", "␛"),
        ("\x7f", "\\u007f"),
        ("<", "<"),
        ("\0", "⟨doc⟩"),
    ],
)
def test_bytes_are_shown(text: str, expected: str) -> None:
    assert shown(BytesTokenizer(), ord(text)) == expected
    assert shown(BytesTokenizer(), 0xF0) == "\\xf0", "a part of a character"
    assert shown(UnknownTokenizer(300), 299) == "⟨299⟩"


def test_nothing_that_acts_on_text_is_shown() -> None:
    for code in [*range(1, 0x3000), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10000), 0x1F600, 0xE0001, 0x10FFFF]:
        text = masks._visible(chr(code)).removesuffix("\n")
        assert text
        assert all(unicodedata.category(part)[0] not in "C" for part in text), hex(code)
        assert "\u2028" not in text
        assert "\u2029" not in text


def test_tokens_of_several_bytes_are_shown(tmp_path: Path) -> None:
    tokenizer = BPEConfig(vocab_size=270).for_text([b"the slow keys, the slow queries\n\n" * 9])
    ids = tokenizer.encode(["the slow\n\n\U0001f600".encode()])
    text = [shown(tokenizer, int(token)) for token in ids]
    assert text[0] == "⟨doc⟩"
    assert "".join(text[1:]).startswith("the slow⏎\n⏎\n")
    assert max(map(len, text[1:])) > 2
    assert text[-4:] == ["\\xf0", "\\x9f", "\\x98", "\\x80"]

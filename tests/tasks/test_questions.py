"""Programs and areas with letters against plain readings of their grammars; what training and validation share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.oracles.programs import carry_out

from winnow.config import input_errors
from winnow.errors import InputError
from winnow.tasks import Batch, ProgramsConfig, SelectiveCopyingConfig, Task, TaskConfig
from winnow.train.loop import build_task

FEW: dict[str, Any] = {"kind": "programs", "validation": {"questions": 20}}
SMALL: dict[str, Any] = {"kind": "programs", "items": 3, "alphabet": 3, "operations": 1, "validation": {"questions": 9}}
"""36 questions in all."""
GOLDEN = ["JEHWG:-3 +1:HJEWG", "NYFMI:-4:NYFI", "ZARWK:5>4 -2 -2:ZKW"]


def config(table: dict[str, Any]) -> TaskConfig:
    return TaskConfig.model_validate(table)


def texts(batch: Batch) -> list[str]:
    return [bytes(row).decode() for row in batch.targets.tolist()]


def asked(task: Task, of: TaskConfig) -> list[str]:
    assert of.validation_tokens is not None
    (batch,) = task.validation(of.validation_tokens).batches(100_000)
    return texts(batch)


def spans(low: int, high: int) -> st.SearchStrategy[Any]:
    pair = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda ends: sorted(ends))
    return st.one_of(st.integers(low, high), pair)


def ends(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, list) else (value, value)


@settings(max_examples=25, deadline=None)
@given(items=spans(2, 12), operations=spans(1, 7), weights=st.sampled_from([(1, 0, 0), (2, 1, 3), (0, 1, 1)]))
def test_programs_are_what_the_grammar_says(items: Any, operations: Any, weights: tuple[int, int, int]) -> None:
    exchange, remove, insert = weights
    found = config(
        {"kind": "programs", "items": items, "operations": operations, "alphabet": 15, "exchange": exchange,
         "remove": remove, "insert": insert, "validation": {"questions": 3}}
    )  # fmt: skip
    batch = found.build().batch(1, 0, range(40), 40)
    for text in texts(batch):
        question, written, answer = text.rstrip(" ").split(":")
        assert answer == carry_out(text, alphabet=15)
        assert ends(items)[0] <= len(question) <= ends(items)[1]
        assert ends(operations)[0] <= len(written.split(" ")) <= ends(operations)[1]
        assert len(text) <= found.context
    kinds = Counter(mark for text in texts(batch) for mark in text if mark in ">-+")
    assert {mark for mark, weight in zip(">-+", weights, strict=True) if not weight}.isdisjoint(kinds)


def test_every_operation_and_every_place_comes_up() -> None:
    batch = (
        config({**FEW, "items": [2, 4], "operations": 6, "remove": 1, "insert": 1})
        .build()
        .batch(0, 0, range(2000), 2000)
    )
    seen = {operation for text in texts(batch) for operation in text.split(":")[1].split(" ")}
    exchanges = {f"{i}>{j}" for i in range(1, 5) for j in range(1, 5) if i != j}
    assert seen == exchanges | {f"-{i}" for i in range(1, 5)} | {f"+{i}" for i in range(1, 5)}


@pytest.mark.parametrize("weights", [(1, 0, 0), (1, 1, 1), (0, 1, 1)])
@pytest.mark.parametrize("items", [[2, 3], 10, 11])
def test_context_is_the_longest_text(items: Any, weights: tuple[int, int, int]) -> None:
    """By all programs there are, each position of each list at its widest."""

    def most(listed: int, stacked: int, left: int) -> int:
        if not left:
            return listed
        found = []
        if weights[0] and listed > 1:
            found.append(len(f" {listed}>{listed - 1}") + most(listed, stacked, left - 1))
        if weights[1] and listed > 1:
            found.append(len(f" -{listed}") + most(listed - 1, stacked + 1, left - 1))
        if weights[2] and stacked:
            found.append(len(f" +{listed + 1}") + most(listed + 1, stacked - 1, left - 1))
        return max(found)

    low, high = ends(items)
    table = dict(zip(("exchange", "remove", "insert"), weights, strict=True))
    found = config({**FEW, "items": items, "operations": [1, 4], **table})
    assert found.context == max(n + 1 + most(n, 0, left) for n in range(low, high + 1) for left in range(1, 5))


def test_the_defaults_are_the_published_task() -> None:
    found = ProgramsConfig()
    assert (found.context, found.validation_tokens, found.validation.seed) == (23, 230_000, 23)
    task = found.build()
    held_out = asked(task, found)
    assert len(held_out) == 10_000
    assert {len(text.rstrip(" ")) for text in held_out} == {23}
    batch = task.batch(0, 0, range(600), 600)
    lengths = Counter(len(text.rstrip(" ")) for text in texts(batch))
    assert lengths.keys() == {15, 19, 23}
    assert all(140 < n < 260 for n in lengths.values())
    assert ((batch.tokens == 0).sum(dim=1) == 5).all()
    letters = Counter(letter for text in texts(batch) for letter in text[:5])
    assert len(letters) == 26
    assert all(60 < n < 180 for n in letters.values())  # 115.4 expected, sd 10.5


def test_only_the_answer_is_blank_and_shorter_texts_end_in_spaces() -> None:
    batch = config({**FEW, "items": [2, 4], "operations": [1, 4]}).build().batch(3, 0, range(50), 50)
    assert batch.answer is not None
    assert batch.mask is None
    widths = {len(text.rstrip(" ")) for text in texts(batch)}
    assert len(widths) > 4
    assert batch.targets.shape[1] == max(widths)
    for text, read, answer in zip(texts(batch), batch.tokens.tolist(), batch.answer.tolist(), strict=True):
        start, end = text.rindex(":") + 1, len(text.rstrip(" "))
        assert bytes(read) == text[:start].encode() + b"\0" * (end - start) + b" " * (len(text) - end)
        assert [i for i, counted in enumerate(answer) if counted] == list(range(start, end))


def test_an_update_is_padded_as_one_however_it_is_cut() -> None:
    task = config({**FEW, "operations": [1, 3]}).build()
    for rows in (4, 6):
        whole = task.batch(0, 5, range(rows), rows)
        parts = [task.batch(0, 5, range(i, i + 2), rows) for i in range(0, rows, 2)]
        for name in ("tokens", "targets", "answer"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_rows_depend_on_their_address_alone() -> None:
    task, again = (config(FEW).build() for _ in range(2))
    later = [texts(task.batch(seed, step, range(3000), 3000)) for seed, step in ((0, 0), (1, 2), (0, 2))]
    assert texts(again.batch(0, 2, range(3000), 3000)) == later[2]  # across the end of a block
    assert texts(again.batch(0, 0, range(3000), 3000)) == later[0]
    one = texts(again.batch(0, 6000, range(1), 1))[0]
    assert one.strip() == later[2][0].strip()
    assert len({*later[0], *later[1], *later[2]}) > 8900  # seeds and steps share nothing but chance
    assert task.digest == again.digest


def test_these_texts_are_drawn_on_every_machine() -> None:
    batch = config({**FEW, "remove": 1, "insert": 1}).build().batch(0, 0, range(3), 3)
    assert [text.strip() for text in texts(batch)] == GOLDEN


@pytest.mark.parametrize("operations", [1, [1, 2]])
def test_training_never_asks_what_validation_asks(operations: Any) -> None:
    found = config({**SMALL, "operations": operations, "validation": {"questions": 9, "operations": 1}})
    task = found.build()
    held_out = {text.strip() for text in asked(task, found)}
    assert len(held_out) == 9
    drawn = {text.strip() for step in range(3) for text in texts(task.batch(0, step, range(4000), 4000))}
    assert not drawn & held_out
    assert len({text for text in drawn if len(text) == 11}) == 36 - 9  # and all others


def test_a_validation_set_may_not_take_everything() -> None:
    every = config({**SMALL, "validation": {"questions": 36}})
    with pytest.raises(InputError, match="holds 100% of the training texts"):
        every.build()
    with pytest.raises(InputError, match="different questions, 37 are asked for"):
        config({**SMALL, "validation": {"questions": 37}}).build()


def test_validation_has_a_seed_of_its_own() -> None:
    one, other = (config({**FEW, "validation": {"questions": 20, "seed": seed}}) for seed in (23, 24))
    assert asked(one.build(), one) != asked(other.build(), other)
    assert one.build().digest != other.build().digest
    assert one.build().validation_digest != other.build().validation_digest


def test_letters_are_copied_in_their_order() -> None:
    found = config({"kind": "selective-copying", "letters": [1, 4], "area": [4, 9], "alphabet": 5,
                    "validation": {"questions": 30, "area": 12}})  # fmt: skip
    assert found.context == 12 + 1 + 4
    task = found.build()
    counts: Counter[int] = Counter()
    places: Counter[int] = Counter()
    for text in texts(task.batch(0, 0, range(4000), 4000)):
        area, answer = text.rstrip(" ").split(":")
        assert answer == area.replace(" ", "")
        assert 4 <= len(area) <= 9
        assert set(answer) <= set("ABCDE")
        counts[len(answer)] += 1
        places.update(i for i, letter in enumerate(area) if letter != " " and len(area) == 9)
    assert counts.keys() == {1, 2, 3, 4}
    assert all(850 < n < 1150 for n in counts.values())
    assert places.keys() == set(range(9))
    assert max(places.values()) < 1.4 * min(places.values())
    assert {text.index(":") for text in asked(task, found)} == {12}
    assert SelectiveCopyingConfig().context == 26


def test_the_front_of_a_set_and_nothing_that_cuts_a_question() -> None:
    found = config(FEW)
    task = found.build()
    front = task.validation(46)
    assert (front.n_tokens, front.n_bytes) == (46, None)
    assert [texts(batch) for batch in front.batches(1)] == [[text] for text in asked(task, found)[:2]]
    assert front.digest != task.validation(460).digest == task.validation_digest
    for tokens in (0, 45, 483):
        with pytest.raises(InputError, match=r"no whole number of the set's 20 questions of 23 bytes.*all 460"):
            task.validation(tokens)
    with pytest.raises(InputError, match="no running text"):
        task.validation_bytes(46)


def test_means_of_batches_pad_each_to_its_own_longest() -> None:
    found = config({**FEW, "validation": {"questions": 20, "operations": [1, 3]}})
    assert found.validation_tokens is not None
    whole = found.build().validation(found.validation_tokens)
    assert {batch.tokens.shape[1] for batch in whole.batches(1)} == {23}
    each = whole.in_batches(1)
    assert {batch.tokens.shape[1] for batch in each.batches(1)} == {15, 19, 23}
    assert each.n_tokens == sum(batch.tokens.shape[1] for batch in each.batches(1)) < whole.n_tokens
    assert each.first(2).n_tokens == 46


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        ({"items": 1}, "items", "lists of 1 to 1 letters"),
        ({"items": [4, 3]}, "items", "holds no number"),
        ({"items": 27}, "items", "lists of 27 to 27"),
        ({"items": 6, "alphabet": 5}, "items", "2 to 5, the alphabet"),
        ({"validation": {"items": 30}}, "validation.items", "lists of 30"),
        ({"exchange": 0}, "exchange", "no program can begin"),
        ({"insert": 1}, "insert", "without remove"),
        ({"remove": 1, "operations": 5}, "operations", "may leave one of 5 items"),
        ({"remove": 1, "operations": 4, "validation": {"operations": 5}}, "validation.operations", "at most 4"),
        ({"context": 64}, "context", "the longest text has 23 bytes"),
        ({"operation": 3}, "operation", "unknown key"),
        ({"kind": "selective-copying", "letters": 9, "area": [8, 20]}, "area", "9 letters do not fit"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config({"kind": "programs", **table})
    (error,) = input_errors(caught.value)
    assert error.key == key
    assert message in f"{error.message}; {error.mend}"


@pytest.mark.parametrize("table", [{"kind": "programs"}, {"kind": "selective-copying"}])
def test_every_option_is_read(table: dict[str, Any]) -> None:
    found = config({**table, "validation": {"questions": 7}})
    _, reads = build_task(found)
    fields = {(path, name) for path, part in found.walk() for name in type(part).model_fields}
    assert {place for place in fields - set(reads) if place[1] != "kind"} == {("", "validation")} & fields - set(reads)
    assert config(found.dump()) == found

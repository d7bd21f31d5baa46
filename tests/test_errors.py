"""User errors: their place, their one line, their mend, and that they survive a trip between processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from winnow.errors import InputError, nearest


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("is wrong"), "is wrong"),
        (InputError("is wrong", file=Path("a.toml")), "a.toml: is wrong"),
        (InputError("is wrong", file="a.toml", line=3), "a.toml:3: is wrong"),
        (InputError("is wrong", line=3), "line 3: is wrong"),
        (InputError("is wrong", key="a.b"), "a.b: is wrong"),
        (InputError("is wrong", file="a.toml", line=3, key="a.b", mend="mend it"), "a.toml:3: a.b: is wrong; mend it"),
    ],
)
def test_the_text_names_place_key_and_mend(error: InputError, text: str) -> None:
    assert str(error) == text
    assert isinstance(error, ValueError)


def test_at_fills_in_what_was_not_known_and_keeps_the_rest() -> None:
    error = InputError("is wrong", key="inner", mend="mend it").at(file="a.toml", line=2, key="outer")
    assert str(error) == "a.toml:2: inner: is wrong; mend it"
    assert str(error.at(file="b.toml", line=9)) == str(error)
    assert InputError("is wrong", line=0).at(line=5).line == 0


def test_an_error_survives_pickling() -> None:
    error = InputError("is wrong", file="a.toml", line=3, key="a.b", mend="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.message, again.file, again.line, again.key, again.mend) == (
        error.message,
        error.file,
        error.line,
        error.key,
        error.mend,
    )


def test_nearest_names_the_likeliest_and_all() -> None:
    assert nearest("warmpu", ["steps", "warmup"]) == "did you mean 'warmup'? permitted: steps, warmup"
    assert nearest("zzz", ["steps", "warmup"]) == "permitted: steps, warmup"
    assert nearest("zzz", []) == "permitted: none"

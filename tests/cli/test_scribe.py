"""Results in between: at every look, otherwise as seldom as their cost demands; trouble with the file stops no run."""

from __future__ import annotations

import pytest

from winnow.cli import running
from winnow.cli.running import Scribe
from winnow.errors import InputError
from winnow.study.events import LookEnded, LookStarted, RunEnded, RunKey, RunStarted

RUN = RunKey("a", 0, "d")
LOOK = LookStarted(1, 2, 3, ("a",), (RUN,))
ENDED = RunEnded(RUN, "finished")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.writes = 0

    def monotonic(self) -> float:
        return self.now

    def write(self) -> None:
        self.writes += 1
        self.now += 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(running, "time", found)
    return found


def test_a_write_of_one_second_waits_twenty(clock: Clock):
    scribe = Scribe(clock.write)
    scribe(ENDED)
    assert clock.writes == 1
    clock.now += 19.0
    scribe(ENDED)
    assert clock.writes == 1
    clock.now += 2.0
    scribe(ENDED)
    assert clock.writes == 2


def test_every_look_is_written_and_what_tells_nothing_is_not(clock: Clock):
    scribe = Scribe(clock.write)
    for event in (LOOK, LookEnded(1, 2, ()), LOOK):
        scribe(event)
    assert clock.writes == 3
    clock.now += 1000.0
    scribe(RunStarted(RUN, 0, 10))
    scribe(RunEnded(RUN, "interrupted"))
    assert clock.writes == 3


def test_a_file_that_cannot_be_written_now_is_said_and_tried_again(clock: Clock, capsys: pytest.CaptureFixture[str]):
    def refuse() -> None:
        raise InputError("this fence is never closed", file="lab.md", line=3)

    scribe = Scribe(refuse)
    scribe(LOOK)
    assert "results are not written yet: lab.md:3: this fence is never closed" in capsys.readouterr().err
    scribe(LOOK)
    assert "not written yet" in capsys.readouterr().err

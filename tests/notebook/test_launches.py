"""Command blocks as launches: what reaches the program, what is lost, and the state of the block."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from winnow.notebook.launches import block_states, launches
from winnow.notebook.pages import Page
from winnow.notebook.statements import statements


def page(text: str) -> Page:
    return Page.parse(text.encode(), Path("page.md"))


def one(block: str, info: str = ""):
    (found,) = launches(page(f"text\n\n```{info}\n{block}\n```\n"))
    return found


def test_flags_launcher_and_code_version():
    found = one(
        "cd x && git fetch && git checkout abc123 && git pull && DEBUG=1 torchrun --standalone "
        "--nproc_per_node=gpu \\\n"
        "  --master_port 29501 -m lab.train --run-name r1 --group=g --seed 7 --fast &> r1.txt"
    )
    assert (found.module, found.launcher, found.interface, found.processes) == ("lab.train", "torchrun", "flags", "gpu")
    assert [(o.name, o.value, o.line) for o in found.options] == [
        ("run_name", "r1", 5), ("group", "g", 5), ("seed", "7", 5), ("fast", None, 5)
    ]  # fmt: skip
    assert (found.name, found.group, found.seed, found.redirect) == ("r1", "g", 7, "r1.txt")
    assert found.port is not None
    assert found.port.value == "29501"
    assert found.checkout is not None
    assert (found.checkout.text, found.pulls) == ("abc123", True)
    assert list(found.environment) == ["DEBUG"]


def test_settings_by_environment():
    found = one("MAX_STEPS=9 LOG_DIR=a CUDA_VISIBLE_DEVICES=0,1 python train.py &> a.txt")
    assert found.interface == "environment"
    assert [(o.name, o.value) for o in found.options] == [("max_steps", "9"), ("log_dir", "a")]
    assert (found.devices, found.name) == ("0,1", "a")


def test_what_follows_a_torn_line_is_lost():
    found = one("python -m t --a 1\n--b 2 \\\n--c\n")
    assert [(o.name, o.value, o.line) for o in found.lost] == [("b", "2", 5), ("c", None, 6)]
    assert [o.name for o in found.options] == ["a"]
    torn = one("python -m t --a 1 \\ \n  --b 2")
    assert [word.line for word in torn.arguments] == [4]
    assert [o.name for o in torn.lost] == ["b"]


def test_a_remote_call_names_its_machine():
    found = one('./far.sh 42 "cd x && nohup torchrun -m t --seed 1 \\\n --b 2 &> f"')
    assert (found.remote, found.module, found.seed) == ("42", "t", 1)
    assert [o.line for o in found.options] == [4, 5]


@pytest.mark.parametrize(
    "line",
    [
        "pip install x", "python -m pip install x", "python -c 'x'", "echo python -m t", "python",
        "git commit -m 'python x.py'",
    ],
)  # fmt: skip
def test_what_trains_nothing_is_no_launch(line: str):
    assert launches(page(f"```\n{line}\n```")) == ()


def test_only_shells_and_states_hold_commands():
    line = "python -m t --a 1"
    assert [len(launches(page(f"```{info}\n{line}\n```"))) for info in ("", "bash", "python", "vast:finished")] == [
        1,
        1,
        0,
        1,
    ]
    pasted = launches(page("```console\n$ python -m t \\\n    --a 1\npython -m out --b 2\n```"))
    assert [(each.module, [o.line for o in each.options]) for each in pasted] == [("t", [3])]


def test_states_of_blocks():
    infos = ["vast", "vast:verified", "vast:running/9", "vast:fail/9", "vast:finished", "mine:finished", "python"]
    states = block_states(page("".join(f"```{info}\n```\n" for info in infos)))
    assert [state.state for state in states] == ["waiting", "verified", "running", "fail", "finished", "finished"]
    assert not any(state.problem for state in states)
    wrong = ["vastrunning/12", "vast:runing/12", "vast:running", "vast:finished/3", "vast/12"]
    states = block_states(page("".join(f"```{info}\n```\n" for info in wrong)))
    assert [state.line for state in states] == [1, 3, 5, 7, 9]
    assert all(state.problem for state in states)


HYPOTHESES = """\
## One

Results:

- "wide nets will be much better than narrow ones"
  - not so: 0.3 worse

<hr>

Narrow nets, with width 8.

Hypothesis: wide nets will be better by much.

```
python -m t --width 8
```

**Hypothesis:** nobody answers this.

```
python -m t --depth 2
```

## Two

Hypothesis: own answer.
Result: yes, 0.2 nats.

Further words.

```
python -m t --depth 3
```

## Three

OK, hypotheses:

- first
- second

I expect nothing of it.

```
python -m t --depth 4
```
"""


def test_hypotheses_with_their_answers():
    found = page(HYPOTHESES)
    said = statements(found, launches(found))
    shown = [(h.line, h.launches, bool(h.result), h.verdict.line if h.verdict else None) for h in said.hypotheses]
    assert shown == [
        (12, (0,), False, 5),
        (18, (1,), False, None),
        (26, (2,), True, None),
        (39, (), False, None),
        (40, (), False, None),
    ]
    own = said.hypotheses[2].result
    assert own is not None
    assert (own.text, own.line, own.last_line) == ("yes, 0.2 nats.\n\nFurther words.", 27, 29)
    assert [(p.line, p.launches) for p in said.predictions] == [(42, (3,))]


def test_every_command_of_the_public_notebook_is_read(shared_sources: Path):
    found = Page.read(next(shared_sources.glob("001_*.txt")))
    started = launches(found)
    assert (found.n_lines, len(found.sections), len(started)) == (2907, 37, 203)
    assert Counter(each.launcher for each in started) == {"torchrun": 179, "python": 24}
    assert Counter(each.processes for each in started) == {"gpu": 166, "4": 11, "1": 2, None: 24}
    assert Counter(each.interface for each in started) == {"flags": 190, "environment": 13}
    assert Counter(each.seed for each in started) == {1337: 54, 1338: 44, 1339: 8, 1340: 2, None: 95}
    assert sum(each.remote is not None for each in started) == 14
    assert sum(each.redirect is not None for each in started) == 78
    assert sum(each.pulls for each in started) == 151
    assert len({(each.group, each.name) for each in started}) < len({each.line for each in started})
    assert len({each.group for each in started} - {None}) == 26
    states = Counter(state.state or "broken" for state in block_states(found))
    assert states == {"finished": 99, "running": 4, "broken": 1}
    assert [(each.line, [option.line for option in each.lost]) for each in started if each.lost] == [
        (1953, [1958]), (2095, [2101]), (2148, [2154]), (2159, [2165]), (2427, [2432, 2433])
    ]  # fmt: skip
    hypotheses = statements(found, started).hypotheses
    labelled = [each for each in hypotheses if found.lines[each.line - 1].lstrip().startswith("Hypothesis:")]
    assert len(labelled) == 47
    assert sum(each.result is not None for each in labelled) == 19
    assert sum(each.verdict is not None for each in labelled) == 11
    assert len(hypotheses) == 47 + 6 + 6

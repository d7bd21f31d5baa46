"""Every rule of the health watch through `winnow run`: a planted fault is named, and what is invalid decides nothing.

All faults are arms of one study, trained by one real command. What needs a faulty mechanism comes from broken.py,
which the study names under `use`. That a clean study has no finding at all stands in test_run.py.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.cli.tiny import winnow, winnow_process, write_study

FAULTY = """\
arms.dead = { train.clip = 1e6 }
arms.diverges = { train.lr = 1e6 }
arms.explodes = { train.lr = 1.0, train.steps = 30 }
arms.unread = { train.lr = 0.02, train.min_lr_fraction = 0.5 }
arms.warming = { train.warmup = 6 }
arms.detached = { model.attention = { kind = "broken", fault = "detached" } }
arms.leaks = { model.attention = { kind = "broken", fault = "leaks" }, model.norm = { kind = "loud", gain = 20.0 } }
arms.loud = { model.norm = { kind = "loud" } }
arms.skips = { model.attention = { kind = "broken", fault = "skips" } }
claims.expected = { claim = "dead worse-than control on val/ce smallest 0.01", expect = "invalid" }
"""
ARMS = re.findall(r"arms\.(\w+)", FAULTY)
CLAIMS = "".join(f'claims.{arm} = "{arm} better-than control on val/ce smallest 0.01"\n' for arm in ARMS)
CHANGES = {
    "seeds = [0, 1, 2]\nlooks = [2, 3]": 'seeds = [0, 1]\nlooks = [2]\nuse = ["broken.py"]',
    "lr = 0.01 }": 'lr = 0.01, clip = "off", schedule = "constant" }',
}


class Faulty(NamedTuple):
    """The faulty study after its run."""

    folder: Path
    verdicts: dict[str, dict[str, Any]]
    findings: list[dict[str, Any]]
    printed: str

    def found(self, rule: str, arm: str) -> dict[str, Any]:
        """The only finding of a rule on an arm."""
        (found,) = (
            item
            for item in self.findings
            if item["rule"] == rule and arm in (item["where"], item["message"].split(",")[0])
        )
        return found


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    folder = tmp_path_factory.mktemp("faulty")
    file = write_study(folder, FAULTY + CLAIMS, changes=CHANGES)
    shutil.copy(Path(__file__).with_name("broken.py"), folder)
    ended = winnow_process("run", file.name, "--jobs", 1, "--trust", cwd=folder)
    assert ended.code == 1, ended.err
    compared = winnow("compare", file.name, "--json", cwd=folder)
    assert compared.code == 1
    report = json.loads(compared.out)[0]
    verdicts = {verdict["claim"]["id"]: verdict for verdict in report["verdicts"]}
    return Faulty(folder, verdicts, report["findings"], ended.out + ended.err)


@pytest.mark.parametrize(
    ("arm", "rule", "words"),
    [
        ("detached", "dead-parameter", "attention.gate never moved and never had a gradient"),
        ("leaks", "first-loss", "the model knows its targets before it is trained"),
        ("skips", "steps-missing", "6 steps were asked for, the optimizer did 1"),
        ("unread", "unread-option", "option train.min_lr_fraction = 0.5 was never read"),
        ("dead", "no-effect", "setting train.clip (off and 1000000.0) had no effect"),
    ],
)
def test_what_makes_a_claim_invalid(faulty: Faulty, arm: str, rule: str, words: str):
    verdict = faulty.verdicts[arm]
    assert (verdict["status"], verdict["expected"], verdict["effect"]) == ("invalid", False, None)
    assert words in verdict["reason"]
    matching = [item for item in faulty.findings if words in item["message"] and item["severity"] == "invalid"]
    assert [item["rule"] for item in matching] == [rule], "said once, not for every seed"
    assert f"{rule}: " in faulty.printed


@pytest.mark.parametrize(
    ("arm", "rule", "words"),
    [
        ("diverges", "non-finite", r"step \d+: .* is the first tensor with NaN or infinite values"),
        ("explodes", "loss-divergence", r"step \d+: smoothed loss .* is above"),
        ("loud", "first-loss", "the initial values are too large"),
        ("warming", "warmup-only", "the schedule never leaves warm-up: 6 steps, warm-up of 6"),
    ],
)
def test_what_is_said_beside_the_verdict(faulty: Faulty, arm: str, rule: str, words: str):
    found = faulty.found(rule, arm)
    assert found["severity"] == "warning"
    assert re.search(words, found["message"])
    assert faulty.verdicts[arm]["status"] != "invalid"
    assert re.search(words, faulty.printed)


def test_the_control_is_clean(faulty: Faulty):
    assert not [item for item in faulty.findings if item["message"].startswith("control")]


def test_divergence_is_an_outcome(faulty: Faulty):
    for arm in ("diverges", "explodes"):
        assert faulty.verdicts[arm]["status"] == "undecided"
        assert "diverged" in faulty.verdicts[arm]["reason"]
        found = faulty.found("diverged-runs", arm)
        assert found["message"].startswith("seeds 0, 1 diverged"), "the arm stands before it, once"
        assert f"warning: {arm}: diverged-runs: seeds 0, 1 diverged" in faulty.printed


def test_an_invalid_verdict_that_is_expected_fails_nothing_and_asks_for_nothing(faulty: Faulty):
    verdict = faulty.verdicts["expected"]
    assert (verdict["status"], verdict["expected"]) == ("invalid", True)
    assert not [note for note in verdict["notes"] if "exploratory" in note]
    file = write_study(faulty.folder, FAULTY, changes=CHANGES)
    ended = winnow("compare", file.name, cwd=faulty.folder)
    assert "as the author expects" in ended.out
    assert ended.code == 0, "without the other claims nothing is unexpectedly invalid"


def test_results_escape_what_the_study_says(faulty: Faulty):
    text = (faulty.folder / "tiny.results.md").read_text()
    assert text.startswith("# Does &lt;b&gt;anything&lt;/b&gt; \\| help \\[here\\](x)?\n")
    assert "<b>" not in text

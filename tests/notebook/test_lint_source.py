"""The first public notebook of commands: every defect that a rule can see, at its line."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from winnow.notebook.launches import launches
from winnow.notebook.lint import lint_bytes
from winnow.notebook.pages import Page
from winnow.notebook.rules import RULES, Finding

TABLE = tomllib.loads((Path(__file__).parent / "defects_001.toml").read_text())
COMPLETE = TABLE.pop("complete")


@pytest.fixture
def source(shared_sources: Path) -> bytes:
    return next(shared_sources.glob("001_*.txt")).read_bytes()


@pytest.fixture
def findings(source: bytes) -> tuple[Finding, ...]:
    return lint_bytes(source, Path("notebook.txt"))


def by_rule(findings: tuple[Finding, ...]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for item in findings:
        found[item.rule].add(item.line)
    return found


def test_every_rule_of_the_table_exists():
    assert {rule for rules in TABLE.values() for rule in rules} | set(COMPLETE) <= set(RULES)


def test_every_defect_is_reported_at_its_line(findings: tuple[Finding, ...]):
    found = by_rule(findings)
    missing = {
        (defect, rule, line)
        for defect, rules in TABLE.items()
        for rule, lines in rules.items()
        for line in lines
        if line not in found[rule]
    }
    assert missing == set()


def test_the_exact_rules_report_nothing_else(findings: tuple[Finding, ...]):
    found = by_rule(findings)
    listed: dict[str, set[int]] = defaultdict(set)
    for rules in TABLE.values():
        for rule, lines in rules.items():
            listed[rule].update(lines)
    beyond = {(rule, line) for rule in COMPLETE for line in found[rule] - listed[rule]}
    assert beyond == set()


def test_pairs_of_runs_that_replace_each_other(findings: tuple[Finding, ...]):
    pairs = [(item.related[0], item.line) for item in findings if item.rule == "run-overwritten"]
    assert pairs == [(27, 74), (1685, 1716), (1685, 1727), (1716, 1727), (1738, 1749), (1760, 1771)]
    assert sum(item.rule == "run-collides" for item in findings) == 12


def plain(findings: tuple[Finding, ...]) -> list[tuple[int, str, tuple[int, ...]]]:
    return sorted((item.line, item.rule, item.related) for item in findings)


def test_renaming_runs_and_groups_moves_nothing(source: bytes, findings: tuple[Finding, ...]):
    """Every group and run gets another name, wherever a command gives or removes it.

    Only what a name says besides being one stays: a revision, a path, that it is the baseline, a number.
    """
    found = launches(Page.parse(source, Path("x")))
    names = {each.group for each in found} | {each.name for each in found}
    kept = re.compile(r"^[0-9a-f]{7,}$|baseline|/")
    renamed = {name: f"zz_{name}" for name in names if name and not kept.search(name)}
    text = re.sub(
        r"((?:--group|--log_dir) +|LOG_DIR=|rm -rf )([^\s;]+)",
        lambda match: match[1] + renamed.get(match[2], match[2]),
        source.decode(),
    )
    assert text.count("zz") > 300
    assert plain(lint_bytes(text.encode(), Path("notebook.txt"))) == plain(findings)


@pytest.mark.parametrize("inserted", ["\n\n\n", "<!-- a comment -->\n\n", "\r\n"])
def test_lines_put_in_move_the_findings_along(source: bytes, findings: tuple[Finding, ...], inserted: str):
    """Before every second heading, and at the top."""
    lines = source.decode().split("\n")
    page = Page.parse(source, Path("x"))
    before = {1} | {section.line for section in page.sections[1::2]}
    n = len(re.findall(r"\r\n|\n", inserted))
    text = "".join((inserted if number in before else "") + line + "\n" for number, line in enumerate(lines, 1))

    def moved(line: int) -> int:
        return line + n * sum(start <= line for start in before)

    expected = sorted((moved(line), rule, tuple(map(moved, related))) for line, rule, related in plain(findings))
    assert plain(lint_bytes(text.encode(), Path("notebook.txt"))) == expected


def test_newlines_of_windows_change_nothing(source: bytes, findings: tuple[Finding, ...]):
    assert plain(lint_bytes(source.replace(b"\n", b"\r\n"), Path("notebook.txt"))) == plain(findings)


def count(path: Path) -> dict[str, int]:
    return {rule: len(lines) for rule, lines in by_rule(lint_bytes(path.read_bytes(), path)).items()}


def test_the_other_sources(shared_sources: Path):
    by_number = {path.name[:3]: path for path in shared_sources.glob("*.txt")}
    zero = by_rule(lint_bytes(by_number["000"].read_bytes(), by_number["000"]))
    assert zero["arm-empty"] == {3, 5, 7}  # G1
    assert zero["section-empty"] == {46}  # G2
    assert zero["evidence-missing"] == {15}  # G3
    assert zero["result-of-another"] == {39}  # G4
    assert 23 in zero["result-open"]  # G5
    three = by_rule(lint_bytes(by_number["003"].read_bytes(), by_number["003"]))
    assert three == {"link-broken": {7, 12, 51}}
    four = by_rule(lint_bytes(by_number["004"].read_bytes(), by_number["004"]))
    assert four["fence-first-line"] == {57, 68, 128, 179, 250, 262, 325, 351, 544}
    assert four["fence-inline"] == {4, 6, 8, 10, 12, 14, 16}
    assert len(four["link-broken"]) == 11
    assert sum(count(by_number["002"]).values()) == 0

"""`winnow judge`: verdicts on a table, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from winnow.errors import InputError
from winnow.study.judge import judge_table, read_table

ROWS = """arm,seed,val_loss
control,0,3.2793
control,1,3.2781
control,2,3.2786
wide,0,3.2569
wide,1,3.2552
wide,2,3.2575
dead,0,3.2793
dead,1,3.2781
dead,2,3.2786
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "results.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_claim_on_a_table(tmp_path: Path, delimiter: str) -> None:
    table = read_table(write(tmp_path, ROWS.replace(",", delimiter)))
    found = judge_table(table, "val_loss", "arm", "seed", ["wide better-than control on val_loss smallest 0.01"])
    assert [each.status for each in found] == ["supported"]
    assert found[0].effect == pytest.approx(-0.0221333, abs=1e-6)
    assert any("one look at all runs" in note for note in found[0].notes)


def test_no_claim_compares_every_arm_with_the_control(tmp_path: Path) -> None:
    found = judge_table(read_table(write(tmp_path, ROWS)), "val_loss", "arm", "seed")
    assert [(each.claim.text, each.status, each.exploratory) for each in found] == [
        ("wide better-than control on val_loss", "supported", True),
        ("dead better-than control on val_loss", "invalid", True),
    ]
    first = ROWS.replace("control", "base")
    assert judge_table(read_table(write(tmp_path, first)), "val_loss", "arm", "seed")[0].claim.arms == ("wide", "base")


def test_higher_is_better(tmp_path: Path) -> None:
    (found,) = judge_table(
        read_table(write(tmp_path, ROWS)), "val_loss", "arm", "seed", ["wide worse-than control on val_loss"], "higher"
    )
    assert found.status == "supported"


def test_without_pairs_the_samples_are_independent(tmp_path: Path) -> None:
    rows = "\n".join(line for line in ROWS.splitlines() if not line.startswith("dead,2"))
    (found, _) = judge_table(read_table(write(tmp_path, rows)), "val_loss", "arm", None)
    assert found.rho is None
    assert found.status == "supported"


def test_nan_is_a_divergence(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, ROWS.replace("3.2552", "nan")))
    (found,) = judge_table(table, "val_loss", "arm", "seed", ["wide better-than control on val_loss"])
    assert (found.status, found.reason.count("diverged")) == ("undecided", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROWS.replace("val_loss", "val_los"), "no column is called 'val_loss'; did you mean 'val_los'?"),
        (ROWS.replace("3.2552", "three"), "results.csv:6: val_loss: 'three' is no number"),
        (ROWS.replace("3.2552", ""), "results.csv:6: val_loss: '' is no number"),
        (ROWS.replace("wide,1", "wide,0"), "results.csv:6: seed: arm 'wide' has seed 0 already on line 5"),
        (ROWS.replace("wide,1,3.2552", "wide,1"), "results.csv:6: 2 cells where the header names 3 columns"),
        (ROWS.replace("wide,1", ",1"), "results.csv:6: arm: names no arm"),
        (ROWS.replace("arm,seed", "seed,seed"), "two columns have one name"),
        ("arm,seed,val_loss\n", "holds no rows"),
        ("", "holds no rows"),
        ("arm,seed,val_loss\na,0,1\n", "holds only the arm 'a'"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        judge_table(read_table(write(tmp_path, text)), "val_loss", "arm", "seed")
    assert message in str(caught.value)


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="not text"):
        read_table(tmp_path / "binary")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "missing")
    table = read_table(write(tmp_path, ROWS))
    with pytest.raises(InputError, match="no arm is called 'wid'; did you mean 'wide'"):
        judge_table(table, "val_loss", "arm", "seed", ["wid better-than control on val_loss"])

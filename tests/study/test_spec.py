"""Study files: what they mean, and what is refused at which line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from winnow.errors import InputError
from winnow.study.spec import load_study, parse_change, parse_study

TEXT = """\
id = "bos-protection"
question = "Does protecting the BOS token from being masked matter?"
seeds = [0, 1, 2, 3, 4, 5, 6, 7]
looks = [3, 5, 8]
endpoint = { metric = "val/ce", better = "lower" }
base.task = { kind = "corpus", source = "stdlib", context = 256 }
base.model = { preset = "mini", attention = { kind = "selective" } }
base.train = { steps = 400 }
arms.control = {}
arms.no-bos = { model.attention.protect_bos = false }
claims.h1 = "no-bos worse-than control on val/ce by 0.002 smallest 0.005"
claims.h2 = { claim = "no-bos better-than control on val/ce smallest 0.01", expect = "refuted" }
"""


def test_the_format_of_the_manual():
    study = parse_study(TEXT, "study.toml")
    assert study.id == "bos-protection"
    assert study.seeds == tuple(range(8))
    assert study.looks == (3, 5, 8)
    assert study.endpoint.metric == "val/ce"
    assert study.base["model"] == {"preset": "mini", "attention": {"kind": "selective"}}
    assert study.arms == {"control": {}, "no-bos": {"model": {"attention": {"protect_bos": False}}}}
    assert [claim.id for claim in study.claims] == ["h1", "h2"]
    assert study.claim("h1").smallest == 0.005
    assert study.claim("h2").expect == "refuted"
    assert (study.control, study.use, study.runs, study.plan_name) == ("control", (), "winnow", "bos-protection")
    assert study.lines.where(("claims", "h1")) == "study.toml:11"


@pytest.mark.parametrize(
    ("seeds", "looks"), [(1, (1,)), (2, (2,)), (3, (3,)), (4, (3, 4)), (8, (3, 5, 8)), (12, (3, 5, 8, 12))]
)
def test_looks_by_default(seeds: int, looks: tuple[int, ...]):
    study = parse_study(f'id = "a"\narms.control = {{}}\nseeds = {list(range(seeds))}\n')
    assert study.looks == looks


WRONG = [
    # (line to change, replacement, line of the error, key, words of the message, words of the mend)
    ('id = "bos-protection"', 'id = "../escape"', 1, "id", "not permitted", "letters"),
    ('id = "bos-protection"', "id = 3", 1, "id", "valid string", ""),
    ('id = "bos-protection"', "", None, "id", "missing", ""),
    ("question =", "qestion =", 2, "qestion", "unknown key", "did you mean 'question'"),
    ("seeds = [0, 1,", "seeds = [0, 0,", 3, "seeds.1", "given twice", ""),
    ("seeds = [0, 1,", "seeds = [-1, 1,", 3, "seeds.0", "greater than or equal to 0", ""),
    ("seeds = [0, 1,", 'seeds = ["0", 1,', 3, "seeds.0", "valid integer", ""),
    ("looks = [3, 5, 8]", "looks = [3, 5, 9]", 4, "looks.2", "beyond the 8 seeds", "add seeds"),
    ("looks = [3, 5, 8]", "looks = [5, 3]", 4, "looks.1", "does not come after 5", "increase"),
    ("looks = [3, 5, 8]", "looks = []", 4, "looks", "no look", ""),
    ('better = "lower"', 'better = "less"', 5, "endpoint.better", "not permitted", "'lower'"),
    ('better = "lower"', "steps = 3", 5, "endpoint.steps", "unknown key", "did you mean 'step'"),
    ("base.train = { steps = 400 }", "base.train = 400", 8, "base.train", "should be a table", ""),
    ("base.train", "base.trian", 8, "base.trian", "unknown key", "did you mean 'train'"),
    ("arms.control = {}", "arms.control = 3", 9, "arms.control", "", ""),
    ("arms.no-bos = {", "arms.no-bos = { x = 1, ", 10, "arms.no-bos.x", "unknown key", "permitted"),
    ("arms.no-bos", 'arms."no bos"', 10, 'arms."no bos"', "not permitted", ""),
    ("no-bos worse-than control", "no-bso worse-than control", 11, "claims.h1", "'no-bso'", "did you mean 'no-bos'"),
    ("worse-than", "worst-than", 11, "claims.h1", "expected better-than", "permitted forms"),
    ('expect = "refuted"', 'expect = "refused"', 12, "claims.h2.expect", "not permitted", "refuted"),
    ('expect = "refuted"', 'expct = "refuted"', 12, "claims.h2", "unknown key", "did you mean 'expect'"),
    ("base.train = { steps = 400 }", "base.train = { steps = inf }", 8, "base.train.steps", "inf", ""),
    ("base.train = { steps = 400 }", "base.train = { steps = 1979-05-27 }", 8, "base.train.steps", "1979", ""),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "message", "mend"), WRONG)
def test_a_wrong_study_names_its_place(old: str, new: str, line: int | None, key: str, message: str, mend: str):
    assert old in TEXT
    wrong = "\n" * 6 + TEXT.replace(old, new, 1) if new else "\n" * 6 + TEXT.replace(old + "\n", "", 1)
    with pytest.raises(InputError) as caught:
        parse_study(wrong, "study.toml", first_line=3)
    error = caught.value
    assert (error.file, error.line, error.key) == ("study.toml", None if line is None else line + 8, key)
    assert message in error.message
    assert mend in (error.mend or "")
    assert "\n" not in str(error)


def test_changes_from_the_command_line(tmp_path: Path):
    file = tmp_path / "study.toml"
    file.write_text(TEXT)
    changes = dict(
        map(parse_change, ["base.train.steps=10", "model.attention.kind=softmax", "seeds=[5, 6]", "looks=[2]"])
    )
    study = load_study(file, changes=changes)
    assert study.base["train"] == {"steps": 10}
    assert study.base["model"]["attention"] == {"kind": "softmax"}
    assert study.seeds == (5, 6)
    assert study.plan_name.startswith("bos-protection.set-"), "a changed study keeps no plan of the written one"
    assert load_study(file).plan_name == "bos-protection"
    assert study.folder == tmp_path
    with pytest.raises(InputError, match="qestion"):
        load_study(file, changes={"qestion": "?"})
    with pytest.raises(InputError, match="not a table"):
        load_study(file, changes={"id.x": 1})
    with pytest.raises(InputError, match="not a setting"):
        parse_change("steps")


def test_files_that_are_no_studies(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text in UTF-8"):
        load_study(tmp_path / "binary.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load_study(tmp_path)
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_study(tmp_path / "bom.toml", only="bos-protection").id == "bos-protection"
    with pytest.raises(InputError, match=r"no study 'other'; permitted: bos-protection"):
        load_study(tmp_path / "bom.toml", only="other")


def test_arms_of_recorded_runs_are_free_tables():
    study = parse_study(
        'id = "r"\nruns = "recorded"\narms.control = { lr = 0.1 }\narms.b = { lr = 0.2, depth = "x" }\n'
    )
    assert study.arms["b"] == {"lr": 0.2, "depth": "x"}


def test_a_claim_on_recorded_runs_is_on_the_endpoint():
    """Nothing else says which way another metric is better, so it is refused before anything was recorded."""
    with pytest.raises(InputError, match=r"3: claims\.less: nothing says whether depth is better lower or higher"):
        parse_study(
            'runs = "recorded"\nid = "r"\nclaims.less = "b better-than control on depth"\n'
            'endpoint.metric = "loss"\narms.control = {}\narms.b = {}\n'
        )


def test_reading_a_study_needs_no_torch():
    code = (
        "import sys, winnow.study.audit, winnow.study.plan, winnow.study.spec\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules, 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""`winnow status`: every run's state, every claim's answer, and which claims never got one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.tiny import winnow
from tests.study.planned import AT, made_up, run, run_all
from tests.study.planned import TEXT as PLANNED_TEXT

from winnow.cli.standing import state_of
from winnow.study.plan import Edit, load_plan, save_plan, source_digests

# Three seeds cannot tell so small an effect.
TEXT = PLANNED_TEXT.replace(
    "dead better-than control on val/ce smallest 0.01", "dead better-than control on val/ce smallest 0.0001"
)
EXPECTED = 'claims.h3 = { claim = "dead better-than control on val/ce smallest 0.01", expect = "invalid" }\n'


def status(folder: Path) -> dict:
    return json.loads(winnow("status", "made-up.toml", "--json", cwd=folder).out)[0]


def test_states_of_runs_and_answers_of_claims(tmp_path: Path):
    (tmp_path / "made-up.toml").write_text(TEXT)
    found = status(tmp_path)
    assert found["state"] == "planned", "nothing was ever resolved"
    assert found["arms"]["good"] == {"planned": [0, 1, 2, 3, 4, 5, 6, 7]}
    study, store = made_up(tmp_path, TEXT)
    run(study, store, "control", 0)
    assert status(tmp_path)["state"] == "in progress"
    run_all(study, store)
    run(study, store, "dead", 3, status="failed", error="Traceback\nValueError: no")
    found = status(tmp_path)
    # h1 is decided after three seeds; h2 goes on, with the arms it needs.
    assert found["arms"]["good"] == {"finished": [0, 1, 2], "not needed": [3, 4, 5, 6, 7]}
    assert found["arms"]["control"] == {"finished": [0, 1, 2], "planned": [3, 4, 5, 6, 7]}
    assert found["arms"]["dead"] == {"finished": [0, 1, 2], "failed": [3], "planned": [4, 5, 6, 7]}
    claims = found["claims"]
    assert (claims["h1"]["status"], claims["h1"]["answered"], claims["h1"]["runs"]) == (
        "supported",
        True,
        "in progress",
    )
    assert (claims["h2"]["status"], claims["h2"]["answered"], claims["h2"]["runs"]) == ("undecided", False, "failed")
    assert (found["unanswered"], found["state"]) == (["h2"], "failed")


def test_an_edited_arm_is_stale_and_a_held_run_is_running(tmp_path: Path):
    study, store = made_up(tmp_path, TEXT)
    run_all(study, store, seeds=2)
    (tmp_path / "made-up.toml").write_text(TEXT.replace("model.width = 2", "model.width = 3"))
    found = status(tmp_path)
    assert set(found["arms"]["good"]) == {"stale"}
    assert found["claims"]["h1"]["runs"] == "stale"
    (tmp_path / "made-up.toml").write_text(TEXT)
    digest = json.loads(store.plan_path("made-up").read_text())["arms"]["good"]["runs"]["2"]
    store.path(digest).mkdir()
    with store.lock(digest):
        found = status(tmp_path)
        assert (found["state"], found["claims"]["h1"]["runs"]) == ("running", "running")
        assert found["claims"]["h2"]["runs"] == "in progress"


def test_what_was_rewritten_is_named(tmp_path: Path):
    study, store = made_up(tmp_path, TEXT)
    run_all(study, store, seeds=2)
    file = tmp_path / "made-up.toml"
    file.write_text(TEXT)
    assert (status(tmp_path)["rewritten"], status(tmp_path)["edits"]) == ({}, [])
    edited = TEXT.replace("model.width = 2", "model.width = 3, train.lr = 0.1").replace("train.clip = 1000.0", "")
    file.write_text(edited + "arms.new = { model.width = 5 }\n")
    assert status(tmp_path)["rewritten"] == {"good": ["model.width", "train.lr"], "dead": ["train.clip"]}
    said = winnow("status", "made-up.toml", cwd=tmp_path).out
    assert "  good was rewritten since it was resolved: model.width, train.lr\n" in said
    assert "new was rewritten" not in said, "it was added"


def test_a_use_file_that_was_rewritten_is_named(tmp_path: Path):
    (tmp_path / "mine.py").write_text("")
    text = TEXT.replace('id = "made-up"\n', 'id = "made-up"\nuse = ["mine.py"]\n')
    study, store = made_up(tmp_path, text)
    plan = load_plan(store, study)
    assert plan is not None
    save_plan(store, study, plan.replace({"sources": source_digests(study)}))
    (tmp_path / "made-up.toml").write_text(text)
    assert status(tmp_path)["rewritten"] == {}
    (tmp_path / "mine.py").write_text("x = 1")
    assert status(tmp_path)["rewritten"] == {arm: ["mine.py"] for arm in study.arms}


def test_older_plans_do_not_know_the_keys_but_every_edit_has_its_time(tmp_path: Path):
    study, store = made_up(tmp_path, TEXT)
    plan = load_plan(store, study)
    assert plan is not None
    arms = {name: arm.replace({"table": None}) for name, arm in plan.arms.items()}
    edit = Edit(at=AT, kind="arm", key="good", what="arm good was rewritten: model.width", claims=("h1",))
    save_plan(store, study, plan.replace({"arms": arms, "started": AT, "edits": (edit,)}))
    (tmp_path / "made-up.toml").write_text(TEXT.replace("model.width = 2", "model.width = 3"))
    found = status(tmp_path)
    assert found["rewritten"] == {"good": None}
    assert [(edit["at"], edit["key"]) for edit in found["edits"]] == [(AT, "good")]
    said = winnow("status", "made-up.toml", cwd=tmp_path).out
    assert "  good was rewritten since it was resolved: its keys are not known\n" in said
    assert f"  arm good was rewritten: model.width (seen {AT}, after the runs began)\n" in said


def test_an_invalid_claim_is_unanswered_unless_it_was_meant(tmp_path: Path):
    text = TEXT + EXPECTED
    study, store = made_up(tmp_path, text)
    for arm in study.arms:
        for seed in study.seeds:
            same = "control" if arm == "dead" else arm
            run(study, store, arm, seed, 2.0 + seed / 100, weights=f"{same} {seed}", trace=f"{same} {seed}")
    (tmp_path / "made-up.toml").write_text(text)
    found = status(tmp_path)
    assert [claim["status"] for claim in found["claims"].values()][1:] == ["invalid", "invalid"]
    assert "h2" in found["unanswered"]
    assert "h3" not in found["unanswered"]
    said = winnow("status", "made-up.toml", cwd=tmp_path).out
    assert f"{len(found['unanswered'])} of 3 claims have no answer yet: " in said
    assert "made-up/h2" in said


@pytest.mark.parametrize(
    ("runs", "state"),
    [
        (["planned", "planned"], "planned"),
        (["finished", "planned"], "in progress"),
        (["finished", "not needed", "diverged"], "finished"),
        (["finished", "failed", "planned"], "failed"),
        (["finished", "failed", "running"], "running"),
        (["stale", "failed"], "stale"),
        (["interrupted", "planned"], "interrupted"),
        ([], "finished"),
    ],
)
def test_one_word_for_several_runs(runs: list[str], state: str):
    assert state_of(runs) == state

"""What the plan remembers: frozen claims, edits after the start, stale arms; seen through `compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.study.planned import AT, TEXT, planned, run, run_all

from winnow.errors import InputError
from winnow.records.store import RunStore
from winnow.study.compare import Comparison, compare
from winnow.study.plan import load_plan, rewritten, save_plan, seen
from winnow.study.spec import Study, parse_study

H1 = 'claims.h1 = "good better-than control on val/ce smallest 0.01"'
LATER = "2026-02-02T00:00:00+00:00"


def read(folder: Path, text: str = TEXT) -> Study:
    return parse_study(text, folder / "made-up.toml")


def started(folder: Path) -> RunStore:
    """A store with a plan whose runs have begun, and the first look's runs."""
    study, store = read(folder), RunStore(folder / "winnow-store")
    save_plan(store, study, planned(study).replace({"started": AT}))
    run_all(study, store)
    return store


def edited(folder: Path, store: RunStore, old: str, new: str) -> Comparison:
    assert old in TEXT
    return compare(read(folder, TEXT.replace(old, new)), store)


def why(found: Comparison, claim: str) -> str:
    verdict = next(verdict for verdict in found.verdicts if verdict.claim.id == claim)
    return " ".join(note for note in verdict.notes if "exploratory" in note) if verdict.exploratory else ""


def test_a_study_and_its_store_may_be_moved_together(tmp_path: Path):
    (tmp_path / "old").mkdir()
    store = started(tmp_path / "old")
    study = read(tmp_path / "old")
    plan = load_plan(store, study)
    assert plan is not None
    save_plan(store, study, plan.replace({"file": str(study.file)}))
    assert json.loads(store.plan_path("made-up").read_text())["file"] == "../made-up.toml"
    (tmp_path / "old").rename(tmp_path / "new")
    moved = load_plan(RunStore(tmp_path / "new" / "winnow-store"), study)
    assert moved is not None
    assert moved.file == str(tmp_path / "new" / "made-up.toml")


def test_a_plan_survives_its_file(tmp_path: Path):
    store = started(tmp_path)
    study = read(tmp_path)
    plan = load_plan(store, study)
    assert plan is not None
    assert plan.arms["good"].runs["3"] == plan.run("good", 3)
    save_plan(store, study, plan)
    assert load_plan(store, study) == plan
    path = store.root / "studies" / "made-up.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(InputError, match="version 2"):
        load_plan(store, study)
    path.write_text("{")
    with pytest.raises(InputError, match=r"made-up\.json"):
        load_plan(store, study)


def test_nothing_edited_nothing_exploratory(tmp_path: Path):
    store = started(tmp_path)
    found = compare(read(tmp_path), store)
    assert why(found, "h1") == why(found, "h2") == ""
    assert found.plan.edits == ()


def test_an_edited_claim_is_exploratory_and_an_undone_edit_is_not(tmp_path: Path):
    store = started(tmp_path)
    change = ("good better-than control on val/ce smallest 0.01", "good better-than control on val/ce by 0.05")
    found = edited(tmp_path, store, *change)
    assert "was 'good better-than control on val/ce smallest 0.01'" in why(found, "h1")
    assert why(found, "h2") == ""
    assert [edit.key for edit in found.plan.edits] == ["h1"]
    at = found.plan.edits[0].at
    again = edited(tmp_path, store, *change)
    assert [edit.at for edit in again.plan.edits] == [at], "the first time that it was seen counts"
    plan = load_plan(store, read(tmp_path))
    assert plan is not None
    changed = read(tmp_path, TEXT.replace(*change))
    assert [edit.at for edit in seen(changed, plan, {}, LATER).edits] == [at]
    undone = compare(read(tmp_path), store)
    assert why(undone, "h1") == ""
    assert len(undone.plan.edits) == 1, "the history stays"


def test_the_layout_of_a_claim_is_free(tmp_path: Path):
    store = started(tmp_path)
    found = edited(tmp_path, store, H1, 'claims.h1 = { claim = "good  better-than control on val/ce smallest 1e-2" }')
    assert why(found, "h1") == ""


def test_what_is_expected_is_frozen_too(tmp_path: Path):
    store = started(tmp_path)
    sentence = "good better-than control on val/ce smallest 0.01"
    found = edited(tmp_path, store, H1, f'claims.h1 = {{ claim = "{sentence}", expect = "invalid" }}')
    assert found.plan.edits[0].key == "h1"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("looks = [3, 5, 8]", "looks = [2, 5, 8]", "looks changed from 3, 5, 8 to 2, 5, 8"),
        ("seeds = [0, 1,", "seeds = [1, 0,", "seeds changed"),
        ("seeds =", "rule.alpha = 0.1\nseeds =", "rule changed"),
        ("seeds =", 'endpoint = { metric = "val/ce", step = 5 }\nseeds =', "endpoint changed"),
    ],
)
def test_a_changed_design_makes_every_claim_exploratory(tmp_path: Path, old: str, new: str, words: str):
    store = started(tmp_path)
    study = read(tmp_path, TEXT.replace(old, new))
    plan = seen(study, load_plan(store, read(tmp_path)) or planned(study), {}, LATER)
    assert words in plan.edits[0].what
    assert plan.edits[0].claims == ("h1", "h2")
    assert plan.edits[0].at == LATER
    assert seen(read(tmp_path), plan, {}, LATER).edits == plan.edits


def test_looks_added_at_the_end_are_read_by_the_e_process(tmp_path: Path):
    text = TEXT.replace("seeds = [0, 1, 2, 3, 4, 5, 6, 7]\nlooks = [3, 5, 8]", "seeds = [0, 1, 2]")
    study, store = read(tmp_path, text), RunStore(tmp_path / "winnow-store")
    save_plan(store, study, planned(study).replace({"started": AT}))
    run_all(study, store)
    more = read(tmp_path)
    run_all(more, store, 8)
    found = compare(more, store)
    assert why(found, "h1") == why(found, "h2") == ""
    assert [finding.rule for finding in found.findings] == ["looks-added"]
    assert found.verdicts[0].looks == (3,), "the frozen looks are the ones that spend alpha"


def test_a_dropped_and_a_renamed_claim_are_said(tmp_path: Path):
    store = started(tmp_path)
    found = edited(tmp_path, store, "claims.h1", "claims.h9")
    assert "already had results" in why(found, "h9")
    assert "claim h1 was dropped" in found.plan.edits[0].what
    assert [finding.rule for finding in found.findings] == ["edited-after-start"]


def test_a_claim_on_a_new_arm_is_confirmatory(tmp_path: Path):
    store = started(tmp_path)
    text = TEXT.replace("arms.dead", "arms.new = { model.width = 3 }\narms.dead") + (
        'claims.h3 = "new better-than control on val/ce smallest 0.01"\n'
    )
    study = read(tmp_path, text)
    old = load_plan(store, study)
    assert old is not None
    plan = seen(
        study, rewritten(study, old, planned(study), set(), LATER), {("control", 0): AT, ("good", 0): AT}, LATER
    )
    save_plan(store, study, plan)
    assert why(compare(study, store), "h3") == ""


def test_claims_may_change_until_the_first_run(tmp_path: Path):
    study, store = read(tmp_path), RunStore(tmp_path / "winnow-store")
    save_plan(store, study, planned(study))
    changed = read(tmp_path, TEXT.replace("smallest 0.01", "smallest 0.02"))
    run_all(changed, store, 0)
    found = compare(changed, store)
    assert found.plan.edits == ()
    assert found.plan.claims["h1"].text.endswith("smallest 0.02")


def test_a_rewritten_arm_is_stale_and_then_an_edit(tmp_path: Path):
    store = started(tmp_path)
    changed = read(tmp_path, TEXT.replace("model.width = 2", "model.width = 4"))
    found = compare(changed, store)
    assert found.stale == ("good",)
    assert found.verdicts[0].status == "undecided", "runs of the old arm say nothing of the new one"
    assert [finding.rule for finding in found.findings] == ["stale-arm"]
    assert found.findings[0].where == f"{tmp_path / 'made-up.toml'}:6"
    old = load_plan(store, changed)
    assert old is not None
    ended = set(store.digests())
    plan = rewritten(changed, old, planned(changed), ended, LATER)
    assert [edit.what for edit in plan.edits] == ["arm good was rewritten: model.width"]
    save_plan(store, changed, plan)
    run(changed, store, "good", 0)
    found = compare(changed, store)
    assert "model.width" in why(found, "h1")
    assert why(found, "h2") == ""
    assert rewritten(changed, old, planned(changed), set(), LATER).edits == (), "without results nothing was seen"


def test_a_newer_winnow_is_no_edit_but_other_data_is(tmp_path: Path):
    store = started(tmp_path)
    study = read(tmp_path)
    old = load_plan(store, study)
    assert old is not None
    good = old.arms["good"]
    ended = set(store.digests())
    newer = old.replace({"arms": {**old.arms, "good": good.replace({"identity": {**good.identity, "~revision": 1}})}})
    assert newer.run("good", 0) != old.run("good", 0)
    assert rewritten(study, old, newer, ended, LATER).edits == ()
    other = old.replace({"arms": {**old.arms, "good": good.replace({"data": "other"})}})
    assert [edit.what for edit in rewritten(study, old, other, ended, LATER).edits] == [
        "arm good was rewritten: its data"
    ]


def test_a_set_study_has_a_plan_of_its_own(tmp_path: Path):
    store = started(tmp_path)
    changed = parse_study(TEXT, tmp_path / "made-up.toml", changes={"base.train.steps": 3})
    assert load_plan(store, changed) is None
    assert load_plan(store, read(tmp_path)) is not None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("arms.good = { model.width = 2 }", "arms.good = { model.width = 3 }", "arm good was rewritten: model.width"),
        ("base.train = { steps = 10 }", "base.train = { steps = 20 }", "arm good was rewritten: train.steps"),
        ("arms.dead = { train.clip = 1000.0 }\n", "", "arm dead was removed"),
        ("arms.control = {}", "arms.control = {}\narms.more = { model.width = 9 }", "arm more was added"),
    ],
)
def test_an_edit_of_arms_or_base_names_its_keys_and_the_time(tmp_path: Path, old: str, new: str, said: str):
    store = started(tmp_path)
    before = load_plan(store, read(tmp_path))
    text = TEXT.replace(old, new)
    if "dead" not in text.split("claims")[0]:
        text = "\n".join(line for line in text.split("\n") if not line.startswith("claims.h2"))
    study = read(tmp_path, text)
    assert before is not None
    finished = {before.run(arm, seed) for arm in before.arms for seed in range(3)}
    plan = rewritten(study, before, planned(study), finished, LATER)
    (edit,) = [edit for edit in plan.edits if edit.what == said]
    assert edit.at == LATER
    assert edit.claims == (("h1",) if "good" in said else ())
    save_plan(store, study, plan)
    found = compare(study, store)
    assert any(f"{said} (seen {LATER}, after the runs began)" in item.message for item in found.findings)
    assert ("rewritten" in why(found, "h1")) == ("good" in said)


def test_another_control_or_question_after_the_start_is_said(tmp_path: Path):
    store = started(tmp_path)
    found = edited(tmp_path, store, "seeds = [0", 'control = "good"\nseeds = [0')
    assert "control changed from control to good" in why(found, "h1")
    found = edited(tmp_path, store, "seeds = [0", 'question = "Or so?"\nseeds = [0')
    assert any("question changed from nothing to Or so?" in item.message for item in found.findings)
    assert not why(found, "h1"), "the claims stand as they were frozen"


def test_a_changed_use_file_is_named(tmp_path: Path):
    study = read(tmp_path)
    old = planned(study).replace({"sources": {"mine.py": "1"}, "started": AT})
    arms = {name: arm.replace({"written": "other"}) for name, arm in old.arms.items()}
    new = old.replace({"sources": {"mine.py": "2"}, "arms": arms})
    finished = {old.run("good", 0)}
    (edit,) = rewritten(study, old, new, finished, LATER).edits
    assert edit.what == "arm good was rewritten: mine.py"

"""`supersedes`: which study replaces which, what is refused, and how a withdrawn study is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.tiny import winnow
from tests.fakes import fake_record
from tests.study.planned import AT, TEXT, planned, run_all

from winnow.errors import InputError
from winnow.notebook.document import Document
from winnow.records.store import RunStore
from winnow.study.compare import compare
from winnow.study.plan import save_plan
from winnow.study.spec import Study, parse_study
from winnow.study.succession import Place, Successions

H2 = "dead better-than control on val/ce smallest 0.01"


def study(folder: Path, name: str, old: str | None = None, file: str = "lab.md") -> Study:
    return parse_study(text(name, old), folder / file)


def text(name: str, old: str | None = None) -> str:
    more = f'supersedes = "{old}"\n' if old else ""
    # Nobody can say so little of `dead` after three seeds.
    return TEXT.replace('id = "made-up"\n', f'id = "{name}"\n{more}').replace(H2, H2.replace("0.01", "0.0001"))


def cell(name: str, old: str | None = None) -> str:
    return f"```toml study\n{text(name, old)}```\n"


def recorded(folder: Path, *studies: Study) -> RunStore:
    """A store with plans and the first look's runs of each study."""
    store = RunStore(folder / "winnow-store")
    for each in studies:
        plan = planned(each).replace({"started": AT, "file": str(each.file)})
        save_plan(store, each, plan)
        run_all(each, store)
    return store


def test_links_of_one_file(tmp_path: Path):
    a, b, c = study(tmp_path, "a"), study(tmp_path, "b", "a"), study(tmp_path, "c", "b")
    found = Successions(RunStore(tmp_path / "store"), [a, b, c], file=tmp_path / "lab.md")
    lab = (tmp_path / "lab.md").resolve()
    assert (found.of("a").replaces, found.of("a").replaced_by) == (None, Place("b", lab))
    assert (found.of("b").replaces, found.of("b").replaced_by) == (Place("a", lab), Place("c", lab))
    assert (found.of("c").replaces, found.of("c").replaced_by) == (Place("b", lab), None)
    assert found.of("other") == found.of("another")


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("a", "a")], "study 'a' supersedes itself"),
        ([("alpha", None), ("b", "alhpa")], "there is no study 'alhpa' to supersede; did you mean 'alpha'?"),
        ([("a", "b"), ("b", "a")], "supersede each other: a supersedes b supersedes a"),
        ([("a", "c"), ("b", "a"), ("c", "b")], "supersede each other"),
        ([("a", None), ("b", "a"), ("c", "a")], "'a' is superseded by"),
        ([("a", "../b")], "'../b' is not permitted"),
    ],
)
def test_what_cannot_be_is_refused_with_the_line(tmp_path: Path, pairs: list[tuple[str, str | None]], words: str):
    with pytest.raises(InputError) as caught:
        Successions(RunStore(tmp_path), [study(tmp_path, *pair) for pair in pairs])
    assert words in str(caught.value)
    assert (caught.value.line, caught.value.key) == (2, "supersedes")
    assert caught.value.mend


def test_of_two_rivals_the_later_one_is_refused(tmp_path: Path):
    lab = tmp_path / "lab.md"
    lab.write_text(f"# Lab\n\n{cell('a')}\n{cell('b', 'a')}\n{cell('c', 'a')}")
    ended = winnow("check", "lab.md", cwd=tmp_path)
    line = 1 + lab.read_text().splitlines().index('id = "c"') + 1
    assert f"lab.md:{line}: supersedes: 'a' is superseded by 'b' already; supersede 'b'" in ended.err
    assert ended.code == 2
    a, b, c = study(tmp_path, "a"), study(tmp_path, "b", "a"), study(tmp_path, "c", "a")
    declared = {each.id: each.supersedes for each in (a, b, c)}
    assert Successions(RunStore(tmp_path / "store"), [b], file=lab, declared=declared).of("a").replaced_by is not None
    with pytest.raises(InputError, match="superseded by 'b' already"):
        Successions(RunStore(tmp_path / "store"), [c], file=lab, declared=declared)


def test_a_study_of_another_file_is_found_in_the_store(tmp_path: Path):
    old, new = study(tmp_path, "old", file="old.md"), study(tmp_path, "new", "old", file="new.md")
    store = recorded(tmp_path, old)
    assert Successions(store, [new]).of("new").replaces == Place("old", (tmp_path / "old.md").resolve())
    store = recorded(tmp_path, new)
    assert Successions(store, [old]).of("old").replaced_by == Place("new", (tmp_path / "new.md").resolve())
    with pytest.raises(InputError, match="superseded by 'new' already"):
        Successions(store, [study(tmp_path, "third", "old", file="third.md")])
    again = study(tmp_path, "old", "new", file="old.md")
    with pytest.raises(InputError, match="each other"):
        Successions(store, [again])


def test_a_cell_that_has_gone_or_says_so_no_more_replaces_nothing(tmp_path: Path):
    old, new = study(tmp_path, "old"), study(tmp_path, "new", "old")
    store = recorded(tmp_path, old, new)
    lab = tmp_path / "lab.md"
    assert Successions(store, [old], file=lab, declared={"old": None, "new": "old"}).of("old").replaced_by is not None
    assert Successions(store, [old], file=lab, declared={"old": None, "new": None}).of("old").replaced_by is None
    assert Successions(store, [old], file=lab, declared={"old": None}).of("old").replaced_by is None


def test_verdicts_of_a_withdrawn_study_are_withdrawn(tmp_path: Path):
    old, new = study(tmp_path, "old"), study(tmp_path, "new", "old")
    store = recorded(tmp_path, old)
    before = compare(old, store).verdicts
    assert before[0].status == "supported"
    store = recorded(tmp_path, new)
    found = compare(old, store)
    assert {verdict.status for verdict in found.verdicts} == {"withdrawn"}
    assert found.verdicts[0].reason == f"withdrawn, replaced by new; it was {before[0].reason}"
    assert found.verdicts[0].numbers == before[0].numbers
    assert compare(new, store).verdicts[0].status == "supported"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A notebook of two studies with records, the second replacing the first."""
    recorded(tmp_path, study(tmp_path, "old"))
    recorded(tmp_path, study(tmp_path, "new", "old"))
    (tmp_path / "lab.md").write_text(f"# Lab\n\n## First\n\n{cell('old')}\n## Second\n\n{cell('new', 'old')}")
    return tmp_path


def test_every_command_says_withdrawn(lab: Path):
    compared = winnow("compare", "lab.md", "--only", "old", cwd=lab)
    assert "withdrawn, replaced by new" in compared.out
    assert "supported" not in compared.out.replace("it was supported", "")
    data = json.loads(winnow("compare", "lab.md", "--json", cwd=lab).out)
    assert [row["status"] for row in data[0]["verdicts"]] == ["withdrawn", "withdrawn"]
    assert (data[0]["withdrawn"], data[1]["withdrawn"], data[1]["supersedes"]) == ({"by": "new"}, None, "old")
    table = json.loads(winnow("table", "lab.md", "--only", "old", "--format", "json", cwd=lab).out)
    assert [row["status"] for row in table["verdicts"]] == ["withdrawn", "withdrawn"]
    assert "withdrawn" in winnow("why", "lab.md", "old/h1", cwd=lab).out
    status = winnow("status", "lab.md", cwd=lab).out
    assert "old (withdrawn, replaced by new)" in status
    # Those of a withdrawn study are nobody's question.
    assert "1 of 4 claims have no answer yet: new/h2; 2 withdrawn\n" in status
    rows = json.loads(winnow("status", "lab.md", "--json", cwd=lab).out)
    assert [claim["answered"] for claim in rows[0]["claims"].values()] == [False, False]
    assert (rows[0]["unanswered"], rows[1]["unanswered"]) == ([], ["h2"])


def loss_cell(name: str, old: str | None = None) -> str:
    """A study of runs that another program made: `winnow run` judges it without a model."""
    more = f'supersedes = "{old}"\n' if old else ""
    return (
        f'```toml study\nid = "{name}"\n{more}runs = "recorded"\nseeds = [0, 1, 2]\nendpoint.metric = "loss"\n'
        "arms.control = { depth = 4 }\narms.deep = { depth = 8 }\n"
        'claims.h1 = "deep better-than control on loss smallest 0.01"\n```\n'
    )


def losses(folder: Path, *names: str) -> None:
    store = RunStore(folder / "winnow-store")
    for name in names:
        for arm, depth, loss in (("control", 4, 2.0), ("deep", 8, 1.5)):
            for seed in range(3):
                config = {"depth": depth, "of": name}
                fake_record(store, arm, seed, {"loss": loss + seed / 100 + depth / 900}, study=name, config=config)


def block_of(file: Path, name: str) -> str:
    block = Document.read(file).block(name)
    assert block is not None
    return block.content


def test_both_blocks_of_a_notebook_link_to_each_other(tmp_path: Path):
    lab = tmp_path / "lab.md"
    losses(tmp_path, "old", "new")
    lab.write_text(loss_cell("old"))
    assert winnow("run", "lab.md", cwd=tmp_path).code == 0
    assert "**supported**" in block_of(lab, "old")
    lab.write_text(lab.read_text() + "\n" + loss_cell("new", "old"))
    assert winnow("run", "lab.md", "--only", "new", cwd=tmp_path).code == 0
    old, new = block_of(lab, "old"), block_of(lab, "new")
    assert "**Withdrawn**, replaced by [new](#study-new)." in old
    assert "Replaces [old](#study-old), which is withdrawn." in new
    assert '<a id="study-old"></a>' in old
    assert '<a id="study-new"></a>' in new
    assert "**withdrawn**" in old
    assert "**supported**" not in old
    assert "**supported**" in new
    before = lab.read_bytes()
    for arguments in ((), ("--only", "old"), ("--only", "new")):
        assert winnow("run", "lab.md", *arguments, cwd=tmp_path).code == 0
        assert lab.read_bytes() == before
    lab.write_text(lab.read_text().replace('supersedes = "old"\n', ""))
    assert winnow("run", "lab.md", "--only", "new", cwd=tmp_path).code == 0
    assert winnow("run", "lab.md", cwd=tmp_path).code == 0
    assert "Withdrawn" not in lab.read_text()
    assert block_of(lab, "old").count("**supported**") == 1


def test_a_chain_and_links_into_another_file(tmp_path: Path):
    (tmp_path / "later lab").mkdir()
    losses(tmp_path, "one", "two", "three")
    first, later = tmp_path / "lab.md", tmp_path / "later lab" / "more.md"
    first.write_text(loss_cell("one") + "\n" + loss_cell("two", "one"))
    later.write_text(loss_cell("three", "two"))
    store = ("--store", tmp_path / "winnow-store")
    assert winnow("run", first, *store, cwd=tmp_path).code == 0
    assert winnow("run", later, *store, cwd=tmp_path).code == 0
    assert "Replaces [two](../lab.md#study-two), which is withdrawn." in block_of(later, "three")
    assert "**Withdrawn**" not in block_of(first, "two"), "another file is written by its own command"
    assert winnow("run", first, *store, cwd=tmp_path).code == 0
    two = block_of(first, "two")
    assert "replaced by [three](later%20lab/more.md#study-three)." in two
    assert "Replaces [one](#study-one), which is withdrawn." in two
    assert winnow("run", first, "--only", "tow", *store, cwd=tmp_path).code == 2
    later.write_text(loss_cell("three", "tow"))
    ended = winnow("check", later, *store, cwd=tmp_path)
    assert ended.code == 2
    assert "more.md:3: supersedes: there is no study 'tow' to supersede; did you mean 'two'?" in ended.err

"""Results go back into the file: only what changed, never over somebody's text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from winnow.errors import InputError
from winnow.notebook import execute
from winnow.notebook.document import Document, render_block
from winnow.notebook.execute import Results, open_source, write_results

STUDY = 'id = "{id}"\nquestion = "Q?"\nseeds = [0, 1, 2]\narms.control = {{}}\narms.b = {{ model.d_model = 8 }}\n'
CELL = "```toml study\n" + STUDY + "```\n"


def notebook(folder: Path, *ids: str, newline: str = "\n") -> Path:
    path = folder / "lab.md"
    text = "# Lab\n\n" + "\nprose\n\n".join(CELL.format(id=name) for name in ids) + "\nend\n"
    path.write_bytes(text.replace("\n", newline).encode())
    return path


def test_results_go_under_their_cells_and_a_second_write_changes_nothing(tmp_path: Path):
    path = notebook(tmp_path, "one", "two")
    source = open_source(path)
    results = {name: Results(f"Verdict of {name}", {f"{name}.curves.png": b"png"}) for name in ("one", "two")}
    first = write_results(source, results, tmp_path / "locks")
    assert first.changed
    assert first.files == (path, tmp_path / "one.curves.png", tmp_path / "two.curves.png")
    text, stamp = path.read_bytes(), path.stat().st_mtime_ns
    for name in ("one", "two"):
        assert render_block(name, f"Verdict of {name}").encode() in text
    again = write_results(open_source(path), results, tmp_path / "locks")
    assert (again.changed, again.notes) == (False, ())
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (text, stamp)


def test_an_edit_inside_the_block_is_kept_beside(tmp_path: Path):
    path = notebook(tmp_path, "one", newline="\r\n")
    write_results(open_source(path), {"one": Results("first")}, tmp_path / "locks")
    path.write_bytes(path.read_bytes().replace(b"first", b"my own words"))
    written = write_results(open_source(path), {"one": Results("second")}, tmp_path / "locks")
    assert "had been edited" in written.notes[0]
    (copy,) = tmp_path.glob("lab.one.edited-*.md")
    assert copy.read_text() == "my own words\n"
    assert b"second" in path.read_bytes()
    assert b"my own words" not in path.read_bytes()


def test_edits_of_the_author_during_the_run_win(tmp_path: Path):
    path = notebook(tmp_path, "one", "two")
    source = open_source(path)
    path.write_bytes(path.read_bytes().replace(b"prose", b"better prose").replace(b'"Q?"', b'"Another?"', 1))
    written = write_results(source, {name: Results("R") for name in ("one", "two")}, tmp_path / "locks")
    assert b"better prose" in path.read_bytes()
    assert written.notes == (f"{path}: the cell of one has changed meanwhile; give the command again to judge it",)


def test_a_save_between_reading_and_writing_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = notebook(tmp_path, "one")
    saves = iter([b"\nfirst save\n", b"\nsecond save\n"])

    class Slow(Document):
        def with_results(self, results):  # the author saves while Winnow thinks
            new = super().with_results(results)
            if (more := next(saves, None)) is not None:
                path.write_bytes(path.read_bytes() + more)
            return new

    monkeypatch.setattr(execute, "Document", Slow)
    write_results(open_source(path), {"one": Results("R")}, tmp_path / "locks")
    assert path.read_bytes().endswith(b"\nfirst save\n\nsecond save\n")
    assert render_block("one", "R").encode() in path.read_bytes()


def test_a_cell_that_was_removed_is_said_and_nothing_is_written(tmp_path: Path):
    path = notebook(tmp_path, "one", "two")
    source = open_source(path)
    rest = CELL.format(id="two").encode()
    path.write_bytes(rest)
    written = write_results(source, {"one": Results("R")}, tmp_path / "locks")
    assert path.read_bytes() == rest
    assert "no longer in the file" in written.notes[0]


def test_links_and_permissions_stay(tmp_path: Path):
    folder = tmp_path / "real"
    folder.mkdir()
    path = notebook(folder, "one")
    path.chmod(0o640)
    link = tmp_path / "link.md"
    link.symlink_to(path)
    write_results(open_source(link), {"one": Results("R")}, tmp_path / "locks")
    assert link.is_symlink()
    assert b"winnow:one" in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_leaves_the_notebook_whole(tmp_path: Path):
    path = notebook(tmp_path, "one")
    before = path.read_bytes()
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="Permission denied"):
            write_results(open_source(path), {"one": Results("R")}, Path("/tmp"))
    finally:
        tmp_path.chmod(0o700)
    assert path.read_bytes() == before


def test_a_toml_study_has_its_results_beside_it(tmp_path: Path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(id="one"))
    source = open_source(path)
    results = {"one": Results("# R\n\ntext", {"one.curves.png": b"x"})}
    written = write_results(source, results, tmp_path / "locks")
    own = tmp_path / "study.results.md"
    assert own in written.files
    text = own.read_text()
    assert text.startswith("# R\n\ntext\n")
    assert not write_results(source, results, tmp_path / "locks").changed
    own.write_text(text.replace("text", "mine"))
    written = write_results(source, results, tmp_path / "locks")
    assert own.read_text() == text
    (copy,) = tmp_path.glob("study.results.edited-*.md")
    assert copy.read_text() == "# R\n\nmine\n"
    assert copy.name in written.notes[0]


def test_settings_from_the_command_line_never_touch_the_files_own_results(tmp_path: Path):
    path = notebook(tmp_path, "one")
    before = path.read_bytes()
    source = open_source(path, {"base.train.steps": 3})
    written = write_results(source, {"one": Results("R")}, tmp_path / "locks")
    assert path.read_bytes() == before
    assert [file.name for file in written.files] == [f"lab.{source.studies[0].plan_name}.results.md"]


def test_one_study_of_a_notebook_can_be_asked_for_though_another_is_broken(tmp_path: Path):
    path = notebook(tmp_path, "one", "two")
    path.write_bytes(path.read_bytes().replace(b'question = "Q?"', b"question = ", 1))
    assert [study.id for study in open_source(path, only="two").studies] == ["two"]
    with pytest.raises(InputError, match=r"lab\.md:5: not valid TOML"):
        open_source(path)
    with pytest.raises(InputError, match=r"has no study 'tow'.*did you mean 'two'"):
        open_source(path, only="tow")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.txt", b"", "neither a study nor a notebook"),
        ("x.md", b"# only prose\n", "has no study cell"),
        ("missing.md", None, "no such file"),
        ("missing.toml", None, "no such file"),
        ("x.toml", b"\xff\xfe\x00", "not text in UTF-8"),
        ("x.md", b"\x00\xff", "binary file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, data: bytes | None, words: str):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        open_source(path)
    assert caught.value.mend


def test_an_error_in_a_cell_names_the_line_of_the_notebook(tmp_path: Path):
    path = notebook(tmp_path, "one", "two")
    lines = path.read_text().split("\n")
    at = [number for number, line in enumerate(lines, 1) if line.startswith("seeds")][1]
    path.write_text(path.read_text().replace("seeds = [0, 1, 2]", "seeds = [0, 0]").replace("[0, 0]", "[0, 1, 2]", 1))
    with pytest.raises(InputError, match="given twice") as caught:
        open_source(path)
    assert (caught.value.file, caught.value.line) == (str(path), at)

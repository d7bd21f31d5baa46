"""`winnow index`: one page over a folder; what contradicts is found, what is damaged is listed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.browser import browser
from tests.cli.test_bad_input import one_line
from tests.pages import Checked
from tests.study.planned import TEXT, made_up, run

HOSTILE = "<script>document.title = 'taken'</script>"


def notebook(folder: Path, name: str, effect: float | None, question: str = "") -> Path:
    """A notebook in a folder of its own, whose arm is `effect` above its control; None: nothing has run."""
    folder = folder / name
    folder.mkdir()
    text = TEXT.replace('id = "made-up"', f'id = "{name}"\nquestion = "{question or name}?"')
    study, store = made_up(folder, text)
    for seed in range(3) if effect is not None else ():
        run(study, store, "control", seed, 2.0 + 0.01 * seed)
        run(study, store, "good", seed, 2.0 + 0.011 * seed + (effect or 0))
    path = folder / f"{name}.md"
    path.write_text(f"---\ntags: [tag-of-{name}]\n---\n# Notebook {name}\n\n```toml study\n{text}```\n")
    return path


def test_a_folder_becomes_one_page(winnow, tmp_path: Path):
    first = notebook(tmp_path, "one", -0.1)
    notebook(tmp_path, "two", +0.1)
    notebook(tmp_path, "later", None)
    (tmp_path / "README.md").write_text("# No study here\n")
    (tmp_path / "tool.toml").write_text("[tool]\nx = 1\n")
    assert winnow("report", first).code == 0
    ended = winnow("index", tmp_path)
    assert ended.code == 0, ended.err
    assert "contradicts itself: good - control on val/ce: one/h1 supported, two/h1 refuted" in ended.out
    html = (tmp_path / "index.html").read_text()
    page = Checked(html)
    assert str(tmp_path) not in html
    for words in ("3 files with studies, 6 claims", "1 supported", "1 refuted", "Notebook one", "tag-of-two"):
        assert words in page.text
    contradictions = page.text[page.text.index("Contradictions") : page.text.index("Open questions")]
    assert "one/one.md" in contradictions
    assert "two/two.md" in contradictions
    assert "later" not in contradictions
    assert "0 seeds per arm so far" in page.text[page.text.index("Open questions") :]
    assert "README" not in page.text
    assert {"one/one.html#one.h1", "two/two.md", "later/later.md"} <= set(page.links)
    assert (tmp_path / "one" / "one.html").is_file()
    again = winnow("index", tmp_path, "--json")
    said = json.loads(again.out)
    assert (said["changed"], [each["kind"] for each in said["same"]]) == (False, ["contradiction"])
    assert [each["file"] for each in said["files"]] == ["later/later.md", "one/one.md", "two/two.md"]
    assert said["files"][1]["studies"][0]["claims"] == {"h1": "supported", "h2": "undecided"}


def test_what_is_damaged_is_listed_and_stops_nothing(winnow, tmp_path: Path):
    notebook(tmp_path, "one", -0.1)
    broken = notebook(tmp_path, "two", None)
    broken.write_text(broken.read_text().rstrip("`\n") + "\n")
    torn = notebook(tmp_path, "three", -0.1)
    record = next((torn.parent / "winnow-store" / "runs").glob("*/run.json"))
    record.write_text(record.read_text()[:-40])
    (tmp_path / "bad.toml").write_text("id = \n")
    ended = winnow("index", tmp_path)
    assert ended.code == 1
    assert ended.err.count("error: ") == 3
    both = ended.out + ended.err
    assert (both.count("the study cell is never closed"), both.count("not valid TOML")) == (1, 1), "each said once"
    assert "two/two.md: not read\n" in ended.out
    assert "Traceback" not in ended.err
    read = Checked((tmp_path / "index.html").read_text()).text
    assert "two/two.md:6: the study cell is never closed" in read
    assert "bad.toml:1: not valid TOML" in read
    assert "not judged three/winnow-store/runs/" in read
    assert "1 supported" in read
    assert str(tmp_path) not in read


def test_what_is_wrong_is_one_line(winnow, tmp_path: Path):
    one_line(winnow("index", tmp_path), "holds no notebook")
    one_line(winnow("index", tmp_path / "none"), "no such folder")
    path = notebook(tmp_path, "one", None)
    one_line(winnow("index", path), "is no folder", "winnow report")
    (tmp_path / "index.html").write_text("<h1>my site</h1>")
    one_line(winnow("index", tmp_path), "no page of Winnow's")
    assert (tmp_path / "index.html").read_text() == "<h1>my site</h1>"


def test_a_browser_shows_and_filters_it(winnow, tmp_path: Path):
    notebook(tmp_path, "one", -0.1, HOSTILE)
    notebook(tmp_path, "two", +0.1)
    assert winnow("index", tmp_path).code == 0
    page = tmp_path / "index.html"
    with browser(tmp_path) as tab:
        for width in (360, 1200):
            tab.open(page, width)
            assert tab.requests == [page.as_uri()]
            assert tab.said == []
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.value("document.title").startswith("Notebooks in")
        shown = "[...document.querySelectorAll('.filtered .claims > li')].filter(e => e.offsetHeight).length"
        assert tab.value(shown) == 4
        tab.value("document.querySelector('label[for=show-supported]').click()")
        assert tab.value(shown) == 1
        tab.value("document.querySelector('label[for=show-all]').click()")
        assert tab.value(shown) == 4

"""`winnow report`: one page beside the file, that a browser opens without asking anybody for anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser import Browser, browser
from tests.cli.test_bad_input import one_line
from tests.pages import Checked
from tests.study.planned import TEXT, made_up, run_all

HOSTILE = "<script>document.title = 'taken'</script>"
LAB = f"""---
title: unused
date: 2026-01-02
tags: [first, second]
---
# Does *width* help? {HOSTILE}

Prose with <b onclick="alert(1)">markup</b>, `code` and a [link](https://example.org/).

| a wide | table of | many words | that a phone | cannot show | in its width | without scrolling |
| --- | --- | --- | --- | --- | --- | --- |
| aaaaaaaaaaaaaaaaaaaa | bbbbbbbbbbbbbbbbbbbbb | cccccccccccccccccc | ddddddddddddd | e | f | g |

![far](https://example.org/picture.png)

```toml study
{TEXT.replace('id = "made-up"', 'id = "made-up"' + chr(10) + f'question = "Does it? {HOSTILE}"')}```

AVeryLongWordThatGoesOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOnAndOn
"""


def lab(folder: Path) -> Path:
    """A notebook whose one study has run."""
    study, store = made_up(folder)
    run_all(study, store, metrics=[{"step": step, "val/ce": 4.0 - step / 5} for step in (0, 5, 10)])
    path = folder / "lab.md"
    path.write_text(LAB)
    return path


def test_a_notebook_becomes_one_page_beside_it(winnow, tmp_path: Path):
    notebook = lab(tmp_path)
    ended = winnow("report", notebook)
    assert ended.code == 0, ended.err
    path = tmp_path / "lab.html"
    assert f"page: {path}" in ended.out
    html = path.read_text()
    read = Checked(html).text
    for words in ("Does width help?", "lab.md · 2026-01-02 · first, second", "Prose with", "1 supported", "1 refuted"):
        assert words in read
    assert read.index("1 supported") < read.index("Prose with") < read.index("Study made-up") < read.index("AVeryLong")
    assert str(tmp_path) not in html, "where it lies is nobody's business"
    again = winnow("report", notebook, "--json")
    said = json.loads(again.out)
    assert (said["file"], said["changed"]) == (str(path), False), "the same bytes"
    assert said["studies"][0]["counts"] == {"supported": 1, "refuted": 1}
    assert said["studies"][0]["runs"] == 9


def test_one_study_of_a_notebook_by_name(winnow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = lab(tmp_path)
    ended = winnow("report", path, "--only", "made-up", "--out", tmp_path / "one.html")
    assert ended.code == 0, ended.err
    one = (tmp_path / "one.html").read_text()
    assert "Prose with" not in one
    from winnow.records.store import RunStore
    from winnow.study.compare import compare
    from winnow.study.plan import save_plan
    from winnow.study.spec import load_study  # the plan of `made_up` names no file

    store = RunStore(tmp_path / "winnow-store")
    (tmp_path / "made-up.toml").write_text(TEXT)
    study = load_study(tmp_path / "made-up.toml")
    plan = compare(study, store).plan
    monkeypatch.chdir(tmp_path)
    one_line(winnow("report", "made-up"), "no file is noted")
    save_plan(store, study, plan.replace({"file": str(path)}))
    assert winnow("report", "made-up", "--out", "two.html").code == 0
    assert (tmp_path / "two.html").read_text() == one
    one_line(winnow("report", "made-up", "--only", "other"), "--only")


def test_a_withdrawn_study_and_its_replacement_lead_to_each_other(winnow, tmp_path: Path):
    study, store = made_up(tmp_path)
    run_all(study, store)
    after = TEXT.replace("made-up", "after").replace("seeds", 'supersedes = "made-up"\nseeds', 1)
    run_all(made_up(tmp_path, after)[0], store)
    path = tmp_path / "lab.md"
    path.write_text(f"# Lab\n\n```toml study\n{TEXT}```\n\n```toml study\n{after}```\n")
    assert winnow("report", path).code == 0
    page = Checked((tmp_path / "lab.html").read_text())
    assert "2 withdrawn" in page.text
    assert "Withdrawn , replaced by after" in page.text
    assert "Replaces made-up , which is withdrawn" in page.text
    assert {"#study-after", "#study-made-up"} <= set(page.links)
    assert winnow("report", path, "--only", "made-up", "--out", tmp_path / "one.html").code == 0
    alone = Checked((tmp_path / "one.html").read_text())
    assert "lab.md" in alone.links, "its replacement is not on this page"
    index = winnow("index", tmp_path, "--json")
    assert json.loads(index.out)["same"] == [], "what is withdrawn is not compared"


def test_before_anything_has_run_the_claims_are_open(winnow, tmp_path: Path):
    (tmp_path / "made-up.toml").write_text(TEXT)
    assert "2 undecided" in winnow("report", tmp_path / "made-up.toml").out
    assert not (tmp_path / "winnow-store").exists()


def test_what_is_wrong_is_one_line_and_writes_nothing(winnow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = lab(tmp_path)
    (tmp_path / "mine.html").write_text("<h1>mine</h1>")
    before = sorted(tmp_path.iterdir())
    one_line(winnow("report", "nothing.md"), "nothing.md: no such file")
    one_line(winnow("report", "nothing"), "there is no study 'nothing'", "made-up")
    one_line(winnow("report", path, "--out", path), "--out", ".html")
    one_line(winnow("report", path, "--out", "mine.html"), "mine.html", "no page of Winnow's")
    one_line(winnow("report", path, "--only", "made-op"), "did you mean 'made-up'")
    one_line(winnow("report", path, "--set", "train.steps=4"), "no plan with these settings")
    one_line(winnow("report", path, "--out", "no/folder/x.html"), "cannot be written")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "mine.html").read_text() == "<h1>mine</h1>"


# In a real browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1200, True)])
def test_a_browser_shows_it(winnow, tab: Browser, tmp_path: Path, width: int, dark: bool):
    assert winnow("report", lab(tmp_path)).code == 0
    tab.open(tmp_path / "lab.html", width, dark=dark)
    assert tab.requests == [(tmp_path / "lab.html").as_uri()], "nobody else is asked for anything"
    assert tab.said == []
    assert tab.value("document.title").startswith("Does width help?"), "no script of the notebook ran"
    assert tab.value("document.documentElement.scrollWidth") <= width, "only boxes scroll sideways"
    wider = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && "
    assert tab.value(wider + "!e.closest('.box, pre')).map(e => e.outerHTML.slice(0, 80))") == []
    assert tab.value("document.querySelectorAll('svg text').length") > 10
    assert tab.value("document.compatMode") == "CSS1Compat"
    shown = tab.value("getComputedStyle(document.body).backgroundColor")
    assert (shown == "rgb(255, 255, 255)") != dark
    ink = "getComputedStyle([...document.querySelectorAll('svg text')].at(-1)).fill"
    assert tab.value(ink) != shown


def test_the_policy_stops_what_would_get_through(winnow, tab: Browser, tmp_path: Path):
    """A page with what the templates escape put back by hand: the browser itself refuses it."""
    assert winnow("report", lab(tmp_path)).code == 0
    html = (tmp_path / "lab.html").read_text()
    put = '<script>document.title = "taken"</script><img src="https://example.org/x.png" onerror="document.title = 1">'
    (tmp_path / "bad.html").write_text(html.replace("</main>", put + "</main>"))
    tab.open(tmp_path / "bad.html", 800)
    assert tab.value("document.title").startswith("Does width help?")
    assert any("Content Security Policy" in text for text in tab.said)
    assert not any("example.org" in url for url in tab.requests)

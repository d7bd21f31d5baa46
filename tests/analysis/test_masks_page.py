"""The page and the picture of `winnow masks`: what they hold and keep out, and how the page behaves in a browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.analysis.gestures import click, click_at, point, press, select, tap
from tests.analysis.gestures import shown as load
from tests.analysis.gestures import text as text_of
from tests.browser import Browser, browser

from winnow.analysis.masks import Layer, Matrix, View, shown
from winnow.analysis.masks_page import BYTES, LIMIT, fits, packed, page, unpacked
from winnow.analysis.masks_picture import COLUMNS, masks_png, placed
from winnow.errors import InputError
from winnow.tasks.tokenizer import BytesTokenizer

EVIL = (
    "<script>document.title='taken'</script>\"' onmouseover=x &amp; </script><!-- \u2028\u2029 {{ 7*7 }} \U0001f600 "
    "\x1b[0m \u202e"
)
WORDS = ("⟨doc⟩", "the", " slow", " key", "⏎\n", " masks", " it", " never")
H = 2


def triangle(seed: int, n: int, T: int) -> Matrix:
    draw = np.random.default_rng(seed)
    return np.tril(draw.gamma(0.7, 2.0, (n, T, T))).astype(np.float32)


def layer(index: int, T: int, *, kind: str = "plain", n_masks: int = 1) -> Layer:
    weights = triangle(index, H, T) + np.eye(T, dtype=np.float32)
    weights /= weights.sum(-1, keepdims=True)
    if kind == "softmax":
        return Layer(index, (), weights)
    votes = np.tril(triangle(10 + index, n_masks, T), -1)
    votes[:, :, 0] = 0
    masks = np.zeros_like(votes)
    masks[:, 1:] = np.cumsum(votes, 1)[:, :-1]
    masks = np.tril(masks)
    spread = tuple(h * n_masks // H for h in range(H))
    if kind == "plain":
        return Layer(index, spread, weights, masks, votes)
    half = np.float32(0.5)
    return Layer(index, spread, weights, masks * half, votes, votes * half, votes + votes, votes * half)


def view(tokens: tuple[str, ...] = WORDS, *, name: str = "study/arm/0", layers: int = 2, **kind: Any) -> View:
    T = len(tokens)
    following = tuple((("x", 0.5), (tokens[min(n + 1, T - 1)], 0.25)) for n in range(T))
    made = tuple(layer(n, T, **kind) for n in range(layers))
    return View(name, "0123456789abcdef", "selective, 3 steps", tokens, made, following, (0.25,) * (T - 1))


# What the file holds


def test_numbers_travel_within_four_parts_in_a_thousand() -> None:
    matrix = triangle(1, 3, 9) * np.logspace(-30, 4, 9, dtype=np.float32)
    matrix[0, 5, 2] = -7.3  # a vote that is taken back
    text = packed(matrix)
    found = unpacked(text, 9)
    assert found.shape == matrix.shape
    assert (found[matrix == 0] == 0).all()
    live = matrix != 0
    assert np.abs(found[live] / matrix[live] - 1).max() <= 0.004
    assert len(text) == pytest.approx(matrix.shape[0] * 45 * BYTES, abs=4)


def test_the_issues_size_fits_and_more_is_known_before() -> None:
    three_layers_of_four_heads = [4 + 5] * 3  # one mask, protected
    assert fits(256, three_layers_of_four_heads)
    assert fits(256, three_layers_of_four_heads * 2), "two runs"
    assert fits(512, [12 + 2] * 12), "twelve layers of twelve heads"
    assert not fits(512, [12 + 2] * 14)
    assert 256 * 257 / 2 * 27 * BYTES < LIMIT / 24
    big = view(tuple("x" * 256), layers=3, kind="protected")
    assert len(page([big])) < LIMIT


def test_nothing_in_a_text_or_a_name_is_code() -> None:
    tokens = ("⟨doc⟩", EVIL, *(shown(BytesTokenizer(), byte) for byte in range(1, 256)))
    evil = view(tokens, name=EVIL)
    text = page([evil])
    assert text.isascii()
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert EVIL not in text
    assert "<!--" not in text
    assert "49" not in re.findall(r"<title>(.*?)</title>", text, re.DOTALL)[0], "a name is no template"
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert not set("<>&") & set(data[1])
    found = json.loads(data[1])
    assert found["tokens"] == list(tokens)
    assert found["runs"][0]["name"] == EVIL
    masks = evil.layers[1].masks
    assert masks is not None
    assert np.allclose(unpacked(found["runs"][0]["layers"][1]["masks"], len(tokens)), masks, rtol=0.004)


def test_the_page_names_no_address_and_allows_its_own_script_alone() -> None:
    text = page([view()])
    assert not re.search(r"https?:|[\"'(]//|\bsrc=|\bhref=|url\(|@import|\bfetch\(|XMLHttpRequest|\binnerHTML\b", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]


def test_two_runs_must_read_the_same_tokens() -> None:
    with pytest.raises(InputError, match=r"cut the text into different tokens, 8 and 2 of them; give two runs with"):
        page([view(), view(("⟨doc⟩", "the"), name="other/arm/0")])


def test_a_run_without_masks_says_so() -> None:
    assert "This run has no masks" in page([view(kind="softmax")])
    assert "This run has no masks" not in page([view()])


def test_the_picture_has_a_row_per_run_and_layer() -> None:
    import matplotlib.image

    heights: list[int] = []
    for views in ([view()], [view(), view(kind="softmax")]):
        data = masks_png(views, "Masks of $x$")
        assert data == masks_png(views, "Masks of $x$")
        heights.append(matplotlib.image.imread(io.BytesIO(data)).shape[0])
    assert heights[1] > 1.6 * heights[0]
    odd = view(("⟨doc⟩", "\U0001f600 $x_1$ \\alpha", "⏎\n", "中文"), n_masks=2)
    assert masks_png([odd], "odd").startswith(b"\x89PNG"), "signs that the font lacks, and no mathematics"


def test_pieces_of_a_picture_hold_the_whole_text() -> None:
    tokens = ("a" * (COLUMNS - 3), "⏎\n", "bcdef", "", "g")
    pieces = placed(tokens)
    assert [(piece.token, piece.line, piece.column, piece.text) for piece in pieces[1:]] == [
        (1, 0, COLUMNS - 3, "⏎"),
        (2, 0, COLUMNS - 2, "bc"),
        (2, 1, 0, "def"),
        (4, 1, 3, "g"),
    ]


# In a browser


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def opened(tab: Browser, folder: Path, views: list[View], **window: Any) -> None:
    file = folder / "masks.html"
    file.write_text(page(views))
    load(tab, file, **window)
    assert tab.said == []


def token(n: int, run: int = 0) -> str:
    return f"article[data-run='{run}'] [data-token='{n}']"


def panel(tab: Browser, run: int = 0) -> str:
    return text_of(tab, f"article[data-run='{run}'] .panel")


def near(text: str, value: float) -> bool:
    """Whether a number on the page is right to two digits: within half of the second one, and the rounding."""
    return abs(float(text) - value) <= 0.055 * abs(value) if value else float(text) == 0


def test_a_click_chooses_the_query_and_pointing_says_who_masked(tab: Browser, tmp_path: Path) -> None:
    one = view()
    masks, votes = one.layers[0].masks, one.layers[0].votes
    assert masks is not None
    assert votes is not None
    opened(tab, tmp_path, [one])
    assert tab.requests == [(tmp_path / "masks.html").as_uri()], "nothing else is fetched"
    assert "query 7" in text_of(tab, "#query"), "the last one to begin with"
    click(tab, token(6))
    assert text_of(tab, "#query") == "query 6 “ it”"
    point(tab, token(2))
    text = panel(tab)
    assert text.startswith("2 “ slow”, read by query 6 “ it”")
    felt = re.search(r"F ([\d.e+-]+) nats: odds divided by", text)
    assert felt is not None
    assert near(felt[1], float(masks[0, 6, 2]))
    rows = tab.value(
        "[...document.querySelectorAll('.voters tr')].slice(1).map(r => [...r.cells].map(c => c.innerText))"
    )
    order = sorted((t for t in range(3, 6)), key=lambda t: -votes[0, t, 2])
    assert [int(row[0].split()[0]) for row in rows] == order
    assert all(near(row[1], float(votes[0, t, 2])) for row, t in zip(rows, order, strict=True))
    weights = re.search(r"head 0: ([\d.e+-]+), head 1: ([\d.e+-]+)", text)
    assert weights is not None
    assert all(near(weights[h + 1], float(one.layers[0].weights[h, 6, 2])) for h in range(H))
    point(tab, token(7))
    assert "comes after the query" in panel(tab)
    assert "probability 0.25" in text_of(tab, ".came")


def test_selectors_choose_layer_and_head(tab: Browser, tmp_path: Path) -> None:
    one = view(n_masks=2)
    opened(tab, tmp_path, [one])
    point(tab, token(3))
    for number, head in ((1, 1), (0, 1), (1, 0)):
        for name, value in (("layer", number), ("head", head)):
            select(tab, name, value)
        felt = re.search(r"F ([\d.e+-]+) nats", panel(tab))
        masks = one.layers[number].masks
        assert felt is not None
        assert masks is not None
        assert near(felt[1], float(masks[one.layers[number].spread[head], 7, 3]))
    assert tab.value("location.hash").startswith("#layer=1&head=0&show=masks&query=7&key=3")


def test_protection_shows_what_got_through(tab: Browser, tmp_path: Path) -> None:
    opened(tab, tmp_path, [view(kind="protected")])
    point(tab, token(1))
    text = panel(tab)
    cast = re.search(r"Votes against it ([\d.]+), of which ([\d.]+) got through; shield left [\d.]+", text)
    assert cast is not None
    assert float(cast[2]) == pytest.approx(float(cast[1]) / 2, rel=0.1)
    assert "got through" in text_of(tab, ".voters")
    assert "Protected most by" in text
    assert "protection left (shield)" in text_of(tab, "#show")


def test_the_keyboard_does_what_the_mouse_does(tab: Browser, tmp_path: Path) -> None:
    opened(tab, tmp_path, [view()])
    tab.value(f"document.querySelector({json.dumps(token(7))}).focus()")
    press(tab, "ArrowLeft")
    press(tab, "ArrowLeft")
    assert panel(tab).startswith("5 “ masks”, read by query 7")
    press(tab, "Enter")
    assert text_of(tab, "#query") == "query 5 “ masks”"
    press(tab, "Home")
    assert panel(tab).startswith("0 “⟨doc⟩”, read by query 5")
    press(tab, "Escape")
    assert "Point at a token" in panel(tab)


def test_on_a_phone_a_tap_looks_and_a_second_one_chooses(tab: Browser, tmp_path: Path) -> None:
    opened(tab, tmp_path, [view(), view(kind="protected", name="study/other/0")], width=390, touch=True)
    assert tab.value("document.documentElement.scrollWidth") <= 390
    tap(tab, token(3))
    assert panel(tab).startswith("3 “ key”, read by query 7")
    tap(tab, token(3))
    assert text_of(tab, "#query") == "query 3 “ key”"


def test_a_long_word_does_not_widen_the_page(tab: Browser, tmp_path: Path) -> None:
    opened(tab, tmp_path, [view(("⟨doc⟩", "x" * 400, "y", "z"), name="n" * 200)], width=390)
    point(tab, token(1))
    assert tab.value("document.documentElement.scrollWidth") <= 390


def test_two_runs_are_selected_together(tab: Browser, tmp_path: Path) -> None:
    views = [view(), view(kind="softmax", name="study/softmax/0", layers=1)]
    opened(tab, tmp_path, views)
    click(tab, token(5, run=1))
    point(tab, token(2, run=0))
    chosen = tab.value("[...document.querySelectorAll('.text .query')].map(e => e.dataset.token)")
    pointed = tab.value("[...document.querySelectorAll('.text .pointed')].map(e => e.dataset.token)")
    assert (chosen, pointed) == (["5", "5"], ["2", "2"])
    assert "F " in panel(tab, 0)
    assert "F " not in panel(tab, 1)
    assert "Attention weight: head 0" in panel(tab, 1)
    assert tab.value("[...document.querySelectorAll('.of-masks')].map(e => e.hidden)") == [False, True]
    select(tab, "layer", 1)
    assert panel(tab, 1) == "This run has no layer 1 here."
    assert tab.said == []


def test_what_a_text_says_is_not_done(tab: Browser, tmp_path: Path) -> None:
    tokens = ("⟨doc⟩", EVIL, *(shown(BytesTokenizer(), byte) for byte in range(1, 256)))
    opened(tab, tmp_path, [view(tokens, name=EVIL)])
    point(tab, token(1))
    assert tab.value("document.title") != "taken"
    assert "<script>" in panel(tab), "as text"
    assert tab.value("document.querySelectorAll('.text script, .panel script, [onmouseover]').length") == 0
    # A script that gets in all the same does not run.
    tab.value(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.taken = 1'}))"
    )
    assert tab.value("window.taken === undefined")
    assert any("Content Security Policy" in said for said in tab.said)


def test_a_heat_map_is_a_selector_too(tab: Browser, tmp_path: Path) -> None:
    opened(tab, tmp_path, [view()], height=1600)
    area = tab.value(
        "(() => { const c = document.querySelector('.of-masks canvas'); c.scrollIntoView();"
        " const a = c.getBoundingClientRect(); return [a.left, a.top, a.width, a.height] })()"
    )
    x, y = area[0] + area[2] * 2.5 / 8, area[1] + area[3] * 5.5 / 8
    tab.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert panel(tab).startswith("2 “ slow”, read by query 5 “ masks”")
    assert "query 7" in text_of(tab, "#query")
    click_at(tab, x, y)
    assert "query 5" in text_of(tab, "#query")
    colours = tab.value(
        "[...document.querySelector('.of-masks canvas').getContext('2d').getImageData(0, 7, 8, 1).data]"
    )
    assert colours[3] == 0, "the start is protected"
    assert colours[4 * 1 + 3] > 60, "and its neighbour is masked"


def test_heat_maps_are_those_of_the_layer_and_head(tab: Browser, tmp_path: Path) -> None:
    """The lower triangle by value; of the empty half the chosen row and the column that is pointed at."""
    one = view(n_masks=2)
    opened(tab, tmp_path, [one])
    click(tab, token(5))
    point(tab, token(3))
    read = "[...document.querySelector('.%s canvas').getContext('2d').getImageData(0, 0, 8, 8).data]"
    for number, head in ((0, 0), (0, 1), (1, 1), (1, 0), (0, 0)):
        select(tab, "layer", number)
        select(tab, "head", head)
        shown_layer = one.layers[number]
        masks = shown_layer.masks
        assert masks is not None
        strengths = {
            "of-masks": np.log1p(masks[shown_layer.spread[head]]) / np.log1p(50),
            "of-weights": np.sqrt(shown_layer.weights[head]),
        }
        for name, strength in strengths.items():
            alpha = np.array(tab.value(read % name)).reshape(8, 8, 4)[..., 3]
            empty = np.triu(np.ones((8, 8), bool), 1)
            assert np.abs(alpha - 255 * 0.9 * np.minimum(strength, 1))[~empty].max() <= 2
            marked = {(int(i), int(j)) for i, j in zip(*np.nonzero((alpha > 0) & empty), strict=True)}
            assert marked == {(5, 6), (5, 7), (0, 3), (1, 3), (2, 3)}

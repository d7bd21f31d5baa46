"""A mouse, a finger and a keyboard on a page in a headless browser."""

from __future__ import annotations

import json
from pathlib import Path

from tests.browser import Browser


def shown(tab: Browser, path: Path, *, width: int = 1280, height: int = 1000, touch: bool = False) -> None:
    """Load a page in a window of this size, with a touch screen or without."""
    tab.ask("Emulation.setTouchEmulationEnabled", enabled=touch)
    tab.open(path, width, height)
    # Where the last page left the mouse it would point at a token of this one.
    tab.ask("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)


def text(tab: Browser, selector: str) -> str:
    """What an element shows."""
    return tab.value(f"document.querySelector({json.dumps(selector)}).innerText")


def _place(tab: Browser, selector: str) -> tuple[float, float]:
    """The middle of an element's first line, once it is in view."""
    script = f"""(() => {{
        const element = document.querySelector({json.dumps(selector)});
        element.scrollIntoView({{ block: "center" }});
        const area = element.getClientRects()[0];
        return [area.left + area.width / 2, area.top + area.height / 2];
    }})()"""
    x, y = tab.value(script)
    return x, y


def point(tab: Browser, selector: str) -> None:
    """The mouse over an element."""
    x, y = _place(tab, selector)
    tab.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


def click(tab: Browser, selector: str) -> None:
    """A click of the mouse."""
    click_at(tab, *_place(tab, selector))


def click_at(tab: Browser, x: float, y: float) -> None:
    """A click of the mouse, by its place in the window."""
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        tab.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def tap(tab: Browser, selector: str) -> None:
    """A tap of a finger."""
    x, y = _place(tab, selector)
    tab.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    tab.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def press(tab: Browser, key: str) -> None:
    """A key of the keyboard."""
    codes = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, "Home": 36}
    for kind in ("rawKeyDown", "keyUp"):
        tab.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])


def select(tab: Browser, name: str, value: int) -> None:
    """Another option of a selector, by the selector's id."""
    box = f"document.getElementById('{name}')"
    tab.value(f"{box}.value = {value}; {box}.dispatchEvent(new Event('change'))")

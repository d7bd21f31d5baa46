"""A headless Chromium over its debugging pipe: what a page asks for, says, and how wide it is. Skips where none is."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0


@dataclass
class Browser:
    """One tab. Every request and every message of the page is noted."""

    writing: int
    reading: int
    session: str = ""
    sent: dict[str, str] = field(default_factory=dict[str, str])
    """Address of each request by its number; those that the page's policy stopped are left out."""
    said: list[str] = field(default_factory=list[str])
    """Messages on the console, errors, and what the policy refused."""
    _number: int = 0
    _buffer: bytes = b""
    _loaded: int = 0

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command of the protocol and return its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == message["id"]:
                assert "error" not in found, found
                return found["result"]

    def open(self, path: Path, width: int, height: int = 800, *, dark: bool = False) -> None:
        """Load a file in a window of this size; returns once it has loaded."""
        self.sent.clear()
        self.said.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        before = self._loaded
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while self._loaded == before:
            self._next()

    def value(self, script: str) -> Any:
        """What an expression comes to in the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for."""
        return list(self.sent.values())

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict[str, Any]:
        """The next message; events are noted."""
        end = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.reading], [], [], max(end - time.monotonic(), 0))
            data = os.read(self.reading, 1 << 20) if ready else b""
            assert data, "the browser has gone, or says nothing"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.sent[parameters["requestId"]] = parameters["request"]["url"]
        elif method == "Network.loadingFailed" and parameters.get("blockedReason") == "csp":
            self.sent.pop(parameters["requestId"], None)
        elif method == "Runtime.consoleAPICalled":
            self.said.append(str(parameters["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.said.append(parameters["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {parameters['message']}")
        elif method == "Page.loadEventFired":
            self._loaded += 1
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`; ended in the end."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: {', '.join(NAMES)}")
    to_child, writing = os.pipe()
    reading, from_child = os.pipe()
    # The protocol is spoken over the descriptors 3 and 4; a shell puts them there.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [program, *options, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", "about:blank"]
    script = f'exec "$@" 3<&{to_child} 4>&{from_child}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(to_child, from_child),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        tab = Browser(writing, reading)
        target = tab.ask("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            tab.ask(f"{domain}.enable")
        yield tab
    finally:
        process.kill()
        process.wait()
        os.close(writing)
        os.close(reading)

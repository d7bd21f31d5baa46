"""A server on this machine that answers as the Hugging Face hub does, for one repository of plain files."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class Hub:
    """What the server has and does, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    older: dict[str, bytes] = field(default_factory=dict)
    """The files of the commit before, which is also the tag v1."""
    token: str | None = None
    """Needed to see the repository; None: everybody may."""
    cuts: int = 0
    """So many of the next downloads break off in their midst."""
    spoilt: int = 0
    """So many of the next downloads are of the right length, with another byte in their midst."""
    down: bool = False
    """Answers nothing but 503."""
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of every request."""

    def downloads(self) -> list[str]:
        """Names of the files that were sent, in order."""
        return [path.split("/", 5)[5] for method, path in self.asked if method == "GET" and "/resolve/" in path]


def sibling(name: str, content: bytes) -> dict[str, Any]:
    """What the hub says of a file; the larger ones are kept apart from git."""
    sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": sha1}
    if name.endswith((".safetensors", ".bin", ".pt")):
        sha256 = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
    return found


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, until the block ends. Its repository is lab/gpt."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(self.path.split("?")[0])
            hub.asked.append((self.command, path))
            if hub.down:
                return self.refuse(503)
            if hub.token is not None and self.headers["Authorization"] != f"Bearer {hub.token}":
                return self.refuse(401, "RepoNotFound")
            if path.startswith("/api/models/lab/gpt"):
                return self.describe(path.removeprefix("/api/models/lab/gpt").removeprefix("/revision/") or "main")
            if path.startswith("/lab/gpt/resolve/"):
                revision, _, name = path.removeprefix("/lab/gpt/resolve/").partition("/")
                files = self.of(revision)
                if files is not None and name in files:
                    return self.deliver(revision, files[name])
                return self.refuse(404, "EntryNotFound")
            self.refuse(404, "RepoNotFound")

        def of(self, revision: str) -> dict[str, bytes] | None:
            names = {"main": hub.files, COMMIT: hub.files, "v1": hub.older, OLDER: hub.older}
            return names.get(revision)

        def describe(self, revision: str) -> None:
            files = self.of(revision)
            if files is None:
                return self.refuse(404, "RevisionNotFound")
            commit = OLDER if files is hub.older else COMMIT
            about = {"id": "lab/gpt", "sha": commit, "siblings": [sibling(*pair) for pair in files.items()]}
            self.send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

        def deliver(self, revision: str, content: bytes) -> None:
            about = sibling("x.bin", content)
            commit = OLDER if self.of(revision) is hub.older else COMMIT
            headers = {"ETag": f'"{about["lfs"]["sha256"]}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            start, status = 0, 200
            if self.headers["Range"]:
                start, status = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]), 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if self.command == "GET" and hub.spoilt:
                hub.spoilt -= 1
                middle = len(content) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            cut = self.command == "GET" and hub.cuts > 0
            if cut:
                hub.cuts -= 1
            self.send(status, content[start:], headers, cut=cut)

        def refuse(self, status: int, code: str = "") -> None:
            self.send(status, b"", {"X-Error-Code": code} if code else {})

        def send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it overrides
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A server on the loopback that answers as the Hugging Face hub does, for one repository that can be written to."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

from werkzeug.serving import make_server

REPO, TOKEN = "lab/runs", "hf_thetokenofthetest"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`files` is what the repository holds; `commits` what each commit changed."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.files: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        self.down = 0
        """So many of the next requests are answered with 503."""
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"hf://{REPO}/lab?endpoint=http://127.0.0.1:{self._server.port}"

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"])
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, found, headers = self._answer(method, path, body, environ)
        start(status, [*headers.items(), ("Content-Length", str(len(found)))])
        return [b"" if method == "HEAD" else found]

    def _answer(
        self, method: str, path: str, body: bytes, environ: dict[str, Any]
    ) -> tuple[str, bytes, dict[str, str]]:
        if self.down:
            self.down -= 1
            return "503 Service Unavailable", b"", {}
        if environ.get("HTTP_AUTHORIZATION") != f"Bearer {TOKEN}":
            return "401 Unauthorized", b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid token"}
        api, file = f"/api/models/{REPO}", f"/{REPO}/resolve/main/"
        if path.startswith(file):
            return self._file(path.removeprefix(file), environ.get("HTTP_RANGE"))
        if not path.startswith(api):
            return "404 Not Found", b"", {"X-Error-Code": "RepoNotFound"}
        rest = path.removeprefix(api)
        if method == "POST" and rest.startswith("/preupload/"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return _json({"files": files})
        if method == "POST" and rest.startswith("/commit/"):
            return self._commit(body)
        if method == "POST" and rest.startswith("/paths-info/"):
            asked = [part.partition("=")[2] for part in unquote(body.decode()).split("&") if part.startswith("paths=")]
            if body.startswith(b"{"):
                asked = json.loads(body)["paths"]
            return _json([entry for name in asked for entry in self._entries() if entry["path"] == name])
        if rest.startswith("/tree/main"):
            folder = rest.removeprefix("/tree/main").strip("/")
            deep = "recursive=true" in environ["QUERY_STRING"].lower()
            found = [entry for entry in self._entries() if _below(entry["path"], folder, deep)]
            return _json(found) if found else ("404 Not Found", b"", {"X-Error-Code": "EntryNotFound"})
        siblings = [{"rfilename": name} for name in self.files]
        return _json({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "private": True})

    def _commit(self, body: bytes) -> tuple[str, bytes, dict[str, str]]:
        names: list[str] = []
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                assert item["value"]["encoding"] == "base64"
                self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "deletedFile":
                del self.files[item["value"]["path"]]
            names += [item["value"]["path"]] if item["key"] != "header" else []
        self.commits.append(names)
        return _json(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"https://huggingface.co/{REPO}/commit/{COMMIT}"}
        )

    def _entries(self) -> list[dict[str, Any]]:
        folders = {"/".join(name.split("/")[:depth]) for name in self.files for depth in range(1, name.count("/") + 1)}
        found = [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)]
        for name, data in self.files.items():
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            found.append({"type": "file", "path": name, "size": len(data), "oid": oid})
        return found

    def _file(self, name: str, part: str | None) -> tuple[str, bytes, dict[str, str]]:
        if name not in self.files:
            return "404 Not Found", b"", {"X-Error-Code": "EntryNotFound"}
        data = self.files[name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if part is None:
            return "200 OK", data, headers
        first, _, last = part.removeprefix("bytes=").partition("-")
        piece = data[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}"
        return "206 Partial Content", piece, headers


def _below(path: str, folder: str, deep: bool) -> bool:
    inner = path.removeprefix(f"{folder}/") if folder else path
    return (not folder or path.startswith(f"{folder}/")) and (deep or "/" not in inner)


def _json(value: Any) -> tuple[str, bytes, dict[str, str]]:
    return "200 OK", json.dumps(value).encode(), {"Content-Type": "application/json"}

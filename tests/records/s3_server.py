"""A real S3 server on the loopback, in this process, which misbehaves on demand.

The protocol is moto's; faults are put in front of it: an error, a closed connection, a wait, a flipped byte on the way
in or out. moto checks nobody's credentials, so a refusal is a fault too.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Kind = Literal["error", "drop", "slow", "flip in", "flip out"]
ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'


@dataclass
class Fault:
    """What goes wrong with requests of a method whose path holds a text."""

    kind: Kind
    method: str = "PUT"
    path: str = ""
    times: int = 10**9
    after: int = 0
    """So many such requests pass first."""
    status: str = "503 Slow Down"
    code: str = "SlowDown"

    def hits(self, method: str, path: str) -> bool:
        if method != self.method or self.path not in path:
            return False
        self.after -= 1
        if self.after >= 0 or self.times == 0:
            return False
        self.times -= 1
        return True


class S3Server:
    """Serves until `close`; `requests` is what was asked: method and path."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self._port = 0
        self.start()

    def start(self) -> None:
        """Serve, on the same port as before."""
        self._server = make_server("127.0.0.1", self._port, self._serve, threaded=True)
        self._port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more; what was stored stays."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def bucket(self, name: str) -> str:
        """A new bucket; the URL of a place in it."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")).close()
        self.requests.clear()
        return self.url(name)

    def url(self, bucket: str) -> str:
        return f"s3://{bucket}/lab?endpoint={self.endpoint}"

    def sent(self, method: str = "PUT") -> list[str]:
        """Paths of the requests of a method."""
        return [path for asked, path in self.requests if asked == method]

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = next((fault for fault in self.faults if fault.hits(method, path)), None)
        if fault is None:
            return self._app(environ, start)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        match fault.kind:
            case "error":
                start(fault.status, [("Content-Type", "application/xml")])
                return [ERROR.format(fault.code, fault.code).encode()]
            case "drop":
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                return [b""]
            case "slow":
                time.sleep(0.2)
            case "flip in":
                environ["wsgi.input"] = io.BytesIO(flipped(body))
            case "flip out":
                return [flipped(b"".join(self._app(environ, start)))]
        return self._app(environ, start)


def flipped(data: bytes) -> bytes:
    """The same with one bit changed in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data

"""What a container engine says in trouble: a few answers of Docker's API on a socket, because no real one falls ill when it is asked to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any, ClassVar
from urllib.parse import unquote

BUSY = "driver failed to remove root filesystem: device or resource busy"


class IllEngine(ThreadingMixIn, UnixStreamServer):
    """It has `containers` and `images`. It removes no container whose id begins with `stuck`; with `deaf` it tells of none, and of no image."""

    daemon_threads = True
    address: str

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Answers)
        self.address, self.stuck, self.deaf = f"unix://{path}", "no id", False
        self.containers: dict[str, str] = {}
        """Names by id."""
        self.images: dict[str, str] = {}
        """Ids by tag."""


class _Answers(BaseHTTPRequestHandler):
    server: IllEngine  # type: ignore[assignment]
    told: ClassVar[dict[str, Any]] = {
        "/version": {"Version": "27.0", "ApiVersion": "1.45", "MinAPIVersion": "1.24"},
        "/info": {"ServerVersion": "27.0", "NCPU": 2, "MemTotal": 8 * 2**30, "Runtimes": {}},
    }

    def do_GET(self) -> None:
        path = self._path()
        known = self.server.containers
        if path.startswith(("/containers/", "/images/")) and self.server.deaf:
            self._say(500, {"message": "the store is locked"})
        elif path == "/containers/json":
            self._say(200, [{"Id": key, "Names": [f"/{name}"]} for key, name in known.items()])
        elif path.startswith("/containers/") and (key := path.split("/")[2]) in known:
            self._say(200, {"Id": key, "Name": f"/{known[key]}", "State": {"FinishedAt": "2020-01-01T00:00:00Z"}})
        elif (tag := unquote(path).removeprefix("/images/").removesuffix("/json")) in self.server.images:
            self._say(200, {"Id": self.server.images[tag], "RepoTags": [tag]})
        else:
            self._say(200, self.told[path]) if path in self.told else self._say(404, {"message": "No such image"})

    def do_DELETE(self) -> None:
        key = self._path().split("/")[2]
        if key.startswith(self.server.stuck):
            self._say(500, {"message": BUSY})
        else:
            self.server.containers.pop(key, None)
            self._say(204, None)

    def _path(self) -> str:
        path = self.path.partition("?")[0]
        return "/" + path.split("/", 2)[2] if path.startswith("/v1.") else path

    def _say(self, status: int, document: Any) -> None:
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def started(folder: Path) -> Iterator[IllEngine]:
    """Run an ill engine on a socket in `folder` for the length of the block."""
    with IllEngine(folder / "engine.sock") as engine:
        thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield engine
        finally:
            engine.shutdown()
            thread.join()

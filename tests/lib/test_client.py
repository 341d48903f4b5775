"""One client a process and address: shared while it is open, replaced when somebody closed it; what breaks off is asked for again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from cellwork.client import connect
from cellwork.client.base import Connection
from cellwork.errors import Unavailable


def test_a_closed_client_is_not_given_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLWORK_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CELLWORK_TOKEN", "nobody")
    first = connect()
    assert connect() is first
    first.close()
    again = connect()
    assert again is not first
    assert not again.closed
    again.close()


class Breaking(BaseHTTPRequestHandler):
    """Promises `WHOLE`, and breaks off in the middle of it as often as `breaks` says."""

    WHOLE = bytes(range(256)) * 4000
    breaks = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(self.WHOLE)))
        self.end_headers()
        breaks, Breaking.breaks = Breaking.breaks, Breaking.breaks - 1
        self.wfile.write(self.WHOLE[: len(self.WHOLE) // 2] if breaks > 0 else self.WHOLE)

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""


class Paged(BaseHTTPRequestHandler):
    """A list of `COUNT` numbers, one a page."""

    COUNT = 1200

    def do_GET(self) -> None:
        number = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        body = b"[%d]" % number
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        if number + 1 < self.COUNT:
            self.send_header("x-next-cursor", str(number + 1))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""


@contextmanager
def connected(handler: type[BaseHTTPRequestHandler]) -> Iterator[Connection]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    connection = Connection(f"http://127.0.0.1:{server.server_port}", "token", attempts=3)
    yield connection
    connection.close()
    server.shutdown()
    server.server_close()
    thread.join(60)


@pytest.fixture
def breaking() -> Iterator[Connection]:
    with connected(Breaking) as connection:
        yield connection


def test_a_list_is_read_to_its_end_however_many_pages_it_has() -> None:
    with connected(Paged) as connection:
        assert list(connection.listing("cellwork", "/numbers", int)) == list(range(Paged.COUNT))


def test_an_answer_that_breaks_off_is_asked_for_again_and_is_in_the_file_whole_or_not_at_all(
    breaking: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "rows"
    Breaking.breaks = 2
    breaking.save("cellwork", "/rows", file)
    assert file.read_bytes() == Breaking.WHOLE
    file.write_bytes(b"what was there before")
    Breaking.breaks = 3
    with pytest.raises(Unavailable, match="broke off the answer"):
        breaking.save("cellwork", "/rows", file)
    assert file.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [file]

"""A prediction's way from the socket to the quick lane and back without ASGI: uvicorn's connection, with a short cut.

    read --known target, known caller, nothing unusual--> offered to the lane --> answered in one write
      |                                                        |
      +-- anything else --> ASGI, as uvicorn does it           +-- handed back --> ASGI, with the body that was read

A target is known once the front door has seen it by the other way; so is a caller, for a second. One request of a connection is answered at a time:
one that is sent before the last was answered waits in uvicorn's own queue. While the service drains, and while a caller does not read its
answers, all goes the other way, which knows how to close and to wait.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from cellwork import ids
from cellwork.errors import CellworkError
from cellwork.serving.lane import MOST_BYTES, Reply
from cellwork.serving.shape import Door as Kind
from cellwork_hub.drain import Draining
from cellwork_hub.edge import problem_response

if TYPE_CHECKING:
    from cellwork_hub.inference.door import FrontDoor

Headers = list[tuple[bytes, bytes]]
GENERAL = "cellwork.general"
"""In the scope of a request that the lane has handed back already."""
HEADERS = [
    (b"content-type", b"application/json"), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"),
]  # fmt: skip
OK = b"".join(name + b": " + value + b"\r\n" for name, value in HEADERS)


class Waiting:
    """A request that the lane has; it stands where uvicorn looks for the one that is being answered."""

    __slots__ = ("began", "body", "disconnected", "headers", "keep_alive", "kind", "response_complete", "url")

    def __init__(self, kind: Kind, url: bytes, headers: Headers, body: bytes) -> None:
        self.kind, self.url, self.headers, self.body = kind, url, headers, body
        self.began = time.perf_counter()
        self.response_complete = self.disconnected = False
        self.keep_alive = True

    @property
    def message_event(self) -> Waiting:
        return self

    def set(self) -> None:
        """Told that there is news for who reads the request; nobody does."""


class Connection(HttpToolsProtocol):
    door: ClassVar[FrontDoor]
    draining: ClassVar[Draining]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._known: tuple[str, Kind] | None = None
        """Endpoint and door of the request that is being read for the lane."""
        self._read: list[bytes] = []
        self._size = 0
        self._defaults: Headers = []
        self._start = b""

    # what the parser tells

    def on_message_begin(self) -> None:
        self.url, self.expect_100_continue, self.headers = b"", False, []

    def on_headers_complete(self) -> None:
        known = self.door.targets.get(self.url)
        if known is not None and self._usual():
            self._known, self._read, self._size = known, [], 0
            return
        self._scope()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._known is None:
            return super().on_body(body)
        self._read.append(body)
        self._size += len(body)
        if self._size > MOST_BYTES:  # the rest is for the other way, which stops reading where it should
            self._known = None
            self._scope()
            super().on_headers_complete()
            super().on_body(b"".join(self._read))
        return None

    def on_message_complete(self) -> None:
        if self._known is None:
            return super().on_message_complete()
        (name, kind), self._known = self._known, None
        waiting = Waiting(kind, self.url, self.headers, self._read[0] if len(self._read) == 1 else b"".join(self._read))
        self.cycle = waiting  # type: ignore[assignment]
        lane, caller = self.door.endpoints.lane(name), self.door.known_caller(self.headers, name.partition("/")[0])
        if lane is None or caller is None:
            return self._go_general(waiting, tried=False)
        offered = lane.offer(kind, waiting.body, caller.name)
        if offered is None:
            return self._go_general(waiting, tried=True)
        offered.add_done_callback(partial(self._answer, waiting))
        return None

    def _usual(self) -> bool:
        parser, cycle = self.parser, self.cycle
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not (self.expect_100_continue or self.draining.on or self.flow.write_paused or parser.should_upgrade())
            and (cycle is None or cycle.response_complete)
        )

    def _scope(self) -> None:
        """Begin the message as uvicorn does, which was put off until it is needed."""
        url, expect, headers = self.url, self.expect_100_continue, self.headers
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)

    # what the lane tells

    def _answer(self, waiting: Waiting, offered: asyncio.Future[Reply | None]) -> None:
        try:
            reply = offered.result()
        except CellworkError as error:
            request = ids.new("req")
            status, content, media, more = problem_response(error, request)
            named = {"content-type": media, "cache-control": "no-store", "x-content-type-options": "nosniff", **more}
            told = "".join(f"{name}: {value}\r\n" for name, value in named.items()).encode("latin-1")
            self.door.count(waiting.kind, status, time.perf_counter() - waiting.began)
            return self._write(waiting, STATUS_LINE[status], told, request.encode(), content)
        if reply is None:
            return self._go_general(waiting, tried=True)
        content, first = reply
        self.door.count(waiting.kind, 200, time.perf_counter() - waiting.began)
        return self._write(waiting, STATUS_LINE[200], OK, b"req_" + first.encode(), content)

    def _write(self, waiting: Waiting, line: bytes, told: bytes, request: bytes, content: bytes) -> None:
        waiting.response_complete = True
        if waiting.disconnected or self.transport.is_closing():
            return
        if self._defaults is not self.server_state.default_headers:  # once a second: it names the date
            self._defaults = self.server_state.default_headers
            self._start = b"".join(name + b": " + value + b"\r\n" for name, value in self._defaults)
        close = b"" if waiting.keep_alive else b"connection: close\r\n"
        length = b"content-length: %d\r\nx-request-id: " % len(content)
        self.transport.write(b"".join((line, self._start, told, length, request, b"\r\n", close, b"\r\n", content)))
        if not waiting.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _go_general(self, waiting: Waiting, *, tried: bool) -> None:
        """Give the request to the app, as one whose body has come."""
        target = waiting.url.decode("ascii")
        scope: Any = {
            "type": "http", "asgi": {"version": self.asgi_version, "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "server": self.server, "client": self.client, "scheme": self.scheme, "root_path": self.root_path, "path": target,
            "raw_path": waiting.url, "query_string": b"", "headers": waiting.headers, "state": self.app_state.copy(), GENERAL: tried,
        }  # fmt: skip
        cycle = RequestResponseCycle(
            scope=scope, transport=self.transport, flow=self.flow, logger=self.logger, access_logger=self.access_logger, access_log=self.access_log,
            default_headers=self.server_state.default_headers, message_event=asyncio.Event(), expect_100_continue=False, keep_alive=waiting.keep_alive,
            on_response=self.on_response_complete,
        )  # fmt: skip
        cycle.body, cycle.more_body, cycle.disconnected = bytearray(waiting.body), False, waiting.disconnected
        cycle.message_event.set()
        if self.cycle is waiting:  # type: ignore[comparison-overlap]
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)


def connections(door: FrontDoor, draining: Draining) -> type[Connection]:
    """Return the class of the connections to `door`."""
    return type("Connection", (Connection,), {"door": door, "draining": draining})

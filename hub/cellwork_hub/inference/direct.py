"""A prediction's way from the socket to the quick lane and back without ASGI: uvicorn's connection, with a short cut.

    read --known head, its whole body------------------> offered to the lane --> answered in one write
      |                                                    ^        |
      +-- parsed --known target, nothing unusual-----------+        +-- handed back --> ASGI, with the body that was read
            |
            +-- anything else --> ASGI, as uvicorn does it

A target is known once the front door has seen it by the other way; so is a caller, for a second. A head is known when the parser has read
it: the same bytes at the start of a message mean the same again, and need no parser. One request of a connection is answered at a time:
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
OK = b"".join(name + b": " + value + b"\r\n" for name, value in HEADERS) + b"content-length: "
END = b"\r\n\r\n"
MOST_HEADS = 1000
MOST_HEAD_BYTES = 2048


class Head:
    """What a request says before its body."""

    __slots__ = ("caller", "headers", "kind", "length", "name", "project", "url")

    def __init__(self, name: str, kind: Kind, url: bytes, headers: Headers) -> None:
        self.name, self.kind, self.url, self.headers = name, kind, url, headers
        self.project = name.partition("/")[0]
        self.caller = next((value for name, value in headers if name == b"authorization"), b"")
        self.length = 0
        """Of the body, where the head is known by its bytes."""


class Waiting:
    """A request that the lane has; it stands where uvicorn looks for the one that is being answered."""

    __slots__ = ("began", "body", "disconnected", "head", "keep_alive", "response_complete")

    def __init__(self, head: Head, body: bytes, *, keep_alive: bool) -> None:
        self.head, self.body, self.keep_alive = head, body, keep_alive
        self.began = time.perf_counter()
        self.response_complete = self.disconnected = False

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
        self._head: Head | None = None
        """Of the request whose body is being read for the lane."""
        self._body = bytearray()
        self._leaving = False
        """The service ends with the answer to what is being read."""
        self._between = True
        """The parser is between two messages."""
        self._data = b""
        """What is being parsed, if a message begins with it."""
        self._rested = 0.0
        """When the last answer was given, by the loop's clock."""
        self._defaults: Headers = []
        self._start = b""

    def data_received(self, data: bytes) -> None:
        if self._between and (self.cycle is None or self.cycle.response_complete):
            end = data.find(END) + len(END)
            head = self.door.heads.get(data[:end])
            if head is not None and len(data) == end + head.length and not (self.draining.on or self.flow.write_paused):
                self._offer(head, data[end:])
                return
            self._data = data
        super().data_received(data)
        self._data = b""

    # what the parser tells

    def on_message_begin(self) -> None:
        self._between = False
        self.url, self.expect_100_continue, self.headers = b"", False, []

    def on_headers_complete(self) -> None:
        known = self.door.targets.get(self.url)
        if known is not None and self._usual():
            head = Head(*known, self.url, self.headers)
            if self.door.knows(head.caller, head.project):  # nobody else's body is kept before it is known whose it is
                self._head = head
                return
        self._scope()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._head is None:
            return super().on_body(body)
        self._body += body
        if len(self._body) > MOST_BYTES:  # the rest is for the other way, which stops reading where it should
            self._head = None
            self._scope()
            super().on_headers_complete()
            super().on_body(self._taken())
            self.cycle.keep_alive &= not self._leaving
        return None

    def on_message_complete(self) -> None:
        self._between = True
        if self._head is None:
            return super().on_message_complete()
        head, body, self._head = self._head, self._taken(), None
        if self._offer(head, body):
            self._remember(head, body)
        return None

    def _taken(self) -> bytes:
        body, self._body = bytes(self._body), bytearray()
        return body

    def _remember(self, head: Head, body: bytes) -> None:
        """Know the head again by its bytes, if nothing but it and `body` was read."""
        said = self._data[: len(self._data) - len(body)]
        if (
            not body
            or len(said) > MOST_HEAD_BYTES
            or said.find(END) + len(END) != len(said)
            or not self._data.endswith(body)
        ):
            return
        if len(self.door.heads) >= MOST_HEADS:
            self.door.heads.clear()
        head.length = len(body)
        self.door.heads[said] = head

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

    def _offer(self, head: Head, body: bytes) -> bool:
        """Give the request to the lane, or else to the app; return whether the lane has it."""
        waiting = Waiting(head, body, keep_alive=not (self._leaving or self.draining.on))
        self.cycle = waiting  # type: ignore[assignment]
        door = self.door
        lane, caller = door.endpoints.lane(head.name), door.known_caller(head.caller, head.project)
        if lane is None or caller is None:
            self._go_general(waiting, tried=False)
        elif not lane.offer(head.kind, body, caller.name, partial(self._answer, waiting)):
            self._go_general(waiting, tried=True)
        else:
            return True
        return False

    # what the lane tells

    def _answer(self, waiting: Waiting, reply: Reply | CellworkError | None) -> None:
        if type(reply) is tuple:
            content, first = reply
            self.door.count(waiting.head.kind, 200, time.perf_counter() - waiting.began)
            if self._defaults is not self.server_state.default_headers:  # once a second: it names the date
                self._defaults = self.server_state.default_headers
                self._start = STATUS_LINE[200] + self._told() + OK
            self._write(
                waiting, b"%b%d\r\nx-request-id: req_%b\r\n" % (self._start, len(content), first.encode()), content
            )
        elif isinstance(reply, CellworkError):
            status, content, media, more = problem_response(reply, request := ids.new("req"))
            named = {"content-type": media, "cache-control": "no-store", "x-content-type-options": "nosniff", **more}
            named |= {"content-length": str(len(content)), "x-request-id": request}
            self.door.count(waiting.head.kind, status, time.perf_counter() - waiting.began)
            told = "".join(f"{name}: {value}\r\n" for name, value in named.items()).encode("latin-1")
            self._write(waiting, STATUS_LINE[status] + self._told() + told, content)
        else:
            self._go_general(waiting, tried=True)

    def shutdown(self) -> None:
        if self._head is None:
            return super().shutdown()
        self._leaving = True  # what has begun is answered
        return None

    def _told(self) -> bytes:
        return b"".join(name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers)

    def _write(self, waiting: Waiting, head: bytes, content: bytes) -> None:
        waiting.response_complete = True
        if waiting.disconnected or self.transport.is_closing():
            return
        if waiting.keep_alive:
            self.transport.write(b"%b\r\n%b" % (head, content))
        else:
            self.transport.write(b"%bconnection: close\r\n\r\n%b" % (head, content))
            self.transport.close()
        self.on_response_complete()

    # a connection at rest: uvicorn's timer, which runs on over the answers instead of being begun anew by each

    def on_response_complete(self) -> None:
        if self.pipeline or self.transport.is_closing():
            return super().on_response_complete()
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._rested = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._rest(self.timeout_keep_alive)
        return None

    def _rest(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        left = self._rested + self.timeout_keep_alive - self.loop.time()
        if not self.cycle.response_complete:
            return None  # the end of its answer begins the rest
        return self._rest(left) if left > 0 else super().timeout_keep_alive_handler()

    def _go_general(self, waiting: Waiting, *, tried: bool) -> None:
        """Give the request to the app, as one whose body has come."""
        head = waiting.head
        target = head.url.decode("ascii")
        scope: Any = {
            "type": "http", "asgi": {"version": self.asgi_version, "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "server": self.server, "client": self.client, "scheme": self.scheme, "root_path": self.root_path, "path": target,
            "raw_path": head.url, "query_string": b"", "headers": [*head.headers], "state": self.app_state.copy(), GENERAL: tried,
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

"""How a service ends without failing a request: it says so first, goes on answering, then finishes what has begun.

    serving --TERM or INT--> draining --`seconds`--> no new connections --> what has begun is answered --> the lifespan ends
                             |                                                                             --> the process ends
                             readiness is 503; every answer closes its connection, so that callers come back by another door

Whoever spreads requests over replicas takes this one out meanwhile; without seconds the second state is left out. A second signal
ends the draining at once.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Awaitable, Callable
from types import FrameType

import msgspec
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellwork.wire import Problem

CLOSE = (b"connection", b"close")


class Draining:
    """`app`, which is about to end as soon as `on` is set."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.on = app, False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Not a coroutine itself: while nothing ends it costs no request anything."""
        if not self.on or scope["type"] != "http":
            return self.app(scope, receive, send)
        if scope["path"].endswith("/health/ready"):
            return _stopping(send)
        return self.app(scope, receive, _closing(send))


def _closing(send: Send) -> Send:
    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], CLOSE]}
        await send(message)

    return closing


async def _stopping(send: Send) -> None:
    problem = Problem(
        type="Unavailable", subject="service", value="", verdict="is stopping", way_out="ask another replica, or again later"
    )  # fmt: skip
    headers = [(b"content-type", b"application/problem+json"), (b"retry-after", b"1"), CLOSE]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(problem)})


def configuration(draining: Draining, host: str, port: int, *, proxied: bool = True) -> uvicorn.Config:
    """Return how uvicorn serves; an app that has `connections` makes their class itself."""
    connections: Callable[[Draining], type[asyncio.Protocol]] | None = getattr(draining.app, "connections", None)
    return uvicorn.Config(
        draining, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=10, ws="websockets-sansio",
        lifespan="on", server_header=False, proxy_headers=proxied, interface="asgi3", http=connections(draining) if connections else "auto",
    )  # fmt: skip


class Server(uvicorn.Server):
    """Serves a `Draining` app; `started` is told when it listens."""

    def __init__(
        self, config: uvicorn.Config, draining: Draining, seconds: float, started: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(config)
        self.draining, self.seconds, self.told = draining, seconds, started
        self._end = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what a start leaves is never garbage: no later collection, which stops all requests, walks it
        self.told()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.seconds or self.draining.on:
            return super().handle_exit(sig, frame)
        self._captured_signals.append(sig)
        self._end, self.draining.on = time.monotonic() + self.seconds, True
        return None

    async def on_tick(self, counter: int) -> bool:
        if self.draining.on and time.monotonic() >= self._end:
            self.should_exit = True
        return await super().on_tick(counter)

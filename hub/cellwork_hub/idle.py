"""When a server that nobody uses ends: after its seconds without a request, while no request or socket is open.

It stands behind a gate, so that only those count who may ask. What ended begins again when somebody asks: that is the hub's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

VARIABLE = "CELLWORK_IDLE_SECONDS"
"""Where a server is told its seconds; not set is never."""


class Idle:
    """Passes all to `app`, and calls `end` once nobody has used it for `seconds`; 0 is never."""

    def __init__(self, app: ASGIApp, seconds: float, end: Callable[[], None]) -> None:
        self.app, self.seconds, self.end = app, seconds, end
        self._open, self._last = 0, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        self._open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._open -= 1
            self._last = time.monotonic()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        watching = asyncio.create_task(self._watch()) if self.seconds else None
        try:
            await self.app(scope, receive, send)
        finally:
            if watching:
                watching.cancel()

    async def _watch(self) -> None:
        while (left := self._left()) > 0:
            await asyncio.sleep(left)
        self.end()

    def _left(self) -> float:
        return self.seconds if self._open else self._last + self.seconds - time.monotonic()

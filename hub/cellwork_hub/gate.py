"""Default deny in front of an ASGI app that knows nothing of the hub: who calls, whether the rules let it pass, what is handed on.

The app behind gets no credential: tokens and cookies end here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellwork import errors, ids
from cellwork.wire.records import Principal
from cellwork_hub.edge import canonical_path, problem_response, respond
from cellwork_hub.guard import no_credential, watched
from cellwork_hub.login import Login

log = logging.getLogger("cellwork")

VIEWER_HEADER = "x-cellwork-token"
"""Where an app that acts for its callers finds the token of each; what a caller sends under that name never arrives."""
NEVER_HANDED_ON = (b"authorization", b"cookie", b"x-forwarded-user", b"proxy-authorization", VIEWER_HEADER.encode())


class Asked:
    """A request as the rules see it. `path` is canonical and below the service's prefix."""

    def __init__(self, scope: Scope, path: str, receive: Receive) -> None:
        self.method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        self.path, self.query, self._receive = path, scope.get("query_string", b""), receive
        self._read: list[Message] = []
        self.rewritten = 0
        """Bytes of the body that is handed on in the place of what came; 0: nothing was changed."""
        self.answer: Callable[[bytes], bytes] | None = None
        """Makes of a successful answer's body the one that is sent."""

    async def body(self, most: int = 1024 * 1024) -> bytes:
        """Return the whole body, which is also handed on; raises TooLarge above `most` bytes."""
        size = 0
        while not self._read or self._read[-1].get("more_body", False):
            message = await self._receive()
            size += len(message.get("body", b""))
            if size > most:
                raise errors.TooLarge("body", f"{size} bytes", f"is over the limit of {most} bytes", "send less")
            self._read.append(message)
        return b"".join(message.get("body", b"") for message in self._read)

    def rewrite(self, values: dict[str, Any]) -> None:
        """Hand on these values, as JSON, in the place of the body."""
        body = json.dumps(values).encode()
        self._read, self.rewritten = [{"type": "http.request", "body": body, "more_body": False}], len(body)

    async def replay(self) -> Message:
        return self._read.pop(0) if self._read else await self._receive()


Rules = Callable[[Principal, Asked], Awaitable[None]]
"""Raises an error for what may not pass; returning lets it pass."""

Dialect = Callable[[errors.CellworkError, int], dict[str, str]]
"""Adds to the answer to an error of that status what the app's own clients look for."""


class Gate:
    """`rules` judge each request of somebody known; without rules the app judges by itself, and finds the principal in the scope."""

    def __init__(
        self,
        app: ASGIApp,
        login: Login,
        rules: Rules | None = None,
        *,
        ready: Callable[[], Awaitable[bool]] | None = None,
        dialect: Dialect | None = None,
        on_behalf: bool = False,
    ) -> None:
        """With `on_behalf` the app gets the caller's token, a browser's being one that only reads."""
        self.on_behalf = on_behalf
        self.app, self.login, self.rules, self.ready, self.dialect = app, login, rules, ready, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = ids.new("req")
        try:
            await self._pass(scope, receive, send)
        except errors.CellworkError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 4403, "reason": str(error)[:120]})
                return
            anonymous = scope.get("cellwork.anonymous", False)
            status, body, kind, headers = problem_response(error, request_id, anonymous=anonymous)
            if self.dialect:
                body = json.dumps({**json.loads(body), **self.dialect(error, status)}).encode()
            await respond(send, status, body, kind, {**headers, "x-request-id": request_id})

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = canonical_path(scope, self.login.prefix)
        if scope["type"] == "http" and path == "/oauth_callback":
            await _redirect(send, await self.login.from_hub(scope))
            return
        if self.rules and scope["type"] == "http" and path in ("/health/live", "/health/ready"):
            await self._health(path, send)
            return
        principal = await self.login(scope)
        if principal.kind == "nobody" and self.login.wants_page(scope) and not path.startswith("/health/"):
            await _redirect(send, self.login.to_hub(scope, path))
            return
        if self.rules is None:
            await self.app({**scope, "cellwork.principal": principal, "cellwork.login": self.login}, receive, send)
            return
        if principal.kind == "nobody":
            raise no_credential(scope)
        asked = Asked(scope, path, receive)
        try:
            await self.rules(principal, asked)
        except (errors.Refused, errors.NotFound):  # what is known of the caller may be some seconds old
            principal = await self.login({**scope, "cellwork.fresh": True})
            await self.rules(principal, asked)
        handed = {**_handed_on(scope, asked), "cellwork.principal": principal}
        if self.on_behalf:
            token = self.login.token_of(scope).encode("latin-1")
            handed = {**handed, "headers": [*handed["headers"], (VIEWER_HEADER.encode(), token)]}
        serving = self.app(handed, asked.replay, _changed(send, asked.answer) if asked.answer else send)
        if scope["type"] == "websocket":
            await watched(serving, lambda: self._still(scope, asked))
        else:
            await serving

    async def _still(self, scope: Scope, asked: Asked) -> None:
        """Raise what a socket that is open would be refused with now."""
        principal = await self.login(scope)
        if principal.kind == "nobody" or self.rules is None:
            raise no_credential(scope)
        await self.rules(principal, asked)

    async def _health(self, path: str, send: Send) -> None:
        if path == "/health/ready" and self.ready and not await self.ready():
            raise errors.Unavailable("service", self.login.service, "is not ready yet", "ask again in a second")
        await respond(send, 200, b'{"status":"ready"}', "application/json", {})


def _handed_on(scope: Scope, asked: Asked) -> Scope:
    headers = [(key, value) for key, value in scope["headers"] if key not in NEVER_HANDED_ON]
    if asked.rewritten:
        framing = (b"content-length", b"transfer-encoding", b"content-type")
        headers = [(key, value) for key, value in headers if key not in framing]
        headers += [(b"content-length", str(asked.rewritten).encode()), (b"content-type", b"application/json")]
    return {**scope, "path": asked.path, "raw_path": asked.path.encode(), "root_path": "", "headers": headers}


def _changed(send: Send, change: Callable[[bytes], bytes]) -> Send:
    """Return a `send` that holds a successful answer back until it is whole, and sends what `change` makes of it."""
    start: Message = {}
    parts: list[bytes] = []

    async def sent(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and message["status"] == 200:
            start = message
        elif start and message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = change(b"".join(parts))
                headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
                await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
                await send({"type": "http.response.body", "body": body})
        else:
            await send(message)

    return sent


async def _redirect(send: Send, headers: list[tuple[str, str]]) -> None:
    pairs = [
        (k.encode(), v.encode("latin-1")) for k, v in [("content-length", "0"), ("cache-control", "no-store"), *headers]
    ]
    await send({"type": "http.response.start", "status": 302, "headers": pairs})
    await send({"type": "http.response.body", "body": b""})

"""Our dashboards behind the hub's login: the gate, an allow-list of paths, and a small proxy to Voila's socket.

Whoever may read monitors may look. Nothing else of Voila is opened: no kernel is started but by a page, no file is written.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from cellwork import errors
from cellwork.wire.records import Principal
from cellwork_hub.context import Context
from cellwork_hub.edge import serve
from cellwork_hub.gate import Asked, Gate
from cellwork_hub.guard import require
from cellwork_hub.login import Login
from cellwork_hub.making import Making

KERNEL = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
OPEN = (
    ("GET", r"/|/voila/tree|/voila/render/[\w.-]+\.ipynb"),
    (
        "GET",
        r"/voila/(?:static|templates|labextensions)/[\w./@~+-]+|/voila/api/themes/[\w./@~+-]+|/voila/files/[\w-]+\.(?:png|jpg|svg)",
    ),
    ("GET", rf"/api/kernels/{KERNEL}"),
    ("POST", rf"/voila/api/shutdown/{KERNEL}"),
    ("WEBSOCKET", rf"/api/kernels/{KERNEL}/channels"),
)
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer", b"proxy-connection"}
)
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
"""Nothing is loaded from elsewhere, whatever a template or a library asks for."""
MOST_BYTES = 32 * 1024 * 1024


async def judge(principal: Principal, asked: Asked) -> None:
    require(principal, "monitors:read")
    check_open(asked)


def check_open(asked: Asked) -> None:
    """Raise Refused for whatever is not a page, what belongs to one, or its kernel's channel."""
    if not any(asked.method == method and re.fullmatch(pattern, asked.path) for method, pattern in OPEN):
        raise errors.Refused(
            "request",
            f"{asked.method} {asked.path}",
            "is not opened here",
            "open a dashboard from the list at /services/dashboards/",
        )


class Proxy:
    """Hands HTTP and websockets on to the server behind the unix socket `path`, below `prefix`."""

    def __init__(self, path: Path, prefix: str) -> None:
        self.path, self.prefix = path, prefix
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(path)), timeout=httpx.Timeout(120, connect=5)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http_request(scope, receive, send)
        else:
            await self._websocket(scope, receive, send)

    async def ready(self) -> bool:
        try:
            return (await self._http.get(f"http://voila{self.prefix}/voila/static/extension.js")).status_code < 500
        except httpx.TransportError:
            return False

    async def end(self, kernel: str) -> None:
        """End a kernel; where Voila does not answer it ends with it, or for having no connection."""
        try:
            await self._http.post(f"http://voila{self.prefix}/voila/api/shutdown/{kernel}", timeout=10)
        except httpx.HTTPError:
            return

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._http.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    def _target(self, scope: Scope) -> str:
        query = scope.get("query_string", b"").decode("latin-1")
        path: str = scope["path"]
        return self.prefix + path + (f"?{query}" if query else "")

    async def _http_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(key, value) for key, value in scope["headers"] if key not in HOP_BY_HOP | {b"content-length"}]
        content = await _read(receive)
        request = self._http.build_request(
            scope["method"], f"http://voila{self._target(scope)}", headers=headers, content=content
        )
        try:
            answer = await self._http.send(request, stream=True)
        except httpx.TransportError:
            raise errors.Unavailable("dashboards", "", "are starting", "try again in some seconds") from None
        pairs = [
            (key.lower(), value)
            for key, value in answer.headers.raw
            if key.lower() not in HOP_BY_HOP | {b"set-cookie", b"content-security-policy"}
        ]
        await send(
            {
                "type": "http.response.start",
                "status": answer.status_code,
                "headers": [*pairs, (b"content-security-policy", POLICY.encode())],
            }
        )
        async with _closing(answer):
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = dict(_text(scope["headers"]))
        kept = {name: headers[name] for name in ("origin", "user-agent") if name in headers}
        subprotocols = scope.get("subprotocols") or None
        uri = f"ws://{headers.get('host', 'voila')}{self._target(scope)}"
        try:
            connection = unix_connect(
                str(self.path),
                uri,
                subprotocols=subprotocols,
                additional_headers=kept,
                max_size=MOST_BYTES,
                compression=None,
                proxy=None,
                user_agent_header=None,
            )
            async with connection as behind:
                await send({"type": "websocket.accept", "subprotocol": behind.subprotocol})
                await _pump(behind, receive, send)
        except (OSError, WebSocketException) as error:
            await send({"type": "websocket.close", "code": 1011, "reason": type(error).__name__})


async def _pump(behind: ClientConnection, receive: Receive, send: Send) -> None:
    """Carry messages both ways until either side closes."""

    async def outward() -> None:
        async for message in behind:
            await send(
                {"type": "websocket.send", **({"text": message} if isinstance(message, str) else {"bytes": message})}
            )
        await send({"type": "websocket.close", "code": 1000})

    async def inward() -> None:
        while (message := await receive())["type"] == "websocket.receive":
            await behind.send(_payload(message))

    tasks = {asyncio.create_task(outward()), asyncio.create_task(inward())}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        if (error := task.exception()) and not isinstance(error, ConnectionClosed):
            raise error


def _payload(message: Message) -> str | bytes:
    text: str | None = message.get("text")
    return text if text is not None else message["bytes"]


async def _read(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if sum(map(len, chunks)) > MOST_BYTES:
            raise errors.TooLarge("body", "", f"is over the limit of {MOST_BYTES} bytes", "send less")
        if not message.get("more_body"):
            return b"".join(chunks)


@asynccontextmanager
async def _closing(answer: httpx.Response) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await answer.aclose()


def _text(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(key.decode("latin-1"), value.decode("latin-1")) for key, value in headers]


def build(context: Context) -> ASGIApp:
    login = Login.of(context, "dashboards")
    proxy = Proxy(context.voila_socket(), login.prefix)
    return Gate(Making(proxy, proxy.end), login, judge, ready=proxy.ready, on_behalf=True)


if __name__ == "__main__":
    context = Context.load()
    serve(build(context), "127.0.0.1", context.ports["dashboards"])

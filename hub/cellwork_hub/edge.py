"""From HTTP to functions and back: routes with scopes, limits, request ids, metrics; the only place where errors become responses.

A handler is a plain function `(call) -> Struct | bytes | None`; it runs on a thread unless it is async. What it raises
that is no `CellworkError` is a bug: 500, the traceback in the log, nothing of it in the answer.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from cellwork import __version__, errors, ids
from cellwork.wire import Problem
from cellwork.wire.origin import HEADER, Origin
from cellwork.wire.records import Principal
from cellwork_hub import gauges
from cellwork_hub.drain import Draining, Server, configuration
from cellwork_hub.gauges import Gauges
from cellwork_hub.guard import Guard, no_credential, watched
from cellwork_hub.openapi import describe
from cellwork_hub.route import Call, Malformed, Route

__all__ = [
    "Call",
    "Malformed",
    "Route",
    "Service",
    "canonical_path",
    "no_credential",
    "problem_response",
    "respond",
    "serve",
]
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

log = logging.getLogger("cellwork")

STATUS: dict[type[errors.CellworkError], int] = {
    errors.BadInput: 422, errors.NotFound: 404, errors.Refused: 403, errors.Conflict: 409,
    errors.TooLarge: 413, errors.TooBusy: 429, errors.Unavailable: 503,
}  # fmt: skip


Lifespan = Callable[[], AbstractAsyncContextManager[None]]
Totals = tuple[Mapping[tuple[str, str, int], int], Mapping[tuple[str, str], float]]
"""Requests by method, path and status; seconds by method and path."""


class Service:
    """An ASGI app of routes. `ready` says whether requests make sense yet; `authorise` makes a Principal of a request."""

    def __init__(
        self,
        name: str,
        routes: Sequence[Route],
        *,
        authorise: Callable[[Scope], Awaitable[Principal]],
        lifespan: Lifespan | None = None,
        ready: Callable[[], bool] = lambda: True,
        most_bytes: int = 256 * 1024 * 1024,
        bounded: bool = False,
        more_gauges: Gauges = list,
    ) -> None:
        """With `bounded`, people see the projects they are members of and no others. `more_gauges` are added to the metrics."""
        self.more_gauges = more_gauges
        self.guard = Guard(authorise, bounded)
        self.name, self.lifespan, self.ready, self.most_bytes = (
            name,
            lifespan,
            ready,
            most_bytes,
        )
        self.prefix = f"/services/{name}"
        self.counts: Counter[tuple[str, str, int]] = Counter()
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.totals: Callable[[], Totals] = lambda: (self.counts, self.seconds)
        """What the metrics say; a service of several processes adds up theirs."""
        self.routes = [*routes, *self._own_routes()]

    def _own_routes(self) -> list[Route]:
        def live(call: Call) -> dict[str, str]:
            return {"status": "live", "service": self.name, "version": __version__}

        def readiness(call: Call) -> dict[str, str]:
            if not self.ready():
                raise errors.Unavailable("service", self.name, "is not ready yet", "ask again in a second")
            return {"status": "ready", "service": self.name}

        def metrics(call: Call) -> bytes:
            call.media_type = "text/plain; version=0.0.4"
            return self._metrics().encode()

        def openapi(call: Call) -> dict[str, Any]:
            return describe(self.name, self.routes)

        return [
            Route("GET", "/health/live", live, scope=None, doc="The process answers."),
            Route("GET", "/health/ready", readiness, scope=None, doc="Requests make sense."),
            Route("GET", "/metrics", metrics, scope="monitors:read", doc="Prometheus metrics.", within="platform"),
            Route("GET", "/openapi.json", openapi, scope="data:read", doc="This description.", within="platform"),
        ]

    def _metrics(self) -> str:
        counts, seconds = self.totals()
        lines = ["# TYPE cellwork_requests_total counter"]
        lines += [
            f'cellwork_requests_total{{service="{self.name}",method="{m}",path="{p}",status="{s}"}} {n}'
            for (m, p, s), n in sorted(counts.items())
        ]
        lines.append("# TYPE cellwork_request_seconds_total counter")
        lines += [
            f'cellwork_request_seconds_total{{service="{self.name}",method="{m}",path="{p}"}} {n:.6f}'
            for (m, p), n in sorted(seconds.items())
        ]
        lines += gauges.lines(self.name, [*gauges.process(), *self.more_gauges()])
        return "\n".join(lines) + "\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._converse(scope, receive, send)

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        @asynccontextmanager
        async def nothing() -> AsyncIterator[None]:
            yield

        await receive()
        try:
            async with (self.lifespan or nothing)():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            log.exception("%s failed to start or stop", self.name)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _converse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the handler of a WEBSOCKET route talk; who may not is told so before the socket is accepted."""
        socket = WebSocket(scope, receive, send)
        try:
            route, parameters = self._find(scope)
            principal = await self.guard.principal(scope, route)
            headers = {key.lower(): value for key, value in socket.headers.items()}
            origin = _origin(headers, principal)
            call = Call(principal, ids.new("req"), origin, parameters, dict(socket.query_params), socket, headers)
            await self.guard.enter(scope, route, call)
            await watched(self._run(route, call), lambda: self.guard.still(scope, route, call))
        except errors.CellworkError as error:
            await socket.close(4403, str(error).encode()[:120].decode(errors="ignore"))
        except WebSocketDisconnect:
            return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, request_id, path = time.perf_counter(), ids.new("req"), "(none)"
        try:
            route, parameters = self._find(scope)
            path = route.path
            principal = await self.guard.principal(scope, route)
            call = await self._decode(Request(scope, receive), route, parameters, principal, request_id)
            await self.guard.enter(scope, route, call)
            result = await self._run(route, call)
            if call.bounded and not call.asked:
                raise RuntimeError(
                    f"{route.method} {route.path} asked for no project: say Route(within=...) or call.enter"
                )
            if isinstance(result, AsyncIterator):
                self.counts[scope["method"], path, route.status] += 1
                headers = {**call.answer_headers, "x-request-id": request_id}
                with contextlib.suppress(errors.CellworkError):  # cut off in the middle: the answer has begun
                    sending = stream(receive, send, result, call.media_type, headers)
                    await watched(sending, lambda: self.guard.still(scope, route, call))
                return
            status, body, kind, headers = route.status, _encode(result), call.media_type, call.answer_headers
        except ClientDisconnect:
            return
        except errors.CellworkError as error:
            status, body, kind, headers = problem_response(
                error, request_id, anonymous=scope.get("cellwork.anonymous", False)
            )
        except Exception:
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            problem = Problem(
                type="Bug",
                subject="request",
                value=request_id,
                verdict="failed inside the platform",
                way_out=f"look for {request_id} in the service's log",
            )
            status, body, kind, headers = 500, msgspec.json.encode(problem), "application/problem+json", {}
        self.counts[scope["method"], path, status] += 1
        self.seconds[scope["method"], path] += time.perf_counter() - started
        await respond(send, status, body, kind, {**headers, "x-request-id": request_id})

    def _find(self, scope: Scope) -> tuple[Route, dict[str, str]]:
        path = canonical_path(scope, self.prefix)
        method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        if scope["type"] == "http" and method == "WEBSOCKET":
            raise Malformed("method", method, "is not one of HTTP", "open a websocket")
        others = []
        for route in self.routes:
            match = route.pattern.fullmatch(path)
            if match and route.method == method:
                return route, match.groupdict()
            if match:
                others.append(route.method)
        if others:
            raise errors.NotFound("method", method, f"does not exist on {path}", f"use {' or '.join(sorted(others))}")
        raise errors.NotFound("path", path, f"is not one of the service {self.name!r}", "look at /openapi.json")

    async def _decode(
        self, request: Request, route: Route, parameters: dict[str, str], principal: Principal, request_id: str
    ) -> Call:
        content = await self._read(request)
        body: Any = None
        if route.body is bytes:
            body = content
        elif route.body is not None:
            try:
                body = msgspec.json.decode(content, type=route.body)
            except msgspec.ValidationError as error:
                raise errors.BadInput("body", "", str(error), "look at /openapi.json for its form") from None
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Malformed("body", "", f"is not JSON: {error}", "send a JSON document") from None
        headers = {key.lower(): value for key, value in request.headers.items()}
        return Call(
            principal, request_id, _origin(headers, principal), parameters, dict(request.query_params), body, headers
        )

    async def _read(self, request: Request) -> bytes:
        """Read the body, never more than the limit, whatever length the header claims."""
        chunks: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self.most_bytes:
                raise errors.TooLarge(
                    "body", f"{size} bytes", f"is over the limit of {self.most_bytes} bytes", "send it in parts"
                )
            chunks.append(chunk)
        return b"".join(chunks)

    @staticmethod
    async def _run(route: Route, call: Call) -> Any:
        if inspect.iscoroutinefunction(route.handler):
            return await route.handler(call)
        return await anyio.to_thread.run_sync(route.handler, call)


def canonical_path(scope: Scope, prefix: str) -> str:
    """Return the path below `prefix`; a path that can be read in two ways is refused before any rule looks at it."""
    raw = scope.get("raw_path", b"").decode("latin-1").partition("?")[0] or scope["path"]
    if (
        "//" in raw
        or "\\" in raw
        or re.search(r"%(2f|5c|25|00|2e)", raw, re.IGNORECASE)
        or any(part in (".", "..") for part in raw.split("/"))
    ):
        raise Malformed("path", raw, "is not canonical", "write it without //, .. or encoded separators")
    path: str = scope["path"]
    return path.removeprefix(prefix) or "/"


def problem_response(
    error: errors.CellworkError, request_id: str, *, anonymous: bool = False
) -> tuple[int, bytes, str, dict[str, str]]:
    status = (
        400
        if isinstance(error, Malformed)
        else 401
        if anonymous
        else next(code for kind, code in STATUS.items() if isinstance(error, kind))
    )
    kind = "BadInput" if isinstance(error, Malformed) else type(error).__name__
    problem = Problem(
        type=kind,
        subject=error.subject,
        value=error.value,
        verdict=error.verdict,
        way_out=error.way_out,
        request_id=request_id,
    )
    headers = {"www-authenticate": "Bearer"} if status == 401 else {"retry-after": "1"} if status in (429, 503) else {}
    return status, msgspec.json.encode(problem), "application/problem+json", headers


async def respond(send: Send, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
    pairs = [
        ("content-type", kind),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        *headers.items(),
    ]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in pairs],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def stream(
    receive: Receive, send: Send, chunks: AsyncIterator[bytes], kind: str, headers: dict[str, str]
) -> None:
    """Send `chunks` as they come, until they end or the caller leaves."""
    pairs = [("content-type", kind), ("cache-control", "no-store"), ("x-content-type-options", "nosniff"), *headers.items()]  # fmt: skip
    encoded = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in pairs]
    await send({"type": "http.response.start", "status": 200, "headers": encoded})
    async with anyio.create_task_group() as group:

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue
            group.cancel_scope.cancel()

        group.start_soon(leave)
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        group.cancel_scope.cancel()
    with contextlib.suppress(OSError):  # the caller has left
        await send({"type": "http.response.body", "body": b""})


def _encode(result: Any) -> bytes:
    return result if isinstance(result, bytes) else msgspec.json.encode(result)


def _origin(headers: dict[str, str], principal: Principal) -> Origin:
    """Return the caller's word on its origin; the user is ours to say."""
    try:
        origin = msgspec.json.decode(headers.get(HEADER, "{}").encode(), type=Origin)
    except msgspec.MsgspecError:
        origin = Origin()
    return msgspec.structs.replace(origin, user=principal.name)


def serve(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    shared: bool = False,
    listening: socket.socket | None = None,
    drain_seconds: float = 0.0,
    proxied: bool = True,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run `app` until SIGTERM or SIGINT; in-flight requests are finished first, see `drain`.

    Parameters
    ----------
    shared : other processes may take the port too.
    listening : an open socket, which others may hold too; then host and port are not used.
    proxied : believe the proxy's word on scheme and caller; costs each request a little.
    started : told when requests are taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    draining = Draining(app)
    config = configuration(draining, host, port, proxied=proxied)
    own = listening or (listen(host, port) if shared else None)
    Server(config, draining, drain_seconds, started).run(sockets=[own] if own else None)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket on a port that several sockets may listen on; the kernel spreads connections over them."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    return listening

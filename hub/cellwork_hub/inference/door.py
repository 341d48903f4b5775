"""The front door of the inference service: predictions take the quick lane, all else the service behind it.

A prediction is recognised by its exact path. Its caller is looked up in a cache that holds for a second, over which the rate of each
credential is counted too. Whatever the lane hands back, and every error, is answered by the service: it gets the body again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope, Send

from cellwork import ids, scopes
from cellwork.errors import CellworkError, TooBusy
from cellwork.serving.lane import MOST_BYTES
from cellwork.serving.shape import Door as Kind
from cellwork.wire.records import Principal
from cellwork_hub.drain import Draining
from cellwork_hub.edge import Service, problem_response, respond
from cellwork_hub.inference import direct
from cellwork_hub.inference.deploy import Endpoints

PREFIX = "/services/inference"
DOORS: dict[str, Kind] = {"/predict/": "predict", "/invocations/": "invocations"}
DEPLOYMENTS = re.compile(r"/endpoints/([^./]+)\.([^/]+)/invocations")
ROUTES: dict[Kind, str] = {"predict": "/predict/{project}/{name}", "invocations": "/invocations/{project}/{name}"}
"""The path under which the metrics count each door."""
CACHE_SECONDS = 1.0
MOST_CALLERS = 10_000


@dataclass(slots=True)
class Caller:
    """A credential that may predict, as it was a moment ago."""

    until: float
    name: str
    projects: frozenset[str] | None
    """Whose endpoints it may ask; None: any project's."""
    requests: int = 0

    def may_ask(self, project: str) -> bool:
        return self.projects is None or project in self.projects


class FrontDoor:
    def __init__(self, service: Service, endpoints: Endpoints, *, most_per_second: int = 0) -> None:
        self.service, self.endpoints, self.most_per_second = service, endpoints, most_per_second
        self.counts: Counter[str] = Counter()
        self.targets: dict[bytes, tuple[str, Kind]] = {}
        """Endpoint and door by the exact target of a request, as it stands on the wire; those that were asked for."""
        self.heads: dict[bytes, direct.Head] = {}
        """What the connections' parsers made of the heads they read."""
        self._paths: dict[str, tuple[str, Kind]] = {}
        self._callers: dict[bytes, Caller] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope.get(direct.GENERAL):
            return await self.service(scope, receive, send)
        known = self._paths.get(scope["path"]) or self._path(scope["path"])
        if known is None or b"%" in scope.get("raw_path", b"%"):
            return await self.service(scope, receive, send)
        name, kind = known
        lane = self.endpoints.lane(name)
        if lane is None:
            return await self.service(scope, receive, send)
        self.targets[scope["raw_path"]] = known
        began, message = time.perf_counter(), await receive()
        body = message.get("body", b"")
        try:
            caller = await self._caller(scope, name.partition("/")[0])
            reply = None
            if caller is not None and not message.get("more_body", False) and len(body) <= MOST_BYTES:
                reply = await lane.ask(kind, body, caller.name)
        except CellworkError as error:
            request = ids.new("req")
            status, content, media, headers = problem_response(error, request)
            self.count(kind, status, time.perf_counter() - began)
            return await respond(send, status, content, media, {**headers, "x-request-id": request})
        if reply is None:
            return await self.service(scope, _again(message, receive), send)
        content, first = reply
        self.count(kind, 200, time.perf_counter() - began)
        length = (b"content-length", str(len(content)).encode())
        headers_ = [*direct.HEADERS, length, (b"x-request-id", b"req_" + first.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers_})
        return await send({"type": "http.response.body", "body": content})

    def connections(self, draining: Draining) -> type[asyncio.Protocol]:
        """Return the class of connections that answers what is usual by itself; `edge.serve` asks."""
        return direct.connections(self, draining)

    def count(self, kind: Kind, status: int, seconds: float) -> None:
        """Note an answer in the metrics."""
        self.counts[kind] += status == 200
        self.service.counts["POST", ROUTES[kind], status] += 1
        self.service.seconds["POST", ROUTES[kind]] += seconds

    def knows(self, credential: bytes, project: str) -> Caller | None:
        """Return who asks an endpoint of `project`, if that was looked up within the second."""
        caller = self._callers.get(credential)
        return None if caller is None or caller.until < time.monotonic() or not caller.may_ask(project) else caller

    def known_caller(self, credential: bytes, project: str) -> Caller | None:
        """Count a request of one whom the door `knows`; None: it must be looked at closer."""
        caller = self.knows(credential, project)
        if caller is None or 0 < self.most_per_second <= caller.requests:
            return None
        caller.requests += 1
        return caller

    def _path(self, path: str) -> tuple[str, Kind] | None:
        """Return endpoint and door of a path; those of endpoints that exist are remembered."""
        below = path.removeprefix(PREFIX)
        if match := DEPLOYMENTS.fullmatch(below):  # as MLflow's own client says it
            below = f"/invocations/{match[1]}/{match[2]}"
        for start, kind in DOORS.items():
            name = below.removeprefix(start)
            if name != below and self.endpoints.lane(name) is not None:
                self._paths[path] = name, kind
                return name, kind
        return None

    async def _caller(self, scope: Scope, project: str) -> Caller | None:
        """Return who calls an endpoint of `project`, or None if the service must look closer, or say why not.

        Raises
        ------
        TooBusy
            This credential has asked too often within the second.
        """
        header = next((value for key, value in scope["headers"] if key == b"authorization"), b"")
        if not header:
            return None
        caller, now = self._callers.get(header), time.monotonic()
        if caller is None or caller.until < now:
            try:
                principal = await self.service.guard.authorise(scope)
            except CellworkError:
                return None
            if "endpoints:predict" not in principal.scopes:
                return None
            if len(self._callers) >= MOST_CALLERS:
                self._callers.clear()
            caller = self._callers[header] = Caller(now + CACHE_SECONDS, principal.name, self._projects(principal))
        if not caller.may_ask(project):
            return None
        caller.requests += 1
        if 0 < self.most_per_second < caller.requests:
            way_out = "ask again in a second, or ask an admin for a higher rate"
            raise TooBusy(
                f"caller {caller.name!r}", f"{caller.requests - 1} requests", "are the most in a second", way_out
            )
        return caller

    def _projects(self, principal: Principal) -> frozenset[str] | None:
        unbound = not self.service.guard.bounded or principal.kind == "service"
        return None if unbound and principal.kind != "key" else frozenset(scopes.projects(principal.groups))


def _again(first: Message, receive: Receive) -> Receive:
    """Return `receive` with the message that was already taken from it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return first

    return replay

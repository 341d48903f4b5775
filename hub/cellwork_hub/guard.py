"""Who may pass: whose token it is, the scope of the route, and in `team` trust the project that the request names.

What stays open (a stream, a socket) is looked at again every `WATCH_SECONDS`: who was removed, or lost a role or a
membership, is cut off. If the hub does not answer then, what is open stays open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from cellwork import errors, scopes
from cellwork.wire.records import Principal
from cellwork_hub.route import Call, Route

WATCH_SECONDS = 5.0
FULL_NAMES = ("name", "job", "endpoint", "model")
"""Where a path, query or body says ``project/name``."""


def no_credential(scope: Scope) -> errors.Refused:
    """Return the refusal of a request without a credential; the answer to it becomes a 401."""
    scope["cellwork.anonymous"] = True
    way_out = "send 'Authorization: Bearer <token>' with a token of the hub"
    return errors.Refused("request", "", "carries no valid credential", way_out)


def require(principal: Principal, scope: str) -> None:
    if scope not in principal.scopes:
        raise errors.Refused(
            f"{principal.kind} {principal.name!r}",
            scope,
            "is a scope it does not have",
            "ask an admin for a role with that scope",
        )


@dataclass(frozen=True)
class Guard:
    """`authorise` makes a principal of a request. With `bounded`, people see the projects they are members of and no others."""

    authorise: Callable[[Scope], Awaitable[Principal]]
    bounded: bool = False

    async def principal(self, scope: Scope, route: Route) -> Principal:
        """Return who calls; before a refusal the hub is asked anew, for a role may be some seconds old."""
        if route.scope is None:
            return Principal(kind="nobody", name="anonymous")
        principal = await self.authorise(scope)
        if principal.kind != "nobody" and route.scope not in principal.scopes:
            principal = await self._anew(scope)
        if principal.kind == "nobody":
            raise no_credential(scope)
        require(principal, route.scope)
        return principal

    async def enter(self, scope: Scope, route: Route, call: Call) -> None:
        """Check the projects that the request names, where projects are boundaries."""
        if call.principal.kind == "key":  # in every trust, and on every route: a key is of one project
            call.bounded, call.asked = True, route.within == "platform"
            for name in sorted(named(call) | {call.path.get("model", "").partition(".")[0]} - {""}):
                call.enter(name)
            return
        if route.scope is None or not self.bounded or call.principal.kind == "service":
            return
        call.bounded, call.asked = True, route.within == "platform"
        for name in sorted(named(call)) if route.within == "project" else ():
            if not call.may_enter(name):
                call.principal = await self._anew(scope)
                call.enter(name)

    async def still(self, scope: Scope, route: Route, call: Call) -> None:
        """Raise what `principal` or `enter` would raise now, for a request that they let pass before."""
        principal = await self.principal({**scope, "cellwork.principal": None}, route)
        for project in call.projects if call.bounded else ():
            if project not in scopes.projects(principal.groups):
                raise errors.Refused("project", project, "is not yours any more", "ask a member of it")

    async def _anew(self, scope: Scope) -> Principal:
        """Ask again, past what a gate in front has found and what is cached."""
        return await self.authorise({**scope, "cellwork.principal": None, "cellwork.fresh": True})


def named(call: Call) -> set[str]:
    """Return the projects that path, query and body name, by themselves or in a full name ``project/name``."""
    sources = (call.path, call.query, {key: getattr(call.body, key, "") for key in ("project", *FULL_NAMES)})
    alone = {str(source.get("project") or "") for source in sources}
    full = {str(source.get(key) or "") for source in sources for key in FULL_NAMES}
    return (alone | {name.partition("/")[0] for name in full if "/" in name}) - {""}


async def watched(work: Awaitable[Any], still: Callable[[], Awaitable[None]], seconds: float = WATCH_SECONDS) -> None:
    """Do `work` to its end, or until `still`, asked every `seconds`, raises: then that is raised and the work cancelled."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=seconds))[0]:
            try:
                await still()
            except errors.Unavailable:
                continue
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

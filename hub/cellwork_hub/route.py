"""A route and a call of it: what routers are written in."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from cellwork import errors, scopes
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal


class Malformed(errors.BadInput):
    """The body or a parameter can't even be read: 400."""


@dataclass
class Call:
    """One request, decoded and authorised."""

    principal: Principal
    request_id: str
    origin: Origin
    path: dict[str, str]
    query: dict[str, str]
    body: Any
    headers: dict[str, str]
    answer_headers: dict[str, str] = field(default_factory=dict)
    media_type: str = "application/json"
    bounded: bool = False
    """The caller is a person in `team` trust: it sees its own projects only."""
    asked: bool = False
    """Somebody asked whether it may enter a project, or the route is the platform's."""
    projects: set[str] = field(default_factory=set)
    """Those it entered."""

    def may_enter(self, project: str) -> bool:
        """Whether the caller is a member of `project`; for lists, which show what one may see."""
        self.asked = True
        inside = not self.bounded or project in scopes.projects(self.principal.groups)
        if inside and project:
            self.projects.add(project)
        return inside

    def enter(self, project: str) -> None:
        """Raise NotFound unless the caller is a member of `project`: of others' projects one does not learn what is in them."""
        if not self.may_enter(project):
            raise errors.NotFound(
                "project",
                project[:80],
                "does not exist, or you are not a member of it",
                f"ask a member: cellwork project add {project[:80]} {self.principal.name}; or make it: cellwork project create",
            )

    def required(self, name: str) -> str:
        if not self.query.get(name):
            raise errors.BadInput("query parameter", name, "is missing", f"add ?{name}=…")
        return self.query[name]

    def limit(self, default: int = 100, most: int = 10_000) -> int:
        return max(1, min(self.number("limit", default), most))

    def number(self, name: str, default: int) -> int:
        text = self.query.get(name, "")
        if not re.fullmatch(r"-?\d{1,18}|", text):
            raise errors.BadInput(f"query parameter {name}", text, "is not a whole number", "write digits only")
        return int(text) if text else default

    def next_page(self, cursor: str | int) -> None:
        """Tell the caller where the list goes on."""
        self.answer_headers["x-next-cursor"] = str(cursor)


class Numbered(Protocol):
    seq: int


Entry = TypeVar("Entry", bound=Numbered)


def visible(
    read: Callable[[int, int], list[Entry]], may: Callable[[Entry], bool], after: int, limit: int
) -> list[Entry]:
    """Return the first `limit` entries after `after` that the caller `may` see; `read` gives a page of all, after a number.

    Who sees few of them gets those few, not the end of the list where a page holds only others'.
    """
    found: list[Entry] = []
    while True:
        page = read(after, limit)
        found += [entry for entry in page if may(entry)]
        if len(page) < limit or len(found) >= limit:
            return found[:limit]
        after = page[-1].seq


Handler = Callable[[Call], Any] | Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """`path` holds `{name}` for a segment; `scope` is what the caller needs, `None` opens it to everyone.

    A handler may answer an async iterator of bytes, which are sent as they come. The handler of the method ``WEBSOCKET`` is async, finds the socket, not yet accepted, as the call's body, and answers nothing.
    """

    method: str
    path: str
    handler: Handler
    scope: str | None
    body: Any = None
    """Type of a JSON body; `bytes` hands the raw body on; None takes none."""
    answer: Any = None
    doc: str = ""
    status: int = 200
    within: Literal["project", "platform"] = "project"
    """In `team` trust a caller must be a member of the project that path, query or body names; where none is named, the
    handler asks (`Call.enter`, `Call.may_enter`), or the answer is refused. `platform`: it belongs to no project."""

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        escaped = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.path))
        return re.compile(escaped)

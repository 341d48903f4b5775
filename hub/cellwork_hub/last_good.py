"""A published page as it last was, where it can't be made now: the last whole rendering under a banner, and a traceback for its owner only.

A page is made anew for whoever opens it, and sent when it is whole: then it is also kept, by what was asked (page and query), for everybody,
because it runs as its owner whoever looks. Where a cell fails, or it does not end in time (`making`), the viewer gets what was
kept, or a plain page that says why there is nothing. After one that did not end nobody waits for another within `REST_SECONDS`.
What is kept is in memory, compressed: at most `MOST_VIEWS` views and `MOST_KEPT` bytes, those that were asked for last; and in a `Store` beyond
this process, where a view is brought after its viewer has it, at most every `KEEP_SECONDS`, and from where it is fetched when this process has not seen a
whole one. It ends with the edition: what is published again has been good only when it was.
"""

from __future__ import annotations

import re
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Protocol

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellwork import clock, errors
from cellwork_hub.making import FAILED, is_page

MOST_VIEWS, MOST_KEPT = 32, 32 * 1024 * 1024
MOST_BYTES = 64 * 1024 * 1024
REST_SECONDS, KEEP_SECONDS = 60.0, 10.0
BODY = re.compile(rb"<body[^>]*>")
STYLE = "background:#fffaeb;border-bottom:1px solid #fedf89;color:#7a2e0e;padding:10px 16px;font:14px/1.5 system-ui,sans-serif"
PRE = "max-height:40vh;overflow:auto;background:#fff;padding:10px;border-radius:8px;font-size:12px;white-space:pre-wrap"
TRACEBACK = re.compile(rb'<template data-cellwork-failed="\d+" data-error="[^"]*">(.+?)</template>', re.DOTALL)
"""What a published page's template writes into the mark of a cell that failed: escaped, and never shown by the page itself."""
EMPTY = (
    b"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Dashboard</title></head><body></body></html>"
)


@dataclass
class View:
    """What is known of one page and query: what was whole, when it was made, and until when another try would not end either."""

    body: bytes = b""
    made: datetime | None = None
    rests_until: float = float("-inf")
    trouble: str = ""
    stored: float = float("-inf")

    def take(self, body: bytes, made: datetime) -> None:
        self.body, self.made = zlib.compress(body, 1), made


class Store(Protocol):
    """Where views outlive the process that made them; neither way raises, what does not come about is logged."""

    async def keep(self, asked: str, page: bytes) -> None: ...

    async def find(self, asked: str) -> tuple[bytes, datetime] | None: ...


class Answer:
    """An answer that is held back."""

    def __init__(self) -> None:
        self.start: Message = {}
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        self.body.extend(message.get("body", b""))
        if len(self.body) > MOST_BYTES:
            raise errors.TooLarge("page", "", f"is over {MOST_BYTES >> 20} MB", "show less of it")


class LastGood:
    """Passes all to `app`; of pages it keeps what was whole."""

    def __init__(self, app: ASGIApp, store: Store | None = None, owner: str = "") -> None:
        """`owner` is the one user who sees the traceback of a cell that fails."""
        self.app, self.store, self.owner = app, store, owner
        self._views: OrderedDict[str, View] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_page(scope):
            await self.app(scope, receive, send)
            return
        asked = scope["path"] + "?" + scope.get("query_string", b"").decode("latin-1")
        view, answer = self._view(asked), Answer()
        if view.rests_until <= time.monotonic():
            view.trouble = await self._trouble(scope, receive, answer, view)
            if not view.trouble:
                await self._whole(asked, view, answer, send)
                return
        if view.made is None and self.store and (found := await self.store.find(asked)):
            view.take(*found)
        await _instead(view, self._details(scope, answer), send)

    async def _whole(self, asked: str, view: View, answer: Answer, send: Send) -> None:
        """Send what was made, then keep it."""
        good, body = answer.start["status"] == 200, bytes(answer.body)
        if good:
            view.take(body, clock.now())
            self._make_room()
        await send(answer.start)
        await send({"type": "http.response.body", "body": body})
        if good and self.store and time.monotonic() - view.stored >= KEEP_SECONDS:
            view.stored = time.monotonic()
            await self.store.keep(asked, body)

    def _details(self, scope: Scope, answer: Answer) -> str:
        """Return the traceback in `answer`, as HTML, for the owner; for others, and without one, nothing."""
        who, found = scope.get("cellwork.principal"), TRACEBACK.search(answer.body)
        if found is None or who is None or (who.kind, who.name) != ("user", self.owner):
            return ""
        return f"<details open><summary>The traceback, which only you see, as its owner</summary><pre style='{PRE}'>{found[1].decode()}</pre></details>"

    def _view(self, asked: str) -> View:
        view = self._views.setdefault(asked, View())
        self._views.move_to_end(asked)
        self._make_room()
        return view

    def _make_room(self) -> None:
        while len(self._views) > MOST_VIEWS or sum(len(view.body) for view in self._views.values()) > MOST_KEPT:
            self._views.popitem(last=False)

    async def _trouble(self, scope: Scope, receive: Receive, answer: Answer, view: View) -> str:
        """Let the page be made into `answer`; return why it is not whole, empty if it is."""
        try:
            await self.app(scope, receive, answer)
        except errors.CellworkError as error:
            return f"{error.subject} {error.verdict}"
        except httpx.TransportError:
            return "its server stopped meanwhile"
        if answer.start["status"] >= 500:
            return f"its server answered {answer.start['status']}"
        found = FAILED.search(answer.body)
        if found is None:
            return ""
        cell, what = int(found[1]), found[2].decode()
        if not cell:
            view.rests_until = time.monotonic() + REST_SECONDS
        return f"cell {cell} failed ({what})" if cell else f"it {what}"


async def _instead(view: View, details: str, send: Send) -> None:
    """Send the view as it last was, with what is wrong now in a banner; without one the banner alone, as an error of the server's."""
    known = zlib.decompress(view.body) if view.made else EMPTY
    shown = f"Shown is how it was at {view.made:%Y-%m-%d %H:%M:%S} UTC." if view.made else "There is no earlier view of it to show."  # fmt: skip
    words = f"This page could not be made now: {escape(view.trouble)}. {shown} <a href=''>Try again</a>"
    banner = f"<div role='status' id='cellwork-last-good' style='{STYLE}'>{words}{details}</div>".encode()
    body = BODY.sub(lambda found: found[0] + banner, known, count=1)
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200 if view.made else 503, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})

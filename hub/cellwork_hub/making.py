"""How many pages are made at one time: each takes a kernel while its cells run, and that is what memory goes by.

A request for a page waits for one of `AT_ONCE` places, at most `WAIT_SECONDS`, in a queue in which nobody has more than
`MOST_OF_ONE`. It keeps its place until the page is sent and, where the page says that it needs no kernel any more
(`cellwork.ui.dashboard`), until its kernel has ended: so there are never more such kernels than places. A page that is not
whole after `MOST_SECONDS` ends there, with a mark and a sentence, and its kernel with it, whatever its cells do. Whoever goes away
meanwhile leaves a page that is made to its end, which is bounded by the same time.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellwork import errors

AT_ONCE = 3
WAIT_SECONDS, MOST_SECONDS = 60.0, 120.0
MOST_WAITING, MOST_OF_ONE = 64, 16
RENDER = "/voila/render/"
KERNEL = re.compile(rb'"kernelId":\s*"([0-9a-f-]{36})"')
NEEDS_NONE = b"cellwork-needs-no-kernel"
"""Stands in a page that is whole without its kernel."""
CELL = re.compile(rb"voila_process\((\d+), ?(\d+)\)")
"""Stands in a page where a cell has run: which, and of how many."""
FAILED = re.compile(rb'<template data-cellwork-failed="(\d+)" data-error="([^"]*)">')
MARK = '<template data-cellwork-failed="{}" data-error="{}"></template>'
"""Where a page ends before its time (hub/voila_template): the cell, 0 being none, and what happened."""
LONGEST_MARK = 600
UNENDED = "was not whole after {:.0f} s"

TELL = "cellwork.tell"
"""Where a scope may hold what tells who waits how far the page is: words, and how many of how many cells are done."""

End = Callable[[str], Awaitable[None]]
"""Ends a kernel; one that is not there has ended."""
Tell = Callable[[str, int, int], None]


def _nobody(words: str, done: int, of: int) -> None:
    """Tell nobody."""


def is_page(scope: Scope) -> bool:
    path: str = scope.get("path", "")
    return scope["type"] == "http" and scope["method"] == "GET" and path.startswith(RENDER)


class Making:
    """Passes all to `app`, pages as the module says; `end` ends a kernel."""

    def __init__(self, app: ASGIApp, end: End, *, most_seconds: float = MOST_SECONDS, at_once: int = AT_ONCE) -> None:
        self.app, self.end, self.most_seconds = app, end, most_seconds
        self._places = asyncio.Semaphore(at_once)
        self._waiting: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_page(scope):
            await self.app(scope, receive, send)
            return
        principal, tell = scope.get("cellwork.principal"), scope.get(TELL, _nobody)
        async with self._place(principal.name if principal else "", tell):
            await self._make(scope, receive, send)

    @asynccontextmanager
    async def _place(self, name: str, tell: Tell) -> AsyncIterator[None]:
        """Hold a place; raises TooBusy where the queue is full, or does not move."""
        busy = errors.TooBusy("dashboards", "", "are being made for many others", "reload this page in a minute")
        if self._waiting.total() >= MOST_WAITING or self._waiting[name] >= MOST_OF_ONE:
            raise busy
        self._waiting[name] += 1
        if self._places.locked():
            tell(f"Waiting for a place: {self._waiting.total()} in the queue, pages are made a few at a time.", 0, 0)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise busy from None
        finally:
            self._waiting[name] -= 1
            self._waiting += Counter()  # names without anybody waiting are forgotten
        try:
            yield
        finally:
            self._places.release()

    async def _make(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen, tell = _Seen(), scope.get(TELL, _nobody)
        tell("Starting a kernel.", 0, 0)

        async def told(message: Message) -> None:
            seen.look(message, tell)
            await send(message)

        try:
            async with asyncio.timeout(self.most_seconds):
                await self.app(scope, receive, told)
        except TimeoutError:
            if not seen.begun:
                raise errors.Unavailable("page", "", UNENDED.format(self.most_seconds), "try later") from None  # fmt: skip
        finally:
            if seen.kernel and (not seen.ended or seen.needs_none):
                await self.end(seen.kernel)
        if not seen.ended:
            words = UNENDED.format(self.most_seconds)
            tail = f"{MARK.format(0, words)}<p role='status'>This page {words}; reload it later.</p>"
            await send({"type": "http.response.body", "body": tail.encode()})


class _Seen:
    """What of an answer is already sent."""

    def __init__(self) -> None:
        self.begun = self.ended = self.needs_none = False
        self.kernel, self._rest, self.cells = "", b"", 0

    def look(self, message: Message, tell: Tell) -> None:
        self.begun = True
        if message["type"] != "http.response.body":
            return
        text = self._rest + message.get("body", b"")
        if not self.kernel and (found := KERNEL.search(text)):
            self.kernel = found[1].decode()
            tell("Running the first cell.", 0, 0)
        for cell in CELL.finditer(text):
            self._tell(int(cell[1]), int(cell[2]), tell)
        self.needs_none |= NEEDS_NONE in text or FAILED.search(text) is not None
        self._rest, self.ended = text[-LONGEST_MARK:], not message.get("more_body", False)

    def _tell(self, done: int, of: int, tell: Tell) -> None:
        """Tell each cell once: the end of what was looked at is looked at again."""
        if done > self.cells:
            self.cells = done
            tell(f"Running cell {done + 1} of {of}." if done < of else "Drawing the page.", done, of)

"""A page in the making, told to who waits for it: the queue, the kernel, cell k of n; then the page, in the place of what told it.

A browser that opens a page gets it plainly if it is made within `PATIENCE`. Otherwise the answer begins: a small page that loads
nothing, to which a line is added for each thing that happens, and at the end the whole page as a text that replaces it. So there is one request,
no state that outlives it, and the page has the address it was asked at. Programs, frames and what is not a page are answered plainly.
Whoever leaves meanwhile leaves a page that is made to its end (`making`).
"""

from __future__ import annotations

import asyncio
import json
from html import escape

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellwork import errors
from cellwork_hub.dashboards import POLICY
from cellwork_hub.making import TELL, is_page

PATIENCE, BEAT_SECONDS = 0.5, 10.0
WAITING = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Dashboard</title><style>
body{background:#f6f7f9;color:#101828;font:15px/1.5 system-ui,sans-serif;margin:0;display:grid;place-items:center;min-height:90vh}
main{background:#fff;border:1px solid #e4e7ec;border-radius:12px;padding:22px 28px;width:min(520px,80vw)} progress{width:100%} small{color:#667085}
</style></head><body><main role="status" aria-live="polite" id="cellwork-making"><p id="words">The page is being made.</p><progress id="bar"></progress><small id="since"></small></main>
<script>(() => {
  const began = Date.now(), at = name => document.getElementById(name);
  const clock = setInterval(() => { at("since").textContent = `${Math.round((Date.now() - began) / 1000)} s`; }, 500);
  window.cellworkTell = (words, done, all) => { at("words").textContent = words; if (all) { at("bar").max = all; at("bar").value = done; } };
  window.cellworkWhole = page => addEventListener("load", () => setTimeout(() => {
    clearInterval(clock); delete window.cellworkTell; delete window.cellworkWhole;
    document.open(); document.write(page); document.close();
  }));
})();</script>
"""
Step = tuple[str, int, int]
"""Words, and of how many steps how many are done (0 of 0: not known)."""


class Telling:
    """Passes all to `app`; who opens a page in a browser is told how far it is."""

    def __init__(self, app: ASGIApp, patience: float = PATIENCE) -> None:
        self.app, self.patience = app, patience
        self._making: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not (is_page(scope) and _opens(scope)):
            await self.app(scope, receive, send)
            return
        told: asyncio.Queue[Step] = asyncio.Queue()
        answer = _Whole()

        def tell(words: str, done: int = 0, of: int = 0) -> None:
            told.put_nowait((words, done, of))

        async def make() -> None:
            await self.app({**scope, TELL: tell}, receive, answer)

        task = asyncio.create_task(make())
        self._making.add(task)
        task.add_done_callback(self._making.discard)
        task.add_done_callback(lambda _: answer.ended.set())
        try:
            async with asyncio.timeout(self.patience):
                await answer.ended.wait()
        except TimeoutError:
            await _begin(send)
            await _follow(told, answer, send)
            await _end(task, answer, send)
            return
        await answer.whole(task)
        await answer.hand(send)


class _Whole:
    """An answer that is held back; whoever makes it may have more to do after it has ended."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.ended, self.complete = asyncio.Event(), False

    async def whole(self, task: asyncio.Task[None]) -> None:
        """Return if the answer is whole, else raise what ended `task`."""
        if not self.complete:
            await task

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
            self.ended.set()

    async def hand(self, send: Send) -> None:
        for message in self.messages:
            await send(message)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.messages).decode(errors="replace")


def _opens(scope: Scope) -> bool:
    """Whether a person opens the page: a browser says where it will show it."""
    headers = dict(scope["headers"])
    return b"text/html" in headers.get(b"accept", b"") and headers.get(b"sec-fetch-dest") == b"document"


async def _begin(send: Send) -> None:
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store"), (b"content-security-policy", POLICY.encode())]  # fmt: skip
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await _add(send, WAITING)


async def _follow(told: asyncio.Queue[Step], answer: _Whole, send: Send) -> None:
    """Add what is told, until the end; in silence a blank, so that nothing between here and the browser gives up."""
    ended = asyncio.create_task(answer.ended.wait())
    while not (ended.done() and told.empty()):
        step = asyncio.create_task(told.get())
        await asyncio.wait({step, ended}, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if step.done():
            await _add(send, f"<script>cellworkTell({', '.join(map(_literal, step.result()))})</script>\n")
        else:
            step.cancel()
            await _add(send, "\n")


async def _end(task: asyncio.Task[None], answer: _Whole, send: Send) -> None:
    try:
        await answer.whole(task)
        page = answer.text
    except errors.CellworkError as error:
        page = (
            f"<!doctype html><title>Dashboard</title><p role='status'>{escape(str(error))} <a href=''>Try again</a></p>"
        )
    await _add(send, f"<script>cellworkWhole({_literal(page)})</script></body></html>")
    await send({"type": "http.response.body", "body": b""})


async def _add(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


def _literal(value: object) -> str:
    """Return `value` as JavaScript that may stand in HTML."""
    return json.dumps(value).replace("<", "\\u003c")

"""Who opens a page in a browser is told what it waits for, and then has the page; programs get the page alone."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from test_last_good import PAGE, Renderer, http, whole

from cellwork import errors
from cellwork.wire.records import Principal
from cellwork_hub import making
from cellwork_hub.last_good import LastGood
from cellwork_hub.making import Making
from cellwork_hub.telling import Telling

BROWSER = {"accept": "text/html,*/*", "sec-fetch-dest": "document"}


async def cells() -> str:
    await asyncio.sleep(0.2)
    return "".join(f"<script>voila_process({k}, 3)</script><p>cell {k} & its \\u003c/script></p>" for k in (1, 2, 3))


async def fails() -> str:
    mark = making.MARK.format(2, "KeyError").replace("></template>", ">KeyError: &#39;inner&#39;</template>")
    return f"<script>voila_process(1, 2)</script>{mark}"


def told(answer: httpx.Response) -> list[tuple[str, int, int]]:
    """Return what the waiting page was told, in order."""
    found = re.findall(r"<script>cellworkTell\((.*)\)</script>", answer.text)
    return [tuple(json.loads(f"[{words}]")) for words in found]


def page_of(answer: httpx.Response) -> str:
    """Return the page that replaces the waiting one, as the browser reads it: a script ends at the first of its end tags."""
    script = answer.text.partition("<script>cellworkWhole(")[2].partition("</script>")[0]
    return str(json.loads(script.removesuffix(")")))


def ask(app: ASGIApp, headers: dict[str, str], times: int = 1) -> list[httpx.Response]:
    async def look() -> list[httpx.Response]:
        async with http(app) as viewer:
            return list(await asyncio.gather(*(viewer.get(PAGE, headers=headers) for _ in range(times))))

    return asyncio.run(look())


def test_a_browser_is_told_each_cell_and_then_has_the_whole_page() -> None:
    renderer = Renderer(cells)
    [plain] = ask(LastGood(Making(renderer, renderer.end)), {})
    [answer] = ask(Telling(LastGood(Making(renderer, renderer.end)), patience=0), BROWSER)
    assert told(answer) == [
        ("Starting a kernel.", 0, 0), ("Running the first cell.", 0, 0), ("Running cell 2 of 3.", 1, 3),
        ("Running cell 3 of 3.", 2, 3), ("Drawing the page.", 3, 3),
    ]  # fmt: skip
    kernel = re.compile(r"[0-9a-f-]{36}")
    assert kernel.sub("", page_of(answer)) == kernel.sub("", plain.text)
    assert answer.text.count("<script>cellworkWhole(") == 1
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=\"?\w", answer.text.partition("cellworkWhole(")[0]), "it loads nothing"


def test_who_waits_for_a_place_is_told_so() -> None:
    renderer = Renderer(cells)
    answers = ask(Telling(Making(renderer, renderer.end, at_once=1), patience=0), BROWSER, times=3)
    first = [told(answer)[0][0] for answer in answers]
    assert sorted(first) == sorted(["Starting a kernel.", *(f"Waiting for a place: {n} in the queue, pages are made a few at a time." for n in (1, 2))])  # fmt: skip
    assert all("cell 3" in page_of(answer) for answer in answers)


@pytest.mark.parametrize("headers", [{}, {"accept": "text/html"}, {**BROWSER, "sec-fetch-dest": "iframe"}])
def test_a_program_and_a_frame_get_the_page_alone(headers: dict[str, str]) -> None:
    renderer = Renderer(cells)
    [answer] = ask(Telling(Making(renderer, renderer.end), patience=0), headers)
    assert "cellworkTell" not in answer.text
    assert "cell 3" in answer.text


def test_a_page_that_is_made_at_once_is_sent_plainly() -> None:
    renderer = Renderer(whole)
    [answer] = ask(Telling(Making(renderer, renderer.end), patience=60), BROWSER)
    assert "cellworkTell" not in answer.text


def test_an_error_after_the_wait_is_a_sentence_with_a_way_to_try_again() -> None:
    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)
        raise errors.TooBusy("dashboards", "<b>", "are being made for many others", "reload this page in a minute")

    [answer] = ask(Telling(busy, patience=0), BROWSER)
    assert "are being made for many others" in page_of(answer)
    assert "Try again" in page_of(answer)
    assert "<b>" not in page_of(answer)


def test_what_is_left_to_do_after_a_page_keeps_nobody_waiting() -> None:
    async def lingers(scope: Scope, receive: Receive, send: Send) -> None:
        await whole_page(send)
        await asyncio.sleep(600)

    for patience in (0.0, 60.0):
        [answer] = ask(Telling(lingers, patience=patience), BROWSER)
        assert "<p>42</p>" in answer.text or "<p>42</p>" in page_of(answer)


async def whole_page(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"<p>42</p>"})


def as_(principal: Principal, app: ASGIApp) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "cellwork.principal": principal}, receive, send)

    return called


@pytest.mark.parametrize(
    ("kind", "name", "sees"), [("user", "ada", True), ("user", "bert", False), ("service", "ada", False)]
)
def test_the_traceback_of_a_cell_that_fails_is_the_owners_alone(kind: str, name: str, sees: bool) -> None:
    renderer = Renderer(fails)
    app = LastGood(Making(renderer, renderer.end), owner="ada")
    [answer] = ask(as_(Principal(kind=kind, name=name), app), {})  # type: ignore[arg-type]
    assert "cell 2 failed (KeyError)" in answer.text
    assert ("KeyError: &#39;inner&#39;" in answer.text) is sees

"""Pages in the making: few at one time, none for ever; and a published one as it last was, where it can't be made now."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from cellwork import errors
from cellwork.wire.records import Principal
from cellwork_hub import making
from cellwork_hub.last_good import MOST_VIEWS, LastGood
from cellwork_hub.making import Making

PAGE = "/voila/render/report.ipynb"
HEAD, FOOT = '<html><body class="jp"><script>{{"kernelId": "{}"}}</script>', "</body></html>"


class Renderer:
    """Renders as Voila does: a new kernel for each page, cell by cell; what its cells do is `doing`'s."""

    def __init__(self, doing: Callable[[], Awaitable[str]]) -> None:
        self.doing = doing
        self.living: set[str] = set()
        self.most = self.made = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kernel = str(uuid.uuid4())
        self.living.add(kernel)
        self.most, self.made = max(self.most, len(self.living)), self.made + 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": HEAD.format(kernel).encode(), "more_body": True})
        for part in (await self.doing(), FOOT):
            await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def end(self, kernel: str) -> None:
        self.living.discard(kernel)


async def whole() -> str:
    return "<p>42</p>"


async def done() -> str:
    await asyncio.sleep(0.02)
    return "\\u003ci class='cellwork-needs-no-kernel'\\u003e"


async def fails() -> str:
    return f"<b>half</b>{making.MARK.format(3, 'KeyError')}"


async def hangs() -> str:
    await asyncio.sleep(600)
    return "never"


def http(app: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")  # type: ignore[arg-type]


def shown(renderer: Renderer, *deeds: Callable[[], Awaitable[str]], seconds: float = 60) -> list[httpx.Response]:
    """Return what a viewer gets while the notebook does one thing after the other."""

    async def look() -> list[httpx.Response]:
        answers = []
        async with http(LastGood(Making(renderer, renderer.end, most_seconds=seconds))) as viewer:
            for renderer.doing in deeds:
                answers.append(await viewer.get(PAGE))
        return answers

    return asyncio.run(look())


def test_a_page_whose_cell_fails_is_shown_as_it_last_was_with_what_failed_and_when_it_was_made() -> None:
    renderer = Renderer(whole)
    good, stale, again = shown(renderer, whole, fails, whole)
    assert (good.status_code, stale.status_code) == (200, 200)
    assert stale.text.startswith("<html><body class=\"jp\"><div role='status' id='cellwork-last-good'")
    assert "could not be made now: cell 3 failed (KeyError). Shown is how it was at 20" in stale.text
    assert "<p>42</p>" in stale.text
    assert "half" not in stale.text
    assert "cellwork-last-good" not in good.text + again.text
    assert len(renderer.living) == 2, "the kernel of the page that failed has ended, the others are their viewers'"


class Shelf:
    """A store in memory that outlives the app."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[bytes, datetime]] = {}
        self.brought = 0

    async def keep(self, asked: str, page: bytes) -> None:
        self.held[asked], self.brought = (page, datetime.now(UTC)), self.brought + 1

    async def find(self, asked: str) -> tuple[bytes, datetime] | None:
        return self.held.get(asked)


def test_a_server_that_has_begun_again_shows_what_the_one_before_it_made() -> None:
    shelf = Shelf()

    async def look(doing: Callable[[], Awaitable[str]], times: int = 1) -> list[httpx.Response]:
        renderer = Renderer(doing)
        async with http(LastGood(Making(renderer, renderer.end), shelf)) as viewer:
            return [await viewer.get(PAGE) for _ in range(times)]

    good = asyncio.run(look(whole, times=3))
    assert [answer.status_code for answer in good] == [200] * 3
    assert shelf.brought == 1, "a page that many look at is not brought each time"
    [stale] = asyncio.run(look(fails))
    assert stale.status_code == 200
    assert "cell 3 failed (KeyError). Shown is how it was at 20" in stale.text
    assert "<p>42</p>" in stale.text
    assert list(shelf.held) == [f"{PAGE}?"]


def test_without_an_earlier_view_a_failure_is_told_plainly() -> None:
    [answer] = shown(Renderer(fails), fails)
    assert answer.status_code == 503
    assert "cell 3 failed (KeyError). There is no earlier view" in answer.text
    assert "half" not in answer.text


def test_a_page_that_does_not_end_is_given_up_with_its_kernel_and_nobody_waits_for_the_next() -> None:
    renderer = Renderer(whole)
    good, stale, at_once = shown(renderer, whole, hangs, hangs, seconds=2)
    assert "it was not whole after 2 s. Shown is how it was" in stale.text
    assert "<p>42</p>" in at_once.text
    assert "cellwork-last-good" in at_once.text
    assert renderer.made == 2, "the third was not tried"
    assert len(renderer.living) == 1
    assert "cellwork-last-good" not in good.text


def test_what_is_kept_is_bounded_and_goes_by_what_was_asked() -> None:
    renderer = Renderer(whole)

    async def look() -> tuple[int, int]:
        app = LastGood(renderer)
        async with http(app) as viewer:
            for number in range(MOST_VIEWS + 5):
                await viewer.get(f"{PAGE}?view={number}")
            renderer.doing = fails
            first, last = await viewer.get(f"{PAGE}?view=0"), await viewer.get(f"{PAGE}?view={MOST_VIEWS + 4}")
        assert len(app._views) == MOST_VIEWS
        return first.status_code, last.status_code

    assert asyncio.run(look()) == (503, 200)


def test_a_server_that_is_away_shows_the_last_view_too() -> None:
    renderer = Renderer(whole)

    async def away() -> str:
        raise errors.Unavailable("dashboards", "", "are starting", "try again in some seconds")

    _, stale = shown(renderer, whole, away)
    assert stale.status_code == 200
    assert "dashboards are starting" in stale.text


def test_pages_are_made_a_few_at_a_time_and_their_kernels_end_before_the_next_begins() -> None:
    renderer = Renderer(done)

    async def look() -> list[httpx.Response]:
        async with http(Making(renderer, renderer.end, at_once=3)) as viewers:
            return await asyncio.gather(*(viewers.get(PAGE) for _ in range(12)))

    answers = asyncio.run(look())
    assert [answer.status_code for answer in answers] == [200] * 12
    assert (renderer.most, renderer.made, renderer.living) == (3, 12, set())


def test_one_viewer_who_asks_for_too_many_is_refused_and_leaves_room_for_others() -> None:
    renderer = Renderer(hangs)
    app = Making(renderer, renderer.end, most_seconds=2)

    async def ask(name: str) -> str:
        scope = {"type": "http", "method": "GET", "path": PAGE, "cellwork.principal": Principal(kind="user", name=name)}

        async def nothing(_: object = None) -> dict[str, object]:
            return {}

        try:
            await app(scope, nothing, nothing)
        except errors.TooBusy:
            return "refused"
        return "served"

    async def flood() -> tuple[list[str], str]:
        many = [asyncio.create_task(ask("mallory")) for _ in range(40)]
        await asyncio.sleep(0)
        renderer.doing = whole
        other = await ask("anna")
        return list(await asyncio.gather(*many)), other

    said, other = asyncio.run(flood())
    assert said.count("refused") == 40 - making.AT_ONCE - making.MOST_OF_ONE
    assert other == "served"


def test_a_page_that_does_not_end_says_so_where_it_is_sent_as_it_is_made() -> None:
    renderer = Renderer(hangs)

    async def look() -> httpx.Response:
        async with http(Making(renderer, renderer.end, most_seconds=2)) as viewer:
            return await viewer.get(PAGE)

    answer = asyncio.run(look())
    assert answer.text.endswith("This page was not whole after 2 s; reload it later.</p>")
    assert renderer.living == set()


@pytest.mark.parametrize("path", ["/voila/static/extension.js", "/"])
def test_whatever_is_no_page_takes_no_place_and_is_kept_nowhere(path: str) -> None:
    renderer = Renderer(whole)

    async def look() -> int:
        app = LastGood(Making(renderer, renderer.end, at_once=1))
        async with http(app) as viewer:
            await viewer.get(path)
        return len(app._views)

    assert asyncio.run(look()) == 0

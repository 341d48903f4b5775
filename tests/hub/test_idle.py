"""A page that nobody looks at ends with its server, and begins again when somebody does; how many servers with a name one may have."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import running
from running import Platform, wait_for
from starlette.types import Message, Receive, Scope, Send
from test_published import notebook
from traitlets.config import Config

from cellwork.settings import Settings
from cellwork.wire.dashboards import Published
from cellwork_hub import idle, preparation
from cellwork_hub.config.culling import set_culling
from cellwork_hub.config.hub import set_hub
from cellwork_hub.config.no_servers import NoServers, refuse_servers
from cellwork_hub.idle import Idle

SECONDS, LONG = 0.3, 3.0
NAME = f"seldom-{os.getpid()}"
Play = Callable[[Idle], Awaitable[None]]


def life(seconds: float, play: Play, held: float = 0.0, most: float = 60.0) -> float:
    """Return after how many seconds a server that lives through `play` ends, each request taking `held`; 0 if not within `most`."""
    began, ended = time.monotonic(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (asyncio.Event().wait() if scope["type"] == "lifespan" else asyncio.sleep(held))

    async def live() -> float:
        server = Idle(app, seconds, ended.set)
        living = asyncio.create_task(server({"type": "lifespan"}, nothing, nowhere))
        playing = asyncio.ensure_future(play(server))
        try:
            async with asyncio.timeout(most):
                await ended.wait()
            return time.monotonic() - began
        except TimeoutError:
            return 0.0
        finally:
            living.cancel()
            await playing

    return asyncio.run(live())


async def nothing() -> Message:
    return {}


async def nowhere(_: Message) -> None:
    return None


async def nobody(_: Idle) -> None:
    return None


async def one_socket(server: Idle) -> None:
    await server({"type": "websocket"}, nothing, nowhere)


async def looks(server: Idle) -> None:
    for _ in range(4):
        await asyncio.sleep(0.5)
        await server({"type": "http"}, nothing, nowhere)


def test_a_server_that_nobody_asks_ends_after_the_time_and_not_before() -> None:
    assert life(SECONDS, nobody) >= SECONDS


def test_each_request_counts_and_an_open_socket_for_as_long_as_it_is_open() -> None:
    assert life(LONG, looks) >= 4 * 0.5 + LONG
    assert life(LONG, one_socket, held=LONG + 1) >= 2 * LONG + 1


def test_without_seconds_it_never_ends() -> None:
    assert life(0, nobody, most=1.0) == 0.0


def test_servers_are_told_the_seconds_only_when_they_are_set(tmp_path: Path) -> None:
    for seconds, expected in ((0, {"A": "b"}), (600, {"A": "b", idle.VARIABLE: "600"})):
        c = Config()
        c.Spawner.args, c.Spawner.environment = [], {"A": "b"}
        set_culling(c, Settings(home=tmp_path, culling_idle_seconds=seconds), {})
        assert c.Spawner.environment == expected
    c = Config()
    refuse_servers(c)
    set_culling(c, Settings(home=tmp_path, culling_idle_seconds=600), {})
    assert NoServers(config=c).environment == {idle.VARIABLE: "600"}


def test_the_hub_is_told_how_many_servers_with_a_name_one_user_may_have(tmp_path: Path) -> None:
    c, settings = Config(), Settings(home=tmp_path, named_servers=7)
    settings.folder.ensure()
    preparation.make_secrets(settings.folder)
    set_hub(c, settings, {"public": 1, "hub": 2})
    assert c.JupyterHub.named_server_limit_per_user == 7
    assert Settings().named_servers >= 10, "every published dashboard is one"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform whose idle servers end soon, with one server of a name for each user."""
    home = tmp_path_factory.mktemp("hasty") / "home"
    chosen = {"CELLWORK_CULLING_IDLE_SECONDS": "8", "CELLWORK_NAMED_SERVERS": "1"}
    with running.started(home, **chosen) as said:
        yield Platform(home, running.address(said), chosen)


@pytest.fixture(scope="module")
def address(hasty: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page that `hasty` has published."""
    folder = tmp_path_factory.mktemp("papers")
    (folder / "cellwork.toml").write_text('[project]\nname = "papers"\n')
    (folder / "report.ipynb").write_text(notebook("print('figures of', 6 * 7)"))
    done = hasty.command("dashboard", "publish", str(folder / "report.ipynb"), "--name", NAME, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads(done.stdout)["address"])


def test_a_page_that_nobody_looks_at_ends_and_begins_again_when_somebody_does(hasty: Platform, address: str) -> None:
    [about] = hasty.client().dashboards.list("papers")

    def state() -> str:
        return hasty.client().dashboards.state(about)

    wait_for(lambda: state() == "stopped", 60, "the end of a page that nobody looks at")
    with hasty.browser() as browser:
        hasty.login(browser)
        waits = browser.get(address, headers={"accept": "text/html"})
        assert waits.status_code == 503
        assert "starting" in waits.text
        wait_for(lambda: state() == "ready", 60, "the page's second life")
        wait_for(lambda: "figures of 42" in look(browser, address), 60, "the page")
    refused(hasty, about)


def look(browser: httpx.Client, address: str) -> str:
    return browser.get(address, headers={"accept": "text/html"}, follow_redirects=True).text


def refused(hasty: Platform, about: Published) -> None:
    """Its one server with a name is the page's: it is started as often as one likes, and there is no second."""
    with hasty.hub() as hub:
        second = hub.post(f"/users/{about.owner}/servers/second")
        assert second.status_code == 400
        assert "already has the maximum of 1 named servers" in second.json()["message"]


@pytest.mark.usefixtures("address")
def test_a_page_that_ended_leaves_nothing_in_the_temporary_folder(hasty: Platform) -> None:
    [about] = hasty.client().dashboards.list("papers")
    wait_for(lambda: hasty.client().dashboards.state(about) == "stopped", 60, "the end of the page")
    assert list(Path(tempfile.gettempdir()).glob(f"cw-*/page/{NAME}.ipynb")) == []

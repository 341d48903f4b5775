"""A published dashboard whose server does not run: the hub starts it for whoever may open it, and shows meanwhile what it showed last.

The hub gets what no server takes (`proxy.PagesStay`). JupyterHub then shows a button to whoever may start servers, and nothing to others; for a
dashboard, whose server is a page and no Lab, looking is starting. Who may look is asked of the hub's scopes each time, so what was kept ends for
somebody with their access. A server is begun at most once in `REST_SECONDS`, whoever looks and however often. What it showed is
somebody's HTML on the hub's own path: it is sent without programs, in a sandbox (`still.POLICY`).

States of a page here: ended -> starting (begun by who looks) -> ready (the browser goes on to it) | failed -> starting, after the rest.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

import msgspec
from jupyterhub import handlers
from jupyterhub.handlers.base import BaseHandler, UserUrlHandler
from tornado.web import HTTPError, authenticated

from cellwork.home import Home
from cellwork.settings import Settings
from cellwork.wire.dashboards import SERVERS
from cellwork_hub import views
from cellwork_hub.still import POLICY, still

REST_SECONDS = 60.0
NAMED = rf"(?P<user_name>[^/]+)/(?P<server_name>{SERVERS}[^/]+)"
WAITS = "The server of this page is starting."


class OfPage(BaseHandler):  # type: ignore[misc]
    """Knows the server that an address names, if the caller may open it."""

    begun: ClassVar[dict[str, float]] = {}
    """When a server was last begun by somebody who looked."""

    def initialize(self, home: Home) -> None:
        self.home = home

    def spawner(self, user_name: str, server_name: str) -> Any | None:
        """Return the server; None if there is none, or it is not for the caller."""
        user = self.find_user(user_name)
        allowed = self.has_scope(f"access:servers!server={user_name}/{server_name}")
        if not allowed or user is None or server_name not in user.orm_user.orm_spawners:
            return None
        return user.spawners[server_name]

    def needed(self, user_name: str, server_name: str) -> Any:
        found = self.spawner(user_name, server_name)
        if found is None:
            raise HTTPError(404, "No access to resources or resources not found")
        return found

    def begin(self, spawner: Any) -> None:
        """Start the server, if it does not run and was not begun within the rest."""
        name, now = f"{spawner.user.name}/{spawner.name}", time.monotonic()
        if spawner.active or now - self.begun.get(name, float("-inf")) < REST_SECONDS:
            return
        self.begun[name] = now
        task = asyncio.ensure_future(self.spawn_single_user(spawner.user, spawner.name))
        task.add_done_callback(self._began)

    def _began(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self.log.warning("a dashboard's server did not start: %s", error)

    def state(self, spawner: Any) -> dict[str, str]:
        """Return where the start is, in words for who waits; what failed in it is for the owner."""
        if spawner.ready:
            return {"state": "ready", "words": "The server answers."}
        if spawner.active:
            steps = getattr(spawner, "steps", None)
            return {"state": "starting", "words": str(steps[-1][1]) if steps else WAITS}
        words = "The server of this page could not be started. It is tried again in a minute."
        failed = spawner._failed
        if failed and self.current_user.name == spawner.user.name:
            words += (
                f" You see this as its owner: {getattr(failed, 'jupyterhub_message', None) or type(failed).__name__}"
            )
        return {"state": "failed", "words": words}


class PageHandler(OfPage, UserUrlHandler):  # type: ignore[misc]
    """The address of a page, where no server takes it; programs are answered as by any server that does not run."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, server_name: str, rest: str | None = None) -> None:
        spawner = self.needed(user_name, server_name)
        browser = "text/html" in self.request.headers.get("Accept", "")
        if spawner.ready or not browser:
            await super().get(user_name, f"/{server_name}{rest or '/'}")
            return
        self.begin(spawner)
        asked = f"{rest}?{self.request.query}" if rest not in (None, "", "/") else ""
        shown = await asyncio.to_thread(_about, self.home, spawner, asked)
        page = await self.render_template(
            "dashboard_waiting.html", owner=user_name, server=server_name, state=self.state(spawner), asked=asked,
            page=f"/user/{spawner.user.escaped_name}/{server_name}{self.request.uri.partition(server_name)[2] or '/'}",
            shown=f"{shown.made:%Y-%m-%d %H:%M:%S} UTC" if shown else "",
        )  # fmt: skip
        self.set_status(503)
        self.set_header("Cache-Control", "no-store")
        self.finish(page)

    def non_get(self, user_name: str, server_name: str, rest: str | None = None) -> None:
        super().non_get(user_name, f"/{server_name}{rest or '/'}")

    post = patch = delete = non_get


class StateHandler(OfPage):
    """Where the start is, as JSON; asking keeps it going."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, server_name: str) -> None:
        spawner = self.needed(user_name, server_name)
        self.begin(spawner)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(msgspec.json.encode(self.state(spawner)))


class ViewHandler(OfPage):
    """What a page last showed, without programs."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, server_name: str) -> None:
        spawner = self.needed(user_name, server_name)
        found = await asyncio.to_thread(_view, self.home, spawner, self.get_argument("asked", ""))
        if found is None:
            raise HTTPError(404, "Nothing is kept of this page")
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Cache-Control", "no-store")
        self.finish(found)


def _about(home: Home, spawner: Any, asked: str) -> views.About | None:
    folder = home.views(spawner.user.name, spawner.name)
    return views.about(folder, asked) if asked else views.front(folder)


def _view(home: Home, spawner: Any, asked: str) -> bytes | None:
    about = _about(home, spawner, asked)
    found = views.find(home.views(spawner.user.name, spawner.name), about.asked) if about else None
    return still(found.page) if found else None


def set_pages(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    """Put our handlers before JupyterHub's: of two that fit the first answers, and `extra_handlers` come last."""
    given = {"home": settings.folder}
    handlers.default_handlers[:0] = [
        (rf"/user/{NAMED}(?P<rest>/.*)?", PageHandler, given),
        (rf"/dashboards/{NAMED}/state", StateHandler, given),
        (rf"/dashboards/{NAMED}/view", ViewHandler, given),
    ]

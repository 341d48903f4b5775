"""Published dashboards: their records over HTTP, and the servers they run in, which are the hub's."""

from __future__ import annotations

import builtins
import time
from datetime import datetime
from typing import Any

import msgspec

from cellwork import clock, errors
from cellwork.client.base import Connection, problem
from cellwork.wire.dashboards import Published, PublishedContent, PublishRequest

START_SECONDS = 180.0
STOP_SECONDS = 60.0


class Dashboards:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def publish(self, project: str, name: str, request: PublishRequest) -> Published:
        return self._to.call("cellwork", "PUT", f"/api/v1/dashboards/{project}/{name}", Published, request)

    def list(self, project: str = "") -> builtins.list[Published]:
        return self._to.call("cellwork", "GET", "/api/v1/dashboards", builtins.list[Published], project=project)

    def content(self, project: str, name: str) -> PublishedContent:
        """Return what runs; only its owner may read it."""
        return self._to.call("cellwork", "GET", f"/api/v1/dashboards/{project}/{name}", PublishedContent)

    def keep_view(self, about: Published, asked: str, page: bytes) -> None:
        """Keep what the page shows to whoever asks for `asked`; raises Conflict if another edition is published by now."""
        edition = about.at.isoformat()
        self._to.raw("cellwork", "PUT", f"{self._path(about)}/view", page, "text/html", asked=asked, edition=edition)

    def view(self, about: Published, asked: str) -> tuple[bytes, datetime]:
        """Return what was kept, and when it was whole; raises NotFound if there is nothing."""
        answer = self._to.raw("cellwork", "GET", f"{self._path(about)}/view", asked=asked)
        return answer.content, clock.utc(answer.headers["x-cellwork-made"])

    @staticmethod
    def _path(about: Published) -> str:
        return f"/api/v1/dashboards/{about.project}/{about.name}"

    def remove(self, project: str, name: str) -> None:
        self._to.raw("cellwork", "DELETE", f"/api/v1/dashboards/{project}/{name}")

    def start(self, about: Published) -> str:
        """Start the server of a dashboard, anew if it runs, and wait until it answers; return its address.

        Raises
        ------
        Unavailable
            It did not answer in time, or there are no servers here.
        """
        self.stop(about)
        where = f"/users/{about.owner}/servers/{about.server}"
        self._hub("POST", where, {"group": about.group, "profile": about.profile})
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            server = self._server(about)
            if server and server.get("ready"):
                return self._to.url + about.path
            if not server:
                break
            time.sleep(0.5)
        raise errors.Unavailable(
            "dashboard", about.server, "did not start", f"look at: {self._to.url}/hub/spawn-pending/{about.owner}/{about.server}"
        )  # fmt: skip

    def state(self, about: Published) -> str:
        """Return whether its server runs: ``ready``, ``starting``, ``stopped``, or nothing if the caller may not know."""
        try:
            server = self._server(about)
        except (errors.Refused, errors.NotFound):
            return ""
        return "stopped" if not server else "ready" if server.get("ready") else "starting"

    def stop(self, about: Published, *, remove: bool = False) -> None:
        """Stop its server, and with `remove` forget it and with whom it was shared; twice is once."""
        if self._server(about, stopped=True) is None:
            return
        self._hub("DELETE", f"/users/{about.owner}/servers/{about.server}", {"remove": remove})
        end = time.monotonic() + STOP_SECONDS
        while self._server(about, stopped=remove) is not None and time.monotonic() < end:
            time.sleep(0.3)

    def _server(self, about: Published, *, stopped: bool = False) -> dict[str, Any] | None:
        found = self._hub("GET", f"/users/{about.owner}{'?include_stopped_servers' if stopped else ''}")
        return dict(found.get("servers") or {}).get(about.server)

    def _hub(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        content = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"}
        answer = self._to.http.request(method, f"/hub/api{path}", content=content, headers=headers)
        if not answer.is_success:
            raise problem(answer, "hub")
        return dict(msgspec.json.decode(answer.content)) if answer.content else {}

"""Runs in Lab: the news of how they ended, passed on from the jobs service with this server's own token, and their pages opened.

A page of Lab holds one stream; when it goes, or the service does, the stream ends, and the page asks again from where it was. A
server without a platform answers that there is no news to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, authenticated

from cellwork import errors
from cellwork.client import connect
from cellwork.client.base import address
from cellwork.runs import opened
from cellwork.wire import PREFIX

SILENT_SECONDS = 60.0
NO_NEWS = 204
"""By this answer a browser knows not to ask again."""


class News(APIHandler):  # type: ignore[misc]
    auth_resource = "server"
    _track_activity = False
    _carrying: asyncio.Task[None] | None = None

    @authenticated  # type: ignore[untyped-decorator]
    @authorized  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        """Answer with server-sent events until the page is gone or the service ends the stream."""
        after = self.request.headers.get("Last-Event-ID", "") or self.get_argument("after", "")
        try:
            url, token = address()
        except errors.CellworkError:
            self.set_status(NO_NEWS)
            return
        self._carrying = asyncio.ensure_future(self._carry(url, token, after))
        await asyncio.wait({self._carrying})
        if not self._carrying.cancelled():
            self._carrying.result()

    async def _carry(self, url: str, token: str, after: str) -> None:
        import httpx

        waits = httpx.Timeout(10, read=SILENT_SECONDS)
        asked = {"after": after} if after else {}
        path = f"{url}{PREFIX['jobs']}/api/v1/news"
        with contextlib.suppress(httpx.TransportError, StreamClosedError):
            async with (
                httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=waits, trust_env=False) as http,
                http.stream("GET", path, params=asked) as answer,
            ):
                if not answer.is_success:
                    raise HTTPError(502, f"the jobs service answered {answer.status_code}")
                self.set_header("Content-Type", "text/event-stream")
                self.set_header("Cache-Control", "no-cache")
                async for part in answer.aiter_bytes():
                    self.write(part)
                    await self.flush()

    def on_connection_close(self) -> None:
        if self._carrying:
            self._carrying.cancel()
        super().on_connection_close()

    def finish(self, *args: object, **kwargs: object) -> object:
        return super().finish(*args, set_content_type="text/event-stream", **kwargs)


class Open(APIHandler):  # type: ignore[misc]
    auth_resource = "contents"

    @authenticated  # type: ignore[untyped-decorator]
    @authorized  # type: ignore[untyped-decorator]
    async def post(self, run: str) -> None:
        """Put the run's page into the folder `runs` of this server; answer with its path and the cell to look at."""
        root = Path(self.serverapp.root_dir)
        try:
            made = await asyncio.to_thread(_open, run, root / "runs")
        except errors.CellworkError as error:
            raise HTTPError(409, str(error), reason=str(error).splitlines()[0][:200]) from None
        path = Path(made.notebook).relative_to(root).as_posix()
        self.finish(json.dumps({"path": path, "cell": made.cell}))


def _open(run: str, folder: Path) -> opened.Opened:
    client = connect()
    return opened.open_any(client, client.jobs.run(run), folder)

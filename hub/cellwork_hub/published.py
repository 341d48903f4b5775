"""A user's dashboard, in a server of that user's own: the notebook runs as its owner, whoever looks; who may look, the hub says.

The hub starts this program for a server whose name begins with ``page-``, and nothing else for such a one (`config.sharing`): what a group may open is a page, never a Lab. The notebook comes from the platform, which gives it to its owner only. Before Voila stands the
gate of our own dashboards, with the hub's login of this server: a viewer's token is checked and goes no further. A page that fails
or does not end is shown as it last was (`last_good`), also after this server has ended and begun again (`kept`). It ends when nobody
has looked for as long as an idle server may stay (`idle`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from cellwork.client import connect
from cellwork.errors import NotFound, Refused, Unavailable
from cellwork.wire.dashboards import PublishedContent
from cellwork.wire.records import Principal
from cellwork_hub.auth import NOBODY, HubTokens
from cellwork_hub.dashboards import Proxy, check_open
from cellwork_hub.edge import serve
from cellwork_hub.gate import Asked, Gate
from cellwork_hub.idle import VARIABLE, Idle
from cellwork_hub.kept import Kept
from cellwork_hub.last_good import LastGood, Store
from cellwork_hub.login import Login
from cellwork_hub.making import MOST_SECONDS, Making
from cellwork_hub.telling import Telling

START_SECONDS = 120
ACCESS_SECONDS = 10
"""So long the hub's word on who may look is kept."""


async def judge(principal: Principal, asked: Asked) -> None:
    """Whoever the hub lets open this server may look; nothing but pages is opened."""
    check_open(asked)


class ServerLogin(Login):
    """The hub's login of this user server: who may open it holds ``access:servers`` on it."""

    def __init__(self, environ: dict[str, str]) -> None:
        prefix, token = environ["JUPYTERHUB_SERVICE_PREFIX"].rstrip("/"), environ["JUPYTERHUB_API_TOKEN"]
        super().__init__(
            "published", environ["JUPYTERHUB_API_URL"], token, prefix=prefix, client_id=environ["JUPYTERHUB_CLIENT_ID"]
        )
        server = f"{environ['JUPYTERHUB_USER']}/{environ['JUPYTERHUB_SERVER_NAME']}"
        needs = (
            f"access:servers!server={server}",
            f"access:servers!user={environ['JUPYTERHUB_USER']}",
            "access:servers",
        )
        self.tokens = HubTokens(environ["JUPYTERHUB_API_URL"], token, cache_seconds=ACCESS_SECONDS, needs=needs)
        self.owner, self.server = environ["JUPYTERHUB_USER"], environ["JUPYTERHUB_SERVER_NAME"]

    async def __call__(self, scope: Scope) -> Principal:
        """Return who calls, nobody where that is not known; a browser without access is sent to the hub, which says why.

        Raises
        ------
        Refused
            It is somebody for whom the owner has not published it.
        """
        principal = await super().__call__(scope)
        if principal.kind == "nobody" and principal is not NOBODY and not self.wants_page(scope):
            raise Refused(
                "dashboard", self.server, f"is not shared with {principal.name}",
                f"ask {self.owner} to publish it for a group that you are in: cellwork dashboard publish NOTEBOOK --group GROUP",
            )  # fmt: skip
        return principal


class Front:
    """Sends whoever asks for the server itself to its one page; the rest is `app`'s."""

    def __init__(self, app: ASGIApp, prefix: str, page: str) -> None:
        self.app, self.where = app, f"{prefix}/voila/render/{page}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/":
            headers = [(b"location", self.where.encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 302, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send)


def fetch(environ: dict[str, str]) -> PublishedContent:
    """Return the notebook that its owner published for this server; raises NotFound if there is none."""
    client, server, user = connect(), environ["JUPYTERHUB_SERVER_NAME"], environ["JUPYTERHUB_USER"]
    for about in client.dashboards.list():
        if (about.server, about.owner) == (server, user):
            return client.dashboards.content(about.project, about.name)
    raise NotFound(
        "dashboard of server", server, f"is not published by {user}", "publish it: cellwork dashboard publish"
    )


def lay(found: PublishedContent, folder: Path) -> Path:
    """Write the notebook and what belongs beside it into `folder`; return the page."""
    for path, content in found.files.items():
        target = (folder / path).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise Refused("file beside the notebook", path, "does not lie beside it", "publish it again")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    page = folder / f"{found.about.name}.ipynb"
    page.write_text(found.content)
    return page


def build(environ: dict[str, str], socket: Path, page: str, store: Store) -> ASGIApp:
    login = ServerLogin(environ)
    proxy = Proxy(socket, login.prefix)
    app = Telling(LastGood(Making(proxy, proxy.end), store, login.owner))
    seen = Idle(Front(app, login.prefix, page), float(environ.get(VARIABLE, 0)), _end)
    return Gate(seen, login, judge, ready=proxy.ready)


def voila(folder: str, socket: str) -> None:
    """Run Voila on the notebooks in `folder`, as this account, with this environment: the owner's."""
    from cellwork_hub.inference.workers import end_with_parent
    from cellwork_hub.voila import OwnVoila, configuration

    end_with_parent()
    OwnVoila.socket = Path(socket)
    options: Any = configuration(0, f"{os.environ['JUPYTERHUB_SERVICE_PREFIX']}")
    options.MultiKernelManager.kernel_manager_class = "cellwork_hub.page_kernels.PageKernel"
    options.VoilaConfiguration.http_header_envs = []
    options.VoilaConfiguration.resources = {"cellwork_tracebacks": True}  # `last_good` hands them to the owner only
    options.VoilaExecutor.timeout = int(MOST_SECONDS) + 10  # a page ends before
    OwnVoila.launch_instance([folder], config=options)


def main() -> None:
    environ = dict(os.environ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # not at once: what lies in the folder is removed
    with tempfile.TemporaryDirectory(prefix="cw-") as private:
        folder, socket = Path(private) / "page", Path(private) / "voila"
        folder.mkdir()
        found = fetch(environ)
        page = lay(found, folder)
        words = [sys.executable, "-P", "-m", "cellwork_hub.published", str(folder), str(socket)]
        child = subprocess.Popen(words, stdin=subprocess.PIPE)
        try:
            _started(child, socket, environ["JUPYTERHUB_SERVICE_PREFIX"])
            threading.Thread(target=_end_with, args=(child,), daemon=True).start()
            where = urlsplit(environ["JUPYTERHUB_SERVICE_URL"])
            serve(
                build(environ, socket, page.name, Kept(connect(), found.about)),
                where.hostname or "127.0.0.1",
                where.port or 8888,
            )
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already, see `_end_with`
            child.terminate()
            child.wait(20)


def _started(child: subprocess.Popen[bytes], socket: Path, prefix: str) -> None:
    """Return when Voila answers: the hub takes a server that listens for one that is ready."""
    end = time.monotonic() + START_SECONDS
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=5) as http:
        while child.poll() is None and time.monotonic() < end:
            try:
                if http.get(f"http://voila{prefix}voila/static/extension.js").status_code < 500:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
    raise Unavailable("dashboard", "", "did not start", "look at what the server wrote last")


def _end_with(child: subprocess.Popen[bytes]) -> None:
    """End this server when Voila has: the hub says so, and starts it again when somebody asks."""
    child.wait()
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    voila(*sys.argv[1:3]) if len(sys.argv) > 2 else main()

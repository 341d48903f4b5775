"""Voila itself, on a unix socket that only this account can open: it has no login of its own, the gate in `dashboards` is its only caller.

A notebook that calls `voila.utils.wait_for_request()` after its imports is kept warm up to there, and computes what it shows
when somebody opens it. Kernels are forked from a process that has imported what our dashboards import, so they share that
memory and start in a tenth of a second; where a fork can't compute they are started fresh. The kernel of a page that was closed ends
with it, or, where the browser could not say so, after `IDLE_SECONDS` without a connection.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, ClassVar

from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import Application
from traitlets.config import Config
from voila.app import Voila
from voila.request_info_handler import RequestInfoSocketHandler

from cellwork import assets
from cellwork.runs.kernel import forking
from cellwork.runs.zygote import Zygote
from cellwork.wire import PREFIX
from cellwork_hub import processes
from cellwork_hub.context import Context
from cellwork_hub.gate import VIEWER_HEADER

IDLE_SECONDS, LOOK_SECONDS = 30, 10
IMPORTED = (
    "ipywidgets",
    "voila.utils",
    "cellwork.client",
    "cellwork.lineage",
    "cellwork.models.card",
    "cellwork.models.versions",
    "cellwork.ui.charts",
    "cellwork.ui.dashboard",
    "msgspec",
    "httpx",
)
KERNEL_ID = r"(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)"


class OwnVoila(Voila):  # type: ignore[misc]
    """Listens on `socket`; a second, nearly empty application tells waiting kernels that their page was opened."""

    socket: Path

    def listen(self) -> None:
        HTTPServer(self.app).add_socket(bind_unix_socket(str(self.socket), mode=0o600))
        self.ioloop = IOLoop.current()
        try:
            self.ioloop.start()
        finally:
            self.stop()
            self.socket.unlink(missing_ok=True)

    def init_settings(self) -> dict[str, Any]:
        """Open the kernels' port first: the first kernels start in here."""
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        HTTPServer(
            Application([(rf"{re.escape(self.server_url)}voila/query/{KERNEL_ID}", RequestInfoSocketHandler)])
        ).add_sockets(sockets)
        settings: dict[str, Any] = super().init_settings()
        return settings


class ForkedManager(ServerKernelManager):  # type: ignore[misc]
    """Starts its kernel as a fork of `zygote`, if there is one."""

    zygote: ClassVar[Zygote | None] = None

    async def _async_pre_start_kernel(self, **options: Any) -> Any:
        manager: Any = self
        if manager.provisioner is None and self.zygote and self.zygote.alive():
            manager.kernel_id = manager.kernel_id or options.pop("kernel_id", uuid.uuid4().hex)
            known = {"kernel_id": manager.kernel_id, "kernel_spec": manager.kernel_spec}
            manager.provisioner = forking(self.zygote)(**known, parent=manager)
        return await super()._async_pre_start_kernel(**options)


def configuration(kernels: int, base: str = f"{PREFIX['dashboards']}/") -> Config:
    """Return strict options: nobody chooses templates, no file is served but pictures, idle kernels end."""
    c = Config()
    c.Voila.base_url = c.Voila.server_url = base
    c.Voila.open_browser = False
    c.Voila.tornado_settings = {
        "disable_check_xsrf": True,  # the gate checks the origin and strips cookies
        "mathjax_url": f"{base}voila/static/mathjax.js",  # not shipped; the default is a public CDN
    }
    c.VoilaConfiguration.template = "cellwork"  # hub/voila_template
    c.VoilaConfiguration.allow_template_override = "NO"
    c.VoilaConfiguration.allow_theme_override = "NO"
    c.VoilaConfiguration.classic_tree = True
    c.VoilaConfiguration.file_allowlist = [r"[\w-]+\.(png|jpg|svg)"]
    c.VoilaConfiguration.extension_allowlist = [
        "@jupyter-widgets/jupyterlab-manager",
        "@voila-dashboards/widgets-manager8",
    ]
    c.VoilaConfiguration.http_header_envs = [VIEWER_HEADER]  # a page acts as whoever opened it, never as the platform
    c.VoilaConfiguration.show_tracebacks = True  # to our template, which tells their kind and no more
    c.VoilaConfiguration.preheat_kernel = kernels > 0
    c.VoilaConfiguration.default_pool_size = kernels
    c.MappingKernelManager.cull_idle_timeout = IDLE_SECONDS
    c.MappingKernelManager.cull_interval = LOOK_SECONDS
    c.MultiKernelManager.kernel_manager_class = f"{__name__}.{ForkedManager.__name__}"
    return c


def lay(source: Path, target: Path) -> None:
    """Copy the dashboards in `source` to `target`, without the text between their cells: that is for who works on them."""
    target.mkdir()
    for path in sorted(source.glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] != "markdown"]
        (target / path.name).write_text(json.dumps(notebook))


def main(folder: str = "") -> None:
    context = Context.load()
    OwnVoila.socket = context.voila_socket()
    OwnVoila.socket.unlink(missing_ok=True)
    for name in [
        name for name in os.environ if name.startswith("CELLWORK_") and name not in (processes.MARKER, processes.UNIT)
    ]:
        del os.environ[name]
    os.environ["CELLWORK_URL"] = context.public_url
    dashboards = Path(folder) if folder else assets.folder("nbs") / "dashboards"
    with tempfile.TemporaryDirectory(prefix="cw-") as private:
        pages = Path(private) / "pages"
        lay(dashboards, pages)
        ForkedManager.zygote = Zygote.start(Path(private), IMPORTED, os.environ)
        try:
            OwnVoila.launch_instance([str(pages)], config=configuration(context.settings.dashboard_kernels))
        finally:
            if ForkedManager.zygote:
                ForkedManager.zygote.stop()


if __name__ == "__main__":
    main(*sys.argv[1:2])

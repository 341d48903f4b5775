"""Voila itself, on a unix socket that only this account can open: it has no login of its own, the gate in `dashboards` is its only caller.

A notebook that calls `voila.utils.wait_for_request()` after its imports is kept warm up to there, and computes what it shows
when somebody opens it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import Application
from traitlets.config import Config
from voila.app import Voila
from voila.request_info_handler import RequestInfoSocketHandler

from cellwork import assets
from cellwork.wire import PREFIX
from cellwork_hub import processes
from cellwork_hub.context import Context
from cellwork_hub.gate import VIEWER_HEADER

IDLE_SECONDS = 300
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


def configuration(kernels: int) -> Config:
    """Return strict options: nobody chooses templates, no file is served but pictures, idle kernels end."""
    c = Config()
    c.Voila.base_url = c.Voila.server_url = f"{PREFIX['dashboards']}/"
    c.Voila.open_browser = False
    c.Voila.tornado_settings = {
        "disable_check_xsrf": True,  # the gate checks the origin and strips cookies
        "mathjax_url": f"{PREFIX['dashboards']}/voila/static/mathjax.js",  # not shipped; the default is a public CDN
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
    c.VoilaConfiguration.preheat_kernel = kernels > 0
    c.VoilaConfiguration.default_pool_size = kernels
    c.MappingKernelManager.cull_idle_timeout = IDLE_SECONDS
    c.MappingKernelManager.cull_interval = 30
    return c


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
    OwnVoila.launch_instance([str(dashboards)], config=configuration(context.settings.dashboard_kernels))


if __name__ == "__main__":
    main(*sys.argv[1:2])

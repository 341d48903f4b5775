"""What runs in a user's Jupyter server: it keeps what cells print while no page is open, says why a kernel died and how runs ended;
plugins of other extensions hand their work to the platform's services.

The server is the user's own, so nothing here is a boundary; it is loaded by Jupyter Server in containers and on one machine alike.
"""

from __future__ import annotations

from typing import Any


def _load_jupyter_server_extension(app: Any) -> None:
    """Called by Jupyter Server when it starts."""
    from jupyter_server.utils import url_path_join

    from cellwork_jupyter.server import allowed
    from cellwork_jupyter.server.connection import KeepingConnection
    from cellwork_jupyter.server.routes import Outputs
    from cellwork_jupyter.server.runs import News, Open

    app.web_app.settings["kernel_websocket_connection_class"] = KeepingConnection
    if auth := getattr(app.identity_provider, "hub_auth", None):
        allowed.be_patient(auth)
    base = app.web_app.settings["base_url"]
    handlers = [
        (r"/cellwork/outputs/([\w-]+)", Outputs),
        (r"/cellwork/news", News),
        (r"/cellwork/runs/(run_\w+)/open", Open),
    ]
    app.web_app.add_handlers(".*$", [(url_path_join(base, path), handler) for path, handler in handlers])

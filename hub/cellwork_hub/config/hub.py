"""The hub itself: addresses, database, cookies. It may be killed: user servers and routes stay, and it finds them again."""

from __future__ import annotations

from typing import Any

from cellwork import files
from cellwork.settings import Settings


def set_hub(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    home = settings.folder
    c.JupyterHub.bind_url = f"http://{settings.host}:{ports['public']}"
    c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{ports['hub']}"
    c.JupyterHub.db_url = f"sqlite:///{home.database('hub')}"
    c.JupyterHub.upgrade_db = True
    c.JupyterHub.cookie_secret = bytes.fromhex(files.read_secret(home.secret("hub-cookie")))
    c.JupyterHub.cleanup_servers = False
    c.JupyterHub.cleanup_proxy = False
    c.JupyterHub.last_activity_interval = 10  # also how soon lost routes are written again
    c.JupyterHub.allow_named_servers = True  # published dashboards are; see `sharing`
    c.JupyterHub.named_server_limit_per_user = settings.named_servers

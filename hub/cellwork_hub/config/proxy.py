"""The public door: traefik, run by the supervisor, so that a dying hub does not take it along. The hub writes its routes."""

from __future__ import annotations

from typing import Any

from cellwork import files
from cellwork.settings import Settings


def set_proxy(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    c.JupyterHub.proxy_class = "traefik_file"
    c.Proxy.should_start = False
    c.TraefikProxy.traefik_api_url = f"http://127.0.0.1:{ports['proxy-api']}"
    c.TraefikProxy.traefik_api_username = "jupyterhub"
    c.TraefikProxy.traefik_api_password = files.read_secret(settings.folder.secret("proxy-token"))
    c.TraefikFileProviderProxy.dynamic_config_file = str(settings.folder.proxy() / "rules.toml")

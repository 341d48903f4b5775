"""The public door: traefik, run by the supervisor, so that a dying hub does not take it along. The hub writes its routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jupyterhub_traefik_proxy.fileprovider import TraefikFileProviderProxy

from cellwork import files
from cellwork.settings import Settings
from cellwork_hub.containers import way
from cellwork_hub.preparation import own_door

INSIDE = "containers"
"""The entry point in the containers' network."""


class BothDoors(TraefikFileProviderProxy):  # type: ignore[misc]
    """Every route holds at the public door and at the one in the containers' network.

    Each has a router of its own: one router with two entry points of different options is renamed by traefik, and the hub
    then waits for the name it knows.
    """

    def _dynamic_config_for_route(
        self, routespec: str, target: str, data: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        traefik, ours = super()._dynamic_config_for_route(routespec, target, data)
        routers = traefik["http"]["routers"]
        routers |= {f"{name}_{INSIDE}": {**router, "entryPoints": [INSIDE]} for name, router in routers.items()}
        return traefik, ours

    async def _delete_dynamic_config(self, traefik_keys: Iterable[list[str]], jupyterhub_keys: Any) -> None:
        keys = list(traefik_keys)
        twins = [[*path[:-1], f"{path[-1]}_{INSIDE}"] for path in keys if path[:2] == ["http", "routers"]]
        await super()._delete_dynamic_config([*keys, *twins], jupyterhub_keys)


def set_proxy(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    inside = own_door(settings, way.known(settings.folder).door)
    c.JupyterHub.proxy_class = BothDoors if inside else TraefikFileProviderProxy
    c.Proxy.should_start = False
    c.TraefikProxy.traefik_entrypoint = "http"
    c.TraefikProxy.traefik_api_url = f"http://127.0.0.1:{ports['proxy-api']}"
    c.TraefikProxy.traefik_api_username = "jupyterhub"
    c.TraefikProxy.traefik_api_password = files.read_secret(settings.folder.secret("proxy-token"))
    c.TraefikFileProviderProxy.dynamic_config_file = str(settings.folder.proxy() / "rules.toml")

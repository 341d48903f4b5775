"""The public door: traefik, run by the supervisor, so that a dying hub does not take it along. The hub writes its routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jupyterhub import orm
from jupyterhub.utils import url_path_join
from jupyterhub_traefik_proxy.fileprovider import TraefikFileProviderProxy

from cellwork import files
from cellwork.settings import Settings
from cellwork.wire.dashboards import SERVERS
from cellwork_hub.containers import way
from cellwork_hub.preparation import own_door

INSIDE = "containers"
"""The entry point in the containers' network."""


class PagesStay(TraefikFileProviderProxy):  # type: ignore[misc]
    """A dashboard's address leads to the hub while its server does not run (`pages`).

    Without a route of its own its owner's Lab, below whose address it lies, would take it and know nothing of it.
    """

    async def delete_user(self, user: Any, server_name: str = "") -> None:
        if server_name.startswith(SERVERS):
            await self._lead_here(url_path_join(user.proxy_spec, server_name, "/"))
        else:
            await super().delete_user(user, server_name)

    async def check_routes(self, user_dict: Any, service_dict: Any, routes: Any = None) -> None:
        """Keep the routes of all servers, and those of pages that wait; a page that was taken down has none."""
        routes = routes or await self.get_all_routes()
        waiting = self._waiting(user_dict)
        others = {spec: route for spec, route in routes.items() if spec not in waiting}
        await super().check_routes(user_dict, service_dict, others)
        for spec in waiting:
            if routes.get(spec, {}).get("target") != self.hub.host:
                await self._lead_here(spec)

    async def _lead_here(self, spec: str) -> None:
        await self.add_route(spec, self.hub.host, {"page": True})

    def _waiting(self, user_dict: Any) -> set[str]:
        """Return the addresses of the dashboards whose servers neither run nor start nor end."""
        rows = self.app.db.query(orm.Spawner).filter(orm.Spawner.name.startswith(SERVERS), orm.Spawner.server == None)  # noqa: E711
        return {url_path_join(user_dict[row.user].proxy_spec, row.name, "/") for row in rows}


class BothDoors(PagesStay):
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
    c.JupyterHub.proxy_class = BothDoors if inside else PagesStay
    c.Proxy.should_start = False
    c.TraefikProxy.traefik_entrypoint = "http"
    c.TraefikProxy.traefik_api_url = f"http://127.0.0.1:{ports['proxy-api']}"
    c.TraefikProxy.traefik_api_username = "jupyterhub"
    c.TraefikProxy.traefik_api_password = files.read_secret(settings.folder.secret("proxy-token"))
    c.TraefikFileProviderProxy.dynamic_config_file = str(settings.folder.proxy() / "rules.toml")

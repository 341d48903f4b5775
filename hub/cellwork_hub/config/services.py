"""The services behind the hub's login. The supervisor runs them; the hub routes to them and knows their tokens."""

from __future__ import annotations

from typing import Any

from cellwork import files, scopes
from cellwork.settings import Settings
from cellwork.wire import PREFIX
from cellwork_hub.config.roles import to_hub
from cellwork_hub.context import SERVICES


def set_services(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    def token(name: str) -> str:
        return files.read_secret(settings.folder.secret(f"{name}-token"))

    behind_login = [
        {
            "name": name,
            "url": f"http://127.0.0.1:{ports[name]}",
            "api_token": token(name),
            "oauth_client_id": f"service-{name}",
            "oauth_redirect_uri": f"{PREFIX[name]}/oauth_callback",
            "oauth_no_confirm": True,
            "oauth_client_allowed_scopes": [f"access:services!service={name}", *to_hub(scopes.READ)],
            "display": name in ("mlflow", "dashboards"),
        }
        for name in SERVICES
    ]
    c.JupyterHub.services = [
        *behind_login,
        *({"name": name, "api_token": token(name)} for name in ("runner", "cli", "login")),
    ]

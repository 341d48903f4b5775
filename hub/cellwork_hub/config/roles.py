"""Who may do what. In `personal` trust the one user is a deployer, in `team` trust a role is a group of the hub. A browser's token only reads; a notebook's token carries its owner's scopes; each service has its own few."""

from __future__ import annotations

from typing import Any

from cellwork import scopes
from cellwork.settings import Settings
from cellwork_hub.context import SERVICES

SERVICE_SCOPES: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    # service -> (our scopes, the hub's)
    "cellwork": (scopes.ALL - {"runs:execute", "users:check", "secrets:mask"}, ()),
    "jobs": (scopes.READ | {"events:write", "secrets:mask"}, ("tokens", "read:users:name")),
    "inference": (scopes.READ | {"events:write", "data:write"}, ()),
    "mlflow": (frozenset({"data:read", "jobs:read"}), ()),
    "dashboards": (scopes.READ, ()),
    "runner": (frozenset({"runs:execute", "jobs:read"}), ()),
    "login": (frozenset({"users:check"}), ()),
    "cli": (
        scopes.ROLES["admin"],
        ("admin:servers", "tokens", "list:users", "read:users", "read:hub", "access:services"),
    ),
}
OWNER = scopes.ROLES["deployer"]
"""What the one user of `personal` trust may do."""


ADMIN_PAGE = ("admin-ui", "list:users", "read:users", "read:groups", "read:hub", "servers", "delete:servers")
"""What an admin does on the hub's own page: see who is there, start and stop servers; not open them."""


def to_hub(granted: frozenset[str]) -> list[str]:
    return sorted(scopes.to_hub(scope) for scope in granted)


def access() -> list[str]:
    return [f"access:services!service={name}" for name in SERVICES]


def set_roles(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    c.JupyterHub.custom_scopes = {
        scopes.to_hub(scope): {"description": f"Cellwork: {scope.replace(':', ', ')}"} for scope in sorted(scopes.ALL)
    }
    team = settings.trust == "team"
    c.JupyterHub.load_roles = [
        {"name": "user", "scopes": ["self", *access(), *(() if team else to_hub(OWNER))]},
        {
            "name": "server",
            "scopes": ["users:activity!user", "access:servers!server", "servers!user", *access(), *to_hub(OWNER)],
        },
        *(
            {"name": f"cellwork-{name}", "scopes": [*to_hub(ours), *hubs], "services": [name]}
            for name, (ours, hubs) in SERVICE_SCOPES.items()
            if ours or hubs
        ),
        *(_by_group() if team else ()),
    ]


def _by_group() -> list[dict[str, Any]]:
    """Return a role of the hub for each of the platform's; the accounts put users into the groups that have them.

    A server's token has at most a deployer's scopes, and none that its owner has not.
    """
    return [
        {
            "name": f"role-{name}",
            "scopes": [*to_hub(granted), *(ADMIN_PAGE if name == "admin" else ())],
            "groups": [f"{scopes.ROLE_GROUP}{name}"],
        }
        for name, granted in scopes.ROLES.items()
    ]

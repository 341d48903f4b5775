"""Scopes, and the roles that are sets of them. JupyterHub carries them as ``custom:cellwork:<scope>``."""

from __future__ import annotations

from collections.abc import Iterable

SUBJECTS = ("data", "features", "models", "endpoints", "jobs", "monitors")
READ = frozenset(f"{subject}:read" for subject in SUBJECTS)
WRITE = frozenset(f"{subject}:write" for subject in SUBJECTS)
SPECIAL = frozenset(
    {
        "features:apply",
        "models:promote",
        "endpoints:predict",
        "holdout:evaluate",
        "secrets:read",
        "secrets:write",
        "secrets:mask",
        "events:write",
        "runs:execute",
        "users:check",
        "admin",
    }
)
ALL = READ | WRITE | SPECIAL

AUTHORS = frozenset({"endpoints:predict", "holdout:evaluate", "secrets:read", "secrets:write"})
FOR_SERVICES = frozenset({"events:write", "runs:execute", "users:check", "secrets:mask"})

ROLES = {
    "viewer": READ,
    "author": READ | WRITE | AUTHORS,
    "deployer": READ | WRITE | AUTHORS | {"features:apply", "models:promote"},
    "admin": ALL - FOR_SERVICES,
}
"""Role -> scopes, each role with all of the one before. FOR_SERVICES are in none."""

ROLE_GROUP, USER_GROUP, PROJECT_GROUP = "role:", "group:", "project:"
"""How a user's role, groups and projects are told by the hub: as groups with these prefixes."""


def highest(roles: Iterable[str]) -> str:
    """Return the one of `roles` that holds all others; empty if there is none."""
    held = set(roles)
    return next((role for role in reversed(ROLES) if role in held), "")


def projects(groups: Iterable[str]) -> frozenset[str]:
    """Return the projects among the hub's groups of a user."""
    return frozenset(g.removeprefix(PROJECT_GROUP) for g in groups if g.startswith(PROJECT_GROUP))


HUB_PREFIX = "custom:cellwork:"


def to_hub(scope: str) -> str:
    return HUB_PREFIX + scope


def from_hub(scopes: list[str] | set[str]) -> frozenset[str]:
    return frozenset(s.removeprefix(HUB_PREFIX) for s in scopes if s.startswith(HUB_PREFIX)) & ALL
